"""Ridge regression towards given weights, chosen on held-out rows. Knows arrays only.

min_W |T - A W - 1 b'|^2 + lam |W - W0|^2, lam = ridge * mean(diag(centred A'A)): directions that were not sampled keep
their weights (SPA's OBSPA update with an asymmetric target; the closed form equals removing the columns one by one with
Optimal Brain Surgeon). Where the target is clipped afterwards, what is beyond the clip need only stay beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit.normal import CHUNK, Moments, Normal
from onnxprune.steady import each

Array = NDArray[np.float64]
Rows = NDArray[np.float32]
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, np.inf)
"""The last one moves biases alone."""
CLIP_ROUNDS = 2


@dataclass(frozen=True)
class Problem:
    """One group of a layer. rows [S, K]; wanted [S, O]: the compared tensor; then
    compared = clip(scale * (rows @ W + b) + offset), with scale [O] and offset [S, O] or [O]."""

    rows: Rows
    wanted: Rows
    scale: Array
    offset: NDArray[np.floating]
    low: float = -np.inf
    high: float = np.inf
    intercept: bool = True

    def part(self, where: slice) -> Problem:
        """Some of the rows."""
        offset = self.offset[where] if self.offset.ndim == 2 else self.offset
        return Problem(self.rows[where], self.wanted[where], self.scale, offset, self.low, self.high, self.intercept)

    def predicted(self, matrix: Array, bias: Array) -> Rows:
        """The compared tensor before the clip."""
        offset = np.broadcast_to(self.offset, (len(self.rows), matrix.shape[1]))
        y = np.empty(offset.shape, np.float32)
        w, b, scale = (x.astype(np.float32) for x in (matrix, bias, self.scale))

        def part(at: slice) -> None:
            np.matmul(self.rows[at], w, out=y[at])
            y[at] += b
            y[at] *= scale
            y[at] += offset[at]

        each(part, [slice(k, k + CHUNK) for k in range(0, len(y), CHUNK)])
        return y

    def error(self, matrix: Array, bias: Array) -> float:
        """Sum of squares of what is seen after the clip."""
        got = np.clip(self.predicted(matrix, bias), self.low, self.high)
        return float(np.square(got - np.clip(self.wanted, self.low, self.high), dtype=np.float64).sum())

    def energy(self) -> float:
        """Sum of squares of what is wanted, clipped and less its mean: what errors are relative to."""
        seen = np.clip(self.wanted, self.low, self.high)
        return float(np.square(seen - seen.mean(0), dtype=np.float64).sum())


@dataclass(frozen=True)
class Solution:
    """Weights [K, O] and bias [O]; `error` and `before` are held-out squared errors of them and of the old weights."""

    matrix: Array
    bias: Array
    ridge: float
    error: float
    before: float


def solve(
    p: Problem, start: Array, bias: Array, held: int, ridges: Sequence[float] = RIDGES, again: bool = True
) -> Solution:
    """Fit on all but the last `held` rows, choose the ridge on those, then fit on all (`again`). `start` [K, O] and
    `bias` [O] are the old weights: the ridge pulls towards them, and they win where no fit is better on those rows."""
    cut = len(p.rows) - held
    fit, test = p.part(slice(0, cut)), p.part(slice(cut, None))
    before = test.error(start, bias)
    stays = Solution(start, bias, np.inf, before, before)
    if cut < 1 or not np.isfinite(before):
        return stays
    goal = _Goal(p, start, bias)
    first = Moments.of(fit.rows, partial(goal.wanted, fit))
    normal = Normal(first, p.intercept)
    if not normal.finite:
        return stays

    def at(ridge: float) -> Solution:
        found = goal.kept(normal.solve(start, ridge))
        return Solution(*found, ridge, test.error(*found), before)

    best, clipped = _lowest(at, [ridge for ridge in ridges if normal.takes(ridge)], normal.keep), None
    if np.isfinite((p.low, p.high)).any():
        found = _clipped(fit, normal, goal, start, best, CLIP_ROUNDS if again else 1)
        clipped = Solution(*found, best.ridge, test.error(*found), before)
        best = min(best, clipped, key=_error)
    if not best.error < before:
        return stays
    if not again:
        return best
    del normal  # large ones are not held twice
    first.add(test.rows, partial(goal.wanted, test))
    normal = Normal(first, p.intercept)
    if not normal.takes(best.ridge):
        return best
    matrix, b = goal.kept(normal.solve(start, best.ridge))
    if best is clipped:
        matrix, b = _clipped(p, normal, goal, start, replace(best, matrix=matrix, bias=b), CLIP_ROUNDS)
    return Solution(matrix, b, best.ridge, best.error, before)


def _lowest(
    at: Callable[[float], Solution], ridges: Sequence[float], keep: Callable[[float], None] = lambda ridge: None
) -> Solution:
    """The best of the solutions `at` these ridges, which grow: from the middle of the finite ones the error is followed
    downhill, to smaller ridges or else to larger ones. The infinite one costs next to nothing, and is always tried.
    keep: told the best one so far before the next is tried."""
    finite = [ridge for ridge in ridges if np.isfinite(ridge)]
    middle = (len(finite) - 1) // 2
    ends = [at(ridge) for ridge in ridges if np.isinf(ridge)]
    best = at(finite[middle]) if finite else ends[0]
    for way in (finite[:middle][::-1], finite[middle + 1 :]):
        moved = False
        for ridge in way:
            keep(best.ridge)
            tried = at(ridge)
            if not tried.error < best.error:
                break
            best, moved = tried, True
        if moved:
            break
    return min([best, *ends], key=_error)


def _error(solution: Solution) -> float:
    return solution.error


class _Goal:
    """Targets of the layer's own output; of channels that the scale switches off, what they are already."""

    def __init__(self, p: Problem, start: Array, bias: Array) -> None:
        self.start, self.bias, self.intercept = start.astype(np.float32), bias, p.intercept
        self.live = np.abs(p.scale) > 1e-6 * max(float(np.abs(p.scale).max()), 1e-30)
        self.scale = np.where(self.live, p.scale, 1.0).astype(np.float32)

    def targets(self, p: Problem, wanted: Rows) -> Rows:
        found = np.asarray((wanted - p.offset) / self.scale, np.float32)
        if not self.intercept:
            found -= self.bias.astype(np.float32)
        if not self.live.all():
            own = p.rows @ self.start + self.bias.astype(np.float32) * self.intercept
            found = np.where(self.live, found, own)
        return found

    def wanted(self, p: Problem, at: slice) -> Rows:
        """`targets` of some rows of a problem, as it has them."""
        part = p.part(at)
        return self.targets(part, part.wanted)

    def clipped(self, p: Problem, matrix: Array, bias: Array, at: slice) -> Rows:
        """The same where what is beyond the clip stays where this prediction has it."""
        part = p.part(at)
        z = part.predicted(matrix, bias)
        wanted = np.where(part.wanted <= p.low, np.minimum(z, p.low), part.wanted)
        wanted = np.where(part.wanted >= p.high, np.maximum(z, p.high), wanted)
        return self.targets(part, np.asarray(wanted, np.float32))

    def kept(self, solved: tuple[Array, Array]) -> tuple[Array, Array]:
        """The solution, with the old bias where it cannot be moved."""
        return solved if self.intercept else (solved[0], self.bias)


def _clipped(
    p: Problem, normal: Normal, goal: _Goal, start: Array, found: Solution, rounds: int
) -> tuple[Array, Array]:
    """Where the target is clipped, let what is beyond the clip stay where the prediction has it, and solve again, with
    the ridge of `found` and from its prediction."""
    matrix, bias = found.matrix, found.bias
    for _ in range(rounds):
        changed = normal.crossed(p.rows, partial(goal.clipped, p, matrix, bias))
        matrix, bias = goal.kept(normal.solve(start, found.ridge, changed))
    return matrix, bias
