"""Operators that only move positions: they are run on the id arrays themselves.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from onnxprune.trace.editor import Editor
from onnxprune.trace.labels import KEPT, Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import axes_of, inner_parts, ranks_known, remap

Shape = tuple[int | None, ...]


def transpose(op: Op) -> None:
    if ranks_known(op, [0]):
        rank = len(op.dims(0))
        perm = list(op.attr("perm", list(range(rank))[::-1]))
        op.set(0, [Block(tuple(perm.index(a) for a in b.axes), b.ids) for b in op.blocks(0)])


def squeeze(op: Op) -> None:
    if ranks_known(op, [0], [0]):
        rank = len(op.dims(0))
        axes = axes_of(op, rank)
        if axes is None:
            if op.has(1):
                return op.freeze("the axes are computed at run time")
            axes = [k for k, n in enumerate(op.dims(0)) if n == 1]
        left = [k for k in range(rank) if k not in axes]
        op.set(0, [Block(tuple(left.index(a) for a in b.axes), b.ids) for b in op.blocks(0)])
        if not (op.has(1) or op.attr("axes")):
            op.edit(lambda e: e.squeeze_axes(axes))


def unsqueeze(op: Op) -> None:
    if ranks_known(op, [0], [0]):
        axes = axes_of(op, len(op.out_dims(0)))
        if axes is None:
            return op.freeze("the axes are computed at run time")
        left = [k for k in range(len(op.out_dims(0))) if k not in axes]
        op.set(0, [Block(tuple(left[a] for a in b.axes), b.ids) for b in op.blocks(0)])


def slice_(op: Op) -> None:
    if not op.blocks(0):
        return op.set(0, [])
    if not ranks_known(op, [0]):
        return None
    rank = len(op.dims(0))
    if op.has(1):
        starts, ends = op.partial(1), op.partial(2)
        axes, steps = op.value(3), op.value(4)
        count = op.dims(1)[0] if op.dims(1) else None
        if not op.has(3) and count is not None:
            axes = np.arange(count)
        if axes is None or (op.has(4) and steps is None):
            return op.freeze("the axes of a slice are computed at run time")
    else:
        starts, ends = list(op.attr("starts")), list(op.attr("ends"))
        axes, steps = op.attr("axes", range(len(starts))), None
    order = [int(a) % rank for a in axes]
    blocks = list(op.blocks(0))
    for k, axis in enumerate(order):
        block = next((b for b in blocks if axis in b.axes), None)
        if block is None:
            continue
        n = block.ids.shape[block.axes.index(axis)]
        if op.dims(0)[axis] != n:
            op.freeze_axis(0, axis, "cuts an axis of run-time size")
            blocks.remove(block)
            continue
        step = 1 if steps is None else int(steps[k])
        lo, hi = (None if v is None else v[k] for v in (starts, ends))
        if lo is None or hi is None:
            op.freeze_axis(0, axis, "the bounds of a slice are computed at run time")
            blocks.remove(block)
            continue
        at = np.arange(n)[slice(*_bounds(int(lo), int(hi), step, n))]
        blocks.remove(block)
        blocks += picked(op, block, axis, at, (axis,))
        op.edit(partial(_cut, axis=axis, block=block, at=at))
    op.set(0, blocks)


def _cut(e: Editor, axis: int, block: Block, at: Ids) -> None:
    e.slice(axis, block, at)


def _bounds(lo: int, hi: int, step: int, n: int) -> tuple[int | None, int | None, int]:
    if step > 0:
        return max(lo + n if lo < 0 else lo, 0), max(hi + n if hi < 0 else hi, 0), step
    lo, hi = (min(lo + n if lo < 0 else lo, n - 1), hi + n if hi < 0 else hi)
    return lo, (None if hi < 0 else hi), step


def picked(
    op: Op,
    block: Block,
    axis: int,
    at: Ids,
    to: tuple[int, ...],
    shape: tuple[int, ...] | None = None,
    moved: Callable[[int], int] = int,
) -> list[Block]:
    """The block of positions `at` along `axis`, whose new axes are `to` (none for a scalar); others are `moved`."""
    k = block.axes.index(axis)
    n = block.ids.shape[k]
    if at.size == 0:
        return []
    labels = op.trace.labels
    if k > 0:
        lo, hi = int(at.min()), int(at.max()) + 1
        run = at.size == hi - lo and bool((np.diff(at) == 1).all())
        if labels.remember(("run", op.node.name, block.axes), run):
            inner_parts(op, block, axis, [c for c in (lo, hi) if 0 < c < n])
        else:
            for j in range(k):  # other than a run of positions: the same ones in every row
                labels.couple_along(block.ids, j, op.why("picks the same positions of every row"))
    ids = np.take(block.ids, at, axis=k)
    labels.rectangle(ids)
    grown = ids.reshape((*ids.shape[:k], *(shape if shape is not None else (at.size,)), *ids.shape[k + 1 :]))
    axes: list[int | None] = [*map(moved, block.axes[:k]), *to, *map(moved, block.axes[k + 1 :])]
    out = remap(block, grown, axes)
    return [out] if out else []


def expand(op: Op) -> None:
    """Repeats axes of size one; what is made up may be made smaller."""
    if not ranks_known(op, [0], [0]):
        return
    rank, own = len(op.out_dims(0)), len(op.dims(0))
    shift = rank - own
    made: list[int | None] = [1] * rank
    for k, n in enumerate(op.out_dims(0)):
        if k < shift or (op.dims(0)[k - shift] == 1 and n != 1):
            made[k] = n
    blocks = [Block(tuple(a + shift for a in b.axes), b.ids) for b in op.blocks(0)]
    key = (None, op.node.name, "repeat")
    on = {a: b for b in blocks for a in b.axes}
    for axes in op.trace.structures.get(key, ()):
        outer = axes[0][0] if len(axes) > 1 else -1
        if made[outer] == 1 and len(on[outer].axes if outer in on else axes[:1]) == 1:
            made[outer] = op.out_dims(0)[outer]
    born = op.trace.born(key, made)
    for b in born:
        if len(b.axes) > 1:  # what is made up may differ from row to row
            rows = op.trace.labels.derive(b.ids)
            op.couple(rows, on[b.axes[0]].ids if b.axes[0] in on else np.full_like(rows, KEPT))
            blocks = [o for o in blocks if o.axes != b.axes[:1]]
    op.set(0, [*blocks, *born])
    if op.type == "Expand":
        op.edit(lambda e: e.sizes(1, 0, one_fits=True))


def tile(op: Op) -> None:
    if not op.blocks(0):
        return op.set(0, [])
    known = op.partial(1)
    if known is None or not ranks_known(op, [0]):
        return op.freeze("the repeats are computed at run time")
    # repeated as often as a run says, an axis is periodic
    op.set(0, [Block(b.axes, np.tile(b.ids, [known[a] or 1 for a in b.axes])) for b in op.blocks(0)])


def pad(op: Op) -> None:
    if not op.blocks(0):
        return op.set(0, [])
    if not ranks_known(op, [0]):
        return None
    rank = len(op.dims(0))
    pads = op.partial(1) if op.has(1) else [int(p) for p in op.attr("pads", op.attr("paddings"))]
    given = op.value(3)
    axes = list(range(rank)) if given is None else [int(a) % rank for a in given]
    mode = op.attr("mode", "constant")
    blocks = []
    for b in op.blocks(0):
        ids = b.ids
        for k, a in enumerate(b.axes):
            if a not in axes:
                continue
            lo, hi = (None if pads is None else pads[axes.index(a) + s * len(axes)] for s in (0, 1))
            if lo is None or hi is None or (mode != "constant" and (lo or hi)) or lo < 0 or hi < 0:
                op.trace.labels.freeze(b.ids, op.why("pads this axis by its neighbours or by run-time amounts"))
                break
            if lo or hi:
                ids = _padded(op, b, ids, k, a, int(lo), int(hi), axes)
        else:
            blocks.append(Block(b.axes, ids))
    op.set(0, blocks)


def _padded(op: Op, b: Block, ids: Ids, k: int, axis: int, lo: int, hi: int, axes: list[int]) -> Ids:
    """Padding on a labelled axis makes channels up: each is a channel of its own, coupled by what it is added to."""
    labels = op.trace.labels
    if ids.ndim > 1:
        labels.freeze(ids, op.why("pads inside nested axes"))
        return np.pad(ids, [(lo, hi) if m == k else (0, 0) for m in range(ids.ndim)], constant_values=KEPT)
    born = [labels.fresh((None, op.node.name, f"pad{s}{axis}"), (n,)) for s, n in (("lo", lo), ("hi", hi))]
    op.edit(lambda e: e.pads(axes, axis, *(int(e.kept(x).sum()) for x in born)))
    return np.concatenate([born[0], ids, born[1]])


def depth_to_space(op: Op) -> None:
    if not ranks_known(op, [0]):
        return
    size, mode = int(op.attr("blocksize")), op.attr("mode", "DCR")
    blocks = []
    for b in op.blocks(0):
        if b.axes != (1,):
            op.trace.labels.freeze(b.ids, op.why("spatial positions are moved"))
            continue
        each = b.ids.size // size**2
        ids = b.ids.reshape((size, size, each) if mode == "DCR" else (each, size, size))
        for _ in range(2):
            ids = op.trace.labels.couple_along(ids, 0 if mode == "DCR" else 1, op.why("pixels of one channel"))
        blocks += [Block((1,), ids)] if each > 1 else []
        if each == 1:
            op.trace.labels.freeze(b.ids, op.why("the only channel"))
    op.set(0, blocks)


def space_to_depth(op: Op) -> None:
    if not ranks_known(op, [0]):
        return
    size = int(op.attr("blocksize"))
    blocks = []
    for b in op.blocks(0):
        if b.axes == (1,):
            blocks.append(Block((1,), np.tile(b.ids, size**2)))
        else:
            op.trace.labels.freeze(b.ids, op.why("spatial positions are moved"))
    op.set(0, blocks)
