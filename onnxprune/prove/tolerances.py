"""How far apart the two models are in one tensor, and how far they may be.

Knows a trace, what was kept and values; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.prove.difference import difference, largest_magnitude
from onnxprune.prove.places import Places
from onnxprune.prove.slices import kept_of
from onnxprune.trace import Trace

FAR = 100
"""Times the tolerance: what rounding may move a tensor inside a graph, or one of random weights, where it is shown that
it does."""
NEAR = 10
"""The same of an output of the real model; and of tensors inside and random weights, what they may be in any case."""
MANY = 16
"""Values that a channel has at least to be measured by its own scale: of a few all may be near zero."""


@dataclass
class Scale:
    """tolerance: relative, of an output of the real model; largest_noise: what rounding may move one, in tolerances,
    where it is shown that it does. absolute: a difference that is always allowed. drawn: whether the weights are
    random."""

    trace: Trace
    places: Places
    taps: Sequence[str]
    absolute: float
    tolerance: float
    largest_noise: int
    drawn: bool

    @cached_property
    def outputs(self) -> set[str]:
        """Names of what the graph gives."""
        return {o.name for o in self.trace.model.skeleton.graph.output}

    def tolerance_of(self, name: str) -> float:
        """Of outputs that the user sees; sums inside, and of random weights, cancel out more often."""
        return self.tolerance * (1 if name in self.outputs and not self.drawn else NEAR)

    def farthest(self, name: str) -> float:
        """What it may be where rounding is shown to make as much."""
        return self.tolerance * (self.largest_noise if name in self.outputs else FAR)

    def beyond(self, errors: Mapping[str, float], allowed: Mapping[str, float], values: Mapping[str, Any]) -> list[str]:
        """What differs by more than is allowed, outputs first; `values` are those of the original."""
        return [
            name for name, error in errors.items()
            if error > allowed[name] and not error * largest_magnitude([values[name]]) <= self.absolute
        ]  # fmt: skip

    def error(self, name: str, value: Any, got: Any) -> float:
        """The `difference` of what the original and the rewritten graph have in a tensor, of which the latter holds
        what is kept."""
        floor = 1e-2 if name in self._levelled else 1e-6
        if isinstance(value, np.ndarray) and isinstance(got, np.ndarray) and value.shape != got.shape:
            part = self.kept_part(name, value)
            if part.size != got.size:
                return np.inf
            value = part.reshape(got.shape)
        return difference(value, got, floor, self._channels(name, value))

    def kept_part(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        """[elements]: what the rewritten graph holds of a tensor of the original."""
        static = self.trace.shapes.static(name) or ()
        dims = [n if k is None else None for k, n in zip(static, value.shape, strict=False)]
        blocks = [b.at(dims) for b in self.trace.blocks.get(name, ())]
        kept = self.places.kept
        return kept_of(value, [b for b in blocks if not kept[b.ids].all()], kept)

    @cached_property
    def _levelled(self) -> set[str]:
        """What a saturating operator gives the outputs, whose input is looked at."""
        return set().union(*(outs for made, outs in self.places.ends.items() if self._reads_a_tap(made)))

    def _reads_a_tap(self, made: str) -> bool:
        nodes = self.trace.model.skeleton.graph.node
        return any(n.input[0] in self.taps for n in nodes if n.output and n.output[0] == made)

    def _channels(self, name: str, value: Any) -> int | None:
        """The axis of a tensor's channels, where each has enough values to have a scale of its own."""
        if not isinstance(value, np.ndarray):
            return None
        axes = (a for b in self.trace.blocks.get(name, ()) for a in b.axes[-1:])
        return next((a for a in axes if a < value.ndim and value.size >= MANY * value.shape[a]), None)
