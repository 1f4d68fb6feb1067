"""Compensation in weight space: what a removed channel gave goes to the kept ones that are most like it.

Where x_u is near sum s_v x_v, a layer that sums over channels loses little if every kept column v gets s_v times the
removed column u: W[:, v] += s_v W[:, u] (Neuron Merging: Kim et al. 2020, arXiv 2010.13160; LBYL: Yun, Wong 2022).
How like channels are is told by `fit.likeness` from filters, biases and normalisations jointly. No inputs are needed.

The scales are the best non-negative ones, for a rectifier commutes with positive scales only. Shared out among several
v, as in LBYL, rather than given to the one nearest v, as in Neuron Merging: of the carried residual network 30 %
smaller, top-1 was 42.9 % against 33.7 % (43.6 % against 29.1 % with its BatchNorms kept). Leaving faint likenesses out
made it worse, hence the low bar. Knows groups and likenesses, no budget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.fit import Layer, Likeness, Likenesses, layers, shared, sums_by_node, units_of
from onnxprune.model import Model
from onnxprune.rewrite import Rewritten, rewrite
from onnxprune.trace import Groups, Ids, Mask

Array = NDArray[np.float64]
LEAST = 0.1
"""Cosine between a channel and what stands for it, below which it is not merged."""
NEAREST = 16
"""Kept channels that one channel is shared out among, at most: bounds the time of wide layers."""
JITTER = 1e-9


def merged(groups: Groups, removed: Mask, after: Rewritten) -> Mapping[str, Any]:
    """Merge the units of `removed` into what `after` keeps, in place. For the report, how many units were
    merged somewhere, and how similar they were to what stands for them (mean cosine over all layers that read them)."""
    merge = Merge(groups, removed)
    merge.run()
    if merge.similar:
        work = rewrite(replace(groups.trace, model=merge.model), merge.kept)
        after.model, after.aliases = work.model, work.aliases
    cosines = [c for each in merge.similar.values() for c in each]
    return {"method": "merge", "merged": len(merge.similar), "similarity": float(np.mean(cosines)) if cosines else 0.0}


class Merge:
    """model: a copy of the dense graph; merging changes the weights of layers that sum over units, their shapes stay.

    similar: of every merged unit, the cosine at each site."""

    def __init__(self, groups: Groups, removed: Mask) -> None:
        self.groups, self.trace = groups, groups.trace
        self.kept = groups.kept_ids(removed)
        self.alive = np.zeros(len(groups.prunable), bool)
        self.alive[groups.classes[self.kept]] = True
        self.model: Model = self.trace.model.copy()
        self.similar: dict[int, list[float]] = defaultdict(list)

    def run(self) -> None:
        """Merge at every weight that nobody else reads, layer by layer in order."""
        found = [f for f in layers(self.trace.model, self.trace.rank) if isinstance(f, Layer)]
        by_node = {layer.index: layer for layer in found}
        sharing = {members[0].key: members for members in shared(found)}
        sums = sums_by_node(self.trace)
        likenesses = Likenesses(self.groups, ~self.alive, found)
        reads: dict[str, list[Likeness | None]] = defaultdict(list)  # of one weight, by the layers that share it
        for index in range(len(self.trace.model.skeleton.graph.node)):
            if (layer := by_node.get(index)) is not None:
                root = layer.weight.root
                reads[root].append(likenesses.known.get(layer.data))
                members = sharing[layer.key]
                if layer is members[-1]:
                    units = units_of(self.groups, members[0], sums[members[0].index])
                    if units is not None and likenesses.fitted.own(members):
                        self._site(members[0], units, reads[root])
                    del reads[root]
            likenesses.pass_node(index)

    def _site(self, layer: Layer, units: Ids, reads: list[Likeness | None]) -> None:
        """One weight: `units` [groups, channels] of what it reads."""
        like: Likeness | None = None
        for part in reads:  # a unit stands for another where every layer that shares the weight sees them alike
            if part is None:
                return
            like = part if like is None else like.beside(part)
        if like is None or self.alive[units].all():
            return
        matrix = layer.read(self.trace.model).copy()
        parts = [self._group(matrix[g], classes, like) for g, classes in enumerate(units)]
        if any(parts):
            layer.write(self.model, matrix)

    def _group(self, matrix: Array, classes: Ids, like: Likeness) -> bool:
        """One matrix [channels * taps, outputs] in place; whether anything changed.

        A unit may have several channels here (a flattened map): the k-th of one goes to the k-th of another."""
        units, counts = np.unique(classes, return_counts=True)
        order = np.argsort(classes, kind="stable")
        starts = np.cumsum(counts) - counts
        known = np.isin(units, like.units)
        gone, stay = np.flatnonzero(known & ~self.alive[units]), np.flatnonzero(known & self.alive[units])
        if not gone.size or not stay.size:
            return False
        cosines, sizes = like.cosines(units[gone], units[stay])
        cosines = np.where(counts[gone][:, None] == counts[stay], cosines, 0)
        inner = like.cosines(units[stay], units[stay])[0]
        own, others = sizes
        wide = matrix.reshape(len(classes), -1, matrix.shape[1])
        changed = False
        for u, cosine in enumerate(cosines):
            near = np.argsort(-cosine, kind="stable")[:NEAREST]
            shares, fit = combination(inner[np.ix_(near, near)], cosine[near])
            if fit <= LEAST:
                continue
            changed = True
            self.similar[int(units[gone[u]])].append(fit)
            for v, share in zip(near, shares * own[u] / others[near], strict=True):
                if share:
                    n = counts[gone[u]]
                    wide[order[starts[stay[v]] + np.arange(n)]] += share * wide[order[starts[gone[u]] + np.arange(n)]]
        return changed


def combination(inner: Array, cosine: Array) -> tuple[Array, float]:
    """Non-negative shares [V] of unit vectors with inner products `inner` [V, V] whose sum is nearest to a unit vector
    with inner products `cosine` [V] to them, and the cosine between the two."""
    near = np.flatnonzero(cosine > 0)
    shares = np.zeros(len(cosine))
    if near.size:
        root = np.linalg.cholesky(inner[np.ix_(near, near)] + JITTER * np.eye(near.size))
        shares[near] = scipy.optimize.nnls(root.T, np.linalg.solve(root, cosine[near]))[0]
    length = float(np.sqrt(np.maximum(shares @ inner @ shares, 0)))
    return shares, float(shares @ cosine) / length if length else 0.0
