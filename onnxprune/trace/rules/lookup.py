"""Movements by index: what is looked up at positions that another tensor tells.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from onnxprune.model import Array
from onnxprune.shapes import Size, lower, mod, quotient
from onnxprune.trace.editor import Editor
from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import CAPITALS, LETTERS, own_axis, ranks_known, spell
from onnxprune.trace.rules.inputs import DATA, INDICES, UPDATES
from onnxprune.trace.rules.movement import picked
from onnxprune.trace.rules.scatter import overwritten


def gather(op: Op) -> None:
    """Gather: positions of one axis are picked, where the axes of the indices come in."""
    if not ranks_known(op, [DATA, INDICES]):
        return
    axis = own_axis(op, 0, len(op.dims(DATA)))
    _picked_along(op, axis, op.table(INDICES), len(op.dims(INDICES)))


def _picked_along(op: Op, axis: int, index: Array | None, wide: int) -> None:
    """What is picked by `index`, None where it is not known, lies on as many axes as it has, `wide`, in the place of
    `axis`."""

    def moved(a: int) -> int:
        return a if a < axis else a + wide - 1

    blocks: list[Block] = []
    for b in op.blocks(DATA):
        if axis not in b.axes:
            blocks.append(Block(tuple(moved(a) for a in b.axes), b.ids))
        elif index is None and (cyclic := _cyclic(op, b, axis)) is not None:
            blocks.append(cyclic)
        elif index is None or op.dims(DATA)[axis] != b.ids.shape[b.axes.index(axis)]:
            op.freeze_ids(b.ids, "rows are looked up by run-time indices")
        else:
            at = np.asarray(index, np.int64).ravel() % (op.dims(DATA)[axis] or 1)
            blocks += picked(op, b, axis, at, tuple(range(axis, axis + wide)), np.shape(index), moved)
            op.edit(partial(Editor.gather, axis=axis, block=b, index=index))
    op.set(0, [*blocks, *(Block(tuple(axis + a for a in b.axes), b.ids) for b in op.blocks(INDICES))])


def _cyclic(op: Op, block: Block, axis: int) -> Block | None:
    """Indices into an axis of run-time size on which the ids repeat (batch x channels, flattened), which are computed
    from sizes, as for as_strided: those that tell, whatever the sizes are, which of the repeated ids is meant along one
    axis of theirs. They are computed anew where the period shrinks."""
    if block.axes != (axis,) or op.dims(DATA)[axis] is not None:
        return None
    cycle = _cycle(block.ids)
    at = _places(op, cycle.size)
    wide = [] if at is None else [a for a, n in enumerate(at.shape) if n > 1]
    if at is None or len(wide) != 1 or op.dims(INDICES)[wide[0]] is None:
        return None
    ids = cycle[at.ravel()]
    op.labels.rectangle(ids)
    op.edit(partial(_anew, cycle=cycle, axis=wide[0], at=at.ravel()))
    return Block((axis + wide[0],), ids)


def _cycle(ids: Ids) -> Ids:
    """The shortest start of `ids` that all of them repeat."""
    n = ids.size
    period = next(q for q in range(1, n + 1) if n % q == 0 and (ids.reshape(-1, q) == ids[:q]).all())
    return ids[:period]


def _places(op: Op, period: int) -> Ids | None:
    """Where in a period the indices point, along those of their axes on which that varies (the others are of size one);
    None where it is not known, or depends on the sizes."""
    grid = op.trace.shapes.grid(op.inputs[INDICES])
    if grid is None:
        return None
    entries, steps = grid.base.ravel().tolist(), grid.steps.values()
    if any(lower(x) < 0 for x in (*entries, *steps)) or any(quotient(step, period) is None for step in steps):
        return None
    places = [mod(x, period) for x in entries]
    if any(isinstance(x, Size) for x in places):
        return None
    at = np.array(places, np.int64).reshape(grid.base.shape)
    for a in range(at.ndim):
        if (at == np.take(at, [0], a)).all():
            at = np.take(at, [0], a)
    return at


def _anew(e: Editor, cycle: Ids, axis: int, at: Ids) -> None:
    """Of the indices those that are kept, each in periods that are shorter now."""
    kept = e.kept(cycle)
    if not kept.all():
        e.reindex(INDICES, axis, np.flatnonzero(kept[at]), np.cumsum(kept) - 1, int(kept.sum()))


def gather_elements(op: Op) -> None:
    """Also ScatterElements (data, indices, updates): positions along `axis` are looked up, the others go in step."""
    if not ranks_known(op, [DATA, INDICES]):
        return
    rank = len(op.dims(DATA))
    axis = own_axis(op, 0, rank)
    data, index = spell(op.dims(DATA)), spell(op.dims(INDICES), LETTERS[:rank])
    # along an axis on which there are more data than indices, only the first positions are looked up
    by_value = [k for k in range(rank) if k == axis or op.dims(DATA)[k] != op.dims(INDICES)[k]]
    pinned = "".join(data[k] for k in by_value)
    for k in by_value:
        index[k] = CAPITALS[k] if index[k] else ""
        pinned += index[k]
    if op.type == "GatherElements":
        out = ["" if k in by_value else s for k, s in enumerate(index)]
        op.eq({DATA: data, INDICES: index}, {0: out}, pinned=pinned)
    else:
        out = ["" if k in by_value else s for k, s in enumerate(data)]
        op.eq({DATA: data, INDICES: index, UPDATES: index}, {0: out}, pinned=pinned)


def gather_nd(op: Op) -> None:
    """GatherND: the first axes are looked up together, the others pass."""
    if not ranks_known(op, [DATA, INDICES]):
        return None
    batch, width = int(op.attr("batch_dims", 0)), op.dims(INDICES)[-1]
    if width is None:
        return op.freeze("the shape of the indices is not known")
    index = op.table(INDICES)
    if index is not None and width == 1 and batch == 0:  # a Gather of rows, as torch.export spells x[:, index]
        return _picked_along(op, 0, index[..., 0], index.ndim - 1)
    data = spell(op.dims(DATA))
    told = [*data[:batch], *spell(op.dims(INDICES)[batch:], CAPITALS[4:])]
    out = [*told[:-1], *data[batch + width :]]
    by_value = "".join(data[: batch + width]) + told[-1]
    op.eq({DATA: data, INDICES: told}, {0: out}, pinned=by_value, text="positions are told by value")


def scatter_nd(op: Op) -> None:
    """ScatterND: values are put where indices say along the first axes, the others pass."""
    if not ranks_known(op, [DATA, INDICES, UPDATES]) or op.dims(INDICES)[-1] is None:
        return
    if overwritten(op):
        return
    width = int(op.dims(INDICES)[-1] or 0)
    data = spell(op.dims(DATA))
    lead = len(op.dims(INDICES)) - 1
    updates = [*spell(op.dims(UPDATES)[:lead], CAPITALS[4:]), *spell(op.dims(UPDATES)[lead:], LETTERS[width:])]
    index = [*updates[:lead], "Z"]
    pinned = "".join(data[:width]) + "".join(index)
    out = ["" if k < width else s for k, s in enumerate(data)]
    ins = {DATA: data, INDICES: index, UPDATES: updates}
    op.eq(ins, {0: out}, pinned=pinned, text="positions are told by value")
