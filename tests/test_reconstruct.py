"""Reconstruction, end to end: what can be made up for exactly is, and nothing that is run through it breaks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import array, graph, inputs, replace, run
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from random_graph import models
from test_random_graphs import EXAMPLES

from onnxprune.api import Result, prune
from onnxprune.api import trace as onnx_trace
from onnxprune.errors import NothingToPrune
from onnxprune.fit import Problem, Solution, equations, normalisations, re_estimated, sites, solve
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.planning import criteria

Array = NDArray[Any]
SAME = "pads=[1,1,1,1]"
IMAGE = "(float[N,3,8,8] x) => (float[N,5] y)"
POOLED = "p = GlobalAveragePool({}) f = Flatten(p) y = Gemm<transB=1>(f, wo, bo)"
HEAD = {"wo": (5, 12), "bo": (5,)}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "LEAST_ROWS", 1500)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """With next to no ridge, so that what can be restored is; and a criterion that keeps the first of any axis."""
    monkeypatch.setattr(equations, "solve", lambda p, start, bias, held, *_: solve(p, start, bias, held, (1e-7,)))
    monkeypatch.setitem(criteria.WEIGHTS, "first", first)


def first(weight: Array, rng: np.random.Generator) -> Array:
    return np.asarray(sum(n - at for n, at in zip(weight.shape, np.indices(weight.shape), strict=True)), np.float64)


def echo(model: ModelProto, names: Sequence[str], axis: int = 0, scale: float = 1.0) -> ModelProto:
    """Make the second half of an axis of parameters a multiple of the first, mirrored: half of the channels are spare."""
    for name in names:
        value = np.moveaxis(array(model, name), axis, 0)
        half = len(value) // 2
        value[half:] = value[:half][::-1] * scale
        replace(model, name, np.moveaxis(value, 0, axis))
    return model


def without(model: ModelProto, result: Result, count: int = 24) -> tuple[float, float]:
    """(relative squared error of the pruned outputs on other inputs, the same of plain slicing)."""
    sliced = prune(model, plan=result.plan, fast=True)
    feeds = inputs(model, count, 99)
    expected = run(model, feeds)
    errors = []
    for after in (result.model.to_proto(), sliced.model.to_proto()):
        got = run(after, feeds)
        errors.append(max(float(np.square(a.astype(float) - b).sum() / np.square(a - a.mean(0), dtype=float).sum())
                          for a, b in zip(expected, got, strict=True)))  # fmt: skip
    return errors[0], errors[1]


def restored(model: ModelProto, limit: float = 1e-6, **options: Any) -> Result:
    chosen: dict[str, Any] = {
        "ratio": 0.5,
        "scope": "local",
        "criterion": "first",
        "calib": [inputs(model, 64, 7)],
    } | options
    result = prune(model, **chosen)
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    story = result.report.reconstruction
    assert story is not None
    assert not story["fell_back"]
    error, sliced = without(model, result)
    assert error < limit
    assert sliced > 100 * limit  # there was something to restore
    return result


@pytest.mark.usefixtures("exact")
def test_a_sequence() -> None:
    body = f"a = Conv<{SAME}>(x, wa, ba) r = Relu(a) c = Conv<{SAME}>(r, wc, bc) s = Relu(c) {POOLED.format('s')}"
    model = graph(IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wc=(12, 8, 3, 3), bc=(12,), **HEAD)
    restored(echo(model, ["wa", "ba", "wc", "bc"]))


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Identity"])
@pytest.mark.usefixtures("exact")
def test_residual_streams(activation: str) -> None:
    body = f"""
        a = Conv<{SAME}>(x, wa, ba) r = {activation}(a)
        c = Conv<{SAME}>(r, wc, bc) d = {activation}(c) e = Conv<{SAME}>(d, we) s0 = Add(r, e) s = Relu(s0)
        {POOLED.format("s")}
    """
    model = graph(IMAGE, body, wa=(12, 3, 3, 3), ba=(12,), wc=(8, 12, 3, 3), bc=(8,), we=(12, 8, 3, 3), **HEAD)
    restored(echo(model, ["wa", "ba", "wc", "bc", "we"]))


@pytest.mark.usefixtures("exact")
def test_normalisations_that_stay() -> None:
    body = f"""
        a = Conv<{SAME}>(x, wa) n = BatchNormalization(a, gain, beta, mean, var) r = Relu(n)
        c = Conv<{SAME}>(r, wc) m = BatchNormalization(c, gain2, beta2, mean2, var2) s = Relu(m) {POOLED.format("s")}
    """
    vectors = dict.fromkeys(("gain", "beta", "mean", "var"), (8,)) | dict.fromkeys(("gain2", "beta2", "mean2", "var2"), (12,))  # fmt: skip
    model = graph(IMAGE, body, wa=(8, 3, 3, 3), wc=(12, 8, 3, 3), **vectors, **HEAD)
    model = echo(model, ["wa", "wc", *vectors])
    result = restored(model, limit=1e-4)
    for name in ("mean", "var", "mean2", "var2"):  # moments of the inputs that were made up are gone again
        kept = array(result.model.to_proto(), name)
        assert np.isin(kept, array(model, name)).all()


def test_moments_of_other_inputs_leave_channels_with_mean_nought_and_variance_one() -> None:
    """Each normalisation is given the moments of what reaches it behind those that were given theirs before."""
    body = f"""
        a = Conv<{SAME}>(x, wa, ba) n = BatchNormalization<epsilon=0.0>(a, one, nought, mean, var) r = Relu(n)
        c = Conv<{SAME}>(r, wc, bc) m = BatchNormalization<epsilon=0.0>(c, one, nought, mean2, var2)
    """
    vectors = dict.fromkeys(("ba", "bc", "mean", "var", "mean2", "var2"), (8,))
    one, nought = np.ones(8, np.float32), np.zeros(8, np.float32)
    model = graph("(float[N,3,8,8] x) => (float[N,8,8,8] n, float[N,8,8,8] m)", body, wa=(8, 3, 3, 3), wc=(8, 8, 3, 3),
                  one=one, nought=nought, **vectors)  # fmt: skip
    shift = np.full((1, 3, 1, 1), 4, np.float32)
    feeds = [{"x": 2 * inputs(model, count, count)["x"] + shift} for count in (5, 3)]
    trace = re_estimated(onnx_trace(model), feeds, ["cpu"])
    (n, m), (n2, m2) = (run(trace.model.to_proto(), feed) for feed in feeds)
    for x in (np.concatenate((n, n2)), np.concatenate((m, m2))):
        np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=1e-4)
        np.testing.assert_allclose(x.var((0, 2, 3)), 1, rtol=1e-4)


def test_trained_moments_return_after_inputs_that_were_made_up() -> None:
    vectors = ("gain", "beta", "mean", "var")
    body = f"a = Conv<{SAME}>(x, wa) n = BatchNormalization(a, {', '.join(vectors)}) r = Relu(n) {POOLED.format('r')}"
    model = graph(IMAGE, body, wa=(12, 3, 3, 3), **dict.fromkeys(vectors, (12,)), **HEAD)
    assert len(normalisations(Model.load(model))) == 1
    result = prune(model, ratio=0.5, scope="local", calib_samples=16)
    story = result.report.reconstruction
    assert story is not None
    assert not story["fell_back"]
    assert "come with onnxprune" in story["inputs"] or "made-up" in story["inputs"]
    after = result.model.to_proto()
    kept = np.flatnonzero(np.isin(array(model, "gain"), array(after, "gain")))
    assert len(kept) == 6
    for name in ("gain", "mean", "var"):
        np.testing.assert_array_equal(array(after, name), array(model, name)[kept])
    assert not np.array_equal(array(after, "wo"), array(model, "wo")[:, kept])


@pytest.mark.usefixtures("exact")
def test_a_weight_that_is_used_twice() -> None:
    body = f"""
        a = Conv<{SAME}>(x, wa, ba) r = Relu(a) c = Conv<{SAME}>(r, wc, bc) d = Relu(c) e = Conv<{SAME}>(d, wc, bc)
        s = Add(e, r) {POOLED.format("s")}
    """
    model = echo(
        graph(IMAGE, body, wa=(12, 3, 3, 3), ba=(12,), wc=(12, 12, 3, 3), bc=(12,), **HEAD), ["wa", "ba", "wc", "bc"]
    )
    result = restored(model)
    weights = {t.name for t in result.model.to_proto().graph.initializer}
    assert weights == {t.name for t in model.graph.initializer}


@pytest.mark.usefixtures("exact")
def test_a_vector_that_is_two_biases() -> None:
    body = f"a = Conv<{SAME}>(x, wa, b) r = Relu(a) c = Conv<{SAME}>(r, wc, b) s = Relu(c) {POOLED.format('s')}"
    model = graph(IMAGE, body, wa=(12, 3, 3, 3), b=(12,), wc=(12, 12, 3, 3), **HEAD)
    restored(echo(model, ["wa", "b", "wc"]))


@pytest.mark.usefixtures("exact")
def test_no_biases_at_all() -> None:
    body = f"a = Conv<{SAME}>(x, wa) r = Sigmoid(a) c = Conv<{SAME}>(r, wc) s = Relu(c) p = GlobalAveragePool(s) f = Flatten(p) y = Gemm(f, wo)"
    model = graph(IMAGE, body, wa=(8, 3, 3, 3), wc=(12, 8, 3, 3), wo=(12, 5))
    restored(echo(model, ["wa", "wc"]))


@pytest.mark.usefixtures("exact")
def test_constants_need_a_bias_that_is_made() -> None:
    """Half of the channels are constant after their activation: only new biases can stand for them."""
    body = f"a = Conv<{SAME}>(x, wa, ba) r = Sigmoid(a) c = Conv(r, wc) s = Relu(c) {POOLED.format('s')}"
    model = graph(IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wc=(12, 8, 1, 1), **HEAD)
    for name in ("wa", "ba"):
        value = array(model, name)
        value[4:] *= name == "ba"
        replace(model, name, value)
    result = restored(echo(model, ["wc"]))
    assert sum(len(n.input) == 3 for n in result.model.to_proto().graph.node if n.op_type == "Conv") == 2


@pytest.mark.parametrize("groups", [2, 12])
@pytest.mark.usefixtures("exact")
def test_grouped_convolutions(groups: int) -> None:
    body = f"""
        a = Conv<{SAME}>(x, wa, ba) r = Relu(a) g = Conv<{SAME}, group={groups}>(r, wg, bg) t = Relu(g)
        c = Conv(t, wc, bc) s = Relu(c) {POOLED.format("s")}
    """
    model = graph(
        IMAGE, body, wa=(12, 3, 3, 3), ba=(12,), wg=(12, 12 // groups, 3, 3), bg=(12,), wc=(12, 12, 1, 1), bc=(12,), **HEAD
    )  # fmt: skip
    if groups == 12:
        echo(model, ["wa", "ba", "wg", "bg"])
    else:  # within each group, the second half of the channels is spare
        for name in ("wa", "ba", "wg", "bg"):
            value = array(model, name)
            value[[3, 4, 5, 9, 10, 11]] = value[[0, 1, 2, 6, 7, 8]]
            replace(model, name, value)
    restored(echo(model, ["wc", "bc"]), heads=False)


@pytest.mark.usefixtures("exact")
def test_a_concatenation() -> None:
    body = f"""
        a = Conv<{SAME}>(x, wa, ba) b = Conv<{SAME}>(x, wb, bb) j = Concat<axis=1>(a, b) r = Relu(j)
        c = Conv<{SAME}>(r, wc, bc) s = Relu(c) {POOLED.format("s")}
    """
    model = graph(IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wb=(4, 3, 3, 3), bb=(4,), wc=(12, 12, 3, 3), bc=(12,), **HEAD)
    restored(echo(model, ["wa", "ba", "wb", "bb", "wc", "bc"]))


@pytest.mark.usefixtures("exact")
def test_a_classifier_after_flatten() -> None:
    body = f"a = Conv<{SAME}>(x, wa, ba) r = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) f = Flatten(p) h = Gemm(f, wh, bh) t = Relu(h) y = Gemm<transB=1, alpha=0.5>(t, wo, bo)"
    model = graph(IMAGE, body, wa=(6, 3, 3, 3), ba=(6,), wh=(96, 12), bh=(12,), **HEAD)
    model = echo(echo(model, ["wa", "ba"]), ["wh"], 1)
    restored(echo(model, ["bh"]), calib=[inputs(model, 512, 7)])


@pytest.mark.usefixtures("exact")
def test_transposed_convolutions() -> None:
    body = f"a = Conv<{SAME}>(x, wa, ba) r = Relu(a) u = ConvTranspose<strides=[2,2]>(r, wu, bu) s = Relu(u) {POOLED.format('s')}"
    model = graph(IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wu=(8, 12, 2, 2), bu=(12,), **HEAD)
    restored(echo(echo(model, ["wa", "ba", "bu"]), ["wu"], 1))


@pytest.mark.usefixtures("exact")
def test_an_output_projection_of_attention() -> None:
    """Values of half of each head are copies; keys and queries keep theirs."""
    body = """
        q = MatMul(x, wq) k = MatMul(x, wk) v0 = MatMul(x, wv) v = Add(bv, v0) sh = Constant<value_ints=[0,6,2,8]>()
        q4 = Reshape(q, sh) k4 = Reshape(k, sh) v4 = Reshape(v, sh)
        qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)
        m = MatMul(qt, kt) w = Softmax<axis=-1>(m) o = MatMul(w, vt) ot = Transpose<perm=[0,2,1,3]>(o)
        s2 = Constant<value_ints=[0,6,16]>() of = Reshape(ot, s2) z = MatMul(of, wo) y = Add(z, x)
    """
    side = dict.fromkeys(("wq", "wk", "wv"), (12, 16))
    model = graph("(float[N,6,12] x) => (float[N,6,12] y)", body, wo=(16, 12), bv=(16,), **side)
    for name in ("wv", "bv"):
        value = array(model, name)
        value.reshape(-1, 2, 2, 4)[:, :, 1] = value.reshape(-1, 2, 2, 4)[:, :, 0]
        replace(model, name, value)
    for name in ("wq", "wk"):
        value = array(model, name)
        value.reshape(-1, 2, 2, 4)[:, :, 1] = 0
        replace(model, name, value)
    restored(model, heads=False)


@pytest.mark.usefixtures("exact")
def test_half_precision() -> None:
    body = f"a = Conv<{SAME}>(x, wa, ba) r = Relu(a) c = Conv<{SAME}>(r, wc, bc) s = Relu(c) {POOLED.format('s')}"
    model = echo(
        graph(IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wc=(12, 8, 3, 3), bc=(12,), **HEAD), ["wa", "ba", "wc", "bc"]
    )
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    result = prune(model, ratio=0.5, scope="local", criterion="first", calib=[inputs(model, 64, 7)])
    feeds = {"x": np.random.default_rng(5).standard_normal((24, 3, 8, 8)).astype(np.float16)}
    expected, got = run(model, feeds)[0].astype(float), run(result.model.to_proto(), feeds)[0].astype(float)
    assert np.square(expected - got).sum() < 1e-3 * np.square(expected - expected.mean(0)).sum()


@pytest.mark.usefixtures("exact")
def test_steps_of_quantisation() -> None:
    body = f"""
        qa = DequantizeLinear<axis=0>(wa, scale_a) a = Conv<{SAME}>(x, qa, ba) r = Relu(a)
        qc = DequantizeLinear<axis=0>(wc, scale_c) c = Conv<{SAME}>(r, qc, bc) s = Relu(c) {POOLED.format("s")}
    """
    random = np.random.default_rng(0)
    steps = {
        "wa": random.integers(-50, 50, (8, 3, 3, 3)).astype(np.int8),
        "wc": random.integers(-40, 40, (12, 8, 3, 3)).astype(np.int8),
    }
    model = graph(
        IMAGE, body, ba=(8,), bc=(12,), scale_a=np.full(8, 0.01, np.float32), scale_c=np.full(12, 0.01, np.float32), **steps, **HEAD
    )  # fmt: skip
    result = prune(
        echo(model, ["wa", "ba", "wc", "bc"]), ratio=0.5, scope="local", criterion="first", calib=[inputs(model, 64, 7)]
    )
    error, sliced = without(model, result)
    assert error < 2e-3
    assert sliced > 0.2
    after = result.model.to_proto()
    assert array(after, "wc").dtype == np.int8
    np.testing.assert_array_equal(array(after, "scale_a"), np.full(4, 0.01, np.float32))


def broadcast_sum(first: bool) -> ModelProto:
    """A gate for the whole sequence is added to every token: the sum is larger than what is refitted."""
    order = "u, t" if first else "t, u"
    body = f"""
        m = ReduceMean<axes=[1], keepdims=1>(x) a = MatMul(m, wa) r = Relu(a) u = MatMul(r, wu) t = Tanh(x)
        s = Add({order}) y = MatMul(s, wy)
    """
    model = graph("(float[N,6,12] x) => (float[N,6,3] y)", body, wa=(12, 16), wu=(16, 12), wy=(12, 3))
    return echo(model, ["wa"], 1)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.usefixtures("exact")
def test_a_sum_that_is_larger_than_what_goes_into_it(first: bool) -> None:
    result = restored(broadcast_sum(first), residual="conv")
    story = result.report.reconstruction
    assert story is not None
    assert len(story["layers"]) > 0


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """Everything that is solved for, in order."""
    seen: list[Problem] = []

    def noted(p: Problem, *rest: Any) -> Solution:
        seen.append(p)
        return solve(p, *rest)

    monkeypatch.setattr(equations, "solve", noted)
    return seen


def test_a_shared_weight_before_different_clips(problems: list[Problem]) -> None:
    """One use is clipped below and the other is not: what is below must be right, too."""
    body = f"""
        a = Conv<{SAME}>(x, wa, ba) r = Tanh(a) c = Conv(r, wc, bc) d = Relu(c) e0 = Conv<{SAME}>(d, we, be) e = Tanh(e0)
        k = Conv(e, wc, bc) s = Concat<axis=1>(d, k) {POOLED.format("s")}
    """
    model = graph(IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wc=(6, 8, 1, 1), bc=(6,), we=(8, 6, 3, 3), be=(8,), **HEAD)
    prune(model, ratio=0.25, scope="local", calib=[inputs(model, 256, 7)])
    shared = [p for p in problems if p.rows.shape[1] == array(model, "wc").shape[1] - 2]
    assert len(shared) == 2  # the first use alone, then both
    assert all(p.low == -np.inf for p in shared)


def test_what_follows_a_shared_weight_reads_what_it_gives_in_the_end(problems: list[Problem]) -> None:
    body = f"a = Conv<{SAME}>(x, wa, ba) r = Tanh(a) c = Conv(r, wc, bc) d = Tanh(c) e = Conv(d, wc, bc) s = Tanh(e) {POOLED.format('s')}"
    model = graph(IMAGE, body, wa=(12, 3, 3, 3), ba=(12,), wc=(12, 12, 1, 1), bc=(12,), **HEAD)
    feeds = inputs(model, 60, 7)
    after = prune(model, ratio=0.25, scope="local", calib=[feeds], effort="low").model.to_proto()
    after.graph.output[0].name = "f"
    del after.graph.output[0].type.tensor_type.shape.dim[:]
    pooled = run(after, feeds)[0]
    rows = problems[-1].rows
    assert rows.shape == pooled.shape == (60, 9)
    np.testing.assert_allclose(np.sort(rows, 0), np.sort(pooled, 0), atol=1e-5)


@pytest.mark.parametrize("order", ["main first", "shortcut first"])
def test_a_branch_before_its_sum_is_whole(problems: list[Problem], order: str) -> None:
    """The first of two branches is solved for on its own, with no clip; the second for what the sum still lacks."""
    main, shortcut = f"e = Conv<{SAME}>(r, we, be)", "k = Conv(r, wk)"
    branches = f"{main} {shortcut}" if order == "main first" else f"{shortcut} {main}"
    body = f"a = Conv<{SAME}>(x, wa, ba) r = Tanh(a) {branches} s0 = Add(e, k) s = Relu(s0) {POOLED.format('s')}"
    model = graph(IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), we=(12, 8, 3, 3), be=(12,), wk=(12, 8, 1, 1), **HEAD)
    prune(model, ratio=0.25, scope="local", calib=[inputs(model, 64, 7)], residual="none")
    alone, whole = problems[:2]
    assert (alone.low, alone.high) == (-np.inf, np.inf)
    assert not alone.offset.any()
    assert (whole.low, whole.high) == (0, np.inf)
    assert whole.offset.any()


ONES = np.ones(8, np.float32)
ZEROS = np.zeros(8, np.float32)


@pytest.mark.parametrize(("names", "held"), [
    ("one, beta, mean, one", {"one": ONES, "beta": (8,), "mean": (8,)}),
    ("gain, zero, zero, var", {"gain": (8,), "zero": ZEROS, "var": (8,)}),
    ("one, zero, zero, one", {"one": ONES, "zero": ZEROS}),
], ids=["gain and variance", "offset and mean", "both"])  # fmt: skip
@pytest.mark.usefixtures("exact")
def test_normalisations_that_read_one_vector_twice(names: str, held: dict[str, Any]) -> None:
    body = f"a = Conv<{SAME}>(x, wa, ba) n = BatchNormalization(a, {names}) r = Relu(n) c = Conv<{SAME}>(r, wc, bc) s = Relu(c) {POOLED.format('s')}"
    model = graph(IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wc=(12, 8, 3, 3), bc=(12,), **held, **HEAD)
    assert normalisations(Model.load(model)) == []  # no moments that could be changed alone
    restored(echo(model, ["wa", "ba", "wc", "bc", *held]), limit=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_hardly_any_inputs(samples: int) -> None:
    body = "a = Gemm(x, wa, ba) r = Relu(a) y = Gemm(r, wo, bo)"
    model = graph("(float[N,6] x) => (float[N,3] y)", body, wa=(6, 8), ba=(8,), wo=(8, 3), bo=(3,))
    result = prune(model, ratio=0.5, calib_samples=samples)
    assert result.report.reconstruction is not None
    assert all(np.isfinite(array(result.model.to_proto(), n)).all() for n in ("wa", "wo"))


def not_finite(bad: str) -> ModelProto:
    body = f"a = Gemm(x, wa, ba) r = Relu(a) t = {bad}(r) c = Gemm(t, wc, bc) s = Relu(c) y = Gemm(s, wo, bo)"
    return graph("(float[N,6] x) => (float[N,3] y)", body, wa=(6, 8), ba=(8,), wc=(8, 8), bc=(8,), wo=(8, 3), bo=(3,))


@pytest.mark.parametrize("bad", ["Exp", "Sqrt", "Identity"])
def test_activations_that_are_no_numbers(bad: str) -> None:
    """Where the dense network itself makes NaN or infinity, nothing is refitted to them, and no file holds them."""
    x = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    x[[3, 7, 12]] = 3e38 * np.sign(x[[3, 7, 12]])
    with np.errstate(all="ignore"):
        result = prune(not_finite(bad), ratio=0.5, calib=[{"x": x}])
    for tensor in result.model.to_proto().graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor)).all()


@pytest.mark.parametrize("bad", ["Log", "Reciprocal"])
def test_units_that_make_no_numbers_are_put_aside(bad: str) -> None:
    """A unit that is masked may give NaN or infinity: zeros take its place, they are not multiplied with it."""
    with np.errstate(all="ignore"):
        proof = prune(not_finite(bad), ratio=0.5, calib_samples=16).report.proof
    assert proof.error <= proof.tolerance


options = st.builds(
    Options, ratio=st.sampled_from([0.5, 0.3]), scope=st.sampled_from(["", "", "local", "global", "pq"]),
    criterion=st.sampled_from(["", "", "wanda", "l1"]), of=st.sampled_from(["units", "macs", "params"]),
    heads=st.booleans(), residual=st.sampled_from(["conv", "all"]), calib_samples=st.sampled_from([16, 32]), seed=st.integers(0, 2),
)  # fmt: skip


@given(models(), options)
@settings(
    max_examples=EXAMPLES // 2, deadline=None, derandomize="ONNXPRUNE_EXAMPLES" not in os.environ, print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture,
    ],
)  # fmt: skip
def test_a_random_graph_is_reconstructed(model: ModelProto, chosen: Options) -> None:
    note(onnx.printer.to_text(model.graph)[:4000])
    try:
        with np.errstate(all="ignore"):
            result = prune(model, chosen)
    except NothingToPrune:
        return
    story = result.report.reconstruction
    assert story is not None
    assert "failed" not in story
    after = result.model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    for batch in (2, 3):
        feeds = inputs(model, batch, batch)
        expected, got = run(model, feeds), run(after, feeds)
        assert [x.shape for x in got] == [x.shape for x in expected]
        assert all(np.isfinite(y).all() or not np.isfinite(x).all() for x, y in zip(expected, got, strict=True))
    assert story["output_error"]["refitted"] <= story["output_error"]["fast"] or story["fell_back"]


@pytest.mark.parametrize("alike", [False, True])
def test_rows_are_let_go_of_as_they_are_joined(alike: bool) -> None:
    """All batches and what they are joined to are not held at the same time; rows that are all the same are one."""
    rng = np.random.default_rng(0)
    same = rng.standard_normal((1, 3))
    parts = [np.broadcast_to(same, (n, 3)) if alike else rng.standard_normal((n, 3)) for n in (4, 1, 6)]
    wanted = np.concatenate(parts).astype(np.float32)
    found = equations._joined(parts)
    assert np.array_equal(found, wanted)
    assert (found.strides[0] == 0) == alike
    assert alike or not parts
