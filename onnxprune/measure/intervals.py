"""How sure a figure is: intervals by drawing the samples again, and exact bounds of shares. Knows arrays only."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
RESAMPLES = 1000
LEVEL = 0.95
"""Of intervals that are told."""
CERTAIN = 0.99
"""Of one-sided bounds on which something is refused."""


def interval(statistics: Floats, value: Callable[[Floats, Floats], Floats], seed: int) -> Interval | None:
    """Interval of `value(sums, count)` over samples drawn again, by their `statistics` [samples, k]; None of one.

    Percentiles (Efron 1979), as much further out as Student's distribution is wider than the normal one for so many
    samples (the expanded percentile interval; Hesterberg 2015, The American Statistician 69)."""
    n = len(statistics)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    count = np.asarray(float(n))
    drawn = (np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64) for _ in range(RESAMPLES))
    found = [float(value(weights @ statistics, count)) for weights in drawn]
    tail = scipy.special.ndtr(math.sqrt(n / (n - 1)) * scipy.special.stdtrit(n - 1, (1 - LEVEL) / 2))
    low, high = np.percentile(found, [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)


def at_least(hits: float, trials: float) -> float:
    """The share of hits that there is for certain, of which `hits` of `trials` were seen (Clopper and Pearson 1934);
    means of numbers from 0 to 1 vary less than hits do, so that it holds of their sum, too."""
    return float(scipy.special.betaincinv(hits, trials - hits + 1, 1 - CERTAIN)) if hits > 0 else 0.0


def at_most(hits: float, trials: float) -> float:
    """The share of hits that there can be; see `at_least`."""
    return float(scipy.special.betaincinv(hits + 1, trials - hits, CERTAIN)) if hits < trials else 1.0
