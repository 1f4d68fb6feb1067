"""A graph and the bodies of its If, Loop and Scan: one walk over all of them, and one numbering of their nodes.

A node of the main graph has its own place as number; those of the bodies come after the last of these, outer bodies
before inner ones. So whoever looks at the main graph only may go on counting as before. Knows protobuf,
no operator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, helper

_MAY_HOLD_GRAPHS = frozenset({AttributeProto.GRAPH, AttributeProto.GRAPHS, AttributeProto.UNDEFINED})
"""Types of attributes; the last one is that of files older than the field."""


@dataclass(frozen=True)
class Scope:
    """A graph, the numbers of its nodes, and of which node (and attribute) it is a body; the main graph is of none."""

    graph: GraphProto
    numbers: range
    owner: int = -1
    attribute: str = ""


def bodies(node: NodeProto) -> list[tuple[str, GraphProto]]:
    """The graphs in a node's attributes, by attribute."""
    holding = [a for a in node.attribute if a.type in _MAY_HOLD_GRAPHS]  # mostly none: asked of every node, again
    return [(a.name, g) for a in holding for g in graphs(a)]


def graphs(a: AttributeProto) -> Sequence[GraphProto]:
    """The graphs that an attribute holds, mostly none or one."""
    return [a.g] if a.HasField("g") else a.graphs


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, a text as str; `default` where the node has none of that name."""
    return next((value_of(a) for a in node.attribute if a.name == name), default)


def value_of(a: AttributeProto) -> Any:
    """The value of an attribute, a text as str."""
    value = helper.get_attribute_value(a)
    return value.decode() if isinstance(value, bytes) else value


def attributes(node: NodeProto, *but: str) -> dict[str, Any]:
    """The values of all attributes but these, by name; a text as bytes."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name not in but}


def scopes(graph: GraphProto) -> list[Scope]:
    """The graph and all bodies in it, outer before inner."""
    out = [Scope(graph, range(len(graph.node)))]
    for scope in out:  # which grows
        holding = (
            (number, a)
            for number, node in zip(scope.numbers, scope.graph.node, strict=True)
            for a in node.attribute
            if a.type in _MAY_HOLD_GRAPHS
        )
        for number, a in holding:
            for body in graphs(a):
                start = out[-1].numbers.stop
                out.append(Scope(body, range(start, start + len(body.node)), number, a.name))
    return out


def every_node(graph: GraphProto) -> list[NodeProto]:
    """All nodes, in the order of their numbers."""
    return [node for scope in scopes(graph) for node in scope.graph.node]


def nested(node: NodeProto) -> Iterator[NodeProto]:
    """The nodes in the bodies of a node, however deep."""
    for _, body in bodies(node):
        for inner in body.node:
            yield inner
            yield from nested(inner)


def needs(node: NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, those that its bodies take from outside included."""
    yield from filter(None, node.input)
    for _, body in bodies(node):
        yield from captured(body)


def captured(body: GraphProto) -> list[str]:
    """Names of outer tensors that a body, or one inside it, reads: each once, in order."""
    own = defined(body)
    names = chain((name for node in body.node for name in needs(node)), (o.name for o in body.output))
    return [name for name in dict.fromkeys(names) if name and name not in own]


def rearranged(
    graph: GraphProto, before: Mapping[int, Sequence[NodeProto]], after: Mapping[int, Sequence[NodeProto]],
    dead: Callable[[NodeProto], bool] = lambda node: False,
) -> None:  # fmt: skip
    """Put nodes before and after those of the given numbers, in the graph that holds them; drop the dead ones."""
    for scope in reversed(scopes(graph)):  # inner first: an outer graph is copied with what it holds
        parts = [
            (*before.get(k, ()), n, *after.get(k, ())) for k, n in zip(scope.numbers, scope.graph.node, strict=True)
        ]
        ordered = [n for part in parts for n in part if not dead(n)]
        if len(ordered) == len(scope.graph.node) and max(map(len, parts), default=1) == 1:
            continue
        copies = []
        for node in ordered:
            copy = NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del scope.graph.node[:]
        scope.graph.node.extend(copies)


def defined(graph: GraphProto) -> set[str]:
    """Names that a graph gives to its own tensors."""
    own = (
        {x.name for x in graph.input} | {x.name for x in graph.initializer} | {x for n in graph.node for x in n.output}
    )
    return {*own, *(s.values.name for s in graph.sparse_initializer)} - {""}


def renamed(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors in a body and in the bodies inside it, where these do not give the name to one of their own."""
    for node in graph.node:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                if name in names:
                    field[i] = names[name]
        for _, body in bodies(node):
            own = defined(body)
            renamed(body, {old: new for old, new in names.items() if old not in own})
    for info in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        info.name = names.get(info.name, info.name)


def make_names_distinct(graph: GraphProto, fresh: Callable[[str], str]) -> None:
    """Give every tensor in a body a name that no other graph uses: exporters repeat names in the branches of an If."""
    seen = defined(graph)
    for scope in scopes(graph)[1:]:
        own = defined(scope.graph)
        renamed(scope.graph, {name: fresh(name) for name in sorted(own & seen)})
        seen |= defined(scope.graph)


def retain(entries: Any, stays: Callable[[Any], bool]) -> None:
    """Drop the entries of a repeated field of messages that do not stay. A field that keeps all is not touched."""
    left = [e for e in entries if stays(e)]
    if len(left) < len(entries):
        copies = [type(e).FromString(e.SerializeToString()) for e in left]
        del entries[:]
        entries.extend(copies)


def forget_shapes(graph: GraphProto, changed: Collection[str]) -> None:
    """Drop the sizes that a graph and its bodies declare of tensors that changed. What goes into and out of a body
    keeps its number of axes: runtimes ask for that."""
    every = scopes(graph)
    for scope in every:
        retain(scope.graph.value_info, lambda v: v.name not in changed)
    for scope in every[1:]:
        for info in (*scope.graph.input, *scope.graph.output):
            if info.name in changed:
                for dim in info.type.tensor_type.shape.dim:
                    dim.ClearField("dim_value")
