"""Layers between which channels pass without anything that tells them apart: values and the product that reads them
(attention only averages them), or queries and keys, of which only inner products count.

Such channels may be exchanged for any others that span the same: W R and R^-1 W' compute what W and W' do. Knows
layers, operators that are linear in a tensor, and units; no values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from onnx import NodeProto

from onnxprune.fit.expressions import Parameter
from onnxprune.fit.finding import layers, shared
from onnxprune.fit.fitted import Fitted
from onnxprune.fit.linear import Linear
from onnxprune.fit.products import Layer
from onnxprune.fit.sites import sums_by_node, units_made, units_of
from onnxprune.fit.tails import Tail, tail
from onnxprune.model import Topology, attribute, traits
from onnxprune.trace import Groups, Ids, Mask

MOVES = (traits.MOVING - {"Concat", "Tile"}) | {"Dropout"}
"""What passes is moved or repeated, and nothing comes beside it."""
FUSED = {"Attention": 2, "MultiHeadAttention": 2, "GroupQueryAttention": 2}
"""Operators that average one of their inputs by the inner products of the two before it."""


@dataclass(frozen=True)
class Maker:
    """A layer that makes channels, what adds to them, and where those of a set lie: [copies, channels]."""

    layer: Linear
    tail: Tail
    at: Ids


@dataclass(frozen=True)
class Pair:
    """A set of channels that pass from one layer to another, or that two make and a product sums over. alive
    [channels]: those that stay. reader: the layer that reads them and where, if it is one. centred: whether the second
    of two makers makes the keys, whose mean counts nothing."""

    makers: tuple[Maker, ...]
    alive: Mask
    reader: Linear | None = None
    centred: bool = True
    at: Ids = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    @property
    def looked_at(self) -> list[Linear]:
        """The layers of whose inputs statistics are needed."""
        return [self.reader] if self.reader is not None else [maker.layer for maker in self.makers]


class Pairs:
    """Those of a graph from which `kept` ids stay."""

    def __init__(self, groups: Groups, kept: Mask) -> None:
        self.groups, self.trace, self.alive = groups, groups.trace, groups.alive(kept)
        self.graph = Topology(self.trace.model)
        self.fitted = Fitted(self.graph, self.trace.shapes.dtype, {})
        sums = sums_by_node(self.trace)
        self.makers: dict[int, list[tuple[Layer, Ids]]] = defaultdict(list)
        self.readers: dict[int, list[tuple[Layer, Ids]]] = defaultdict(list)
        found = [m[0] for m in shared(layers(self.trace.model, self.trace.rank)) if len(m) == 1 and self.fitted.own(m)]
        for layer in found:
            if not isinstance(layer, Layer) or layer.groups > 1 or layer.window or not self._float(layer):
                continue
            for sides, ids in ((self.makers, units_made(groups, layer) if layer.out else None),
                               (self.readers, units_of(groups, layer, sums[layer.index]))):  # fmt: skip
                if ids is not None:
                    for unit in np.unique(ids):
                        sides[int(unit)].append((layer, ids[0]))
        self.roots = self._roots()

    def _float(self, layer: Layer) -> bool:
        """Whether its weight is kept as it is read, so that other numbers can stand there as exactly."""
        if not isinstance(layer.weight, Parameter):
            return False
        quantised = any(node.op_type == "DequantizeLinear" for node in layer.weight.path)
        kind = self.trace.model.weights[layer.weight.root].dtype.kind
        return not quantised and bool(kind == "f")

    def _roots(self) -> dict[int, set[str]]:
        """Parameters in which each unit lives."""
        found: dict[int, set[str]] = defaultdict(set)
        for s, _, ids in self.groups.blocks:
            for unit in np.unique(self.groups.classes[ids]).tolist():
                found[unit].add(s.parameter)
        return found

    def __iter__(self) -> Iterator[Pair]:
        for units in self._sets():
            if self.alive[units].any() and not self.alive[units].all():
                pair = self._pair(units)
                if pair is not None:
                    yield pair

    def _sets(self) -> Iterator[Ids]:
        """Units that the same layers make and read inside the same rows (heads)."""
        holders = self.groups.holders()
        found: dict[object, list[int]] = defaultdict(list)
        for unit, made in self.makers.items():
            if self.groups.prunable[unit] and len(made) <= 2:
                sides = tuple(side[0].index for side in (*made, *self.readers[unit]))
                found[len(made), sides, tuple(sorted(holders.get(unit, ())))].append(unit)
        for units in found.values():
            if len(units) > 1:
                yield np.array(sorted(units))

    def _pair(self, units: Ids) -> Pair | None:
        """None where something tells the channels apart, or reads them elsewhere."""
        made, read = self.makers[int(units[0])], self.readers[int(units[0])]
        makers = [self._maker(layer, ids, units) for layer, ids in made]
        known = [m for m in makers if m is not None]
        if len(known) < len(made) or self._strange(units, [*(m.layer for m in known), *(layer for layer, _ in read)]):
            return None
        ends = [self._ends(m.tail.end, set(units.tolist())) for m in known]
        return self._to_reader(known, ends, read, units) if read else self._to_product(known, ends, self.alive[units])

    def _to_reader(
        self, makers: Sequence[Maker], ends: Sequence[set[int] | None], read: Sequence[tuple[Layer, Ids]], units: Ids
    ) -> Pair | None:  # fmt: skip
        """Of channels that one layer makes and one reads."""
        reader, at = read[0][0], _places(read[0][1], units)
        if len(makers) > 1 or len(read) > 1 or at is None or ends != [{reader.index}]:
            return None
        return Pair(tuple(makers), self.alive[units], reader, at=at)

    @staticmethod
    def _to_product(makers: Sequence[Maker], ends: Sequence[set[int] | None], alive: Mask) -> Pair | None:
        """Of channels that two layers make, or one twice, and a product sums over."""
        if not ends[0] or ends[0] != ends[-1]:
            return None
        if len(makers) == 2:
            return Pair(tuple(makers), alive)
        if len(makers[0].at) != 2:
            return None
        twice = (replace(makers[0], at=makers[0].at[k : k + 1]) for k in range(2))
        return Pair(tuple(twice), alive, centred=False)

    def _strange(self, units: Ids, own: Sequence[Linear]) -> bool:
        """Whether something else than these layers, with what adds to them, has a parameter of the channels."""
        known = {root for layer in own for root in layer.roots}
        for layer in own:
            end, node = layer.out, layer.node
            known |= set(node.input)
            while (reader := self.graph.reader(end)) is not None and reader.op_type in (*traits.ARITHMETIC, "Identity"):
                known |= set(reader.input)
                end = reader.output[0]
        return any(self.roots[int(u)] - known for u in units)

    def _maker(self, layer: Layer, ids: Ids, units: Ids) -> Maker | None:
        """None where its offset is no parameter of its own, or its channels are scaled differently."""
        at, its = _places(ids, units), tail(layer, self.graph, len(ids), self.trace.rank(layer.out))
        if at is None or not its.scale[0] or (its.scale != its.scale[0]).any():
            return None
        bias = self.fitted.bias(layer, len(ids))
        if bias is None:
            return None
        if (its.scale * bias + its.offset).any():
            name = "" if its.shift is None else str(its.shift.node.input[its.shift.operand])
            if its.shift is None or len(self.graph.readers[name]) != 1 or name not in self.trace.model.weights:
                return None
        return Maker(layer, its, at)

    def _ends(self, start: str, units: set[int]) -> set[int] | None:
        """The nodes that sum the channels up; None where one before them may tell them apart."""
        ends, todo, seen = set[int](), [start], {start}
        while todo:
            tensor = todo.pop()
            if tensor in self.graph.outputs:
                return None
            for index in self.graph.readers[tensor]:
                node = self.graph.nodes[index]
                passed = self._passed(node, tensor, units)
                if passed is None:
                    return None
                if not passed and self._sums(node, tensor):
                    ends.add(index)
                todo += [o for o in passed if o not in seen]
                seen.update(passed)
        return ends

    def _passed(self, node: NodeProto, tensor: str, units: set[int]) -> list[str] | None:
        """The tensors in which a node hands the channels on; None where it may tell them apart."""
        passed = [o for o in node.output if o and self._holds(o, units)]
        if not passed:  # they are summed, or it takes sizes, or the part of others in a common tensor
            known = node.op_type in traits.SIZES | MOVES or self._sums(node, tensor)
            return [] if known else None
        through = all(self._holds(o, units, True) for o in passed) and self._passes(node, tensor, units)
        return passed if through else None

    def _holds(self, tensor: str, units: set[int], every: bool = False) -> bool:
        """Whether a tensor has one of the channels, or all of them."""
        there = {u for b in self.trace.of(tensor) for u in np.unique(self.groups.classes[b.ids]).tolist()} & units
        return there == units if every else bool(there)

    def _sums(self, node: NodeProto, tensor: str) -> bool:
        """Whether a node sums over the channels: a product, or the scores of an attention."""
        if node.op_type in FUSED:
            return self._plain(node) and list(node.input).index(tensor) < FUSED[node.op_type]
        return node.op_type in ("MatMul", "Gemm", "FusedMatMul")

    @staticmethod
    def _plain(node: NodeProto) -> bool:
        """Whether a fused attention only averages: nothing turns queries and keys, or is kept of them."""
        return not attribute(node, "do_rotary", 0) and sum(map(bool, node.output)) == 1

    def _passes(self, node: NodeProto, tensor: str, units: set[int]) -> bool:
        """Whether a node does to every channel what it does to any other."""
        others = [n for n in node.input if n and n != tensor]
        if node.op_type in MOVES:
            return bool(node.input[0] == tensor)
        if node.op_type in ("Mul", "Div"):
            return all(self._one(n) for n in others) and (node.op_type == "Mul" or node.input[0] == tensor)
        if node.op_type in FUSED:
            return self._plain(node) and list(node.input).index(tensor) == FUSED[node.op_type]
        return bool(node.op_type == "MatMul") and not any(self._holds(n, units) for n in others)

    def _one(self, name: str) -> bool:
        """Whether a tensor is one number."""
        dims = self.trace.shapes.static(name)
        return dims is not None and None not in dims and prod(n or 0 for n in dims) == 1


def _places(ids: Sequence[int] | Ids, units: Ids) -> Ids | None:
    """[copies, channels]: where a layer has each of the units, the k-th of one beside the k-th of the others."""
    found = [np.flatnonzero(np.asarray(ids) == u) for u in units]
    return np.stack(found, 1) if len({len(f) for f in found}) == 1 and len(found[0]) else None
