"""Attention of com.microsoft whose query heads share keys and values: GroupQueryAttention, SparseAttention.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from onnxprune.trace.editor import Editor
from onnxprune.trace.labels import Ids
from onnxprune.trace.op import Misfit, Op
from onnxprune.trace.operands import Dims
from onnxprune.trace.rules.attention import (
    KEY,
    QUERY,
    VALUE,
    count_heads_left,
    heads_in_last,
    keep_scale,
    why_fixed,
)
from onnxprune.trace.rules.base import ranks_known, spell
from onnxprune.trace.rules.inputs import GroupQueryAttention, SparseAttention

EIGHT = 8
"""Head sizes that the kernels of GroupQueryAttention take are multiples of this."""


def grouped_query(op: Op) -> None:
    """com.microsoft GroupQueryAttention with query, key and value apart, or side by side.

    Its kernels take one head size for all three, a multiple of eight: of a head go eight neighbours at a time, or the
    head goes whole where a rotation inside knows its pairs, a norm inside its gain, or a cache of whole numbers how
    many of them share a byte."""
    which = GroupQueryAttention
    if not _told_apart(op):
        return
    inside = any(map(op.has, range(which.KEY_SCALES, len(op.inputs))))
    more = {which.SCORE_BIAS: spell(op.dims(which.SCORE_BIAS), ["b", "gr", "s", "t"]), which.SINKS: ["gr"]}
    scales = ((which.KEY_SCALES, "d"), (which.VALUE_SCALES, "e"))
    more |= {i: _spelled_scales(op.dims(i), channel) for i, channel in scales if op.has(i)}
    _attend(op, more, whole=inside or bool(op.attr("do_rotary", 0)))


def _spelled_scales(dims: Dims, channel: str) -> list[str]:
    """The scales of a cache in whole numbers: one, or one for every channel of every key."""
    if len(dims) == 1:
        return spell(dims, [f"g{channel}"])
    if len(dims) != 4:
        raise Misfit("the scales of its cache are not told apart")
    return spell(dims, ["", "g", "", channel])


def sparse(op: Op) -> None:
    """com.microsoft SparseAttention: each head sees blocks of the sequence by one of several layouts, which the heads
    take in turn. Heads go whole: on a GPU its kernel takes one size of them only."""
    if not _told_apart(op):
        return
    tables = {i: op.table(i) for i in (SparseAttention.ROWS, SparseAttention.COLUMNS)}
    several = op.dims(SparseAttention.ROWS)[:1] != (1,)
    if several and any(table is None for table in tables.values()):
        op.freeze("heads take layouts in turn that are not known")
        return
    q = _attend(op, {}, whole=True)
    if several and q is not None:
        known = {i: table for i, table in tables.items() if table is not None}
        op.edit(lambda e: _keep_layouts(e, q, known))


def _keep_layouts(e: Editor, q: Ids, layouts: Mapping[int, np.ndarray]) -> None:
    """Heads [heads, head size] that stay keep their layouts: from now on each has one of its own."""
    alive = e.kept(q).any(axis=1)
    if not alive.all():
        for i, table in layouts.items():
            e.const(i, table[np.flatnonzero(alive) % len(table)], TensorProto.INT32)


def _told_apart(op: Op) -> bool:
    """Whether query, key and value are: each in an input of its own, or side by side in the first."""
    known = ranks_known(op, [QUERY, KEY]) and op.has(KEY) == op.has(VALUE)
    if not known:
        op.freeze("query, key and value are not told apart")
    return known


def _attend(op: Op, more: Mapping[int, Sequence[str]], whole: bool) -> Ids | None:
    """What both operators have in common, and the axes of `more` inputs. whole: of a head nothing goes alone. The ids
    of the queries [heads, head size]; None where they are not labelled, or not of a known size."""
    heads, shared, apart = int(op.attr("num_heads")), int(op.attr("kv_num_heads")), op.has(KEY)
    width = op.dims(KEY if apart else QUERY)[-1]
    if width is None:
        op.freeze("the head size is not known")
        return None
    depth = width // (shared if apart else heads + 2 * shared)
    past_key, past_value = GroupQueryAttention.PAST_KEY, GroupQueryAttention.PAST_VALUE  # of SparseAttention, too
    ins = {
        QUERY: ["b", "s", "grd" if apart else "grd|gd|ge"],
        KEY: ["b", "t", "gd"],
        VALUE: ["b", "t", "ge"],
        past_key: ["b", "g", "p", _of_head(op.dims(past_key), depth, "d")],
        past_value: ["b", "g", "p", _of_head(op.dims(past_value), depth, "e")],
        **more,
    }
    sizes = {"g": shared, "r": heads // shared, "d": depth, "e": depth}
    present = {i: ["b", "g", "", _of_head(op.out_dims(i), depth, x)] for i, x in ((1, "d"), (2, "e"))}
    outs = {0: ["b", "s", "gre"], **present, 3: ["b", "gr", "s", "t"]}
    op.eq(ins, outs, sizes=sizes, pinned="tp", macs="grdst grste", text=why_fixed(op, past_key))
    parts = _query_key_value(op, heads, shared, depth)
    if parts is None:
        return None
    q, k, v = parts
    _tie(op, q, k, v, whole)
    keep_scale(op, depth)
    count_heads_left(op, "num_heads", q)
    count_heads_left(op, "kv_num_heads", k)
    return q


def _of_head(dims: Dims, depth: int, letter: str) -> str:
    """How the last axis of a cache is spelled: with several channels in a byte it is none of the head's."""
    return letter if (dims or (None,))[-1] in (depth, None) else ""


def _query_key_value(op: Op, heads: int, shared: int, depth: int) -> list[Ids] | None:
    """The ids of query, key and value, each [heads, head size]; None where not all of them are labelled."""
    counts = (heads, shared, shared)
    if op.has(KEY):
        found = [heads_in_last(op, i, (n, depth)) for i, n in zip((QUERY, KEY, VALUE), counts, strict=True)]
        return None if any(x is None for x in found) else [x for x in found if x is not None]
    side_by_side = heads_in_last(op, QUERY, (sum(counts), depth))
    return None if side_by_side is None else np.split(side_by_side, np.cumsum(counts)[:-1])


def _tie(op: Op, q: Ids, k: Ids, v: Ids, whole: bool) -> None:
    """Of each head [heads, head size] eight neighbours go at a time, or all where it goes `whole`; of all heads as
    many."""
    op.note_maps(q)
    for block in (q, np.stack([k, v])):
        op.labels.rectangle(block)
    depth = q.shape[1]
    for ids in (q, k, v):
        runs = ids.reshape(len(ids), -1, depth if whole or depth % EIGHT else EIGHT)
        op.labels.couple_along(runs, 2, op.why("heads go whole" if whole else "head sizes are multiples of eight"))
