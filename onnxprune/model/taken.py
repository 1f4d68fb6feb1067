"""What is left of the inputs and outputs of a graph. Knows arrays and names, no graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Taken = Mapping[str, Mapping[int, NDArray[np.int64]] | None]
"""By tensor and axis, the positions that are left; None where the whole tensor went."""


def gone(taken: Taken, name: str) -> bool:
    """Whether nothing is left of a tensor."""
    return taken.get(name, {}) is None


def taken_from(taken: Taken, name: str, value: Any) -> Any:
    """What is left of the value of a tensor that did not go; all of it where nothing is said of that."""
    for axis, positions in (taken.get(name) or {}).items():
        value = np.take(value, positions, axis)
    return value


def fitted(taken: Taken, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the original, feeds or outputs, as far as a graph has them of which this is left."""
    return {name: taken_from(taken, name, value) for name, value in values.items() if not gone(taken, name)}
