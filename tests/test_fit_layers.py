"""Every layer as rows @ matrix + bias, against ONNX Runtime; its weight there and back; what follows it, end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import array, filled, graph, replace, run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.fit import Fitted, Layer, Tail, layers, tail
from onnxprune.fit.expressions import parameter
from onnxprune.model import Model, Topology

Array = NDArray[Any]
X1, X2, X3 = "float[2,6,11] x", "float[2,6,9,8] x", "float[2,4,6,5,4] x"
ROWS, BATCHED = "float[5,6] x", "float[2,3,5,6] x"


class Linear:
    """A model `x` -> `y` whose first layer is looked at, with the values of all its tensors."""

    def __init__(self, model: ModelProto, feed: Array | None = None) -> None:
        self.model = Model.load(model).normalised()
        made = [o for n in self.model.skeleton.graph.node for o in n.output]
        proto = ModelProto()
        proto.CopyFrom(model)
        del proto.graph.output[:]
        kind = model.graph.input[0].type.tensor_type.elem_type
        proto.graph.output.extend(helper.make_tensor_value_info(o, kind, None) for o in made)
        inputs = [i for i in model.graph.input if i.name not in self.model.weights]
        shape = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
        random = np.random.default_rng(7)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        self.values = {"x": random.standard_normal(shape).astype(dtype) if feed is None else feed}
        for other in inputs[1:]:
            dims = [d.dim_value for d in other.type.tensor_type.shape.dim]
            self.values[other.name] = random.standard_normal(dims).astype(dtype)
        self.values |= dict(zip(made, run(proto, self.values), strict=True))
        self.layer = layers(self.model, self.rank)[0]
        self.graph = Topology(self.model)
        self.fitted = Fitted(self.graph, lambda name: kind, {})
        self.weight = self.layer.weight.read(self.model)
        self.matrix = self.layer.matrix(self.weight)
        self.outputs = self.matrix.shape[0] * self.matrix.shape[2]

    def rank(self, name: str) -> int | None:
        known = self.model.weights[name].array() if name in self.model.weights else self.values.get(name)
        return None if known is None else np.ndim(known)

    @property
    def tail(self) -> Tail:
        return tail(self.layer, self.graph, self.outputs, self.rank(self.layer.out))

    def along(self, name: str) -> Array:
        """A tensor's values with the layer's output channels last."""
        return np.moveaxis(self.values[name].astype(np.float64), self.layer.y_axis, -1)

    def rerun(self) -> Linear:
        return Linear(self.model.to_proto(), self.values["x"])


def predicted(made: Linear, at: NDArray[np.int64]) -> tuple[Array, Array]:
    """(rows @ matrix + bias, what ONNX Runtime has) at output positions, both [groups, rows, outputs]."""
    layer = made.layer
    bias = made.fitted.bias(layer, made.outputs)
    assert bias is not None
    rows = layer.rows(made.values[layer.data], at).astype(np.float64)
    assert rows.shape[::2] == made.matrix.shape[:2]
    ours = rows @ made.matrix + bias.reshape(len(rows), 1, -1)
    return ours, layer.targets(made.values[layer.out], at)


def check(made: Linear) -> None:
    there = made.layer.places(made.values[made.layer.data])
    expected = np.prod(made.values[made.layer.out].shape) // made.outputs
    assert there * (2 if made.layer.window else 1) == expected  # a window counts the positions of one of two samples
    for at in (np.arange(there), np.array([there - 1]), np.arange(there)[:: max(there // 5, 1)]):
        ours, theirs = predicted(made, at)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(made.layer.restore(made.matrix, made.weight.shape), made.weight, rtol=1e-12)


LAYERS: list[tuple[str, str, str, dict[str, tuple[int, ...]]]] = [
    ("1-D", X1, "y = Conv(x, w, b)", {"w": (4, 6, 3), "b": (4,)}),
    ("1-D strided", X1, "y = Conv<strides=[2], pads=[2,1], dilations=[3]>(x, w, b)", {"w": (4, 6, 3), "b": (4,)}),
    ("2-D", X2, "y = Conv<pads=[1,0,2,1]>(x, w)", {"w": (4, 6, 3, 2)}),
    ("2-D strided", X2, "y = Conv<strides=[2,3], pads=[0,2,1,1]>(x, w, b)", {"w": (5, 6, 3, 4), "b": (5,)}),
    ("2-D dilated", X2, "y = Conv<dilations=[2,3], pads=[2,3,2,3]>(x, w, b)", {"w": (5, 6, 3, 2), "b": (5,)}),
    ("1x1 strided", X2, "y = Conv<strides=[2,2]>(x, w, b)", {"w": (5, 6, 1, 1), "b": (5,)}),
    ("grouped", X2, "y = Conv<group=3, pads=[1,1,1,1]>(x, w, b)", {"w": (9, 2, 3, 3), "b": (9,)}),
    ("grouped strided", X2, "y = Conv<group=2, strides=[2,2]>(x, w)", {"w": (4, 3, 3, 2)}),
    ("depthwise", X2, "y = Conv<group=6, strides=[1,2]>(x, w, b)", {"w": (6, 1, 3, 3), "b": (6,)}),
    ("depthwise x2", X2, "y = Conv<group=6, pads=[1,1,1,1]>(x, w, b)", {"w": (12, 1, 3, 3), "b": (12,)}),
    ("3-D", X3, "y = Conv<strides=[2,1,2], pads=[1,0,1,0,1,1], dilations=[1,2,1]>(x, w, b)", {"w": (3, 4, 3, 2, 2), "b": (3,)}),
    ("3-D grouped", X3, "y = Conv<group=2>(x, w)", {"w": (4, 2, 2, 3, 2)}),
    *((f"{auto} {s}", X2, f'y = Conv<auto_pad="{auto}", strides=[{s},{s}]>(x, w, b)', {"w": (4, 6, 4, 3), "b": (4,)})
      for auto in ("SAME_UPPER", "SAME_LOWER", "VALID") for s in (1, 2, 3)),
    ("transposed", X2, "y = ConvTranspose(x, w, b)", {"w": (6, 4, 3, 2), "b": (4,)}),
    ("transposed strided", X2, "y = ConvTranspose<strides=[2,3], pads=[1,0,2,1], output_padding=[1,2]>(x, w, b)", {"w": (6, 4, 3, 4), "b": (4,)}),
    ("transposed wide pads", X2, "y = ConvTranspose<strides=[2,2], pads=[2,1,3,2]>(x, w)", {"w": (6, 4, 2, 2)}),
    ("transposed grouped", X2, "y = ConvTranspose<group=3, strides=[2,1]>(x, w, b)", {"w": (6, 4, 3, 2), "b": (12,)}),
    ("transposed depthwise", X2, "y = ConvTranspose<group=6, strides=[2,2], pads=[1,1,1,1]>(x, w)", {"w": (6, 1, 4, 4)}),
    ("transposed dilated", X2, "y = ConvTranspose<dilations=[2,3], strides=[2,1], pads=[1,1,0,2]>(x, w, b)", {"w": (6, 3, 3, 2), "b": (3,)}),
    ("transposed 1-D", X1, "y = ConvTranspose<strides=[3], output_padding=[2]>(x, w, b)", {"w": (6, 5, 4), "b": (5,)}),
    ("transposed 3-D", X3, "y = ConvTranspose<strides=[1,2,1], group=2>(x, w)", {"w": (4, 3, 2, 2, 3)}),
    ("Gemm", ROWS, "y = Gemm(x, w, b)", {"w": (6, 4), "b": (4,)}),
    ("Gemm no bias", ROWS, "y = Gemm<transB=1, alpha=0.5>(x, w)", {"w": (4, 6)}),
    ("Gemm scaled", ROWS, "y = Gemm<alpha=1.7, beta=-0.3>(x, w, b)", {"w": (6, 4), "b": (1, 4)}),
    ("Gemm turned", ROWS, "y = Gemm<transB=1, alpha=-2.0, beta=3.0>(x, w, b)", {"w": (4, 6), "b": (4,)}),
    ("Gemm scalar bias", ROWS, "y = Gemm<beta=0.5>(x, w, b)", {"w": (6, 4), "b": (1,)}),
    ("Gemm transA", "float[6,5] x", "y = Gemm<transA=1, alpha=0.7>(x, w, b)", {"w": (6, 4), "b": (4,)}),
    ("Gemm transA transB", "float[6,5] x", "y = Gemm<transA=1, transB=1, beta=2.0>(x, w, b)", {"w": (4, 6), "b": (4,)}),
    ("MatMul", ROWS, "y = MatMul(x, w)", {"w": (6, 4)}),
    ("MatMul batched", BATCHED, "y = MatMul(x, w)", {"w": (6, 4)}),
    ("MatMul left", "float[6,5] x", "y = MatMul(w, x)", {"w": (4, 6)}),
    ("MatMul left batched", "float[2,3,6,5] x", "y = MatMul(w, x)", {"w": (4, 6)}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "body", "weights"), [r[1:] for r in LAYERS], ids=[r[0] for r in LAYERS])
def test_a_layer_is_rows_by_a_matrix(given: str, body: str, weights: dict[str, tuple[int, ...]]) -> None:
    check(Linear(graph(f"({given}) => (float[] y)", body, **weights)))


@st.composite
def convolutions(draw: Any) -> ModelProto:
    rank = draw(st.integers(1, 3))
    pick = lambda low, high: [draw(st.integers(low, high)) for _ in range(rank)]  # noqa: E731
    groups, inner, outer = draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    kernel, strides, dilations = pick(1, 3), pick(1, 3), pick(1, 2)
    transposed = draw(st.booleans())
    sides = (groups * inner, outer) if transposed else (groups * outer, inner)
    attributes: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations}
    if transposed or draw(st.booleans()):
        attributes["pads"] = pick(0, 2) + pick(0, 2)
    if transposed:
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    node = helper.make_node("ConvTranspose" if transposed else "Conv", ["x", "w", "b"], ["y"], **attributes)
    shape = [2, groups * inner, *pick(5, 7)]
    random = np.random.default_rng(draw(st.integers(0, 99)))
    held = {"w": filled(random, "w", (*sides, *kernel)), "b": filled(random, "b", (groups * outer,))}
    return helper.make_model(
        helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(a, n) for n, a in held.items()],
        ), opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip


@given(convolutions())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_convolution_is_rows_by_a_matrix(model: ModelProto) -> None:
    check(Linear(model))


UNKNOWN = [
    ("output_shape", X2, "y = ConvTranspose<output_shape=[10,10]>(x, w)", {"w": (6, 4, 3, 3)}),
    ("auto_pad transposed", X2, 'y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', {"w": (6, 4, 3, 3)}),
    ("vector", "float[6] x", "y = MatMul(x, w)", {"w": (6, 4)}),
    ("no weight", ROWS, "t = Transpose(x) y = MatMul(x, t)", {}),
    ("alpha of nothing", ROWS, "y = Gemm<alpha=0.0>(x, w, b)", {"w": (6, 4), "b": (4,)}),
]


@pytest.mark.parametrize(("given", "body", "weights"), [r[1:] for r in UNKNOWN], ids=[r[0] for r in UNKNOWN])
def test_what_is_not_understood_is_no_layer(given: str, body: str, weights: dict[str, tuple[int, ...]]) -> None:
    model = Model.load(graph(f"({given}) => (float[] y)", body, **weights))
    assert layers(model, lambda name: given.count(",") + 1) == []


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_grouped_weight_goes_back_after_channels_are_gone(op: str) -> None:
    """Columns of a channel leave the matrix: the smaller weight is the larger one without that channel."""
    made = Linear(graph(f"({X2}) => (float[] y)", f"y = {op}<group=3>(x, w)", w=(6, 2, 3, 2)))
    taps, each = made.layer.taps(), made.matrix.shape[1] // made.layer.taps()
    assert (taps, each) == (6, 2)
    kept = np.arange(each * taps).reshape(each, taps)[[1]].ravel()
    smaller = made.matrix[:, kept]
    if op == "Conv":
        back = made.layer.restore(smaller, (6, 1, 3, 2))
        np.testing.assert_array_equal(back, made.weight[:, [1]])
    else:
        back = made.layer.restore(smaller, (3, 2, 3, 2))
        np.testing.assert_array_equal(back, made.weight[[1, 3, 5]])
    fewer = made.matrix[..., :1]
    if op == "Conv":
        np.testing.assert_array_equal(made.layer.restore(fewer, (3, 2, 3, 2)), made.weight[[0, 2, 4]])
    else:
        np.testing.assert_array_equal(made.layer.restore(fewer, (6, 1, 3, 2)), made.weight[:, :1])


SPLIT = "float[4,6] x"
BIASES = [
    ("one each row", SPLIT, "y = Gemm(x, w, b)", {"w": (6, 4), "b": (4, 1)}),
    ("a whole matrix", SPLIT, "y = Gemm(x, w, b)", {"w": (6, 4), "b": (4, 4)}),
]


@pytest.mark.parametrize(("given", "body", "weights"), [r[1:] for r in BIASES], ids=[r[0] for r in BIASES])
def test_a_bias_that_varies_along_the_batch_is_none(given: str, body: str, weights: dict[str, tuple[int, ...]]) -> None:
    made = Linear(graph(f"({given}) => (float[] y)", body, **weights))
    assert made.fitted.bias(made.layer, made.outputs) is None


# -- tails --------------------------------------------------------------------------------------------------------------

BN = "BatchNormalization<epsilon=0.01>"
CONV = "a = Conv(x, w, b)"
PLAIN = {"w": (4, 6, 3, 2), "b": (4,)}
NORM = {"gain": (4,), "beta": (4,), "mean": (4,), "var": (4,)}
TAILS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("nothing", X2, "y = Conv(x, w, b)", PLAIN),
    ("no bias", X2, "y = Conv(x, w)", {"w": (4, 6, 3, 2)}),
    ("Add", X2, f"{CONV} y = Add(a, c)", PLAIN | {"c": (4, 1, 1)}),
    ("Add first operand", X2, f"{CONV} y = Add(c, a)", PLAIN | {"c": (1, 4, 1, 1)}),
    ("Add without a bias", X2, "a = Conv(x, w) y = Add(c, a)", {"w": (4, 6, 3, 2), "c": (1, 4, 1, 1)}),
    ("Add one number", X2, f"{CONV} y = Add(a, c)", PLAIN | {"c": (1,)}),
    ("Sub", X2, f"{CONV} y = Sub(a, c)", PLAIN | {"c": (4, 1, 1)}),
    ("Sub from", X2, f"{CONV} y = Sub(c, a)", PLAIN | {"c": (4, 1, 1)}),
    ("Sub one number from", X2, f"{CONV} y = Sub(c, a)", PLAIN | {"c": (1,)}),
    ("Mul", X2, f"{CONV} y = Mul(a, c)", PLAIN | {"c": (4, 1, 1)}),
    ("Mul first operand", X2, f"{CONV} y = Mul(c, a)", PLAIN | {"c": (1, 4, 1, 1)}),
    ("Div", X2, f"{CONV} y = Div(a, gain)", PLAIN | {"gain": (4, 1, 1)}),
    ("BatchNorm", X2, f"{CONV} y = {BN}(a, gain, beta, mean, var)", PLAIN | NORM),
    ("BatchNorm without a bias", X2, f"a = Conv(x, w) y = {BN}(a, gain, beta, mean, var)", {"w": (4, 6, 3, 2)} | NORM),
    ("Mul and Sub from", X2, f"{CONV} m = Mul(a, c) y = Sub(d, m)", PLAIN | {"c": (4, 1, 1), "d": (4, 1, 1)}),
    ("Sub from, Div, Mul", X2, f"{CONV} s = Sub(d, a) t = Div(s, gain) y = Mul(c, t)", PLAIN | {"c": (4, 1, 1), "d": (4, 1, 1), "gain": (1,)}),
    ("BatchNorm, Mul, Identity", X2, f"{CONV} n = {BN}(a, gain, beta, mean, var) m = Mul(n, c) y = Identity(m)", PLAIN | NORM | {"c": (4, 1, 1)}),
    ("Gemm, beta and Mul", ROWS, "a = Gemm<beta=-0.5>(x, w, b) y = Mul(a, c)", {"w": (6, 4), "b": (4,), "c": (4,)}),
    ("Gemm made bias", ROWS, "a = Gemm<beta=-0.5>(x, w) y = Mul(c, a)", {"w": (6, 4), "c": (1, 4)}),
    ("Gemm one number for a bias", ROWS, "a = Gemm<beta=2.0>(x, w, b) y = Sub(c, a)", {"w": (6, 4), "b": (1,), "c": (1,)}),
    ("MatMul, Add", BATCHED, "a = MatMul(x, w) y = Add(c, a)", {"w": (6, 4), "c": (4,)}),
    ("MatMul, Add, Mul", BATCHED, "a = MatMul(x, w) s = Add(c, a) y = Mul(s, d)", {"w": (6, 4), "c": (4,), "d": (1, 1, 1, 4)}),
    ("MatMul left, Add", "float[2,3,6,5] x", "a = MatMul(w, x) y = Add(a, c)", {"w": (4, 6), "c": (4, 1)}),
    ("Gemm, BatchNorm", ROWS, f"a = Gemm(x, w) y = {BN}(a, gain, beta, mean, var)", {"w": (6, 4)} | NORM),
    ("transposed, BatchNorm", X2, f"a = ConvTranspose<group=2>(x, w, b) y = {BN}(a, gain, beta, mean, var)", {"w": (6, 2, 3, 2), "b": (4,)} | NORM),
]  # fmt: skip


def ends(made: Linear) -> tuple[Array, Array]:
    its = made.tail
    return its.scale * made.along(made.layer.out) + its.offset, made.along(its.end)


@pytest.mark.parametrize(("given", "body", "weights"), [r[1:] for r in TAILS], ids=[r[0] for r in TAILS])
def test_the_end_is_scale_times_output_plus_offset(given: str, body: str, weights: dict[str, Any]) -> None:
    made = Linear(graph(f"({given}) => (float[] y)", body, **weights))
    assert made.tail.end == "y"
    np.testing.assert_allclose(*ends(made), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("given", "body", "weights"), [r[1:] for r in TAILS], ids=[r[0] for r in TAILS])
def test_a_shift_moves_the_end_by_scale_times_it(given: str, body: str, weights: dict[str, Any]) -> None:
    made = Linear(graph(f"({given}) => (float[] y)", body, **weights))
    moved, before = np.array([0.5, -1.0, 0.0, 2.0]), made.along("y")
    assert made.fitted.movable(made.tail.shift)
    made.fitted.move([made.tail], moved)
    after = made.rerun()
    np.testing.assert_allclose(after.along("y"), before + made.tail.scale * moved, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(*ends(after), rtol=1e-4, atol=2e-5)


def test_a_matrix_product_without_an_addition_cannot_be_shifted() -> None:
    made = Linear(graph(f"({BATCHED}) => (float[] y)", "a = MatMul(x, w) y = Mul(a, c)", w=(6, 4), c=(4,)))
    assert made.tail.shift is None
    assert not made.fitted.movable(made.tail.shift)


STOPS = [
    ("along another axis", f"{CONV} y = Add(a, c)", {"c": (7, 1)}),
    ("along two axes", f"{CONV} y = Mul(a, c)", {"c": (4, 7, 1)}),
    ("a divisor of zero", f"{CONV} y = Div(a, c)", {"c": np.array([1, 0, 2, 3], np.float32).reshape(4, 1, 1)}),
    ("the divisor", f"{CONV} y = Div(c, a)", {"c": (4, 1, 1)}),
    ("itself", f"{CONV} y = Add(a, a)", {}),
    ("two readers", f"{CONV} u = Add(a, c) v = Mul(a, c) y = Concat<axis=1>(u, v)", {"c": (4, 1, 1)}),
    ("statistics of an input", f"{CONV} m = Relu(beta) y = {BN}(a, gain, beta, m, var)", NORM),
]


@pytest.mark.parametrize(("body", "weights"), [r[1:] for r in STOPS], ids=[r[0] for r in STOPS])
def test_a_tail_ends_where_it_is_no_longer_channel_by_channel(body: str, weights: dict[str, Any]) -> None:
    made = Linear(graph(f"({X2}) => (float[] y)", body, **(PLAIN | weights)))
    assert made.tail.end == made.layer.out
    assert made.tail.total == ""


CLIPS = [
    ("Relu", f"{CONV} y = Relu(a)", {}, (0, np.inf), ""),
    ("Relu after a tail", f"{CONV} m = Mul(a, c) y = Relu(m)", {"c": (4, 1, 1)}, (0, np.inf), ""),
    ("Clip", f"{CONV} y = Clip(a, lo, hi)", {"lo": np.float32(-0.5), "hi": np.float32(0.75)}, (-0.5, 0.75), ""),
    ("Clip above", f"{CONV} y = Clip(a, , hi)", {"hi": np.float32(6)}, (-np.inf, 6), ""),
    ("Clip by what is not known", f"{CONV} m = ReduceMin<keepdims=0>(x) y = Clip(a, m)", {}, (-np.inf, np.inf), ""),
    ("residual", f"{CONV} o = MaxPool<kernel_shape=[3,2]>(x) p = Conv(o, w2) s = Add(a, p) y = Relu(s)", {"w2": (4, 6, 1, 1)}, (0, np.inf), "s"),
    ("residual first operand", f"{CONV} o = MaxPool<kernel_shape=[3,2]>(x) p = Conv(o, w2) y = Add(p, a)", {"w2": (4, 6, 1, 1)}, (-np.inf, np.inf), "y"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "clip", "total"), [r[1:] for r in CLIPS], ids=[r[0] for r in CLIPS])
def test_sums_and_clips_behind_a_tail(
    body: str, weights: dict[str, Any], clip: tuple[float, float], total: str
) -> None:
    made = Linear(graph(f"({X2}) => (float[] y)", body, **(PLAIN | weights)))
    its = made.tail
    assert (its.low, its.high, its.total) == (*clip, total)
    if total:
        np.testing.assert_allclose(
            made.values[total], made.values[its.end] + made.values[its.other], rtol=1e-5, atol=1e-6
        )


def test_an_output_of_the_graph_is_the_end() -> None:
    made = Linear(graph(f"({X2}) => (float[] a, float[] y)", f"{CONV} m = Mul(a, c) y = Relu(m)", c=(4, 1, 1), **PLAIN))
    assert (made.tail.end, made.tail.low) == ("a", -np.inf)


def test_a_shared_bias_is_copied_on_write() -> None:
    body = "a = Conv(x, w, b) r = Relu(x) z = Conv(r, w2, b) y = Mul(a, z)"
    made = Linear(graph(f"({X2}) => (float[] y)", body, w2=(4, 6, 3, 2), **PLAIN))
    before, moved = dict(made.values), np.array([1.0, 0, -2, 3])
    old = made.model.weights["b"].array().copy()
    made.fitted.move([made.tail], moved)
    np.testing.assert_array_equal(made.model.weights["b"].array(), old)
    fresh = made.layer.node.input[2]
    assert made.fitted.aliases == {fresh: "b"}
    after = made.rerun()
    np.testing.assert_allclose(after.values["a"], before["a"] + moved.reshape(4, 1, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after.values["z"], before["z"])


def test_two_uses_that_move_alike_keep_sharing_their_bias() -> None:
    body = "a = MatMul(x, w) r = Relu(x) z = MatMul(r, w) s = Add(a, b) t = Add(b, z) y = Mul(s, t)"
    made = Linear(graph(f"({BATCHED}) => (float[] y)", body, w=(6, 4), b=(4,)))
    members = layers(made.model, made.rank)
    tails = [tail(m, made.graph, 4, 4) for m in members]
    moved = np.array([1.0, 0, -2, 3])
    made.fitted.move(tails, moved)
    after = made.rerun()
    for name in ("s", "t"):
        np.testing.assert_allclose(after.values[name], made.values[name] + moved, rtol=1e-5, atol=1e-5)
    assert set(after.model.weights) == {"w", "b"}


def test_two_uses_that_move_apart_get_a_bias_each() -> None:
    body = "a = MatMul(x, w) r = Relu(x) z = MatMul(r, w) s = Add(a, b) t = Sub(z, b) y = Mul(s, t)"
    made = Linear(graph(f"({BATCHED}) => (float[] y)", body, w=(6, 4), b=(4,)))
    tails = [tail(m, made.graph, 4, 4) for m in layers(made.model, made.rank)]
    moved = np.array([1.0, 0, -2, 3])
    made.fitted.move(tails, moved)
    after = made.rerun()
    for name in ("s", "t"):
        np.testing.assert_allclose(after.values[name], made.values[name] + moved, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", ["mean", "gain"])
def test_a_normalisation_that_reads_its_offset_twice(shared: str) -> None:
    """Exporters share equal vectors: the offset may be the mean, too, and only one of them is to move."""
    names = {"gain": "gain", "mean": "mean"} | {shared: "beta"}
    body = f"{CONV} y = {BN}(a, {names['gain']}, beta, {names['mean']}, var)"
    made = Linear(graph(f"({X2}) => (float[] y)", body, **(PLAIN | NORM)))
    moved, before = np.array([0.5, -1.0, 0.0, 2.0]), made.along("y")
    scale = made.tail.scale
    made.fitted.move([made.tail], moved)
    np.testing.assert_allclose(made.rerun().along("y"), before + scale * moved, rtol=1e-4, atol=2e-5)


# -- expressions --------------------------------------------------------------------------------------------------------

STEPS = np.array([0.02, 0.05, 0.01, 0.04], np.float32)
INT8 = np.random.default_rng(3).integers(-100, 100, (4, 6)).astype(np.int8)
INT4 = numpy_helper.to_array(helper.make_tensor("w", TensorProto.INT4, (4, 6), list(range(-8, 8)) + list(range(-4, 4))))
HALF = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float16)
EXPRESSIONS: list[tuple[str, str, dict[str, Any], float]] = [
    ("itself", "e = Identity(w)", {"w": HALF.astype(np.float32)}, 1e-6),
    ("double", "e = Cast<to=1>(w)", {"w": HALF.astype(np.float64)}, 1e-12),
    ("half", "e = Cast<to=1>(w)", {"w": HALF}, 2e-3),
    ("turned half", "h = Cast<to=1>(w) e = Transpose<perm=[1,0]>(h)", {"w": HALF.T.copy()}, 2e-3),
    ("turned", "e = Transpose(w)", {"w": HALF.T.astype(np.float32)}, 1e-6),
    ("steps", "e = DequantizeLinear(w, scale)", {"w": INT8, "scale": np.float32(0.03)}, 0.015),
    ("steps from a zero", "e = DequantizeLinear(w, scale, z)", {"w": INT8.view(np.uint8), "scale": np.float32(0.03), "z": np.uint8(117)}, 0.015),
    ("steps a row", "e = DequantizeLinear<axis=0>(w, scale, z)", {"w": INT8, "scale": STEPS, "z": np.array([3, -1, 0, 7], np.int8)}, 0.025),
    ("steps a column, turned", "q = DequantizeLinear<axis=-1>(w, scale) e = Transpose(q)", {"w": INT8.T.copy(), "scale": STEPS}, 0.025),
    ("steps of four bits", "e = DequantizeLinear<axis=0>(w, scale)", {"w": INT4, "scale": STEPS * 10}, 0.25),
    ("steps of half precision", "q = DequantizeLinear(w, scale) e = Cast<to=1>(q)", {"w": INT8, "scale": np.float16(0.03)}, 0.016),
]  # fmt: skip


def expression(body: str, weights: dict[str, Any]) -> ModelProto:
    return graph("(float[5,4] x) => (float[] y)", f"{body} y = MatMul(x, e)", opset=21, **weights)


@pytest.mark.parametrize(("body", "weights", "step"), [r[1:] for r in EXPRESSIONS], ids=[r[0] for r in EXPRESSIONS])
def test_a_parameter_behind_an_expression(body: str, weights: dict[str, Any], step: float) -> None:
    proto = expression(body, weights)
    model = Model.load(proto)
    made_by = {o: n for n in proto.graph.node for o in n.output}
    own = parameter("e", model, made_by)
    assert own is not None
    eye = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    value = own.read(model)
    np.testing.assert_allclose(value, run(proto, {"x": eye})[0][:4], rtol=1e-3, atol=1e-6)
    own.write(model, value)
    assert (model.weights[own.root].array() == array(proto, own.root)).all()  # nothing changes, and so for good
    other = value.mean() + (value - value.mean())[:, ::-1] * 0.7
    own.write(model, other)
    stored = run(model.to_proto(), {"x": eye})[0][:4]
    np.testing.assert_allclose(stored, own.read(model), rtol=1e-3, atol=1e-6)
    assert np.abs(stored - other).max() <= step * (1 + 1e-3) + 1e-6
    once = model.weights[own.root].array().copy()
    own.write(model, own.read(model))
    assert (model.weights[own.root].array() == once).all()


@pytest.mark.parametrize(("body", "weights", "ends"), [
    ("e = DequantizeLinear(w, scale)", {"w": INT8, "scale": np.float32(0.03)}, (-3.84, 3.81)),
    ("e = DequantizeLinear<axis=0>(w, scale)", {"w": INT4, "scale": np.full(4, 0.1, np.float32)}, (-0.8, 0.7)),
    ("e = Cast<to=1>(w)", {"w": HALF}, (-65504, 65504)),
], ids=["int8", "int4", "half"])  # fmt: skip
def test_what_a_type_cannot_hold_is_clipped(body: str, weights: dict[str, Any], ends: tuple[float, float]) -> None:
    proto = expression(body, weights)
    model = Model.load(proto)
    own = parameter("e", model, {o: n for n in proto.graph.node for o in n.output})
    assert own is not None
    own.write(model, np.where(np.arange(24).reshape(4, 6) % 2, 1e6, -1e6))
    value = own.read(model)
    assert set(np.round(value.ravel(), 4)) == set(ends)


def test_steps_in_blocks_are_no_parameter_or_read_right() -> None:
    scale = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]], np.float32)
    proto = expression("e = DequantizeLinear<axis=1, block_size=3>(w, scale)", {"w": INT8, "scale": scale})
    model = Model.load(proto)
    own = parameter("e", model, {o: n for n in proto.graph.node for o in n.output})
    if own is not None:
        eye = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
        np.testing.assert_allclose(own.read(model), run(proto, {"x": eye})[0][:4], rtol=1e-5)


def test_what_depends_on_an_input_is_no_parameter() -> None:
    proto = graph("(float[5,4] x, float s) => (float[] y)", "e = DequantizeLinear(w, s) y = MatMul(x, e)", w=INT8)
    model = Model.load(proto)
    assert parameter("e", model, {o: n for n in proto.graph.node for o in n.output}) is None


def test_a_kernel_whose_axes_stand_in_another_order() -> None:
    """As converters from channels-last frameworks keep it."""
    body = "h = Cast<to=1>(w) e = Transpose<perm=[3,2,0,1]>(h) y = Conv(x, e)"
    made = Linear(
        graph(
            f"({X2}) => (float[] y)", body, w=np.random.default_rng(0).standard_normal((3, 2, 6, 4)).astype(np.float16)
        )
    )
    check(made)
    layer, other = made.layer, made.weight[::-1].copy()
    layer.weight.write(made.model, layer.restore(layer.matrix(other), other.shape))
    np.testing.assert_array_equal(layer.weight.read(made.model), other)
    np.testing.assert_allclose(made.rerun().values["y"], made.values["y"][:, ::-1], atol=1e-5)


def test_a_refitted_weight_reaches_the_output_through_its_expression() -> None:
    """A layer's matrix, changed and restored, is what ONNX Runtime then computes with, whatever stands between."""
    body = "q = DequantizeLinear<axis=1>(w, scale) h = Transpose(q) y = MatMul(x, h)"
    made = Linear(graph("(float[5,4] x) => (float[] y)", body, w=INT8.T.copy(), scale=STEPS))
    layer: Layer = made.layer
    wanted = made.matrix * 0.5 + 0.1
    layer.weight.write(made.model, layer.restore(wanted, made.weight.shape))
    got = made.rerun()
    ours = made.values["x"] @ wanted[0]
    assert np.abs(got.values["y"] - ours).max() <= np.abs(made.values["x"]).sum(1).max() * STEPS.max() / 2
    replace(proto := made.model.to_proto(), "w", INT8.T)
    np.testing.assert_array_equal(run(proto, {"x": made.values["x"]})[0], made.values["y"])
