"""The kept positions of a parameter, along all of its blocks at once. Knows arrays and blocks only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise

import numpy as np
from numpy.typing import NDArray

from onnxprune.model import Array, Derived, Weight
from onnxprune.trace import Block, Cells, Mask, positions

SLAB = 1 << 18
"""Bytes of rows that are cut at a time."""
LARGE = 1 << 20
"""Parameters of more bytes are cut when their values are asked for."""


def take(weight: Weight, blocks: Sequence[Block], kept: Mask, cells: Cells | None = None) -> Weight:
    """The kept positions of a parameter, along all of its blocks at once: now, or of a large one when its values are
    asked for. cells: what the blocks count, where it is not elements."""
    cut: Callable[[Array], Array]
    if cells is not None:
        cells, blocks = cells.together(blocks, kept)
    shape = weight.shape if cells is None else cells.shape
    if all(b.ids.ndim == 1 and b.ids.size == shape[b.axes[0]] for b in blocks):
        masks = ((b.axes[0], kept[b.ids]) for b in blocks)
        at = {axis: np.flatnonzero(mask) for axis, mask in masks if not mask.all()}
        dims = [len(at[k]) if k in at else n for k, n in enumerate(shape)]
        cut = partial(_cut, at=at)
    else:
        views = _views(shape, blocks)
        index, dims = _index(views, blocks, kept)
        cut = partial(_picked, viewed=list(chain(*views)), index=index, dims=dims)
    if cells is not None:
        cut, dims = partial(_repacked, cut=cut, cells=cells), list(cells.stored_shape(dims))
    if weight.nbytes > LARGE and weight.plain and min(dims):
        return Weight(weight.onnx_type, dims, Derived(weight, cut))
    return Weight.of(np.ascontiguousarray(cut(weight.array())), weight.onnx_type)


def _repacked(array: Array, cut: Callable[[Array], Array], cells: Cells) -> Array:
    """`cut` on the cells of a parameter."""
    return cells.stored(cut(cells.of(array)))


def _picked(array: Array, viewed: Sequence[int], index: Sequence[Array], dims: Sequence[int]) -> Array:
    """Positions of nested or coarse blocks: `index` over the axes as they are `viewed`, the result of size `dims`."""
    return np.asarray(array.reshape(viewed)[tuple(index)].reshape(dims))


def _cut(array: Array, at: Mapping[int, NDArray[np.int64]]) -> Array:
    """Positions `at` some axes, a few rows at a time: what is cut along one axis only stays in the processor's cache,
    and of arrays that are not aligned (see `weight.Mapped`) numpy copies no more than these."""
    inner = sorted(at.keys() - {0})
    if not inner:
        return array[at[0]] if at else array
    *others, last = inner
    out = np.empty([len(at[k]) if k in at else n for k, n in enumerate(array.shape)], array.dtype)
    step = max(1, SLAB // array[0].nbytes)
    for k in range(0, len(out), step):
        part = array[at[0][k : k + step]] if 0 in at else array[k : k + step]
        for axis in others:
            part = part.take(at[axis], axis)
        part.take(at[last], last, out=out[k : k + step], mode="wrap")  # the default mode would copy `out`
    return out


def _views(shape: Sequence[int], blocks: Sequence[Block]) -> list[list[int]]:
    """Of every axis its size, or (runs, run length) where a coarse block names whole runs of it."""
    out: list[list[int]] = []
    for axis, n in enumerate(shape):
        runs = next((b.ids.shape[0] for b in blocks if b.axes[0] == axis and b.ids.shape[0] < n), n)
        out.append([n] if runs == n else [runs, n // runs])
    return out


def _index(views: Sequence[Sequence[int]], blocks: Sequence[Block], kept: Mask) -> tuple[list[Array], list[int]]:
    """Index arrays over the viewed axes, broadcastable to the sliced shape, and the final dims."""
    first = [0, *accumulate(map(len, views))]
    viewed = list(chain(*views))
    index = [_spread(np.arange(n), [k], len(viewed)) for k, n in enumerate(viewed)]
    for b in blocks:
        axes: list[int] = []
        dims: list[int] = []
        for axis, n in zip(b.axes, b.ids.shape, strict=True):
            runs, inner = views[axis][0], first[axis] + 1
            whole = len(views[axis]) == 1 or n == runs
            axes += [first[axis]] if whole else [first[axis], inner]
            dims += [n] if whole else [runs, n // runs]
        for axis, where in zip(axes, positions(b.ids.reshape(dims), kept), strict=True):
            index[axis] = _spread(np.expand_dims(where, tuple(range(where.ndim, len(axes)))), axes, len(viewed))
    sizes = np.broadcast_shapes(*(i.shape for i in index))
    return index, [math.prod(sizes[a:b]) for a, b in pairwise(first)]


def _spread(array: Array, axes: Sequence[int], rank: int) -> Array:
    """An array over some axes as one that is broadcast over all of them."""
    order = sorted(range(len(axes)), key=lambda k: axes[k])
    shape = [1] * rank
    for k in order:
        shape[axes[k]] = array.shape[k]
    return array.transpose(order).reshape(shape)
