"""Put refitted weights and biases into a graph.

Knows who shares which parameter, no units.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.expressions import Parameter, parameter
from onnxprune.fit.linear import Linear, Shift
from onnxprune.fit.tails import Tail
from onnxprune.model import Topology, Weight, traits

Array = NDArray[Any]


class Fitted:
    """The parameters of the layers of `graph`. `aliases` collects copies (new name -> old)."""

    def __init__(self, graph: Topology, types: Callable[[str], int | None], aliases: dict[str, str]) -> None:
        self.graph, self.types, self.aliases = graph, types, aliases

    def readers(self, root: str, members: Container[int]) -> set[int]:
        """Indices of the nodes that read a parameter, seen through the expressions on it."""
        found, todo = set[int](), [root]
        while todo:
            for k in self.graph.readers[todo.pop()]:
                node = self.graph.nodes[k]
                if k not in members and node.op_type in traits.CARRYING_PARAMETERS:
                    todo += node.output
                else:
                    found.add(k)
        return found

    def own(self, members: Sequence[Linear]) -> bool:
        """Whether nobody but these layers reads what holds their matrix."""
        nodes = {m.index for m in members}
        return all(self.readers(root, nodes) == nodes for root in members[0].roots)

    def bias(self, layer: Linear, outputs: int) -> Array | None:
        """The layer's own bias [outputs]; None where it is no parameter."""
        k = layer.bias
        if k is None or len(layer.node.input) <= k or not layer.node.input[k]:
            return np.zeros(outputs)
        own = self._parameter(layer.node.input[k])
        value = None if own is None else own.read(self.graph.model)
        return None if value is None else layer.folded(value, outputs)

    def _parameter(self, name: str) -> Parameter | None:
        return parameter(name, self.graph.model, self.graph.makers)

    def movable(self, shift: Shift | None) -> bool:
        if shift is None:
            return False
        if len(shift.node.input) <= shift.operand or not shift.node.input[shift.operand]:
            return True
        own = self._parameter(shift.node.input[shift.operand])
        return own is not None and (not own.path or len(self.readers(own.root, ())) == 1)

    def move(self, tails: Sequence[Tail], moved: Array) -> None:
        """Change the offset of the layer's output by `moved`, where the tail says; shared parameters are copied."""
        if not moved.any():
            return
        model, done = self.graph.model, dict[tuple[str, bytes], str]()
        moves = []
        for its in tails:
            assert its.shift is not None
            node, k, factor = its.shift.node, its.shift.operand, its.shift.factor
            delta = np.divide(its.scale * moved, factor, where=factor != 0, out=np.zeros_like(moved))
            moves.append((node, k, node.input[k] if len(node.input) > k else "", its.shift.laid(delta)))
        for node, k, old, delta in moves:
            key = (old, delta.tobytes())
            if key in done:
                fresh = done[key]
            elif not old:
                fresh = model.fresh_name(f"{node.output[0]}_bias")
                kind = self.types(node.output[0])
                model.weights[fresh] = Weight.of(delta, kind)
            else:
                own = self._parameter(old)
                assert own is not None
                alike = {(_made(n), i) for n, i, name, d in moves if (name, d.tobytes()) == key}
                fresh = old if own.path or self._uses(own.root) <= alike else model.fresh_name(f"{old}_refit")
                value = own.read(model)
                value = value if value.size == delta.size else np.broadcast_to(value.ravel(), delta.shape)
                own.write(model, value + delta.reshape(value.shape), None if fresh == old else fresh)
                if fresh != old:
                    self.aliases[fresh] = self.aliases.get(old, old)
            done[key] = fresh
            if old != fresh:
                node.input.extend([""] * (k + 1 - len(node.input)))
                node.input[k] = fresh

    def _uses(self, root: str) -> set[tuple[str, int]]:
        """(what a node makes, input) wherever a parameter is read; input -1 in a body or an expression."""
        found = set()
        for node in (self.graph.nodes[r] for r in self.readers(root, ())):
            found |= {(_made(node), i) for i in [i for i, name in enumerate(node.input) if name == root] or [-1]}
        return found


def _made(node: NodeProto) -> str:
    """The first output that has a name: it tells a node from any other."""
    return next((str(o) for o in node.output if o), "")
