"""Samples put together in sets, as a minibatch is. Knows arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def in_sets(values: NDArray[Any], per: int) -> NDArray[Any]:
    """[samples, ..] -> [sets, ..]: means of `per` samples each, in order; the last set may be smaller."""
    if per <= 1 or not len(values):
        return values
    starts = np.arange(0, len(values), per)
    sizes = np.diff([*starts, len(values)]).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(np.add.reduceat(values, starts, axis=0) / sizes)
