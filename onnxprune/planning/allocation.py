"""How much of every set of units goes: spend the budget where the measured loss per saved cost is least.

Knows curves, costs and shares; no operator and no ONNX. The cost of a node is a constant times the kept shares of the
blocks that cut it (MACs; the same for the elements of a parameter), so that what a step saves depends on what is gone.
Time has parts beside that: what is spent whatever the widths are, and what reading and writing each block takes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import numpy as np
from numpy.typing import NDArray

from onnxprune.planning.profile import share
from onnxprune.trace import LABELLED, Groups, Ids

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """`count` [terms]; term i costs count[i] * prod of the kept shares of `blocks[i]`, each an array of classes
    (see `profile.share`), and, where there are `lines`, lines[i][j] * the kept share of blocks[i][j]; all terms
    together cost `fixed` besides."""

    count: Array
    blocks: Sequence[tuple[Ids, ...]]
    lines: Sequence[Sequence[float]] = ()
    fixed: float = 0.0

    @staticmethod
    def of(groups: Groups, what: str) -> Costs:
        """Of MACs (of one sample at the first probe's sizes) or of parameters."""
        terms: list[tuple[float, tuple[Ids, ...]]]
        if what == "macs":
            terms = [(c, tuple(groups.classes[ids] for ids in b)) for c, b in groups.trace.macs.values()]
        else:
            weights = {n: w for n, w in groups.trace.model.weights.items() if w.onnx_type in LABELLED}
            by_use: dict[str, dict[Hashable, list[tuple[int, Ids]]]] = {n: {} for n in weights}
            for s, axes, ids in groups.blocks:
                by_use[s.parameter].setdefault(s.key, []).append((axes[0], groups.classes[ids]))
            terms = [
                (weights[n].size / max(len(uses), 1), _in_rows(blocks))
                for n, uses in by_use.items()
                for blocks in (uses.values() or [[]])
            ]
        return Costs(np.array([c for c, _ in terms]), [b for _, b in terms])

    @property
    def whole(self) -> float:
        """Cost of the model as it is."""
        return float(self.count.sum()) + self.fixed + sum(map(sum, self.lines))

    def total(self, kept: NDArray[np.bool_]) -> float:
        """Cost when the classes of `kept` are left."""
        products = sum(count * share(blocks, kept) for count, blocks in zip(self.count, self.blocks, strict=True))
        sums = sum(x * kept[b].mean() for line, bs in zip(self.lines, self.blocks, strict=False)
                   for x, b in zip(line, bs, strict=True))  # fmt: skip
        return float(products + sums) + self.fixed


def _in_rows(blocks: Sequence[tuple[int, Ids]]) -> tuple[Ids, ...]:
    """Blocks with the first of their axes; those that have it in common (a grouped weight's) as rows along it."""
    firsts = [axis for axis, _ in blocks]
    rows = {axis: gcd(*(len(ids) for a, ids in blocks if a == axis)) for axis in firsts if firsts.count(axis) > 1}
    return tuple(ids.reshape(rows[axis], -1) if axis in rows else ids.ravel() for axis, ids in blocks)


@dataclass(frozen=True)
class Choice:
    """One set of linked units: `units` in it, `losses[k]` after share k / (len(losses) - 1) of them is gone (inf: not
    allowed), in the same measure for all sets."""

    units: Sequence[int]
    losses: Array


def allocate(choices: Sequence[Choice], costs: Costs, gone: NDArray[np.bool_], budget: float) -> list[float]:
    """The share that every set loses so that the cost falls to `budget`: always the step with the least loss for what
    it saves, along the lower convex hull of each curve. `gone`: classes that are removed already."""
    owner, full, line, base, held = _terms(choices, costs, gone)
    hulls = [_hull(c.losses) for c in choices]
    at, taken = [0] * len(choices), np.zeros(len(choices))

    def paid(taken: Array) -> tuple[float, Array, Array]:
        """The cost when these shares are taken, that of each product, and what is kept of each block."""
        kept = np.maximum(base - taken @ held, 1e-9)
        cost = full.copy()
        np.multiply.at(cost, owner, kept)
        return float(cost.sum() + line @ kept + costs.fixed), cost, kept

    while True:
        left, cost, kept = paid(taken)
        if left <= budget:
            break
        saving = held @ (cost[owner] / kept + line)  # by share of each set
        steps = []
        for p, hull in enumerate(hulls):
            if at[p] + 1 < len(hull) and saving[p] > 0:
                (k0, l0), (k1, l1) = hull[at[p]], hull[at[p] + 1]
                saved = saving[p] * (k1 - k0) / (len(choices[p].losses) - 1)
                steps.append(((l1 - l0) / saved, l1 - l0, saved, p))
        if not steps:
            break
        which = min(steps)[-1]
        short = left - budget
        if min(steps)[2] >= short:  # the last step: the least loss of those that are enough
            which = min((loss, saved, p) for _, loss, saved, p in steps if saved >= short)[-1]
        at[which] += 1
        taken[which] = hulls[which][at[which]][0] / (len(choices[which].losses) - 1)
    # Where steps are coarse, the last one may make earlier ones needless: the dearest are undone.
    for p in sorted(range(len(choices)), key=lambda p: hulls[p][at[p] - 1][1] - hulls[p][at[p]][1] if at[p] else 0.0):
        while at[p]:
            fewer = taken.copy()
            fewer[p] = hulls[p][at[p] - 1][0] / (len(choices[p].losses) - 1)
            if paid(fewer)[0] > budget:
                break
            taken, at[p] = fewer, at[p] - 1
    return taken.tolist()


def uniform(choices: Sequence[Choice], costs: Costs, gone: NDArray[np.bool_], budget: float) -> float:
    """The share that, taken from every set, brings the cost down to `budget`."""
    owner, full, line, base, held = _terms(choices, costs, gone)
    low, high = 0.0, 1.0
    for _ in range(20):
        cost = full.copy()
        kept = np.maximum(base - held.sum(0) * (low + high) / 2, 1e-9)
        np.multiply.at(cost, owner, kept)
        fits = cost.sum() + line @ kept + costs.fixed <= budget
        low, high = (low, (low + high) / 2) if fits else ((low + high) / 2, high)
    return high


def _terms(choices: Sequence[Choice], costs: Costs, gone: NDArray[np.bool_]) -> tuple[Ids, Array, Array, Array, Array]:
    """Of every block of every cost: the index of its cost, that cost when the block is whole, what the block costs by
    itself, the share of it that is not gone, and [sets, blocks] the share of its positions that each set has."""
    terms = [(i, b) for i, bs in enumerate(costs.blocks) for b in bs]
    owner = np.array([i for i, _ in terms], np.int64)
    base = np.array([1.0 - gone[b].mean() for _, b in terms])
    full = costs.count.copy()
    for i, bs in enumerate(costs.blocks):  # of rows that are gone, each block knows
        left = float(np.prod([1.0 - gone[b].mean() for b in bs]))
        full[i] *= share(bs, ~gone) / left if left else 0.0
    held = np.zeros((len(choices), len(terms)))
    for p, choice in enumerate(choices):
        inside = np.zeros(len(gone), bool)
        inside[list(choice.units)] = True
        for j, (_, b) in enumerate(terms):
            held[p, j] = inside[b].mean()
    line = np.array([x for lines in costs.lines for x in lines]) if costs.lines else np.zeros(len(terms))
    return owner, full, line, base, held


def _hull(losses: Array) -> list[tuple[int, float]]:
    """Corners of the lower convex hull of (level, loss), from level 0 to the last one that is allowed; steps between
    corners are cut into single levels that are allowed, since along an edge every level costs the same."""
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
        fine += [(k, x0 + (x1 - x0) * (k - k0) / (k1 - k0)) for k in range(k0 + 1, k1 + 1)
                 if np.isfinite(losses[k])]  # fmt: skip
    return fine
