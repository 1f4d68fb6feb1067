"""Operators of quantised graphs in real numbers: what each computes when nothing is rounded, one function each.

Knows one node, and no other; what all of them are written with, `step` knows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import helper

from onnxprune.model import opset
from onnxprune.prove.step import CannotUnround, Step

TINY = np.float32(1e-30)


def quantize(s: Step) -> None:
    """QuantizeLinear: x / scale + zero point, not rounded."""
    if s.attr("block_size", 0):
        raise CannotUnround("it has a scale for every block")
    axis = s.attr("axis", 1) if s.rank(s.node.input[1]) != 0 else None
    s.gives_quantized(s.cast(s.node.input[0]), 1, 2, axis, s.attr("output_dtype"))


def dequantize(s: Step) -> None:
    """DequantizeLinear: (x - zero point) * scale."""
    if s.node.input[0] not in s.graph.floats:  # a weight: there is nothing to leave out
        s.made.append(s.node)
        return
    axis = s.attr("axis", 1) if s.rank(s.node.input[1]) != 0 else None
    s.gives(s.dequantized(0, 1, 2, axis), whole=False)


def dynamic_quantize(s: Step) -> None:
    """DynamicQuantizeLinear: its scale and zero point are those of the range of x and zero, not rounded."""
    x, zero = s.node.input[0], s.const(np.float32(0))
    least = s.put("Min", s.put("ReduceMin", x, keepdims=0), zero)
    most = s.put("Max", s.put("ReduceMax", x, keepdims=0), zero)
    steps = s.put("Div", s.put("Sub", most, least), s.const(np.float32(255)))
    scale = s.put("Max", steps, s.const(TINY))
    point = s.put("Neg", s.put("Div", least, scale))
    s.gives(s.put("Add", s.put("Div", x, scale), point))
    for out, name in ((1, scale), (2, point)):
        if len(s.node.output) > out and s.node.output[out]:
            s.gives(name, out)


def conv(s: Step) -> None:
    """QLinearConv: its bias has the scale of its products."""
    rank = s.rank(s.node.input[3])
    inputs = [s.dequantized(0, 1, 2), s.dequantized(3, 4, 5, 0 if s.rank(s.node.input[4]) else None)]
    if rank is None:
        raise CannotUnround("the number of axes of its weight is not known")
    if s.has(8):
        scale = s.put("Mul", s.cast(s.node.input[1]), s.cast(s.node.input[4]))
        inputs.append(s.put("Mul", s.cast(s.node.input[8]), scale))
    last = bool(s.attr("channels_last", 0))
    s.gives_quantized(s.image("Conv", *inputs, last=last, **s.attrs("channels_last")), 6, 7)


def matmul(s: Step) -> None:
    """QLinearMatMul."""
    s.gives_quantized(s.put("MatMul", s.dequantized(0, 1, 2), s.dequantized(3, 4, 5)), 6, 7)


def gemm(s: Step) -> None:
    """QGemm of com.microsoft, which gives floats where no scale of the output is given."""
    turned, alpha = s.attr("transB", 0), s.attr("alpha", 1.0)
    inputs = [s.dequantized(0, 1, 2), s.dequantized(3, 4, 5, 0 if turned and s.rank(s.node.input[4]) else None)]
    if s.has(6):
        scale = s.put("Mul", s.cast(s.node.input[1]), s.cast(s.node.input[4]))
        inputs.append(s.put("Mul", s.cast(s.node.input[6]), scale))
    y = s.put("Gemm", *inputs, alpha=alpha, beta=alpha, transA=s.attr("transA", 0), transB=turned)
    if s.has(7):
        s.gives_quantized(y, 7, 8)
    else:
        s.gives(y, whole=False)


def _without_zero_point(s: Step, i: int, zero: int, column: bool = False) -> str:
    """An integer operand less its zero point; one of a matrix may have one for every row."""
    out = s.cast(s.node.input[i])
    if not s.has(zero):
        return out
    point = s.cast(s.node.input[zero])
    if column and s.rank(s.node.input[zero]) == 1:
        point = s.put("Unsqueeze", point, s.const(np.array([1], np.int64))) if opset(s.model) >= 13 else s.put(
            "Unsqueeze", point, axes=[1]
        )  # fmt: skip
    return s.put("Sub", out, point)


def matmul_integer(s: Step) -> None:
    """MatMulInteger: a product of integers less their zero points."""
    s.gives(s.put("MatMul", _without_zero_point(s, 0, 2, True), _without_zero_point(s, 1, 3)))


def conv_integer(s: Step) -> None:
    """ConvInteger."""
    weight = s.cast(s.node.input[1])
    if s.has(3):
        own = s.rank(s.node.input[3])
        weight = s.put("Sub", weight, s.aligned(s.node.input[3], s.node.input[1], 0 if own else None))
    s.gives(s.put("Conv", _without_zero_point(s, 0, 2), weight, **s.attrs()))


def matmul_integer_to_float(s: Step) -> None:
    """MatMulIntegerToFloat."""
    a, b = (
        s.put("Mul", _without_zero_point(s, 0, 4), s.cast(s.node.input[2])),
        s.put("Mul", _without_zero_point(s, 1, 5), s.cast(s.node.input[3])),
    )
    _with_bias(s, s.put("MatMul", a, b), 6)


def dynamic_matmul(s: Step) -> None:
    """DynamicQuantizeMatMul: what is rounded inside comes back."""
    _with_bias(s, s.put("MatMul", s.node.input[0], s.dequantized(1, 2, 3)), 4)


def matmul_nbits(s: Step) -> None:
    """MatMulNBits at its default accuracy: it multiplies floats, and does not round what it is given."""
    kept = [a for a in s.node.attribute if a.name != "accuracy_level"]
    node = helper.make_node("MatMulNBits", s.node.input, s.node.output, name=s.node.name, domain=s.node.domain)
    node.attribute.extend(kept)
    s.made.append(node)


def _with_bias(s: Step, y: str, bias: int) -> None:
    s.gives(s.put("Add", y, s.node.input[bias]) if s.has(bias) else y, whole=False)


def binary(op_type: str) -> Callable[[Step], None]:
    """QLinearAdd and others of com.microsoft with two operands: `op_type` of both."""
    return lambda s: s.gives_quantized(s.put(op_type, s.dequantized(0, 1, 2), s.dequantized(3, 4, 5)), 6, 7)


def single(op_type: str) -> Callable[[Step], None]:
    """QLinearSigmoid and others with one operand: `op_type` of it."""

    def form(s: Step) -> None:
        last = bool(s.attr("channels_last", 0))
        s.gives_quantized(s.image(op_type, s.dequantized(0, 1, 2), last=last, **s.attrs("channels_last")), 3, 4)

    return form


def mean(s: Step) -> None:
    """QLinearReduceMean; from opset 18 on the axes of a mean are an input."""
    x, axes = s.dequantized(0, 1, 2), list(s.attr("axes", ()))
    if opset(s.model) < 18 or not axes:
        return s.gives_quantized(s.put("ReduceMean", x, **s.attrs()), 3, 4)
    s.gives_quantized(s.put("ReduceMean", x, s.const(np.array(axes, np.int64)), **s.attrs("axes")), 3, 4)


def softmax(s: Step) -> None:
    """QLinearSoftmax, along one axis; as it was up to opset 12, over all axes from that one on."""
    x, axis = s.dequantized(0, 1, 2), s.attr("axis", -1)
    rank = s.rank(s.node.input[0]) or s.rank(s.node.output[0])
    if rank is None:
        raise CannotUnround("the number of its axes is not known")
    if s.attr("opset", 13) < 13:
        flat = s.put("Softmax", s.put("Flatten", x, axis=axis % rank), axis=1)
        return s.gives_quantized(s.put("Reshape", flat, s.put("Shape", x)), 3, 4)
    if opset(s.model) < 13 and axis % rank != rank - 1:
        raise CannotUnround("the model's own Softmax takes all axes from one on")
    s.gives_quantized(s.put("Softmax", x, axis=axis), 3, 4)


def max_pool(s: Step) -> None:
    """NhwcMaxPool, which takes integers only."""
    if s.node.input[0] in s.graph.floats:
        s.gives(s.image("MaxPool", s.node.input[0], last=True, **s.attrs()))
    else:
        s.made.append(s.node)


def attention(s: Step) -> None:
    """QAttention: what it is given and its weight are integers, all else are floats."""
    inputs = [s.dequantized(0, 3, 6), s.dequantized(1, 4, 7), s.node.input[2]]
    inputs += [s.node.input[i] if s.has(i) else "" for i in (5, 8)]
    s.made.append(helper.make_node("Attention", inputs, s.node.output, s.node.name, None, s.node.domain, **s.attrs()))


def concat(s: Step) -> None:
    """QLinearConcat: after scale and zero point of the output, a triple for each part."""
    parts = [s.dequantized(i, i + 1, i + 2) for i in range(2, len(s.node.input), 3)]
    s.gives_quantized(s.put("Concat", *parts, axis=s.attr("axis", 0)), 0, 1)


def where(s: Step) -> None:
    """QLinearWhere."""
    s.gives_quantized(s.put("Where", s.node.input[0], s.dequantized(1, 2, 3), s.dequantized(4, 5, 6)), 7, 8)


REAL_FORMS: dict[str, Callable[[Step], None]] = {
    "QuantizeLinear": quantize, "DequantizeLinear": dequantize, "DynamicQuantizeLinear": dynamic_quantize,
    "QLinearConv": conv, "QLinearMatMul": matmul, "QGemm": gemm, "MatMulInteger": matmul_integer,
    "ConvInteger": conv_integer, "MatMulIntegerToFloat": matmul_integer_to_float,
    "DynamicQuantizeMatMul": dynamic_matmul, "MatMulNBits": matmul_nbits,
    "QLinearAdd": binary("Add"), "QLinearMul": binary("Mul"),
    "QLinearConcat": concat, "QLinearWhere": where, "QLinearAveragePool": single("AveragePool"),
    "QLinearGlobalAveragePool": single("GlobalAveragePool"), "QLinearReduceMean": mean,
    "QLinearLeakyRelu": single("LeakyRelu"), "QLinearSigmoid": single("Sigmoid"), "QLinearSoftmax": softmax,
    "NhwcMaxPool": max_pool, "QAttention": attention,
}  # fmt: skip
"""By operator; one without a form is as it was, its inputs floats."""
