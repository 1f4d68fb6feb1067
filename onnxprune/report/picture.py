"""The layers of a model in their order, with their widths before and after: what a picture of the graph draws.

Operators that only carry channels on (activations, normalisations, reshapes) are left out, and what they connect is
connected. Knows groups and the graph, no page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from onnxprune.model import FLOATS, Scope, bodies, needs
from onnxprune.planning import profile
from onnxprune.results import PicturedLayer
from onnxprune.trace import KEPT, Groups, Ids, Mask, kept_shape

SIZES = ("Shape", "Size")
"""Operators that tell the size of a tensor, and nothing of what is in it."""
Operand = tuple[str, tuple[int, int]]
"""A parameter, and the use of it: number of a node, and of its input."""
Shape = tuple[int, ...]


def drawn(groups: Groups, kept: Mask) -> dict[str, Any]:
    """The fields of a report that say what was pruned: `layers`, and in `files` the name of the model, where it has
    one."""
    path = groups.trace.model.path
    return {"layers": pictured(groups, kept), "files": {} if path is None else {"model": str(path)}}


def pictured(groups: Groups, kept: Mask) -> tuple[PicturedLayer, ...]:
    """Every operator that multiplies or has a matrix, and those at which branches meet, in the order of the graph, with
    what is left where only `kept` [ids] stay. Inputs that are no floats (tokens, masks, positions), and what is made of
    these alone without a matrix, are not drawn; the others stand before their first reader, outputs behind what makes
    them."""
    walk = _Walk(groups, kept)
    walk.enter(groups.trace.scopes[0])
    return tuple(walk.widened())


class _Walk:
    """sources: by tensor, the layers that it comes from; -k is the k-th of the `inputs`, which are drawn when they are
    read, at `places`. fixed: by tensor that depends on no input, the parameters that it is made of. homes: by class,
    the group of a unit or row that may go; counts: how many parameters that are multiplied by have it."""

    def __init__(self, groups: Groups, kept: Mask) -> None:
        self.groups, self.kept, self.trace = groups, kept, groups.trace
        self.gone = {o for b in self.trace.dropped(kept) for k in b.nodes for o in self.trace.nodes[k].output}
        graph, weights = self.trace.model.graph, self.trace.model.weights
        self.inputs = [i.name for i in graph.input if i.type.tensor_type.elem_type in FLOATS and i.name not in weights]
        self.outputs = {o.name for o in graph.output}
        self.found: list[tuple[PicturedLayer, str]] = []
        self.places: dict[int, int] = {}
        self.sources: dict[str, tuple[int, ...]] = {name: (-k,) for k, name in enumerate(self.inputs, 1)}
        self.fixed: dict[str, tuple[Operand, ...]] = {}
        self.slices: dict[str, list[Any]] = defaultdict(list)
        self.homes: dict[int, str] = {}
        self.counts = np.zeros(len(groups.prunable), np.int64)
        for component in groups.components():
            name = groups.name(component)
            for k in component:
                self.slices[groups.blocks[k][0].parameter].append(groups.blocks[k])
                units = np.unique(groups.classes[groups.blocks[k][2]])
                self.homes |= dict.fromkeys(units[groups.prunable[units]].tolist(), name)
        self.homes |= {row: self.homes[min(units)] for row, units in groups.rows.items()}

    def drawn(self, layer: PicturedLayer, tensor: str = "") -> tuple[int, ...]:
        """Where a layer stands that gives `tensor`: its own place, the source of whatever reads that."""
        sources = tuple(self._place(source) for source in layer.sources)
        self.found.append((replace(layer, sources=sources), tensor))
        return (len(self.found) - 1,)

    def widened(self) -> Iterator[PicturedLayer]:
        """The layers with their widths, which are known when all have been seen."""
        for layer, tensor in self.found:
            width, group = self._width(tensor)
            width = (width[0], 0) if width and tensor in self.gone else width
            yield replace(layer, width=width, group=group)

    def _place(self, source: int) -> int:
        """Where a source stands in the list; an input that nobody has read goes to its end."""
        if source < 0 and source not in self.places:
            (self.places[source],) = self.drawn(PicturedLayer(self.inputs[-source - 1], "input"))
        return self.places.get(source, source)

    def merged(self, names: Iterable[str]) -> tuple[int, ...]:
        """The layers that tensors come from, each once."""
        return tuple(dict.fromkeys(chain.from_iterable(self.sources.get(name, ()) for name in names)))

    def enter(self, scope: Scope) -> None:
        """The nodes of a graph, in their order."""
        for index, node in zip(scope.numbers, scope.graph.node, strict=True):
            operands = tuple(self._operands(index, node.input))
            if self._prepares(index, node):
                self.fixed |= dict.fromkeys(node.output, operands)
                continue
            sources = self._through(index, node, operands)
            self.sources |= dict.fromkeys(node.output, sources)
            for name in filter(self.outputs.__contains__, node.output if sources else ()):
                self.drawn(PicturedLayer(name, "output", sources), name)

    def _prepares(self, index: int, node: Any) -> bool:
        """Whether a node only prepares parameters for others: it sees no input, multiplies nothing and has no body."""
        weights, alone = self.trace.model.weights, index not in self.trace.macs and not any(bodies(node))
        return alone and all(name in self.fixed or name in weights for name in needs(node))

    def _through(self, index: int, node: Any, operands: Sequence[Operand]) -> tuple[int, ...]:
        """The sources of what a node gives: itself where it is drawn, else those of what it is given."""
        if node.op_type in SIZES:
            return ()
        sources = self._inside([s for s in self.trace.scopes if s.owner == index], self.merged(needs(node)))
        shapes = {name: self._shapes(name, use) for name, use in operands}
        for _, _, ids in chain.from_iterable(self.slices[name] for name in shapes if index in self.trace.macs):
            self.counts[np.unique(self.groups.classes[ids])] += 1
        if len(sources) < 2 and not _matrices(shapes) and not (sources and index in self.trace.macs):
            return sources
        layer = PicturedLayer(node.name, node.op_type, sources, macs=self._macs(index), shapes=shapes)
        return self.drawn(layer, node.output[0])

    def _inside(self, inner: Sequence[Scope], sources: tuple[int, ...]) -> tuple[int, ...]:
        """What a node hands on: the layers that end in its bodies, where these hold some; else what it is given."""
        for body in inner:
            self.sources |= dict.fromkeys((i.name for i in body.graph.input), sources)
            self.enter(body)
        return self.merged(o.name for body in inner for o in body.graph.output) or sources

    def _operands(self, index: int, names: Iterable[str]) -> Iterator[Operand]:
        """The parameters with ids that a node reads, also behind others that only prepare them."""
        for i, name in enumerate(names):
            if name in self.slices:
                yield name, (index, i)
            yield from self.fixed.get(name, ())

    def _shapes(self, name: str, use: tuple[int, int]) -> tuple[Shape, Shape]:
        """Of a parameter, as a use of it has it, before and after."""
        before = tuple(self.trace.model.weights[name].shape)
        own = [part for part in self.slices[name] if not part[0].uses or use in part[0].uses]
        cells = next((s.cells for s, _, _ in own), None)
        after = list(before if cells is None else cells.shape)
        for _, axes, ids in own:
            left = kept_shape(ids, self.kept)
            for axis, n, of in zip(axes, left or (), ids.shape, strict=bool(left)):
                after[axis] = after[axis] // of * n
        return before, tuple(after) if cells is None else cells.stored_shape(after)

    def _width(self, tensor: str) -> tuple[tuple[int, int] | None, str]:
        """Channels of a tensor before and after, and their group. Of several axes with ids (channels, and positions
        that are embedded) they are the one that most parameters are multiplied along, or that may go."""
        blocks: list[Ids] = [b.ids for b in self.trace.blocks.get(tensor, ())]
        if not blocks:
            return None, ""
        ids = max(blocks, key=self._rank)
        return (ids.size, int(self.kept[ids].sum())), self._home(ids)

    def _home(self, ids: Ids) -> str:
        return next((self.homes[c] for c in self.groups.classes[ids].ravel().tolist() if c in self.homes), "")

    def _rank(self, ids: Ids) -> tuple[int, bool, int]:
        classes = self.groups.classes[ids[ids != KEPT]]
        return int(self.counts[classes].max(initial=0)), bool(self._home(ids)), ids.size

    def _macs(self, index: int) -> tuple[int, int]:
        """Multiply-accumulates of a node, before and after, of one sample."""
        products = self.trace.macs.get(index, ())
        return (
            round(sum(count for count, _ in products)),
            round(sum(count * profile.share(blocks, self.kept) for count, blocks in products)),
        )


def _matrices(shapes: Mapping[str, tuple[Shape, Shape]]) -> bool:
    """Whether any of these parameters has more than one axis that is longer than one."""
    return any(sum(n > 1 for n in before) > 1 for before, _ in shapes.values())
