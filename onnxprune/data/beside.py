"""What a model takes beside what it looks at: masks, positions, lengths, states, and caches of what went before.

Knows the inputs of a graph, no units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxprune.data.batches import Feed
from onnxprune.data.inputs import Input
from onnxprune.data.lengths import told_lengths
from onnxprune.model import Array, Model
from onnxprune.shapes import Inputs


def beside(model: Model, specs: Sequence[Input], dims: Inputs) -> Feed:
    """At the sizes `dims` of all inputs of a model, the arrays of those that hold none of the content.

    Nothing went before: states are zero and caches empty, or where their size is fixed, hidden by the mask."""
    length = max((dims[s.name][1] for s in specs if s.kind == "tokens" and len(dims[s.name]) == 2), default=1)
    before = next((dims[s.name][-2] for s in specs if s.kind == "cache" and len(dims[s.name]) >= 3), 0)
    made = {s.name: _values(s, dims[s.name], length, before) for s in specs}
    made |= {name: np.full(dims[name], told) for name, told in told_lengths(model, dims).items()}
    return {s.name: values.astype(s.dtype) for s in specs if (values := made[s.name]) is not None}


def _values(spec: Input, shape: tuple[int, ...], length: int, before: int) -> Array | None:
    """The array of one input beside texts of this `length` and caches of `before` places; None where it is for others
    to fill."""
    match spec.kind:
        case "mask":
            mask = np.ones(shape)
            mask[..., : before if shape[1:] == (before + length,) else 0] = 0
            return mask
        case "positions":
            places = np.arange(math.prod(shape[-1:])).reshape(shape[-1:])
            return np.broadcast_to(places % spec.bound, shape)
        case "state" | "cache":
            return np.zeros(shape)
        case "text":
            return np.full(shape, "a")
    return None
