"""What architectures of the model libraries tripped over at their real sizes, once each, in small."""

from __future__ import annotations

import numpy as np
from graphs import graph, pruned, shapes

HEADS = """
    {0}w = MatMul(x, w{0})
    {0}r = Reshape({0}w, to)
    {0} = Transpose<perm = [0, 2, 1, 3]>({0}r)
"""
UNIT = """
    {0}n = ReduceL2<axes = [-1], keepdims = 1>({0})
    {0}c = Clip({0}n, least)
    {0}s = Shape({0})
    {0}e = Expand({0}c, {0}s)
    {0}u = Div({0}, {0}e)
"""


def test_heads_of_cosine_attention_go_where_the_norm_is_expanded() -> None:
    model = graph(
        "(float[N, 6, 16] x) => (float[N, 6, 16] y)",
        "".join(HEADS.format(x) for x in "qkv") + "".join(UNIT.format(x) for x in "qk") + """
        turned = Transpose<perm = [0, 1, 3, 2]>(ku)
        s = MatMul(qu, turned)
        p = Softmax<axis = -1>(s)
        o = MatMul(p, v)
        back = Transpose<perm = [0, 2, 1, 3]>(o)
        flat = Reshape(back, from)
        y = MatMul(flat, wo)
        """,
        wq=(16, 32), wk=(16, 32), wv=(16, 32), wo=(32, 16), least=np.float32(1e-6), to=np.array([0, 6, 4, 8]),
        **{"from": np.array([0, 6, 32])},
    )  # fmt: skip
    result = pruned(model, residual=False)
    kept = shapes(result)
    assert (kept["wq"], kept["wk"], kept["wv"], kept["wo"]) == ((16, 16), (16, 16), (16, 16), (16, 16))
    assert next(g for g in result.report.groups if "wq" in g.layers).units == 64, (
        "those of queries and keys, and values"
    )


def test_attention_whose_heads_share_keys_and_values_loses_width() -> None:
    """Which heads there are and what their values hold are two axes that one Reshape merges."""
    model = graph(
        "(float[N, 6, 16] x) => (float[N, 6, 16] y)",
        HEADS.format("q") + """
        k = MatMul(x, wk)
        turned = Transpose<perm = [0, 2, 1]>(k)
        one = Unsqueeze(turned, axis)
        s = MatMul(q, one)
        p = Softmax<axis = -1>(s)
        values = MatMul(x, wv)
        v = Unsqueeze(values, axis)
        o = MatMul(p, v)
        back = Transpose<perm = [0, 2, 1, 3]>(o)
        flat = Reshape(back, from)
        y = MatMul(flat, wo)
        """,
        wq=(16, 32), wk=(16, 8), wv=(16, 8), wo=(32, 16), to=np.array([0, 6, 4, 8]), axis=np.array([1]),
        **{"from": np.array([0, 6, 32])},
    )  # fmt: skip
    kept = shapes(pruned(model, residual=False))
    assert (kept["wq"], kept["wk"], kept["wv"], kept["wo"]) == ((16, 16), (16, 4), (16, 4), (16, 16))
