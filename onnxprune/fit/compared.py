"""The dense network that the layers of a cut one are compared with.

Knows walks, layers and what was kept; no solutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit.linear import Linear
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


def changed(before: Walk, walk: Walk) -> list[int]:
    """The nodes of a walk that are new, or that read other weights than in the graph of the one `before`."""
    dense = before.model.weights
    other = {name for name, weight in walk.model.weights.items() if weight is not dense.get(name)}
    other |= {o for o in walk.made_by if o not in before.made_by}
    then = {o: before.nodes[k] for o, k in before.made_by.items()}
    return [
        k for k, n in enumerate(walk.nodes)
        if other & (walk.reads[k] | set(n.output)) or any(then[o] != n for o in n.output if o)
    ]  # fmt: skip


def _drawn(y: Array, layer: Linear, x: Any, most: int, rng: np.random.Generator) -> tuple[Rows, Array]:
    at = layer.sample(x, most, rng)
    return at, layer.targets(y, at)
