"""Positions that are left of the inputs and outputs of a graph. Knows arrays and names, no graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Taken = Mapping[str, Mapping[int, NDArray[np.int64]]]
"""By tensor and axis, the positions that are left."""


def taken_from(taken: Taken, name: str, value: Any) -> Any:
    """What is left of the value of a tensor; all of it where nothing is said of that."""
    for axis, positions in taken.get(name, {}).items():
        value = np.take(value, positions, axis)
    return value


def fitted(taken: Taken, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Feeds of the original, as a graph takes them of which these positions are left."""
    return {name: taken_from(taken, name, value) for name, value in feeds.items()}
