"""What a look at activations takes of the memory, and how many samples stay within it.

Knows sizes of tensors and layers, no values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np

from onnxprune.data import describe, sizes, text_length
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.fit import Extent, Fitted, Held, layers, sample_size, shared, sums_by_node, units_of, weigh
from onnxprune.model import Topology, space_aside
from onnxprune.options import Options
from onnxprune.planning.limits import movable
from onnxprune.planning.named import asked
from onnxprune.planning.selection import parts
from onnxprune.run import in_one
from onnxprune.shapes import Inputs
from onnxprune.steady import MOST
from onnxprune.trace import Groups, Ids

BASE = 172 << 20
"""Bytes of Python and its libraries; of little memory half is left beside them."""
MODERATE = 1600 << 20
"""Bytes of activations where no memory was asked for: more samples of large images take more time and bring little."""
ROOMY = 1 << 30
"""Bytes beside activations that are held where no memory was asked for; of more, all waits on a disk that can."""
SOLVED = 4
"""Second moments of the layer that is solved for are held so often: as they are added up, the factors of two ridges,
and rows that are multiplied."""
CROSSED = 11
"""Moments of its columns with its outputs are held so often, and matrices of that size: the old weights, the best ones
so far, those that are tried, and as above."""
MAKING = 3
"""Of the layer whose inverse is in the making its second moments are held so often besides."""
BATCH = 1.3
"""Activations are held so often: with those of one batch of eight inside the runtime, with those of the one before it,
of which rows are picked meanwhile, and with the gaps that arrays of a few megabytes leave where they are freed."""
ROWS, TARGETS = 2, 8
"""Sampled rows are held so often while a layer is solved for: batch by batch and joined; its targets so often: with
what is added to them, what is predicted, and what is seen of both after a clip."""


@dataclass(frozen=True)
class Needs:
    """What a look at activations takes beside these, roughly, in bytes of memory. aside: bytes that wait on a disk
    meanwhile; 0 where memory holds everything. part: what takes most of the memory. together: how many sets of units
    may be looked at at a time."""

    memory: int
    aside: int
    part: str
    together: int = MOST


def needs(groups: Groups, options: Options) -> Needs:
    """Within the memory that is allowed; where none was asked for, what is much waits on the disk if there is room for
    it. What comes of it is the same."""
    allowed = _within(groups, options, options.memory_limit, options.memory_limit)
    if options.memory or allowed.aside or allowed.memory <= ROOMY:
        return allowed
    spared = _within(groups, options, ROOMY, MODERATE)
    return spared if spared.aside <= space_aside()[1] else allowed


def _within(groups: Groups, options: Options, held: int, most: int) -> Needs:
    """With everything in memory where that is no more than `held`: sessions of the whole model, whose runtime copies
    the weights and packs them (of a part of it and all new weights, where it is run in pieces), and of every layer that
    sums over units the weights and second moments in float64. Else layer by layer, where moments and new weights wait
    on a disk, and no more sets of units are looked at together than `most` has room for."""
    sizes = [w.nbytes for w in groups.trace.model.weights.values()]
    one, new = in_one(groups.trace.model), sum(sizes) if options.resolved().reconstruct == "ls" else 0
    sessions = 2 * (sum(sizes) if one else max(sizes))
    summing, solved = _layers(groups, options)
    found = sum(site.moments + site.weights for site in summing) + (0 if one else new)
    whole = Needs(sessions + found + max(solved, default=(0, ""))[0], 0, "second moments")
    if whole.memory <= held:
        return whole
    sets = _linked(groups, options, summing)
    largest, part = max([*solved, *sets], default=(0, ""))
    memory, waiting = sessions + largest, sum(site.moments for site in summing)
    together = (most - memory) // max([1, *(size for size, _ in sets)]) + 1
    part = part if largest > sessions else "the model itself"
    return Needs(memory, waiting + new, part, max(1, min(MOST, together)))


class _Summing(NamedTuple):
    """A layer that sums over `units`: bytes of its second moments, of their inverses and its weights, and of the
    inverse of a group."""

    units: Ids
    moments: int
    inverses: int
    weights: int
    group: int


def _layers(groups: Groups, options: Options) -> tuple[list[_Summing], list[tuple[int, str]]]:
    """Those that sum over units which may go, and of every layer what solving for it takes, with its name."""
    trace = groups.trace
    sums, wanted = sums_by_node(trace), movable(groups, options)
    fitted = Fitted(Topology(trace.model), trace.shapes.dtype, {})
    summing, solved = [], []
    for members in shared(layers(trace.model, trace.rank)):
        layer = members[0]
        extent = layer.extent(trace.shapes.of_sample)
        if extent is None or not fitted.own(members):
            continue
        group, crossed = 8 * extent.columns**2, 8 * extent.columns * extent.outputs
        solved.append((SOLVED * group + CROSSED * crossed, f"solving for '{layer.title}'"))
        units = units_of(groups, layer, sums[layer.index], wanted)
        if units is not None:
            whole = extent.groups * group
            summing.append(_Summing(units, whole // 2, whole, extent.groups * crossed, group))
    return summing, solved


def _linked(groups: Groups, options: Options, summing: Sequence[_Summing]) -> list[tuple[int, str]]:
    """Of every set of linked units what it takes to order them: inverses and weights of all layers that sum over them,
    and one of the inverses in the making."""
    found = []
    for part in parts(groups, np.zeros(len(groups.prunable)), options, asked(groups, options))[1]:
        inside = np.isin(np.arange(len(groups.prunable)), part.members)
        near = [site for site in summing if inside[site.units].any()]
        size = sum(site.inverses + site.weights for site in near) + MAKING * max((s.group for s in near), default=0)
        found.append((size, f"ordering {len(part.members):,} units that {len(near)} layers sum over"))
    return found


def _least(count: int) -> str:
    """What --memory has to say for so many bytes: whole gigabytes, of less than one megabytes."""
    return f"{-(-count >> 30)}G" if count >> 30 else f"{-(-count >> 20)}M"


def checked(groups: Groups, options: Options) -> Needs:
    """What a look at activations takes; UsageError where that is more than the memory, RuntimeFailure where the disk
    has no room for what waits there."""
    found = needs(groups, options)
    if found.memory > options.memory_limit:
        least = _least(found.memory)
        raise UsageError(
            f"to calibrate and refit a model of this size takes {least} even layer by layer, the most of it for "
            f"{found.part}; allow it with --memory {least}, or give --fast, which needs little"
        )
    folder, free = space_aside()
    if found.aside > free:
        raise RuntimeFailure(
            f"{found.aside / 1e9:.1f} GB of second moments and new weights have to wait in {folder}, where "
            f"{free / 1e9:.1f} GB are free; free some, write to another disk, or allow more memory with --memory"
        )
    return found


def samples_that_fit(groups: Groups, options: Options, given: Inputs | None = None) -> float:
    """How many samples can be looked at within `options.memory_limit`; less than 1 where not even one can. given: the
    sizes of a batch, if they are known already. What waits on a disk that need not has no say: a full one gives no
    other samples."""
    shapes = groups.trace.shapes
    tokens = text_length(options)
    dims = given or next(sizes(groups.trace.model, shapes, 1, options.input_shapes, tokens), shapes.inputs[0])
    inputs = describe(groups.trace.model, shapes)
    batch = next((dims[i.name][0] for i in inputs if i.batch == 0), 1) or 1
    limit = options.memory_limit
    free = limit - min(BASE, limit // 2) - _within(groups, options, limit, limit).memory
    free = free if options.memory else min(free, MODERATE)
    held = weigh(groups.trace, lambda name: shapes.where(name, dims), options.resolved().reconstruct == "ls")
    return batch * min((_batches(h, free) for h in held), default=inf)


def _batches(held: Held, free: float) -> float:
    """Of how many of the batches that were weighed a layer leaves room for: the activations that the walks hold, and
    rows that are sampled, all or a number that is enough."""
    row, enough = _row_bytes(held.extent), sample_size(held.extent.groups, held.extent.columns)
    walked = max(BATCH * held.walked, 1)
    every = free / (walked + row * held.extent.rows)
    return every if every * held.extent.rows <= enough else (free - row * enough) / walked


def _row_bytes(extent: Extent) -> int:
    return 4 * extent.groups * (ROWS * extent.columns + TARGETS * extent.outputs)
