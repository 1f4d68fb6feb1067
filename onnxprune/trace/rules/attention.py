"""Attention as one operator: opset 23 and the com.microsoft fusions. Heads and head dimensions are letters.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from onnxprune.trace.labels import KEPT, Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import ranks_known, spell
from onnxprune.trace.rules.inputs import Attention, FusedAttention, GroupQueryAttention, MultiHeadAttention, QAttention

QUERY, KEY, VALUE = range(3)
FIXED = "attention whose other side stays"
EIGHT = 8
"""Head sizes that the kernels of GroupQueryAttention take are multiples of this."""


def attention(op: Op) -> None:
    """ONNX opset 23 and 24: query, key, value of rank 3 (heads inside the last axis) or 4. What is causal tells the
    queries apart; a past is as wide as the keys and values."""
    if not ranks_known(op, [QUERY, KEY, VALUE]):
        return None
    flat = len(op.dims(QUERY)) == 3
    sizes = _sizes(op, flat)
    if sizes is None:
        return op.freeze("the head size is not known")
    if flat:
        ins = {QUERY: ["b", "s", "grd"], KEY: ["b", "t", "gd"], VALUE: ["b", "t", "ge"]}
        out = ["b", "s", "gre"]
    else:
        ins = {QUERY: ["b", "gr", "s", "d"], KEY: ["b", "g", "t", "d"], VALUE: ["b", "g", "t", "e"]}
        out = ["b", "gr", "s", "e"]
    mask = op.dims(Attention.MASK)
    ins |= {
        Attention.MASK: spell(mask, ["b", "gr", "s", "t"][4 - len(mask) :]),
        Attention.PAST_KEY: ["b", "g", "p", "d"],
        Attention.PAST_VALUE: ["b", "g", "p", "e"],
        Attention.LENGTHS: ["b"],
    }
    outs = {0: out, 1: ["b", "g", "", "d"], 2: ["b", "g", "", "e"], 3: ["b", "gr", "s", ""]}
    pinned = "tps" if op.attr("is_causal", 0) else "tp"
    op.eq(ins, outs, sizes=sizes, pinned=pinned, macs="grdst grste", summed={"d": QUERY}, text=FIXED)
    _keep_scale(op, sizes["d"])
    if flat:
        _count_flat_heads(op, sizes)
        return None
    for b in op.blocks(QUERY):
        if b.axes == (1, 3):
            op.note_maps(b.ids)


def _sizes(op: Op, flat: bool) -> dict[str, int] | None:
    """Heads of keys and values (g), heads of queries for each (r), size of a head of keys (d) and of values (e); None
    where one of them is not known."""
    if flat:
        queries, shared = op.attr("q_num_heads"), op.attr("kv_num_heads")
    else:
        queries, shared = op.dims(QUERY)[1], op.dims(KEY)[1]
    keys, values = op.dims(KEY)[-1], op.dims(VALUE)[-1]
    if keys is None or values is None or None in (op.dims(QUERY)[-1], queries, shared):
        return None
    inside = shared if flat else 1
    return {"g": shared, "r": queries // shared, "d": keys // inside, "e": values // inside}


def _count_flat_heads(op: Op, sizes: dict[str, int]) -> None:
    heads = _heads(op, QUERY, (sizes["g"] * sizes["r"], sizes["d"]))
    shared = _heads(op, KEY, (sizes["g"], sizes["d"]))
    if heads is not None:
        op.note_maps(heads)
        _count_heads(op, "q_num_heads", heads)
    if shared is not None:
        _count_heads(op, "kv_num_heads", shared)


def multi_head(op: Op) -> None:
    """com.microsoft MultiHeadAttention with separate query, key and value of rank 3."""
    sides = [QUERY, KEY, VALUE]
    if not ranks_known(op, sides) or not (op.has(KEY) and op.has(VALUE)) or any(len(op.dims(i)) != 3 for i in sides):
        return op.freeze("packed query, key and value")
    heads = int(op.attr("num_heads"))
    query, keys, values = (op.dims(i)[2] for i in sides)
    if query is None or keys is None or values is None:
        return op.freeze("the head size is not known")
    depth, value = keys // heads, values // heads
    ins = {
        QUERY: ["b", "s", "hd"],
        KEY: ["b", "t", "hd"],
        VALUE: ["b", "t", "he"],
        MultiHeadAttention.SCORE_BIAS: spell(op.dims(MultiHeadAttention.SCORE_BIAS), ["b", "h", "s", "t"]),
        MultiHeadAttention.PAST_KEY: ["b", "h", "p", "d"],
        MultiHeadAttention.PAST_VALUE: ["b", "h", "p", "e"],
    }
    if op.has(MultiHeadAttention.BIAS):
        _meet_bias(op, MultiHeadAttention.BIAS, (heads * depth, heads * depth, heads * value))
    sizes = {"h": heads, "d": depth, "e": value}
    outs = {0: ["b", "s", "he"], 1: ["b", "h", "", "d"], 2: ["b", "h", "", "e"], 3: ["b", "h", "s", "t"]}
    op.eq(ins, outs, sizes=sizes, pinned="tp", macs="hdst hste", summed={"d": QUERY}, text=FIXED)
    _keep_scale(op, depth)
    q = _heads(op, QUERY, (heads, depth))
    if q is not None:
        op.note_maps(q)
        _count_heads(op, "num_heads", q)


def _meet_bias(op: Op, i: int, sizes: tuple[int, ...]) -> None:
    """Input `i` holds the biases of query, key and value side by side: three blocks of one axis."""
    if not op.is_parameter(i):
        return op.freeze("a computed bias of query, key and value")
    parts = [op.fresh(f"bias{k}", (n,)) for k, n in enumerate(sizes)]
    op.own(i, Block((0,), np.concatenate(parts)))
    for side, ids in zip((QUERY, KEY, VALUE), parts, strict=True):
        op.meet(side, ["", "", "x"], ["x"], [Block((0,), ids)], "a bias of fixed size")
    op.note_sum(i, Block((0,), _only(parts, QUERY)))


def fused(op: Op) -> None:
    """com.microsoft Attention: one weight for query, key and value."""
    if op.has(FusedAttention.PAST) or op.has_output(1):
        return op.freeze("past keys and values")
    parts = _packed(op)
    if parts is not None and op.has(FusedAttention.SCORE_BIAS):
        spelled = spell(op.dims(FusedAttention.SCORE_BIAS), ["b", "h", "s", "t"])
        rows = Block((0,), op.labels.derive(parts[VALUE]))
        op.meet(FusedAttention.SCORE_BIAS, spelled, ["h"], [rows], "a bias of fixed heads")


def quantised(op: Op) -> None:
    """com.microsoft QAttention: Attention of whole numbers, whose weight has one scale and zero point for all or one a
    column. Where it keeps past keys and values, these fix its heads."""
    parts = _packed(op, QAttention.WEIGHT_ZERO)
    if parts is not None and (op.has(QAttention.PAST) or op.has_output(1)):
        op.freeze_ids(np.stack(parts), "past keys and values have its heads")


def _packed(op: Op, zero: int | None = None) -> list[Ids] | None:
    """One weight for query, key and value, whose zero point is input `zero`; the ids of the three [heads, head size],
    None where they are not told apart."""
    if not ranks_known(op, [FusedAttention.X, FusedAttention.WEIGHT]) or None in op.dims(FusedAttention.WEIGHT):
        op.freeze("the weight's shape is not known")
        return None
    if not op.is_parameter(FusedAttention.WEIGHT) or op.attr("do_rotary", 0):
        op.freeze("a computed weight, or a rotation inside")
        return None
    heads, (features, total) = int(op.attr("num_heads")), op.dims(FusedAttention.WEIGHT)
    widths = [int(n) for n in op.attr("qkv_hidden_sizes", [int(total or 0) // 3] * 3)]
    q, k, v = parts = [op.fresh(f"qkv{i}", (heads, n // heads)) for i, n in enumerate(widths)]
    inputs = Block((0,), op.fresh("input", (int(features or 1),)))
    op.couple(q, k)
    op.couple(op.labels.derive(k), op.labels.derive(v))
    op.note_maps(q)
    for x in parts:
        op.labels.rectangle(x)
    if widths[0] == widths[2]:
        op.labels.rectangle(np.stack(parts))
    _own_packed(op, parts, inputs, zero)
    op.meet(0, ["b", "s", "c"], ["", "", "c"], [Block((2,), inputs.ids)], "attention reads an axis of fixed size")
    op.set(0, [Block((2,), v.ravel())])
    _note_packed_macs(op, parts, inputs)
    _keep_scale(op, widths[0] // heads)
    _count(op, "num_heads", v)
    if op.attr("qkv_hidden_sizes"):
        op.edit(lambda e: e.attr("qkv_hidden_sizes", [int(e.kept(p).sum()) for p in parts]))
    return parts


def _note_packed_macs(op: Op, parts: Sequence[Ids], inputs: Block) -> None:
    """Three projections, the scores of every place with every other, and what these weigh."""
    steps = float((op.first_dims(FusedAttention.X) or (1, 1))[1] or 1)
    projected = [(steps * inputs.ids.size * p.size, (inputs.ids, p.ravel())) for p in parts]
    op.note_macs([*projected, *((steps**2 * parts[k].size, (parts[k].ravel(),)) for k in (QUERY, VALUE))])


def _own_packed(op: Op, parts: Sequence[Ids], inputs: Block, zero: int | None) -> None:
    """Weight and bias of a fused attention hold query, key and value side by side, and so do the scales and zero points
    of a quantised one. The scores sum over the size of a key's head, and the weight over the inputs."""
    side_by_side = np.concatenate([p.ravel() for p in parts])
    keys = _only(parts, KEY)
    op.own(FusedAttention.WEIGHT, inputs, Block((1,), side_by_side))
    if op.has(FusedAttention.BIAS):
        op.own(FusedAttention.BIAS, Block((0,), side_by_side))
        op.note_sum(FusedAttention.BIAS, Block((0,), keys))
    for i in (QAttention.WEIGHT_SCALE, QAttention.WEIGHT_ZERO) if zero is not None else ():
        if op.dims(i) not in ((), (1,)):
            op.own(i, Block((0,), side_by_side))
    fill = op.inputs[zero] if zero is not None and op.has(zero) else ""
    op.note_sum(FusedAttention.WEIGHT, Block((1,), keys), fill)
    op.note_sum(FusedAttention.WEIGHT, inputs, fill)


def grouped_query(op: Op) -> None:
    """com.microsoft GroupQueryAttention with separate query, key and value.

    Its kernels take one head size for all three, a multiple of eight: of a head go eight neighbours at a time."""
    if not ranks_known(op, [QUERY]) or not (op.has(KEY) and op.has(VALUE)) or op.rank(KEY) is None:
        return op.freeze("packed query, key and value")
    if any(op.has(i) for i in range(GroupQueryAttention.CACHE_SCALES, len(op.inputs))):
        return op.freeze("a quantised cache, or a norm inside the operator")
    heads, shared = int(op.attr("num_heads")), int(op.attr("kv_num_heads"))
    width = op.dims(KEY)[2]
    if width is None:
        return op.freeze("the head size is not known")
    depth = width // shared
    ins = {
        QUERY: ["b", "s", "grd"],
        KEY: ["b", "t", "gd"],
        VALUE: ["b", "t", "ge"],
        GroupQueryAttention.PAST_KEY: ["b", "g", "p", "d"],
        GroupQueryAttention.PAST_VALUE: ["b", "g", "p", "e"],
        GroupQueryAttention.SCORE_BIAS: spell(op.dims(GroupQueryAttention.SCORE_BIAS), ["b", "gr", "s", "t"]),
        GroupQueryAttention.SINKS: ["gr"],
    }
    sizes = {"g": shared, "r": heads // shared, "d": depth, "e": depth}
    outs = {0: ["b", "s", "gre"], 1: ["b", "g", "", "d"], 2: ["b", "g", "", "e"], 3: ["b", "gr", "s", "t"]}
    op.eq(ins, outs, sizes=sizes, pinned="tp", macs="grdst grste", text=FIXED)
    q, k, v = _heads(op, QUERY, (heads, depth)), _heads(op, KEY, (shared, depth)), _heads(op, VALUE, (shared, depth))
    if q is not None and k is not None and v is not None:
        _tie_by_eight(op, q, k, v)
        _keep_scale(op, depth)
        _count(op, "num_heads", q)
        _count(op, "kv_num_heads", k)


def _tie_by_eight(op: Op, q: Ids, k: Ids, v: Ids) -> None:
    """Of each head [heads, head size] eight neighbours go at a time, of all heads as many."""
    op.note_maps(q)
    for block in (q, np.stack([k, v])):
        op.labels.rectangle(block)
    depth = q.shape[1]
    whole = op.attr("do_rotary", 0) or depth % EIGHT  # the rotation knows its pairs: heads go whole
    for ids in (q, k, v):
        runs = ids.reshape(len(ids), -1, depth if whole else EIGHT)
        op.labels.couple_along(runs, 2, op.why("head sizes are multiples of eight"))


def _keep_scale(op: Op, depth: int) -> None:
    """The default scale is 1/sqrt(head size): written out, so that it stays the original's."""
    if not op.attr("scale"):
        op.edit(lambda e: e.attr("scale", 1.0 / sqrt(depth)))


def _heads(op: Op, i: int, sizes: tuple[int, int]) -> Ids | None:
    """The ids of an input's last axis as [heads, head size]; None where it is not labelled, or not alone."""
    block = next((b for b in op.blocks(i) if b.axes == (2,)), None)
    return None if block is None else block.ids.reshape(sizes)


def _count_heads(op: Op, name: str, ids: Ids) -> None:
    """Heads are as large as each other, and the attribute says how many rows of `ids` [heads, head size] there are."""
    op.labels.rectangle(ids)
    _count(op, name, ids)


def _count(op: Op, name: str, ids: Ids) -> None:
    op.edit(lambda e: e.attr(name, int(e.kept(ids).any(axis=1).sum())))


def _only(parts: Sequence[Ids], k: int) -> Ids:
    """Blocks side by side of which all but one are KEPT."""
    return np.concatenate([p.ravel() if m == k else np.full(p.size, KEPT) for m, p in enumerate(parts)])
