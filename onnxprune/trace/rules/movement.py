"""Operators that only move positions: they are run on the id arrays themselves.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.trace.labels import KEPT, Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import axes_of, inner_parts, ranks_known, remap, rows_of
from onnxprune.trace.rules.inputs import Pad, Slice


def transpose(op: Op) -> None:
    """Transpose: axes change places."""
    if ranks_known(op, [0]):
        rank = len(op.dims(0))
        perm = list(op.attr("perm", list(range(rank))[::-1]))
        op.set(0, [Block(tuple(perm.index(a) for a in b.axes), b.ids) for b in op.blocks(0)])


def squeeze(op: Op) -> None:
    """Squeeze: axes of size one go, those that are named or all of them."""
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
    """Unsqueeze: axes of size one come in between."""
    if ranks_known(op, [0], [0]):
        axes = axes_of(op, len(op.out_dims(0)))
        if axes is None:
            return op.freeze("the axes are computed at run time")
        left = [k for k in range(len(op.out_dims(0))) if k not in axes]
        op.set(0, [Block(tuple(left[a] for a in b.axes), b.ids) for b in op.blocks(0)])


@dataclass(frozen=True)
class _Cut:
    """Positions start, start + step, .. up to end of one axis; None for a bound that is computed at run time."""

    axis: int
    start: int | None
    end: int | None
    step: int

    def positions(self, n: int) -> Ids | None:
        """The positions that are picked of an axis of `n`; None where a bound is not known."""
        if self.start is None or self.end is None:
            return None
        lo, hi = (bound + n if bound < 0 else bound for bound in (self.start, self.end))
        if self.step > 0:
            return np.arange(n)[max(lo, 0) : max(hi, 0) : self.step]
        return np.arange(n)[min(lo, n - 1) : None if hi < 0 else hi : self.step]


def slice_(op: Op) -> None:
    """Slice: positions of some axes are picked."""
    if not op.blocks(0):
        return op.set(0, [])
    if not ranks_known(op, [0]):
        return None
    cuts = _cuts(op)
    if cuts is None:
        return op.freeze("the axes of a slice are computed at run time")
    blocks = list(op.blocks(0))
    for cut in cuts:
        block = next((b for b in blocks if cut.axis in b.axes), None)
        if block is not None:
            blocks.remove(block)
            blocks += _sliced(op, block, cut)
    op.set(0, blocks)


def _cuts(op: Op) -> list[_Cut] | None:
    """The cuts of a Slice, in its order; None where it is not known which axes it cuts, or in which steps."""
    if op.has(Slice.STARTS):
        starts, ends = op.partial(Slice.STARTS), op.partial(Slice.ENDS)
        axes, steps = op.value(Slice.AXES), op.value(Slice.STEPS)
        count = op.dims(Slice.STARTS)[0] if op.dims(Slice.STARTS) else None
        if not op.has(Slice.AXES) and count is not None:
            axes = np.arange(count)
        if axes is None or (op.has(Slice.STEPS) and steps is None):
            return None
    else:
        starts, ends = list(op.attr("starts")), list(op.attr("ends"))
        axes, steps = op.attr("axes", range(len(starts))), None
    rank = len(op.dims(0))
    return [
        _Cut(
            int(axis) % rank,
            None if starts is None else starts[k],
            None if ends is None else ends[k],
            1 if steps is None else int(steps[k]),
        )
        for k, axis in enumerate(axes)
    ]


def _sliced(op: Op, block: Block, cut: _Cut) -> list[Block]:
    axis = cut.axis
    n = block.ids.shape[block.axes.index(axis)]
    at = cut.positions(n)
    if op.dims(0)[axis] != n:
        op.freeze_axis(0, axis, "cuts an axis of run-time size")
        return []
    if at is None:
        op.freeze_axis(0, axis, "the bounds of a slice are computed at run time")
        return []
    out = picked(op, block, axis, at, (axis,))
    op.edit(lambda e: e.slice(axis, block, at))
    return out


def picked(
    op: Op, block: Block, axis: int, at: Ids, to: tuple[int, ...], shape: tuple[int, ...] | None = None,
    moved: Callable[[int], int] = int,
) -> list[Block]:  # fmt: skip
    """The block of positions `at` along `axis`, whose new axes are `to` (none for a scalar); others are `moved`."""
    k = block.axes.index(axis)
    n = block.ids.shape[k]
    if at.size == 0:
        return []
    labels = op.labels
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
    """Expand: axes of size one are repeated, and new ones come in front; what is made up may be made smaller."""
    if ranks_known(op, [0], [0]):
        shift = len(op.out_dims(0)) - len(op.dims(0))
        op.set(0, _repeated(op, [Block(tuple(a + shift for a in b.axes), b.ids) for b in op.blocks(0)]))
        if op.type == "Expand":
            op.edit(lambda e: e.sizes(1, 0, one_fits=True))


def tile(op: Op) -> None:
    """Tile: an axis is repeated as a whole, and so are its ids; one of size one, position by position, may be repeated
    less often."""
    if not ranks_known(op, [0], [0]):
        return None
    known = op.partial(1)
    if known is None:
        return op.freeze("the repeats are computed at run time")
    # repeated as often as a run says, an axis is periodic
    op.set(0, _repeated(op, [Block(b.axes, np.tile(b.ids, [known[a] or 1 for a in b.axes])) for b in op.blocks(0)]))
    op.edit(lambda e: e.repeats(1))


def _repeated(op: Op, blocks: Sequence[Block]) -> list[Block]:
    """The blocks of the output, which has `blocks` of its input, and what is made up besides."""
    shift = len(op.out_dims(0)) - len(op.dims(0))
    on = {a: b for b in blocks for a in b.axes}
    born = op.born("repeat", _made_up(op, on))
    for b in born:
        if len(b.axes) > 1:  # what is made up may differ from row to row
            rows, outer = op.labels.derive(b.ids), b.axes[0]
            if outer in on:
                op.couple(rows, rows_of(op, on[outer]))
            elif outer >= shift and op.dims(0)[outer - shift] != 1:  # rows of the input, of which all stay
                op.couple(rows, np.full_like(rows, KEPT))
            blocks = [o for o in blocks if o.axes != b.axes[:1]]
    return [*blocks, *born]


def _made_up(op: Op, on: Mapping[int, Block]) -> list[int | None]:
    """The sizes of the output's axes that are made up, and of those inside which such a one is to be born; 1 for the
    others. `on`: the block that lies on an axis of the output."""
    out = op.out_dims(0)
    shift = len(out) - len(op.dims(0))
    made = [n if k < shift or (op.dims(0)[k - shift] == 1 and n != 1) else 1 for k, n in enumerate(out)]
    for axes in op.demanded("repeat"):
        outer = axes[0][0] if len(axes) > 1 else None
        if outer is not None and made[outer] == 1 and (outer not in on or on[outer].axes[0] == outer):
            made[outer] = out[outer]
    return made


@dataclass(frozen=True)
class _Padding:
    """What a Pad adds to which axes: `amounts` before each of them, then after each; None: not known."""

    axes: list[int]
    amounts: Sequence[int | None] | None
    mode: str

    def around(self, axis: int) -> tuple[int, int] | None:
        """How many constants are put (before, after) an axis; None where it is anything else, or not known."""
        if axis not in self.axes:
            return 0, 0
        if self.amounts is None:
            return None
        k = self.axes.index(axis)
        lo, hi = self.amounts[k], self.amounts[k + len(self.axes)]
        if lo is None or hi is None or lo < 0 or hi < 0 or (self.mode != "constant" and (lo or hi)):
            return None
        return lo, hi


def pad(op: Op) -> None:
    """Pad: positions are put before and after those of some axes."""
    if not op.blocks(0):
        return op.set(0, [])
    if not ranks_known(op, [0]):
        return None
    amounts = op.partial(Pad.AMOUNTS) if op.has(Pad.AMOUNTS) else [int(p) for p in op.attr("pads", op.attr("paddings"))]
    rank, given = len(op.dims(0)), op.value(Pad.AXES)
    axes = list(range(rank)) if given is None else [int(a) % rank for a in given]
    padding = _Padding(axes, amounts, op.attr("mode", "constant"))
    blocks = (_padded(op, b, padding) for b in op.blocks(0))
    op.set(0, [b for b in blocks if b is not None])


def _padded(op: Op, block: Block, padding: _Padding) -> Block | None:
    ids = block.ids
    for k, axis in enumerate(block.axes):
        around = padding.around(axis)
        if around is None:
            op.freeze_ids(block.ids, "pads this axis by its neighbours or by run-time amounts")
            return None
        if any(around) and ids.ndim > 1:
            op.freeze_ids(ids, "pads inside nested axes")
            ids = np.pad(ids, [around if m == k else (0, 0) for m in range(ids.ndim)], constant_values=KEPT)
        elif any(around):
            ids = _with_channels(op, ids, axis, around, padding.axes)
    return Block(block.axes, ids)


def _with_channels(op: Op, ids: Ids, axis: int, around: tuple[int, int], axes: list[int]) -> Ids:
    """Padding on a labelled axis makes channels up: each is a channel of its own, coupled by what it is added to."""
    born = [op.fresh(f"pad{side}{axis}", (n,)) for side, n in zip(("lo", "hi"), around, strict=True)]
    op.edit(lambda e: e.pads(axes, axis, *(int(e.kept(x).sum()) for x in born)))
    return np.concatenate([born[0], ids, born[1]])


def depth_to_space(op: Op) -> None:
    """DepthToSpace: runs of channels become pixels of one channel, which therefore go together."""
    if not ranks_known(op, [0]):
        return
    size, mode = int(op.attr("blocksize")), op.attr("mode", "DCR")
    blocks = []
    for b in op.blocks(0):
        if b.axes != (1,):
            op.freeze_ids(b.ids, "spatial positions are moved")
            continue
        each = b.ids.size // size**2
        ids = b.ids.reshape((size, size, each) if mode == "DCR" else (each, size, size))
        for _ in range(2):
            ids = op.labels.couple_along(ids, 0 if mode == "DCR" else 1, op.why("pixels of one channel"))
        blocks += [Block((1,), ids)] if each > 1 else []
        if each == 1:
            op.freeze_ids(b.ids, "the only channel")
    op.set(0, blocks)


def space_to_depth(op: Op) -> None:
    """SpaceToDepth: every channel comes once for each pixel of a square."""
    if not ranks_known(op, [0]):
        return
    size = int(op.attr("blocksize"))
    blocks = []
    for b in op.blocks(0):
        if b.axes == (1,):
            blocks.append(Block((1,), np.tile(b.ids, size**2)))
        else:
            op.freeze_ids(b.ids, "spatial positions are moved")
    op.set(0, blocks)
