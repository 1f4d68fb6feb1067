"""Ridge regression towards given weights, chosen on held-out rows. Knows arrays only.

min_W |T - A W - 1 b'|^2 + lam |W - W0|^2, lam = ridge * mean(diag(centred A'A)): directions that were not sampled keep
their weights (SPA's OBSPA update with an asymmetric target; the closed form equals removing the columns one by one with
Optimal Brain Surgeon). Where the target is clipped afterwards, what is beyond the clip need only stay beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Array = NDArray[np.float64]
Rows = NDArray[np.float32]
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
CLIP_ROUNDS = 2
CHUNK = 8192


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
        offset = self.offset[where] if self.offset.ndim == 2 else self.offset
        return Problem(self.rows[where], self.wanted[where], self.scale, offset, self.low, self.high, self.intercept)

    def predicted(self, matrix: Array, bias: Array) -> Rows:
        """The compared tensor before the clip."""
        y = self.rows @ matrix.astype(np.float32) + bias.astype(np.float32)
        return np.asarray(y * self.scale.astype(np.float32) + self.offset.astype(np.float32), np.float32)

    def error(self, matrix: Array, bias: Array) -> float:
        """Sum of squares of what is seen after the clip."""
        got = np.clip(self.predicted(matrix, bias), self.low, self.high)
        return float(np.square(got - np.clip(self.wanted, self.low, self.high), dtype=np.float64).sum())

    def energy(self) -> float:
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


class _Normal:
    """Centred normal equations of some rows; factored once for each ridge."""

    def __init__(self, p: Problem) -> None:
        rows, self.p = p.rows, p
        self.mean = rows.mean(0, dtype=np.float64) if p.intercept else np.zeros(rows.shape[1])
        gram = np.zeros((rows.shape[1],) * 2)
        for k in range(0, len(rows), CHUNK):
            part = rows[k : k + CHUNK].astype(np.float64) - self.mean
            gram += part.T @ part
        self.gram = gram
        self.unit = float(np.trace(gram)) / max(len(gram), 1) + 1e-30
        self.factors: dict[float, Any] = {}
        self.first: tuple[Array, Array] | None = None

    def right(self, target: Rows) -> tuple[Array, Array]:
        """The right-hand side [K, O] and the means [O] of targets [S, O] of the layer's own output."""
        mean = target.mean(0, dtype=np.float64) if self.p.intercept else np.zeros(target.shape[1])
        right = np.zeros((len(self.gram), target.shape[1]))
        for k in range(0, len(target), CHUNK):
            part = self.p.rows[k : k + CHUNK].astype(np.float64) - self.mean
            right += part.T @ (target[k : k + CHUNK] - mean)
        return right, mean

    def solve(self, right: Array, mean: Array, start: Array, ridge: float) -> tuple[Array, Array]:
        """(W, b) for what `right` gives."""
        while True:
            lam = ridge * self.unit
            try:
                if ridge not in self.factors:
                    self.factors[ridge] = cho_factor(self.gram + lam * np.eye(len(self.gram)), lower=True)
                matrix = cho_solve(self.factors[ridge], right + lam * start)
                break
            except LinAlgError:
                ridge *= 10
        return matrix, mean - self.mean @ matrix


def solve(p: Problem, start: Array, bias: Array, held: int, ridges: Sequence[float] = RIDGES) -> Solution:
    """Fit on all but the last `held` rows, choose the ridge on those, then fit on all. `start` [K, O] and `bias` [O]
    are the old weights: the ridge pulls towards them, and they win where no fit is better on the held-out rows."""
    cut = len(p.rows) - held
    fit, test = p.part(slice(0, cut)), p.part(slice(cut, None))
    before = test.error(start, bias)
    normal = _Normal(fit)
    tried = []
    for ridge in ridges:
        matrix, b = _clipped(fit, normal, start, bias, ridge)
        tried.append((test.error(matrix, b), ridge, matrix, b))
    error, ridge, matrix, b = min(tried, key=lambda t: t[0])
    if error >= before:
        return Solution(start, bias, np.inf, before, before)
    matrix, b = _clipped(p, _Normal(p), start, bias, ridge)
    return Solution(matrix, b, ridge, error, before)


def _clipped(p: Problem, normal: _Normal, start: Array, bias: Array, ridge: float) -> tuple[Array, Array]:
    """Solve; then, where the target is clipped, let what is beyond the clip stay where the prediction has it."""
    live = np.abs(p.scale) > 1e-6 * max(float(np.abs(p.scale).max()), 1e-30)
    scale = np.where(live, p.scale, 1.0)
    own = None if live.all() else p.rows @ start.astype(np.float32) + bias.astype(np.float32)

    def right(wanted: Rows) -> tuple[Array, Array]:
        target = (wanted - p.offset) / scale
        return normal.right((target if own is None else np.where(live, target, own)).astype(np.float32))

    def solved(sides: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, b = normal.solve(*sides, start, ridge)
        return matrix, b if p.intercept else bias

    normal.first = normal.first or right(p.wanted)  # whatever the ridge is
    matrix, b = solved(normal.first)
    if np.isfinite((p.low, p.high)).any():
        for _ in range(CLIP_ROUNDS):
            z = p.predicted(matrix, b)
            wanted = np.where(p.wanted <= p.low, np.minimum(z, p.low), p.wanted)
            wanted = np.where(p.wanted >= p.high, np.maximum(z, p.high), wanted)
            matrix, b = solved(right(wanted))
    return matrix, b
