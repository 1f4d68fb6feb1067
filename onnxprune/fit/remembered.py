"""The dense network for many refits that look at the same rows: run once, and what it gave at these is remembered.

Knows walks, layers and what was kept; no solutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit.compared import Answer, Dense, changed
from onnxprune.fit.equations import Light
from onnxprune.fit.linear import RESHAPED, Linear, Unsolvable
from onnxprune.fit.products import Layer
from onnxprune.fit.reconstruction import Reconstruction
from onnxprune.fit.unclipped import unclipped
from onnxprune.fit.walk import Walk
from onnxprune.model import Array, Model
from onnxprune.rewrite import Rewritten
from onnxprune.trace import Mask, Trace

Rows = NDArray[np.int64]


class _Seen:
    """What the dense network gave in one batch at the rows `at` that are looked at. places: how many rows there are;
    shape: of the whole tensor."""

    def __init__(self, layer: Layer, x: Array, y: Array, most: int, rng: np.random.Generator) -> None:
        self.shape, self.places, self.at = y.shape, layer.places(x), layer.sample(x, most, rng)
        self.rows = layer.picked(y, self.at)

    def answer(self, alive: Mask, axis: int) -> Answer:
        """It with the channels along `axis` that are `alive`."""
        shape = (*self.shape[:axis], int(alive.sum()), *self.shape[axis + 1 :])
        return Answer(shape, partial(self._targets, alive))

    def _targets(
        self, alive: Mask, layer: Layer, x: Array, most: int, rng: np.random.Generator
    ) -> tuple[Rows, Array]:  # fmt: skip
        if self.places != layer.places(x):
            raise Unsolvable(RESHAPED)
        return self.at, layer.split(np.compress(alive, self.rows, 1))


class Front:
    """The dense network over `feeds`, as far as cuts leave it alone: it is run once where these are tried in the order
    in which they lie in the graph, and from its beginning where one lies before the last."""

    def __init__(self, trace: Trace, feeds: Sequence[Mapping[str, Array]], providers: Sequence[str]) -> None:
        self.trace, self.feeds, self.providers = trace, feeds, providers
        self.ahead = self.walk()

    def walk(self) -> Walk:
        """Through it from its beginning."""
        return Walk(self.trace.model, self.feeds, self.trace.shapes.dtype, self.providers)

    def before(self, current: Walk, touched: set[int]) -> dict[str, list[Any]]:
        """What those nodes of a cut graph read that are `touched`, of what others make, in every batch."""
        made = {o for k in touched for o in current.makes(k)}
        read = {n for k in touched for n in current.reads[k]} - made
        wanted = sorted(read & self.ahead.made_by.keys())
        if any(n not in self.ahead.values and self.ahead.made_by[n] in self.ahead.done for n in wanted):
            self.ahead = self.walk()  # else all that is run anew is let go of at once, and the next cut wants it again
        found = self.ahead.all_unread(wanted)
        self.ahead.release()
        return found

    def unchanged(self, model: Model, known: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Those of its tensors that a graph with other weights gives as well."""
        walk = Walk(model, (), self.trace.shapes.dtype)
        stale = walk.followers(changed(self.ahead, walk))
        return {name: values for name, values in known.items() if walk.made_by.get(name) not in stale}


class SharedDense(Front):
    """The dense network over `feeds`, as a refit of nothing that was cut asks for it."""

    def __init__(
        self, trace: Trace, feeds: Sequence[Mapping[str, Array]], providers: Sequence[str], seed: int = 0,
        light: Light | None = None,
    ) -> None:  # fmt: skip
        super().__init__(trace, feeds, providers)
        self.seen: dict[tuple[str, str], list[_Seen]] = {}
        everything, walk = np.ones(trace.labels.n, bool), self.walk()
        nothing_cut = Reconstruction(
            trace,
            everything,
            Rewritten(trace.model, {}),
            feeds,
            0,
            providers,
            seed,
            light,
            Dense(trace, feeds, providers, walk),
        )
        for layer, name, most in nothing_cut.asked():
            if isinstance(layer, Layer) and name in walk.made_by:
                self._look(walk, layer, name, most, np.random.default_rng((seed, layer.index)))

    def _look(self, walk: Walk, layer: Layer, name: str, most: int, rng: np.random.Generator) -> None:
        """Take what is looked at of a tensor with which a layer is compared."""
        xs = layer.inputs(walk)
        self.seen[layer.out, name] = [
            _Seen(layer, x, y, most, rng) for x, y in zip(xs, unclipped(walk, name), strict=True)
        ]
        walk.release()

    def trial(self) -> Dense:
        """What the layers of one cut network are compared with. Several may be solved for side by side, once they have
        started one after the other."""
        return _Trial(self)


class _Trial(Dense):
    """What one refit is told of the dense network that it shares."""

    def __init__(self, shared: SharedDense) -> None:
        super().__init__(shared.trace, shared.feeds, shared.providers)
        self.shared = shared

    def start(self, current: Walk, touched: set[int]) -> None:
        """The walk of the cut graph is given what comes before the cut."""
        current.values |= self.shared.before(current, touched)
        current.done |= set(range(len(current.nodes))) - touched

    def answers(self, layer: Linear, name: str, kept: Mask, outputs: int) -> Iterable[Answer]:
        """As for one refit; from memory where the layer allows it and the cut changes nothing but channels."""
        seen = self.shared.seen.get((layer.out, name))
        if not isinstance(layer, Layer) or seen is None:
            return super().answers(layer, name, kept, outputs)
        shape = seen[0].shape
        axis = layer.y_axis % len(shape)
        alive = channels(self.trace, kept, name, shape, axis)
        if alive is None:
            return super().answers(layer, name, kept, outputs)
        if alive.sum() != outputs * layer.groups:
            raise Unsolvable(RESHAPED)
        return [there.answer(alive, axis) for there in seen]


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
