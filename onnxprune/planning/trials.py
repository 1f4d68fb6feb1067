"""What the outputs lose when a large part of one set of units alone goes and the rest makes up for it.

The curve of `obs` says how much a set's own layers lose; how much of that reaches the outputs differs 50-fold between
sets of one network and hardly depends on where on the curve it is measured. A trial measures it: all layers behind the
cut are refitted to some of the inputs, and others judge. That ranks plans as a full refit does (Spearman .9 on a
residual network); compensating the readers alone, in closed form, overstates early layers, for later ones take much of
it back. It is what is left where refits would take too long. Knows units, layers and outputs; the budget is spent
elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import OnnxPruneError
from onnxprune.fit import (
    Extent,
    Factor,
    Fitted,
    Front,
    Light,
    Linear,
    Reconstruction,
    SharedDense,
    Site,
    Walk,
    changed,
    layers,
    sample_size,
    tail,
)
from onnxprune.model import Model, Topology, Weight
from onnxprune.options import Options
from onnxprune.planning import profile
from onnxprune.planning.obs import DAMP
from onnxprune.planning.parting import Parts, lightly
from onnxprune.planning.sensitivity import OutputError
from onnxprune.rewrite import rewrite
from onnxprune.steady import each
from onnxprune.trace import Groups, Mask, Slice, Trace

SHARES = {"low": (0.45,), "normal": (0.45,), "high": (0.25, 0.5, 0.75)}
"""Of a set, that are taken out to measure what the outputs lose, by the effort."""
PACES = ((64, Light()), (32, Light(12, (0.1,))))
"""Samples that a trial is fitted to, and as many judge it; and how it is. The second where the model is large."""
NONE = (0, Light())
"""No trials by refits."""
MOST_WORK = 1.5e12
"""Multiply-adds of all trials together, half a minute or less; beyond that trials are in closed form unless the effort
is high."""
LAYER = 2e8
"""Multiply-adds that take as long as what a layer takes beside its own: two sessions are opened for it."""
MOST_NODES = 200_000
"""Nodes that are rewritten and run in all trials together, half a minute or less: of a graph of thousands of nodes not
every set is tried unless the effort is high."""
FEWEST = 16
"""Trials that are made of any graph."""

Made = tuple[Model, Mapping[str, list[NDArray[Any]]]]
"""A cut graph, and what comes before the cut where it is judged: of every batch, the tensors that it reads there."""


class Trials:
    """Tries cuts of `groups`, by refits where `count` of them do not take too long. `sites`: for the closed form."""

    def __init__(self, groups: Groups, sites: Sequence[Site], inputs: Parts, options: Options, count: int) -> None:
        self.options, self.count = options, count
        self.groups, self.sites, self.inputs, self.seed = groups, sites, inputs, options.seed
        self.samples, self.light = _pace(groups.trace, options, count)
        self.by_refit = self.samples > 0
        self.some = lightly(groups, inputs, self.samples or PACES[0][0])
        feeds = self.some.judge if self.by_refit else inputs.choose or inputs.fit
        self.judge = OutputError(groups, feeds, options.providers)
        self.front = Front(groups.trace, feeds, options.providers)

    def lost(self, cuts: Iterable[Mask]) -> list[float | None]:
        """Output errors without the units of each cut; None where it cannot be run. Cuts in the order of the graph take
        the least time."""
        if not self.by_refit:
            return [self._error(partial(self._compensated, removed)) for removed in cuts]
        return each(self._error, map(self._begun, cuts))

    def _error(self, made: Callable[[], Made]) -> float | None:
        try:
            error = self.judge.error(*made())
        except OnnxPruneError:
            return None
        return error if np.isfinite(error) else None

    def _compensated(self, removed: Mask) -> Made:
        model = compensated(self.groups, self.sites, removed)
        walk = Walk(model, (), self.groups.trace.shapes.dtype)
        return model, self.front.before(walk, walk.followers(changed(self.front.ahead, walk)))

    @cached_property
    def dense(self) -> SharedDense:
        """What refits are compared with."""
        return SharedDense(self.groups.trace, self.some.solved, self.judge.providers, self.seed, self.light)

    @property
    def room(self) -> int:
        """How many more of them by refits do not take too long beside these."""
        if not self.by_refit or self.options.effort == "high":
            return sys.maxsize if self.by_refit else 0
        return max(0, int(MOST_WORK / _work(self.groups.trace, 1, self.samples, self.light)) - self.count)

    def others(self, count: int) -> Trials:
        """So many trials of other cuts, with time of their own."""
        return Trials(self.groups, self.sites, self.inputs, self.options, count)

    def rough(self) -> Trials:
        """Trials in closed form."""
        return self.others(sys.maxsize)

    def _begun(self, removed: Mask) -> Callable[[], Made]:
        """What gives the refitted graph, once what comes before the cut was run; or the error that this ended in."""
        try:
            kept = self.groups.kept_ids(removed)
            work = rewrite(self.groups.trace, kept)
            feeds, held, providers = self.some.solved, len(self.some.choose), self.judge.providers
            walk = Reconstruction(
                self.groups.trace, kept, work, feeds, held, providers, self.seed, self.light, self.dense.trial()
            )
            known = self.front.before(walk.current, walk.touched)
        except OnnxPruneError as error:
            return partial(_raised, error)

        def finished() -> Made:
            walk.run()
            return work.model, self.front.unchanged(work.model, known)  # a shortcut is solved for beside the cut

        return finished


def _raised(error: OnnxPruneError) -> Made:
    raise error


def most_trials(trace: Trace, options: Options) -> int:
    """How many trials are made at most, so that their time does not grow with the square of a graph."""
    return sys.maxsize if options.effort == "high" else max(FEWEST, MOST_NODES // max(len(trace.nodes), 1))


def affordable(trace: Trace, options: Options) -> int:
    """How many trials by refits do not take too long; none where the effort is low."""
    return int(MOST_WORK / _work(trace, 1, *PACES[-1])) if options.effort == "normal" else 0


def _pace(trace: Trace, options: Options, count: int) -> tuple[int, Light]:
    """The samples that each of `count` trials takes, 0 where that would take too long, and how. Half of the layers lie
    behind a cut on average."""
    if options.effort != "normal":
        return PACES[0] if options.effort == "high" else NONE
    return next((pace for pace in PACES if _work(trace, count, *pace) <= MOST_WORK), NONE)


def _work(trace: Trace, count: int, samples: int, light: Light) -> float:
    """Multiply-adds of so many trials by refits."""
    found = (layer.extent(trace.shapes.of_sample) for layer in layers(trace.model, trace.rank))
    extents = [extent for extent in found if extent is not None]
    rows = [sample_size(extent.groups, extent.columns) / light.rows for extent in extents]
    solving = sum(LAYER + _solving(extent, many) for extent, many in zip(extents, rows, strict=True))
    return count * (solving / 2 + 2.5 * samples * profile.macs(trace))


def _solving(extent: Extent, rows: float) -> float:
    """Multiply-adds of solving for a layer by so many rows."""
    groups, columns, outputs = extent.groups, extent.columns, extent.outputs
    return groups * (rows * columns * (columns + 3 * outputs) + columns**2 * (columns + 6 * outputs))


def factor(error: float | None, loss: float, base: float = 0.0) -> float | None:
    """Output error by `loss` (what the curve says); None where either says nothing: an error of exactly 0 comes of
    units that no input reaches, as in a branch that is not taken. `base`: the part of it that is due to units (heads)
    that the curve does not know."""
    return max(error - base, 0.1 * error) / loss if error and loss > 0 else None


def compensated(groups: Groups, sites: Sequence[Site], removed: Mask) -> Model:
    """The pruned graph with the readers of what was removed compensated in closed form, from dense statistics."""
    kept = groups.kept_ids(removed)
    alive = groups.alive(kept)
    model = groups.trace.model.copy()
    graph = Topology(model)
    fitted = Fitted(graph, groups.trace.shapes.dtype, {})
    fresh: dict[str, Linear] = {}
    for site in sites:
        if alive[site.units].all():
            continue
        matrix = np.stack([_resolved(site, g, alive[site.units[g]]) for g in range(len(site.units))])
        moved = np.einsum("gk,gko->go", site.mean, site.matrix - matrix).ravel()
        site.members[0].write(model, matrix)
        if site.movable:
            own, before = [m.on(graph.nodes[m.index]) for m in site.members], set(model.weights)
            fitted.move([tail(m, graph, moved.size, groups.trace.rank(m.out)) for m in own], moved)
            fresh |= dict.fromkeys(model.weights.keys() - before, own[0])
    slices = _with_copies(groups.trace, graph, fitted.aliases)
    after = rewrite(replace(groups.trace, model=model, slices=slices), kept).model
    for name in fresh.keys() - fitted.aliases.keys():
        after.weights[name] = _cut(after.weights[name], fresh[name], groups.trace, kept)
    return after


def _with_copies(trace: Trace, graph: Topology, copies: Mapping[str, str]) -> dict[Hashable, Slice]:
    """The slices of a trace for `graph`, where some uses of parameters read `copies` (of which parameter, by name): a
    copy is cut as the parameter would have been there."""
    found = dict(trace.slices)
    for use, name in (((k, i), n) for k, node in enumerate(graph.nodes) for i, n in enumerate(node.input)):
        for key, own in trace.slices.items() if name in copies else ():
            if own.parameter != copies[name] or (own.uses and use not in own.uses):
                continue
            found[name, key] = replace(own, parameter=name, key=(name, key), uses=(use,) if own.uses else ())
            if own.uses:  # none would stand for all
                left = tuple(u for u in found.pop(key).uses if u != use)
                found |= {key: replace(own, uses=left)} if left else {}
    return found


def _cut(bias: Weight, layer: Linear, trace: Trace, kept: Mask) -> Weight:
    """A bias where there was none, of which the trace knows nothing, at the channels that are left."""
    axis = (layer.y_axis or 0) % (trace.rank(layer.out) or 1)
    block = next((b for b in trace.of(layer.out) if b.axes == (axis,)), None)
    if block is None:
        return bias
    along = bias.shape.index(len(block.ids))
    return Weight.of(np.compress(kept[block.ids], bias.array(), along), bias.onnx_type)


def _resolved(site: Site, group: int, alive: Mask) -> NDArray[np.float64]:
    """The weights of the kept columns, re-solved, and zeros."""
    gram, matrix = site.gram[group], site.matrix[group]
    kept = np.repeat(alive, len(gram) // len(alive))
    if kept.all() or not kept.any():
        return np.asarray(matrix * kept[:, None])
    unit = DAMP * max(float(np.trace(gram)) / len(gram), 1e-30)
    inner = gram[np.ix_(kept, kept)].astype(np.float64)
    inner.flat[:: len(inner) + 1] += unit
    out: NDArray[np.float64] = np.zeros_like(matrix)
    moved = gram[np.ix_(kept, ~kept)] @ matrix[~kept]
    out[kept] = matrix[kept] + Factor.of(inner).solve(moved)
    return out
