"""Concat and Split: axes put together of parts, and taken apart again. A rule knows one `Op`, not the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.trace.labels import KEPT, Block
from onnxprune.trace.op import Misfit, Op
from onnxprune.trace.rules.base import LETTERS, inner_parts, own_axis, ranks_known, remap

Shape = tuple[int | None, ...]


def concat(op: Op) -> None:
    used = list(range(len(op.node.input)))
    if not ranks_known(op, used):
        return None
    rank = len(op.dims(0))
    if any(op.rank(i) != rank for i in used):
        raise Misfit("what it joins has different numbers of axes")
    axis = own_axis(op, 0, rank)
    letters = list(LETTERS[:rank])
    alone = {i: [b for b in op.blocks(i) if axis in b.axes] for i in used}
    if not any(op.blocks(i) for i in used):
        return op.set(0, [])
    if any(op.dims(i)[axis] is None for i in used) and any(alone.values()):
        op.freeze("joins an axis of run-time size")
        alone = {i: [] for i in used}
    others = {i: tuple(b for b in op.blocks(i) if axis not in b.axes) for i in used}
    out = list(op.across(others, letters, axis))
    if any(alone.values()):
        joined = _joined(op, used, alone, axis)
        if joined is not None:
            out = [b for b in out if not set(b.axes) & set(joined.axes)] + [joined]
    op.set(0, out)


def _joined(op: Op, used: Sequence[int], alone: dict[int, list[Block]], axis: int) -> Block | None:
    blocks = [b for bs in alone.values() for b in bs]
    axes = max((b.axes for b in blocks), key=len)
    dims = {a: n for b in blocks for a, n in zip(b.axes, b.ids.shape, strict=True)}
    k = axes.index(axis)
    parts = []
    for i in used:
        size = op.dims(i)[axis]
        n = 1 if size is None else size
        own = alone[i][0] if alone[i] else None
        shape = tuple(n if a == axis else dims[a] for a in axes)
        if own is None:
            parts.append(np.full(shape, KEPT, np.int64))
        elif own.axes == axes:
            parts.append(own.ids)
        elif set(own.axes) <= set(axes):
            at = [axes.index(a) for a in own.axes]
            ids = own.ids.transpose(np.argsort(at))
            for m in sorted(set(range(len(axes))) - set(at)):
                ids = np.expand_dims(ids, m)
            parts.append(np.broadcast_to(ids, shape))
        else:
            op.freeze("joins differently nested axes")
            return None
    if any(p.shape[:k] + p.shape[k + 1 :] != parts[0].shape[:k] + parts[0].shape[k + 1 :] for p in parts):
        op.freeze("joins differently nested axes")
        return None
    ids = np.concatenate(parts, axis=k)
    labels = op.trace.labels
    for i in used:  # what an input holds on the other axes of the nesting, beside it
        for b in op.blocks(i):
            if axis not in b.axes and set(b.axes) & set(axes):
                if b.axes == axes[:-1] and k == len(axes) - 1:
                    op.couple(b.ids, labels.derive(ids))
                else:
                    labels.freeze(b.ids, op.why("joins differently nested axes"))
    parts = [p for p in parts if p.size]
    if k == len(axes) - 1 and k > 0:
        for part in parts:
            labels.rectangle(part)
            op.couple(labels.derive(part), labels.derive(ids))
    elif len(axes) - 1 > 0:
        for part in parts:  # whole rows side by side: their insides are as large as each other
            labels.rectangle(part)
    return Block(axes, ids)


def split(op: Op) -> None:
    if not ranks_known(op, [0]):
        return None
    axis = own_axis(op, 0, len(op.dims(0)))
    block = op.block_on(0, axis)
    rest = [b for b in op.blocks(0) if b is not block]
    count = len(op.node.output)
    if block is None:
        for i in range(count):
            op.set(i, rest)
        return None
    sizes = [op.out_dims(i)[axis] if op.out_rank(i) else None for i in range(count)]
    if None in sizes or sum(s or 0 for s in sizes) != op.dims(0)[axis]:
        return op.freeze("the sizes of a split are not known")
    cuts = np.cumsum([s or 0 for s in sizes])[:-1]
    for i, ids in enumerate(inner_parts(op, block, axis, [int(c) for c in cuts])):
        part = remap(block, ids, list(block.axes))
        op.set(i, [*rest, *([part] if part else [])])
        if part is None:
            op.trace.labels.rectangle(ids)
    op.edit(lambda e: e.split(axis))
