"""Gradients by gates against finite differences of scaled weights and against autograd; criteria over them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from graphs import array, graph
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune import api
from onnxprune.errors import UsageError
from onnxprune.gradients import gate_gradients, in_sets
from onnxprune.gradients.losses import cross_entropy, log_softmax
from onnxprune.options import Options
from onnxprune.planning.criteria.gradient import lrp, taylor, taylor_so
from onnxprune.trace import Groups, build

Array = NDArray[Any]
Places = Sequence[tuple[str, tuple[Any, ...]]]
"""What scaling a unit means in the weights of its consumers: (weight, index), ..."""
needs_ad = pytest.mark.skipif(find_spec("onnx_ad") is None, reason="needs onnx-ad")
OPTIONS = Options()
LABELS = np.array([0, 2, 1])


def residual() -> ModelProto:
    body = """
        a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)   n = BatchNormalization(a, gain, beta, mean, variance)   r = Relu(n)
        c = Conv<pads = [1, 1, 1, 1]>(r, w2, b2)   s = Add(r, c)   t = Relu(s)   m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(t)
        d = Conv(m, w3, b3)   e = Relu(d)   p = GlobalAveragePool(e)   f = Flatten(p)   y = Gemm<transB = 1>(f, w4, b4)
    """
    return graph("(float[N, 3, 6, 6] x) => (float[N, 4] y)", body, w1=(6, 3, 3, 3), b1=(6,), gain=(6,), beta=(6,),
                 mean=(6,), variance=np.linspace(0.5, 2, 6, dtype=np.float32), w2=(6, 6, 3, 3), b2=(6,),
                 w3=(5, 6, 3, 3), b3=(5,), w4=(4, 5), b4=(4,))  # fmt: skip


def attention() -> ModelProto:
    heads = np.array([0, 0, 2, 3], np.int64)
    body = """
        l = LayerNormalization(x, gain, beta)
        q0 = MatMul(l, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, heads)  q = Transpose<perm = [0, 2, 1, 3]>(q2)
        k0 = MatMul(l, wk)  k1 = Add(k0, bk)  k2 = Reshape(k1, heads)  k = Transpose<perm = [0, 2, 3, 1]>(k2)
        v0 = MatMul(l, wv)  v1 = Add(v0, bv)  v2 = Reshape(v1, heads)  v = Transpose<perm = [0, 2, 1, 3]>(v2)
        s = MatMul(q, k)  p = Softmax(s)  o = MatMul(p, v)  u = Transpose<perm = [0, 2, 1, 3]>(o)  z = Reshape(u, flat)
        w = MatMul(z, wo)  a = Add(x, w)  h = ReduceMean<axes = [1], keepdims = 0>(a)  y0 = Gemm(h, wy, by)  y = Softmax(y0)
    """
    return graph("(float[N, 5, 6] x) => (float[N, 4] y)", body, gain=(6,), beta=(6,), wq=(6, 6), bq=(6,), wk=(6, 6), bk=(6,),
                 wv=(6, 6), bv=(6,), heads=heads, flat=np.array([0, 0, 6], np.int64), wo=(6, 6), wy=(6, 4), by=(4,))  # fmt: skip


def grouped() -> ModelProto:
    body = """
        a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)   r = Sigmoid(a)   c = Conv<group = 2>(r, w2, b2)   t = Tanh(c)
        p = GlobalAveragePool(t)   f = Flatten(p)   y = Gemm<transB = 1>(f, w3, b3)
    """
    return graph("(float[N, 3, 6, 6] x) => (float[N, 4] y)", body, w1=(8, 3, 3, 3), b1=(8,), w2=(6, 4, 3, 3), b2=(6,),
                 w3=(4, 6), b3=(4,))  # fmt: skip


def recurrent() -> ModelProto:
    body = """
        s = Transpose<perm = [1, 0, 2]>(x)   h, last = GRU<hidden_size = 3, linear_before_reset = 1>(s, wi, wr, wb)
        f = Squeeze(last, zero)   y = Gemm<transB = 1>(f, wy, by)
    """
    return graph("(float[N, 4, 5] x) => (float[N, 4] y)", body, wi=(1, 9, 5), wr=(1, 9, 3), wb=(1, 18),
                 zero=np.array([0], np.int64), wy=(4, 3), by=(4,))  # fmt: skip


def mixing() -> ModelProto:
    body = "a = MatMul(x, w1)  b = Tanh(a)  c = MatMul(g, b)  d = MatMul(c, w2)  y = Add(d, b2)"
    return graph("(float[N, 5] x, float[N, N] g) => (float[N, 4] y)", body, w1=(5, 6), w2=(6, 4), b2=(4,))


CASES: dict[str, tuple[Callable[[], ModelProto], tuple[str, int], Callable[[int], Places]]] = {
    "residual stream": (residual, ("w1", 0), lambda k: [("w2", (slice(None), k)), ("w3", (slice(None), k))]),
    "last conv": (residual, ("w3", 0), lambda k: [("w4", (slice(None), k))]),
    "values": (attention, ("wv", 1), lambda k: [("wo", (k,))]),
    "queries": (attention, ("wq", 1), lambda k: [("wq", (slice(None), k)), ("bq", (k,))]),
    "grouped": (grouped, ("w1", 0), lambda k: [("w2", (slice(3 * (k // 4), 3 * (k // 4) + 3), k % 4))]),
    "after grouped": (grouped, ("w3", 1), lambda k: [("w3", (slice(None), k))]),
    "recurrent": (recurrent, ("wy", 1), lambda k: [("wy", (slice(None), k)), ("wr", (0, slice(None), k))]),
    "samples that mix": (mixing, ("w1", 1), lambda k: [("w2", (k,))]),
}  # fmt: skip


def groups_of(model: ModelProto) -> Groups:
    return build(api.trace(model))


def units(groups: Groups, parameter: str, axis: int) -> NDArray[np.int64]:
    """The unit of every position along an axis of a parameter."""
    found = [groups.classes[ids].ravel() for s, axes, ids in groups.blocks if s.parameter == parameter and axis in axes]
    assert len(found[0]) == groups.trace.model.weights[parameter].shape[axis]
    return found[0]


def feed(model: ModelProto, samples: int = 3) -> dict[str, Array]:
    random = np.random.default_rng(5)
    sizes = {i.name: [d.dim_value or samples for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


def in_double(model: ModelProto) -> ModelProto:
    twin = ModelProto()
    twin.CopyFrom(model)
    for tensor in twin.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for info in (*twin.graph.input, *twin.graph.output):
        info.type.tensor_type.elem_type = TensorProto.DOUBLE
    return twin


def logits(model: ModelProto, feeds: dict[str, Array]) -> Array:
    """In double precision, by ONNX's own reference: log-probabilities do for logits."""
    y = ReferenceEvaluator(model).run(None, {n: a.astype(np.float64) for n, a in feeds.items()})[0]
    return np.log(y) if model.graph.node[-1].op_type == "Softmax" else y


def scaled(model: ModelProto, places: Places, factor: float) -> ModelProto:
    """In double precision, with parts of weights multiplied."""
    twin = in_double(model)
    for name, at in places:
        value = array(twin, name)
        value[at] *= factor
        next(t for t in twin.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(value, name))
    return twin


def by_differences(model: ModelProto, places: Places, loss: Callable[[Array], Array], feeds: dict[str, Array]) -> Array:
    """[samples]: the derivative of the loss by a factor at one; the places add up."""
    h = 1e-5
    ends = [[loss(logits(scaled(model, [place], 1 + d), feeds)) for d in (h, -h)] for place in places]
    return np.sum([(a - b) / (2 * h) for a, b in ends], axis=0)


@needs_ad
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_finite_differences(case: str) -> None:
    make, (parameter, axis), places = CASES[case]
    model = make()
    groups, feeds = groups_of(model), feed(model)
    found = gate_gradients(groups, [feeds], LABELS, OPTIONS)[:, units(groups, parameter, axis)]
    expected = np.stack([by_differences(model, places(k), lambda y: cross_entropy(y, LABELS, 3), feeds)
                         for k in range(found.shape[1])], axis=1)  # fmt: skip
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(expected).min(axis=0).max() > 0


@needs_ad
def test_without_labels_the_predicted_class_counts() -> None:
    model = residual()
    groups, feeds = groups_of(model), feed(model)
    at = units(groups, "w3", 0)
    chosen = logits(in_double(model), feeds).argmax(-1)
    picked = lambda y: np.take_along_axis(y, chosen[:, None], -1)[:, 0]  # noqa: E731
    for seed_with, loss in (("loss", lambda y: -picked(log_softmax(y))), ("logit", picked)):
        found = gate_gradients(groups, [feeds], LABELS if seed_with == "logit" else None, OPTIONS, seed_with)[:, at]
        expected = np.stack([by_differences(model, [("w4", (slice(None), k))], loss, feeds) for k in range(5)], axis=1)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    fisher = gate_gradients(groups, [feeds], LABELS, OPTIONS, "fisher")
    assert np.isfinite(fisher).all()
    assert fisher[:, at].any()


@needs_ad
def test_outputs_that_are_no_classes_are_measured_by_their_square() -> None:
    model = graph("(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)", "a = Conv(x, w1)  b = Relu(a)  y = Conv(b, w2)",
                  w1=(4, 3, 1, 1), w2=(2, 4, 1, 1))  # fmt: skip
    groups, feeds = groups_of(model), feed(model)
    found = gate_gradients(groups, [feeds], None, OPTIONS)[:, units(groups, "w1", 0)]
    expected = [by_differences(model, [("w2", (slice(None), k))], lambda y: 0.5 * np.square(y).sum((1, 2, 3)), feeds)
                for k in range(4)]  # fmt: skip
    assert found == pytest.approx(np.stack(expected, axis=1), rel=1e-4)


@needs_ad
@pytest.mark.parametrize("make", [residual, attention, recurrent])
def test_batches_only_cut_the_samples(make: Callable[[], ModelProto]) -> None:
    model = make()
    groups, feeds = groups_of(model), feed(model, 5)
    labels = np.array([0, 1, 2, 3, 0])
    whole = gate_gradients(groups, [feeds], labels, OPTIONS)
    parts = [{n: a[at] for n, a in feeds.items()} for at in (slice(0, 3), slice(3, 5))]
    assert np.abs(gate_gradients(groups, parts, labels, OPTIONS) - whole).max() < 1e-5 * np.abs(whole).max()
    assert not whole[:, ~groups.prunable].any()
    fixed = ModelProto()
    fixed.CopyFrom(model)
    for info in (*fixed.graph.input, *fixed.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 2
    fixed_groups = groups_of(fixed)
    assert np.abs(gate_gradients(fixed_groups, [feeds], labels, OPTIONS) - whole).max() < 1e-5 * np.abs(whole).max()


@needs_ad
def test_what_cannot_be_differentiated_is_one_line() -> None:
    model = graph("(float[N, 5] x) => (float[N, 4] y)",
                   "a = MatMul(x, w0)  d = MatMul(a, w1)  b = FastGelu(d)  y = MatMul(b, w2)",
                   w0=(5, 6), w1=(6, 6), w2=(6, 4))  # fmt: skip
    model.graph.node[2].domain = "com.microsoft"
    with pytest.raises(UsageError, match=r"com.microsoft::FastGelu.*criterion obs"):
        gate_gradients(groups_of(model), [feed(model)], LABELS, OPTIONS)


def test_onnx_ad_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ad", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxprune\[gradients\]'"):
        gate_gradients(groups_of(residual()), [feed(residual())], LABELS, OPTIONS)


def test_criteria_are_what_their_formulas_say() -> None:
    gradients = np.array([[1.0, -2.0], [3.0, 0.0]])
    assert taylor(gradients).tolist() == [5, 2]
    assert taylor(gradients, per=2).tolist() == [4, 1]
    assert lrp(gradients).tolist() == [2, 1]
    assert taylor_so(gradients).tolist() == [(1.5**2 + 0.5**2) / 2, (3**2 + 1) / 2]
    assert in_sets(np.arange(5.0)[:, None], 2)[:, 0].tolist() == [0.5, 2.5, 4]


@needs_ad
def test_scores_equal_those_of_autograd() -> None:
    torch = pytest.importorskip("torch")
    model = residual()
    groups, feeds = groups_of(model), feed(model, 16)
    labels = np.arange(16) % 4
    w = {t.name: torch.tensor(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    stream, last = torch.ones(16, 6, 1, 1, requires_grad=True), torch.ones(16, 5, requires_grad=True)
    f = torch.nn.functional
    a = f.conv2d(torch.tensor(feeds["x"]), w["w1"], w["b1"], padding=1)
    r = f.relu(f.batch_norm(a, w["mean"], w["variance"], w["gain"], w["beta"]))
    t = f.relu(r + f.conv2d(r * stream, w["w2"], w["b2"], padding=1))
    e = f.relu(f.conv2d(f.max_pool2d(t, 2) * stream, w["w3"], w["b3"])).mean((2, 3))
    y = f.linear(e * last, w["w4"], w["b4"])
    f.cross_entropy(y, torch.tensor(labels), reduction="sum").backward()
    found = gate_gradients(groups, [feeds], labels, OPTIONS)
    for gate, name in ((stream, "w1"), (last, "w3")):
        at, expected = units(groups, name, 0), gate.grad.reshape(16, -1).double().numpy()
        assert found[:, at] == pytest.approx(expected, abs=1e-4 * np.abs(expected).max())
        for criterion in (taylor, taylor_so, lrp):
            assert criterion(found)[at] == pytest.approx(criterion(expected), rel=1e-4)
