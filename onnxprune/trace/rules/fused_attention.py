"""Attention of com.microsoft that holds the weight of query, key and value.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.attention import CACHED, KEY, QUERY, VALUE, count_heads_left, keep_scale, only
from onnxprune.trace.rules.base import ranks_known, spell
from onnxprune.trace.rules.inputs import FusedAttention, QAttention


def fused(op: Op) -> None:
    """com.microsoft Attention and DecoderMaskedSelfAttention: one weight for query, key and value."""
    parts = _packed(op)
    if parts is not None:
        _, k, v = parts
        _meet_score_bias(op, v)
        if op.has(FusedAttention.PAST) or op.has_output(1):
            _meet_cache(op, k, v)


def without_padding(op: Op) -> None:
    """com.microsoft PackedAttention: as Attention, of the tokens of all sequences one after the other."""
    parts = _packed(op)
    if parts is not None:
        _meet_score_bias(op, parts[VALUE])


def quantised(op: Op) -> None:
    """com.microsoft QAttention: Attention of whole numbers, whose weight has one scale and zero point for all or one a
    column. Where it keeps past keys and values, these fix its heads."""
    parts = _packed(op, QAttention.WEIGHT_ZERO)
    if parts is not None and (op.has(QAttention.PAST) or op.has_output(1)):
        op.freeze_ids(np.stack(parts), CACHED)


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
    last = len(op.dims(FusedAttention.X)) - 1
    op.meet(0, [*"bs"[-last:], "c"], ["c"], [Block((0,), inputs.ids)], "attention reads an axis of fixed size")
    op.set(0, [Block((last,), v.ravel())])
    _note_packed_macs(op, parts, inputs)
    keep_scale(op, widths[0] // heads)
    count_heads_left(op, "num_heads", v)
    if op.attr("qkv_hidden_sizes"):
        op.edit(lambda e: e.attr("qkv_hidden_sizes", [int(e.kept(p).sum()) for p in parts]))
    return parts


def _note_packed_macs(op: Op, parts: Sequence[Ids], inputs: Block) -> None:
    """Three projections, the scores of every place with every other, and what these weigh."""
    steps = float((op.first_dims(FusedAttention.X) or (1, 1))[-2] or 1)
    projected = [(steps * inputs.ids.size * p.size, (inputs.ids, p.ravel())) for p in parts]
    op.note_macs([*projected, *((steps**2 * parts[k].size, (parts[k].ravel(),)) for k in (QUERY, VALUE))])


def _meet_score_bias(op: Op, v: Ids) -> None:
    """What is added to the scores has an axis of heads, or is the same for all."""
    if op.has(FusedAttention.SCORE_BIAS):
        spelled = spell(op.dims(FusedAttention.SCORE_BIAS), ["b", "h", "s", "t"])
        rows = Block((0,), op.labels.derive(v))
        op.meet(FusedAttention.SCORE_BIAS, spelled, ["h"], [rows], "a bias of fixed heads", pinned="bst")


def _meet_cache(op: Op, k: Ids, v: Ids) -> None:
    """Past and present keys and values lie in one tensor [2, batch, heads, steps, size]."""
    if k.shape != v.shape:
        return op.freeze_ids(np.concatenate([k.ravel(), v.ravel()]), CACHED)
    for ids in (k, v):
        if op.has(FusedAttention.PAST):
            op.meet(FusedAttention.PAST, ["", "", "h", "", "d"], ["h", "d"], [Block((0, 1), ids)], CACHED)
    op.set(1, [Block((0, 2, 4), np.stack([k, v]))])


def _own_packed(op: Op, parts: Sequence[Ids], inputs: Block, zero: int | None) -> None:
    """Weight and bias of a fused attention hold query, key and value side by side, and so do the scales and zero points
    of a quantised one. The scores sum over the size of a key's head, and the weight over the inputs."""
    side_by_side = np.concatenate([p.ravel() for p in parts])
    keys = only(parts, KEY)
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
