"""Where units are summed away by a layer, and the second moments of what it reads there, from the dense network.

A *site* is one weight matrix with a column (or several) for each unit: where the loss of a unit can be computed and
compensated in closed form. Statistics are added up in float64, batch by batch, from sampled output positions. Knows
layers and units, no scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import RuntimeFailure
from onnxprune.fit.bodies import Body, visits
from onnxprune.fit.finding import layers, owners, passed, shared
from onnxprune.fit.fitted import Fitted
from onnxprune.fit.linear import Linear
from onnxprune.fit.normal import CHUNK, Moments, Products
from onnxprune.fit.products import Layer
from onnxprune.fit.tails import tail
from onnxprune.fit.unrun import in_common
from onnxprune.fit.walk import Walk
from onnxprune.heap import give_back
from onnxprune.model import Aside, Held, Model, Stored
from onnxprune.steady import in_turn
from onnxprune.trace import Groups, Ids, Mask, Reduction, Trace

Array = NDArray[np.float64]
Feeds = Sequence[Mapping[str, NDArray[Any]]]
ROWS_PER_COLUMN = 48
LEAST_ROWS, MORE_ROWS = 12000, 40000
LEAST_OF_MANY = 3000
"""Rows for each of several groups, whose unknowns are few."""
MOST_NUMBERS = 150_000_000
"""Sampled rows of one layer, in numbers: 600 MB of float32."""


@dataclass(frozen=True)
class Site:
    """members: the layers that share the weight. units [groups, channels]: the class of every input channel.
    mean [groups, K]: of the K columns; energy: the variance of the outputs, summed. `moments` and `weights` say where
    what is large is kept; who asks for it twice keeps it. inside: in the body of a node, whose nodes are counted by
    themselves."""

    members: tuple[Linear, ...]
    units: Ids
    moments: Stored
    mean: Array
    weights: Stored
    movable: bool
    energy: float
    inside: bool = False

    @property
    def gram(self) -> NDArray[np.floating]:
        """[groups, K, K]: centred second moments of the columns; raw where no bias can absorb a mean. In float32, which
        is as exact as the products that were added up."""
        return self.moments.load()

    @property
    def matrix(self) -> Array:
        """[groups, K, O]"""
        return self.weights.load()


@dataclass(frozen=True)
class _Read:
    """The matrix of a layer, read from the model whenever it is asked for."""

    layer: Linear
    model: Model

    def load(self) -> Array:
        """[groups, K, O]"""
        matrix = self.layer.read(self.model)
        self.release()
        return matrix

    def release(self) -> None:
        """Give back the memory that holds what a file has."""
        for root in self.layer.roots:
            self.model.weights[root].release()


def sample_size(groups: int, columns: int) -> int:
    """Rows to sample for a layer: several for every unknown, bounded by memory."""
    least = LEAST_ROWS if groups == 1 else LEAST_OF_MANY
    wanted = max(least, min(ROWS_PER_COLUMN * columns, MORE_ROWS + 2 * columns))
    return min(wanted, MOST_NUMBERS // (groups * columns))


def collect(
    groups: Groups, feeds: Feeds, providers: Sequence[str], seed: int, progress: Callable[[float], None] | None = None,
    wanted: Mask | None = None, aside: Aside | None = None,
) -> list[Site]:  # fmt: skip
    """One pass of the dense network over `feeds`; the sites of the units that are `wanted` (see `units_of`). aside:
    where what is large waits, if not in memory."""
    trace = groups.trace
    walk = Walk(trace.model, feeds, trace.shapes.dtype, providers)
    return list(_Collection(groups, sums_by_node(trace), seed, wanted, aside).of(walk, None, progress))


@dataclass(frozen=True)
class _Collection:
    """sums: by the number of a node; wanted, aside: as `collect` takes them."""

    groups: Groups
    sums: Mapping[int, Sequence[Reduction]]
    seed: int
    wanted: Mask | None
    aside: Aside | None

    def of(
        self, walk: Walk, others: frozenset[str] | None, progress: Callable[[float], None] | None = None
    ) -> Iterator[Site]:
        """Those of the graph of a walk, and of the bodies in it. others: where it is a body, the names of weights that
        are read outside of it; no bias in there can absorb a mean yet."""
        fitted = Fitted(walk, walk.types, {}, others or frozenset())
        every = shared(layers(walk.model, self.groups.trace.rank))
        todo, before = owners(walk.nodes), passed([members[0] for members in every], walk.model)
        for k, members in enumerate(every):
            if progress:
                progress(before[k])
            yield from self._inside(walk, [o for o in todo if o < members[-1].index])
            todo = [o for o in todo if o > members[-1].index]
            if k and every[k - 1][-1].index != members[-1].index:  # a node may hold several, which read the same
                walk.release()
                give_back()
            site = self._site(walk, fitted, members, others is not None)
            if site is not None:
                yield site
        yield from self._inside(walk, todo)

    def _site(self, walk: Walk, fitted: Fitted, members: Sequence[Linear], inside: bool) -> Site | None:
        """Of one weight; None where nothing that it reads is wanted."""
        layer = members[0]
        units = units_of(self.groups, layer, self.sums.get(walk.first + layer.index, ()), self.wanted)
        if units is None or not fitted.own(members):
            return None
        matrix = layer.read(walk.model)
        outputs = matrix.shape[0] * matrix.shape[2]
        tails = [tail(m, walk, outputs, self.groups.trace.rank(m.out)) for m in members]
        movable = not inside and all(fitted.movable(t.shift) for t in tails) and fitted.bias(layer, outputs) is not None
        gram, mean = _centred(_moments(walk, members, matrix.shape[1], self.seed), movable)
        energy = float(((gram @ matrix.astype(np.float32)) * matrix).sum())
        if not 0 < energy < np.inf:
            return None
        large: tuple[Stored, Stored] = Held(gram), Held(matrix)
        if self.aside is not None:
            large = self.aside.put(gram), _Read(layer, walk.model)
        return Site(tuple(members), units, large[0], mean, large[1], movable, energy, inside)

    def _inside(self, walk: Walk, nodes: Sequence[int]) -> Iterator[Site]:
        """The sites in the bodies of these nodes, as far as the bodies run."""
        for index in nodes:
            try:
                given = visits(walk, index)
            except RuntimeFailure:
                continue
            rank = self.groups.trace.rank
            common = in_common(walk, index, [name for name, feeds in given.items() if feeds], rank)
            for name, feeds in given.items():
                scope = self.groups.trace.scope(walk.first + index, name)
                if feeds and scope is not None:
                    body = Body.of(walk, index, name, common=common)
                    inner = Walk(body.model, [*feeds.values()], walk.types, walk.providers, scope.numbers.start)
                    yield from self.of(inner, body.others)


def sums_by_node(trace: Trace) -> dict[int, list[Reduction]]:
    """The reductions that sum labelled channels up, by the index of their node; nothing for any other node."""
    sums: dict[int, list[Reduction]] = defaultdict(list)
    for r in trace.reductions:
        if r.kind == "sum" and r.block is not None:
            sums[r.node].append(r)
    return sums


def units_of(groups: Groups, layer: Linear, reductions: Sequence[Reduction], wanted: Mask | None = None) -> Ids | None:
    """[groups, channels]: the unit of every channel that the layer reads; None where none of them is `wanted` (a mask
    over classes: by default those that may go)."""
    ids = layer.units(reductions, groups.trace.rank)
    if ids is None:
        return None
    units: Ids = groups.classes[ids]
    return units if (groups.prunable if wanted is None else wanted)[units].any() else None


def units_made(groups: Groups, layer: Layer) -> Ids | None:
    """[groups, outputs]: the unit of every channel that the layer makes; None where they are not those of one axis."""
    rank = groups.trace.rank(layer.out)
    axis = layer.y_axis % rank if rank else -1
    block = next((b for b in groups.trace.of(layer.out) if b.axes == (axis,)), None)
    return None if block is None else np.asarray(groups.classes[block.ids].reshape(layer.groups, -1))


def _rows(walk: Walk, members: Sequence[Linear], total: int, seed: int) -> Iterator[NDArray[Any]]:
    """[groups, rows, columns] of every batch, for each of the layers so many in all."""
    for layer in members:
        rng = np.random.default_rng((seed, layer.index))
        xs = layer.inputs(walk)
        for x in xs:
            yield layer.rows(x, layer.sample(x, -(-total // len(xs)), rng))


def joined(parts: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The same rows [groups, rows, columns], as many at a time as are multiplied at a time: few rows of many columns
    take longer to be added up than to be multiplied."""
    waiting: list[NDArray[Any]] = []
    for part in parts:
        waiting.append(part)
        if sum(x.shape[1] for x in waiting) >= CHUNK:
            yield np.concatenate(waiting, 1)
            waiting.clear()
    if waiting:
        yield np.concatenate(waiting, 1)


def _moments(walk: Walk, members: Sequence[Linear], columns: int, seed: int) -> list[Moments]:
    """Of every group, the sums over what the layers read."""
    groups = members[0].groups
    total = sample_size(groups, columns) // len(members)
    parts = joined(_rows(walk, members, total, seed))
    found = [Moments.of(part, part[:, :0]) for part in next(parts)]

    def products(rows: NDArray[Any]) -> list[Products]:
        return [m.products(part, part[:, :0], slice(None)) for m, part in zip(found, rows, strict=True)]

    if found[0].narrow:
        for made in in_turn(products, parts):  # the next rows are picked meanwhile
            for moments, own in zip(found, made, strict=True):
                moments.take(own)
    else:
        for rows in parts:
            for moments, part in zip(found, rows, strict=True):
                moments.add(part, part[:, :0])
    return found


def _centred(found: list[Moments], movable: bool) -> tuple[NDArray[np.float32], Array]:
    """(second moments [groups, K, K], about the means where a bias makes up for these, and the means [groups, K]); each
    of `found` is let go of when its own are made, as large ones are not held in float64 beside others."""
    columns, mean = len(found[0].gram), np.stack([m.mean for m in found])
    gram = np.empty((len(found), columns, columns), np.float32)
    found.reverse()
    for own in gram:
        moments = found.pop()
        second = moments.second(movable)
        second /= moments.count
        own[:] = second
    return gram, mean
