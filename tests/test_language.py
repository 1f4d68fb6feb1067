"""What of a language model is pruned and what is not, as the guide says it (`onnxprune help large-models`)."""

from __future__ import annotations

import numpy as np
from graphs import graph, shapes
from onnx import ModelProto

from onnxprune.api import inspect, prune

HEADS = {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "wo": (32, 32)}
HIDDEN = {"w1": (32, 64), "w2": (64, 16)}


def decoder(cached: bool, turned: str = "") -> ModelProto:
    """Four heads of eight and a hidden layer. cached: keys and values of before are inputs, those of now outputs.
    turned: an operator between the queries and their product with the keys."""
    past, now = ("float[N,4,P,8] pk, float[N,4,P,8] pv", "float[N,4,S,8] kk, float[N,4,S,8] vv")
    signature = f"(float[N,T,32] x{f', {past}' if cached else ''}) => (float[N,T,16] y{f', {now}' if cached else ''})"
    join = "kk = Concat<axis=2>(pk, kt) vv = Concat<axis=2>(pv, vt)" if cached else "kk = Identity(kt) vv = Identity(vt)"
    body = f"""
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) split = Constant<value_ints=[0,0,4,8]>()
        q4 = Reshape(q, split) k4 = Reshape(k, split) v4 = Reshape(v, split)
        qs = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,1,3]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)
        {turned or 'qt = Identity(qs)'} {join} kx = Transpose<perm=[0,1,3,2]>(kk) m = MatMul(qt, kx) w = Softmax(m)
        o = MatMul(w, vv) ot = Transpose<perm=[0,2,1,3]>(o) flat = Constant<value_ints=[0,0,32]>()
        of = Reshape(ot, flat) z = MatMul(of, wo) t = Add(z, x) u = MatMul(t, w1) r = Relu(u) y = MatMul(r, w2)
    """
    return graph(signature, body, **HEADS, **HIDDEN)


def test_heads_go_without_a_cache_and_stay_with_one() -> None:
    free, held = (shapes(prune(decoder(cached), ratio=0.5, fast=True)) for cached in (False, True))
    assert free["wq"] == (32, 8), "two heads of four stay, and four channels of eight in each"
    assert [held[w] for w in HEADS] == [*HEADS.values()]
    assert free["w1"] == held["w1"] == (32, 32)


def test_the_ratio_is_of_the_channels_alone_without_heads() -> None:
    assert shapes(prune(decoder(False), ratio=0.5, fast=True, heads=False))["wq"] == (32, 16)


def test_weights_of_four_bits_go_by_rows_and_what_they_read_by_blocks() -> None:
    random = np.random.default_rng(0)
    model = graph(
        "(float[N,16] x) => (float[N,4] y)",
        "a = MatMul(x, w0) b = com.microsoft.MatMulNBits<K=32, N=64, bits=4, block_size=16>(a, q, s) c = Relu(b) "
        "d = MatMul(c, w1) y = MatMul(d, w2)",
        w0=(16, 32), q=random.integers(0, 255, (64, 2, 8), np.uint8), s=random.random((128,), np.float32), w1=(64, 24),
        w2=(24, 4),
    )  # fmt: skip
    found = inspect(model)
    assert [g.name for g in found.groups] == ["w0[1]", "q[0]", "w1[1]"]
    after = shapes(prune(model, ratio=0.5, fast=True))
    assert (after["w0"], after["q"], after["s"], after["w1"]) == ((16, 16), (32, 1, 8), (32,), (32, 12))


def test_a_rotation_as_one_operator_holds_pairs_together() -> None:
    turned = "at = Constant<value = int64[1,1] {0}>() qt = com.microsoft.RotaryEmbedding(qs, at, cos, sin)"
    model = decoder(False, turned)
    tables = graph("(float[1] x) => (float[1] y)", "y = Relu(x)", cos=(9, 4), sin=(9, 4)).graph.initializer
    model.graph.initializer.extend(tables)
    result = prune(model, ratio=0.5, fast=True, input_shapes={"x": (1, 1, 32)})
    assert [shapes(result)[w] for w in ("wq", "wk")] == [(32, 8)] * 2
    assert shapes(result)["cos"] == (9, 2)
    assert shapes(result)["w1"] == (32, 32)
