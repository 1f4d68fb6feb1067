"""Optimal Brain Surgeon over blocks: in which order units go, and the error that is left after the best compensation.

The error that removing the columns P of a site adds, after its other columns were re-solved, is tr(W_P' ([H^-1]_PP)^-1
W_P) (Hassibi 1993; in blocks: SPA, eq. 7; Frantar 2022). Removing greedily, with H^-1 and W updated after each step,
equals least squares on what is kept. Knows sites and units, no operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit import Site
from onnxprune.trace import Ids

Array = NDArray[np.float64]
DAMP = 1e-2


class Elimination:
    """One matrix of a site on the way: `inverse` of its damped Gram, its weights, the columns of every unit."""

    def __init__(self, site: Site, group: int, members: NDArray[np.bool_]) -> None:
        gram = site.gram[group]
        self.energy = site.energy
        damped = gram + DAMP * max(float(np.trace(gram)) / len(gram), 1e-30) * np.eye(len(gram))
        self.inverse = np.linalg.inv(damped)
        self.matrix = site.matrix[group].copy()
        units = np.repeat(site.units[group], len(gram) // site.units.shape[1])
        self.columns: dict[int, Ids] = {}
        order = np.argsort(units, kind="stable")
        for u, columns in zip(*_runs(units[order], order), strict=True):
            if members[u]:
                self.columns[u] = columns
        self.error = 0.0

    def scores(self, units: Sequence[int]) -> Array:
        """Relative error that each of the units alone would add."""
        out = np.zeros(len(units))
        by_count: dict[int, list[int]] = {}
        for k, u in enumerate(units):
            if u in self.columns:
                by_count.setdefault(len(self.columns[u]), []).append(k)
        for places in by_count.values():
            columns = np.stack([self.columns[units[k]] for k in places])  # U m
            inner = self.inverse[columns[:, :, None], columns[:, None, :]]
            weights = self.matrix[columns]  # U m O
            out[places] = np.einsum("umo,umo->u", weights, np.linalg.solve(inner, weights)) / self.energy
        return out

    def remove(self, units: Sequence[int]) -> None:
        """Take the units out and compensate."""
        gone = [self.columns.pop(u) for u in units if u in self.columns]
        if not gone:
            return
        p = np.concatenate(gone)
        strip = self.inverse[:, p]
        solved = np.linalg.solve(self.inverse[np.ix_(p, p)], np.concatenate([strip.T, self.matrix[p]], axis=1))
        back, weights = solved[:, : len(strip)], solved[:, len(strip) :]
        self.error += float(np.einsum("po,po->", self.matrix[p], weights)) / self.energy
        self.matrix -= strip @ weights
        self.inverse -= strip @ back
        self.matrix[p] = 0
        self.inverse[p, :] = self.inverse[:, p] = 0
        self.inverse[p, p] = 1


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
