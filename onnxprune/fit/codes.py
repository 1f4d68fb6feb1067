"""How operators read integers: which scale and zero point say what the codes of a tensor stand for.

A code stands for (code - zero point) * scale. Knows operators and parameters, no units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import ml_dtypes
import numpy as np
from onnx import NodeProto, helper

from onnxprune.fit.expressions import CODED, Parameter, parameter
from onnxprune.model import Model, attribute


class Code(NamedTuple):
    """How an operand is read: the operands that hold its scale and its zero point, one value for each position along
    `axis` or one for all; `common`: of another scale that multiplies all of it."""

    scale: int | None
    zero: int | None
    axis: int
    common: int | None = None


CODES: Mapping[str, Mapping[int, Code]] = {
    "QLinearConv": {3: Code(4, 5, 0), 8: Code(4, None, 0, 1)},
    "QLinearMatMul": {0: Code(1, 2, -2), 3: Code(4, 5, -1)},
    "QGemm": {3: Code(4, 5, -1), 6: Code(4, None, -1, 1)},
    "ConvInteger": {1: Code(None, 3, 0)},
    "MatMulInteger": {0: Code(None, 2, -2), 1: Code(None, 3, -1)},
    "MatMulIntegerToFloat": {0: Code(2, 4, -2), 1: Code(3, 5, -1)},
    "DynamicQuantizeMatMul": {1: Code(2, 3, -1)},
    "QAttention": {1: Code(4, 7, -1)},
}
"""Parameters, by operator and operand. DequantizeLinear, whose scales may be of blocks, is not among them. A bias has
the scales of the weight, times the one of the input."""

_BOTH = ((0, 1, 2), (3, 4, 5))
READ: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "QLinearConv": ((0, 1, 2),), "QGemm": ((0, 1, 2),), "DequantizeLinear": ((0, 1, 2),), "QLinearMatMul": _BOTH,
    "QLinearAdd": _BOTH, "QLinearMul": _BOTH, "QAttention": ((0, 3, 6),),
}  # fmt: skip
"""(tensor, its scale, its zero point) among the inputs of operators."""
MADE: Mapping[str, tuple[int, int]] = {
    "QuantizeLinear": (1, 2), "QLinearConv": (6, 7), "QLinearMatMul": (6, 7), "QGemm": (7, 8), "QLinearAdd": (6, 7),
    "QLinearMul": (6, 7),
}  # fmt: skip
"""The inputs that are scale and zero point of what operators make."""


def operand(node: NodeProto, i: int, model: Model, made_by: Mapping[str, NodeProto]) -> Parameter | None:
    """The parameter that a node reads as its input `i`, as what it stands for; None where it is none, or is read by
    scales that are computed."""
    own = parameter(node.input[i], model, made_by)
    code = CODES.get(node.op_type, {}).get(i)
    if own is None or code is None:
        return own
    return decoded(own, node, code, model)


def decoded(own: Parameter, node: NodeProto, code: Code, model: Model, scale: str = "") -> Parameter | None:
    """A parameter of integers as what they stand for, by the scales that the node is given, or by `scale`; None where
    these are computed."""
    scales = [scale] if scale else [given(node, k) for k in (code.scale, code.common) if k is not None]
    zero = given(node, code.zero)
    if not scales or any(n not in model.weights for n in (*scales, *filter(None, [zero]))):
        return None
    turned = node.op_type == "QGemm" and attribute(node, "transB", 0) and code.common is None
    axis = 0 if turned or len(own.shape(model)) == 1 else code.axis % len(own.shape(model))
    step = helper.make_node("DequantizeLinear", [own.name, scales[0], zero, *scales[1:]], [own.name], CODED, axis=axis)
    return replace(own, path=(*own.path, step))


def limits(node: NodeProto | None, model: Model) -> tuple[float, float]:
    """(low, high) of what the codes that a node gives can stand for; infinite where it gives none, or no scale of its
    own."""
    scale, zero = (given(node, k) for k in MADE[node.op_type]) if node and node.op_type in MADE else ("", "")
    if scale not in model.weights or zero not in model.weights or model.weights[scale].size != 1:
        return -np.inf, np.inf
    point, kind = model.weights[zero].array(), ml_dtypes.iinfo(model.weights[zero].dtype)  # type: ignore[no-untyped-call]
    step = float(model.weights[scale].array().reshape(()))
    return tuple((float(code) - float(point.reshape(()))) * step for code in (kind.min, kind.max))  # type: ignore


def given(node: NodeProto, k: int | None) -> str:
    """The name of an input; "" where it is not given."""
    return str(node.input[k]) if k is not None and k < len(node.input) else ""


def tensors(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every tensor of codes that an operator here makes or reads, with its scale and its zero point."""
    for node in nodes:
        kind = node.op_type
        if kind in MADE and given(node, MADE[kind][0]):
            yield node.output[0], (given(node, MADE[kind][0]), given(node, MADE[kind][1]))
        if kind == "DynamicQuantizeLinear":
            yield node.output[0], (node.output[1], node.output[2])
        for x, scale, zero in READ.get(kind, ()):
            yield node.input[x], (given(node, scale), given(node, zero))
