"""Attention of opset 23 and 24 in every form that ONNX Runtime runs: what goes was silent, so that outputs stay equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import Shape, graph, pruned, shapes, silence
from numpy.typing import NDArray

BATCH, QUERIES, KEYS, PAST, WIDTH, HEADS = 2, 4, 5, 3, 7, 4
QUERY, VALUE = 8, 6
"""Head sizes."""
NOT = -np.inf
CAUSAL_MASK = np.triu(np.full((QUERIES, KEYS), NOT, np.float32), 2)
PAST_MASK = np.random.default_rng(1).standard_normal((BATCH, HEADS, QUERIES, KEYS + PAST)).astype(np.float32)
PLAIN = "q = MatMul(x, wq) k = MatMul(z, wk) v = MatMul(z, wv) "
GROWN = "ps = MatMul(p, wpk) pr = Reshape(ps, to_k) pk = Transpose<perm = [0, 2, 1, 3]>(pr) pt = MatMul(p, wpv) pu = Reshape(pt, to_v) pv = Transpose<perm = [0, 2, 1, 3]>(pu) "
ROWS: list[tuple[int, str, str, str, int, dict[str, Any]]] = [
    # opset, attributes, inputs behind q, k, v; outputs behind y; heads of keys and values; what the inputs are
    (23, "", "", "", 4, {}),
    (23, "is_causal = 1", "", "", 4, {}),
    (23, "is_causal = 1, scale = 0.3, softcap = 2.0", "", "", 2, {}),
    (23, "softmax_precision = 11", ", mask", "", 1, {"mask": CAUSAL_MASK}),
    (23, "", ", mask", "", 2, {"mask": CAUSAL_MASK == 0}),
    (23, "qk_matmul_output_mode = 3", "", ", , , maps", 4, {}),
    (23, "is_causal = 1, qk_matmul_output_mode = 0", "", ", , , maps", 2, {}),
    (23, "", "", ", keys, values", 2, {}),
    (23, "", ", mask, pk, pv", ", keys, values", 4, {"mask": PAST_MASK}),
    (23, "is_causal = 1", ", , pk, pv", ", keys, values", 2, {}),
    (24, "is_causal = 1, qk_matmul_output_mode = 2", ", , pk, pv", ", keys, values, maps", 1, {}),
    (24, "", ", , , , length", "", 2, {"length": np.array([3, 5])}),
    (24, "is_causal = 1", ", , , , length", "", 4, {"length": np.array([4, 5])}),
]  # fmt: skip


def network(row: tuple[int, str, str, str, int, dict[str, Any]], flat: bool) -> Any:
    """Query, key, value (and past) by products, the heads in the last axis or in one of their own."""
    opset, attributes, ins, outs, shared, given = row
    weights: dict[str, Shape | NDArray[Any]] = {
        "wq": (WIDTH, HEADS * QUERY), "wk": (WIDTH, shared * QUERY), "wv": (WIDTH, shared * VALUE),
        "wo": (HEADS * VALUE, 3), **given,
    }  # fmt: skip
    body, ends, inputs = PLAIN, ["float[a, b, c] y"], ["float[2, 4, 7] x", "float[2, 5, 7] z"]
    if "pk" in ins:
        body, inputs = body + GROWN, [*inputs, "float[2, 3, 7] p"]
        weights |= {"wpk": (WIDTH, shared * QUERY), "wpv": (WIDTH, shared * VALUE)}
        weights |= {"to_k": np.array([0, 0, shared, QUERY]), "to_v": np.array([0, 0, shared, VALUE])}
    if flat:
        heads = f"q_num_heads = {HEADS}, kv_num_heads = {shared}"
        attributes = f"{attributes}, {heads}" if attributes else heads
        made = f"t{outs} = Attention<{attributes}>(q, k, v{ins}) y = MatMul(t, wo)"
    else:
        for name, many, size in (("q", HEADS, QUERY), ("k", shared, QUERY), ("v", shared, VALUE)):
            body += f"{name}r = Reshape({name}, of_{name}) {name}h = Transpose<perm = [0, 2, 1, 3]>({name}r) "
            weights[f"of_{name}"] = np.array([0, 0, many, size])
        weights["of_t"] = np.array([0, 0, HEADS * VALUE])
        made = f"t{outs} = Attention<{attributes}>(qh, kh, vh{ins})".replace("<>", "")
        made += " u = Transpose<perm = [0, 2, 1, 3]>(t) r = Reshape(u, of_t) y = MatMul(r, wo)"
    if "keys" in outs:
        made += " keys2 = MatMul(keys, wk2) values2 = MatMul(values, wv2)"
        weights |= {"wk2": (QUERY, 2), "wv2": (VALUE, 2)}
        ends += ["float[d, e, f, g] keys2", "float[h, i, j, k] values2"]
    if "maps" in outs:
        made, weights["one"] = f"{made} maps2 = ReduceSum(maps, one)", np.array([1])
        ends.append("float[l, m, n, o] maps2")
    return graph(f"({', '.join(inputs)}) => ({', '.join(ends)})", body + made, opset, **weights)


def odd(heads: int, size: int) -> list[int]:
    return [h * size + k for h in range(heads) for k in range(1, size, 2)]


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "heads"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]} {row[2]}{row[3]} {row[4]}")
def test_every_form_of_attention(row: tuple[int, str, str, str, int, dict[str, Any]], flat: bool) -> None:
    model, shared = network(row, flat), row[4]
    silent = {"wq": (1, odd(HEADS, QUERY)), "wk": (1, odd(shared, QUERY)), "wv": (1, odd(shared, VALUE)),
              "wo": (0, odd(HEADS, VALUE))}  # fmt: skip
    if "pk" in row[2]:
        silent |= {"wpk": (1, odd(shared, QUERY)), "wpv": (1, odd(shared, VALUE))}
    result = pruned(silence(model, silent), equal=True, batches=(1,), heads=False)
    found = shapes(result)
    assert found["wq"] == (WIDTH, HEADS * QUERY // 2)
    assert found["wk"] == (WIDTH, shared * QUERY // 2)
    assert found["wv"] == (WIDTH, shared * VALUE // 2)


@pytest.mark.parametrize(
    "row",
    [r for r in ROWS if r[4] > 1 and not r[2] and "keys" not in r[3]],
    ids=lambda row: f"{row[1]} {row[3]} {row[4]}",
)
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "heads"])
def test_whole_heads_go_with_their_counts(row: tuple[int, str, str, str, int, dict[str, Any]], flat: bool) -> None:
    pruned(network(row, flat), batches=(1,), ratio=0.6)


@pytest.mark.parametrize("past", ["", ", , pk, pv"])
@pytest.mark.parametrize("constant", ["q", "k", "v"])
def test_queries_that_are_told_apart_stay(constant: str, past: str) -> None:
    """A constant query, key or value has axes of its own for batch, heads and steps."""
    size = {"q": (BATCH, HEADS, QUERIES, QUERY), "k": (BATCH, HEADS, KEYS, QUERY), "v": (BATCH, HEADS, KEYS, VALUE)}
    model = network((23, "is_causal = 1", past, ", keys, values" if past else "", 4, {}), False)
    weights = {f"{constant}h": size[constant]}
    fixed = graph("(float[1] a) => (float[1] b)", "b = Identity(a)", 23, **weights).graph.initializer[0]
    model.graph.initializer.append(fixed)
    for node in [
        n for n in model.graph.node if {f"{constant}r", f"{constant}h"} & set(n.output) or n.output[0] == constant
    ]:
        model.graph.node.remove(node)
    found = shapes(pruned(model, batches=(1,)))[f"{constant}h"]
    assert (found[0], found[2]) == (size[constant][0], size[constant][2])


def test_queries_of_which_each_key_has_several_may_go_alone() -> None:
    """Keys and values are inputs of the model, so that their heads stay; two queries read each of them."""
    body = "q = MatMul(x, wq) t = Attention<q_num_heads = 8, kv_num_heads = 2>(q, k, v) y = MatMul(t, wo)"
    model = graph("(float[2, 4, 7] x, float[2, 5, 16] k, float[2, 5, 12] v) => (float[a, b, c] y)", body, 23,
                  wq=(7, 64), wo=(48, 3))  # fmt: skip
    result = pruned(model, batches=(1,))
    assert shapes(result) == {"wq": (7, 32), "wo": (24, 3)}


@pytest.mark.parametrize("bias", ["", "bias"])
def test_keys_that_are_summed_and_given_out(bias: str) -> None:
    """com.microsoft MultiHeadAttention gives its keys and values as they are after the bias."""
    body = f"{PLAIN}t, pk, pv = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v, {bias}) y = MatMul(t, wo) keys = MatMul(pk, wk2) values = MatMul(pv, wv2)"
    given = {"bias": (88,)} if bias else {}
    model = graph("(float[2, 4, 7] x, float[2, 5, 7] z) => (float[a, b, c] y, float[d, e, f, g] keys, float[h, i, j, k] values)",
                  body, 18, wq=(7, 32), wk=(7, 32), wv=(7, 24), wo=(24, 3), wk2=(8, 2), wv2=(6, 2), **given)  # fmt: skip
    found = shapes(pruned(model, batches=(1,), heads=False))
    assert (found["wq"], found["wk"], found["wv"], found["wk2"]) == ((7, 16), (7, 16), (7, 12), (4, 2))
