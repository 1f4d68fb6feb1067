"""What nobody needs once some nodes are gone. Knows nodes and tensors, no importance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, MutableMapping, Sequence

from onnx import GraphProto, NodeProto

from onnxprune.model.graph import bodies, needs, scopes
from onnxprune.model.weight import Weight


def unneeded(
    graph: GraphProto, weights: MutableMapping[str, Weight], nodes: Sequence[NodeProto],
    gone: Iterable[NodeProto] = (), lost: Iterable[str] = (),
) -> set[int]:  # fmt: skip
    """By `id`, the nodes that are `gone`, and what nobody but these read: sizes computed for them. `weights` that only
    they read go with them. nodes: all that are, or will be, in the graph; lost: tensors that others read no more."""
    dead = set[int]()
    reads = _reads(graph, nodes)
    makers = {o: n for n in nodes for o in n.output if o}
    todo = [*lost]
    for lost_node in gone:
        todo += _given_up(lost_node, dead, reads)
    while todo:
        name = todo.pop()
        if reads[name]:
            continue
        node = makers.get(name)
        if node is None:
            weights.pop(name, None)
        elif id(node) not in dead and not any(reads[o] for o in node.output):
            todo += _given_up(node, dead, reads)
    return dead


def _given_up(node: NodeProto, dead: set[int], reads: Counter[str]) -> list[str]:
    """What a node and its bodies read and read no more; they count among the dead from now on."""
    if id(node) in dead:
        return []
    dead.add(id(node))
    names = list(needs(node))
    reads.subtract(names)
    for _, body in bodies(node):
        reads.subtract(v.name for v in (*body.output, *body.input))
        for inner in body.node:
            names += _given_up(inner, dead, reads)
    return names


def _reads(graph: GraphProto, nodes: Sequence[NodeProto]) -> Counter[str]:
    """How often a tensor is read by these nodes, or goes into or out of a graph."""
    reads = Counter(name for n in nodes for name in needs(n))
    for scope in scopes(graph):
        reads.update(v.name for v in (*scope.graph.output, *scope.graph.input))
    return reads
