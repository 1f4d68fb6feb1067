"""How the time of a segment follows from the widths of its blocks: a sum of products, stairs, and widths that kernels
do not like.

A kernel works on so many channels at once that 33 take as long as 48, and it may have a fast way for multiples of 4
only. Both show in times at widths around one multiple of 16. Knows widths and seconds, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]
AT_ONCE = (1, 2, 4, 8, 16)
"""Channels that a kernel may work on at once, and the multiples that it may like."""
BLOCK = max(AT_ONCE)
NOISE = 0.02
"""Relative error of a time, about: a sum that is no further off needs no stairs."""
BETTER = 0.5
"""Stairs are found where they leave at most so much of the squared error."""
ALIKE = 1.3
"""Of stairs whose squared errors differ by less, those without a liked multiple are the simpler ones."""


@dataclass(frozen=True)
class Stair:
    """of: channels that are worked on at once. liked, factor: a width that is no multiple of `liked` takes so many
    times longer."""

    of: int = 1
    liked: int = 1
    factor: float = 1.0

    def counts(self, widths: Array | NDArray[np.int64]) -> Array:
        """What widths count for, in channels."""
        whole = np.ceil(np.asarray(widths) / self.of) * self.of
        return np.asarray(np.where(np.asarray(widths) % self.liked == 0, 1.0, self.factor) * whole, np.float64)

    def table(self, size: int) -> Array:
        """[size + 1]: what every width counts for beside the whole."""
        counted = self.counts(np.arange(size + 1))
        return np.asarray(counted / counted[-1], np.float64)


@dataclass(frozen=True)
class Kernel:
    """Seconds: what is always spent, for each block, for the product of all; stairs: of each block."""

    always: float
    lines: tuple[float, ...]
    product: float
    stairs: tuple[Stair, ...] = ()


@dataclass(frozen=True)
class Point:
    """One time: the kept positions of every block, and seconds."""

    widths: tuple[int, ...]
    seconds: float


def targets(size: int) -> list[int]:
    """The widths of one block that show how its time rises: the whole, about two thirds and one third, and around the
    latter what makes stairs and liked multiples visible."""
    half = BLOCK // 2
    low = BLOCK * max(1, round(size / 3 / BLOCK)) if size >= 2 * BLOCK else half * (size // BLOCK)
    around = [low, *(low + step for step in AT_ONCE)]
    return [w for w in dict.fromkeys([size, rounded(0.65 * size), *around]) if 0 < w <= size]


def rounded(width: float) -> int:
    """Near to a width, and a multiple of what kernels work on where there are several."""
    return max(1, round(width)) if width < BLOCK else BLOCK * round(width / BLOCK)


def fitted(points: Sequence[Point]) -> Kernel:
    """The kernel that takes these times, the first of which is of the whole segment: exact there, no part negative."""
    sizes, count = points[0].widths, len(points[0].widths)
    widths = np.array([p.widths for p in points], np.int64).reshape(len(points), count)
    seconds = np.array([p.seconds for p in points])
    if (widths == widths[0]).all():
        return Kernel(float(seconds[0]), (0.0,) * count, 0.0, (Stair(),) * count)
    stairs = [Stair()] * count
    found, off = _sum(stairs, widths, seconds)
    for k in range(count):
        trials = [_with(stairs, k, of, liked, widths, seconds) for of, liked in product(AT_ONCE, AT_ONCE)]
        sums = [(_sum(trial, widths, seconds), trial) for trial in trials]
        least = min(left for (_, left), _ in sums)
        if off <= NOISE**2 * len(points) or least > BETTER * off:
            continue
        near = [one for one in sums if one[0][1] <= ALIKE * least + (NOISE / 4) ** 2 * len(points)]
        (found, off), stairs = min(near, key=lambda one: (one[1][k].factor > 1, one[0][1]))
    whole = float(_terms(stairs, widths[:1], sizes)[0] @ found)
    found = found * (seconds[0] / whole)
    lines = tuple(map(float, found[2:])) if count == 2 else (0.0,) * count
    return Kernel(float(found[0]), lines, float(found[1]), tuple(stairs))


def _with(
    stairs: Sequence[Stair], k: int, of: int, liked: int, widths: NDArray[np.int64], seconds: Array
) -> list[Stair]:  # fmt: skip
    """The stairs with others of the k-th block, whose factor follows."""
    trial = [*stairs[:k], Stair(of, liked), *stairs[k + 1 :]]
    trial[k] = replace(trial[k], factor=_factor(trial, k, widths, seconds))
    return trial


def _factor(stairs: Sequence[Stair], k: int, widths: NDArray[np.int64], seconds: Array) -> float:
    """How much longer widths take that are no liked multiples of the k-th block; 1 where there are no others."""
    bad = widths[:, k] % stairs[k].liked != 0
    if not bad.any() or (~bad).sum() < 3:
        return 1.0
    found, _ = _sum(stairs, widths[~bad], seconds[~bad], widths[0])
    terms = _terms(stairs, widths[bad], widths[0])
    moving = terms[:, 1:] @ found[1:]
    extra = (seconds[bad] - terms[:, 0] * found[0]) / np.maximum(moving, 1e-12)
    return max(1.0, float(np.median(extra)))


def _terms(stairs: Sequence[Stair], widths: NDArray[np.int64], sizes: Sequence[int] | NDArray[np.int64]) -> Array:
    """[points, terms]: 1, the product of what is left of all blocks, and, where these are two, of each."""
    each = [s.counts(widths[:, k]) / s.counts(np.asarray(sizes[k])) for k, s in enumerate(stairs)]
    rows = np.stack([np.ones(len(widths)), np.prod(each, axis=0), *(each if len(each) == 2 else [])], 1)
    return np.asarray(rows, np.float64)


def _sum(
    stairs: Sequence[Stair], widths: NDArray[np.int64], seconds: Array, sizes: NDArray[np.int64] | None = None
) -> tuple[Array, float]:  # fmt: skip
    """The terms' seconds, none negative, and the sum of squared relative errors."""
    rows = _terms(stairs, widths, widths[0] if sizes is None else sizes)
    found, off = scipy.optimize.nnls(rows / seconds[:, None], np.ones(len(seconds)))
    return np.asarray(found, np.float64), float(off) ** 2
