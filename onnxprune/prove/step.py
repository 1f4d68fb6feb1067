"""A node of a quantised graph and the nodes in real numbers that take its place, as they are put together.

Knows one node, and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import Model, Weight, attribute, attributes

FLOAT = TensorProto.FLOAT
LIMITS: Mapping[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127), TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767), TensorProto.UINT4: (0, 15), TensorProto.INT4: (-8, 7),
}  # fmt: skip


class CannotUnround(Exception):
    """A node that rounds and cannot be written in real numbers, and why."""


class Graph(Protocol):
    """What is known of the tensors of the graph around a node. floats: what was an integer and is none now;
    types_before: of which type."""

    floats: set[str]
    types_before: dict[str, int]

    def known(self, name: str) -> int | None:
        """The element type of a tensor of the graph as it was."""

    def types(self, name: str) -> int | None:
        """The element type of a tensor as it is written."""

    def rank(self, name: str) -> int | None:
        """How many axes it has."""

    def kind(self, name: str, model: Model) -> int | None:
        """As `known`, of parameters of `model`, too."""


@dataclass
class Step:
    """One node, and the nodes that are to take its place."""

    graph: Graph
    model: Model
    node: NodeProto
    made: list[NodeProto] = field(default_factory=list)

    def has(self, i: int) -> bool:
        """Whether the node is given an input `i`."""
        return i < len(self.node.input) and bool(self.node.input[i])

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of an attribute of the node."""
        return attribute(self.node, name, default)

    def attrs(self, *but: str) -> dict[str, Any]:
        """All attributes of the node but these, by name."""
        return attributes(self.node, *but)

    def put(self, op_type: str, *inputs: str, **attrs: Any) -> str:
        """A node of these inputs; the name of what it makes."""
        out = self.model.fresh_name(f"{self.node.name}_{op_type.lower()}_real")
        self.made.append(helper.make_node(op_type, inputs, [out], name=self.model.fresh_name(f"{out}_node"), **attrs))
        return out

    def const(self, value: Any) -> str:
        """A new parameter; its name."""
        name = self.model.fresh_name(f"{self.node.name}_real")
        self.model.weights[name] = Weight.of(np.asarray(value))
        return name

    def cast(self, name: str) -> str:
        """A tensor as float32; the name of that."""
        out = self.model.fresh_name(f"{name}_float")
        self.made.append(helper.make_node("Cast", [name], [out], name=f"{out}_node", to=FLOAT))
        return out

    def rank(self, name: str) -> int | None:
        """How many axes a tensor has."""
        weight = self.model.weights.get(name)
        return len(weight.shape) if weight is not None else self.graph.rank(name)

    def image(self, op_type: str, x: str, *inputs: str, last: bool, **attrs: Any) -> str:
        """An operator that has channels first, of an image `x` that has them first or `last`; so has the result."""
        rank = self.rank(self.node.input[0]) or self.rank(self.node.output[0])
        if not last:
            return self.put(op_type, x, *inputs, **attrs)
        if rank is None:
            raise CannotUnround("its channels are last, and the number of its axes is not known")
        y = self.put(op_type, self.put("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)]), *inputs, **attrs)
        return self.put("Transpose", y, perm=[0, *range(2, rank), 1])

    def aligned(self, vector: str, like: str, axis: int | None) -> str:
        """A scale or zero point in float, along `axis` of a tensor; None: as it is broadcast."""
        out, rank = self.cast(vector), self.rank(like)
        own = self.rank(vector)
        if axis is None or own == 0:
            return out
        if own is None or rank is None or own > 1:
            raise CannotUnround("its scale has as many axes as its input, or their number is not known")
        shape = [1] * rank
        shape[axis % rank] = -1
        return self.put("Reshape", out, self.const(np.array(shape, np.int64)))

    def dequantized(self, x: int | str, scale: int, zero: int, axis: int | None = None) -> str:
        """(x - zero point) * scale, of inputs by their number."""
        name = self.node.input[x] if isinstance(x, int) else x
        out = self.cast(name)
        if self.has(zero):
            out = self.put("Sub", out, self.aligned(self.node.input[zero], name, axis))
        return self.put("Mul", out, self.aligned(self.node.input[scale], name, axis))

    def gives_quantized(self, y: str, scale: int, zero: int, axis: int | None = None, kind: int | None = None) -> None:
        """y / scale + zero point, inside the limits of the type, is what the node gives."""
        source = self.node.input[zero] if self.has(zero) else ""
        kind = kind or self.graph.kind(source, self.model) or self.graph.kind(self.node.output[0], self.model)
        if kind not in LIMITS:
            raise CannotUnround("it rounds to a type that is no integer")
        y = self.put("Div", y, self.aligned(self.node.input[scale], self.node.input[0], axis))
        if source:
            y = self.put("Add", y, self.aligned(source, self.node.input[0], axis))
        assert kind is not None
        self.gives_clipped(y, kind)

    def gives_clipped(self, y: str, kind: int) -> None:
        """y inside the limits of an integer type is what the node gives."""
        low, high = (self.const(np.float32(x)) for x in LIMITS[kind])
        self.gives(self.put("Min", self.put("Max", y, low), high))

    def gives(self, name: str, out: int = 0, whole: bool = True) -> None:
        """What the node's output is from now on. whole: it was of an integer type."""
        target = self.node.output[out]
        kind = FLOAT if whole else self.graph.types(target) or FLOAT
        self.made.append(
            helper.make_node("Cast", [name], [target], name=self.model.fresh_name(f"{target}_cast"), to=kind)
        )
        if whole:
            self.graph.floats.add(target)
            self.graph.types_before[target] = self.graph.known(target) or TensorProto.UINT8
