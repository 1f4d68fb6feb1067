"""What follows a layer: per-channel affine operators, then the point where its output is compared.

A bias in an Add, a BatchNorm, a folded scale: they belong to the layer when its weights are solved for. After them the
output may be added to a shortcut (then the sum is what has to be right) and clipped from below or above (then what is
clipped away need not be right). Knows the nodes behind a layer, no units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from onnxprune.fit.codes import limits
from onnxprune.fit.linear import Linear, Shift
from onnxprune.model import Array, Model, Topology, attribute, traits


@dataclass(frozen=True)
class Affine:
    """x -> factor * x + constant, channel by channel, both [channels]. `operand`: the input that is added as it is,
    times `sign`, if there is one."""

    factor: Array
    constant: Array
    operand: int | None = None
    sign: float = 1.0


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
    axis = layer.y_axis
    while rank is not None and axis is not None and (node := graph.reader(end)) is not None:
        step = affine(node, end, model, axis % rank, rank, outputs)
        if step is None:
            break
        scale, offset = scale * step.factor, offset * step.factor + step.constant
        shift = None if shift is None else replace(shift, factor=shift.factor * step.factor)
        if step.operand is not None:
            shift = Shift(node, step.operand, np.full(outputs, step.sign))
        end = str(node.output[0])
    shift = shift or _beside(graph.reader(end), end, scale, model)
    total, other = _sum(graph, end)
    low, high = _clips(graph, total or end)
    return Tail(end, scale, offset, shift, total, other, low, high)


def _beside(node: NodeProto | None, end: str, scale: Array, model: Model) -> Shift | None:
    """The bias of com.microsoft MultiHeadAttention, which holds those of query, key and value side by side."""
    if (
        node is None
        or node.op_type != "MultiHeadAttention"
        or len(node.input) < 4
        or node.input[3] not in model.weights
    ):
        return None
    side, width, whole = list(node.input).index(end), len(scale), model.weights[node.input[3]].size
    start = {0: 0, 1: width, 2: whole - width}.get(side)  # queries are as wide as keys
    if start is None:
        return None
    return Shift(node, 3, np.ones(width), lambda moved: np.pad(moved, (start, whole - start - width)))


def _sum(graph: Topology, end: str) -> tuple[str, str]:
    """(the sum that `end` goes into, what the graph computes to be added to it); ("", "") where there is none."""
    node = graph.reader(end)
    if node is None:
        return "", ""
    terms = [str(node.input[0]), str(node.input[3])] if node.op_type == "QLinearAdd" else [str(n) for n in node.input]
    if node.op_type not in traits.ADDING | {"QLinearAdd"} or len(terms) != 2:
        return "", ""
    other = next((n for n in terms if n != end), "")
    return (str(node.output[0]), other) if other and other not in graph.model.weights else ("", "")


def affine(node: NodeProto, tensor: str, model: Model, axis: int, rank: int, n: int) -> Affine | None:
    """What a per-channel affine operator does to `tensor`, whose `axis` of `rank` has `n` channels; None for others."""
    match node.op_type:
        case "Identity":
            return Affine(np.ones(n), np.zeros(n))
        case "BatchNormalization":
            return _batch_norm(node, model) if axis == 1 else None
        case "Add" | "Sub" | "Mul" | "Div" if len(node.input) == 2:
            return _arithmetic(node, tensor, model, axis, rank, n)
    return None


def _batch_norm(node: NodeProto, model: Model) -> Affine | None:
    if attribute(node, "training_mode", 0) or any(i not in model.weights for i in node.input[1:5]):
        return None
    gamma, beta, mean, var = (model.weights[i].array().astype(np.float64) for i in node.input[1:5])
    factor = gamma / np.sqrt(var + float(attribute(node, "epsilon", 1e-5)))
    return Affine(factor, beta - mean * factor, 2)


def _arithmetic(node: NodeProto, tensor: str, model: Model, axis: int, rank: int, n: int) -> Affine | None:
    k = 1 - list(node.input).index(tensor)
    if node.input[k] not in model.weights:
        return None
    operand = model.weights[node.input[k]]
    value = _channelwise(operand.array(), axis, rank, n)
    if value is None:
        return None
    one, zero, whole = np.ones(n), np.zeros(n), k if operand.size == n else None
    match node.op_type:
        case "Add":
            return Affine(one, value, whole)
        case "Sub":
            return Affine(one, -value, whole, -1.0) if k == 1 else Affine(-one, value, whole)
        case "Mul":
            return Affine(value, zero)
        case "Div" if k == 1 and value.all():
            return Affine(1 / value, zero)
    return None


def _channelwise(value: Array, axis: int, rank: int, n: int) -> Array | None:
    """A constant that varies along `axis` only, as a vector; None for any other."""
    if value.dtype.kind != "f" or value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if any(m != 1 for k, m in enumerate(shape) if k != axis) or shape[axis] not in (1, n):
        return None
    return np.asarray(np.broadcast_to(value.reshape(-1), n), np.float64)


def _clips(graph: Topology, tensor: str) -> tuple[float, float]:
    """(low, high) of what is seen of a tensor: of a Relu or a Clip behind it, or of integers that it is; infinite where
    nothing is clipped."""
    model, node, maker = graph.model, graph.reader(tensor), graph.made_by.get(tensor)
    nothing = limits(None if maker is None else graph.nodes[maker], model)
    if node is None or node.op_type not in ("Relu", "Clip"):
        return nothing
    if node.op_type == "Relu":
        return 0.0, np.inf
    given = [float(attribute(node, "min", -np.inf)), float(attribute(node, "max", np.inf))]
    for k, name in enumerate(node.input[1:3]):
        if name:
            if name not in model.weights:
                return nothing
            given[k] = float(model.weights[name].array())
    return given[0], given[1]
