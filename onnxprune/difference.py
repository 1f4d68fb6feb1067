"""How far apart what two models compute is. Knows arrays only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 1 << 20
"""Elements compared at once: in double precision a whole output would take twice its memory and more."""


def difference(a: Any, b: Any, floor: float = 1e-6) -> float:
    """Largest difference relative to the largest finite magnitude of `a`, or to `floor` where that is larger;
    infinite where shapes, infinities or NaNs differ."""
    if isinstance(a, list):
        return worst(a, b, [floor] * len(a)) if len(a) == len(b) else np.inf
    if not isinstance(a, np.ndarray) or a.dtype == object:
        return 0.0 if np.array_equal(a, b) else np.inf
    if a.shape != b.shape:
        return np.inf
    most, scale = 0.0, floor
    for x, y in zip(_doubles(a), _doubles(b), strict=True):
        fine = np.isfinite(x)
        if (fine != np.isfinite(y)).any():
            return np.inf
        if fine.any():
            most = max(most, float(np.abs(x[fine] - y[fine]).max()))
            scale = max(scale, float(np.abs(x[fine]).max()))
    return most / scale


def worst(expected: Sequence[Any], got: Sequence[Any], floors: Sequence[float]) -> float:
    return max((difference(x, y, floor) for x, y, floor in zip(expected, got, floors, strict=True)), default=0.0)


def largest(values: Sequence[Any]) -> float:
    """The largest finite magnitude of the numbers among `values`."""
    numbers = (x for x in values if isinstance(x, np.ndarray) and x.dtype.kind in "fiu")
    parts = (np.abs(part[np.isfinite(part)]) for x in numbers for part in _doubles(x))
    return max((float(part.max()) for part in parts if part.size), default=0.0)


def _doubles(x: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    flat = x.reshape(-1)
    for k in range(0, flat.size, STEP):
        yield flat[k : k + STEP].astype(np.float64)
