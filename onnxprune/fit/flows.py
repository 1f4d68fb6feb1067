"""What goes into a layer of the dense network and what comes out, position by position: how far each varies, and how
far the layer turns the stream that it adds to.

Knows layers and units, no scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit.finding import layers
from onnxprune.fit.products import Layer
from onnxprune.fit.sites import LEAST_ROWS, units_made
from onnxprune.fit.tails import tail
from onnxprune.fit.walk import Walk
from onnxprune.trace import Groups, Ids

Array = NDArray[np.float64]
Feeds = Sequence[Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Flow:
    """units [groups, outputs]: the class of what each output makes. matrix [groups, columns, outputs].

    spread_in [groups, positions]: standard deviation of all that a position reads, over samples and columns;
    spread_out [groups, positions, outputs]: of each output, over samples. The rows of a matrix product are one
    position."""

    units: Ids
    matrix: Array
    spread_in: Array
    spread_out: Array


def flows(groups: Groups, feeds: Feeds, providers: Sequence[str], seed: int) -> Iterator[Flow]:
    """Of every convolution and matrix product that makes units, in order."""
    for layer, walk, at in _layers(groups, feeds, providers, seed):
        units = units_made(groups, layer)
        if units is None:
            continue
        places = len(at[0]) if layer.window else 1
        taken, given = _Spread(), _Spread()
        for x, y, where in zip(layer.inputs(walk), walk.real(layer.out), at, strict=True):
            rows, wanted = layer.rows(x, where), layer.targets(y, where)
            taken.add(rows.reshape(layer.groups, -1, places, rows.shape[2]), (1, 3))
            given.add(wanted.reshape(layer.groups, -1, places, wanted.shape[2]), (1,))
        yield Flow(units, layer.read(groups.trace.model), taken.deviation, given.deviation)


def turns(groups: Groups, feeds: Feeds, providers: Sequence[str], seed: int) -> dict[int, float]:
    """By the index of a layer's node, where what it gives is added to a stream: the mean angle between the stream
    before and after that, as a share of half a turn."""
    found = {}
    for layer, walk, at in _layers(groups, feeds, providers, seed):
        rank = groups.trace.rank(layer.out)
        dims = groups.trace.shapes.probe[0].get(layer.out) or ()
        its = tail(layer, walk, int(dims[layer.y_axis] or 1), rank) if rank else None
        if its is None or not its.total:
            continue
        angles = []
        for before, after, where in zip(walk.real(its.other), walk.real(its.total), at, strict=True):
            if before.shape == after.shape:
                angles.append(_angles(*(layer.targets(v, where).transpose(1, 0, 2) for v in (before, after))))
        if angles:
            found[layer.index] = float(np.concatenate(angles).mean() / np.pi)
    return found


def _layers(
    groups: Groups, feeds: Feeds, providers: Sequence[str], seed: int
) -> Iterator[tuple[Layer, Walk, list[NDArray[np.int64]]]]:
    """Every convolution and matrix product, the walk that has come to it, and the positions to look at in every
    batch: of a convolution the same."""
    trace = groups.trace
    walk = Walk(trace.model, feeds, trace.shapes.dtype, providers)
    for layer in layers(trace.model, trace.rank):
        if isinstance(layer, Layer):
            xs = layer.inputs(walk)
            at = [layer.sample(x, -(-LEAST_ROWS // len(xs)), np.random.default_rng((seed, layer.index))) for x in xs]
            yield layer, walk, at
            walk.release()


def _angles(a: Array, b: Array) -> Array:
    """[rows]: between vectors [rows, ...]; a right angle where one is zero."""
    a, b = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(1), size, out=np.zeros(len(a)), where=size > 0)
    return np.asarray(np.arccos(np.clip(cosine, -1, 1)))


class _Spread:
    """A standard deviation over some axes, batch by batch."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, np.zeros(()), np.zeros(())

    def add(self, values: NDArray[np.floating], axes: tuple[int, ...]) -> None:
        """Values of one batch."""
        wide = values.astype(np.float64)
        self.count += int(np.prod([values.shape[a] for a in axes]))
        self.total = self.total + wide.sum(axes)
        self.squares = self.squares + np.square(wide).sum(axes)

    @property
    def deviation(self) -> Array:
        """Over everything that was added."""
        return np.asarray(np.sqrt(np.maximum(self.squares / self.count - np.square(self.total / self.count), 0)))
