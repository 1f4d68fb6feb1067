"""What follows a layer: per-channel affine operators, then the point where its output is compared.

A bias in an Add, a BatchNorm, a folded scale: they belong to the layer when its weights are solved for. After them the
output may be added to a shortcut (then the sum is what has to be right) and clipped from below or above (then what is
clipped away need not be right). Knows the nodes behind a layer, no units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.expressions import attribute
from onnxprune.fit.linear import Linear, Shift
from onnxprune.model import Model, Topology, traits

Array = NDArray[Any]


@dataclass(frozen=True)
class Tail:
    """end = scale * out + offset, channel by channel; `shift` can absorb a change of the offset, if there is one.

    total, other: the sum that `end` goes into and what is added to it ("" where there is none).
    low, high: what lies beyond is clipped right after."""

    end: str
    scale: Array
    offset: Array
    shift: Shift | None = None
    total: str = ""
    other: str = ""
    low: float = -np.inf
    high: float = np.inf

    @property
    def compared(self) -> str:
        """The tensor whose dense value is the target."""
        return self.total or self.end


def tail(layer: Linear, graph: Topology, outputs: int, rank: int | None) -> Tail:
    """Follow `layer` as long as each tensor has one reader. `outputs`: channels; `rank`: axes of its output."""
    model = graph.model
    scale, offset = np.ones(outputs), np.zeros(outputs)
    shift = layer.shift(outputs)
    end = layer.out
    while rank is not None and (node := graph.reader(end)) is not None:
        step = affine(node, end, model, layer.y_axis % rank, rank, outputs)
        if step is None:
            break
        factor, constant, operand, sign = step
        scale, offset = scale * factor, offset * factor + constant
        shift = None if shift is None else replace(shift, factor=shift.factor * factor)
        if operand is not None:
            shift = Shift(node, operand, np.full(outputs, sign))
        end = str(node.output[0])
    total = other = ""
    node = graph.reader(end)
    if node is not None and node.op_type in traits.ADDING and len(node.input) == 2:
        other = next((str(n) for n in node.input if n != end), "")
        if other and other not in model.weights:
            total = str(node.output[0])
        else:
            other = ""
    low, high = _clips(graph.reader(total or end), model)
    return Tail(end, scale, offset, shift, total, other, low, high)


def affine(
    node: NodeProto, tensor: str, model: Model, axis: int, rank: int, n: int
) -> tuple[Array, Array, int | None, float] | None:
    """(factor, constant, input that is added as it is, its sign) of a per-channel affine operator, or None."""
    if node.op_type == "Identity":
        return np.ones(n), np.zeros(n), None, 1.0
    if node.op_type == "BatchNormalization":
        if axis != 1 or attribute(node, "training_mode", 0) or any(i not in model.weights for i in node.input[1:5]):
            return None
        gamma, beta, mean, var = (model.weights[i].array().astype(np.float64) for i in node.input[1:5])
        factor = gamma / np.sqrt(var + float(attribute(node, "epsilon", 1e-5)))
        return factor, beta - mean * factor, 2, 1.0
    if node.op_type not in traits.ARITHMETIC or len(node.input) != 2:
        return None
    k = 1 - list(node.input).index(tensor)
    if node.input[k] not in model.weights or (node.op_type == "Div" and k == 0):
        return None
    value = _channelwise(model.weights[node.input[k]].array(), axis, rank, n)
    if value is None:
        return None
    whole = k if model.weights[node.input[k]].size == n else None
    match node.op_type:
        case "Add":
            return np.ones(n), value, whole, 1.0
        case "Sub":
            return (np.ones(n), -value, whole, -1.0) if k == 1 else (-np.ones(n), value, whole, 1.0)
        case "Mul":
            return value, np.zeros(n), None, 1.0
    return (1 / value, np.zeros(n), None, 1.0) if value.all() else None


def _channelwise(value: Array, axis: int, rank: int, n: int) -> Array | None:
    """A constant that varies along `axis` only, as a vector; None for any other."""
    if value.dtype.kind != "f" or value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if any(m != 1 for k, m in enumerate(shape) if k != axis) or shape[axis] not in (1, n):
        return None
    return np.asarray(np.broadcast_to(value.reshape(-1), n), np.float64)


def _clips(node: NodeProto | None, model: Model) -> tuple[float, float]:
    if node is not None and node.op_type == "Relu":
        return 0.0, np.inf
    if node is not None and node.op_type == "Clip":
        given = [float(attribute(node, "min", -np.inf)), float(attribute(node, "max", np.inf))]
        for k, name in enumerate(node.input[1:3]):
            if name:
                if name not in model.weights:
                    return -np.inf, np.inf
                given[k] = float(model.weights[name].array())
        return given[0], given[1]
    return -np.inf, np.inf
