"""Folding: doubles become one without loss, what is alike its mean, and what is not understood stays as it is."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphs import array, graph, inputs, replace, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from rich.console import Console
from test_merge import ENDS, IMAGE, SAME, apart, chain, doubled, story, weights, without

from onnxprune.api import Result, prune
from onnxprune.refit.folding import kmeans
from onnxprune.report import print_report


def both(model: ModelProto, parameter: str = "wa") -> tuple[Result, Result]:
    """Sliced, and folded: the first four of eight units go."""
    plan = without(model, parameter)
    return tuple(prune(model, plan=plan, fast=True, reconstruct=how) for how in ("none", "fold"))  # type: ignore[return-value]


def same(model: ModelProto, *names: str, axis: int = 0) -> ModelProto:
    return doubled(model, *names, scale=1, axis=axis)


def stream() -> ModelProto:
    """Three layers make the units of a stream, which two read."""
    body = f"""
        a = Conv<{SAME}>(x, wa, ba) r = Relu(a) b = Conv<{SAME}>(r, wb, bb) i = Relu(b) d = Conv<{SAME}>(i, wd, bd)
        e = Add(d, r) t = Relu(e) h = Conv<{SAME}>(t, wh, bh) k = Add(t, h) c = Conv<{SAME}>(k, wc, bc) s = Relu(c)
        g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB = 1>(f, wo, bo)
    """
    shapes = {"wb": (6, 8, 3, 3), "bb": (6,), "wd": (8, 6, 3, 3), "bd": (8,), "wh": (8, 8, 3, 3), "bh": (8,)}
    return same(graph(IMAGE, body, **ENDS, **shapes), "wa", "ba", "wd", "bd", "wh", "bh")


def normalised() -> ModelProto:
    norm = "n = BatchNormalization(a, gain, shift, mean, var) r = Relu(n)"
    model = chain(norm, gain=(8,), shift=(8,), mean=(8,), var=(8,))
    return same(model, "wa", "ba", "gain", "shift", "mean", "var")


def depthwise() -> ModelProto:
    between = f"q = Relu(a) d = Conv<{SAME}, group = 8>(q, wd, bd) r = PRelu(d, slope)"
    return same(chain(between, wd=(8, 1, 3, 3), bd=(8,), slope=(8, 1, 1)), "wa", "ba", "wd", "bd", "slope")


def flattened() -> ModelProto:
    body = f"a = Conv<{SAME}>(x, wa, ba) r = Relu(a) f = Flatten(r) y = Gemm<transB = 1>(f, wo, bo)"
    return same(graph(IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wo=(5, 288), bo=(5,)), "wa", "ba")


def perceptron() -> ModelProto:
    body = "m = MatMul(x, wa) a = Add(m, ba) r = Tanh(a) y = Gemm(r, wo, bo)"
    model = graph("(float[N, 10] x) => (float[N, 5] y)", body, wa=(10, 8), ba=(8,), wo=(8, 5), bo=(5,))
    return same(same(model, "wa", axis=1), "ba")


EXACT: dict[str, Callable[[], ModelProto]] = {
    "rectifier": lambda: same(chain(), "wa", "ba"),
    "gate": lambda: same(chain("z = Sigmoid(a) r = Mul(a, z)"), "wa", "ba"),
    "stream": stream, "batch norm": normalised, "depthwise": depthwise, "flattened": flattened,
    "perceptron": perceptron,
}  # fmt: skip


@pytest.mark.parametrize("build", EXACT.values(), ids=EXACT)
def test_doubles_become_one(build: Callable[[], ModelProto]) -> None:
    model = build()
    sliced, folded = both(model)
    assert apart(model, sliced) > 0.02
    assert apart(model, folded) < 1e-5
    assert story(folded) == {"method": "fold", "folded": 4, "distance": pytest.approx(0, abs=1e-6)}
    assert folded.report.after == sliced.report.after
    assert folded.report.proof == sliced.report.proof
    assert folded.plan.reconstruct == "fold"
    console = Console(file=io.StringIO(), width=120)
    print_report(folded.report, console=console)
    assert "folded 4 removed units into kept ones" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_alike_becomes_its_mean_and_is_read_as_its_sum() -> None:
    """Filters and biases, where a unit differs a little from the one that is kept."""
    model = perceptron()
    a, b, o = (array(model, n).astype(np.float64) for n in ("wa", "ba", "wo"))
    a[:, 4:] += 0.01 * np.random.default_rng(0).standard_normal((10, 4))
    replace(model, "wa", a.astype(np.float32))
    found = weights(both(model)[1])
    np.testing.assert_allclose(found["wa"], (a[:, :4] + a[:, 4:]) / 2, rtol=1e-5)
    np.testing.assert_allclose(found["ba"], (b[:4] + b[4:]) / 2, rtol=1e-5)
    np.testing.assert_allclose(found["wo"], o[:4] + o[4:], rtol=1e-5)


def test_what_looks_at_all_units_at_once_is_sliced() -> None:
    """A double that is gone counts no more where statistics are taken over the units."""
    between = "m = ReduceMean<axes = [1], keepdims = 1>(a) r = Sub(a, m)"
    sliced, folded = both(same(chain(between), "wa", "ba"))
    assert story(folded)["folded"] == 0
    for name, value in weights(sliced).items():
        np.testing.assert_array_equal(weights(folded)[name], value)


def test_codes_are_sliced() -> None:
    body = """
        v = DequantizeLinear<axis = 1>(wa, sa) m = MatMul(x, v) r = Relu(m) y = MatMul(r, wo)
    """
    codes = np.random.default_rng(0).integers(-99, 99, (10, 8)).astype(np.int8)
    model = graph(
        "(float[N, 10] x) => (float[N, 5] y)", body, wa=codes, sa=np.full(8, 0.01, np.float32), wo=(8, 5)
    )  # fmt: skip
    folded = prune(model, ratio=0.5, fast=True, reconstruct="fold")
    assert story(folded)["folded"] == 0


def test_units_of_one_group_of_a_convolution() -> None:
    """Whatever channels a grouped reader sums, the file runs and is what was proven."""
    model = chain(f"q = Relu(a) d = Conv<{SAME}, group = 2>(q, wd, bd) r = Relu(d)", wd=(8, 4, 3, 3), bd=(8,))
    result = prune(same(model, "wa", "ba"), ratio=0.5, fast=True, reconstruct="fold")
    assert result.report.proof.error <= result.report.proof.tolerance
    assert run(result.model.to_proto(), inputs(model, 2))[0].shape == (2, 5)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 9), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_clusters_are_as_many_as_asked_for(n: int, width: int, seed: int, data: Any) -> None:
    """None is empty, and the rows are no farther from the means of theirs than from what they began with."""
    rows = np.random.default_rng(seed).integers(-2, 3, (n, width)).astype(np.float64)
    first = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    label = kmeans(rows, first)
    assert set(label.tolist()) == set(range(len(first)))
    means = np.stack([rows[label == k].mean(0) for k in range(len(first))])
    begun = np.square(rows[:, None] - rows[first]).sum(2).min(1).sum()
    assert np.square(rows - means[label]).sum() <= begun + 1e-9
