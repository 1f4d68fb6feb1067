"""How much of every set of units goes: spend the budget where the measured loss per saved cost is least.

Knows curves, costs and shares; no operator and no ONNX. The cost of a node is a constant times the kept shares of the
blocks that cut it (MACs; the same for the elements of a parameter), so that what a step saves depends on what is gone.
Time has parts beside that: what is spent whatever the widths are, and what reading and writing each block takes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import NamedTuple

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
            products = (product for node in groups.trace.macs.values() for product in node)
            terms = [(c, tuple(groups.classes[ids] for ids in b)) for c, b in products]
        else:
            weights = {n: w for n, w in groups.trace.model.weights.items() if w.onnx_type in LABELLED}
            by_use: dict[str, dict[Hashable, list[tuple[int, Ids]]]] = {n: {} for n in weights}
            for s, axes, ids in groups.blocks:
                by_use[s.parameter].setdefault(s.key, []).append((axes[0], groups.classes[ids]))
            terms = [
                (weights[n].size / max(len(uses), 1), (*_in_rows(blocks), *_branches(groups, n)))
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


def _branches(groups: Groups, parameter: str) -> Iterator[Ids]:
    """The classes of the residual branches without which nobody reads a parameter, each as a block of its own."""
    readers = groups.trace.readers.get(parameter, [])
    for unit, branch in groups.branches.items():
        if readers and branch.nodes.issuperset(readers):
            yield np.array([unit])


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
    """The share (0..1) that every set loses so that the cost falls to `budget`: always the step with the least loss for
    what it saves, along the lower convex hull of each curve. `gone`: classes that are removed already."""
    blocks = _Blocks.of(choices, costs, gone)
    walk = _Walk(choices)
    while True:
        paid = blocks.paid(walk.taken @ blocks.held)
        if paid.total <= budget:
            break
        steps = list(walk.steps(blocks.savings(paid)))
        if not steps:
            break
        walk.move(_best(steps, paid.total - budget), 1)
    # Where steps are coarse, the last one may make earlier ones needless: the dearest are undone.
    for p in sorted(range(len(choices)), key=walk.gain_of_last):
        while walk.at[p]:
            walk.move(p, -1)
            if blocks.paid(walk.taken @ blocks.held).total > budget:
                walk.move(p, 1)
                break
    return walk.taken.tolist()


def uniform(choices: Sequence[Choice], costs: Costs, gone: NDArray[np.bool_], budget: float) -> float:
    """The share (0..1) that, taken from every set, brings the cost down to `budget`."""
    blocks = _Blocks.of(choices, costs, gone)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        fits = blocks.paid(blocks.held.sum(0) * middle).total <= budget
        low, high = (low, middle) if fits else (middle, high)
    return high


class _Step(NamedTuple):
    """One step along the hull of set `p`: what is lost for what it saves, both of these, in the order that decides."""

    rate: float
    loss: float
    saved: float
    p: int


def _best(steps: Sequence[_Step], short: float) -> int:
    """The set whose step loses least for what it saves; for the last one, which saves what is `short`, the set whose
    step loses least at all."""
    best = min(steps)
    if best.saved >= short:
        best = min((s for s in steps if s.saved >= short), key=lambda s: (s.loss, s.saved, s.p))
    return best.p


class _Walk:
    """A corner on the hull of every set's curve, and the shares [sets] that are taken there."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.hulls = [_hull(c.losses) for c in choices]
        self.levels = [len(c.losses) - 1 for c in choices]
        self.at = [0] * len(choices)
        self.taken = np.zeros(len(choices))

    def move(self, p: int, by: int) -> None:
        """To another corner of one hull."""
        self.at[p] += by
        self.taken[p] = self.hulls[p][self.at[p]][0] / self.levels[p]

    def steps(self, savings: Array) -> Iterator[_Step]:
        """To the next corner of each hull, where that saves anything. `savings` [sets]: cost by share."""
        for p, (hull, at) in enumerate(zip(self.hulls, self.at, strict=True)):
            if at + 1 < len(hull) and savings[p] > 0:
                (k0, l0), (k1, l1) = hull[at], hull[at + 1]
                saved = savings[p] * (k1 - k0) / self.levels[p]
                yield _Step((l1 - l0) / saved, l1 - l0, saved, p)

    def gain_of_last(self, p: int) -> float:
        """The change of the loss if the last step of a set were undone."""
        hull, at = self.hulls[p], self.at[p]
        return hull[at - 1][1] - hull[at][1] if at else 0.0


@dataclass(frozen=True)
class _Paid:
    """The cost in all, that of each product [costs], and what is kept of each block [blocks]."""

    total: float
    products: Array
    kept: Array


@dataclass(frozen=True)
class _Blocks:
    """Every block of every cost, so that what is to be paid follows from the shares of the blocks that are lost.

    owner: [blocks], the index of its cost. full: [costs], each when its blocks are whole. line: [blocks], what a block
    costs by itself. base: [blocks], the share of it that is not gone. held: [sets, blocks], the share of a block's
    positions that each set has. fixed: what is paid whatever is lost."""

    owner: Ids
    full: Array
    line: Array
    base: Array
    held: Array
    fixed: float

    @staticmethod
    def of(choices: Sequence[Choice], costs: Costs, gone: NDArray[np.bool_]) -> _Blocks:
        """Where the classes of `gone` are removed already."""
        terms = [(i, b) for i, bs in enumerate(costs.blocks) for b in bs]
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
        return _Blocks(np.array([i for i, _ in terms], np.int64), full, line, base, held, costs.fixed)

    def paid(self, lost: Array) -> _Paid:
        """The cost when these shares [blocks] are lost besides those that are gone."""
        kept = np.maximum(self.base - lost, 1e-9)
        products = self.full.copy()
        np.multiply.at(products, self.owner, kept)
        return _Paid(float(products.sum() + self.line @ kept + self.fixed), products, kept)

    def savings(self, paid: _Paid) -> Array:
        """[sets]: the cost that a small share of each set saves, by that share."""
        return np.asarray(self.held @ (paid.products[self.owner] / paid.kept + self.line))


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
