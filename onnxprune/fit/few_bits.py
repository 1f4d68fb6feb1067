"""Weights of a few bits as numbers: what their codes, scales and zero points stand for, block by block.

Knows the operators of ONNX Runtime that read such weights, no units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import NodeProto

from onnxprune.fit.expressions import Grid
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

    def shape(self, model: Model) -> tuple[int, ...]:
        """Of the codes; those that are stored block by block [rows, blocks, ..] are one row each."""
        stored = model.weights[self.node.input[self.weight]]
        if stored.dtype != np.uint8:
            return stored.shape
        if self.node.op_type == "MatMulNBits":
            return stored.shape[0], prod(stored.shape[1:]) * BYTE // self.bits
        return *stored.shape[:-1], stored.shape[-1] * BYTE // self.bits

    def codes(self, model: Model, rows: slice = slice(None)) -> Array:
        """The codes of some rows."""
        stored, shape = model.weights[self.node.input[self.weight]].array()[rows], self.shape(model)
        return stored if stored.dtype != np.uint8 else Cells((len(stored), *shape[1:]), self.bits).of(stored)

    def known(self, model: Model) -> bool:
        """Whether codes, scales and zero points are parameters."""
        names = (self._named(i) for i in (self.weight, self.scale, self.zero))
        return all(not name or name in model.weights for name in names)

    def numbers(self, model: Model, rows: slice = slice(None)) -> Array:
        """The numbers that the codes of some rows stand for, float32."""
        scale, zero = self.grids(model, rows)
        found = self.codes(model, rows).astype(np.float32, order="C")
        size = found.shape[self.axis]
        if size % self.each:  # the last run is not full
            places = np.arange(size) // self.each
            scale, zero = scale.take(places, self.axis), zero.take(places, self.axis)
            runs = found
        else:
            scale, zero = (np.expand_dims(grid, self.axis + 1) for grid in (scale, zero))
            runs = found.reshape(*found.shape[: self.axis], -1, self.each, *found.shape[self.axis + 1 :])
        runs -= zero
        runs *= scale
        return found

    def grids(self, model: Model, rows: slice = slice(None)) -> tuple[Array, Array]:
        """Scales and zero points of some rows, float32, one for each run."""
        grid = tuple(-(-n // self.each) if k == self.axis else n for k, n in enumerate(self.shape(model)))
        if not self.axis:
            rows = slice(None)
        stored = model.weights[self.node.input[self.scale]].array()
        held = grid if prod(stored.shape) == prod(grid) and stored.ndim < 2 else stored.shape
        scale = stored.reshape(grid)[rows].astype(np.float32)
        if not self._named(self.zero):
            whole = model.weights[self.node.input[self.weight]].dtype == np.uint8
            return scale, np.full(scale.shape, 1 << (self.bits - 1) if whole else 0, np.float32)
        stored = model.weights[self.node.input[self.zero]].array()
        if stored.dtype == np.uint8:  # rows of bytes, as the scales lie in rows
            stored = stored.reshape(held[0], -1)[rows]
            stored = Cells((len(stored), *held[1:]), self.bits).of(stored)
        else:
            stored = stored.reshape(grid)[rows]
        return scale, stored.reshape(scale.shape).astype(np.float32)

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


@dataclass(frozen=True)
class Stack:
    """The weight [experts, outputs, inputs] of few bits that `table` holds, as a parameter."""

    table: Coded

    @property
    def root(self) -> str:
        """The initializer that holds the codes."""
        return str(self.table.node.input[self.table.weight])

    @property
    def roots(self) -> tuple[str, ...]:
        """The same: its scales stay."""
        return (self.root,)

    def shape(self, model: Model) -> tuple[int, ...]:
        """[experts, outputs, inputs], without reading it."""
        return self.table.shape(model)

    def read(self, model: Model) -> Array:
        """Its numbers, float64."""
        return self.table.numbers(model).astype(np.float64)

    def grid(self, model: Model) -> Grid:
        """The values that can be stored."""
        scale, zero = self._spread(model)
        return Grid(scale, -zero * scale, ((1 << self.table.bits) - 1 - zero) * scale)

    def write(self, model: Model, value: Array, root: str | None = None) -> None:
        """Store the nearest codes, by the scales that it has."""
        scale, zero = self._spread(model)
        steps = np.divide(value, scale, out=np.zeros(value.shape), where=scale != 0)
        codes = np.clip(np.rint(steps + zero), 0, (1 << self.table.bits) - 1).astype(np.uint8)
        model.put(self.root, Cells(codes.shape, self.table.bits).stored(codes))

    def _spread(self, model: Model) -> tuple[Array, Array]:
        """Scales and zero points, one for each number."""
        shape = self.shape(model)
        places = np.arange(shape[-1]) // self.table.each
        scale, zero = self.table.grids(model)
        return scale.take(places, -1).astype(np.float64), zero.take(places, -1).astype(np.float64)


@dataclass(frozen=True)
class Numbers:
    """What an operand stands for, a few rows at a time: float32, along the axes that its units go by. Of a MatMulNBits
    they are [outputs, blocks, block size] with zeros where the last block is not full, or [outputs, inputs] if
    `singly`."""

    table: Coded
    model: Model
    singly: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array has it."""
        shape = self.table.shape(self.model)
        if self.singly:
            return shape[0], int(attribute(self.table.node, "K"))
        each = self.table.each
        return (shape[0], shape[1] // each, each) if self.table.node.op_type == "MatMulNBits" else shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Array:
        found = self.table.numbers(self.model, rows)
        if self.singly:
            return found[:, : self.shape[1]]
        if self.table.node.op_type == "MatMulNBits":
            found[:, int(attribute(self.table.node, "K")) :] = 0
        return found.reshape(len(found), *self.shape[1:])


def numbers(node: NodeProto, i: int, model: Model, singly: bool = False) -> Numbers | None:
    """What operand `i` of a node stands for; None where it is no table of codes, or is computed. singly: of a
    MatMulNBits, without the axis of its blocks."""
    table = coded(node, i)
    return (
        Numbers(table, model, singly and node.op_type == "MatMulNBits")
        if table is not None and table.known(model)
        else None
    )
