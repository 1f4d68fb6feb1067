"""Optimal Brain Surgeon over blocks: in which order units go, and the error that is left after the best compensation.

The error that removing the columns P of a site adds, after its other columns were re-solved, is tr(W_P' ([H^-1]_PP)^-1
W_P) (Hassibi 1993; in blocks: SPA, eq. 7; Frantar 2022). Removing greedily, with H^-1 and W updated after each step,
equals least squares on what is kept. Knows sites and units, no operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxprune.fit import Site, inverse
from onnxprune.trace import Ids

Array = NDArray[np.float64]
DAMP = 1e-2
GONE = 0.4
"""Of the columns that are held, from which on those of units that are gone are left out: what is computed of them
nobody looks at, and leaving them out costs a copy."""


class Elimination:
    """One matrix of a site on the way: its weights, the columns of every unit, and the inverse of its damped Gram as it
    was at first. What every removal takes from the inverse is a product, whose factors (as in a Cholesky decomposition)
    take the places of rows that are gone, and are multiplied out where others are looked at. Of each row the columns
    `_held` are held, of the weights their rows; `_at` says where each stands."""

    def __init__(self, site: Site, group: int, members: NDArray[np.bool_]) -> None:
        damped = site.gram[group].astype(np.float64)
        self.energy = site.energy
        damped.flat[:: len(damped) + 1] += DAMP * max(float(np.trace(damped)) / len(damped), 1e-30)
        self._rows = inverse(damped)  # first the factors, then the rows of the inverse of what is left
        self._order, self._place = np.arange(len(damped)), np.arange(len(damped))
        self._held, self._at = self._order.copy(), self._order.copy()
        self._count = 0
        self._weights = site.matrix[group].copy()
        units = np.repeat(site.units[group], len(damped) // site.units.shape[1])
        self.columns: dict[int, Ids] = {}
        order = np.argsort(units, kind="stable")
        for u, columns in zip(*_runs(units[order], order), strict=True):
            if members[u]:
                self.columns[u] = columns
        self._blocks = [_Blocks.of(self._rows, alike) for alike in _by_size(self.columns)]
        self.error = 0.0

    @property
    def matrix(self) -> Array:
        """[columns, outputs]: the weights that make up for what is gone, whose own are zero."""
        whole = np.zeros((len(self._order), self._weights.shape[1]))
        whole[self._held] = self._weights
        return whole

    def scores(self, units: Sequence[int]) -> Array:
        """Relative error that each of the units alone would add."""
        out = np.zeros(len(units))
        for blocks in self._blocks:
            places = [k for k, u in enumerate(units) if u in self.columns and u in blocks.at]
            at = [blocks.at[units[k]] for k in places]
            weights = self._weights[self._at[blocks.columns[at]]]  # U m O
            squares = weights @ weights.transpose(0, 2, 1)
            out[places] = np.linalg.solve(blocks.inner[at], squares).trace(axis1=1, axis2=2) / self.energy
        return out

    def remove(self, units: Sequence[int]) -> None:
        """Take the units out and compensate."""
        gone = [self.columns.pop(u) for u in units if u in self.columns]
        if not gone:
            return
        p, factors = np.concatenate(gone), self._rows[: self._count]
        at = self._at[p]
        strip = self._rows[self._place[p]] - factors[:, at].T @ factors
        root = np.linalg.cholesky(strip[:, at])
        new, weights = (
            scipy.linalg.solve_triangular(root, part, lower=True, check_finite=False)
            for part in (strip, self._weights[at])
        )
        self.error += float(np.square(weights).sum()) / self.energy
        self._weights -= new.T @ weights
        self._weights[at] = 0
        self._put(p, new)
        for blocks in self._blocks:
            own = new[:, self._at[blocks.columns]].transpose(1, 2, 0)  # U m p; nothing of units that are gone
            blocks.inner -= own @ own.transpose(0, 2, 1)
        if len(self._held) - (len(self._order) - self._count) > GONE * len(self._held):
            self._leave_out(self._order[: self._count])

    def _leave_out(self, columns: Ids) -> None:
        """Hold these columns of the rows no longer."""
        left = ~np.isin(self._held, columns)
        self._rows, self._weights, self._held = self._rows[:, left], self._weights[left], self._held[left]
        self._at[columns] = 0
        self._at[self._held] = np.arange(len(self._held))

    def _put(self, columns: Ids, factors: Array) -> None:
        """Let factors take the places of the rows of these columns, behind the other factors."""
        first = np.arange(self._count, self._count + len(columns))
        to, others = np.setdiff1d(self._place[columns], first), np.setdiff1d(first, self._place[columns])
        self._rows[to], self._order[to] = self._rows[others], self._order[others]
        self._rows[first], self._order[first] = factors, columns
        self._place[self._order] = np.arange(len(self._order))
        self._count += len(columns)


@dataclass
class _Blocks:
    """Units of as many columns each: at, the place of each; columns [units, m]; inner [units, m, m], what the inverse
    holds there by now."""

    at: dict[int, int]
    columns: Ids
    inner: Array

    @classmethod
    def of(cls, whole: Array, units: dict[int, Ids]) -> _Blocks:
        """Of these units, by their columns, where nothing was removed."""
        columns = np.stack([*units.values()])
        return cls({u: k for k, u in enumerate(units)}, columns, whole[columns[:, :, None], columns[:, None, :]])


def _by_size(columns: dict[int, Ids]) -> list[dict[int, Ids]]:
    """The units with as many columns each, together."""
    sizes = sorted({len(c) for c in columns.values()})
    return [{u: c for u, c in columns.items() if len(c) == size} for size in sizes]


def _runs(keys: Ids, values: Ids) -> tuple[list[int], list[Ids]]:
    """The different ones of sorted `keys`, and the values of each, sorted."""
    cuts = np.flatnonzero(np.diff(keys)) + 1
    return [int(k) for k in keys[np.r_[0, cuts]]], [np.sort(v) for v in np.split(values, cuts)]


class JointElimination:
    """The units of some buckets on the way out of every site that sums over them.

    Units that no site sums over are blind to the error: each counts by its share of `fallback` [classes], importance in
    weight space, among them."""

    def __init__(self, buckets: Sequence[Sequence[int]], sites: Sequence[Site], fallback: Array) -> None:
        members = np.zeros(len(fallback), bool)
        for bucket in buckets:
            members[list(bucket)] = True
        self.parts = [
            Elimination(s, g, members) for s in sites for g in range(len(s.units)) if members[s.units[g]].any()
        ]
        seen = {u for p in self.parts for u in p.columns}
        self.blind = {u: float(fallback[u]) for b in buckets for u in b if u not in seen}
        self.whole = sum(self.blind.values()) or 1.0
        self.lost = 0.0

    @property
    def error(self) -> float:
        """Relative error that is left after what was removed so far, over all sites."""
        return sum(p.error for p in self.parts) + self.lost

    def scores(self, units: Sequence[int]) -> Array:
        """Relative error that each of the units alone would add."""
        alone = np.array([self.blind.get(u, 0.0) / self.whole for u in units])
        return np.asarray(sum((p.scores(units) for p in self.parts), alone))

    def remove(self, units: Sequence[int]) -> None:
        """Take the units out of all sites and compensate."""
        for p in self.parts:
            p.remove(units)
        self.lost += sum(self.blind.get(u, 0.0) / self.whole for u in units)


def eliminate(
    buckets: Sequence[Sequence[int]], levels: int, most: int, sites: Sequence[Site], fallback: Array,
    given: Array | None = None,
) -> tuple[dict[int, float], Array]:  # fmt: skip
    """Remove units level by level, of every bucket the same share: (score of every unit, [levels + 1] relative error
    after each level, infinite beyond `most`).

    The score is the level at which a unit goes; of units that outlive level `most`, larger ones. `fallback` [classes]:
    importance in weight space, for units that no site sums over. `given` [classes]: scores of another criterion, which
    decide the order instead of the error."""
    joint = JointElimination(buckets, sites, fallback)
    score = joint.scores if given is None else lambda units: given[list(units)]
    left = [list(bucket) for bucket in buckets]
    scores: dict[int, float] = {}
    curve = np.zeros(levels + 1)
    for level in range(1, most + 1):
        for bucket, rest in zip(buckets, left, strict=True):
            n = level * len(bucket) // levels - (len(bucket) - len(rest))
            if n > 0:
                going = dict.fromkeys((rest[k] for k in np.argsort(score(rest), kind="stable")[:n]), float(level))
                joint.remove(list(going))
                scores |= going
                rest[:] = [u for u in rest if u not in going]
        curve[level] = max(curve[level - 1], joint.error)
    curve[most + 1 :] = np.inf
    for rest in left:
        for rank, k in enumerate(np.argsort(score(rest), kind="stable")):
            scores[rest[k]] = levels + 1.0 + rank
    return scores, curve
