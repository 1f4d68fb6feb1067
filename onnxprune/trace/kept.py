"""What is left of a block: the shape of its kept rectangle, its ids and their positions. Knows arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.trace.labels import Ids, Mask


def kept_shape(ids: Ids, kept: Mask) -> tuple[int, ...] | None:
    """The shape of the kept rectangle of a block, or None where what is kept is not a rectangle or is empty."""
    mask = kept[ids]
    shape: list[int] = []
    for level in range(ids.ndim):
        alive = mask.any(axis=tuple(range(level + 1, ids.ndim))) if level + 1 < ids.ndim else mask
        counts = alive.sum(axis=-1)
        counts = counts[counts > 0]
        if not counts.size or (counts != counts.flat[0]).any():
            return None
        shape.append(int(counts.flat[0]))
    return tuple(shape)


def take_kept(ids: Ids, kept: Mask) -> Ids:
    """The kept ids of a block, in order, in the kept rectangle's shape."""
    shape = kept_shape(ids, kept)
    return ids[kept[ids]].reshape(shape if shape is not None else (-1,))


def positions(ids: Ids, kept: Mask) -> list[NDArray[Any]]:
    """One index array per axis of a block (broadcastable against each other) that selects its kept rectangle."""
    shape = kept_shape(ids, kept)
    assert shape is not None, "a plan is checked against every rectangle before it is applied"
    where = np.nonzero(kept[ids])
    out = []
    for level in range(ids.ndim):
        index = where[level].reshape(shape)
        out.append(index[(slice(None),) * (level + 1) + (0,) * (ids.ndim - level - 1)])
    return out
