"""Shapes inside the bodies of If, Loop and Scan, and of what comes out of them.

What a loop carries has the shape that it begins with only where one run of the body gives that shape back: the axes for
which it does are found by trying, the others are unknown. Nothing that is carried has a known value. Knows shapes and
values, no ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from onnxprune.model import bodies, defined, scopes
from onnxprune.shapes.node_view import SymbolicDims, ValueType, ValueTypes
from onnxprune.shapes.symbolic_values import Value
from onnxprune.shapes.symbols import Dim


@dataclass(frozen=True)
class Body:
    """A body whose nodes can be inferred: `run` adds what it learns to the dictionaries of types and values."""

    graph: GraphProto
    run: Callable[[], None]
    types: dict[str, ValueType]
    values: dict[str, Value]
    give: Callable[[str, ValueType], None]

    def at(self, inputs: ValueTypes) -> ValueTypes:
        """The types of its outputs where its inputs are of these."""
        for name in (n for scope in scopes(self.graph) for n in defined(scope.graph)):
            self.types.pop(name, None)
            self.values.pop(name, None)
        for info, value_type in zip(self.graph.input, inputs, strict=False):
            if value_type is not None:
                self.give(info.name, value_type)
        for tensor in self.graph.initializer:
            self.types[tensor.name] = (tensor.data_type, tuple(tensor.dims))
        self.run()
        return [self.types.get(o.name) or _declared(o) for o in self.graph.output]

    def settled(self, carried: ValueTypes, given: Callable[[ValueTypes], ValueTypes]) -> ValueTypes:
        """The types of its outputs; `given` makes its inputs from what is carried, of which outputs come first."""
        states = list(carried)
        while True:
            out = self.at(given(states))
            merged = [common(a, b) for a, b in zip(states, out, strict=False)]
            if merged == states:
                return out
            states = merged


def _declared(info: ValueInfoProto) -> ValueType | None:
    """The type that a body declares; not the shape, which may be stale."""
    value_type = info.type.tensor_type.elem_type
    return (value_type, None) if value_type else None


def common(a: ValueType | None, b: ValueType | None) -> ValueType | None:
    """What two tensors, of which one or the other is there, have in common."""
    if a is None or b is None or isinstance(a, bytes) or isinstance(b, bytes):
        return a if a == b else None
    if a[0] != b[0]:
        return None
    if a[1] is None or b[1] is None or len(a[1]) != len(b[1]):
        return a[0], None
    return a[0], tuple(x if x == y else None for x, y in zip(a[1], b[1], strict=True))


def infer(node: NodeProto, types: ValueTypes, taken: bool | None, body: Callable[[GraphProto], Body]) -> ValueTypes:
    """The types of a node's outputs. `taken`: the condition of an If, where it is known."""
    inside = {name: body(graph) for name, graph in bodies(node)}
    try:
        if node.op_type == "If":
            return _if(inside["then_branch"], inside["else_branch"], taken)
        return _loop(inside["body"], types) if node.op_type == "Loop" else _scan(node, inside["body"], types)
    except (KeyError, IndexError):  # a body or an input is missing: the model cannot run, and nothing is known
        return []


def _if(then_branch: Body, else_branch: Body, taken: bool | None) -> ValueTypes:
    then, otherwise = then_branch.at(()), else_branch.at(())
    if taken is not None:
        return then if taken else otherwise
    return [common(a, b) for a, b in zip(then, otherwise, strict=False)]


def _loop(body: Body, types: ValueTypes) -> ValueTypes:
    counters: ValueTypes = [(TensorProto.INT64, ()), (TensorProto.BOOL, ())]
    states = list(types[2:])
    condition: ValueTypes = [(TensorProto.BOOL, ())]
    out = body.settled([*condition, *states], lambda carried: [*counters, *carried[1:]])
    ends = [common(a, b) for a, b in zip(states, out[1:], strict=False)]
    return [*ends, *(_stacked(value_type, 0, None) for value_type in out[1 + len(states) :])]


def _scan(node: NodeProto, body: Body, types: ValueTypes) -> ValueTypes:
    states, given, gives = scan_parts(node)
    if len(types) != len(body.graph.input):  # the form of opset 8, with a batch of its own
        return []
    slices: list[ValueType | None] = []
    length: Dim | None = None
    for value_type, axis in zip(types[states:], given, strict=True):
        dims = value_type[1] if isinstance(value_type, tuple) else None
        if value_type is None or dims is None or isinstance(value_type, bytes):
            slices.append(value_type if value_type is None or isinstance(value_type, bytes) else (value_type[0], None))
            continue
        axis %= len(dims)
        length = dims[axis]
        slices.append((value_type[0], dims[:axis] + dims[axis + 1 :]))
    out = body.settled(types[:states], lambda carried: [*carried, *slices])
    ends = [common(a, b) for a, b in zip(types[:states], out, strict=False)]
    return [*ends, *(_stacked(value_type, axis, length) for value_type, axis in zip(out[states:], gives, strict=False))]


def scan_parts(node: NodeProto) -> tuple[int, list[int], list[int]]:
    """Of a Scan: how many states it carries, and the axes of what is scanned and of what is gathered."""
    found = {a.name: a for a in node.attribute}
    scanned = int(found["num_scan_inputs"].i)
    states = len(node.input) - scanned
    given = list(found["scan_input_axes"].ints) if "scan_input_axes" in found else [0] * scanned
    gathered = len(node.output) - states
    gives = list(found["scan_output_axes"].ints) if "scan_output_axes" in found else [0] * gathered
    return states, given, gives


def _stacked(value_type: ValueType | None, axis: int, length: Dim | None) -> ValueType | None:
    """One of these for every turn, along a new axis."""
    if not isinstance(value_type, tuple):
        return None
    dims: SymbolicDims | None = value_type[1]
    if dims is None:
        return value_type[0], None
    axis %= len(dims) + 1
    return value_type[0], (*dims[:axis], length, *dims[axis:])
