"""Units and groups: what the ids of a trace amount to. Knows ids, slices and rectangles, no operator and no ONNX.

unit: a class of coupled ids. row unit: a class of derived ids (heads, convolution groups), removed with all it holds.
group: a connected component of the graph whose nodes are (parameter, axes) and whose edges are couplings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.trace.classes import side_by_side
from onnxprune.trace.components import components
from onnxprune.trace.kept import kept_shape
from onnxprune.trace.labels import Ids, Mask, Reason
from onnxprune.trace.layers import Layers, layers
from onnxprune.trace.residual import Branch
from onnxprune.trace.tracing import Slice, Trace

SliceBlock = tuple[Slice, tuple[int, ...], Ids]
"""A parameter's slice, axes of it, and the ids along these."""


@dataclass
class Groups:
    """classes: class of every id. reason: why a class stays, or None. prunable: classes that are units.

    rows: row unit (class) -> the units it holds. inside: of a row unit, the ids of its rows. location_hash: of every
    class, a number that stands for the set of slice blocks it lives in. normed: classes that cross a normalisation over
    their own axis (normed_whole: over all of it, not inside rows). streams: units of branches that are added. channels:
    row units that are channels of a tensor of their own (an attention map has one a head). grid_blocks: those of which
    only whole rows and whole columns may go; grid_units: the units in them; grid_columns: row units that are columns.
    """

    trace: Trace
    classes: Ids
    reason: list[Reason | None]
    prunable: Mask
    rows: dict[int, frozenset[int]]
    blocks: list[SliceBlock]
    location_hash: NDArray[np.uint64]
    rectangles: list[Ids]
    derived: Mask
    normed: Mask
    normed_whole: Mask
    streams: Mask
    channels: Mask
    grid_units: Mask
    grid_columns: Mask
    grid_blocks: list[Ids]
    inside: dict[int, list[int]] = field(default_factory=dict)

    def kept_ids(self, removed: Mask) -> Mask:
        """Which ids are kept when the units of `removed` (a mask over classes) go. A row goes with all it holds."""
        alive = ~removed
        rows, members, starts = self._nested
        own, held = self.classes[rows], self.classes[members]
        while True:
            emptied = own[alive[own] & ~np.logical_or.reduceat(alive[held], starts)]
            if not emptied.size:
                return alive[self.classes]
            alive[emptied] = False

    @cached_property
    def branches(self) -> dict[int, Branch]:
        """The residual branches of the graph, by the class that stands for each."""
        return {int(self.classes[branch.ids[0]]): branch for branch in self.trace.branches}

    def alive(self, kept: Mask) -> Mask:
        """Classes of which an id is kept (see `kept_ids`)."""
        found = np.zeros(len(self.prunable), bool)
        found[self.classes[kept]] = True
        return found

    def faults(self, removed: Mask) -> set[int]:
        """Units in a constraint that `removed` would break: not a rectangle, emptied, or rows that disagree."""
        kept = self.kept_ids(removed)
        flat, starts, vectors = self._vectors
        emptied = np.flatnonzero(~np.logical_or.reduceat(kept[flat], starts))
        bad: set[int] = set()
        for ids in [*(vectors[k] for k in emptied), *(ids for ids in self.rectangles if ids.ndim > 1)]:
            if kept_shape(ids, kept) is None:
                gone = ids[~kept[ids]]
                bad |= self._leaves(gone if gone.size else ids.ravel())
        for ids in self.grid_blocks:
            mask = kept[ids]
            torn = mask != (mask.any(1, keepdims=True) & mask.any(0))
            bad |= self._leaves(ids[:, torn.any(0)][torn.any(1)].ravel()) if torn.any() else set()
        for ids, least in self.trace.labels.least:
            bad |= self._leaves(ids[~kept[ids]]) if kept[ids].sum() < least else set()
        rows, members, starts = self._nested
        lost = ~kept[rows]
        wrong = np.logical_or.reduceat(kept[members], starts) == lost
        for row in rows[wrong | (lost & self._stays[self.classes[rows]])].tolist():
            bad |= self._leaves(self.trace.labels.children[row])
        return bad

    def least_of(self, rows: Collection[int]) -> int:
        """How many of these row units have to stay."""
        return max((n for ids, n in self.trace.labels.least if not set(rows).isdisjoint(self.classes[ids].tolist())),
                   default=1)  # fmt: skip

    @cached_property
    def _nested(self) -> tuple[Ids, Ids, Ids]:
        return self.trace.labels.rows()

    @cached_property
    def _vectors(self) -> tuple[Ids, Ids, list[Ids]]:
        """The ids of all rectangles of one axis side by side, where each begins, and each."""
        vectors = [ids for ids in self.rectangles if ids.ndim == 1]
        return *side_by_side(vectors), vectors

    @cached_property
    def _stays(self) -> Mask:
        return np.array([r is not None for r in self.reason], bool)

    def _leaves(self, ids: Ids) -> set[int]:
        """The units that ids amount to: their classes, and for row units the units in them."""
        out: set[int] = set()
        seen: set[int] = set()
        todo = set(self.classes[ids].tolist())
        while todo:
            rows = {c for c in todo if c in self.inside}
            out |= todo - rows
            seen |= rows
            inside = np.array([i for c in rows for i in self.inside[c]], np.int64)
            todo = set(self.classes[inside].tolist()) - seen
        return out

    def holders(self) -> dict[int, list[int]]:
        """By unit, the row units (heads, groups of a convolution) that it is in, whether or not they may go."""
        found: dict[int, list[int]] = {}
        for row, ids in self.inside.items():
            for unit in self._leaves(np.array(ids)):
                found.setdefault(unit, []).append(row)
        return found

    def components(self) -> Iterator[list[int]]:
        """Indices of slice blocks, a list for each group."""
        yield from self._components

    @cached_property
    def _components(self) -> list[list[int]]:
        return components(self.trace.labels, self.classes, [ids for _, _, ids in self.blocks])

    def name(self, component: Sequence[int]) -> str:
        """What a group is called everywhere, in tables and plans: after its first block, one that is its parameter's
        only if there is such a one. No two groups have one name, for each block is in one group."""
        return self.label(next((k for k in component if not self.use(self.blocks[k][0])), component[0]))

    def label(self, k: int) -> str:
        """Parameter and axes of a slice block, and the use where there are others."""
        s, axes, _ = self.blocks[k]
        use = self.use(s)
        return f"{s.parameter}[{','.join(map(str, axes))}]" + (f" of {use}" if use else "")

    @cached_property
    def layers(self) -> Layers:
        """Which units the names of nodes, parameters and groups stand for."""
        return layers(self)

    def use(self, s: Slice) -> str:
        """The uses (NODE:INPUT) that a slice stands for, where its parameter has others beside them; otherwise ""."""
        if self._reads[s.parameter] <= len(s.uses):
            return ""
        return ",".join(f"{self.trace.nodes[n].name}:{i}" for n, i in s.uses)

    @cached_property
    def _reads(self) -> Counter[str]:
        """How often each tensor is an operand, or given out."""
        reads = Counter(name for node in self.trace.nodes for name in node.input)
        reads.update(o.name for scope in self.trace.scopes for o in scope.graph.output)
        return reads
