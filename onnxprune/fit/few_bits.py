"""Weights of a few bits as numbers: what their codes, scales and zero points stand for, block by block.

Knows the operators of ONNX Runtime that read such weights, no units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import NodeProto

from onnxprune.model import Array, Model, attribute
from onnxprune.trace import Cells

BYTE = 8


@dataclass(frozen=True)
class Coded:
    """A table of codes, several in a byte where it is stored in bytes, whose numbers are (code - zero point) * scale.

    weight, scale, zero: operands of `node`. axis: each run of `each` positions along it has one scale and one zero
    point. bits: of a code."""

    node: NodeProto
    weight: int
    scale: int
    zero: int
    axis: int
    each: int
    bits: int

    def codes(self, model: Model) -> Array:
        """The codes, their last axes as one where they are stored block by block."""
        stored = model.weights[self.node.input[self.weight]].array()
        if stored.dtype != np.uint8:
            return stored
        if self.node.op_type == "MatMulNBits":  # [outputs, blocks, bytes of a block]
            stored = stored.reshape(len(stored), -1)
        return Cells((*stored.shape[:-1], stored.shape[-1] * BYTE // self.bits), self.bits).of(stored)

    def numbers(self, model: Model) -> Array | None:
        """The numbers that the codes stand for, float32; None where a scale or zero point is computed."""
        if any(name and name not in model.weights for name in map(self._named, (self.scale, self.zero))):
            return None
        codes = self.codes(model)
        scale, zero = self.grids(model, codes.shape)
        places = np.arange(codes.shape[self.axis]) // self.each
        return np.asarray((codes.astype(np.float32) - zero.take(places, self.axis)) * scale.take(places, self.axis))

    def grids(self, model: Model, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Scales and zero points of codes of this shape, float32, one for each run."""
        grid = tuple(-(-n // self.each) if k == self.axis else n for k, n in enumerate(shape))
        scale = model.weights[self.node.input[self.scale]].array()
        stored = model.weights[self.node.input[self.weight]].dtype
        if not self._named(self.zero):
            middle = 1 << (self.bits - 1) if stored == np.uint8 else 0
            return scale.reshape(grid).astype(np.float32), np.full(grid, middle, np.float32)
        zero = model.weights[self.node.input[self.zero]].array()
        if zero.dtype == np.uint8:  # rows of bytes, as the scales lie in rows
            held = grid if prod(scale.shape) == prod(grid) and scale.ndim < 2 else scale.shape
            zero = Cells(tuple(held), self.bits).of(zero)
        return scale.reshape(grid).astype(np.float32), zero.reshape(grid).astype(np.float32)

    def _named(self, i: int) -> str:
        return str(self.node.input[i]) if i < len(self.node.input) else ""


EXPERTS: Mapping[int, tuple[int, int]] = {2: (3, 11), 5: (6, 12), 8: (9, 13)}
"""Of QMoE: the operands that hold scales and zero points of each weight."""


def coded(node: NodeProto, i: int) -> Coded | None:
    """Operand `i` of a node as a table of codes; None where it is none."""
    match node.op_type, i:
        case "MatMulNBits", 1:
            return Coded(node, 1, 2, 3, 1, int(attribute(node, "block_size")), int(attribute(node, "bits", 4)))
        case "GatherBlockQuantized", 0:
            axis, each = int(attribute(node, "quantize_axis", 1)), int(attribute(node, "block_size", 128))
            return Coded(node, 0, 2, 3, axis, each, int(attribute(node, "bits", 4)))
        case "QMoE", weight if weight in EXPERTS:
            scale, zero = EXPERTS[weight]
            each = int(attribute(node, "block_size", 0)) or 1 << 31
            return Coded(node, weight, scale, zero, 2, each, int(attribute(node, "expert_weight_bits", 4)))
    return None


def values(node: NodeProto, i: int, model: Model) -> Array | None:
    """What operand `i` of a node stands for, float32, along the axes that its units go by: of a MatMulNBits
    [outputs, blocks, block size] with zeros where the last block is not full. None where that is computed."""
    table = coded(node, i)
    numbers = table.numbers(model) if table is not None else None
    if numbers is None or table is None or node.op_type != "MatMulNBits":
        return numbers
    numbers[:, int(attribute(node, "K")) :] = 0
    return numbers.reshape(len(numbers), -1, table.each)
