"""Whole heads of a KV cache: past and present lose them together with the keys, values and queries that belong to them.

The masked original is made by hand here: the rows of the output projection that belong to removed heads are zero, and
the past holds whatever it does in these heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import array, graph, replace, run
from numpy.typing import NDArray
from onnx import ModelProto

import onnxprune
from onnxprune import Gates, prune
from onnxprune.cli import main
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.planning import Plan
from onnxprune.trace import resizing

WIDTH = 12
SPLIT = """q0 = MatMul(x, wq) q1 = Reshape(q0, to_q) q = Transpose<perm = [0, 2, 1, 3]>(q1)
k0 = MatMul(x, wk) k1 = Reshape(k0, to_k) k = Transpose<perm = [0, 2, 1, 3]>(k1)
v0 = MatMul(x, wv) v1 = Reshape(v0, to_k) v = Transpose<perm = [0, 2, 1, 3]>(v1) """
GROWN = "K = Concat<axis = 2>(pk, k) V = Concat<axis = 2>(pv, v) "
WEIGHED = """t = Transpose<perm = [0, 1, 3, 2]>({K}) s = MatMul(q, t) p = Softmax<axis = -1>(s) o = MatMul(p, {V})
b = Transpose<perm = [0, 2, 1, 3]>(o) f = Reshape(b, flat) y = MatMul(f, wo)"""
REPEATED = """Ku = Unsqueeze(K, two) Ke = Expand(Ku, more) Kr = Reshape(Ke, apart)
Vu = Unsqueeze(V, two) Ve = Expand(Vu, more) Vr = Reshape(Ve, apart) """
APART = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
NORMED = """q0 = MatMul(x, wq) q1 = Reshape(q0, in_heads) q2 = SimplifiedLayerNormalization<axis = -1>(q1, gain) q = Reshape(q2, one_q)
k0 = MatMul(x, wk) k1 = Reshape(k0, in_heads) k2 = SimplifiedLayerNormalization<axis = -1>(k1, gain) k = Reshape(k2, one_k) v = MatMul(x, wv) """
WRITTEN_OUT = SPLIT.replace("k1 = Reshape(k0, to_k)", "ka = Reshape(k0, to_k) ks = Mul(ka, ka) km = ReduceMean(ks, last) kr = Sqrt(km) k1 = Div(ka, kr)")
PAST = "float[N, {g}, P, {d}] pk, float[N, {g}, P, {d}] pv"
CACHE = f"(float[N, S, 12] x, {PAST}) => (float[N, S, 5] y, float[N, {{g}}, T, {{d}}] K, float[N, {{g}}, T, {{d}}] V)"
GENAI = CACHE.replace(") =>", ", int32[N] sl, int32 ts) =>")
MERGED = CACHE.replace(") =>", ", bool once) =>")
SCORES = WEIGHED.format(K="K", V="V")
KINDS: dict[str, tuple[str, str, int]] = {
    "decomposed": (CACHE, SPLIT + GROWN + SCORES, 18),
    "decomposed, keys shared": (CACHE, SPLIT + GROWN + REPEATED + WEIGHED.format(K="Kr", V="Vr"), 18),
    "written in place": (CACHE.replace("T,", "P,"), SPLIT + "".join(
        f"{p}t = Transpose<perm = [2, 0, 1, 3]>(p{p}) {p}n = Transpose<perm = [2, 0, 1, 3]>({p}) {p}w = ScatterND({p}t, at, {p}n) "
        f"{p.upper()} = Transpose<perm = [1, 2, 0, 3]>({p}w) " for p in "kv") + SCORES, 18),
    "merged": (MERGED, SPLIT + """K, V = If (once) <
        then_branch = first () => (float[N, {g}, T, {d}] ka, float[N, {g}, T, {d}] va) { ka = Identity(k) va = Identity(v) },
        else_branch = later () => (float[N, {g}, T, {d}] kb, float[N, {g}, T, {d}] vb) { kb = Concat<axis = 2>(pk, k) vb = Concat<axis = 2>(pv, v) }>
        """ + SCORES, 18),
    "MultiHeadAttention": (CACHE, APART + "o, K, V = com.microsoft.MultiHeadAttention<num_heads = {h}>(q, k, v, , , , pk, pv) y = MatMul(o, wo)", 17),
    "GroupQueryAttention": (GENAI, APART + "o, K, V = com.microsoft.GroupQueryAttention<num_heads = {h}, kv_num_heads = {g}>(q, k, v, pk, pv, sl, ts) y = MatMul(o, wo)", 17),
    "GroupQueryAttention, norms inside heads": (GENAI, NORMED + "o, K, V = com.microsoft.GroupQueryAttention<num_heads = {h}, kv_num_heads = {g}>(q, k, v, pk, pv, sl, ts) y = MatMul(o, wo)", 17),
    "Attention, norms written out": (CACHE, WRITTEN_OUT + "o, K, V = Attention(q, k, v, , pk, pv) b = Transpose<perm = [0, 2, 1, 3]>(o) f = Reshape(b, flat) y = MatMul(f, wo)", 23),
    "Attention": (CACHE, APART + "o, K, V = Attention<q_num_heads = {h}, kv_num_heads = {g}>(q, k, v, , pk, pv) y = MatMul(o, wo)", 23),
    "Attention, heads apart": (CACHE, SPLIT + "o, K, V = Attention(q, k, v, , pk, pv) b = Transpose<perm = [0, 2, 1, 3]>(o) f = Reshape(b, flat) y = MatMul(f, wo)", 23),
}  # fmt: skip
SHARED = {"decomposed, keys shared", "GroupQueryAttention", "GroupQueryAttention, norms inside heads", "Attention", "Attention, heads apart"}


def network(kind: str, shared: int = 4, queries: int = 1, size: int = 8, seed: int = 0) -> ModelProto:
    """`queries` heads of `size` channels on each of `shared` keys and values."""
    signature, body, opset = KINDS[kind]
    heads = shared * queries
    known: dict[str, Any] = {
        "wq": (WIDTH, heads * size), "wk": (WIDTH, shared * size), "wv": (WIDTH, shared * size), "wo": (heads * size, 5),
        "to_q": np.array([0, 0, heads, size]), "to_k": np.array([0, 0, shared, size]), "two": np.array([2]),
        "more": np.array([1, 1, queries, 1, 1]), "apart": np.array([0, heads, -1, size]), "flat": np.array([0, 0, heads * size]),
        "one_q": np.array([0, -1, heads * size]), "one_k": np.array([0, -1, shared * size]), "in_heads": np.array([0, -1, size]), "gain": (size,), "last": np.array([-1]),
        "at": np.arange(3)[:, None],
    }  # fmt: skip
    for name, value in (("{h}", heads), ("{g}", shared), ("{d}", size)):
        signature, body = signature.replace(name, str(value)), body.replace(name, str(value))
    return graph(signature, body, opset, seed, **{n: v for n, v in known.items() if n in body})


def feeds(kind: str, shared: int, size: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(7)
    batch = 1 if KINDS[kind][0] == GENAI else 2
    past = (batch, shared, 4, size)
    own: dict[str, Any] = {"x": (batch, 3, WIDTH), "pk": past, "pv": past}
    given = {name: random.standard_normal(shape).astype(np.float32) for name, shape in own.items()}
    if kind == "merged":
        given["once"] = np.array(False)
    if KINDS[kind][0] == GENAI:
        given |= {"sl": np.array([6], np.int32), "ts": np.array(7, np.int32)}
    return given


def heads_left(before: ModelProto, after: ModelProto, size: int) -> list[int]:
    """The heads whose keys are still there, by the columns of their weights."""
    old, new = (np.split(array(m, "wk"), array(m, "wk").shape[1] // size, 1) for m in (before, after))
    return [next(k for k, own in enumerate(old) if np.array_equal(own, head)) for head in new]


@pytest.mark.parametrize(("shared", "queries", "size"), [(4, 1, 8), (5, 3, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_past_and_present_lose_the_same_heads(kind: str, shared: int, queries: int, size: int) -> None:
    queries = queries if kind in SHARED else 1
    model = network(kind, shared, queries, size)
    result = prune(model, fast=True, ratio=0.4, kv_heads=True, input_shapes={"x": [0, 3, 0]} if "place" in kind else {})
    small = result.model.to_proto()
    kept = heads_left(model, small, size)
    assert 1 <= len(kept) < shared
    gone = np.setdiff1d(np.arange(shared), kept)
    out = array(model, "wo").reshape(shared, -1, 5)
    out[gone] = 0
    masked = onnx.ModelProto.FromString(model.SerializeToString())
    replace(masked, "wo", out.reshape(-1, 5))
    given = feeds(kind, shared, size)
    wanted = run(masked, given)
    got = run(small, {n: x[:, kept] if n in ("pk", "pv") else x for n, x in given.items()})
    np.testing.assert_allclose(got[0], wanted[0], atol=1e-5)
    for ours, theirs in zip(got[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(ours, theirs[:, kept], atol=1e-5)
    heads = {c.name: (c.before[1], c.after[1]) for c in result.report.caches}
    assert heads == dict.fromkeys(("pk", "pv", "K", "V"), (shared, len(kept)))
    assert "pk, pv: [" in result.summary()


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_flag_the_reason_names_it(kind: str) -> None:
    found = onnxprune.inspect(network(kind)).frozen
    assert any("--kv-heads" in one.reason for one in found if one.parameter in ("wk", "wv"))


def test_a_plan_says_it_itself(tmp_path: Path) -> None:
    """It is replayed, verified and written without the flag."""
    dense, out, plan, again = (tmp_path / name for name in ("dense.onnx", "out.onnx", "plan.json", "again.onnx"))
    onnx.save(network("GroupQueryAttention", 4, 2), dense)
    assert main([str(dense), str(out), "--fast", "--ratio", "0.5", "--kv-heads", "--save-plan", str(plan), "-q"]) == 0
    assert json.loads(plan.read_text())["kv_heads"] is True
    assert main([str(dense), str(again), "--fast", "--plan", str(plan), "-q"]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert main(["verify", str(dense), str(out), str(plan), "-q"]) == 0
    assert "kv_heads" not in onnxprune.plan(dense, ratio=0.5, fast=True).to_json()
    bad = onnx.load(out)
    replace(bad, "wk", np.roll(array(bad, "wk"), 8, 1))
    with pytest.raises(CheckFailed, match="order"):
        onnxprune.verify(dense, bad, Plan.load(plan))
    wide = onnx.load(out)
    wide.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 4
    with pytest.raises(CheckFailed):
        onnxprune.verify(dense, wide, Plan.load(plan))


@pytest.mark.parametrize("kind", ["decomposed", "MultiHeadAttention", "merged", "Attention"])
def test_a_wrong_head_of_the_cache_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = resizing.left

    def shifted(trace: Any, kept: Any) -> Any:
        found = right(trace, kept)
        return {n: {a: (p + 1) % 4 if n == "pk" else p for a, p in axes.items()} for n, axes in found.items()}

    monkeypatch.setattr("onnxprune.rewrite.rewriting.left", shifted)
    with pytest.raises(CheckFailed, match="differs"):
        prune(network(kind), fast=True, ratio=0.5, kv_heads=True)


def test_data_of_the_dense_model_fits(tmp_path: Path) -> None:
    """Whoever looks at the pruned model gives it its part of the past: refitting, judging, measuring, timing."""
    random = np.random.default_rng(1)
    shapes = {"x": (64, 3, WIDTH), "pk": (64, 4, 5, 8), "pv": (64, 4, 5, 8)}
    data = {n: random.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    np.savez(tmp_path / "data.npz", **data)
    model, given = network("decomposed"), tmp_path / "data.npz"
    result = prune(model, ratio=0.5, kv_heads=True, calib=given, validate=given, gates=Gates(min_cosine=0.05))
    assert result.model.weights["wk"].shape == (WIDTH, 16)
    assert result.report.validation is not None
    assert result.report.validation["samples"] == 64
    assert result.report.reconstruction is not None
    errors = result.report.reconstruction["output_error"]
    assert errors["refitted"] <= errors["sliced"] < 1


def test_a_gate_is_searched_for_with_a_cache(tmp_path: Path) -> None:
    dense = tmp_path / "dense.onnx"
    onnx.save(network("decomposed"), dense)
    words = ["--fast", "--kv-heads", "--min-cosine", "0.2", "--validate-samples", "16", "--benchmark", "-q"]
    random = np.random.default_rng(1)
    shapes = {"x": (16, 3, WIDTH), "pk": (16, 4, 5, 8), "pv": (16, 4, 5, 8)}
    np.savez(tmp_path / "d.npz", **{n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    assert main([str(dense), str(tmp_path / "out.onnx"), "--validate", str(tmp_path / "d.npz"), *words]) == 0


@pytest.mark.parametrize(
    "model",
    [
        graph("(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y)", "h = Conv<kernel_shape = [1, 1]>(x, w1) r = Relu(h) d = Conv<kernel_shape = [1, 1]>(r, w2) y = Sub(x, d)", w1=(6, 4, 1, 1), w2=(4, 6, 1, 1)),
        graph("(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 5, 8, 8] z)", "h = Conv<kernel_shape = [1, 1]>(x, w1) r = Relu(h) z = Conv<kernel_shape = [1, 1]>(r, w2) y = Identity(x)", w1=(6, 4, 1, 1), w2=(5, 6, 1, 1)),
        network("decomposed", 1),
        network("GroupQueryAttention", 1, 4),
    ],
    ids=["an image less its noise", "an image given back", "a single head", "a single shared head"],
)  # fmt: skip
def test_what_is_no_cache_with_heads_keeps_its_shape(model: ModelProto) -> None:
    if len(model.graph.initializer) == 2:
        assert not prune(model, fast=True, ratio=0.5, kv_heads=True).model.taken
    assert not any(one.caches for one in onnxprune.inspect(model, kv_heads=True).groups)


def test_contradictions_are_said() -> None:
    model = network("decomposed")
    with pytest.raises(UsageError, match="heads=False"):
        prune(model, kv_heads=True, heads=False)
    plan = prune(model, fast=True, ratio=0.5, kv_heads=True).plan
    with pytest.raises(UsageError, match="already says what goes"):
        prune(model, plan=plan, kv_heads=True)


def test_lengths_that_are_inputs_fit_the_past_at_every_size() -> None:
    """Several sequences go on by one step only; a text goes on in one sequence: all six sizes are run."""
    proof = prune(network("GroupQueryAttention"), kv_heads=True, fast=True, ratio=0.5).report.proof
    sizes = [dict(part.split("=") for part in text.split()) for text in proof.sizes]
    assert len(sizes) == 6
    assert any(int(s["S"]) > 1 and int(s["P"]) > 1 for s in sizes)
    assert any(int(s["N"]) > 1 and int(s["P"]) > 1 for s in sizes)


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize(("bits", "scales"), [(8, (1,)), (8, (24,)), (8, (1, 3, 1, 8)), (4, (1,))])
def test_heads_go_where_the_cache_is_of_whole_numbers(bits: int, scales: tuple[int, ...], flag: bool) -> None:
    """Queries as with any cache, and with --kv-heads its own heads, with their scales."""
    kind, stored = ("int8", 8) if bits == 8 else ("uint8", 4)
    signature = GENAI.replace("{g}", "3").replace("float[N, 3, P, {d}]", f"{kind}[N, 3, P, {stored}]")
    signature = signature.replace("float[N, 3, T, {d}]", f"{kind}[N, 3, T, {stored}]")
    per = "PER_TENSOR" if scales == (1,) else "PER_CHANNEL"
    node = f"""o, K, V = com.microsoft.GroupQueryAttention<num_heads = 6, kv_num_heads = 3, kv_cache_bit_width = {bits},
        k_quant_type = "{per}", v_quant_type = "{per}">(q, k, v, pk, pv, sl, ts, , , , , , ks, vs) y = MatMul(o, wo)"""
    steps = np.linspace(0.02, 0.04, int(np.prod(scales)), dtype=np.float32).reshape(scales) * (1 if bits == 8 else 8)
    weights: dict[str, Any] = {"wq": (WIDTH, 48), "wk": (WIDTH, 24), "wv": (WIDTH, 24), "wo": (48, 5), "ks": steps, "vs": steps + 0.01}
    model = graph(signature, APART + node, 17, **weights)
    small = prune(model, fast=True, ratio=0.5, kv_heads=flag).model.to_proto()
    of_key = array(small, "wk").shape[1]
    assert (of_key < 24) is flag
    assert array(small, "wq").shape[1] == (2 * of_key if flag else 24)
    kept = [k for k in range(6) if any(np.array_equal(array(model, "wq")[:, 8 * k], column) for column in array(small, "wq").T)]
    out = array(model, "wo").reshape(6, 8, 5)
    out[np.setdiff1d(np.arange(6), kept)] = 0
    masked = onnx.ModelProto.FromString(model.SerializeToString())
    replace(masked, "wo", out.reshape(-1, 5))
    random, keys = np.random.default_rng(3), sorted({k // 2 for k in kept})
    past = {n: random.integers(0, 100, (1, 3, 4, stored)).astype(kind) for n in ("pk", "pv")}
    given = {"x": random.standard_normal((1, 3, WIDTH)).astype(np.float32), "sl": np.array([6], np.int32), "ts": np.array(7, np.int32)}
    wanted = run(masked, given | past)
    got = run(small, given | {n: x[:, keys] for n, x in past.items()})
    np.testing.assert_allclose(got[0], wanted[0], atol=1e-5)
    for ours, theirs in zip(got[1:], wanted[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs[:, keys])
