"""Concat and Split: axes put together of parts, and taken apart again. A rule knows one `Op`, not the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from onnxprune.trace.labels import KEPT, Block, Ids
from onnxprune.trace.op import Misfit, Op
from onnxprune.trace.rules.base import LETTERS, inner_parts, own_axis, ranks_known, remap

OTHER_NESTING = "joins differently nested axes"


def concat(op: Op) -> None:
    """Concat: along one axis the inputs lie side by side, along the others all of them are one."""
    _concat(op, range(len(op.inputs)))


def qlinear_concat(op: Op) -> None:
    """com.microsoft QLinearConcat: each part has a scale and a zero point behind it, those of the whole come first."""
    _concat(op, range(2, len(op.inputs), 3))


def _concat(op: Op, used: Sequence[int]) -> None:
    if not ranks_known(op, used):
        return None
    rank = len(op.dims(used[0]))
    if any(op.rank(i) != rank for i in used):
        raise Misfit("what it joins has different numbers of axes")
    axis = own_axis(op, 0, rank)
    if not op.labelled():
        return op.set(0, [])
    along = {i: [b for b in op.blocks(i) if axis in b.axes] for i in used}
    others = {i: tuple(b for b in op.blocks(i) if axis not in b.axes) for i in used}
    if any(along.values()) and any(op.dims(i)[axis] is None for i in used):
        op.freeze("joins an axis of run-time size")
        along = {}
    out = list(op.across(others, LETTERS[:rank], axis))
    op.set(0, _beside(out, _joined(op, along, axis)) if any(along.values()) else out)


def _beside(others: list[Block], joined: Block | None) -> list[Block]:
    """The blocks of the result: that on the joined axis, and those on axes that it has nothing to do with."""
    return others if joined is None else [*(b for b in others if not set(b.axes) & set(joined.axes)), joined]


def _joined(op: Op, along: Mapping[int, Sequence[Block]], axis: int) -> Block | None:
    """The blocks of all inputs on the joined axis, side by side; None where they are nested differently."""
    axes = max((b.axes for own in along.values() for b in own), key=len)
    parts = _parts(op, along, axes, axis)
    if parts is None:
        op.freeze(OTHER_NESTING)
        return None
    joined = Block(axes, np.concatenate(parts, axis=axes.index(axis)))
    _couple_beside(op, along, joined, axis)
    _keep_rows_whole(op, [p for p in parts if p.size], joined, axis)
    return joined


def _parts(op: Op, along: Mapping[int, Sequence[Block]], axes: tuple[int, ...], axis: int) -> list[Ids] | None:
    """The ids of every input over the nested `axes`, KEPT where an input has none; None where they do not fit."""
    dims = {a: n for own in along.values() for b in own for a, n in zip(b.axes, b.ids.shape, strict=True)}
    parts: list[Ids] = []
    for i, own in along.items():
        shape = tuple((op.dims(i)[axis] or 0) if a == axis else dims[a] for a in axes)
        part = _part(own[0], axes, shape) if own else np.full(shape, KEPT, np.int64)
        if part is None:
            return None
        parts.append(part)
    k = axes.index(axis)
    return parts if len({(*p.shape[:k], *p.shape[k + 1 :]) for p in parts}) == 1 else None


def _part(block: Block, axes: tuple[int, ...], shape: tuple[int, ...]) -> Ids | None:
    """The ids of one input over all axes of the nesting; None where it has one that they have not."""
    if block.axes == axes:
        return block.ids
    if not set(block.axes) <= set(axes):
        return None
    at = [axes.index(a) for a in block.axes]
    ids = block.ids.transpose(np.argsort(at))
    for k in sorted(set(range(len(axes))) - set(at)):
        ids = np.expand_dims(ids, k)
    return np.broadcast_to(ids, shape)


def _couple_beside(op: Op, used: Iterable[int], joined: Block, axis: int) -> None:
    """What an input holds on the other axes of the nesting, beside it: its rows are those of the whole."""
    for i in used:
        for b in op.blocks(i):
            if axis in b.axes or not set(b.axes) & set(joined.axes):
                continue
            if (*b.axes, axis) == joined.axes:
                op.couple(b.ids, op.labels.derive(joined.ids))
            else:
                op.freeze_ids(b.ids, OTHER_NESTING)


def _keep_rows_whole(op: Op, parts: Sequence[Ids], joined: Block, axis: int) -> None:
    """In a nesting the insides of the rows are as large as each other in every part; where they are what is joined, a
    row goes in all parts or in none."""
    if len(joined.axes) == 1:
        return
    for part in parts:
        op.labels.rectangle(part)
        if joined.axes[-1] == axis:
            op.couple(op.labels.derive(part), op.labels.derive(joined.ids))


def split(op: Op) -> None:
    """Split: every output is a run of positions of one axis."""
    if not ranks_known(op, [0]):
        return
    axis = own_axis(op, 0, len(op.dims(0)))
    if part(op, axis):
        op.edit(lambda e: e.split(axis))


def part(op: Op, axis: int) -> bool:
    """Give every output its run of positions of an axis; whether the axis has ids, and the sizes of the runs are
    known."""
    block = op.block_on(0, axis)
    rest = [b for b in op.blocks(0) if b is not block]
    if block is None:
        for i in range(len(op.outputs)):
            op.set(i, rest)
        return False
    sizes = _part_sizes(op, axis)
    if sizes is None:
        op.freeze("the sizes of a split are not known")
        return False
    for i, ids in enumerate(inner_parts(op, block, axis, np.cumsum(sizes)[:-1].tolist())):
        cut = remap(block, ids, block.axes)
        op.set(i, rest if cut is None else [*rest, cut])
        if cut is None:
            op.labels.rectangle(ids)
    return True


def _part_sizes(op: Op, axis: int) -> list[int] | None:
    """The sizes of the outputs along the axis that is split; None where not all are known."""
    sizes = [op.out_dims(i)[axis] if op.out_rank(i) else None for i in range(len(op.outputs))]
    known = [n for n in sizes if n is not None]
    return known if len(known) == len(sizes) and sum(known) == op.dims(0)[axis] else None
