"""RotaryEmbedding: pairs of channels inside every head are turned by an angle that all heads share.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

import numpy as np

from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import ranks_known
from onnxprune.trace.rules.inputs import ContribRotary, Rotary

PAIRS = "pairs are turned by angles that all heads share"
STEPS = "every position is turned by angles of its own"


def rotary(op: Op) -> None:
    """ONNX RotaryEmbedding, opset 23 on."""
    _turn(op, Rotary.COSINES, Rotary.SINES)


def contrib_rotary(op: Op) -> None:
    """com.microsoft RotaryEmbedding."""
    _turn(op, ContribRotary.COSINES, ContribRotary.SINES)


def _turn(op: Op, cosines: int, sines: int) -> None:
    """Input 0 is [batch, steps, heads x size] or [batch, heads, steps, size]; of each head the first
    `rotary_embedding_dim` channels are turned, all of them where that is 0. `cosines`, `sines`: inputs whose last axis
    has an entry a pair."""
    if not ranks_known(op, [0, cosines, sines]):
        return None
    flat, sizes = len(op.dims(0)) == 3, _sizes(op, cosines)
    if sizes is None:
        return op.freeze("the size of a head, or of what is turned of it, is not known")
    heads, turned = sizes
    for i in (cosines, sines):
        for axis in range(len(op.dims(i)) - 1):
            op.freeze_axis(i, axis, STEPS)
    op.freeze_axis(0, 1 if flat else 2, STEPS)
    op.set(0, op.blocks(0))
    ids = _in_heads(op, heads if flat else None)
    if ids is None:
        return op.freeze("what is turned is not labelled by heads", outputs=True)
    columns = Block((0,), _columns(op, ids, turned))
    for i in (cosines, sines):
        op.meet(i, [*[""] * (len(op.dims(i)) - 1), "m"], ["m"], [columns], PAIRS)
    if op.attr("rotary_embedding_dim", 0):
        op.edit(lambda e: e.attr("rotary_embedding_dim", int(e.kept(ids[:, :turned]).sum(axis=1).max())))
    if flat and op.attr("num_heads", 0):
        op.edit(lambda e: e.attr("num_heads", int(e.kept(ids).any(axis=1).sum())))


def _sizes(op: Op, cosines: int) -> tuple[int, int] | None:
    """(heads, channels of each that are turned); None where they are not known, or do not fit each other."""
    dims, pairs = op.dims(0), op.dims(cosines)[-1]
    if not pairs or dims[-1] is None:
        return None
    turned = int(op.attr("rotary_embedding_dim", 0)) or 2 * pairs
    heads = (int(op.attr("num_heads", 0)) or dims[-1] // turned) if len(dims) == 3 else dims[1]
    fits = turned == 2 * pairs and heads and (len(dims) == 4 or dims[-1] % heads == 0)
    return (heads, turned) if heads and fits else None


def _in_heads(op: Op, heads: int | None) -> Ids | None:
    """The ids of input 0 as [heads, size], `heads` of them inside the last axis (None: on an axis of their own); None
    where that axis has no ids, or other ones."""
    last = len(op.dims(0)) - 1
    block = op.block_on(0, last)
    if block is None:
        return None
    if block.axes == (last,):
        return block.ids.reshape(heads or 1, -1)
    return block.ids if heads is None and block.axes == (1, last) else None


def _columns(op: Op, ids: Ids, turned: int) -> Ids:
    """The ids of the pairs: what lies at their angles is the same in every head."""
    front = ids[:, :turned]
    for block in (ids, front):
        op.labels.rectangle(block)
    if op.attr("interleaved", 0):
        pairs = front.reshape(len(ids), -1, 2)
    else:
        pairs = np.swapaxes(front.reshape(len(ids), 2, -1), 1, 2)
    return op.labels.column_ids(op.labels.couple_along(pairs, 2, op.why(PAIRS)), op.why(PAIRS))
