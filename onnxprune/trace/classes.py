"""Which of many things are one. Knows arrays only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]


def side_by_side(parts: Sequence[Ids]) -> tuple[Ids, Ids]:
    """One-dimensional arrays in one, and where each begins."""
    starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)[:-1]
    return np.concatenate([np.zeros(0, np.int64), *parts]), starts


def joined(n: int, a: Ids, b: Ids) -> Ids:
    """The class of each of `n` things of which a[i] and b[i] are one."""
    if not a.size:
        return np.arange(n)
    graph = coo_array((np.ones(a.size, np.int8), (a, b)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)
