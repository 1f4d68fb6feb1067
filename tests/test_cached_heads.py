"""Queries that share a key, with a KV cache as input and output: as many of each key's go, and the rest computes the same.

The masked original is made by hand here: the rows of the output projection that belong to removed heads are zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import array, graph, replace, run
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import NothingToPrune, prune

WIDTH = 12
SPLIT = """q0 = MatMul(x, wq) q1 = Reshape(q0, to_q) q = Transpose<perm = [0, 2, 1, 3]>(q1)
k0 = MatMul(x, wk) k1 = Reshape(k0, to_k) k2 = Transpose<perm = [0, 2, 1, 3]>(k1)
v0 = MatMul(x, wv) v1 = Reshape(v0, to_k) v2 = Transpose<perm = [0, 2, 1, 3]>(v1) """
GROWN = "K = Concat<axis = 2>(pk, k2) V = Concat<axis = 2>(pv, v2) "
ROTATED = """qa, qb = Split<axis = 3, num_outputs = 2>(q) qn = Neg(qb) qt = Concat<axis = 3>(qn, qa) qc = Mul(q, cos) qs = Mul(qt, sin)
qr = Add(qc, qs) ka, kb = Split<axis = 3, num_outputs = 2>(k2) kn = Neg(kb) kt = Concat<axis = 3>(kn, ka) kc = Mul(k2, cos)
ks = Mul(kt, sin) kr = Add(kc, ks) K = Concat<axis = 2>(pk, kr) V = Concat<axis = 2>(pv, v2) """
REPEATED = """Ku = Unsqueeze(K, two) Ke = Expand(Ku, more) Kr = Reshape(Ke, apart)
Vu = Unsqueeze(V, two) Ve = Expand(Vu, more) Vr = Reshape(Ve, apart) """
WEIGHED = """t = Transpose<perm = [0, 1, 3, 2]>({K}) s = MatMul({q}, t) p = Softmax<axis = -1>(s) o = MatMul(p, {V})
b = Transpose<perm = [0, 2, 1, 3]>(o) f = Reshape(b, flat) y = MatMul(f, wo)"""
FOLDED = """g = Reshape(q, groups) Ku = Unsqueeze(K, two) t = Transpose<perm = [0, 1, 2, 4, 3]>(Ku) s = MatMul(g, t) p = Softmax<axis = -1>(s)
Vu = Unsqueeze(V, two) o = MatMul(p, Vu) r = Reshape(o, apart) b = Transpose<perm = [0, 2, 1, 3]>(r) f = Reshape(b, flat) y = MatMul(f, wo)"""
APART = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
CACHE = "(float[N, S, 12] x, float[N, {g}, P, {d}] pk, float[N, {g}, P, {d}] pv) => (float[N, S, 5] y, float[N, {g}, T, {d}] K, float[N, {g}, T, {d}] V)"
GENAI = "(float[N, S, 12] x, float[N, {g}, P, {d}] pk, float[N, {g}, P, {d}] pv, int32[N] sl, int32 ts) => (float[N, S, 5] y, float[N, {g}, T, {d}] K, float[N, {g}, T, {d}] V)"
KINDS: dict[str, tuple[str, str, int]] = {
    "expand": (CACHE, SPLIT + GROWN + REPEATED + WEIGHED.format(q="q", K="Kr", V="Vr"), 18),
    "expand, rotated": (CACHE, SPLIT + ROTATED + REPEATED + WEIGHED.format(q="qr", K="Kr", V="Vr"), 18),
    "groups": (CACHE, SPLIT + GROWN + FOLDED, 18),
    "Attention, heads apart": (CACHE, SPLIT + "o, K, V = Attention<is_causal = 1>(q, k2, v2, , pk, pv) b = Transpose<perm = [0, 2, 1, 3]>(o) f = Reshape(b, flat) y = MatMul(f, wo)", 23),
    "Attention": (CACHE, APART + "o, K, V = Attention<q_num_heads = {h}, kv_num_heads = {g}>(q, k, v, , pk, pv) y = MatMul(o, wo)", 24),
    "GroupQueryAttention": (GENAI, APART + "o, K, V = com.microsoft.GroupQueryAttention<num_heads = {h}, kv_num_heads = {g}>(q, k, v, pk, pv, sl, ts) y = MatMul(o, wo)", 17),
    "GroupQueryAttention, rotary": (GENAI, APART + "o, K, V = com.microsoft.GroupQueryAttention<num_heads = {h}, kv_num_heads = {g}, do_rotary = 1>(q, k, v, pk, pv, sl, ts, cosines, sines) y = MatMul(o, wo)", 17),
    "GroupQueryAttention, packed": (GENAI, "q = MatMul(x, wqkv) o, K, V = com.microsoft.GroupQueryAttention<num_heads = {h}, kv_num_heads = {g}, do_rotary = 1>(q, , , pk, pv, sl, ts, cosines, sines) y = MatMul(o, wo)", 17),
    "LinearAttention": ("(float[N, S, 12] x, float[N, {g}, {d}, {d}] pk) => (float[N, S, 5] y, float[N, {g}, {d}, {d}] K)", APART + 'o, K = com.microsoft.LinearAttention<q_num_heads = {h}, kv_num_heads = {g}, update_rule = "linear">(q, k, v, pk) y = MatMul(o, wo)', 17),
    "RotaryEmbedding": (CACHE, SPLIT + "qr = RotaryEmbedding(q, cosines, sines, steps) kr = RotaryEmbedding(k2, cosines, sines, steps) K = Concat<axis = 2>(pk, kr) V = Concat<axis = 2>(pv, v2) " + REPEATED + WEIGHED.format(q="qr", K="Kr", V="Vr"), 23),
}  # fmt: skip


def network(kind: str, shared: int, queries: int, size: int, seed: int = 0) -> ModelProto:
    """`queries` heads of `size` channels on each of `shared` keys and values."""
    signature, body, opset = KINDS[kind]
    heads = shared * queries
    if shared == 1:
        body = body.replace(REPEATED, "").replace("Kr)", "K)").replace("Vr)", "V)")
    known = {
        "wq": (WIDTH, heads * size), "wk": (WIDTH, shared * size), "wv": (WIDTH, shared * size), "wo": (heads * size, 5),
        "wqkv": (WIDTH, (heads + 2 * shared) * size), "to_q": np.array([0, 0, heads, size]),
        "to_k": np.array([0, 0, shared, size]), "two": np.array([2]), "more": np.array([1, 1, queries, 1, 1]),
        "apart": np.array([0, heads, -1, size]), "flat": np.array([0, 0, heads * size]),
        "groups": np.array([0, shared, queries, -1, size]), "cos": (1, 1, 1, size), "sin": (1, 1, 1, size),
        "cosines": (64, size // 2), "sines": (64, size // 2), "steps": np.arange(6).reshape(2, 3),
    }  # fmt: skip
    names = {"h": heads, "g": shared, "d": size}
    text = body.format(**names)
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    weights: dict[str, Any] = {name: value for name, value in known.items() if name in words}
    return graph(signature.format(**names), text, opset, seed, **weights)


def feeds(model: ModelProto, past: int, steps: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(past)
    sizes = {"N": 1 if any(i.name == "sl" for i in model.graph.input) else 2, "S": steps, "P": past}
    out = {}
    for i in model.graph.input:
        shape = [d.dim_value or sizes[d.dim_param] for d in i.type.tensor_type.shape.dim]
        if i.name == "sl":
            out[i.name] = np.full(shape, past + steps - 1, np.int32)
        elif i.name == "ts":
            out[i.name] = np.array(past + steps, np.int32)
        else:
            out[i.name] = random.standard_normal(shape).astype(np.float32)
    return out


def kept_heads(dense: NDArray[Any], small: NDArray[Any], size: int) -> list[int]:
    """Which runs of `size` rows of the output projection are in the smaller one."""
    runs = {row.tobytes(): k for k, row in enumerate(dense.reshape(-1, size * dense.shape[1]))}
    return [runs[row.tobytes()] for row in small.reshape(-1, size * dense.shape[1])]


@pytest.mark.parametrize("sizes", [(2, 4, 8), (1, 8, 16), (3, 2, 8)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_queries_of_a_cached_key_go(kind: str, sizes: tuple[int, int, int]) -> None:
    shared, queries, size = sizes
    if "do_rotary" in KINDS[kind][1]:
        size = 16  # of which the kernel takes multiples
    model = network(kind, shared, queries, size)
    result = prune(model, ratio=0.5, fast=True, seed=1)
    after = result.model.to_proto()
    proof = result.report.proof
    assert proof.error <= proof.tolerance
    kept = kept_heads(array(model, "wo"), array(after, "wo"), size)
    assert np.bincount(np.array(kept) // queries, minlength=shared).tolist() == [queries // 2] * shared
    masked = ModelProto()
    masked.CopyFrom(model)
    rows = array(model, "wo").reshape(-1, size, 5)
    rows[[h for h in range(shared * queries) if h not in kept]] = 0
    replace(masked, "wo", rows.reshape(-1, 5))
    given = feeds(model, 4, 3)
    for expected, got in zip(run(masked, given), run(after, given), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_without_heads_queries_of_a_cached_key_stay() -> None:
    model = network("expand", 2, 4, 8)
    with pytest.raises(NothingToPrune, match="tied to an axis of fixed size"):
        prune(model, ratio=0.5, fast=True, heads=False)
