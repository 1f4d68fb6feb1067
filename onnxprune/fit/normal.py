"""Second moments of rows, and of rows with targets: accumulated part by part, merged, solved. Knows arrays only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit.factors import Factor, starts
from onnxprune.steady import each, in_turn

Array = NDArray[np.float64]
Rows = NDArray[np.floating]
Targets = Callable[[slice], Rows]
"""What is wanted of some of the rows: made when it is asked for, as all at once may take more memory than the rows."""
Products = tuple[Rows, Rows, Array, Array, int]
"""Of some rows: of rows with rows, of rows with targets, the sums of both, how many they are."""
CHUNK = 4096
BLOCK = 512
"""Columns of a product that one thread works on at a time; of fewer it takes a part of the rows. What is added up in
which order does not hang on how many threads there are."""
WIDE, LEAST = 1024, 512
"""Columns beyond which fewer rows are taken at a time where their products are small, and how many at least."""
FEW = 64


def chunks(count: int, columns: int = 0) -> list[slice]:
    """So many rows in parts that are worth a product, of one to two times `CHUNK` each, or fewer where that many
    columns make a row long."""
    size = CHUNK if columns <= WIDE else max(LEAST, CHUNK * WIDE // columns)
    ends = np.linspace(0, count, max(1, count // size) + 1).astype(int).tolist()
    return list(map(slice, ends[:-1], ends[1:]))


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

    def some(block: slice) -> None:
        for k in range(block.start, block.stop, FEW):
            at = slice(k, min(k + FEW, block.stop))
            matrix[at] += factor * (left[at, None] * right)

    each(some, starts(len(left), BLOCK))


def _wanted(targets: Rows | Targets, at: slice) -> Rows:
    made = targets(at) if callable(targets) else targets[at]
    return made.astype(np.float32, copy=False)


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
    def of(cls, rows: Rows, targets: Rows | Targets) -> Moments:
        """Less the means of the first rows."""
        shift = rows[:CHUNK].mean(0, dtype=np.float32)
        base = _wanted(targets, slice(0, min(CHUNK, len(rows)))).mean(0, dtype=np.float32)
        k, o = len(shift), len(base)
        made = cls(shift, base, np.zeros((k, k)), np.zeros((k, o)), np.zeros(k), np.zeros(o))
        made.add(rows, targets)
        return made

    @property
    def narrow(self) -> bool:
        """Whether parts of the rows are worked on side by side, and not blocks of columns."""
        return len(self.gram) <= BLOCK

    def add(self, rows: Rows, targets: Rows | Targets) -> None:
        """Add rows [S, K] and targets [S, O] to the sums."""
        if self.narrow:
            for found in in_turn(partial(self.products, rows, targets), chunks(len(rows))):
                self.take(found)
            return
        for at in chunks(len(rows)):
            a, t = self._centred(rows, targets, at)
            across = starts(a.shape[1], BLOCK)
            blocks = [(row, column) for k, row in enumerate(across) for column in across[: k + 1]]
            each(partial(_squared, self.gram, a), blocks)
            each(partial(_crossed, self.cross, a, t), across)
            self.row_sum += a.sum(0, dtype=np.float64)
            self.target_sum += t.sum(0, dtype=np.float64)
        self.count += len(rows)

    def _centred(self, rows: Rows, targets: Rows | Targets, at: slice) -> tuple[Rows, Rows]:
        return rows[at].astype(np.float32, copy=False) - self.shift, _wanted(targets, at) - self.base

    def products(self, rows: Rows, targets: Rows | Targets, at: slice) -> Products:
        """What some rows add to the sums."""
        a, t = self._centred(rows, targets, at)
        return a.T @ a, a.T @ t, a.sum(0, dtype=np.float64), t.sum(0, dtype=np.float64), len(a)

    def take(self, found: Products) -> None:
        """Add it."""
        *parts, count = found
        for total, part in zip((self.gram, self.cross, self.row_sum, self.target_sum), parts, strict=True):
            total += part
        self.count += count

    @property
    def mean(self) -> Array:
        """[K]"""
        return np.asarray(self.shift + self.row_sum / self.count, np.float64)

    @property
    def target_mean(self) -> Array:
        """[O]"""
        return np.asarray(self.base + self.target_sum / self.count, np.float64)

    def second(self, centred: bool) -> Array:
        """[K, K]: the covariance times the count, or the same about zero."""
        gram = self.gram.copy()
        _add_outer(gram, self.row_sum, self.row_sum, -1 / self.count)
        if not centred:
            _add_outer(gram, self.mean, self.mean, self.count)
        return gram

    def mixed(self, centred: bool) -> Array:
        """[K, O]: as `second`, of rows with targets."""
        cross = self.cross.copy()
        _add_outer(cross, self.row_sum, self.target_sum, -1 / self.count)
        if not centred:
            _add_outer(cross, self.mean, self.target_mean, self.count)
        return cross

    def squares(self, centred: bool) -> Array:
        """[K]: the diagonal of `second`."""
        own = self.gram.diagonal() - self.row_sum**2 / self.count
        return own if centred else own + self.count * self.mean**2

    def centred(self) -> tuple[Array, Array]:
        """(covariance [K, K], cross covariance [K, O]) times the count."""
        return self.second(True), self.mixed(True)

    def raw(self) -> tuple[Array, Array]:
        """The same about zero."""
        return self.second(False), self.mixed(False)


class Normal:
    """Normal equations with a ridge towards given weights. Factors of two ridges are held, those of the last one and of
    that which `keep` was told of."""

    def __init__(self, moments: Moments, intercept: bool) -> None:
        self.moments, self.intercept = moments, intercept
        self.cross, self.squares = moments.mixed(intercept), moments.squares(intercept)
        self.unit = float(moments.squares(True).sum()) / max(len(self.squares), 1) + 1e-30
        self.factors: dict[float, Factor] = {}
        self.kept = np.nan

    @property
    def finite(self) -> bool:
        """Whether there is no overflow in them."""
        return bool(np.isfinite(self.moments.gram).all() and np.isfinite(self.cross).all())

    def takes(self, ridge: float) -> bool:
        """Whether a float can hold the diagonal with it."""
        return bool(np.isinf(ridge) or np.isfinite(self.squares + ridge * self.unit).all())

    def keep(self, ridge: float) -> None:
        """Hold on to the factor of this ridge while others are tried."""
        self.kept = ridge

    def _factor(self, ridge: float) -> Factor:
        if ridge not in self.factors:
            self.factors = {r: factor for r, factor in self.factors.items() if r == self.kept}
            damped = self.moments.second(self.intercept)
            damped.flat[:: len(damped) + 1] += ridge * self.unit
            self.factors[ridge] = Factor.of(damped)
        return self.factors[ridge]

    def solve(self, start: Array, ridge: float, changed: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
        """(W [K, O], b [O]); an infinite ridge keeps `start` and moves the bias alone. `changed`: cross
        moments [K, O] (centred or raw, as the equations are) and target means that take the place of the first ones."""
        cross, target_mean = changed or (self.cross, self.moments.target_mean)
        matrix = start
        while np.isfinite(ridge):
            try:
                matrix = self._factor(ridge).solve(cross + ridge * self.unit * start)
                break
            except np.linalg.LinAlgError:
                ridge *= 10
        return matrix, target_mean - self.moments.mean @ matrix if self.intercept else np.zeros(matrix.shape[1])

    def crossed(self, rows: Rows, targets: Rows | Targets) -> tuple[Array, Array]:
        """Cross moments and means of other targets for the same rows, as `solve` takes them."""
        base, shift = self.moments.base, self.moments.shift
        found, total = np.zeros_like(self.cross), np.zeros(len(base))

        def product(at: slice) -> tuple[Rows, Array]:
            part = _wanted(targets, at) - base
            own = rows[at].astype(np.float32, copy=False) - shift
            return own.T @ part, part.sum(0, dtype=np.float64)

        for made, summed in in_turn(product, chunks(len(rows), rows.shape[1])):
            found += made
            total += summed
        found -= np.outer(self.moments.row_sum, total) / len(rows)
        mean = np.asarray(base + total / len(rows), np.float64)
        return found if self.intercept else found + len(rows) * np.outer(self.moments.mean, mean), mean
