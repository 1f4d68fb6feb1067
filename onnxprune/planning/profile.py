"""What a model costs: parameters, multiply-accumulates, bytes; per unit and for the whole.

Knows weights, costs and units, no operator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit import WeightValues
from onnxprune.model import Model
from onnxprune.planning.criteria import ELEMENTWISE, Criterion
from onnxprune.results import Cost
from onnxprune.trace import LABELLED, Cells, Groups, Ids, Mask, Trace

Place = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes of a parameter, and the numbers of ids along them."""
SLAB = 1 << 20
"""Bytes of rows that are scored at a time."""


class Rows(Protocol):
    """An array, or what gives rows of it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array has it."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


def cost(model: Model, macs: float) -> Cost:
    """Parameters are the elements of numeric tensors that carry weights; int64 tensors encode shapes and indices."""
    parameters = sum(w.size for w in model.weights.values() if w.onnx_type in LABELLED)
    return Cost(parameters, int(macs), model.size())


def macs(trace: Trace, kept: Mask | None = None) -> float:
    """Multiply-accumulates at the first probe's sizes, for one sample where the batch is dynamic."""
    products = (product for node in trace.macs.values() for product in node)
    return float(sum(count * (1.0 if kept is None else share(blocks, kept)) for count, blocks in products))


def share(blocks: Sequence[Ids], kept: Mask) -> float:
    """What is left of a product of axes. Blocks of two axes have the same rows, and each counts the rows that went."""
    left = float(np.prod([kept[ids].mean() for ids in blocks]))
    rows = [ids for ids in blocks if ids.ndim > 1]
    return left / float(kept[rows[0]].any(1).mean()) ** (len(rows) - 1) if left and rows else left


@np.errstate(over="ignore", invalid="ignore")
def importance(groups: Groups, criterion: Criterion, seed: int) -> NDArray[np.float64]:
    """Group-level importance (SPA, eq. 4): the saliencies of a unit's slices summed, each slice tensor divided by its
    own mean so that a 3x3 kernel cannot outvote a 1x1. Weights count by what they stand for (`fit.WeightValues`). One
    score a class."""
    rng = np.random.default_rng(seed)
    scores = np.zeros(len(groups.prunable))
    blocks: dict[str, list[tuple[tuple[int, ...], Ids]]] = defaultdict(list)
    cells: dict[str, Cells | None] = {}
    for s, axes, ids in groups.blocks:
        units = groups.classes[ids]
        if (groups.prunable[units] | groups.derived[units]).any():
            blocks[s.parameter].append((axes, ids))
            cells[s.parameter] = s.cells
    values = WeightValues(groups.trace.nodes, groups.trace.model)
    for name, places in blocks.items():
        weight = values.by_rows(name, cells[name])
        if weight is None:
            continue
        sums = _sums(weight, {(axes, ids.shape) for axes, ids in places}, criterion, rng)
        groups.trace.model.weights[name].release()
        for axes, ids in places:
            found = sums[axes, ids.shape]
            finite = np.isfinite(found)
            if not finite.all():  # what is infinite or no number is no less than the largest
                found = np.where(finite, found, found[finite].max(initial=1.0))
            mean = float(found.mean())
            if 0 < mean < np.inf:
                np.add.at(scores, groups.classes[ids], found / mean)
    return scores


def _sums(
    weight: Rows, places: Set[Place], criterion: Criterion, rng: np.random.Generator
) -> dict[Place, NDArray[np.float64]]:
    """The saliency of a parameter, summed for every place; a few rows at a time, which stay in the processor's cache,
    where the criterion does not mind and no place takes rows together."""
    apart = criterion in ELEMENTWISE and all(axes[0] or shape[0] == len(weight) for axes, shape in places)
    step = max(1, SLAB // max(1, weight[:1].nbytes)) if apart else len(weight)
    parts: dict[Place, list[NDArray[np.float64]]] = {place: [] for place in places}
    for k in range(0, len(weight), step):
        rows = weight[k : k + step]
        saliency = criterion(rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float32), rng)
        for (axes, shape), sums in parts.items():
            counts = [n if a else n * len(saliency) // len(weight) for a, n in zip(axes, shape, strict=True)]
            sums.append(summed(saliency, axes, counts))
    return {place: sums[0] if len(sums) == 1 else _together(sums, place[0]) for place, sums in parts.items()}


def _together(sums: list[NDArray[np.float64]], axes: tuple[int, ...]) -> NDArray[np.float64]:
    return np.concatenate(sums, axes.index(0)) if 0 in axes else np.asarray(np.sum(sums, axis=0))


def summed(saliency: NDArray[Any], axes: tuple[int, ...], counts: Sequence[int]) -> NDArray[np.float64]:
    """Saliency summed over all axes but `axes`, in the ids' order of axes, and over runs of these where there are fewer
    `counts` of ids than numbers: a coarse first axis, several numbers in a byte."""
    for axis, count in zip(axes, counts, strict=True):
        if saliency.shape[axis] > count:
            starts = np.arange(0, saliency.shape[axis], saliency.shape[axis] // count)
            saliency = np.add.reduceat(saliency, starts, axis=axis)
    summed, start = saliency, 0
    for axis in (*sorted(axes), saliency.ndim):  # the outermost axes are summed first: along short ones numpy is slow
        if start < axis:
            gone = saliency.ndim - summed.ndim
            summed = summed.sum(axis=tuple(range(start - gone, axis - gone)))
        start = axis + 1
    turned = summed if len(axes) == 1 else summed.transpose(np.argsort(np.argsort(axes)))
    return np.asarray(turned, np.float64)


def of_units(groups: Groups) -> NDArray[np.float64]:
    """Elements of parameters that the slices of every class hold."""
    per_class = np.zeros(len(groups.prunable))
    for s, _, ids in groups.blocks:
        np.add.at(per_class, groups.classes[ids], groups.trace.model.weights[s.parameter].size / ids.size)
    return per_class
