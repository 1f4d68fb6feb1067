"""Put refitted weights and biases into a graph.

Knows who shares which parameter, no units.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.fit.codes import CODES, decoded, operand
from onnxprune.fit.expressions import Parameter
from onnxprune.fit.linear import Linear, Shift, Unsolvable
from onnxprune.fit.pieces import Pieces, moved
from onnxprune.fit.products import Layer
from onnxprune.fit.tails import Tail
from onnxprune.model import Array, Model, Topology, Weight


@dataclass(frozen=True)
class _Move:
    """Add `delta` to what `node` reads as its input `operand`: the parameter `old`, "" where there is none yet."""

    node: NodeProto
    operand: int
    old: str
    delta: Array

    @classmethod
    def of(cls, its: Tail, moved: Array) -> _Move:
        """The parameter of a tail that makes up for `moved` [outputs] in the layer's own offset."""
        shift = its.shift
        assert shift is not None
        delta = np.divide(its.scale * moved, shift.factor, where=shift.factor != 0, out=np.zeros_like(moved))
        return cls(shift.node, shift.operand, _operand(shift.node, shift.operand), shift.laid(delta))

    @property
    def key(self) -> tuple[str, bytes]:
        """Equal where one parameter can serve both."""
        return self.old, self.delta.tobytes()


@dataclass(frozen=True)
class Scales:
    """Of the weight of a layer, in the place of those that the parameter `name` holds."""

    layer: Layer
    name: str
    weight: Weight

    def model(self, before: Model) -> Model:
        """A model that has them, and all else of another."""
        return replace(before, weights={**before.weights, self.name: self.weight})


class Fitted:
    """The parameters of the layers of `graph`. `aliases` collects copies (new name -> old). others: names of those that
    something outside the graph reads, where that is a body."""

    def __init__(
        self, graph: Topology, types: Callable[[str], int | None], aliases: dict[str, str],
        others: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.graph, self.types, self.aliases, self.others = graph, types, aliases, others

    def readers(self, root: str, members: Container[int]) -> set[int]:
        """Indices of the nodes that read a parameter, seen through the expressions on it."""
        found, todo = set[int](), [root]
        while todo:
            for k in self.graph.readers[todo.pop()]:
                if k not in members and k in self.graph.expressions:
                    todo += self.graph.nodes[k].output
                else:
                    found.add(k)
        return found

    def own(self, members: Sequence[Linear]) -> bool:
        """Whether nobody but these layers reads what holds their matrix."""
        nodes = {m.index for m in members}
        return all(root not in self.others and self.readers(root, nodes) == nodes for root in members[0].roots)

    def bias(self, layer: Linear, outputs: int) -> Array | None:
        """The layer's own bias [outputs]; None where it is no parameter."""
        name = "" if layer.bias is None else _operand(layer.node, layer.bias)
        if not name:
            return np.zeros(outputs)
        own = self._own(layer.node, layer.bias or 0)
        value = None if own is None else own.read(self.graph.model)
        return None if value is None else layer.folded(value, outputs)

    def common_bias(self, members: Sequence[Linear], tails: Sequence[Tail], outputs: int) -> Array:
        """[outputs]: what all layers add; Unsolvable unless it is the same, and they are scaled alike, too."""
        biases = [b for m in members if (b := self.bias(m, outputs)) is not None]
        alike = len(biases) == len(members) and all(np.allclose(b, biases[0]) for b in biases)
        if not alike or not all(np.allclose(t.scale, tails[0].scale) for t in tails):
            raise Unsolvable("its bias or scale differs from use to use")
        return biases[0]

    def _own(self, node: NodeProto, k: int) -> Parameter | Pieces | None:
        own = operand(node, k, self.graph.model, self.graph.makers)
        pieces = None if own is not None else moved(node.input[k], self.graph)
        return pieces if isinstance(pieces, Pieces) else own

    def movable(self, shift: Shift | None) -> bool:
        """Whether a change of the offset has a parameter to go to."""
        if shift is None:
            return False
        if not _operand(shift.node, shift.operand):
            return True
        own = self.offset(shift)
        if isinstance(own, Pieces) and own.places.size != shift.laid(shift.factor).size:
            return False  # one number for several outputs
        if own is None or (isinstance(own, Parameter) and not own.path):
            return own is not None
        return all(root not in self.others and len(self.readers(root, ())) == 1 for root in own.roots)

    def offset(self, shift: Shift) -> Parameter | Pieces | None:
        """The parameter that a change of the offset goes to; None where it is absent or computed."""
        return self._own(shift.node, shift.operand) if _operand(shift.node, shift.operand) else None

    def rescaled(self, members: Sequence[Linear], matrix: Array) -> Scales | None:
        """Scales by which integers hold `matrix`, an output each, where the operator has them so and nobody else reads
        them; None where they stay."""
        weight, model = getattr(members[0], "weight", None), self.graph.model
        if not isinstance(members[0], Layer) or not isinstance(weight, Parameter) or len(members) > 1:
            return None
        found = weight.rescaled(model, members[0].restore(matrix, weight.shape(model)))
        if found is None or len(self.graph.readers[found[0]]) != 1 or found[0] in {*self.graph.outputs, *self.others}:
            return None
        return Scales(members[0], *found)

    def rescale(self, scales: Scales) -> None:
        """Write other scales; a bias in steps of them is written again."""
        layer, model = scales.layer, self.graph.model
        own = self._own(layer.node, layer.bias) if layer.bias is not None and _operand(layer.node, layer.bias) else None
        bias = None if own is None else own.read(model)
        model.weights[scales.name] = scales.weight
        if own is not None and bias is not None:
            own.write(model, bias)

    def move(self, tails: Sequence[Tail], moved: Array) -> None:
        """Change the offset of the layer's output by `moved`, where the tail says; shared parameters are copied."""
        if not moved.any():
            return
        moves = [_Move.of(its, moved) for its in tails]
        done: dict[tuple[str, bytes], str] = {}
        for move in moves:
            if move.key not in done:
                alike = {(_made(m.node), m.operand) for m in moves if m.key == move.key}
                done[move.key] = self._changed(move, alike) if move.old else self._added(move)
            fresh = done[move.key]
            if fresh != move.old:
                move.node.input.extend([""] * (move.operand + 1 - len(move.node.input)))
                move.node.input[move.operand] = fresh

    def _added(self, move: _Move) -> str:
        """A bias for a node that has none; one of integers reads it in steps of 32 bits."""
        out, model = move.node.output[0], self.graph.model
        fresh, code = model.fresh_name(f"{out}_bias"), CODES.get(move.node.op_type, {}).get(move.operand)
        model.weights[fresh] = Weight.of(move.delta, self.types(out) if code is None else TensorProto.INT32)
        own = None if code is None else decoded(Parameter(fresh, fresh), move.node, code, model)
        if own is not None:
            own.write(model, move.delta)
        return fresh

    def _changed(self, move: _Move, alike: Set[tuple[str, int]]) -> str:
        """Change a parameter in place, or a copy of it where others than those `alike` read it."""
        model, old = self.graph.model, move.old
        own = self._own(move.node, move.operand)
        assert own is not None
        if isinstance(own, Pieces):
            own.write(model, own.read(model) + move.delta.reshape(own.places.shape))
            return old
        alone = bool(own.path) or (old not in self.others and self._uses(own.root) <= alike)
        fresh = old if alone else model.fresh_name(f"{old}_refit")
        value = own.read(model)
        value = value if value.size == move.delta.size else np.broadcast_to(value.ravel(), move.delta.shape)
        own.write(model, value + move.delta.reshape(value.shape), None if alone else fresh)
        if not alone:
            self.aliases[fresh] = self.aliases.get(old, old)
        return fresh

    def _uses(self, root: str) -> set[tuple[str, int]]:
        """(what a node makes, input) wherever a parameter is read; input -1 in a body or an expression."""
        found = set()
        for node in (self.graph.nodes[r] for r in self.readers(root, ())):
            found |= {(_made(node), i) for i in [i for i, name in enumerate(node.input) if name == root] or [-1]}
        return found


def _operand(node: NodeProto, k: int) -> str:
    """The name of an input that may be absent."""
    return str(node.input[k]) if k < len(node.input) else ""


def _made(node: NodeProto) -> str:
    """The first output that has a name: it tells a node from any other."""
    return next((str(o) for o in node.output if o), "")
