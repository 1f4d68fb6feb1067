"""Heads in other bases: the network is the same, and what goes of a head costs less."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from graphs import array, graph, inputs, replace
from numpy.typing import NDArray
from onnx import ModelProto
from test_reconstruct import without

import onnxprune
from onnxprune.fit import bases, turned
from onnxprune.fit.pairs import Pairs
from onnxprune.planning import removed_by
from onnxprune.trace import Groups, build

Array = NDArray[Any]
HEADS = """
    shape = Constant<value_ints=[0, 0, 4, 8]>() flat = Constant<value_ints=[0, 0, 32]>() size = Constant<value_float=2.8>()
    q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, shape) q = Transpose<perm=[0,2,1,3]>(q2)
    k0 = MatMul(x, wk) k1 = Add(k0, bk) k2 = Reshape(k1, shape) k = Transpose<perm=[0,2,3,1]>(k2)
    v0 = MatMul(x, wv) v1 = Add(bv, v0) v2 = Reshape(v1, shape) v = Transpose<perm=[0,2,1,3]>(v2)
    {between}
    s = MatMul({q}, k) d = Div(s, size) p = Softmax(d) t0 = MatMul(p, v) {after}
    t2 = Transpose<perm=[0,2,1,3]>({t}) t = Reshape(t2, flat) y0 = MatMul(t, wo) y = Add(y0, bo)
"""
WEIGHTS: dict[str, tuple[int, ...]] = {
    "wq": (16, 32), "bq": (32,), "wk": (16, 32), "bk": (32,), "wv": (16, 32), "bv": (32,), "wo": (32, 16), "bo": (16,),
}  # fmt: skip
ONE = ("onnx", "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) y = MatMul(t, wo)")  # fmt: skip
MHA = ("com.microsoft", "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v) y = MatMul(t, wo)")  # fmt: skip
BIASED = MHA[1].replace("(q, k, v)", "(q, k, v, bqkv)")
PACKED = """
    shape = Constant<value_ints=[0, 0, 3, 4, 8]>() flat = Constant<value_ints=[0, 0, 32]>()
    n0 = Constant<value_int=0>() n1 = Constant<value_int=1>() n2 = Constant<value_int=2>()
    p0 = MatMul(x, wp) p1 = Add(p0, bp) p2 = Reshape(p1, shape) p3 = Transpose<perm=[2,0,3,1,4]>(p2)
    q = Gather(p3, n0) k0 = Gather(p3, n1) v = Gather(p3, n2) k = Transpose<perm=[0,1,3,2]>(k0)
    s = MatMul(q, k) p = Softmax(s) t0 = MatMul(p, v) t1 = Transpose<perm=[0,2,1,3]>(t0) t = Reshape(t1, flat)
    y = MatMul(t, wo)
"""
SHARED = ("onnx", "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Attention<q_num_heads=8, kv_num_heads=4>(q, k, v) y = MatMul(t, wo)")  # fmt: skip


def heads(between: str = "", q: str = "q", after: str = "", t: str = "t0") -> ModelProto:
    """Attention in single operators."""
    return made(HEADS.format(between=between, q=q, after=after, t=t), WEIGHTS)


def made(body: str, weights: dict[str, tuple[int, ...]], opset: int = 18) -> ModelProto:
    return graph("(float[N,6,16] x) => (float[N,6,16] y)", body, opset=opset, **weights)


def fused(kind: tuple[str, str], queries: int = 32) -> ModelProto:
    weights = {"wq": (16, queries), "wk": (16, 32), "wv": (16, 32), "wo": (queries, 16)}
    return made(kind[1], weights, 23 if kind[0] == "onnx" else 18)


def half(dense: ModelProto) -> tuple[Groups, Any]:
    """The groups, and what is kept where half of every head goes."""
    result = onnxprune.prune(dense, ratio=0.5, fast=True, heads=False)
    groups = build(onnxprune.api.trace(dense))
    return groups, groups.kept_ids(removed_by(groups, result.plan))


CASES = {
    "single operators": (heads(), 8, 4),
    "opset 23": (fused(ONE), 8, 4),
    "com.microsoft": (fused(MHA), 8, 4),
    "a key for two queries": (fused(SHARED, 64), 8, 4),
    "one matrix for all": (made(PACKED, {"wp": (16, 96), "bp": (96,), "wo": (32, 16)}), 8, 4),
}


@pytest.mark.parametrize(("dense", "pairs", "values"), CASES.values(), ids=CASES)
def test_the_network_computes_the_same_in_other_bases(dense: ModelProto, pairs: int, values: int) -> None:
    groups, kept = half(dense)
    found = list(Pairs(groups, kept))
    assert len(found) == pairs
    assert sum(p.reader is not None for p in found) == values
    other = turned(groups, kept, [inputs(dense, 64, 1), inputs(dense, 32, 2)], 1, ("cpu",), 0)
    changed = {n for n, w in other.model.weights.items() if w is not groups.trace.model.weights[n]}
    assert "wo" in changed
    assert changed & {"wv", "wp"}
    feeds = inputs(dense, 16, 3)
    one, two = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for m in (dense, other.model.to_proto())
    )
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4 * float(np.abs(one).max()))


@pytest.mark.parametrize("dense", [c[0] for c in CASES.values()], ids=CASES)
def test_less_is_lost_in_them(dense: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    calib = [inputs(dense, 96, 7)]
    found = onnxprune.prune(dense, ratio=0.5, calib=calib, scope="local", criterion="l2", heads=False)
    error, _ = without(dense, found)
    monkeypatch.setattr(bases, "LEAST", 0.0)
    plain, _ = without(dense, onnxprune.prune(dense, plan=found.plan, calib=calib))
    assert error < 0.9 * plain




TOLD_APART = {
    "an activation of the values": (HEADS.format(between="", q="q", after="t1 = Relu(t0)", t="t1"), 4, 0),
    "a scale of each channel": (HEADS.format(between="qs = Mul(q, each)", q="qs", after="", t="t0"), 4, 4),
    "biases inside the operator": (BIASED, 0, 0),
    "an offset behind the heads": (HEADS.format(between="", q="q", after="t1 = Add(t0, each)", t="t1"), 4, 0),
}


@pytest.mark.parametrize(("body", "pairs", "values"), TOLD_APART.values(), ids=TOLD_APART)
def test_channels_that_something_tells_apart_stay_as_they_are(body: str, pairs: int, values: int) -> None:
    """Rotary embeddings, norms of queries and keys, and gates are of this kind."""
    found = list(Pairs(*half(made(body, WEIGHTS | {"each": (8,), "bqkv": (96,)}))))
    assert len(found) == pairs
    assert sum(p.reader is not None for p in found) == values


def test_a_head_that_stays_whole_stays_as_it_is() -> None:
    dense = heads()
    groups = build(onnxprune.api.trace(dense))
    everything = np.ones(len(groups.classes), bool)
    assert list(Pairs(groups, everything)) == []
    assert turned(groups, everything, [inputs(dense, 8, 1)], 0, ("cpu",), 0) is groups.trace


def test_the_basis_is_that_of_what_is_read() -> None:
    """Values of rank two in eight channels: with four of them left nothing is lost."""
    dense = fused(ONE)
    wv = array(dense, "wv").reshape(16, 4, 8)
    rng = np.random.default_rng(5)
    low = np.einsum("ihr,hrd->ihd", wv[:, :, :2], rng.standard_normal((4, 2, 8)))
    replace(dense, "wv", low.reshape(16, 32).astype(np.float32))
    wq = array(dense, "wq").reshape(16, 4, 8)
    replace(dense, "wq", np.einsum("ihr,hrd->ihd", wq[:, :, :2], rng.standard_normal((4, 2, 8))).reshape(16, 32).astype(np.float32))
    result = onnxprune.prune(dense, ratio=0.5, calib=[inputs(dense, 96, 7)], scope="local", criterion="l2", heads=False)
    error, sliced = without(dense, result)
    assert error < 1e-3
    assert sliced > 0.1
