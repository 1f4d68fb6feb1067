"""What two arrays of numbers have to do with each other: equal, equal but for factors, the parts of a BatchNorm.

Knows arrays, no graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np

from onnxprune.model import Array

CLOSE = 1e-4
"""Of a folded weight: what float32 may lose, as a share of a channel's largest weight."""
EPSILON = 0.1
"""No BatchNorm adds more to its variance."""


def is_float(array: Array) -> bool:
    """Whether it is of floats, those that numpy has no type of its own for included."""
    return array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))


def is_constant(array: Array) -> bool:
    """Whether all values are one, so that they tell nothing."""
    return bool((array == array.flat[0]).all())


def long_sides(array: Array) -> tuple[int, ...]:
    """The lengths of all axes but those of one, in order of length: they stay when axes are turned."""
    return tuple(sorted(n for n in array.shape if n > 1))


def turned_onto(array: Array, other: Array) -> dict[int, int] | None:
    """The axis of `array` for each axis of `other` that is longer than one, where their values are equal once turned
    so; None where they are not."""
    axes = [k for k, n in enumerate(array.shape) if n > 1]
    target = [k for k, n in enumerate(other.shape) if n > 1]
    for order in permutations(axes):
        if [array.shape[k] for k in order] == [other.shape[k] for k in target]:
            moved = np.squeeze(array).transpose([axes.index(k) for k in order])
            if np.array_equal(moved.astype(other.dtype), np.squeeze(other)):
                return dict(zip(target, order, strict=True))
    return None


def scaled_from(array: Array, other: Array) -> Iterator[tuple[dict[int, int], int, Array]]:
    """Each way in which `other` is `array` times one factor for every output channel: the axis of `array` for each of
    `other`, the axis of the outputs, and the factors.

    The outputs are the first axis, or in a transposed convolution the second; a matrix may be turned."""
    for turned in (False, True) if array.ndim == 2 else (False,):
        values = other.T if turned else other
        if values.shape != array.shape:
            continue
        axis_of = {0: 1, 1: 0} if turned else {k: k for k in range(array.ndim)}
        for axis in (0, 1):
            found = factors(np.moveaxis(array, axis, 0), np.moveaxis(values, axis, 0))
            if found is not None:
                yield axis_of, axis, found


def factors(array: Array, other: Array) -> Array | None:
    """[rows]: the factor of every first position, where `other` is `array` times these and not simply anything."""
    x = array.reshape(len(array), -1).astype(np.float64)
    y = other.reshape(len(other), -1).astype(np.float64)
    power = (x * x).sum(1)
    if x.shape[1] < 2 or not power.all():
        return None
    scale = (x * y).sum(1) / power
    largest = np.abs(y).max(1)
    fits = (np.abs(y - scale[:, None] * x).max(1) <= CLOSE * largest) & (largest > 0)
    return scale if fits.all() else None


def is_norm(vectors: Sequence[Array], scale: Array) -> bool:
    """Whether two of the vectors are the gain and variance of a BatchNorm that has these factors, gain by root of
    variance and epsilon (Ioffe and Szegedy 2015, algorithm 1); the gain may be one."""
    columns = [v.astype(np.float64) for v in vectors]
    for gain in (*columns, np.ones(len(scale))):
        for variance in columns:
            if gain is variance or (variance < 0).any():
                continue
            epsilon = np.median((gain / scale) ** 2 - variance)
            if not -CLOSE * np.median(variance) <= epsilon <= EPSILON:
                continue
            expected = gain / np.sqrt(variance + max(epsilon, 1e-12))
            if np.allclose(expected, scale, rtol=10 * CLOSE, atol=CLOSE * np.abs(scale).max()):
                return True
    return False
