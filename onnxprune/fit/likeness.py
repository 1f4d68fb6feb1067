"""How alike the channels of a tensor are, told from weights alone: an inner product of any two of them.

A channel is described by all that makes it: the filters that give birth to it with their biases, and every scale and
offset on the way to the tensor, through sums as well (the channel of a residual stream is one row of all branches so
far). Only inner products are kept, so that a description never has to be written out: concatenation adds them, a
channelwise filter on top multiplies them, a scale scales rows and columns.

Knows weights and the graph between layers; nothing is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.codes import MADE
from onnxprune.fit.fitted import Fitted
from onnxprune.fit.products import Layer
from onnxprune.fit.tails import affine
from onnxprune.model import Topology, traits
from onnxprune.trace import Groups, Ids, Mask
from onnxprune.trace.rules import elementwise

Array = NDArray[np.float64]
TOGETHER = traits.ADDING | {"Concat"}
"""Several tensors in one: what describes their channels is put side by side."""
MOST = 1 << 13
"""Units of one layer that are compared with each other: 512 MiB of inner products."""


@dataclass(frozen=True)
class Likeness:
    """units [C]: sorted classes. gram [C, C]: inner products of their descriptions, but for the `constant` [C] that is
    still added to each: it is a number of the description only where nothing linear can change it any more."""

    units: Ids
    gram: Array
    constant: Array

    @property
    def whole(self) -> Array:
        """[C, C]: inner products of weights and constants, jointly."""
        return self.gram + np.outer(self.constant, self.constant)

    def cosines(self, rows: Ids, columns: Ids) -> tuple[Array, tuple[Array, Array]]:
        """[rows, columns]: cosines between units, and the lengths of both."""
        size = np.sqrt(np.maximum(np.diag(self.gram) + self.constant**2, 1e-300))
        u, v = np.searchsorted(self.units, rows), np.searchsorted(self.units, columns)
        inner = self.gram[np.ix_(u, v)] + np.outer(self.constant[u], self.constant[v])
        return inner / np.outer(size[u], size[v]), (size[u], size[v])

    def settled(self) -> Likeness:
        """Behind a nonlinearity the constant is a number as any other."""
        return Likeness(self.units, self.whole, np.zeros(len(self.units)))

    def scaled(self, factor: Array, offset: Array) -> Likeness:
        """Behind factor * x + offset, both [C]."""
        return Likeness(self.units, self.gram * np.outer(factor, factor), self.constant * factor + offset)

    def unscalable(self) -> Likeness:
        """Behind a nonlinearity that commutes with no scale: 2<u, v> / (<u, u> + <v, v>), which is 1 for equal
        descriptions only."""
        whole = self.whole
        size = np.maximum(np.diag(whole), 1e-300)
        return Likeness(self.units, 2 * whole / (size[:, None] + size), np.zeros(len(self.units)))

    def times(self, other: Likeness) -> Likeness | None:
        """Of the product of two tensors."""
        if not np.array_equal(self.units, other.units):
            return None
        return Likeness(self.units, self.whole * other.whole, np.zeros(len(self.units)))

    def beside(self, other: Likeness) -> Likeness:
        """Of a tensor that holds the channels of both, or their sums."""
        units = np.union1d(self.units, other.units)
        gram, constant = np.zeros((len(units), len(units))), np.zeros(len(units))
        for part in (self, other):
            at = np.searchsorted(units, part.units)
            gram[np.ix_(at, at)] += part.gram
            constant[at] += part.constant
        return Likeness(units, gram, constant)


class Likenesses:
    """Of the tensors of the dense graph that hold units of `removed`, node by node in order."""

    def __init__(self, groups: Groups, removed: Mask, layers: Sequence[Layer]) -> None:
        self.groups, self.trace, self.removed = groups, groups.trace, removed
        self.graph = Topology(groups.trace.model)
        self.fitted = Fitted(self.graph, groups.trace.shapes.dtype, {})
        self.layers = {layer.index: layer for layer in layers}
        self.known: dict[str, Likeness] = {}

    def pass_node(self, index: int) -> None:
        """Find the likenesses of what a node makes, and forget those that nobody will read any more."""
        node = self.graph.nodes[index]
        layer = self.layers.get(index)
        found = self._born(layer) if layer else self._carried(node)
        for name in node.output:
            if found is not None and self.graph.readers[name] and self._holds(name):
                self.known[name] = found
        for name in node.input:
            if max(self.graph.readers[name], default=0) <= index:
                self.known.pop(name, None)

    def _holds(self, name: str) -> bool:
        return any(self.removed[self.groups.classes[block.ids]].any() for block in self.trace.of(name))

    def places(self, name: str, axis: int | None = None) -> tuple[int, Ids] | None:
        """(axis, class of every position) of the axis along which a tensor holds units that go."""
        for block in self.trace.of(name):
            units = self.groups.classes[block.ids]
            if len(block.axes) == 1 and axis in (None, block.axes[0]) and self.removed[units].any():
                return block.axes[0], units
        return None

    def _born(self, layer: Layer) -> Likeness | None:
        rank = self.trace.rank(layer.out)
        placed = self.places(layer.out, layer.y_axis % rank) if rank else None
        if placed is None:
            return None
        matrix = layer.read(self.trace.model)  # G K O
        groups, columns, each = matrix.shape
        bias = self.fitted.bias(layer, groups * each)
        units, first, count = np.unique(placed[1], return_index=True, return_counts=True)
        if bias is None or len(placed[1]) != groups * each or len(units) > MOST:
            return None
        filters = matrix.transpose(0, 2, 1).reshape(groups * each, -1)
        inner: Array | float = 1.0
        if groups > 1:
            before = self.known.get(layer.data)
            if columns == layer.taps() and before is not None and np.isin(units, before.units).all():
                at = np.searchsorted(before.units, units)
                inner = before.whole[np.ix_(at, at)]  # channelwise: on top of what it reads
            else:
                inner = np.equal.outer(first // each, first // each).astype(np.float64)  # the groups read other things
        order = np.argsort(placed[1], kind="stable")
        starts = np.cumsum(count) - count
        gram = np.zeros((len(units), len(units)))
        for k in range(int(count.max())):  # a unit may be several filters
            at = order[starts + np.minimum(k, count - 1)]
            rows = np.where((k < count)[:, None], filters[at], 0)
            gram += rows @ rows.T * inner
            if k:
                gram += np.outer(bias[at] * (k < count), bias[at] * (k < count))
        found = Likeness(units, gram, bias[first].copy())
        return found.settled() if layer.node.op_type in MADE else found  # integers end at a limit, often that of a Relu

    def _carried(self, node: NodeProto) -> Likeness | None:
        """What a node that is no layer makes of the likenesses of all that it reads."""
        weights = self.trace.model.weights
        data = [n for n in node.input if n and n not in weights]
        have = [like for n in data if (like := self.known.get(n)) is not None]
        if not have or len(have) < len(data):
            return None
        if len(have) > 1:
            return _together(node, have)
        return self._affine(node, data[0], have[0]) or self._nonlinear(node, have[0])

    def _nonlinear(self, node: NodeProto, before: Likeness) -> Likeness | None:
        """Behind an operator that treats all channels alike."""
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        if kind in traits.HOMOGENEOUS:
            return before.settled()
        weights = self.trace.model.weights
        scalars = all(weights[n].size == 1 for n in node.input if n in weights)
        return before.unscalable() if scalars and elementwise(kind) else None

    def _affine(self, node: NodeProto, tensor: str, before: Likeness) -> Likeness | None:
        placed, rank = self.places(tensor), self.trace.rank(tensor)
        if placed is None or rank is None:
            return None
        axis, classes = placed
        step = affine(node, tensor, self.trace.model, axis, rank, len(classes))
        if step is None:
            return None
        units, first = np.unique(classes, return_index=True)
        if not np.array_equal(units, before.units):
            return None
        return before.scaled(step.factor[first], step.constant[first])


def _together(node: NodeProto, have: Sequence[Likeness]) -> Likeness | None:
    """Of several tensors in one."""
    if node.op_type in TOGETHER:
        return reduce(Likeness.beside, have)
    return have[0].times(have[1]) if node.op_type == "Mul" and len(have) == 2 else None
