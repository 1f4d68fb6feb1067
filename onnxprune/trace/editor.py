"""What an operator's edit may do to its own node in the rewritten graph, where it encodes sizes, bounds or indices.

Knows that node and the kept ids of its tensors, no importance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxprune.model import Array, opset
from onnxprune.trace import computed
from onnxprune.trace.kept import kept_shape, positions
from onnxprune.trace.labels import Block, Ids, Mask
from onnxprune.trace.node_editor import NodeEditor

INT32_MAX, INT32_MIN = (1 << 31) - 1, -(1 << 31)
"""Bounds of a slice that mean up to the end and, of one that runs backwards, past the first position."""
SAME = (1, 1)
"""A share of everything, as (new, old)."""


class Editor(NodeEditor):
    """The edits that operators ask for, by what an input or an attribute of theirs says."""

    def sizes(self, i: int, out: int, axes: Sequence[int] | None = None, one_fits: bool = False) -> None:
        """Input `i` lists the sizes of output `out` (of its `axes`): write the new ones. `one_fits`: a size of one is
        written for any (Expand)."""
        name = self.original.output[out]
        old, new = self.dims(name), self.out_shape(out)
        shares = self._shares(name, old)
        if old == new and not shares:
            return
        source = self.original.input[i]
        value = self.trace.shapes.value(source)
        listed = self._last_axes(source, value, len(old)) if axes is None else list(axes)
        changed = np.array([old[a] != new[a] for a in listed], bool)
        sizes = np.array([new[a] or 0 for a in listed], np.int64)
        if value is not None:
            fits = one_fits & (value.ravel() == 1)
            self.const(i, np.where(changed & ~fits, sizes, value.ravel()).astype(np.int64))
            return
        left_open = self._left_open(source, len(listed))
        factors = [SAME if skip else shares.get(a, SAME) for a, skip in zip(listed, left_open, strict=True)]
        if any(f != SAME for f in factors):
            self.times(i, factors)
        if changed.any():
            self.where(i, changed, sizes)

    def repeats(self, i: int) -> None:
        """Input `i` lists how often each axis is repeated: as often as there are positions, where there was one."""
        old, new = self.dims(self.original.output[0]), self.out_shape(0)
        changed = np.array([n == 1 and a != b for n, a, b in zip(self.in_shape(0), old, new, strict=True)], bool)
        if changed.any():
            self.override(i, changed, np.array([n or 0 for n in new], np.int64))

    def _last_axes(self, source: str, value: Array | None, rank: int) -> list[int]:
        """The axes of which a list tells the sizes: the last ones, as many as it has entries."""
        dims = self.trace.shapes.static(source) if value is None else [value.size]
        count = rank if not dims or dims[0] is None else dims[0]
        return list(range(rank - count, rank))

    def _left_open(self, source: str, count: int) -> Mask:
        """Of a list of sizes that is computed at run time, the entries 0 (as it was) and -1 (whatever is left)."""
        entries = self.trace.shapes.partial(source)
        return np.zeros(count, bool) if entries is None else entries[1] & (entries[0] <= 0)

    def _shares(self, name: str, dims: Sequence[int | None]) -> dict[int, tuple[int, int]]:
        """Of a tensor's axes of run-time size: by what a periodic block shrinks them, as (new, old)."""
        out: dict[int, tuple[int, int]] = {}
        for b in self.trace.of(name):
            shape = kept_shape(b.ids, self.mask) or b.ids.shape
            out |= {a: (m, n) for a, n, m in zip(b.axes, b.ids.shape, shape, strict=True) if dims[a] is None and m != n}
        return out

    def times(self, i: int, factors: Sequence[tuple[int, int]]) -> None:
        """Input `i`, computed at run time, is multiplied by the fractions (numerator, denominator)."""
        name = self.fresh(i, "scaled")
        self.before += computed.scaled(self.model, name, self.node.input[i], factors)
        self.node.input[i] = name

    def reindex(self, i: int, axis: int, kept: Ids, places: Ids, period: int) -> None:
        """Of input `i`, indices into an axis that repeats `places.size` positions, those that are `kept` along `axis`;
        a position moves to that in `places`, and `period` of them repeat from now on."""
        name = self.fresh(i, "reindexed")
        self.before += computed.reindexed(self.model, name, self.node.input[i], axis, kept, places, period)
        self.node.input[i] = name

    def pin(self, out: int, mask: Mask, sizes: NDArray[np.int64]) -> None:
        """Output `out` (of Shape) keeps telling the original's sizes where `mask` is set."""
        source = self.original.input[0]
        old = self.dims(source)
        bounds = {a.name: a.i for a in self.node.attribute}
        axes = range(len(old))[bounds.get("start", 0) : bounds.get("end", len(old))]
        shares = {a: (n, m) for a, (m, n) in self._shares(source, old).items() if a in axes}
        if old == self.in_shape(0) and not shares:
            return
        name = self.node.output[out]
        base = self.node.output[out] = self.model.fresh_name(f"{name}_pinned")
        told = base
        if shares:
            told = self.model.fresh_name(base + "_scaled")
            self.after += computed.scaled(self.model, told, base, [shares.get(a, SAME) for a in axes])
        self.after.append(computed.pinned(self.model, name, told, base, mask, sizes))

    def squeeze_axes(self, axes: Sequence[int]) -> None:
        """Axes that were implied by their size one are spelled out: after pruning others may have that size."""
        if self.in_shape(0) != self.dims(self.original.input[0]):
            if opset(self.model) >= 13:
                self.const(1, np.array(axes, np.int64))
            else:
                self.attr("axes", list(axes))

    def split(self, axis: int) -> None:
        """Write the new sizes of the outputs of a Split: an input from opset 13 on, an attribute before."""
        old = [self.dims(n)[axis] for n in self.original.output]
        new = [self.out_shape(k)[axis] if n else 0 for k, n in enumerate(self.original.output)]
        if old == new:
            return
        sizes = [int(n or 0) for n in new]
        if opset(self.model) >= 13:
            self.drop("num_outputs")
            self.const(1, np.array(sizes, np.int64))
        else:
            self.attr("split", sizes)

    def along(self, block: Block, axis: int) -> NDArray[np.int64]:
        """Kept positions of a block along one axis (of the first kept row, where it is an inner one)."""
        k = block.axes.index(axis)
        where = positions(block.ids, self.mask)[k]
        return np.asarray(where.reshape(-1, where.shape[-1])[0], np.int64)

    def slice(self, axis: int, block: Block, at: Ids) -> None:
        """The Slice picked positions `at` of a labelled axis: new bounds, or a Gather where they are not regular."""
        alive = self.along(block, axis)
        if alive.size == block.ids.shape[block.axes.index(axis)]:
            return
        picked = np.flatnonzero(np.isin(alive, at)).astype(np.int64)
        if at.size > 1 and at[0] > at[-1]:
            picked = picked[::-1]
        gaps = np.diff(picked)
        if picked.size and (gaps == gaps[:1]).all():
            step = int(gaps[0]) if gaps.size else 1
            end = int(picked[-1]) + (1 if step > 0 else -1)
            self._bounds(axis, int(picked[0]), end if end >= 0 else INT32_MIN, step)
        else:
            self._bounds(axis, 0, INT32_MAX, 1)
            self._pick(axis, picked)

    def _pick(self, axis: int, at: NDArray[np.int64]) -> None:
        """What the node gave, it gives now through a Gather of positions `at`."""
        name = self.node.output[0]
        base = self.node.output[0] = self.model.fresh_name(f"{self.node.name}_picked")
        for later in self.after:
            later.input[:] = [base if x == name else x for x in later.input]
        self.after.insert(0, computed.picked(self.model, name, base, axis, at))

    def _bounds(self, axis: int, start: int, end: int, step: int) -> None:
        """Bounds of a Slice along one axis; those along others stay."""
        if len(self.original.input) < 2:
            self._bounds_in_attributes(axis, start, end)
            return
        mask = np.array([a == axis for a in self._sliced_axes()])
        self.override(1, mask, start)
        self.override(2, mask, end)
        if any(self.original.input[4:]):  # without steps it takes runs, of which runs are left
            self.override(4, mask, step)

    def _bounds_in_attributes(self, axis: int, start: int, end: int) -> None:
        """Slice before opset 10 knows no steps: positions are as regular after pruning, or a Gather picks them."""
        bounds = {a.name: list(helper.get_attribute_value(a)) for a in self.node.attribute}
        axes = [a % len(self.in_shape(0)) for a in bounds.get("axes", range(len(bounds["starts"])))]
        k = axes.index(axis)
        bounds["starts"][k], bounds["ends"][k] = start, end
        self.attr("starts", bounds["starts"])
        self.attr("ends", bounds["ends"])

    def _sliced_axes(self) -> list[int]:
        """The axes that a Slice cuts: those that an input spells, else the first ones."""
        given, rank = self.original.input, len(self.in_shape(0))
        value = self.trace.shapes.value(given[3]) if len(given) > 3 and given[3] else None
        if value is not None:
            return [int(a) % rank for a in value.ravel()]
        dims = self.trace.shapes.static(given[1]) or (rank,)
        return list(range(dims[0] or rank))

    def gather(self, axis: int, block: Block, index: Array) -> None:
        """Constant indices along a labelled axis become positions among what is kept."""
        alive = self.along(block, axis)
        n = block.ids.shape[block.axes.index(axis)]
        if alive.size == n:
            return
        to = np.full(n, -1, np.int64)
        to[alive] = np.arange(alive.size)
        new = to[np.asarray(index, np.int64) % n]
        shape = [k or 1 for k in self.out_shape(0)[axis : axis + new.ndim]]
        tuples = [1] if self.node.op_type == "GatherND" else []
        self.const(1, new[new >= 0].reshape([*shape, *tuples]).astype(index.dtype) if new.ndim else new)

    def pads(self, axes: Sequence[int], axis: int, lo: int, hi: int) -> None:
        """A Pad of `axes` adds `lo` positions before and `hi` after those of one axis."""
        k, n = list(axes).index(axis), len(axes)
        if len(self.original.input) < 2:
            name = "pads" if any(a.name == "pads" for a in self.node.attribute) else "paddings"
            pads = [int(p) for a in self.node.attribute if a.name == name for p in a.ints]
            pads[k], pads[k + n] = lo, hi
            self.attr(name, pads)
            return
        mask, new = np.zeros(2 * n, bool), np.zeros(2 * n, np.int64)
        mask[[k, k + n]] = True
        new[[k, k + n]] = lo, hi
        self.override(1, mask, new)
