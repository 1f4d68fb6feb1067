"""Merging in weight space: what has a double among the kept units is not missed, and nothing else is touched."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphs import array, graph, inputs, replace, run
from onnx import ModelProto
from rich.console import Console

from onnxprune import api
from onnxprune.api import Result, prune
from onnxprune.errors import RuntimeFailure
from onnxprune.planning import Plan, parting
from onnxprune.refit.merging import combination
from onnxprune.report import print_report, to_json

SAME = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
IMAGE = "(float[N, 3, 6, 6] x) => (float[N, 5] y)"
HEAD = "g = GlobalAveragePool({}) f = Flatten(g) y = Gemm<transB = 1>(f, wo, bo)"
ENDS = {"wa": (8, 3, 3, 3), "ba": (8,), "wc": (6, 8, 3, 3), "bc": (6,), "wo": (5, 6), "bo": (5,)}


def doubled(model: ModelProto, *names: str, scale: float = 2.0, axis: int = 0) -> ModelProto:
    """Unit 4 + i of the parameters is `scale` times unit i."""
    for name in names:
        value = np.moveaxis(array(model, name), axis, 0)
        value[4:] = scale * value[:4]
        replace(model, name, np.moveaxis(value, 0, axis))
    return model


def without(model: ModelProto, parameter: str = "wa") -> Plan:
    """The first four of the eight units of the group that `parameter` is in."""
    found = api.plan(model, ratio=0.5, fast=True, residual="all")
    group = {
        name: tuple(dataclasses.replace(r, remove=tuple(np.arange(np.prod(r.shape)).reshape(8, -1)[:4].ravel().tolist()))
                    for r in removals)
        for name, removals in found.groups.items() if any(r.parameter == parameter for r in removals)
    }  # fmt: skip
    return dataclasses.replace(found, groups=group)


def both(model: ModelProto, **options: Any) -> tuple[Result, Result]:
    """Sliced, and merged."""
    plan = without(model)
    return tuple(prune(model, plan=plan, fast=True, reconstruct=how, **options) for how in ("none", "merge"))  # type: ignore[return-value]


def apart(model: ModelProto, result: Result) -> float:
    """Largest difference of the outputs, as a share of the largest output."""
    feeds = inputs(model, 3)
    before, after = run(model, feeds)[0], run(result.model.to_proto(), feeds)[0]
    return float(np.abs(before - after).max() / np.abs(before).max())


def story(result: Result) -> dict[str, Any]:
    assert result.report.reconstruction is not None
    return dict(result.report.reconstruction)


def chain(between: str = "r = Relu(a)", **weights: Any) -> ModelProto:
    body = f"a = Conv<{SAME}>(x, wa, ba) {between} c = Conv<{SAME}>(r, wc, bc) s = Relu(c) {HEAD.format('s')}"
    return graph(IMAGE, body, **(ENDS | weights))


def stream() -> ModelProto:
    """Two branches are added to the stem; what ends in the stream has doubles in each of them."""
    body = f"""
        a = Conv<{SAME}>(x, wa, ba) r = Relu(a)
        b = Conv<{SAME}>(r, wb, bb) i = Relu(b) d = Conv<{SAME}>(i, wd, bd)
        e = Add(d, r) t = Relu(e) h = Conv<{SAME}>(t, wh, bh) k = Add(t, h) c = Conv<{SAME}>(k, wc, bc) s = Relu(c)
        {HEAD.format("s")}
    """
    model = graph(
        IMAGE, body, **ENDS, wb=(6, 8, 3, 3), bb=(6,), wd=(8, 6, 3, 3), bd=(8,), wh=(8, 8, 3, 3), bh=(8,)
    )  # fmt: skip
    return doubled(model, "wa", "ba", "wd", "bd", "wh", "bh")


def normalised() -> ModelProto:
    """The filters of the doubles are three times as large, their normalised outputs twice."""
    norm = "n = BatchNormalization<epsilon = 0.0>(a, gain, shift, mean, var) r = Relu(n)"
    model = chain(norm, gain=(8,), shift=(8,), mean=(8,), var=(8,))
    doubled(model, "wa", "ba", "mean", scale=3)
    doubled(model, "var", scale=9)
    return doubled(model, "gain", "shift")


def depthwise() -> ModelProto:
    between = f"q = Relu(a) d = Conv<{SAME}, group = 8>(q, wd, bd) r = Relu(d)"
    model = doubled(chain(between, wd=(8, 1, 3, 3), bd=(8,)), "wa", "ba")
    doubled(model, "wd", scale=0.5)
    return doubled(model, "bd", scale=1)


def flattened() -> ModelProto:
    body = f"a = Conv<{SAME}>(x, wa, ba) r = Relu(a) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) f = Flatten(p)"
    body += " y = Gemm<transB = 1>(f, wo, bo)"
    return doubled(graph(IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wo=(5, 72), bo=(5,)), "wa", "ba")


def gated() -> ModelProto:
    """Swish: as two operators, neither of which commutes with a scale."""
    return doubled(chain("z = Sigmoid(a) r = Mul(a, z)"), "wa", "ba", scale=1)


def perceptron() -> ModelProto:
    body = "m = MatMul(x, wa) a = Add(m, ba) r = Relu(a) y = Gemm(r, wo, bo)"
    model = graph("(float[N, 10] x) => (float[N, 5] y)", body, wa=(10, 8), ba=(8,), wo=(8, 5), bo=(5,))
    return doubled(doubled(model, "wa", axis=1), "ba")


def shared() -> ModelProto:
    """The reader's weight is read by two layers."""
    body = """
        a = Gemm(x, wa, ba) r = Relu(a) b = Gemm(x, wb, bb) s = Relu(b)
        c = MatMul(r, wo) d = MatMul(s, wo) y = Add(c, d)
    """
    model = graph("(float[N, 10] x) => (float[N, 5] y)", body, wa=(10, 8), ba=(8,), wb=(10, 8), bb=(8,), wo=(8, 5))
    return doubled(doubled(model, "wa", "wb", axis=1), "ba", "bb")


EXACT: dict[str, Callable[[], ModelProto]] = {
    "rectifier": lambda: doubled(chain(), "wa", "ba"),
    "any activation, no scale": lambda: doubled(chain("r = Tanh(a)"), "wa", "ba", scale=1),
    "stream": stream,
    "batch norm": normalised,
    "depthwise": depthwise,
    "flattened": flattened,
    "gate": gated,
    "perceptron": perceptron,
    "shared": shared,
}


@pytest.mark.parametrize("build", EXACT.values(), ids=EXACT)
def test_doubles_are_not_missed(build: Callable[[], ModelProto]) -> None:
    model = build()
    sliced, merged = both(model)
    assert apart(model, sliced) > 0.02
    assert apart(model, merged) < 1e-5
    found = story(merged)
    assert (found["method"], found["merged"]) == ("merge", 4)
    assert found["similarity"] == pytest.approx(1, abs=1e-4)
    assert merged.report.after == sliced.report.after


def test_the_proof_is_of_the_sliced_weights() -> None:
    sliced, merged = both(stream())
    assert merged.report.proof == sliced.report.proof


def weights(result: Result) -> dict[str, Any]:
    return {name: w.array() for name, w in result.model.weights.items()}


@pytest.mark.parametrize("between", ["r = Relu(a)", "r = Softmax<axis = 2>(a)"])
def test_nothing_alike_leaves_the_weights(between: str) -> None:
    """Filters of different inputs; and an operator behind which nothing is known."""
    model = chain(between, wa=np.eye(8, 27, dtype=np.float32).reshape(8, 3, 3, 3), ba=np.zeros(8, np.float32))
    if "Softmax" in between:
        doubled(model, "wa")
    sliced, merged = both(model)
    assert story(merged) == {"method": "merge", "merged": 0, "similarity": 0.0}
    for name, value in weights(sliced).items():
        np.testing.assert_array_equal(weights(merged)[name], value)


def test_opposites_are_not_merged() -> None:
    model = doubled(
        chain(ba=np.zeros(8, np.float32), wa=np.eye(8, 27, dtype=np.float32).reshape(8, 3, 3, 3)), "wa", scale=-1
    )
    assert story(both(model)[1])["merged"] == 0


def test_bias_counts() -> None:
    """Equal filters, another bias: less alike, and less is given."""
    model = doubled(chain(), "wa", scale=1)
    bias = array(model, "ba")
    bias[:4], bias[4:] = 2, -1
    replace(model, "ba", bias)
    assert story(both(model)[1])["similarity"] < 0.6


def test_only_the_groups_own_columns() -> None:
    """A grouped reader cannot give a column to a channel that another of its groups reads."""
    model = chain(f"q = Relu(a) d = Conv<{SAME}, group = 2>(q, wd, bd) r = Relu(d)", wd=(8, 4, 3, 3), bd=(8,))
    model = doubled(model, "wa", "ba")
    result = prune(model, ratio=0.5, fast=True, reconstruct="merge")
    assert result.report.proof.error <= result.report.proof.tolerance
    assert run(result.model.to_proto(), inputs(model, 2))[0].shape == (2, 5)


def unrunnable(*_: Any, **__: Any) -> Any:
    raise RuntimeFailure("no inputs here")


@pytest.mark.parametrize("replay", [False, True])
def test_merged_where_no_inputs_run(replay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting, "calibration", unrunnable)
    model = doubled(chain(), "wa", "ba")
    result = prune(model, plan=without(model)) if replay else prune(model, ratio=0.5)
    assert any("no inputs here" in n and "merged" in n for n in result.report.notes)
    assert story(result)["method"] == "merge"
    assert story(result)["merged"] >= 4


def test_not_merged_where_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting, "calibration", unrunnable)
    result = prune(chain(), ratio=0.5, criterion="wanda", scope="local", reconstruct="none")
    assert result.report.reconstruction is None
    assert not any("merged" in n for n in result.report.notes)


def test_combination() -> None:
    inner = np.array([[1.0, 0, 0.6], [0, 1, 0.8], [0.6, 0.8, 1]])
    shares, fit = combination(inner, np.array([0.6, 0.8, 1.0]))
    assert fit == pytest.approx(1)
    np.testing.assert_allclose(inner @ shares, [0.6, 0.8, 1], atol=1e-6)
    shares, fit = combination(np.eye(2), np.array([-0.5, 0.5]))
    np.testing.assert_allclose(shares, [0, 0.5], atol=1e-6)
    assert fit == pytest.approx(0.5)
    assert combination(np.eye(2), -np.ones(2) / 2)[1] == 0


def test_story_is_printed_in_one_line() -> None:
    result = both(doubled(chain(), "wa", "ba"))[1]
    out = io.StringIO()
    print_report(result.report, Console(file=out, width=160, markup=False, highlight=False))
    assert "merged 4 removed units into kept ones, which are 1.00 similar on average" in out.getvalue()
    assert json.loads(json.dumps(to_json(result.report)))["reconstruction"]["method"] == "merge"
