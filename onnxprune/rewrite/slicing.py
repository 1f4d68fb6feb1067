"""The kept positions of a parameter, along all of its blocks at once. Knows arrays and blocks only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.model import LazySlice, Weight
from onnxprune.trace import Block, Mask, positions

SLAB = 1 << 18
"""Bytes of rows that are cut at a time."""
LARGE = 1 << 20
"""Parameters of more bytes are cut when their values are asked for."""


def take(weight: Weight, blocks: Sequence[Block], kept: Mask) -> Weight:
    """The kept positions of a parameter, along all of its blocks at once."""
    cut: Callable[[NDArray[Any]], NDArray[Any]]
    if all(b.ids.ndim == 1 and b.ids.size == weight.shape[b.axes[0]] for b in blocks):
        masks = ((b.axes[0], kept[b.ids]) for b in blocks)
        at = {axis: np.flatnonzero(mask) for axis, mask in masks if not mask.all()}
        dims = [len(at[k]) if k in at else n for k, n in enumerate(weight.shape)]
        cut = partial(_cut, at=at)
    else:
        index, dims = _index(weight.shape, blocks, kept)
        cut = partial(_picked, viewed=_viewed(weight.shape, blocks), index=index, dims=dims)
    if weight.nbytes > LARGE and weight.plain and min(dims):
        return Weight(weight.onnx_type, dims, LazySlice(weight, cut))
    return Weight.of(np.ascontiguousarray(cut(weight.array())), weight.onnx_type)


def _picked(
    array: NDArray[Any], viewed: Sequence[int], index: Sequence[NDArray[Any]], dims: Sequence[int]
) -> NDArray[Any]:
    return np.asarray(array.reshape(viewed)[tuple(index)].reshape(dims))


def _cut(array: NDArray[Any], at: Mapping[int, NDArray[np.int64]]) -> NDArray[Any]:
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


def _viewed(shape: Sequence[int], blocks: Sequence[Block]) -> list[int]:
    """The shape in which every coarse axis is split into (runs, run length)."""
    out: list[int] = []
    for axis, n in enumerate(shape):
        runs = _coarse(axis, n, blocks)
        out += [runs, n // runs] if runs else [n]
    return out


def _coarse(axis: int, n: int, blocks: Sequence[Block]) -> int:
    return next((b.ids.shape[0] for b in blocks if b.axes[0] == axis and b.ids.shape[0] < n), 0)


def _index(shape: Sequence[int], blocks: Sequence[Block], kept: Mask) -> tuple[list[NDArray[Any]], list[int]]:
    """Index arrays over the viewed axes, broadcastable to the sliced shape, and the final dims."""
    first: list[int] = []
    viewed: list[int] = []
    for axis, n in enumerate(shape):
        first.append(len(viewed))
        runs = _coarse(axis, n, blocks)
        viewed += [runs, n // runs] if runs else [n]
    rank = len(viewed)
    index: list[NDArray[Any]] = [
        np.arange(n).reshape([-1 if k == j else 1 for j in range(rank)]) for k, n in enumerate(viewed)
    ]
    for b in blocks:
        view_axes: list[int] = []
        dims: list[int] = []
        for axis, n in zip(b.axes, b.ids.shape, strict=True):
            split = _coarse(axis, shape[axis], blocks)
            if not split or n == split:
                view_axes, dims = [*view_axes, first[axis]], [*dims, n]
            else:
                view_axes, dims = [*view_axes, first[axis], first[axis] + 1], [*dims, split, n // split]
        for axis, where in zip(view_axes, positions(b.ids.reshape(dims), kept), strict=True):
            full = np.expand_dims(where, tuple(range(where.ndim, len(view_axes))))
            order = sorted(range(len(view_axes)), key=lambda k: view_axes[k])
            spread = [1] * rank
            for k in order:
                spread[view_axes[k]] = full.shape[k]
            index[axis] = full.transpose(order).reshape(spread)
    sizes = np.broadcast_shapes(*(i.shape for i in index))
    dims_out: list[int] = []
    for axis, n in enumerate(shape):
        k = first[axis]
        dims_out.append(sizes[k] * sizes[k + 1] if _coarse(axis, n, blocks) else sizes[k])
    return index, dims_out
