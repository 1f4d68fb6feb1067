"""How much of every set of units goes: spend the budget where the measured loss per saved cost is least.

Knows curves, costs and shares; no operator and no ONNX. What a step saves depends on what is gone. Where costs rise in
stairs (see `Costs`), most single steps save nothing: then the next step goes as far along a curve as pays best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.planning.costs import Array, Costs
from onnxprune.planning.paying import Blocks, Paid

ALIKE = 1e-3
"""Costs that differ by a smaller share are one stair."""


@dataclass(frozen=True)
class Choice:
    """One set of linked units: `units` in it, `losses[k]` after share k / (len(losses) - 1) of them is gone, or share
    `gone[k]` (inf: not allowed), in the same measure for all sets. inside: other sets (by number) that go with it, as
    they are of a residual branch that this one stands for: its loss is that of all of them."""

    units: Sequence[int]
    losses: Array
    gone: Array | None = None
    inside: tuple[int, ...] = ()

    @property
    def shares(self) -> Array:
        """What is gone at every level."""
        return np.linspace(0.0, 1.0, len(self.losses)) if self.gone is None else self.gone


def allocate(choices: Sequence[Choice], costs: Costs, gone: NDArray[np.bool_], budget: float) -> list[float]:
    """The share (0..1) that every set loses so that the cost falls to `budget`: always the step with the least loss for
    what it saves, along the lower convex hull of each curve. `gone`: classes that are removed already."""
    blocks = Blocks.of([c.units for c in choices], costs, gone)
    walk = _Leaps(choices, blocks) if costs.stairs else _Walk(choices, blocks)
    while (paid := blocks.paid(walk.taken)).total > budget:
        steps = list(walk.steps(paid, paid.total - budget))
        if not steps:
            break
        best = _best(steps, paid.total - budget)
        walk.move(best.p, best.by)
    # Where steps are coarse, the last one may make earlier ones needless: the dearest are undone.
    for p in sorted(range(len(choices)), key=walk.gain_of_last):
        walk.undo(p, budget)
    return walk.taken.tolist()


def on_stairs(
    choices: Sequence[Choice], steps: Sequence[int], costs: Costs, gone: NDArray[np.bool_]
) -> list[Choice]:  # fmt: skip
    """The choices with levels where stairs end: as many levels as before, each moved, inside its part of the curve, to
    the first of the set's own `steps` (0: they stay as they are) that costs as little as any there."""
    blocks = Blocks.of([c.units for c in choices], costs, gone)
    out = []
    for p, (choice, count) in enumerate(zip(choices, steps, strict=True)):
        levels = len(choice.losses) - 1
        if count < levels or not blocks.stepped(p):
            out.append(choice)
            continue
        shares = np.linspace(0.0, 1.0, count + 1)
        with np.errstate(invalid="ignore"):
            losses = np.interp(shares, choice.shares, choice.losses)
        losses[~np.isfinite(losses)] = np.inf
        cost = blocks.along(p, np.zeros(len(choices)), shares)
        bounds = np.arange(levels + 1) * count // levels
        found = [0]
        for low, high in pairwise((bounds + 1).tolist()):
            cell = cost[low:high]
            found.append(low + int(np.argmax(cell <= cell.min() + ALIKE * cost[0])))
        out.append(replace(choice, losses=losses[found], gone=shares[found]))
    return out


def uniform(choices: Sequence[Choice], costs: Costs, gone: NDArray[np.bool_], budget: float) -> float:
    """The share (0..1) that, taken from every set, brings the cost down to `budget`."""
    blocks = Blocks.of([c.units for c in choices], costs, gone)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        fits = blocks.paid(middle).total <= budget
        low, high = (low, middle) if fits else (middle, high)
    return high


class _Step(NamedTuple):
    """`by` corners on along the curve of set `p`: what is lost for what it saves, both of these, in the order that
    decides."""

    rate: float
    loss: float
    saved: float
    p: int
    by: int = 1


def _best(steps: Sequence[_Step], short: float) -> _Step:
    """The step that loses least for what it saves; as the last one, which saves what is `short`, the one that loses
    least at all."""
    best = min(steps)
    if best.saved >= short:
        best = min((s for s in steps if s.saved >= short), key=lambda s: (s.loss, s.saved, s.p))
    return best


class _Walk:
    """A corner on the path along every set's curve, and the shares [sets] that are taken there. Paths are convex."""

    def __init__(self, choices: Sequence[Choice], blocks: Blocks) -> None:
        self.blocks = blocks
        self.inside = [c.inside for c in choices]
        self.around: list[list[int]] = [[] for _ in choices]
        for p, inside in enumerate(self.inside):
            for q in inside:
                self.around[q].append(p)
        self.paths = [self.path(c) for c in choices]
        self.at = [0] * len(choices)
        self.taken = np.zeros(len(choices))
        self.ahead = np.array([self._ahead(p) for p in range(len(choices))]).reshape(-1, 2)

    @staticmethod
    def path(choice: Choice) -> list[tuple[float, float]]:
        """(share, loss) at every corner."""
        return [(float(choice.shares[k]), loss) for k, loss in _hull(choice.losses)]

    def move(self, p: int, by: int) -> None:
        """To another corner of one path. What goes with it need lose nothing besides."""
        self.at[p] += by
        self.taken[p] = self.paths[p][self.at[p]][0]
        for q in self.inside[p]:
            if self.at[q]:
                self.move(q, -self.at[q])
        for q in (p, *self.around[p]):
            self.ahead[q] = self._ahead(q)

    def _ahead(self, p: int) -> tuple[float, float]:
        """(share, loss) from where a path is to its next corner; no share at its end."""
        path, at = self.paths[p], self.at[p]
        return (path[at + 1][0] - path[at][0], path[at + 1][1] - self.lost(p)) if at + 1 < len(path) else (0.0, 0.0)

    def lost(self, p: int) -> float:
        """What is lost so far of a set and of those that would go with it."""
        return sum(self.paths[q][self.at[q]][1] for q in (p, *self.inside[p]))

    def steps(self, paid: Paid, short: float) -> Iterator[_Step]:
        """Of the steps to the next corner of a path, where that saves anything of what is `paid`, those that pay best,
        and those that lose least of all that save what is `short`."""
        share, lost = self.ahead.T
        saved = self.blocks.savings(paid) * share
        some = np.flatnonzero(saved > 0)
        rate, enough = lost[some] / saved[some], np.where(saved[some] >= short, lost[some], np.inf)
        found = (rate <= rate.min(initial=np.inf)) | ((enough <= enough.min(initial=np.inf)) & np.isfinite(enough))
        for k in np.flatnonzero(found).tolist():
            p = int(some[k])
            yield _Step(float(rate[k]), float(lost[p]), float(saved[p]), p)

    def undo(self, p: int, budget: float) -> None:
        """Back along one path as far as the budget allows."""
        while self.at[p]:
            self.move(p, -1)
            if self.blocks.paid(self.taken).total > budget:
                self.move(p, 1)
                break

    def gain_of_last(self, p: int) -> float:
        """The change of the loss if the last step of a set were undone."""
        path, at = self.paths[p], self.at[p]
        return path[at - 1][1] - path[at][1] if at else 0.0


class _Leaps(_Walk):
    """The same where costs rise in stairs: of each set the step, however far, that loses least for what it saves."""

    def __init__(self, choices: Sequence[Choice], blocks: Blocks) -> None:
        super().__init__(choices, blocks)
        self.saved: dict[int, Array] = {}
        self.near = blocks.near()

    @staticmethod
    def path(choice: Choice) -> list[tuple[float, float]]:
        """All levels that are allowed: what is no corner of the losses may be one of loss by cost."""
        return [(s, x) for s, x in zip(choice.shares.tolist(), choice.losses.tolist(), strict=True) if np.isfinite(x)]

    def move(self, p: int, by: int) -> None:
        """What the sets save that have a cost in common with this one has to be worked out again."""
        super().move(p, by)
        for q in self.near[p].tolist():
            self.saved.pop(q, None)

    def savings(self, p: int) -> Array:
        """[corners]: what a set saves, from where it is now, at every corner of its path."""
        if p not in self.saved:
            cost = self.blocks.along(p, self.taken, np.array([share for share, _ in self.paths[p]]))
            self.saved[p] = cost[self.at[p]] - cost
        return self.saved[p]

    def steps(self, paid: Paid, short: float) -> Iterator[_Step]:
        """Of each set the step that pays best, and the one that loses least of those that save what is `short`."""
        for p, (path, at) in enumerate(zip(self.paths, self.at, strict=True)):
            saved = self.savings(p)[at + 1 :]
            lost = np.array([loss for _, loss in path[at + 1 :]]) - self.lost(p)
            pays, enough = np.flatnonzero(saved > 0), np.flatnonzero(saved >= short)
            if pays.size:
                found = {int(pays[(lost[pays] / saved[pays]).argmin()])}
                found |= {int(enough[lost[enough].argmin()])} if enough.size else set()
                yield from (_Step(lost[k] / saved[k], lost[k], saved[k], p, k + 1) for k in sorted(found))

    def undo(self, p: int, budget: float) -> None:
        """To the corner with the least loss of those that are passed and within the budget."""
        at = self.at[p]
        spare = budget - self.blocks.paid(self.taken).total
        fits = np.flatnonzero(self.savings(p)[:at] >= -spare)
        if spare >= 0 and fits.size:
            self.move(p, min(fits.tolist(), key=lambda k: self.paths[p][k][1]) - at)


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
