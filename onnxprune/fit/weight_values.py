"""Which parameters are weights, and what their numbers stand for.

An integer stands for (integer - zero point) * scale. A scale or a zero point says how others are read, and the moments
of a normalisation are what its input was like: they are no weights. Knows which operator reads what as which of these,
no units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.codes import CODES, Code
from onnxprune.fit.expressions import Parameter, transposed_back
from onnxprune.fit.few_bits import Numbers, numbers
from onnxprune.model import Array, Model, attribute, traits
from onnxprune.trace import Cells

NO_WEIGHTS: Mapping[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), frozenset({1, 2})),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), frozenset({1, 2, 4, 5, 6, 7})),
    "QGemm": frozenset({1, 2, 4, 5, 7, 8}),
    **dict.fromkeys(
        ("ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "GatherBlockQuantized"), frozenset({2, 3})
    ),
    "MatMulNBits": frozenset({2, 3, 4}),
    "QAttention": frozenset({3, 4, 6, 7}),
    "QMoE": frozenset({3, 6, 9, 11, 12, 13}),
    "MatMulIntegerToFloat": frozenset({2, 3, 4, 5}),
}
"""By operator: operands that are moments, scales or zero points."""


class WeightValues:
    """Of the parameters of `model`, which `nodes` read."""

    def __init__(self, nodes: Iterable[NodeProto], model: Model) -> None:
        self.model = model
        self.uses: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        for node in nodes:
            for i, name in enumerate(node.input):
                self.uses[name].append((node, i))

    def by_rows(self, name: str, cells: Cells | None = None) -> NDArray[np.generic] | Numbers | None:
        """As `of`; what has to be worked out for every number is so when rows of it are asked for."""
        found = (numbers(node, i, self.model, bool(cells and cells.each)) for node, i in self.uses[name])
        lazy = next((each for each in found if each is not None and each.table.axis), None)
        return self.of(name, cells) if lazy is None else lazy

    def of(self, name: str, cells: Cells | None = None) -> NDArray[np.generic] | None:
        """The values that a parameter stands for, in its own layout, or in that of its `cells` where blocks of these
        are an axis there; None where it is no weight."""
        uses = self.uses[name]
        if uses and all(i in NO_WEIGHTS.get(node.op_type, ()) for node, i in uses):
            return None
        weight = self.model.weights[name]
        if weight.dtype.kind == "f":
            return weight.array()
        if (dequantised := self._dequantised(name)) is not None:
            value = transposed_back(dequantised.path, dequantised.read(self.model))
            return np.asarray(value, np.float32)
        for node, i in uses:
            if (found := numbers(node, i, self.model, bool(cells and cells.each))) is not None:
                return found[:]
            if (code := CODES.get(node.op_type, {}).get(i)) is not None:
                return self._decoded(weight.array(), node, code)
        return weight.array()

    def _dequantised(self, root: str) -> Parameter | None:
        """What a DequantizeLinear behind it makes of a parameter."""
        todo: list[tuple[str, tuple[NodeProto, ...]]] = [(root, ())]
        while todo:
            tensor, path = todo.pop()
            for node, i in self.uses[tensor]:
                if i or node.op_type not in traits.CARRYING_PARAMETERS:
                    continue
                if node.op_type == "DequantizeLinear":
                    known = all(n in self.model.weights for n in node.input[1:] if n)
                    return Parameter(node.output[0], root, (*path, node)) if known else None
                todo.append((node.output[0], (*path, node)))
        return None

    def _decoded(self, codes: Array, node: NodeProto, code: Code) -> Array:
        axis = code.axis + codes.ndim if code.axis < 0 else code.axis
        if node.op_type == "QGemm" and attribute(node, "transB", 0):
            axis = 0
        zero, scale = (self._along(axis, codes.ndim, node, operand) for operand in (code.zero, code.scale))
        return np.asarray((codes - (0 if zero is None else zero)) * (1 if scale is None else scale), np.float32)

    def _along(self, axis: int, rank: int, node: NodeProto, operand: int | None) -> Array | None:
        """A scale or a zero point, broadcastable to what it is of; None where there is none, or a computed one."""
        name = node.input[operand] if operand is not None and operand < len(node.input) else ""
        if name not in self.model.weights:
            return None
        value = self.model.weights[name].array().astype(np.float64)
        if value.size == 1 or value.ndim > 1:
            return value.reshape(()) if value.size == 1 else value
        return value.reshape([-1 if k == axis else 1 for k in range(rank)])
