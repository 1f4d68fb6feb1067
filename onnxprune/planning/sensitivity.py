"""What a cut of one set of units does to the outputs: one measured factor for each error curve.

The curve of `obs` says how much a set's own layers lose; how much of that reaches the outputs differs 50-fold between
sets of one network and hardly depends on where on the curve it is measured. So it is measured once: a large part of one
set goes, its readers are compensated in closed form, and the rest stays dense. Knows curves, units and outputs; the
budget is spent elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import OnnxPruneError, RuntimeFailure
from onnxprune.fit import Fitted, Linear, Reconstruction, Site, tail
from onnxprune.model import Model, Topology, Weight
from onnxprune.planning.obs import DAMP
from onnxprune.planning.parting import Parts
from onnxprune.prove import Places, with_outputs
from onnxprune.rewrite import rewrite
from onnxprune.run import first_line, open_session
from onnxprune.trace import Groups, Mask, Trace

Feeds = Sequence[Mapping[str, NDArray[Any]]]


class OutputError:
    """How far a model's outputs are from the dense ones over `feeds`, as a share of their variance.

    A saturating operator that ends the graph (softmax) is judged by what goes into it."""

    def __init__(self, groups: Groups, feeds: Feeds, providers: Sequence[str]) -> None:
        self.groups, self.feeds, self.providers = groups, feeds, providers
        trace = groups.trace
        places = Places(trace, np.ones(trace.labels.n, bool))
        self.taps, ends = places.taps, places.ends
        covered = {o for n in trace.model.skeleton.graph.node if set(self.taps) & set(n.input) and n.output[0] in ends
                   for o in ends[n.output[0]]}  # fmt: skip
        outputs = [o.name for o in trace.model.skeleton.graph.output]
        self.names = [*self.taps, *(o for o in outputs if o not in covered)]
        self.dense = self._outputs(trace.model)

    def error(self, model: Model) -> float:
        """Mean over the outputs of squared error by variance."""
        errors = []
        for ours, theirs in zip(self.dense, self._outputs(model), strict=True):
            lost = sum(float(np.square(a - b).sum()) for a, b in zip(ours, theirs, strict=True))
            mean = sum(a.sum() for a in ours) / max(sum(a.size for a in ours), 1)
            energy = sum(float(np.square(a - mean).sum()) for a in ours)
            errors.append(lost / energy if energy else 0.0)
        return float(np.mean(errors)) if errors else 0.0

    def _outputs(self, model: Model) -> list[list[NDArray[np.float64]]]:
        session = open_session(with_outputs(self.groups.trace.shapes.dtype, model, self.taps), self.providers)
        try:
            runs = [session.run(self.names, dict(feed)) for feed in self.feeds]
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise RuntimeFailure(f"ONNX Runtime failed on calibration inputs: {first_line(error)}") from error
        return [
            [np.asarray(r[k], np.float64) for r in runs]
            for k in range(len(self.names))
            if isinstance(runs[0][k], np.ndarray) and runs[0][k].dtype.kind == "f"
        ]


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
    after = rewrite(replace(groups.trace, model=model), kept).model
    for name, layer in fresh.items():
        after.weights[name] = _cut(after.weights[name], layer, groups.trace, kept)
    return after


def _cut(bias: Weight, layer: Linear, trace: Trace, kept: Mask) -> Weight:
    """A bias that was not there before, which the rewriting knows nothing of, at the channels that are left."""
    axis = layer.y_axis % (trace.rank(layer.out) or 1)
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
    inner = gram[np.ix_(kept, kept)] + unit * np.eye(int(kept.sum()))
    out: NDArray[np.float64] = np.zeros_like(matrix)
    out[kept] = matrix[kept] + np.linalg.solve(inner, gram[np.ix_(kept, ~kept)] @ matrix[~kept])
    return out


def loss_of(judge: OutputError, sites: Sequence[Site], removed: Mask) -> float | None:
    """Output error when the units of `removed` go; None where it cannot be run."""
    try:
        error = judge.error(compensated(judge.groups, sites, removed))
    except OnnxPruneError:
        return None
    return error if np.isfinite(error) else None


def refit_loss(judge: OutputError, parts: Parts, removed: Mask, seed: int) -> float | None:
    """Output error when the units of `removed` go and all layers behind them are refitted, lightly; None where it
    cannot be run. Later layers take back much of what the closed form of the readers alone counts as lost."""
    groups = judge.groups
    kept = groups.kept_ids(removed)
    work = rewrite(groups.trace, kept)
    try:
        walk = Reconstruction(
            groups.trace, kept, work, parts.solved, len(parts.choose), judge.providers, seed, light=True
        )
        walk.run()
        error = judge.error(work.model)
    except OnnxPruneError:
        return None
    return error if np.isfinite(error) else None


def factor(error: float | None, loss: float, base: float = 0.0) -> float | None:
    """Output error by `loss` (what the curve says); None where either says nothing. `base`: the part of it that is due
    to units (heads) that the curve does not know."""
    return max(error - base, 0.1 * error) / loss if error is not None and loss > 0 else None
