"""Reshape and Flatten: run on the id arrays, segment by segment. A rule knows one `Op`, not the graph."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

import numpy as np

from onnxprune.labels import Block
from onnxprune.op import Op

Shape = tuple[int | None, ...]


def reshape(op: Op) -> None:
    probe = op.trace.shapes.probe
    pairs = [(p.get(op.node.input[0]), p.get(op.node.output[0])) for p in probe]
    if not op.blocks(0):
        return op.set(0, [])
    if any(a is None or b is None for a, b in pairs):
        return op.freeze("the shape on one side is not known")
    (a, b), (c, d) = ((tuple(x or ()), tuple(y or ())) for x, y in pairs)
    segments = segment(a, b, c, d)
    if segments is None:
        return op.freeze("the shape on one side is not known")
    op.set(0, [out for group in _together(op, segments) if (out := _move(op, group, segments, a, b, d)) is not None])
    if op.type == "Reshape":
        op.edit(lambda e: e.sizes(1, 0))


def segment(a: Shape, b: Shape, c: Shape, d: Shape) -> list[tuple[range, range]] | None:
    """Smallest runs of axes of equal product in a -> b, and at the second probe's sizes c -> d."""
    out: list[tuple[range, range]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        i0, j0 = i, j
        i, j = min(i + 1, len(a)), min(j + 1, len(b))
        while True:
            one, two = (a[i0:i], c[i0:i]), (b[j0:j], d[j0:j])
            if None in one[0] + one[1] or None in two[0] + two[1]:
                if (one[0] == (None,) == two[0]) and (i, j) != (i0, j0):
                    break
                return None
            x, y = (prod(n or 0 for n in s) for s in one), (prod(n or 0 for n in s) for s in two)
            (xa, xc), (ya, yc) = x, y
            if xa == ya and xc == yc:
                break
            if i == len(a) and j == len(b):
                return None
            if (xa <= ya and i < len(a)) or j == len(b):
                i += 1
            else:
                j += 1
        out.append((range(i0, i), range(j0, j)))
    return out


def _together(op: Op, segments: Sequence[tuple[range, range]]) -> list[Block]:
    """Blocks to move; several that a segment merges are asked to be born as one. Where they are not, the outer ones
    stay: heads whose values are shared go no more, but the width of all of them may. Of that one unit may be left: in
    the re-trace the outer ones are alone, and would go on."""
    left = [b for b in op.blocks(0) if not op.trace.labels.stops(b.ids, op.node.name)]
    for ins, outs in segments:
        inside = sorted((b for b in left if set(b.axes) & set(ins)), key=lambda b: b.axes)
        merges = len(inside) > 1 and not (
            len(ins) == len(outs) and op.dims(0)[ins.start : ins.stop] == op.out_dims(0)[outs.start : outs.stop]
        )
        if merges:
            op.trace.demand([(b, None) for b in inside], merged=True)
            for b in inside[:-1]:
                op.trace.labels.stop(b.ids, op.why("merges two labelled axes into one"))
            left = [b for b in left if b not in inside[:-1]]
    return left


def _move(op: Op, block: Block, segments: Sequence[tuple[range, range]], a: Shape, b: Shape, d: Shape) -> Block | None:
    touched = [s for s in segments if set(s[0]) & set(block.axes)]
    if all(len(i) == len(o) == 1 for i, o in touched):
        to = {i[0]: o[0] for i, o in touched}
        return Block(tuple(to[x] for x in block.axes), block.ids)
    axes = [k for ins, _ in touched for k in ins]
    block = block.at(a)
    ids = block.ids
    if list(block.axes) != sorted(block.axes):
        while ids.ndim > 1:  # a merge in the other order than the nesting's
            ids = op.trace.labels.tie(ids, 0, op.why("merges axes in another order"))
        ids = block.ids
    order = sorted(range(ids.ndim), key=lambda k: block.axes[k])
    ids = ids.transpose(order)
    for k, axis in enumerate(axes):
        if axis not in block.axes:
            ids = np.broadcast_to(np.expand_dims(ids, k), (*ids.shape[:k], a[axis] or 1, *ids.shape[k:]))
    targets = [k for _, outs in touched for k in outs]
    shaped = np.reshape(ids, [b[k] or 1 for k in targets])
    keep: list[int] = []
    for k in reversed(range(shaped.ndim)):
        first = np.take(shaped, [0], k)
        if shaped.shape[k] == 1 or bool((shaped == first).all()):
            shaped = np.take(shaped, 0, k)
        else:
            keep.insert(0, targets[k])
    for m, k in enumerate(keep):
        if b[k] != d[k]:  # batch x channels: the channels are repeated along an axis of run-time size
            period = gcd(b[k] or 0, d[k] or 0)
            once = np.take(shaped, range(period), m)
            repeats = [shaped.shape[m] // period if j == m else 1 for j in range(shaped.ndim)]
            if not np.array_equal(np.tile(once, repeats), shaped):
                op.trace.labels.freeze(block.ids, op.why("channels end up on an axis of run-time size"))
                return None
            shaped = once
    return Block(tuple(keep), np.ascontiguousarray(shaped)) if keep else None
