"""Operators of quantised graphs in real numbers: what each computes when nothing is rounded, one function each.

Knows one node, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import Model, Weight, attribute, attributes, opset

FLOAT = TensorProto.FLOAT
LIMITS: Mapping[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127), TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767), TensorProto.UINT4: (0, 15), TensorProto.INT4: (-8, 7),
}  # fmt: skip
TINY = np.float32(1e-30)


class CannotUnround(Exception):
    """A node that rounds and cannot be written in real numbers, and why."""


class Graph(Protocol):
    """What is known of the tensors of the graph around a node. floats: what was an integer and is none now;
    types_before: of which type."""

    floats: set[str]
    types_before: dict[str, int]

    def known(self, name: str) -> int | None:
        """The element type of a tensor of the graph as it was."""

    def types(self, name: str) -> int | None:
        """The element type of a tensor as it is written."""

    def rank(self, name: str) -> int | None:
        """How many axes it has."""

    def kind(self, name: str, model: Model) -> int | None:
        """As `known`, of parameters of `model`, too."""


@dataclass
class Step:
    """One node, and the nodes that are to take its place."""

    graph: Graph
    model: Model
    node: NodeProto
    made: list[NodeProto] = field(default_factory=list)

    def has(self, i: int) -> bool:
        """Whether the node is given an input `i`."""
        return i < len(self.node.input) and bool(self.node.input[i])

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of an attribute of the node."""
        return attribute(self.node, name, default)

    def attrs(self, *but: str) -> dict[str, Any]:
        """All attributes of the node but these, by name."""
        return attributes(self.node, *but)

    def put(self, op_type: str, *inputs: str, **attrs: Any) -> str:
        """A node of these inputs; the name of what it makes."""
        out = self.model.fresh_name(f"{self.node.name}_{op_type.lower()}_real")
        self.made.append(helper.make_node(op_type, inputs, [out], name=self.model.fresh_name(f"{out}_node"), **attrs))
        return out

    def const(self, value: Any) -> str:
        """A new parameter; its name."""
        name = self.model.fresh_name(f"{self.node.name}_real")
        self.model.weights[name] = Weight.of(np.asarray(value))
        return name

    def cast(self, name: str) -> str:
        """A tensor as float32; the name of that."""
        out = self.model.fresh_name(f"{name}_float")
        self.made.append(helper.make_node("Cast", [name], [out], name=f"{out}_node", to=FLOAT))
        return out

    def rank(self, name: str) -> int | None:
        """How many axes a tensor has."""
        weight = self.model.weights.get(name)
        return len(weight.shape) if weight is not None else self.graph.rank(name)

    def aligned(self, vector: str, like: str, axis: int | None) -> str:
        """A scale or zero point in float, along `axis` of a tensor; None: as it is broadcast."""
        out, rank = self.cast(vector), self.rank(like)
        own = self.rank(vector)
        if axis is None or own == 0:
            return out
        if own is None or rank is None or own > 1:
            raise CannotUnround("its scale has as many axes as its input, or their number is not known")
        shape = [1] * rank
        shape[axis % rank] = -1
        return self.put("Reshape", out, self.const(np.array(shape, np.int64)))

    def dequantized(self, x: int | str, scale: int, zero: int, axis: int | None = None) -> str:
        """(x - zero point) * scale, of inputs by their number."""
        name = self.node.input[x] if isinstance(x, int) else x
        out = self.cast(name)
        if self.has(zero):
            out = self.put("Sub", out, self.aligned(self.node.input[zero], name, axis))
        return self.put("Mul", out, self.aligned(self.node.input[scale], name, axis))

    def gives_quantized(self, y: str, scale: int, zero: int, axis: int | None = None, kind: int | None = None) -> None:
        """y / scale + zero point, inside the limits of the type, is what the node gives."""
        source = self.node.input[zero] if self.has(zero) else ""
        kind = kind or self.graph.kind(source, self.model) or self.graph.kind(self.node.output[0], self.model)
        if kind not in LIMITS:
            raise CannotUnround("it rounds to a type that is no integer")
        y = self.put("Div", y, self.aligned(self.node.input[scale], self.node.input[0], axis))
        if source:
            y = self.put("Add", y, self.aligned(source, self.node.input[0], axis))
        assert kind is not None
        self.gives_clipped(y, kind)

    def gives_clipped(self, y: str, kind: int) -> None:
        """y inside the limits of an integer type is what the node gives."""
        low, high = (self.const(np.float32(x)) for x in LIMITS[kind])
        self.gives(self.put("Min", self.put("Max", y, low), high))

    def gives(self, name: str, out: int = 0, whole: bool = True) -> None:
        """What the node's output is from now on. whole: it was of an integer type."""
        target = self.node.output[out]
        kind = FLOAT if whole else self.graph.types(target) or FLOAT
        self.made.append(
            helper.make_node("Cast", [name], [target], name=self.model.fresh_name(f"{target}_cast"), to=kind)
        )
        if whole:
            self.graph.floats.add(target)
            self.graph.types_before[target] = self.graph.known(target) or TensorProto.UINT8


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
    s.gives_quantized(s.put("Conv", *inputs, **s.attrs()), 6, 7)


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
        if s.attr("channels_last", 0) or s.attr("opset", 13) < 13:
            raise CannotUnround("its channels are last, or its axes are those of an old version")
        s.gives_quantized(s.put(op_type, s.dequantized(0, 1, 2), **s.attrs("channels_last", "opset")), 3, 4)

    return form


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
    "QLinearGlobalAveragePool": single("GlobalAveragePool"), "QLinearReduceMean": single("ReduceMean"),
    "QLinearLeakyRelu": single("LeakyRelu"), "QLinearSigmoid": single("Sigmoid"), "QLinearSoftmax": single("Softmax"),
}  # fmt: skip
"""By operator; one without a form is as it was, its inputs floats."""
