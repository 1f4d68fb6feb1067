"""How the time of a segment follows from the widths of its blocks: a sum of products, stairs, and widths that kernels
do not like.

A kernel works on so many channels at once that 33 take as long as 48, and it may have a fast way for multiples of 4
only, or for no less than it works on at once. All show in times at widths around one multiple of 16. Knows widths and
seconds, no model.
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
"""Of stairs whose squared errors differ by less, those without slow widths are the simpler ones."""
LEAST = 0.01
"""Share of a time that moves with a width at least where that makes slow widths slow."""


@dataclass(frozen=True)
class Stair:
    """of: channels that are worked on at once. liked, least, factor: a width that is no multiple of `liked`, or below
    the `least`, takes so many times longer."""

    of: int = 1
    liked: int = 1
    factor: float = 1.0
    least: int = 0

    def slow(self, widths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which widths take longer."""
        return np.asarray((widths % self.liked != 0) | (widths < self.least))

    def counts(self, widths: NDArray[np.int64]) -> Array:
        """What widths count for, in channels."""
        whole = np.ceil(widths / self.of) * self.of
        return np.asarray(np.where(self.slow(widths), self.factor, 1.0) * whole, np.float64)

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
        others = [Stair(*one) for one in product(AT_ONCE, AT_ONCE, (1.0,), (0, BLOCK)) if one[3] <= sizes[k]]
        trials = [_with(stairs, k, other, widths, seconds) for other in others]
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
    stairs: Sequence[Stair], k: int, other: Stair, widths: NDArray[np.int64], seconds: Array
) -> list[Stair]:  # fmt: skip
    """The stairs with another one of the k-th block, whose factor follows."""
    trial = [*stairs[:k], other, *stairs[k + 1 :]]
    factor = _factor(trial, k, widths, seconds)
    trial[k] = replace(other, factor=factor) if factor > 1 else Stair(other.of)
    return trial


def _factor(stairs: Sequence[Stair], k: int, widths: NDArray[np.int64], seconds: Array) -> float:
    """How much longer the slow widths of the k-th block take: what moves with it is solved for twice at once, of these
    and of the others. 1 where there are no others."""
    slow = stairs[k].slow(widths[:, k])[:, None]
    if slow.all() or not slow.any():
        return 1.0
    rows = _terms(stairs, widths, widths[0])
    moving = [1, *([2 + k] if widths.shape[1] == 2 else [])]
    twice = np.concatenate([rows, rows[:, moving] * slow], 1)
    twice[:, moving] *= ~slow
    found, _ = scipy.optimize.nnls(twice / seconds[:, None], np.ones(len(seconds)))
    quick = max(float(found[moving].sum()), LEAST * float(found[: rows.shape[1]].sum()))
    return max(1.0, float(found[rows.shape[1] :].sum()) / max(quick, 1e-12))


def _terms(stairs: Sequence[Stair], widths: NDArray[np.int64], sizes: Sequence[int] | NDArray[np.int64]) -> Array:
    """[points, terms]: 1, the product of what is left of all blocks, and, where these are two, of each."""
    each = [s.counts(widths[:, k]) / s.counts(np.asarray(sizes[k])) for k, s in enumerate(stairs)]
    rows = np.stack([np.ones(len(widths)), np.prod(each, axis=0), *(each if len(each) == 2 else [])], 1)
    return np.asarray(rows, np.float64)


def _sum(stairs: Sequence[Stair], widths: NDArray[np.int64], seconds: Array) -> tuple[Array, float]:
    """The terms' seconds, none negative, and the sum of squared relative errors."""
    rows = _terms(stairs, widths, widths[0])
    found, off = scipy.optimize.nnls(rows / seconds[:, None], np.ones(len(seconds)))
    return np.asarray(found, np.float64), float(off) ** 2
