"""Heads of caches among the ids of a trace: born on what comes in, coupled with what comes out, or held.

Knows a trace and its caches, no operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.model import Taken
from onnxprune.trace.caches import Settled, along
from onnxprune.trace.labels import Block, Ids, Mask, Reason

if TYPE_CHECKING:
    from onnxprune.trace.tracing import Trace

KEEPS_SHAPE = "an input of the model keeps its shape"
KEEPS_HEADS = "the cache, which goes in and comes out, keeps its heads: --kv-heads removes them there, too"


def begin(trace: Trace) -> None:
    """Give past keys and values ids along each axis that may be of the same size in the present ones. The first axis is
    that of samples."""
    static = trace.shapes.static
    for name, outs in trace.caches.items():
        dims, there = static(name), [static(o) for o in outs]
        if dims is None or name in trace.model.weights:
            continue
        fits = [any(d is None or (k < len(d) and d[k] in (n, None)) for d in there) for k, n in enumerate(dims)]
        blocks = trace.born_outside(name, [n if k and fits[k] else None for k, n in enumerate(dims)])
        if blocks:
            trace.cached[name], trace.blocks[name] = outs, blocks


def end(trace: Trace) -> None:
    """Let whole heads of the caches go, where that is asked for; what else they have stays. A rewriting repeats it."""
    settled = Settled(trace.labels, dict(trace.blocks), trace.shapes.static)
    for name in trace.cached:
        heads, outs = (None, []) if trace.retraced else settled.heads(name, trace.cached[name])
        for block in trace.blocks[name]:
            if trace.labels.remember((name, block.axes), trace.kv_heads and block is heads):
                _let_go(trace, name, block, outs)
            else:
                text = KEEPS_HEADS if block is heads else KEEPS_SHAPE
                trace.labels.freeze(block.ids, Reason("input", name, text))


def _let_go(trace: Trace, name: str, block: Block, outs: list[str]) -> None:
    """The heads of a cache go whole, and from the outputs that have them, too."""
    why = Reason("input", name, "of a cache whole heads go")
    for axis in range(1, block.ids.ndim):
        trace.labels.couple_along(block.ids, axis, why)
    trace.resized[name, block.axes] = block.axes[0]
    for out in trace.cached[name]:
        if trace.labels.remember((name, out), out in outs):
            found = [(b, same) for b in trace.of(out) if (same := along(b, block.axes, block.ids)) is not None]
            for twin, same in found:
                trace.labels.couple(same, twin.ids, why)
                trace.resized[out, twin.axes] = block.axes[0]


def left(trace: Trace, kept: Mask) -> Taken:
    """Of every input and output of which something goes, what is kept."""
    found: dict[str, dict[int, Ids]] = {}
    for (name, axes), axis in sorted(trace.resized.items()):
        for block in (b for b in trace.of(name) if b.axes == axes and not kept[b.ids].all()):
            others = tuple(k for k, a in enumerate(axes) if a != axis)
            found.setdefault(name, {})[axis] = np.flatnonzero(kept[block.ids].any(others))
    return found | dict.fromkeys(sorted(trace.caches_dropped(kept)))
