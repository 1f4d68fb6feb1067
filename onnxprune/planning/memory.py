"""What a look at activations takes of the memory, and how many samples stay within it.

Knows sizes of tensors, no values; nothing is run.
"""

from __future__ import annotations

from collections.abc import Set
from math import prod

import numpy as np

from onnxprune.options import Options
from onnxprune.trace import Groups, Reduction

COPIES = 6
"""Activations of this many times the largest tensor are alive at once while a graph is walked, twice over."""


def statistics_bytes(groups: Groups) -> int:
    """Bytes that a look at activations takes, roughly, beside these: sessions of the whole model, whose runtime copies
    the weights and packs them, and of every layer that sums over units the weights and second moments in float64."""
    kernels = {(s.parameter, axes[0]) for s, axes, ids in groups.blocks
               if len(axes) == 1 and np.ptp(groups.classes[ids]) == 0}  # fmt: skip
    sessions = 2 * sum(w.nbytes for w in groups.trace.model.weights.values())
    return sessions + sum(_moment_bytes(groups, r, kernels) for r in groups.trace.reductions)


def _moment_bytes(groups: Groups, reduction: Reduction, kernels: Set[tuple[str, int]]) -> int:
    """Bytes of the weights of one layer, and of the second moments of its input. `kernels`: axes of parameters that go
    as one, such as those of a convolution's window."""
    block = reduction.block
    if reduction.kind != "sum" or block is None or not groups.prunable[groups.classes[block.ids]].any():
        return 0
    weights, node = groups.trace.model.weights, groups.trace.nodes[reduction.node]
    name = max((n for n in node.input if n in weights), key=lambda n: weights[n].size, default="")
    shape = weights[name].shape if name else ()
    if len(shape) < 2 or block.ids.size not in shape:
        return 0
    kernel = prod(n for k, n in enumerate(shape) if (name, k) in kernels)
    return 8 * (weights[name].size + (block.ids.size * kernel) ** 2)


def samples_that_fit(groups: Groups, options: Options) -> int:
    """Samples whose activations stay within `options.memory`; 0 where not even one does."""
    shapes = groups.trace.shapes
    batch = next((s[0] for s in shapes.inputs[0].values() if s), 1) or 1
    largest = max((int(np.prod([d or 1 for d in dims])) for n, dims in shapes.probe[0].items()
                   if n not in groups.trace.model.weights), default=1)  # fmt: skip
    return int(options.memory / (4 * 2 * COPIES * largest / batch))
