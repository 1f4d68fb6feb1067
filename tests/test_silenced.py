"""The oracle of the random graphs: it agrees with what is right, and sees what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as changed
from typing import Any

import numpy as np
import pytest
from graphs import array, graph, replace
from onnx import ModelProto
from silenced import Differs, assignments, check, runs, symbols

from onnxprune.api import Result, prune

TOKENS = "(float[N,S,12] x) => (float[N,S,5] y)"
PLAIN = "a = MatMul(x, wa) b = Add(a, ba) c = Sigmoid(b) d = MatMul(c, wd) e = Relu(d) y = MatMul(e, wy)"
WEIGHTS: dict[str, Any] = {"wa": (12, 16), "ba": (16,), "wd": (16, 8), "wy": (8, 5)}
ATTENTION = """
    q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv) s = Constant<value_ints=[0,0,2,8]>()
    q1 = Reshape(q0, s) k1 = Reshape(k0, s) v1 = Reshape(v0, s)
    q = Transpose<perm=[0,2,1,3]>(q1) k = Transpose<perm=[0,2,3,1]>(k1) v = Transpose<perm=[0,2,1,3]>(v1)
    p = MatMul(q, k) w = Softmax<axis=-1>(p) o0 = MatMul(w, v) o1 = Transpose<perm=[0,2,1,3]>(o0)
    f = Constant<value_ints=[0,0,16]>() o = Reshape(o1, f) y = MatMul(o, wy)
"""
HEADS: dict[str, Any] = {"wq": (12, 16), "wk": (12, 16), "wv": (12, 16), "wy": (16, 5)}
NORMED = "a = MatMul(x, wa) n = LayerNormalization(a, gain, bias) y = MatMul(n, wy)"
NORMS: dict[str, Any] = {"wa": (12, 16), "gain": (16,), "bias": (16,), "wy": (16, 5)}


def made(body: str, weights: dict[str, Any], **options: Any) -> tuple[ModelProto, Result]:
    model = graph(TOKENS, body, opset=18, **weights)
    for node in model.graph.node:
        node.name = node.output[0]
    return model, prune(model, **{"ratio": 0.5, "fast": True, "residual": "all"} | options)


@pytest.mark.parametrize(
    ("body", "weights", "verdict"),
    [(PLAIN, WEIGHTS, "agrees"), (ATTENTION, HEADS, "agrees"), (NORMED, NORMS, "statistics")],
    ids=["plain", "attention", "normalised"],
)
def test_what_is_right(body: str, weights: dict[str, Any], verdict: str) -> None:
    model, result = made(body, weights)
    found = check(model, result.model.to_proto(), result.plan)
    assert (found.verdict, found.runs) == (verdict, 10)


def rolled(model: ModelProto, name: str, axis: int) -> None:
    replace(model, name, np.roll(array(model, name), 1, axis))


WRONG: dict[str, Callable[[ModelProto], None]] = {
    "rows": lambda model: rolled(model, "wd", 0),
    "columns": lambda model: rolled(model, "wa", 1),
    "bias": lambda model: rolled(model, "ba", 0),
    "nothing there": lambda model: replace(model, "wy", np.zeros_like(array(model, "wy"))),
    "no number": lambda model: replace(model, "ba", array(model, "ba") + np.float32(np.nan)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_slice(wrong: str) -> None:
    model, result = made(PLAIN, WEIGHTS)
    pruned = result.model.to_proto()
    WRONG[wrong](pruned)
    with pytest.raises(Differs):
        check(model, pruned, result.plan)


def test_a_plan_of_other_units() -> None:
    model, result = made(ATTENTION, HEADS, heads=False)
    groups = {n: tuple(changed(r, remove=tuple((i + 1) % 16 for i in r.remove)) for r in rs)
              for n, rs in result.plan.groups.items()}  # fmt: skip
    with pytest.raises(Differs):
        check(model, result.model.to_proto(), changed(result.plan, groups=groups))


def test_a_size_that_was_written_down() -> None:
    """Ten positions where there may be fewer; and a batch of two where there are others."""
    body = "z = Constant<value_ints=[0]>() n = Constant<value_ints=[10]>() o = Constant<value_ints=[1]>()"
    model = graph("(float[N,S,12] x) => (float[N,T,5] y)",
                  f"{body} f = Slice(x, z, n, o) a = MatMul(f, wa) r = Relu(a) y = MatMul(r, wy)", wa=(12, 16), wy=(16, 5))  # fmt: skip
    result = prune(model, ratio=0.5, fast=True)
    pruned = result.model.to_proto()
    assert check(model, pruned, result.plan).verdict == "agrees"
    for shape, says in (([-1, 10, 8], "does not"), ([2, -1, 8], "does not|shapes"), ([0, 10, 8], "does not")):
        wrong = ModelProto()
        wrong.CopyFrom(pruned)
        relu = next(n for n in wrong.graph.node if n.op_type == "Relu")
        baked = graph(TOKENS, "s = Identity(shape)", shape=np.array(shape))
        wrong.graph.initializer.append(baked.graph.initializer[0])
        at = [n.op_type for n in wrong.graph.node].index("Relu")
        new = graph(TOKENS, f"{relu.input[0]}_baked = Reshape({relu.input[0]}, shape)").graph.node[0]
        relu.input[0] = new.output[0]
        wrong.graph.node.insert(at, new)
        with pytest.raises(Differs, match=says):
            check(model, wrong, result.plan)


def test_sizes_of_every_kind() -> None:
    model = graph("(float[A,S,4] x, float[B,T,4] e) => (float[A,S,4] y, float[B,T,4] z)", "y = Relu(x) z = Relu(e)")
    assert symbols(model) == {"A": True, "S": False, "B": True, "T": False}
    found = list(assignments(model, 50))
    assert len({tuple(s.values()) for s in found}) > 30
    for fits in (
        lambda s: s["A"] == s["B"], lambda s: s["A"] != s["B"], lambda s: len({*s.values()}) == 1, lambda s: s["S"] < 8,
        lambda s: s["S"] > 10, lambda s: s["T"] % 12 == 0, lambda s: s["S"] == 1, lambda s: s["B"] % s["A"],
    ):  # fmt: skip
        assert any(fits(s) for s in found)
    assert runs(model)
