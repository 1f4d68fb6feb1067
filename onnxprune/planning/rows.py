"""Which whole rows go: heads, the queries that share a key, channels inside every head, groups of a convolution.

Rows are few, so that each family of them loses what comes nearest to the ratio. Knows row units and the rectangles that
they are in, no operator and no ONNX.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.options import Options
from onnxprune.planning.buckets import Scores
from onnxprune.planning.limits import most_of
from onnxprune.planning.named import NOTHING, Asked
from onnxprune.trace import Groups, Ids, Mask

ROW_SLACK = 0.05
"""How much more than the ratio of its rows a family may lose, as these are few."""
Units = frozenset[int]


def rows_that_go(groups: Groups, scores: Scores, options: Options, asked: Asked = NOTHING) -> tuple[Mask, Mask]:
    """Masks over classes: the units of the rows (heads) that go whole, and those of them that count towards the share
    that their group is to lose."""
    removed = np.zeros(len(groups.prunable), bool)
    spent = removed.copy()
    if options.heads:
        for family in _families(groups, scores, options):
            units = family.least(removed, options, asked)
            trial = removed.copy()
            trial[list(units)] = True
            if units and not groups.faults(trial):
                removed = trial
                spent[list(units)] = [not family.own or u in asked for u in units]
    return removed, spent


@dataclass(frozen=True)
class _Family:
    """Rows on the same axes, of which a ratio goes.

    parts: the rows of each place that must keep as many as every other such place (the queries of a key), the least
    important first. own: whether they are a group of their own, beside that of the units in them. normed: whether the
    units in a row share statistics. home: by unit of a row, a number for where it lives. fewest: so many rows
    always stay."""

    parts: Sequence[Sequence[Units]]
    own: bool
    normed: bool
    home: NDArray[np.uint64]
    fewest: int

    def least(self, removed: Mask, options: Options, asked: Asked) -> Units:
        """The units of the rows that go, of every part as many: none where that comes nowhere near the ratio.

        A family too small for the ratio (one of two heads at 0.3) keeps its rows: their insides are pruned instead. So
        do the groups of a convolution where the ratio can be taken inside them, which saves more: a group that goes
        leaves the other groups' weights as wide as they were. Those of a normalisation go: the statistics of the others
        stay. Where a share is asked of some of their units, no more rows go than it allows. Rows that went with larger
        ones count."""
        rows = [units for part in self.parts for units in part]
        named, ratio = self._asked(rows, options, asked)
        left = self._left(removed)
        gone = 1 - sum(map(len, left)) / len(rows)
        inside = not self.own and not self.normed and _near(ratio, self.home)
        if inside or not left or ratio <= gone:
            return frozenset()
        slack = 0.0 if named else ROW_SLACK
        fewest = -(-self.fewest // len(left))
        n = _rows_to_remove(min(map(len, left)), (ratio - gone) / (1 - gone), options.max_ratio, slack, fewest)
        return frozenset().union(*(units for part in left for units in part[:n]))

    def _left(self, removed: Mask) -> list[list[Units]]:
        """The rows of every part of which something is left, where any is."""
        parts = ([units for units in part if not removed[list(units)].all()] for part in self.parts)
        return [part for part in parts if part]

    @staticmethod
    def _asked(rows: Sequence[Units], options: Options, asked: Asked) -> tuple[bool, float]:
        """Whether a share is asked of any unit in the rows, and the ratio: the least of these, or that of all."""
        named = not asked.keys().isdisjoint(frozenset().union(*rows))
        return named, min(asked.get(u, options.ratio) for units in rows for u in units) if named else options.ratio


def _families(groups: Groups, scores: Scores, options: Options) -> list[_Family]:
    """All families, those of larger rows first: what goes with them need not go from the rows inside."""
    families: dict[Hashable, dict[Units, int]] = defaultdict(dict)
    for row, units in groups.rows.items():
        if not any(groups.normed_whole[u] for u in units) or options.residual == "all":
            location = frozenset(groups.location_hash[list(units)].tolist())
            families[bool(groups.grid_columns[row]), location].setdefault(units, row)
    alike: dict[Units, list[int]] = defaultdict(list)
    for row, units in groups.rows.items():
        alike[units].append(row)
    rectangles = _Rectangles.of(groups)
    out = []
    for family in sorted(families.values(), key=lambda family: -max(map(len, family))):
        rows = sorted(
            _innermost(family), key=lambda units: (scores[family[units]] + scores[list(units)].sum(), min(units))
        )
        if len(rows) < 2 or len(frozenset().union(*rows)) != sum(map(len, rows)):
            continue
        inside = list(rows[0])
        normed = groups.normed[inside]
        own = not normed.all() and all(groups.channels[family[units]] for units in rows)
        beside: dict[int, list[Units]] = defaultdict(list)
        for units, place in zip(rows, rectangles.places([[*units, *alike[units]] for units in rows]), strict=True):
            beside[place].append(units)
        fewest = groups.least_of(family.values())
        out.append(_Family([*beside.values()], own, bool(normed.any()), groups.location_hash[inside], fewest))
    return out


def _innermost(rows: Collection[Units]) -> Collection[Units]:
    """Without rows that hold others of them, such as all heads together."""
    if len(frozenset().union(*rows)) == sum(map(len, rows)):
        return rows
    return [units for units in rows if not any(other < units for other in rows)]


@dataclass(frozen=True)
class _Rectangles:
    """The rectangles of several axes, as classes. member, rectangle: which class is in which, sorted by class."""

    every: Sequence[Ids]
    member: Ids
    rectangle: Ids

    @staticmethod
    def of(groups: Groups) -> _Rectangles:
        """Those of all groups."""
        every = [groups.classes[ids] for ids in groups.rectangles if ids.ndim > 1]
        inside = [np.unique(ids) for ids in every]
        member = np.concatenate([np.empty(0, np.int64), *inside])
        rectangle = np.repeat(np.arange(len(every)), [len(ids) for ids in inside])
        order = np.argsort(member, kind="stable")
        return _Rectangles(every, member[order], rectangle[order])

    def places(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """By row (the classes in it): the same number for those that lie in the same rows of all rectangles, each as a
        part of what that larger row holds."""
        owner = np.full(max(int(self.member.max(initial=0)), max(map(max, rows))) + 1, -1)
        for k, classes in enumerate(rows):
            owner[classes] = k
        held = np.concatenate([np.asarray(classes) for classes in rows])
        first, last = (np.searchsorted(self.member, held, side) for side in ("left", "right"))
        met = np.unique(np.concatenate([self.rectangle[a:b] for a, b in zip(first, last, strict=True)]))
        marks, sums = np.random.default_rng(2), np.zeros(len(rows), np.uint64)
        for r in met.tolist():
            for level in range(1, self.every[r].ndim):
                around, row = _held(owner[self.every[r]], level)
                np.add.at(sums, row, marks.integers(1, 1 << 63, int(around.max(initial=0)) + 1, np.uint64)[around])
        return [int(x) for x in sums]


def _held(owner: Ids, level: int) -> tuple[Ids, Ids]:
    """Pairs (larger row, row in it) of a rectangle whose positions belong to rows as `owner` says (-1: to none), where
    a larger row is one of so many axes: those in which a row holds some of the positions, and not all."""
    larger = owner.reshape(prod(owner.shape[:level]), owner.shape[level], -1)
    own = np.where((larger == larger[:, :, :1]).all(2), larger[:, :, 0], -1)
    own[(own == own[:, :1]).all(1)] = -1
    around, at = np.nonzero(own >= 0)
    pairs = np.unique(np.stack([around, own[around, at]], 1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _rows_to_remove(count: int, ratio: float, most: float, slack: float, least: int) -> int:
    """The number of rows nearest to the ratio of them that takes at most so much more; `least` are always left."""
    n = round(ratio * count)
    if n / count > ratio + slack:
        n = most_of(count, ratio)
    return max(0, min(n, most_of(count, most), count - least))


def _near(ratio: float, home: NDArray[np.uint64]) -> bool:
    """Whether whole units come near the ratio of each kind of units in a row."""
    counts = np.unique(home, return_counts=True)[1]
    return bool((np.abs(np.round(ratio * counts) / counts - ratio) <= 0.05).all())
