"""com.microsoft SparseAttention: heads that see blocks of the sequence by layouts, and a cache that is written in place.

What it computes is written here once more in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import array
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper, parser

from onnxprune import prune, verify
from onnxprune.errors import CheckFailed, NothingToPrune
from onnxprune.measure import benchmark
from onnxprune.model import Model
from onnxprune.run import Session, open_session

Array = NDArray[Any]
WIDTH, SIZE, BLOCK, BLOCKS = 12, 16, 4, 4
STEPS = BLOCK * BLOCKS
SIGNATURE = (
    "g (float[N, S, 12] x, float[N, {g}, 16, 16] pk, float[N, {g}, 16, 16] pv, int32[1] total, int32[N] lengths) => "
    "(float[N, S, 5] y, float[N, {g}, 16, 16] nk, float[N, {g}, 16, 16] nv)"
)
APART = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
PACKED = "q = MatMul(x, wqkv)"


def layouts(count: int) -> NDArray[np.bool_]:
    """So many [blocks of queries, blocks of keys], each another."""
    rng = np.random.default_rng(1)
    return np.stack([np.tril(rng.random((BLOCKS, BLOCKS)) < 0.5) | np.eye(BLOCKS, dtype=bool) for _ in range(count)])


def network(heads: int, shared: int, count: int, packed: bool = False, rotary: bool = False) -> ModelProto:
    """`heads` of queries on `shared` keys and values, by `count` layouts."""
    said = f"num_heads = {heads}, kv_num_heads = {shared}, sparse_block_size = {BLOCK}, do_rotary = {int(rotary)}"
    inputs = 'q, "", ""' if packed else "q, k, v"
    angles = ", cosines, sines" if rotary else ""
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> {SIGNATURE.replace("{g}", str(shared))} '
        f"{{ {PACKED if packed else APART} o, nk, nv = com.microsoft.SparseAttention<{said}>"
        f"({inputs}, pk, pv, rows, columns, total, lengths{angles}) y = MatMul(o, wo) }}"
    )
    rng = np.random.default_rng(0)
    widths = {"wq": heads * SIZE, "wk": shared * SIZE, "wv": shared * SIZE}
    drawn = {name: rng.standard_normal((WIDTH, n)) / 4 for name, n in widths.items()}
    known: dict[str, Array] = {"wqkv": np.concatenate(list(drawn.values()), 1)} if packed else drawn
    known["wo"] = rng.standard_normal((heads * SIZE, 5)) / 4
    if rotary:
        turned = np.arange(STEPS)[:, None] * 0.3 ** np.arange(SIZE // 2)
        known |= {"cosines": np.cos(turned), "sines": np.sin(turned)}
    masks = layouts(count)
    columns = [np.nonzero(mask)[1] for mask in masks]
    longest = max(map(len, columns))
    tables = {
        "rows": [[0, *np.cumsum(mask.sum(1))] for mask in masks],
        "columns": [[*c, *[-1] * (longest - len(c))] for c in columns],
    }
    proto.graph.initializer.extend(numpy_helper.from_array(w.astype(np.float32), n) for n, w in known.items())
    proto.graph.initializer.extend(numpy_helper.from_array(np.array(t, np.int32), n) for n, t in tables.items())
    return proto


def feeds(shared: int, new: int, before: int, seed: int = 0) -> dict[str, Array]:
    """`new` steps after `before` others, whose place in the cache is filled; of two sequences."""
    rng = np.random.default_rng(seed)
    past = {name: rng.standard_normal((2, shared, STEPS, SIZE)).astype(np.float32) for name in ("pk", "pv")}
    told = {"total": np.array([new + before], np.int32), "lengths": np.full(2, new + before, np.int32)}
    return {"x": rng.standard_normal((2, new, WIDTH)).astype(np.float32), **past, **told}


def attended(weights: dict[str, Array], heads: int, masks: list[Array], given: dict[str, Array]) -> tuple[Array, ...]:
    """What the network above gives without a rotation, heads [heads] by `masks` [blocks, blocks] of their own."""
    shared, new = given["pk"].shape[1], given["x"].shape[1]
    before = int(given["total"][0]) - new
    q, k, v = (
        (given["x"] @ weights[n]).reshape(2, new, count, SIZE).transpose(0, 2, 1, 3)
        for n, count in (("wq", heads), ("wk", shared), ("wv", shared))
    )
    cache = given["pk"].copy(), given["pv"].copy()
    for held, made in zip(cache, (k, v), strict=True):
        held[:, :, before : before + new] = made
    keys, values = (held[:, :, : before + new].repeat(heads // shared, 1) for held in cache)
    scores = q @ keys.transpose(0, 1, 3, 2) * SIZE**-0.5
    for head, mask in enumerate(masks):
        seen = np.tril(np.kron(mask, np.ones((BLOCK, BLOCK), bool)))[before : before + new, : before + new]
        scores[:, head] = np.where(seen, scores[:, head], -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    out = (shares / shares.sum(-1, keepdims=True) @ values).transpose(0, 2, 1, 3).reshape(2, new, heads * SIZE)
    return out @ weights["wo"], *cache


@pytest.mark.parametrize(("new", "before"), [(16, 0), (7, 0), (1, 9), (5, 3)])
def test_it_runs_where_past_and_present_are_one_buffer(new: int, before: int) -> None:
    """The kernel asks for it; the feeds are not written into."""
    source = network(4, 2, 2)
    given = feeds(2, new, before)
    kept = {name: value.copy() for name, value in given.items()}
    wanted = attended({n: array(source, n) for n in ("wq", "wk", "wv", "wo")}, 4, [*layouts(2)] * 2, given)
    for session in (open_session(Model.load(source)), Session(Model.load(source), ["cpu"])):
        got = session.run(given) if isinstance(session, Session) else session.run(None, given)
        assert all(np.abs(a - b).max() <= 1e-5 for a, b in zip(got, wanted, strict=True))
    assert all(np.array_equal(given[name], kept[name]) for name in kept)
    assert np.array_equal(Session(Model.load(source), ["cpu"]).run(given, ["y"])[0], got[0])


@pytest.mark.parametrize("kv_heads", [False, True])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_head_keeps_its_layout(count: int, kv_heads: bool) -> None:
    source = network(8, 2, count)
    result = prune(source, ratio=0.4, fast=True, kv_heads=kv_heads)
    after = result.model.to_proto()
    node = next(n for n in after.graph.node if n.op_type == "SparseAttention")
    heads, shared = (next(a.i for a in node.attribute if a.name == name) for name in ("num_heads", "kv_num_heads"))
    assert (heads < 8, shared) == (True, 1 if kv_heads else 2)
    old, new = (np.stack(np.split(array(m, "wq"), n, axis=1)) for m, n in ((source, 8), (after, heads)))
    left = [next(k for k in range(8) if np.array_equal(old[k], head)) for head in new]
    place = [k // 4 for k in left if kv_heads][:1]
    given = feeds(2, 6, 5)
    given |= {name: given[name][:, place] for name in ("pk", "pv") if kv_heads}
    weights = {n: array(after, n) for n in ("wq", "wk", "wv", "wo")}
    wanted = attended(weights, heads, [layouts(count)[k % count] for k in left], given)
    got = Session(Model.load(after), ["cpu"]).run(given)
    assert all(np.abs(a - b).max() <= 1e-5 for a, b in zip(got, wanted, strict=True))
    verify(source, after, result.plan)


@pytest.mark.parametrize("rotary", [False, True])
def test_what_lies_side_by_side_goes_by_heads(rotary: bool) -> None:
    result = prune(network(8, 2, 2, packed=True, rotary=rotary), ratio=0.4, fast=True)
    assert result.model.weights["wqkv"].shape == (WIDTH, (6 + 2 * 2) * SIZE)
    assert result.model.weights["wo"].shape == (6 * SIZE, 5)


def test_the_layer_behind_it_is_solved_anew() -> None:
    """Also a piece of the graph that is asked for no cache has one buffer for it."""
    told = prune(network(8, 2, 2), ratio=0.4).report.reconstruction
    assert [layer["layer"] for layer in told["layers"]] == ["MatMul_4"]


def test_the_proof_sees_a_head_with_the_layout_of_another() -> None:
    source = network(8, 2, 8)
    result = prune(source, ratio=0.4, fast=True)
    wrong = result.model.to_proto()
    for tensor in wrong.graph.initializer:
        if tensor.data_type == 6:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
    with pytest.raises(CheckFailed):
        verify(source, wrong, result.plan)


def test_computed_layouts_keep_the_heads() -> None:
    source = network(8, 2, 8)
    node = next(n for n in source.graph.node if n.op_type == "SparseAttention")
    node.input[5] = "rows_in"
    source.graph.input.append(helper.make_tensor_value_info("rows_in", 6, [8, BLOCKS + 1]))
    with pytest.raises(NothingToPrune, match="layouts in turn that are not known"):
        prune(source, ratio=0.4, fast=True)


def test_its_time_is_that_of_one_buffer() -> None:
    source = Model.load(network(4, 2, 2))
    assert benchmark(source, source, seconds=0.1).runs[0] > 0
