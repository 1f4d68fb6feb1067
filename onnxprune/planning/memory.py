"""What a look at activations takes of the memory, and how many samples stay within it.

Knows sizes of tensors and layers, no values; nothing is run.
"""

from __future__ import annotations

from math import inf

from onnxprune.data import describe, sizes, text_length
from onnxprune.fit import Extent, Held, layers, sample_size, shared, sums_by_node, units_of, weigh
from onnxprune.options import Options
from onnxprune.trace import Groups

BASE = 150 << 20
"""Bytes of Python and its libraries; of little memory half is left beside them."""
MODERATE = 2 << 30
"""Bytes of activations where no memory was asked for: more samples of large images take more time and bring little."""
SOLVED = 13
"""Second moments of the layer that is solved for are held so often: those of the rows that are fitted, of the others
and of both, each again when centred, a factor for every ridge, and what is in the making."""
BATCH = 1.85
"""Activations are held so often: with those of one batch of eight inside the runtime, which doubles its blocks, and
with the gaps that arrays of a few megabytes leave where they are freed."""
ROWS, TARGETS = 2, 8
"""Sampled rows are held so often while a layer is solved for: batch by batch and joined; its targets so often: with
what is added to them, what is predicted, and what is seen of both after a clip."""


def statistics_bytes(groups: Groups) -> int:
    """Bytes that a look at activations takes, roughly, beside these: sessions of the whole model, whose runtime copies
    the weights and packs them, and of every layer that sums over units the weights and second moments in float64."""
    trace = groups.trace
    sums = sums_by_node(trace)
    found = largest = 0
    for layer, *_ in shared(layers(trace.model, trace.rank)):
        extent = layer.extent(trace.shapes.of_sample)
        if extent is not None and units_of(groups, layer, sums[layer.index]) is not None:
            found += 8 * extent.groups * extent.columns * (extent.outputs + extent.columns)
            largest = max(largest, 8 * extent.columns**2)
    return 2 * sum(w.nbytes for w in trace.model.weights.values()) + found + SOLVED * largest


def samples_that_fit(groups: Groups, options: Options) -> float:
    """How many samples can be looked at within `options.memory_limit`; less than 1 where not even one can."""
    shapes = groups.trace.shapes
    tokens = text_length(options)
    dims = next(sizes(groups.trace.model, shapes, 1, options.input_shapes, tokens), shapes.inputs[0])
    inputs = describe(groups.trace.model, shapes)
    batch = next((dims[i.name][0] for i in inputs if i.batch == 0), 1) or 1
    free = options.memory_limit - min(BASE, options.memory_limit // 2) - statistics_bytes(groups)
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
