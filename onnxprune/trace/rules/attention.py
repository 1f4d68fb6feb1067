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
from onnxprune.trace.rules.inputs import (
    Attention,
    DecoderMasked,
    MultiHeadAttention,
    PackedMultiHead,
)

QUERY, KEY, VALUE = range(3)
FIXED = "attention whose other side stays"
CACHED = "the cache of keys and values comes in with a fixed shape"


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
    keep_scale(op, sizes["d"])
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
    heads = heads_in_last(op, QUERY, (sizes["g"] * sizes["r"], sizes["d"]))
    shared = heads_in_last(op, KEY, (sizes["g"], sizes["d"]))
    if heads is not None:
        op.note_maps(heads)
        _count_heads(op, "q_num_heads", heads)
    if shared is not None:
        _count_heads(op, "kv_num_heads", shared)


def multi_head(op: Op) -> None:
    """com.microsoft MultiHeadAttention with query, key and value apart; the latter two may have an axis of heads."""
    _multi_head(op, MultiHeadAttention)


def decoder_masked(op: Op) -> None:
    """com.microsoft DecoderMaskedMultiHeadAttention: one step with a cache."""
    _multi_head(op, DecoderMasked)


def _multi_head(op: Op, which: type[MultiHeadAttention | DecoderMasked]) -> None:
    """`which`: where the operator has its inputs."""
    sides = [QUERY, KEY, VALUE]
    if not ranks_known(op, sides) or not (op.has(KEY) and op.has(VALUE)) or len(op.dims(QUERY)) != 3:
        return op.freeze("packed query, key and value")
    heads = int(op.attr("num_heads"))
    if op.dims(QUERY)[2] is None or (sizes := _shared_sizes(op, heads)) is None:
        return op.freeze("the head size is not known")
    ins = {
        QUERY: ["b", "s", "hd"],
        KEY: _flat_or_apart(op, KEY, "hd"),
        VALUE: _flat_or_apart(op, VALUE, "he"),
        which.SCORE_BIAS: spell(op.dims(which.SCORE_BIAS), ["b", "h", "s", "t"]),
        which.PAST_KEY: ["b", "h", "p", "d"],
        which.PAST_VALUE: ["b", "h", "p", "e"],
    }
    if op.has(which.BIAS):
        _meet_bias(op, which.BIAS, (heads * sizes["d"], heads * sizes["d"], heads * sizes["e"]))
    outs = {0: ["b", "s", "he"], 1: ["b", "h", "", "d"], 2: ["b", "h", "", "e"], 3: ["b", "h", "s", "t"]}
    text = why_fixed(op, which.PAST_KEY)
    op.eq(ins, outs, sizes=sizes, pinned="tp", macs="hdst hste", summed={"d": QUERY}, text=text)
    keep_scale(op, sizes["d"])
    q = heads_in_last(op, QUERY, (heads, sizes["d"]))
    if q is not None:
        op.note_maps(q)
        _count_heads(op, "num_heads", q)


def packed_multi_head(op: Op) -> None:
    """com.microsoft PackedMultiHeadAttention: the tokens of all sequences one after the other."""
    sides, which = [QUERY, KEY, VALUE], PackedMultiHead
    if not ranks_known(op, sides) or any(not op.has(i) or len(op.dims(i)) != 2 for i in sides):
        return op.freeze("packed query, key and value")
    heads, widths = int(op.attr("num_heads")), [op.dims(i)[1] for i in sides]
    if None in widths:
        return op.freeze("the head size is not known")
    sizes = {"h": heads, "d": int(widths[KEY] or 0) // heads, "e": int(widths[VALUE] or 0) // heads}
    ins = {QUERY: ["s", "hd"], KEY: ["t", "hd"], VALUE: ["t", "he"]}
    ins[which.SCORE_BIAS] = spell(op.dims(which.SCORE_BIAS), ["b", "h", "p", "q"])
    if op.has(which.BIAS):
        _meet_bias(op, which.BIAS, (heads * sizes["d"], heads * sizes["d"], heads * sizes["e"]))
    op.eq(ins, {0: ["s", "he"]}, sizes=sizes, pinned="bstpq", macs="hdst hste", summed={"d": QUERY}, text=FIXED)
    keep_scale(op, sizes["d"])
    q = heads_in_last(op, QUERY, (heads, sizes["d"]))
    if q is not None:
        op.note_maps(q)
        _count_heads(op, "num_heads", q)


def _shared_sizes(op: Op, heads: int) -> dict[str, int] | None:
    """Heads (h), and the sizes of one of keys (d) and of values (e); None where they are not known."""
    found = {"h": heads}
    for i, letter in ((KEY, "d"), (VALUE, "e")):
        width = op.dims(i)[-1] if len(op.dims(i)) in (3, 4) else None
        if width is None:
            return None
        found[letter] = width // heads if len(op.dims(i)) == 3 else width
    return found


def _flat_or_apart(op: Op, i: int, letters: str) -> list[str]:
    """Keys or values: heads inside the last axis, or on one of their own."""
    return ["b", "t", letters] if len(op.dims(i)) == 3 else ["b", letters[0], "t", letters[1]]


def why_fixed(op: Op, past: int) -> str:
    """Why heads and what is in them stay where nothing else holds them."""
    return CACHED if op.has(past) and not op.blocks(past) else FIXED


def _meet_bias(op: Op, i: int, sizes: tuple[int, ...]) -> None:
    """Input `i` holds the biases of query, key and value side by side: three blocks of one axis."""
    if not op.is_parameter(i):
        return op.freeze("a computed bias of query, key and value")
    parts = [op.fresh(f"bias{k}", (n,)) for k, n in enumerate(sizes)]
    op.own(i, Block((0,), np.concatenate(parts)))
    for side, ids in zip((QUERY, KEY, VALUE), parts, strict=True):
        op.meet(side, [*[""] * (len(op.dims(side)) - 1), "x"], ["x"], [Block((0,), ids)], "a bias of fixed size")
    op.note_sum(i, Block((0,), only(parts, QUERY)))


def keep_scale(op: Op, depth: int) -> None:
    """The default scale is 1/sqrt(head size): written out, so that it stays the original's."""
    if not op.attr("scale"):
        op.edit(lambda e: e.attr("scale", 1.0 / sqrt(depth)))


def heads_in_last(op: Op, i: int, sizes: tuple[int, int]) -> Ids | None:
    """The ids of an input's last axis as [heads, head size]; None where it is not labelled, or not alone."""
    block = next((b for b in op.blocks(i) if b.axes == (len(op.dims(i)) - 1,)), None)
    return None if block is None else block.ids.reshape(sizes)


def _count_heads(op: Op, name: str, ids: Ids) -> None:
    """Heads are as large as each other, and the attribute says how many rows of `ids` [heads, head size] there are."""
    op.labels.rectangle(ids)
    count_heads_left(op, name, ids)


def count_heads_left(op: Op, name: str, ids: Ids) -> None:
    """The attribute says how many rows of `ids` [heads, head size] are left."""
    op.edit(lambda e: e.attr(name, int(e.kept(ids).any(axis=1).sum())))


def only(parts: Sequence[Ids], k: int) -> Ids:
    """Blocks side by side of which all but one are KEPT."""
    return np.concatenate([p.ravel() if m == k else np.full(p.size, KEPT) for m, p in enumerate(parts)])
