"""Units that can stand for one another (buckets), and the buckets that must lose alike (linked ones).

Units that live on the same axes and in the same rows of the same rectangles form a *bucket*. Buckets that share a
rectangle are *linked*: every kept row must keep the same number. Knows units and rectangles, no budget, no ONNX.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.trace import Groups, Ids, Mask, joined

Scores = NDArray[np.float64]
NODES = 1000
"""Of the search tree of one integer program: a limit in seconds would give another plan on a busy machine."""


@dataclass
class LinkedBuckets:
    """Linked buckets, each sorted by score, the least important first. Step k takes `len(bucket) // steps` of each.

    gone: the share, 0..1, that whole rows have taken already. rectangles: [rows, units] each, what links the buckets.
    scores: [classes]. spared: units that stand last in a bucket because each is the last of a part, at most."""

    buckets: list[list[int]]
    steps: int
    gone: float = 0.0
    rectangles: Sequence[Ids] = ()
    scores: Scores | None = None
    spared: int = 1

    def step_too_coarse(self, wanted: float) -> bool:
        """No whole number of steps comes near `wanted`: the common divisor leaves no real choice."""
        return len(self.buckets) > 1 and abs(round(wanted) - wanted) > 0.05 * self.steps

    @property
    def name(self) -> int:
        """The same whatever the scores."""
        return min(min(b) for b in self.buckets)

    @property
    def size(self) -> int:
        """How many units there are in all buckets."""
        return sum(map(len, self.buckets))

    @property
    def members(self) -> list[int]:
        """The units of all buckets, bucket by bucket."""
        return [u for bucket in self.buckets for u in bucket]

    @property
    def levels(self) -> int:
        """Into how many parts the units are ranked: the steps, or finer ones where those leave no real choice."""
        return self.steps if self.steps >= 10 else max(map(len, self.buckets))

    def units(self, k: int, of: int = 0) -> list[int]:
        """The units that `k` steps remove, or `k` parts `of` a number that need not divide the buckets."""
        return [u for b in self.buckets for u in b[: k * len(b) // (of or self.steps)]]

    def solve_milp(self, most: int, least: int) -> list[int]:
        """Between `least` and `most` units of least total score such that all rows of a rectangle lose equally many;
        none where no such set is found.

        The integer program has a 0-1 variable for each unit, and for each rectangle one that counts what each of its
        rows loses, at most all but one."""
        assert self.scores is not None
        units = sorted(self.members)
        column = {u: i for i, u in enumerate(units)}
        n, m = len(units), len(self.rectangles)
        total = np.zeros((1, n + m))
        total[0, :n] = 1
        constraints = [scipy.optimize.LinearConstraint(total, least, most)]
        widest = []
        for j, rectangle in enumerate(self.rectangles):
            rows = _columns_by_row(rectangle, column)
            constraints.append(scipy.optimize.LinearConstraint(_losses_of_rows(rows, n + j, n + m), 0, 0))
            widest.append(min(map(len, rows)) - 1)
        cost = np.zeros(n + m)
        cost[:n] = self.scores[units] + 1e-9
        bounds = scipy.optimize.Bounds(np.zeros(n + m), np.r_[np.ones(n), widest])
        found = scipy.optimize.milp(
            cost, integrality=np.r_[np.ones(n), np.zeros(m)], constraints=constraints, bounds=bounds,
            options={"node_limit": NODES, "mip_rel_gap": 0.02},
        )  # fmt: skip
        return [] if found.x is None else [u for u, x in zip(units, found.x, strict=False) if x > 0.5]


def _columns_by_row(rectangle: Ids, column: dict[int, int]) -> list[list[int]]:
    """Of every row of a rectangle that has units to choose from, their variables."""
    rows = ([column[u] for u in row if u in column] for row in rectangle.reshape(-1, rectangle.shape[-1]).tolist())
    return [row for row in rows if row]


def _losses_of_rows(rows: Sequence[Sequence[int]], count: int, width: int) -> scipy.sparse.csc_array:
    """[rows, width]: what each row loses less the variable `count`, so that zero means that all lose as many."""
    table = scipy.sparse.lil_array((len(rows), width))
    for i, row in enumerate(rows):
        for k in row:
            table[i, k] += 1
    table[:, count] = -1
    return table.tocsc()


def linked_buckets(groups: Groups, scores: Scores, live: Mask, spent: Mask) -> list[LinkedBuckets]:
    """All sets of linked buckets of the units in `live` [classes]. `spent` [classes]: units that are gone and count
    towards the share that their group is to lose."""
    nested = [groups.classes[ids] for ids in groups.rectangles if ids.ndim > 1]
    places = _places(nested, live)
    roots = np.append(joined(len(nested), *places.links.T), -1)
    gone = np.array([np.unique(ids[spent[ids]]).size for ids in nested], np.int64)
    most = np.zeros(len(nested) + 1, np.int64)
    np.maximum.at(most, roots[:-1], gone)
    together: dict[Hashable, list[list[int]]] = defaultdict(list)
    spared = _last_of_parts(groups, scores, live)
    for k, bucket in enumerate(_buckets(groups.location_hash + places.rows, scores, live, spared)):
        root = int(roots[places.rectangle[bucket[0]]])
        together[root if root >= 0 else ("alone", k)].append(bucket)
    inside: dict[int, list[Ids]] = defaultdict(list)
    for r, ids in enumerate(nested):
        inside[int(roots[r])].append(ids)
    out = []
    for name, buckets in together.items():
        left = sum(map(len, buckets))
        root = name if isinstance(name, int) else -1
        share = int(most[root]) / (left + int(most[root]))
        last = max(1, *(int(spared[b].sum()) for b in buckets))
        out.append(LinkedBuckets(buckets, gcd(*map(len, buckets)), share, inside[root], scores, last))
    return out


@dataclass
class _Places:
    """Where units are in rectangles.

    rows: [classes], a number that stands for the rows that a unit is in, and how often. rectangle: [classes], the last
    one that it is in, -1 for none. links: [pairs, 2], rectangles that have units in common, enough to join all."""

    rows: NDArray[np.uint64]
    rectangle: Ids
    links: Ids


def _places(nested: Sequence[Ids], live: Mask) -> _Places:
    """Of the units in `live`; a random number stands for each row, so that a sum of them stands for a set."""
    marks = np.random.default_rng(1)
    rows = np.zeros(len(live), np.uint64)
    rectangle = np.full(len(live), -1)
    links = [np.zeros((0, 2), np.int64)]
    for r, ids in enumerate(nested):
        flat = ids.reshape(-1, ids.shape[-1])
        row, column = np.nonzero(live[flat])
        units = flat[row, column]
        np.add.at(rows, units, marks.integers(1, 1 << 63, len(flat), np.uint64)[row])
        others = np.unique(rectangle[units])
        links.append(np.stack([others[others >= 0], np.full((others >= 0).sum(), r)], 1))
        rectangle[units] = r
    return _Places(rows, rectangle, np.concatenate(links))


def _last_of_parts(groups: Groups, scores: Scores, live: Mask) -> Mask:
    """Of every vector of units that may all go, such as one part of a Concat or Split, the most important one, without
    which it would be empty, [classes]."""
    spared = np.zeros(len(live), bool)
    parts = [groups.classes[ids] for ids in groups.rectangles if ids.ndim == 1]
    if parts:
        sizes = [part.size for part in parts]
        units, starts = np.concatenate(parts), np.cumsum(sizes) - sizes
        alive = np.flatnonzero(live)
        order = alive[np.argsort(scores[alive], kind="stable")]
        rank = np.zeros(len(live), np.int64)
        rank[order] = np.arange(len(order))
        whole = np.logical_and.reduceat(live[units], starts)
        spared[order[np.maximum.reduceat(rank[units], starts)[whole]]] = True
    return spared


def _buckets(places: NDArray[np.uint64], scores: Scores, live: Mask, spared: Mask) -> list[list[int]]:
    """Live units that are in the same `places` [classes], the least important first in a bucket and among buckets;
    those that are `spared` [classes] come last."""
    alive = np.flatnonzero(live)
    alive = alive[np.lexsort((scores[alive], spared[alive]))]
    if not alive.size:
        return []
    _, first, bucket = np.unique(places[alive], return_index=True, return_inverse=True)
    order = np.argsort(bucket, kind="stable")
    buckets = np.split(alive[order], np.flatnonzero(np.diff(bucket[order])) + 1)
    return [buckets[k].tolist() for k in np.argsort(first).tolist()]
