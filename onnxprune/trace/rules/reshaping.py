"""Reshape and Flatten: run on the id arrays, segment by segment. A rule knows one `Op`, not the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod
from operator import mul

import numpy as np

from onnxprune.shapes import Dim, Lost, Size, content, quotient
from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.product import common_front, product
from onnxprune.trace.tracing import MAX_BLOCK_IDS

Shape = tuple[Dim, ...]
Segment = tuple[range, range]
"""Axes of the input and of the output that hold the same elements in the same order."""


def reshape(op: Op) -> None:
    """Reshape, Flatten: the same elements in the same order, on other axes."""
    a, b = op.sizes(0), op.out_sizes(0)
    if not op.blocks(0):
        return op.set(0, [])
    if a is None or b is None:
        return op.freeze("the shape on one side is not known")
    if 0 in (*a, *b):
        return op.freeze("a tensor without elements")
    try:
        segments = segment(a, b)
    except Lost:
        return op.freeze("the sizes are too involved to be followed")
    moved = (_moved(op, block, segments, a, b) for block in _together(op, segments, a, b))
    op.set(0, [block for block in moved if block is not None])
    if op.type == "Reshape":
        op.edit(lambda e: e.sizes(1, 0))


@lru_cache(1 << 10)  # repeated blocks reshape alike
def segment(a: Shape, b: Shape) -> list[Segment]:
    """Runs of axes of equal product in a -> b, as small as their sizes show for all values of their symbols."""
    ahead = {n: i for i, n in reversed([*enumerate(accumulate(a, mul, initial=1))])}
    cuts = {(ahead[n], j) for j, n in enumerate(accumulate(b, mul, initial=1)) if n in ahead}
    behind = {n: len(a) - i for i, n in enumerate(accumulate(reversed(a), mul, initial=1))}
    cuts |= {(behind[n], len(b) - j) for j, n in enumerate(accumulate(reversed(b), mul, initial=1)) if n in behind}
    out: list[Segment] = []
    i = j = 0
    for k, m in sorted(cuts - {(len(a), len(b))}):
        if k > i and m > j:
            out.append((range(i, k), range(j, m)))
            i, j = k, m
    return [*out, (range(i, len(a)), range(j, len(b)))] if i < len(a) or j < len(b) else out


def _together(op: Op, segments: Sequence[Segment], a: Shape, b: Shape) -> list[Block]:
    """Blocks to move; several that a segment merges are asked to be born as one, and otherwise made one here. Where
    they cannot be, the outer ones stay, and whatever is left of them in the re-trace does not go on either."""
    left = [b for b in op.blocks(0) if not op.labels.ended_at(b.ids, op.node.name)]
    for ins, outs in segments:
        inside = sorted((b for b in left if set(b.axes) & set(ins)), key=lambda b: b.axes)
        if len(inside) > 1 and a[ins.start : ins.stop] != b[outs.start : outs.stop]:
            op.demand_one_birth(inside)
            left = [b for b in left if b not in inside]
            whole = inside[0]
            for block in inside[1:]:
                both = _product(op, whole, block)
                if both is None:
                    op.labels.end_at(whole.ids, op.why("merges two labelled axes into one"))
                whole = both or block
            left.append(whole)
    return left


def _product(op: Op, outer: Block, inner: Block) -> Block | None:
    """Both blocks as one; None where their axes are not those of a nesting, outermost first."""
    shared = common_front(outer.axes, inner.axes)
    axes = outer.axes + inner.axes[shared:]
    size = outer.ids.size * prod(inner.ids.shape[shared:])
    if len(set(axes)) < len(axes) or [*axes] != sorted(axes) or outer.coarse or inner.coarse or size > MAX_BLOCK_IDS:
        return None
    key = (None, op.node.name, axes)
    return Block(axes, product(op.labels, key, outer.ids, inner.ids, shared, op.why("heads, and what is in them")))


@dataclass(frozen=True)
class _Layout:
    """How many ids lie along each axis that a reshape touches, of the input and of the output, so that both are the
    same list of ids. `period`: after how many at most they repeat along an axis of the output."""

    before: dict[int, int]
    after: dict[int, int]
    period: dict[int, int]


def _layout(touched: Sequence[Segment], a: Shape, b: Shape) -> _Layout | None:
    """None where the sizes do not show which factors both sides have in common."""
    layout = _Layout({}, {}, {})
    for ins, outs in touched:
        factors = common(tuple(a[k] for k in ins), tuple(b[k] for k in outs))
        if factors is None:
            return None
        ours, theirs = factors
        layout.before.update(zip(ins, (prod(map(_number, own)) for own in ours), strict=True))
        layout.after.update(zip(outs, (prod(map(_number, own)) for own in theirs), strict=True))
        layout.period.update(zip(outs, map(_period, theirs), strict=True))
    return layout


def _moved(op: Op, block: Block, segments: Sequence[Segment], a: Shape, b: Shape) -> Block | None:
    """A block where the reshape takes it; None where nothing of it is left, or where it is followed no further."""
    touched = [s for s in segments if set(s[0]) & set(block.axes)]
    if all(len(i) == len(o) == 1 for i, o in touched):
        to = {i[0]: o[0] for i, o in touched}
        return Block(tuple(to[x] for x in block.axes), block.ids)
    layout = _layout(touched, a, b)
    if layout is None:
        op.freeze_ids(block.ids, "channels end up on an axis of run-time size")
        return None
    block = block.at([layout.before.get(k) for k in range(len(a))])
    ids = np.reshape(_unnested(op, block, layout.before), [*layout.after.values()])
    axes, ids = _varying([*layout.after], ids)
    for k, axis in reversed([*enumerate(axes)]):
        if not isinstance(b[axis], Size):
            continue
        once = _once(ids, k, layout.period[axis])
        if once is None and ids.ndim == 1:  # batch x channels: along an axis of run-time size they have to be repeated
            op.freeze_ids(block.ids, "channels end up on an axis of run-time size")
            return None
        if once is None:  # positions x batch: these stay, and what is beside them goes for all of them
            ids = op.labels.couple_along(ids, k, op.why("channels end up on an axis of run-time size"))
            axes = (*axes[:k], *axes[k + 1 :])
        else:
            ids = once
    return Block(axes, np.ascontiguousarray(ids)) if axes else None


def _unnested(op: Op, block: Block, sizes: Mapping[int, int]) -> Ids:
    """The ids of a block over all axes of `sizes` in the tensor's order, repeated along those that it has not. Where
    its nesting has another order, the block goes as a whole."""
    if list(block.axes) != sorted(block.axes):
        tied = block.ids
        while tied.ndim > 1:
            tied = op.labels.couple_along(tied, 0, op.why("merges axes in another order"))
    ids = block.ids.transpose(np.argsort(block.axes))
    for k, (axis, n) in enumerate(sizes.items()):
        if axis not in block.axes:
            ids = np.broadcast_to(np.expand_dims(ids, k), (*ids.shape[:k], n, *ids.shape[k:]))
    return ids


def _varying(axes: Sequence[int], ids: Ids) -> tuple[tuple[int, ...], Ids]:
    """The axes along which not all ids are the same, and the ids along these alone."""
    kept: list[int] = []
    for k in reversed(range(ids.ndim)):
        if ids.shape[k] == 1 or bool((ids == np.take(ids, [0], k)).all()):
            ids = np.take(ids, 0, k)
        else:
            kept.insert(0, axes[k])
    return tuple(kept), ids


def _once(ids: Ids, k: int, period: int) -> Ids | None:
    """The first `period` ids along axis `k`; None where those that follow do not repeat them."""
    once = np.take(ids, range(period), k)
    repeats = [ids.shape[k] // period if m == k else 1 for m in range(ids.ndim)]
    return once if np.array_equal(np.tile(once, repeats), ids) else None


def _number(factor: Dim) -> int:
    """A number in place of a factor: whatever it is, the same elements come to lie side by side."""
    return 2 * content(factor) if isinstance(factor, Size) else factor


def _period(factors: Sequence[Dim]) -> int:
    """How often, at least, what repeats along an axis of these factors does so whatever their sizes are."""
    out = 1
    for factor in reversed(factors):
        out *= content(factor)
        if isinstance(factor, Size):
            break
    return out


@lru_cache(1 << 10)
def common(a: Shape, b: Shape) -> tuple[list[list[Dim]], list[list[Dim]]] | None:
    """The factors that each axis of `a` and of `b` consists of, outermost first, so that both are the same list of
    factors; numbers alone need none. None where the sizes do not show them."""
    if not any(isinstance(n, Size) for n in (*a, *b)):
        return [[n] for n in a], [[n] for n in b]
    ours, theirs = _Axes(a), _Axes(b)
    while (x := ours.size()) is not None and (y := theirs.size()) is not None:
        outer, inner = quotient(x, y), quotient(y, x)
        if outer is None and inner is None:
            return None
        factor = y if outer is not None else x
        ours.take(factor)
        theirs.take(factor)
    return (ours.factors, theirs.factors) if ours.size() is None and theirs.size() is None else None


class _Axes:
    """Axes that are taken apart from the innermost one on."""

    def __init__(self, sizes: Shape) -> None:
        self.factors: list[list[Dim]] = [[] for _ in sizes]
        self._left = list(sizes)

    def size(self) -> Dim | None:
        """What is left of the innermost axis of which anything is."""
        while self._left and self._left[-1] == 1:
            self._left.pop()
        return self._left[-1] if self._left else None

    def take(self, factor: Dim) -> None:
        """Split a factor of the innermost axis off."""
        k = len(self._left) - 1
        self.factors[k].insert(0, factor)
        self._left[k] = quotient(self._left[k], factor) or 0
