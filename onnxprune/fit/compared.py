"""The dense network that the layers of a cut one are compared with: for one refit, or for many of the same rows.

Knows walks, layers and what was kept; no solutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit.linear import RESHAPED, Linear, Unsolvable
from onnxprune.fit.products import Layer
from onnxprune.fit.unclipped import unclipped
from onnxprune.fit.walk import Walk
from onnxprune.model import Array
from onnxprune.trace import Mask, Trace

Rows = NDArray[np.int64]
Feeds = Sequence[Mapping[str, Array]]


@dataclass(frozen=True)
class Answer:
    """What the dense network gives in one batch where a layer is compared with it. shape: of the whole tensor at kept
    positions. targets: called with a layer, its input, how many rows to look at and a generator, it gives the rows and
    [groups, rows, outputs], what the layer should give there."""

    shape: tuple[int, ...]
    targets: Callable[[Any, Any, int, np.random.Generator], tuple[Rows, Array]]


class Dense:
    """The dense network over `feeds`, for one refit, or the `walk` through a body of it."""

    def __init__(self, trace: Trace, feeds: Feeds, providers: Sequence[str], walk: Walk | None = None) -> None:
        self.trace = trace
        self.walk = walk or Walk(trace.model, feeds, trace.shapes.dtype, providers)

    def start(self, current: Walk, touched: set[int]) -> None:
        """A walk of the cut graph begins, in which all nodes but `touched` give what they give here."""

    def answers(self, layer: Linear, name: str, kept: Mask, outputs: int) -> Iterable[Answer]:
        """Of every batch, what stands in the tensor `name`; Unsolvable where that cannot be said."""
        dense = layer.dense(self.trace, kept, self.walk, name, outputs)
        if not layer.feeds_back:  # which looks at what it read again
            self.walk.release([name])
        return (Answer(y.shape, partial(_drawn, y)) for y in dense)

    def release(self) -> None:
        """Let go of what no layer that is still to come needs."""
        self.walk.release()


def _drawn(y: Array, layer: Linear, x: Any, most: int, rng: np.random.Generator) -> tuple[Rows, Array]:
    at = layer.sample(x, most, rng)
    return at, layer.targets(y, at)


class Seen:
    """What the dense network gave in one batch: a tensor until rows of it are looked at, then these alone."""

    def __init__(self, y: Array) -> None:
        self.shape = y.shape
        self._y: Array | None = y
        self._places = 0
        self._at, self._rows = np.zeros(0, np.int64), y[:0]

    def answer(self, alive: Mask, axis: int) -> Answer:
        """It with the channels along `axis` that are `alive`."""
        shape = (*self.shape[:axis], int(alive.sum()), *self.shape[axis + 1 :])
        return Answer(shape, partial(self._targets, alive))

    def _targets(
        self, alive: Mask, layer: Layer, x: Array, most: int, rng: np.random.Generator
    ) -> tuple[Rows, Array]:  # fmt: skip
        if self._y is not None:
            self._at, self._places = layer.sample(x, most, rng), layer.places(x)
            self._rows, self._y = layer.picked(self._y, self._at), None
        if self._places != layer.places(x):
            raise Unsolvable(RESHAPED)
        return self._at, layer.split(np.compress(alive, self._rows, 1))


class SharedDense(Dense):
    """The dense network over `feeds`, for many refits that look at the same rows: these are remembered, and what comes
    before a cut is computed once. Cuts are best tried in the order in which they lie in the graph."""

    def __init__(self, trace: Trace, feeds: Feeds, providers: Sequence[str]) -> None:
        super().__init__(trace, feeds, providers)
        self.feeds, self.providers = feeds, providers
        self.ahead = self.walk
        self.seen: dict[tuple[str, str], list[Seen]] = {}

    def rewind(self) -> None:
        """Let go of what was computed on the way, so that cuts are tried from the front of the graph once more."""
        self.walk = self.ahead = Walk(self.trace.model, self.feeds, self.trace.shapes.dtype, self.providers)

    def start(self, current: Walk, touched: set[int]) -> None:
        """The walk of the cut graph is given what comes before the cut."""
        self.walk = Walk(self.trace.model, self.feeds, self.trace.shapes.dtype, self.providers)
        made = {o for k in touched for o in current.makes(k)}
        read = {n for k in touched for n in current.reads[k]} - made
        for name in sorted(read & self.ahead.made_by.keys()):
            current.values[name] = self.ahead.unread(name)
        current.done |= set(range(len(current.nodes))) - touched
        self.ahead.release()

    def answers(self, layer: Linear, name: str, kept: Mask, outputs: int) -> Iterable[Answer]:
        """As for one refit; from memory where the layer allows it and the cut changes nothing but channels."""
        if not isinstance(layer, Layer) or name not in self.walk.made_by:
            return super().answers(layer, name, kept, outputs)
        there = (layer.out, name)
        if there not in self.seen:
            self.seen[there] = [Seen(y) for y in unclipped(self.walk, name)]
            self.walk.release()
        shapes = [seen.shape for seen in self.seen[there]]
        axis = layer.y_axis % len(shapes[0])
        alive = channels(self.trace, kept, name, shapes[0], axis)
        if alive is None:
            return super().answers(layer, name, kept, outputs)
        if alive.sum() != outputs * layer.groups:
            raise Unsolvable(RESHAPED)
        return [seen.answer(alive, axis) for seen in self.seen[there]]


def channels(trace: Trace, kept: Mask, name: str, shape: tuple[int, ...], axis: int) -> Mask | None:
    """[channels]: those of a tensor of this `shape` that are kept along `axis`; None where other axes are cut, too."""
    alive = np.ones(shape[axis], bool)
    for block in trace.of(name):
        if kept[block.ids].all():
            continue
        if block.axes != (axis,) or block.coarse:
            return None
        alive &= kept[block.at(shape).ids]
    return alive
