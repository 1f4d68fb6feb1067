"""Which of many things are one. Knows arrays only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def side_by_side(parts: Sequence[Ids]) -> tuple[Ids, Ids]:
    """One-dimensional arrays in one, and where each begins."""
    starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)[:-1]
    return np.concatenate([np.zeros(0, np.int64), *parts]), starts


def joined(n: int, a: Ids, b: Ids) -> Ids:
    """The class of each of `n` things of which a[i] and b[i] are one; classes are numbered by their first things."""
    first = np.arange(n, dtype=np.int64)  # of all that a thing is known to be one with
    while a.size:
        np.minimum.at(first, np.maximum(a, b), np.minimum(a, b))
        while ((further := first[first]) != first).any():
            first = further
        a, b = first[a], first[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return np.asarray((np.cumsum(first == np.arange(n)) - 1)[first], np.int64)
