"""Second moments of rows, and of rows with targets: accumulated part by part, merged, solved. Knows arrays only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.steady import each

Array = NDArray[np.float64]
Rows = NDArray[np.floating]
CHUNK = 4096
BLOCK = 512
"""Columns of a product that one thread works on at a time. What is added up in which order does not hang on how many
threads there are."""

FEW = 64


def starts(count: int) -> Iterator[slice]:
    """So many columns in blocks."""
    return (slice(k, min(k + BLOCK, count)) for k in range(0, count, BLOCK))


def chunks(count: int) -> Iterator[slice]:
    """So many rows in parts that are worth a product, of one to two times `CHUNK` each."""
    ends = np.linspace(0, count, max(1, count // CHUNK) + 1).astype(int).tolist()
    return map(slice, ends[:-1], ends[1:])


def _squared(gram: Array, rows: Rows, block: tuple[slice, slice]) -> None:
    """Add a block of rows' rows to the second moments, and its mirror image."""
    high, low = block
    made = rows[:, high].T @ rows[:, low]
    gram[high, low] += made
    if high != low:
        gram[low, high] += made.T


def _crossed(cross: Array, rows: Rows, targets: Rows, block: slice) -> None:
    """Add some rows of rows' targets."""
    cross[block] += rows[:, block].T @ targets


def _add_outer(matrix: Array, left: Array, right: Array, factor: float) -> None:
    """Add factor * left * right', a few rows at a time: matrices of this size are no cache's."""
    for k in range(0, len(left), FEW):
        matrix[k : k + FEW] += factor * (left[k : k + FEW, None] * right)


def inverse(gram: Array) -> Array:
    """Of a positive definite matrix, whose place it takes; half the work of one that knows nothing of it."""
    factor, failed = scipy.linalg.lapack.dpotrf(gram.T, lower=1, overwrite_a=1, clean=0)
    made, singular = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed or singular:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    for k in range(0, len(made), BLOCK):
        inside = made[k : k + BLOCK, k : k + BLOCK]
        inside[:] = np.tril(inside) + np.tril(inside, -1).T
        made[k : k + BLOCK, k + BLOCK :] = made[k + BLOCK :, k : k + BLOCK].T
    return np.asarray(made.T, np.float64)


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
        for at in chunks(len(rows)):
            a = rows[at].astype(np.float32, copy=False) - self.shift
            t = targets[at].astype(np.float32, copy=False) - self.base
            blocks = [(high, low) for high in starts(a.shape[1]) for low in starts(high.stop)]
            each(partial(_squared, self.gram, a), blocks)
            each(partial(_crossed, self.cross, a, t), starts(a.shape[1]))
            self.row_sum += a.sum(0, dtype=np.float64)
            self.target_sum += t.sum(0, dtype=np.float64)
        self.count += len(rows)

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
        gram, cross = self.gram.copy(), self.cross.copy()
        _add_outer(gram, self.row_sum, self.row_sum, -1 / self.count)
        _add_outer(cross, self.row_sum, self.target_sum, -1 / self.count)
        return gram, cross

    def raw(self) -> tuple[Array, Array]:
        """The same about zero."""
        gram, cross = self.centred()
        _add_outer(gram, self.mean, self.mean, self.count)
        _add_outer(cross, self.mean, self.target_mean, self.count)
        return gram, cross


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
                    self.factor = scipy.linalg.cho_factor(damped.T, lower=True, overwrite_a=True, check_finite=False)
                    self.factored = ridge
                wanted = np.asfortranarray(cross + lam * start)
                matrix = scipy.linalg.cho_solve(self.factor, wanted, overwrite_b=True, check_finite=False)
                break
            except np.linalg.LinAlgError:
                ridge *= 10
        return matrix, target_mean - self.moments.mean @ matrix if self.intercept else np.zeros(matrix.shape[1])

    def crossed(self, rows: Rows, targets: Rows) -> tuple[Array, Array]:
        """Cross moments and means of other targets for the same rows, as `solve` takes them."""
        found, base = np.zeros((rows.shape[1], targets.shape[1])), targets[:CHUNK].mean(0, dtype=np.float32)
        shift, total = self.moments.shift, np.zeros(targets.shape[1])
        for at in chunks(len(rows)):
            part = targets[at] - base
            own = rows[at].astype(np.float32, copy=False) - shift
            each(partial(_crossed, found, own, part), starts(own.shape[1]))
            total += part.sum(0, dtype=np.float64)
        found -= np.outer(self.moments.row_sum, total) / len(rows)
        mean = np.asarray(base + total / len(rows), np.float64)
        return found if self.intercept else found + len(rows) * np.outer(self.moments.mean, mean), mean
