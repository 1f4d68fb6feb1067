"""Folding: units that are alike become one, instead of some being dropped and others kept (Wang et al. 2025, Forget the
Data and Fine-Tuning! Just Fold the Network to Compress, arXiv 2502.10216).

The units of a group are clustered by k-means over their coupled rows, with biases and normalisations in them; there are
as many clusters as units are kept, beginning with these. What makes a kept unit becomes the mean of its cluster, and
what reads it the sum. A mean of unlike rows is shorter than they are; stretching it to their length, as for inputs that
are white (the paper's Fold-AR), made it worse: of a CIFAR residual network of 20 layers 15, 30 and 50 % smaller, top-1
was 58.6, 30.6 and 12.5 % instead of 61.6, 32.5 and 14.9 %. No inputs are needed. Knows groups and layers, no budget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.fit import Fitted, Layer, layers, shared, sums_by_node, tail, units_made, units_of
from onnxprune.model import Model, Topology, Weight
from onnxprune.rewrite import Rewritten, rewrite
from onnxprune.trace import Groups, Ids, Mask

Array = NDArray[np.float64]
ROUNDS = 50
"""Of Lloyd's algorithm, at most."""


def folded(groups: Groups, removed: Mask, after: Rewritten) -> Mapping[str, Any]:
    """Fold the units of `removed` into what `after` keeps, in place. For the report, how many were folded, and the mean
    distance of a unit from its cluster's centre, as a share of its length."""
    fold = Fold(groups, removed)
    fold.run()
    if fold.distances:
        work = rewrite(replace(groups.trace, model=fold.model), fold.kept)
        after.model, after.aliases = work.model, work.aliases
    distance = float(np.mean(list(fold.distances.values()))) if fold.distances else 0.0
    return {"method": "fold", "folded": len(fold.distances), "distance": distance}


@dataclass(frozen=True)
class _Side:
    """A layer whose weight nobody else reads; the classes of the channels that it makes and reads [groups, n]."""

    layer: Layer
    made: Ids | None
    read: Ids | None


class Fold:
    """model: a copy of the dense graph, in which kept units stand for their clusters; the shapes stay.

    slots [classes]: the kept unit that each goes to. distances: of every removed unit that was folded."""

    def __init__(self, groups: Groups, removed: Mask) -> None:
        self.groups, self.trace = groups, groups.trace
        self.kept = groups.kept_ids(removed)
        self.alive = groups.alive(self.kept)
        self.model: Model = self.trace.model.copy()
        self.graph = Topology(self.trace.model)
        self.fitted = Fitted(self.graph, self.trace.shapes.dtype, {})
        self.slots = np.arange(len(groups.prunable))
        self.distances: dict[int, float] = {}
        sums = sums_by_node(self.trace)
        found = [f for f in layers(self.trace.model, self.trace.rank) if isinstance(f, Layer)]
        self.sides = [
            _Side(m[0], units_made(groups, m[0]), units_of(groups, m[0], sums[m[0].index]))
            for m in shared(found) if len(m) == 1 and self.fitted.own(m)
        ]  # fmt: skip
        self.roots = {side.layer.weight.root for side in self.sides}

    def run(self) -> None:
        """Cluster every family of units, and change whatever makes or reads them."""
        for units in self._families():
            self._cluster(units)
        if not self.distances:
            return
        for side in self.sides:
            self._change(side)
        for name, axis, ids in self._vectors():
            value = np.moveaxis(self.model.weights[name].array().astype(np.float64), axis, 0)
            weight = self.model.weights[name]
            mean = np.moveaxis(_gathered(value, self._targets(self.groups.classes[ids]), True), 0, axis)
            self.model.weights[name] = Weight.of(np.ascontiguousarray(mean), weight.onnx_type)

    def _families(self) -> Iterator[Ids]:
        """Units on the same axes of the same parameters, of which some go and some stay, where all that makes or reads
        them is known: not those inside of rows, which are told apart by their rows."""
        groups = self.groups
        nested = {u for units in groups.rows.values() for u in units}
        strange = self._strange()
        found: dict[int, list[int]] = defaultdict(list)
        for u in np.flatnonzero(groups.prunable & ~strange):
            if u not in nested:
                found[int(groups.location_hash[u])].append(int(u))
        for family in found.values():
            units = np.array(family)
            if self.alive[units].any() and not self.alive[units].all() and self._even(units):
                yield units

    def _strange(self) -> Mask:
        """Classes that something reads or holds which is no layer here and no vector."""
        groups, strange = self.groups, np.zeros(len(self.groups.prunable), bool)
        read = {side.layer.index for side in self.sides if side.read is not None}
        for r in self.trace.reductions:
            blocks = [b for _, b in (*r.ins, *r.outs)] + ([r.block] if r.block else [])
            if r.kind != "sum" or r.node not in read:
                for b in blocks:
                    strange[groups.classes[b.ids]] = True
        vectors = {name for name, _, _ in self._vectors()}
        for s, _, ids in groups.blocks:
            weight = self.trace.model.weights[s.parameter]
            if (s.parameter not in self.roots and s.parameter not in vectors) or weight.dtype.kind != "f":
                strange[groups.classes[ids]] = True
        return strange

    def _vectors(self) -> Iterator[tuple[str, int, Ids]]:
        """(parameter, axis, ids) of what holds a number, or several, for each channel: biases, normalisations."""
        axes: dict[str, set[tuple[int, ...]]] = defaultdict(set)
        for s, at, _ in self.groups.blocks:
            axes[s.parameter].add(at)
        done = set(self.roots)
        for s, at, ids in self.groups.blocks:
            whole = len(at) == 1 and ids.size == self.trace.model.weights[s.parameter].shape[at[0]]
            if whole and len(axes[s.parameter]) == 1 and s.parameter not in done:
                done.add(s.parameter)
                yield s.parameter, at[0], ids

    def _even(self, units: Ids) -> bool:
        """Whether all units of a family stand equally often wherever one does: a grouped convolution cannot take the
        sum of what its groups read apart. One of a single channel a group can, if all of its units do."""
        for classes in (c for side in self.sides for c in (side.made, side.read) if c is not None):
            for row in classes if classes.shape[1] > 1 else classes.T:
                counts = np.bincount(row, minlength=len(self.alive))[units]
                if (counts != counts[0]).any():
                    return False
        return True

    def _cluster(self, units: Ids) -> None:
        rows = self._rows(units)
        if rows is None:
            return
        stay = units[self.alive[units]]
        label = kmeans(rows, np.flatnonzero(self.alive[units]))
        self.slots[units] = stay[label]
        size = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
        centres = np.stack([rows[label == k].mean(0) for k in range(len(stay))])
        apart = np.linalg.norm(rows - centres[label], axis=1) / size
        self.distances |= {int(u): float(d) for u, d in zip(units, apart, strict=True) if not self.alive[u]}

    def _rows(self, units: Ids) -> Array | None:
        """[units, numbers]: what makes each unit in every layer, its offset with it, each layer by its length."""
        parts = []
        for side in self.sides:
            if side.made is None or not np.isin(units, side.made).all():
                continue
            matrix = side.layer.read(self.trace.model)
            filters = matrix.transpose(0, 2, 1).reshape(side.made.size, -1)
            its = tail(side.layer, self.graph, len(filters), self.trace.rank(side.layer.out))
            bias = self.fitted.bias(side.layer, len(filters))
            offset = its.offset + its.scale * (0 if bias is None else bias)
            every = np.concatenate([filters * its.scale[:, None], offset[:, None]], 1)
            flat = side.made.ravel()
            own = np.stack([every[flat == u].ravel() for u in units])
            parts.append(own / max(float(np.linalg.norm(own)), 1e-30))
        return np.concatenate(parts, 1) if parts else None

    def _change(self, side: _Side) -> None:
        """Mean filters, and sums of the columns that read them."""
        if not any(c is not None and (self.slots[c] != c).any() for c in (side.made, side.read)):
            return
        matrix = side.layer.read(self.model).copy()
        groups, columns, outputs = matrix.shape
        if side.made is not None:
            filters = matrix.transpose(0, 2, 1).reshape(groups * outputs, columns)
            mean = _gathered(filters, self._targets(side.made.ravel()), True)
            matrix = mean.reshape(groups, outputs, columns).transpose(0, 2, 1)
        if side.read is not None:
            wide = matrix.reshape(groups, side.read.shape[1], -1)
            matrix = np.stack([_gathered(w, self._targets(c), False) for w, c in zip(wide, side.read, strict=True)])
        side.layer.write(self.model, matrix.reshape(groups, columns, outputs))

    def _targets(self, classes: Ids) -> Ids:
        """[n]: the position that each goes to: the k-th of a unit to the k-th of the one that stands for it."""
        slots = self.slots[classes]
        places: dict[int, list[int]] = defaultdict(list)
        for p, u in enumerate(classes.tolist()):
            places[u].append(p)
        seen: dict[int, int] = defaultdict(int)
        found = np.arange(len(classes))
        for p, (u, v) in enumerate(zip(classes.tolist(), slots.tolist(), strict=True)):
            if u != v and seen[u] < len(places.get(v, ())):
                found[p] = places[v][seen[u]]
            seen[u] += 1
        return found


def kmeans(rows: Array, first: Ids, rounds: int = ROUNDS) -> Ids:
    """[n]: the cluster of every row, by Lloyd's algorithm from the rows `first` [k]; none is left empty: a cluster that
    would be keeps the row that it began with."""
    centres, label = rows[first].copy(), np.zeros(len(rows), np.int64)
    for _ in range(rounds):
        new = scipy.spatial.distance.cdist(rows, centres, "sqeuclidean").argmin(1)
        for k in np.setdiff1d(np.arange(len(first)), new):
            new[first[k]] = k
        if (new == label).all():
            break
        label = new
        for k in np.unique(label):
            centres[k] = rows[label == k].mean(0)
    return label


def _gathered(value: Array, targets: Ids, mean: bool) -> Array:
    """Sums or means over all positions of the first axis that go to the same one; what goes elsewhere is left as is."""
    found = np.zeros_like(value)
    np.add.at(found, targets, value)
    count = np.bincount(targets, minlength=len(targets)).reshape(-1, *(1,) * (value.ndim - 1))
    return np.where(count > 0, found / np.maximum(count, 1) if mean else found, value)
