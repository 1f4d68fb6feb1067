"""Second moments of rows, and of rows with targets: accumulated part by part, merged, solved. Knows arrays only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.floating]
CHUNK = 4096


@dataclass
class Moments:
    """Sums over rows [S, K] and targets [S, O] in float64, both less `shift` and `base`, which keep them small
    (products of a chunk of rows are taken in float32, whose error the shift makes harmless)."""

    shift: Rows
    base: Rows
    gram: Array
    cross: Array
    row_sum: Array
    target_sum: Array
    count: int = 0

    @classmethod
    def of(cls, rows: Rows, targets: Rows, shift: Rows | None = None, base: Rows | None = None) -> Moments:
        """`shift` [K] and `base` [O] default to the means of the first rows."""
        shift = rows[:CHUNK].mean(0, dtype=np.float32) if shift is None else shift
        base = targets[:CHUNK].mean(0, dtype=np.float32) if base is None else base
        k, o = rows.shape[1], targets.shape[1]
        made = cls(shift, base, np.zeros((k, k)), np.zeros((k, o)), np.zeros(k), np.zeros(o))
        made.add(rows, targets)
        return made

    def add(self, rows: Rows, targets: Rows) -> None:
        """Add rows [S, K] and targets [S, O] to the sums."""
        for k in range(0, len(rows), CHUNK):
            a = rows[k : k + CHUNK].astype(np.float32, copy=False) - self.shift
            t = targets[k : k + CHUNK].astype(np.float32, copy=False) - self.base
            self.gram += a.T @ a
            self.cross += a.T @ t
            self.row_sum += a.sum(0, dtype=np.float64)
            self.target_sum += t.sum(0, dtype=np.float64)
        self.count += len(rows)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets of rows; their shifts must be the same."""
        return Moments(
            self.shift, self.base, self.gram + other.gram, self.cross + other.cross, self.row_sum + other.row_sum,
            self.target_sum + other.target_sum, self.count + other.count,
        )  # fmt: skip

    @property
    def mean(self) -> Array:
        """[K]"""
        return np.asarray(self.shift + self.row_sum / self.count, np.float64)

    @property
    def target_mean(self) -> Array:
        """[O]"""
        return np.asarray(self.base + self.target_sum / self.count, np.float64)

    def centred(self) -> tuple[Array, Array]:
        """(covariance [K, K], cross covariance [K, O]) times the count."""
        gram = self.gram - np.outer(self.row_sum, self.row_sum) / self.count
        return gram, self.cross - np.outer(self.row_sum, self.target_sum) / self.count

    def raw(self) -> tuple[Array, Array]:
        """The same about zero."""
        gram, cross = self.centred()
        mean = self.mean
        return gram + self.count * np.outer(mean, mean), cross + self.count * np.outer(mean, self.target_mean)


class Normal:
    """Normal equations with a ridge towards given weights; factored anew where the ridge is not the last one."""

    def __init__(self, moments: Moments, intercept: bool) -> None:
        self.moments, self.intercept = moments, intercept
        self.gram, self.cross = moments.centred()
        self.unit = float(np.trace(self.gram)) / max(len(self.gram), 1) + 1e-30
        if not intercept:
            self.gram, self.cross = moments.raw()
        self.factored = np.nan
        self.factor: Any = None

    def takes(self, ridge: float) -> bool:
        """Whether a float can hold the diagonal with it."""
        return bool(np.isinf(ridge) or np.isfinite(self.gram.diagonal() + ridge * self.unit).all())

    def solve(self, start: Array, ridge: float, changed: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
        """(W [K, O], b [O]); an infinite ridge keeps `start` and moves the bias alone. `changed`: cross
        moments [K, O] (centred or raw, as the equations are) and target means that take the place of the first ones."""
        cross, target_mean = changed or (self.cross, self.moments.target_mean)
        matrix = start
        while np.isfinite(ridge):
            lam = ridge * self.unit
            try:
                if ridge != self.factored:
                    self.factored, self.factor = np.nan, None  # large ones are not held twice
                    damped = self.gram.copy()
                    damped.flat[:: len(damped) + 1] += lam
                    self.factor = scipy.linalg.cho_factor(damped, lower=True, overwrite_a=True)
                    self.factored = ridge
                matrix = scipy.linalg.cho_solve(self.factor, cross + lam * start)
                break
            except np.linalg.LinAlgError:
                ridge *= 10
        return matrix, target_mean - self.moments.mean @ matrix if self.intercept else np.zeros(matrix.shape[1])

    def crossed(self, rows: Rows, targets: Rows) -> tuple[Array, Array]:
        """Cross moments and means of other targets for the same rows, as `solve` takes them."""
        found, base = np.zeros((rows.shape[1], targets.shape[1])), targets[:CHUNK].mean(0, dtype=np.float32)
        shift, total = self.moments.shift, np.zeros(targets.shape[1])
        for k in range(0, len(rows), CHUNK):
            part = targets[k : k + CHUNK] - base
            found += (rows[k : k + CHUNK].astype(np.float32, copy=False) - shift).T @ part
            total += part.sum(0, dtype=np.float64)
        found -= np.outer(self.moments.row_sum, total) / len(rows)
        mean = np.asarray(base + total / len(rows), np.float64)
        return found if self.intercept else found + len(rows) * np.outer(self.moments.mean, mean), mean
