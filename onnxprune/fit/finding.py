"""The layers of a graph. Knows operators and weights, no groups.

One small function a family of operators builds the `Layer`; everything after it (statistics, scores, refitting) speaks
of rows, columns and targets only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from onnx import NodeProto

from onnxprune.fit.codes import CODES, MADE, decoded, given, operand
from onnxprune.fit.contractions import einsum, stacked
from onnxprune.fit.experts import experts
from onnxprune.fit.expressions import Parameter, parameter
from onnxprune.fit.linear import Linear, Unsolvable
from onnxprune.fit.packed import packed
from onnxprune.fit.products import Layer, Window
from onnxprune.fit.recurrent import recurrent
from onnxprune.fit.requantised import FewBits
from onnxprune.model import Array, Model, Topology, attribute, nested, traits

NBITS_BIAS = 5
AnyLinear = TypeVar("AnyLinear", bound=Linear)
Nodes = Mapping[str, NodeProto]
Handle = Callable[[int, NodeProto, Topology, Nodes, Callable[[str], int | None]], Linear | None]


def _convolution(index: int, node: NodeProto, graph: Topology, made_by: Nodes, rank: Any) -> Layer | None:
    weight = parameter(node.input[1], graph.model, made_by)
    if weight is None or attribute(node, "activation") is not None or len(node.input) > 3:
        return None
    return _window(index, node, graph.model, weight, 2)


def _window(
    index: int, node: NodeProto, model: Model, weight: Parameter, bias: int | None, end: str = ""
) -> Layer | None:
    shape = weight.shape(model)
    n, groups = len(shape) - 2, int(attribute(node, "group", 1))
    kernel = tuple(shape[2:])
    pads = list(attribute(node, "pads", [0] * 2 * n))
    window = Window(
        kernel, tuple(attribute(node, "strides", [1] * n)), tuple(attribute(node, "dilations", [1] * n)),
        tuple(zip(pads[:n], pads[n:], strict=True)), str(attribute(node, "auto_pad", "NOTSET")),
    )  # fmt: skip

    def matrix(w: Array) -> Array:
        return w.reshape(groups, w.shape[0] // groups, -1).transpose(0, 2, 1)

    def restore(m: Array, to: tuple[int, ...]) -> Array:
        return m.transpose(0, 2, 1).reshape(to)

    if node.op_type == "ConvTranspose":
        if window.auto != "NOTSET" or attribute(node, "output_shape") is not None:
            return None
        window = Window(kernel, (1,) * n, window.dilations, window.pads, "NOTSET", window.strides,
                        tuple(attribute(node, "output_padding", [0] * n)))  # fmt: skip
        turn = tuple(range(2, 2 + n))

        def matrix(w: Array) -> Array:
            flipped = np.flip(w, turn).reshape(groups, w.shape[0] // groups, w.shape[1], -1)
            return flipped.transpose(0, 1, 3, 2).reshape(groups, -1, w.shape[1])

        def restore(m: Array, to: tuple[int, ...]) -> Array:
            flipped = m.reshape(groups, to[0] // groups, -1, to[1]).transpose(0, 1, 3, 2)
            return np.flip(flipped.reshape(to), turn)

    axis = -1 if attribute(node, "channels_last", 0) or node.op_type.startswith("Nhwc") else 1
    return Layer(index, node, node.input[0], weight, matrix, restore, groups, window, axis, axis, bias, end=end)


def _gemm(index: int, node: NodeProto, graph: Topology, made_by: Nodes, rank: Any) -> Layer | None:
    weight = parameter(node.input[1], graph.model, made_by)
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    if weight is None or attribute(node, "activation") is not None or not alpha:
        return None
    return _product(index, node, weight, 2, alpha, beta)


def _product(index: int, node: NodeProto, weight: Parameter, bias: int, alpha: float, beta: float) -> Layer:
    turned = bool(attribute(node, "transB", 0))
    return Layer(
        index, node, node.input[0], weight,
        lambda w: (alpha * (w.T if turned else w))[None],
        lambda m, to: (m[0].T if turned else m[0]) / alpha,
        x_axis=0 if attribute(node, "transA", 0) else 1, y_axis=1, bias=bias if beta else None, scale=beta,
    )  # fmt: skip


def _matmul(index: int, node: NodeProto, graph: Topology, made_by: Nodes, rank: Any) -> Linear | None:
    model = graph.model
    for side in (1, 0):
        weight = parameter(node.input[side], model, made_by)
        if weight is None or len(weight.shape(model)) < 2:
            continue
        if parameter(node.input[1 - side], model, made_by) is not None or (rank(node.input[1 - side]) or 0) < 2:
            return None
        if len(weight.shape(model)) > 2:
            return stacked(index, node, side, weight, rank, model)
        if side == 1:
            return Layer(index, node, node.input[0], weight, lambda w: w[None], lambda m, to: m[0])
        return Layer(
            index, node, node.input[1], weight, lambda w: w.T[None], lambda m, to: m[0].T, x_axis=-2, y_axis=-2
        )
    return None


def _nbits(index: int, node: NodeProto, graph: Topology, made_by: Nodes, rank: Any) -> Layer | None:
    weight = FewBits.of(node, graph.model)
    if weight is None:
        return None
    return Layer(index, node, node.input[0], weight, lambda w: w[None], lambda m, to: m[0], bias=NBITS_BIAS)


def _quantised(index: int, node: NodeProto, graph: Topology, made_by: Nodes, rank: Any) -> Layer | None:
    """QLinearConv, QLinearMatMul, QGemm: the integers that they read and give have one scale each."""
    model, out = graph.model, MADE[node.op_type][0]
    scales = [s for s in (given(node, 1), given(node, out)) if s]
    weight = operand(node, 3, model, made_by)
    if weight is None or any(s not in model.weights or model.weights[s].size != 1 for s in scales):
        return None
    if node.op_type == "QLinearConv":
        return _window(index, node, model, weight, 8)
    if node.op_type == "QGemm":
        alpha = float(attribute(node, "alpha", 1.0))
        return _product(index, node, weight, 6, alpha, alpha) if alpha else None
    return _columns(index, node, model, weight, rank)


def _integer(index: int, node: NodeProto, graph: Topology, made_by: Nodes, rank: Any) -> Layer | None:
    """ConvInteger, MatMulInteger, with the product of two scales behind them."""
    model, whole, own = graph.model, _scaled(node, graph, made_by), parameter(node.input[1], graph.model, made_by)
    if whole is None or own is None or whole[0] not in model.weights:
        return None
    scale, end = whole
    dims, convolution = model.weights[scale].shape, node.op_type == "ConvInteger"
    weight = decoded(own, node, CODES[node.op_type][1], model, scale)
    if weight is None or (any(n > 1 for n in dims) and (convolution or len(dims) > 1)):
        return None
    if convolution:
        return _window(index, node, model, weight, None, end)
    return _columns(index, node, model, weight, rank, end)


def _columns(
    index: int, node: NodeProto, model: Model, weight: Parameter, rank: Any, end: str = ""
) -> Layer | None:  # fmt: skip
    if len(weight.shape(model)) != 2 or (rank(node.input[0]) or 0) < 2:
        return None
    return Layer(index, node, node.input[0], weight, lambda w: w[None], lambda m, to: m[0], end=end)


def _scaled(node: NodeProto, graph: Topology, made_by: Nodes) -> tuple[str, str] | None:
    """(the scale of the weight, what has both scales) of a product of integers, of which the input is quantised as it
    comes; None where anything else is done."""
    source, cast = made_by.get(node.input[0]), graph.reader(node.output[0])
    scaled = graph.reader(cast.output[0]) if cast is not None and cast.op_type == "Cast" else None
    if source is None or cast is None or scaled is None or source.op_type != "DynamicQuantizeLinear":
        return None
    both = made_by.get(next((n for n in scaled.input if n != cast.output[0]), ""))
    if both is None or (scaled.op_type, both.op_type) != ("Mul", "Mul") or given(node, 2) != source.output[2]:
        return None
    scale = next((str(n) for n in both.input if n != source.output[1]), "")
    return (scale, str(scaled.output[0])) if source.output[1] in both.input else None


def _scaled_matmul(index: int, node: NodeProto, graph: Topology, made_by: Nodes, rank: Any) -> Linear | None:
    """com.microsoft FusedMatMul with a matrix on the right: as Gemm's product, over the last axis whatever the rank."""
    layer = _gemm(index, node, graph, made_by, rank)
    turned = any(attribute(node, name, 0) for name in ("transA", "transBatchA", "transBatchB"))
    if layer is None or turned or len(layer.weight.shape(graph.model)) != 2 or (rank(layer.data) or 0) < 2:
        return None
    return replace(layer, x_axis=-1, y_axis=-1, bias=None)


def _einsum(index: int, node: NodeProto, graph: Topology, made_by: Nodes, rank: Any) -> Linear | None:
    return einsum(index, node, [parameter(name, graph.model, made_by) for name in node.input], rank, graph.model)


def _attention(index: int, node: NodeProto, graph: Topology, made_by: Nodes, rank: Any) -> Linear | None:
    if node.domain != "com.microsoft" or len(node.input) < 2:
        return None  # that of ONNX has no weights of its own
    return packed(index, node, operand(node, 1, graph.model, made_by), graph.model)


def _experts(index: int, node: NodeProto, graph: Topology, made_by: Nodes, rank: Any) -> Linear | None:
    return experts(index, node, graph.model)


CONVOLUTIONS = ("Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv")
HANDLES: dict[str, Handle] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution), "Gemm": _gemm, "FusedGemm": _gemm,
    "MatMul": _matmul, "FusedMatMul": _scaled_matmul, "MatMulNBits": _nbits, "Einsum": _einsum,
    **dict.fromkeys(("Attention", "QAttention"), _attention),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), _quantised),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), _integer), **dict.fromkeys(("MoE", "QMoE"), _experts),
}  # fmt: skip


def layers(model: Model, rank: Callable[[str], int | None], skipped: dict[str, str] | None = None) -> list[Linear]:
    """Every linear map of an activation by a parameter in the main graph, in order. `skipped` collects the nodes that
    hold one which cannot be told apart, with the reason."""
    graph = Topology(model)
    made_by = graph.makers
    found: list[Linear] = []
    for index, node in enumerate(graph.nodes):
        handle = HANDLES.get(node.op_type)
        layer = handle(index, node, graph, made_by, rank) if handle else None
        if layer is not None and layer.data not in model.weights:
            found.append(layer)
        if node.op_type in traits.GATES:
            try:
                found += recurrent(index, node, graph)
            except Unsolvable as why:
                (skipped if skipped is not None else {})[node.name] = str(why)
    return found


def owners(nodes: Sequence[NodeProto]) -> list[int]:
    """By index, the nodes in whose bodies something may be a layer."""
    may = HANDLES.keys() | traits.GATES.keys()
    return [k for k, node in enumerate(nodes) if any(inner.op_type in may for inner in nested(node))]


def shared(found: Sequence[AnyLinear]) -> list[list[AnyLinear]]:
    """Layers by the matrix that they share, in the order of the last of each."""
    by_key: dict[Hashable, list[AnyLinear]] = defaultdict(list)
    for layer in found:
        by_key[layer.key].append(layer)
    return sorted(by_key.values(), key=lambda members: members[-1].index)


def passed(found: Sequence[Linear], model: Model) -> list[float]:
    """Of all work on the layers, the share that lies before each: by how many weights they have."""
    sizes = [sum(model.weights[root].size for root in layer.roots) for layer in found]
    return [before / (sum(sizes) or 1) for before in accumulate(sizes, initial=0)][:-1]
