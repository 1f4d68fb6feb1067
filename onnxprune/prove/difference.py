"""How far apart what two models compute is, and of how much of it that can be said. Knows arrays only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 1 << 20
"""Elements compared at once: in double precision a whole output would take twice its memory and more."""
CHANNEL = 1e-3
"""The smallest scale of a channel, as a share of the largest value of its tensor: sums that cancel leave no more."""

FINER = 10
"""How many times less exact a channel may be by its own scale than a tensor by that of all channels."""


def difference(a: Any, b: Any, floor: float = 1e-6, axis: int | None = None) -> float:
    """Largest difference relative to the largest finite magnitude of `a`, or to `floor` where that is larger; with
    `axis`, also of every channel along it by itself, which counts a tenth. Infinite where shapes differ, or one has a
    NaN, an infinity or a number where the other has not the same."""
    if isinstance(a, list):
        return worst_difference(a, b, [floor] * len(a)) if isinstance(b, list) and len(a) == len(b) else np.inf
    if isinstance(a, dict):
        return _by_label(a, b, floor)
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.dtype == object:
        return 0.0 if np.array_equal(a, b) else np.inf
    if a.shape != b.shape:
        return np.inf
    if not a.size:
        return 0.0
    measured = _by_channel(a, b, axis)
    if measured is None:
        return np.inf
    deviation, magnitude = measured
    largest_of_all = max(floor, float(magnitude.max()))
    own = deviation / np.maximum(magnitude, max(floor, CHANNEL * largest_of_all))
    return max(float(deviation.max()) / largest_of_all, float(own.max()) / (1 if axis is None else FINER))


def _by_label(a: dict[Any, Any], b: Any, floor: float) -> float:
    """Of what a ZipMap gives: a score for each label."""
    if not isinstance(b, dict) or a.keys() != b.keys():
        return np.inf
    return difference(np.array([*a.values()]), np.array([b[k] for k in a]), floor)


def _by_channel(
    a: NDArray[Any], b: NDArray[Any], axis: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """([channels], [channels]): the largest difference of finite values and their largest magnitude in `a`; None where
    what is not finite is not the same in both."""
    channels = 1 if axis is None else a.shape[axis]
    deviation, magnitude = np.zeros(channels), np.zeros(channels)
    for x, y in zip(_doubles(a, axis), _doubles(b, axis), strict=True):
        fine = np.isfinite(x)
        if not fine.all() or not np.isfinite(y).all():
            if not ((x == y) | (np.isnan(x) & np.isnan(y)) | (fine & np.isfinite(y))).all():
                return None
            x, y = np.where(fine, x, 0), np.where(fine, y, 0)
        deviation = np.maximum(deviation, np.abs(x - y).max(axis=(0, 2)))
        magnitude = np.maximum(magnitude, np.abs(x).max(axis=(0, 2)))
    return deviation, magnitude


def worst_difference(expected: Sequence[Any], got: Sequence[Any], floors: Sequence[float]) -> float:
    """The largest `difference` of two lists of values, each with a floor of its own; 0 of empty ones."""
    return max((difference(x, y, floor) for x, y, floor in zip(expected, got, floors, strict=True)), default=0.0)


def largest_magnitude(values: Sequence[Any]) -> float:
    """The largest finite magnitude of the numbers among `values`."""
    numbers = (x for x in values if isinstance(x, np.ndarray) and x.dtype.kind in "fiu")
    parts = (np.abs(part[np.isfinite(part)]) for x in numbers for part in _doubles(x, None))
    return max((float(part.max()) for part in parts if part.size), default=0.0)


def incomparable(value: Any) -> str:
    """Why a value says nothing that could be compared: "empty", "not finite", or "" where it does."""
    if isinstance(value, list):
        return "empty" if not value else next((why for x in value if (why := incomparable(x))), "")
    if not isinstance(value, np.ndarray) or (value.dtype.kind not in "fiub" and value.dtype != object):
        value = np.asarray(value)
    if not value.size:
        return "empty"
    plain = value.dtype.kind in "iubO"
    return "" if plain or any(np.isfinite(part).any() for part in _doubles(value, None)) else "not finite"


def all_finite(value: Any) -> bool:
    """Whether all numbers of a value are."""
    floats = isinstance(value, np.ndarray) and value.dtype.kind not in "iubO"
    return not floats or all(np.isfinite(part).all() for part in _doubles(value, None))


def _doubles(x: NDArray[Any], axis: int | None) -> Iterator[NDArray[np.float64]]:
    """The values in double precision as [before, channels, after], a slab of the first axis after the other."""
    shape = (x.size, 1, 1) if axis is None else (prod(x.shape[:axis]), x.shape[axis], prod(x.shape[axis + 1 :]))
    parts = x.reshape(shape)
    step = max(1, STEP // max(1, shape[1] * shape[2]))
    for k in range(0, shape[0], step):
        yield parts[k : k + step].astype(np.float64)
