"""Shapes inside the bodies of If, Loop and Scan, and of what comes out of them.

What a loop carries has the shape that it begins with only where one run of the body gives that shape back: the axes for
which it does are found by trying, the others are unknown. Nothing that is carried has a known value. Knows shapes and
values, no ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from onnxprune.model import bodies, defined, scopes
from onnxprune.shapes.node_view import Kind, Sizes
from onnxprune.shapes.symbolic_values import Value
from onnxprune.shapes.symbols import Dim

Kinds = list[Kind | None]


@dataclass(frozen=True)
class Body:
    """A body whose nodes can be inferred: `run` adds what it learns to the dictionaries of kinds and values."""

    graph: GraphProto
    run: Callable[[], None]
    kinds: dict[str, Kind]
    values: dict[str, Value]
    give: Callable[[str, Kind], None]

    def at(self, inputs: Sequence[Kind | None]) -> Kinds:
        """The kinds of its outputs where its inputs are of these."""
        for name in (n for scope in scopes(self.graph) for n in defined(scope.graph)):
            self.kinds.pop(name, None)
            self.values.pop(name, None)
        for info, kind in zip(self.graph.input, inputs, strict=False):
            if kind is not None:
                self.give(info.name, kind)
        for tensor in self.graph.initializer:
            self.kinds[tensor.name] = (tensor.data_type, tuple(tensor.dims))
        self.run()
        return [self.kinds.get(o.name) or _declared(o) for o in self.graph.output]

    def settled(self, carried: Sequence[Kind | None], given: Callable[[Sequence[Kind | None]], Kinds]) -> Kinds:
        """The kinds of its outputs; `given` makes its inputs from what is carried, of which outputs come first."""
        states = list(carried)
        while True:
            out = self.at(given(states))
            merged = [common(a, b) for a, b in zip(states, out, strict=False)]
            if merged == states:
                return out
            states = merged


def _declared(info: ValueInfoProto) -> Kind | None:
    """The type that a body declares; not the shape, which may be stale."""
    kind = info.type.tensor_type.elem_type
    return (kind, None) if kind else None


def common(a: Kind | None, b: Kind | None) -> Kind | None:
    """What two tensors, of which one or the other is there, have in common."""
    if a is None or b is None or isinstance(a, bytes) or isinstance(b, bytes):
        return a if a == b else None
    if a[0] != b[0]:
        return None
    if a[1] is None or b[1] is None or len(a[1]) != len(b[1]):
        return a[0], None
    return a[0], tuple(x if x == y else None for x, y in zip(a[1], b[1], strict=True))


def infer(
    node: NodeProto, kinds: Sequence[Kind | None], taken: bool | None, body: Callable[[GraphProto], Body]
) -> Kinds:
    """The kinds of a node's outputs. `taken`: the condition of an If, where it is known."""
    graphs = dict(bodies(node))
    try:
        return {"If": _if, "Loop": _loop, "Scan": _scan}[node.op_type](node, kinds, taken, graphs, body)
    except (KeyError, IndexError):  # a body or an input is missing: the model cannot run, and nothing is known
        return []


def _if(
    node: NodeProto, kinds: Sequence[Kind | None], taken: bool | None, graphs: Mapping[str, GraphProto],
    body: Callable[[GraphProto], Body],
) -> Kinds:  # fmt: skip
    then, otherwise = (body(graphs[name]).at(()) for name in ("then_branch", "else_branch"))
    if taken is not None:
        return then if taken else otherwise
    return [common(a, b) for a, b in zip(then, otherwise, strict=False)]


def _loop(
    node: NodeProto, kinds: Sequence[Kind | None], taken: bool | None, graphs: Mapping[str, GraphProto],
    body: Callable[[GraphProto], Body],
) -> Kinds:  # fmt: skip
    counters: Kinds = [(TensorProto.INT64, ()), (TensorProto.BOOL, ())]
    states = list(kinds[2:])
    condition: Kinds = [(TensorProto.BOOL, ())]
    out = body(graphs["body"]).settled([*condition, *states], lambda carried: [*counters, *carried[1:]])
    ends = [common(a, b) for a, b in zip(states, out[1:], strict=False)]
    return [*ends, *(_stacked(kind, 0, None) for kind in out[1 + len(states) :])]


def _scan(
    node: NodeProto, kinds: Sequence[Kind | None], taken: bool | None, graphs: Mapping[str, GraphProto],
    body: Callable[[GraphProto], Body],
) -> Kinds:  # fmt: skip
    states, given, gives = scan_parts(node)
    if len(kinds) != len(graphs["body"].input):  # the form of opset 8, with a batch of its own
        return []
    slices: Kinds = []
    length: Dim | None = None
    for kind, axis in zip(kinds[states:], given, strict=True):
        dims = kind[1] if isinstance(kind, tuple) else None
        if kind is None or dims is None or isinstance(kind, bytes):
            slices.append(kind if kind is None or isinstance(kind, bytes) else (kind[0], None))
            continue
        axis %= len(dims)
        length = dims[axis]
        slices.append((kind[0], dims[:axis] + dims[axis + 1 :]))
    out = body(graphs["body"]).settled(kinds[:states], lambda carried: [*carried, *slices])
    ends = [common(a, b) for a, b in zip(kinds[:states], out, strict=False)]
    return [*ends, *(_stacked(kind, axis, length) for kind, axis in zip(out[states:], gives, strict=False))]


def scan_parts(node: NodeProto) -> tuple[int, list[int], list[int]]:
    """Of a Scan: how many states it carries, and the axes of what is scanned and of what is gathered."""
    found = {a.name: a for a in node.attribute}
    scanned = int(found["num_scan_inputs"].i)
    states = len(node.input) - scanned
    given = list(found["scan_input_axes"].ints) if "scan_input_axes" in found else [0] * scanned
    gathered = len(node.output) - states
    gives = list(found["scan_output_axes"].ints) if "scan_output_axes" in found else [0] * gathered
    return states, given, gives


def _stacked(kind: Kind | None, axis: int, length: Dim | None) -> Kind | None:
    """One of these for every turn, along a new axis."""
    if not isinstance(kind, tuple):
        return None
    dims: Sizes | None = kind[1]
    if dims is None:
        return kind[0], None
    axis %= len(dims) + 1
    return kind[0], (*dims[:axis], length, *dims[axis:])
