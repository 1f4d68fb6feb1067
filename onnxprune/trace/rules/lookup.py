"""Movements by index: what is looked up at positions that another tensor tells.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from onnxprune.shapes import Size, lower, mod, quotient
from onnxprune.trace.editor import Editor
from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import LETTERS, own_axis, ranks_known, spell
from onnxprune.trace.rules.movement import picked
from onnxprune.trace.rules.scatter import overwritten


def gather(op: Op) -> None:
    if not ranks_known(op, [0, 1]):
        return
    rank, wide = len(op.dims(0)), len(op.dims(1))
    axis = own_axis(op, 0, rank)
    index = op.table(1)

    def moved(a: int) -> int:
        return a if a < axis else a + wide - 1

    blocks: list[Block] = []
    for b in op.blocks(0):
        if axis not in b.axes:
            blocks.append(Block(tuple(moved(a) for a in b.axes), b.ids))
        elif index is None and (cyclic := _cyclic(op, b, axis)) is not None:
            blocks.append(cyclic)
        elif index is None or op.dims(0)[axis] != b.ids.shape[b.axes.index(axis)]:
            op.trace.labels.freeze(b.ids, op.why("rows are looked up by run-time indices"))
        else:
            at = np.asarray(index, np.int64).ravel() % (op.dims(0)[axis] or 1)
            blocks += picked(op, b, axis, at, tuple(range(axis, axis + wide)), np.shape(index), moved)
            op.edit(partial(_point, axis=axis, block=b, index=index))
    op.set(0, [*blocks, *(Block(tuple(axis + a for a in b.axes), b.ids) for b in op.blocks(1))])


def _point(e: Editor, axis: int, block: Block, index: Ids) -> None:
    e.gather(axis, block, index)


def _cyclic(op: Op, block: Block, axis: int) -> Block | None:
    """Indices into an axis of run-time size on which the ids repeat (batch x channels, flattened), which are computed
    from sizes, as for as_strided: those that tell, whatever the sizes are, which of the repeated ids is meant along one
    axis of theirs. They are computed anew where the period shrinks."""
    n = block.ids.size
    period = next(
        q for q in range(1, n + 1) if n % q == 0 and (block.ids.reshape(-1, q) == block.ids.ravel()[:q]).all()
    )
    cycle = block.ids.ravel()[:period]
    grid = op.trace.shapes.grid(op.inputs[1])
    if grid is None or block.axes != (axis,) or op.dims(0)[axis] is not None:
        return None
    entries = grid.base.ravel().tolist()
    if any(lower(x) < 0 for x in (*entries, *grid.steps.values())):
        return None
    if any(quotient(step, period) is None for step in grid.steps.values()):
        return None
    places = [mod(x, period) for x in entries]
    if any(isinstance(x, Size) for x in places):
        return None
    at = np.array(places, np.int64).reshape(grid.base.shape)
    for a in range(at.ndim):
        if (at == np.take(at, [0], a)).all():
            at = np.take(at, [0], a)
    wide = [a for a, n in enumerate(at.shape) if n > 1]
    if len(wide) != 1 or op.dims(1)[wide[0]] is None:
        return None
    ids = cycle[at.ravel()]
    op.trace.labels.rectangle(ids)
    op.edit(partial(_anew, cycle=cycle, axis=wide[0], at=at.ravel()))
    return Block((axis + wide[0],), ids)


def _anew(e: Editor, cycle: Ids, axis: int, at: Ids) -> None:
    """Of the indices those that are kept, each in periods that are shorter now."""
    kept = e.kept(cycle)
    if not kept.all():
        e.reindex(1, axis, np.flatnonzero(kept[at]), np.cumsum(kept) - 1, int(kept.sum()))


def gather_elements(op: Op) -> None:
    """Also ScatterElements (data, indices, updates): positions along `axis` are looked up, the others go in step."""
    if not ranks_known(op, [0, 1]):
        return
    rank = len(op.dims(0))
    axis = own_axis(op, 0, rank)
    data, index = spell(op.dims(0)), spell(op.dims(1), LETTERS[:rank])
    told = [k for k in range(rank) if k == axis or op.dims(0)[k] != op.dims(1)[k]]  # of a longer axis the first go in
    pinned = "".join(data[k] for k in told)
    for k in told:
        index[k] = LETTERS[26 + k] if index[k] else ""
        pinned += index[k]
    if op.type == "GatherElements":
        op.eq({0: data, 1: index}, {0: ["" if k in told else s for k, s in enumerate(index)]}, pinned=pinned)
    else:
        out = ["" if k in told else s for k, s in enumerate(data)]
        op.eq({0: data, 1: index, 2: index}, {0: out}, pinned=pinned)


def gather_nd(op: Op) -> None:
    if not ranks_known(op, [0, 1]):
        return None
    batch, width = int(op.attr("batch_dims", 0)), op.dims(1)[-1]
    if width is None:
        return op.freeze("the shape of the indices is not known")
    data = spell(op.dims(0))
    index = [*data[:batch], *spell(op.dims(1)[batch:], LETTERS[30:])]
    rest = data[batch + width :]
    told = "".join(data[: batch + width]) + index[-1]
    op.eq({0: data, 1: index}, {0: [*index[:-1], *rest]}, pinned=told, text="positions are told by value")


def scatter_nd(op: Op) -> None:
    if not ranks_known(op, [0, 1, 2]) or op.dims(1)[-1] is None:
        return
    if overwritten(op):
        return
    width = int(op.dims(1)[-1] or 0)
    data = spell(op.dims(0))
    lead = len(op.dims(1)) - 1
    updates = [*spell(op.dims(2)[:lead], LETTERS[30:]), *spell(op.dims(2)[lead:], LETTERS[width:])]
    index = [*updates[:lead], "Z"]
    pinned = "".join(data[:width]) + "".join(index)
    out = ["" if k < width else s for k, s in enumerate(data)]
    op.eq({0: data, 1: index, 2: updates}, {0: out}, pinned=pinned, text="positions are told by value")
