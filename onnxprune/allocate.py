"""How much of every set of units goes: spend the budget where the measured loss per saved cost is least.

Knows curves, costs and shares; no operator and no ONNX. The cost of a node is a constant times the kept shares of the
blocks that cut it (MACs; the same for the elements of a parameter), so that what a step saves depends on what is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from onnxprune.groups import Groups
from onnxprune.labels import Ids

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """`count` [terms]; term i costs count[i] * prod of the kept shares of `blocks[i]`, each an array of classes."""

    count: Array
    blocks: Sequence[tuple[Ids, ...]]

    @staticmethod
    def of(groups: Groups, what: str) -> Costs:
        """Of MACs (at the first probe's sizes) or of parameters."""
        if what == "macs":
            terms = [(c, tuple(groups.classes[ids].ravel() for ids in b)) for c, b in groups.trace.macs.values()]
        else:
            model = groups.trace.model
            by_name: dict[str, list[Ids]] = {}
            for s, _, ids in groups.blocks:
                by_name.setdefault(s.parameter, []).append(groups.classes[ids].ravel())
            terms = [(float(model.weights[n].size), tuple(b)) for n, b in by_name.items()]
        return Costs(np.array([c for c, _ in terms]), [b for _, b in terms])

    def total(self, kept: NDArray[np.bool_]) -> float:
        """Cost when the classes of `kept` are left."""
        shares = [np.prod([kept[b].mean() for b in bs]) for bs in self.blocks]
        return float(self.count @ np.array(shares)) if shares else 0.0


@dataclass(frozen=True)
class Choice:
    """One set of linked units: `units` in it, `losses[k]` after share k / (len(losses) - 1) of them is gone (inf: not
    allowed), in the same measure for all sets."""

    units: Sequence[int]
    losses: Array


def allocate(choices: Sequence[Choice], costs: Costs, gone: NDArray[np.bool_], budget: float) -> list[float]:
    """The share that every set loses so that the cost falls to `budget`: always the step with the least loss for what
    it saves, along the lower convex hull of each curve. `gone`: classes that are removed already."""
    owner, base, share = _terms(choices, costs, gone)
    hulls = [_hull(c.losses) for c in choices]
    at, taken = [0] * len(choices), np.zeros(len(choices))
    while True:
        kept = np.maximum(base - taken @ share, 1e-9)
        cost = costs.count.copy()
        np.multiply.at(cost, owner, kept)
        if cost.sum() <= budget:
            break
        saving = share @ (cost[owner] / kept)  # by share of each set
        best, which = np.inf, -1
        for p, hull in enumerate(hulls):
            if at[p] + 1 < len(hull) and saving[p] > 0:
                (k0, l0), (k1, l1) = hull[at[p]], hull[at[p] + 1]
                slope = (l1 - l0) / ((k1 - k0) * saving[p])
                if slope < best:
                    best, which = slope, p
        if which < 0:
            break
        at[which] += 1
        taken[which] = hulls[which][at[which]][0] / (len(choices[which].losses) - 1)
    return taken.tolist()


def uniform(choices: Sequence[Choice], costs: Costs, gone: NDArray[np.bool_], budget: float) -> float:
    """The share that, taken from every set, brings the cost down to `budget`."""
    owner, base, share = _terms(choices, costs, gone)
    low, high = 0.0, 1.0
    for _ in range(20):
        cost = costs.count.copy()
        np.multiply.at(cost, owner, np.maximum(base - share.sum(0) * (low + high) / 2, 1e-9))
        low, high = (low, (low + high) / 2) if cost.sum() <= budget else ((low + high) / 2, high)
    return high


def _terms(choices: Sequence[Choice], costs: Costs, gone: NDArray[np.bool_]) -> tuple[Ids, Array, Array]:
    """Of every block of every cost: the index of its cost, the share that is not gone, and [sets, blocks] the share of
    its positions that each set has."""
    terms = [(i, b) for i, bs in enumerate(costs.blocks) for b in bs]
    share = np.zeros((len(choices), len(terms)))
    for p, choice in enumerate(choices):
        inside = np.zeros(len(gone), bool)
        inside[list(choice.units)] = True
        for j, (_, b) in enumerate(terms):
            share[p, j] = inside[b].mean()
    return np.array([i for i, _ in terms], np.int64), np.array([1.0 - gone[b].mean() for _, b in terms]), share


def _hull(losses: Array) -> list[tuple[int, float]]:
    """Corners of the lower convex hull of (level, loss), from level 0 to the last one that is allowed; steps between
    corners are cut into single levels, since along an edge every level costs the same."""
    points = [(k, float(x)) for k, x in enumerate(losses) if np.isfinite(x)]
    hull: list[tuple[int, float]] = []
    for k, x in points:
        while len(hull) > 1:
            (k0, x0), (k1, x1) = hull[-2:]
            if (x1 - x0) * (k - k0) < (x - x0) * (k1 - k0):
                break
            hull.pop()
        hull.append((k, x))
    fine = hull[:1]
    for (k0, x0), (k1, x1) in pairwise(hull):
        fine += [(k, x0 + (x1 - x0) * (k - k0) / (k1 - k0)) for k in range(k0 + 1, k1 + 1)]
    return fine
