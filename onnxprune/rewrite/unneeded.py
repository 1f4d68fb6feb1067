"""What nobody needs once some nodes are gone. Knows nodes and tensors, no importance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onnx import NodeProto

from onnxprune.model import Model, needs, scopes


def unneeded(model: Model, nodes: Sequence[NodeProto], gone: Sequence[NodeProto], lost: Sequence[str] = ()) -> set[int]:
    """By `id`, the nodes that are `gone`, and what nobody but these read: sizes computed for them. Weights that nobody
    else read go with them. lost: tensors that others read no more."""
    dead = {id(n) for n in gone}
    reads = _reads(model, [n for n in nodes if id(n) not in dead])
    makers = {o: n for n in nodes for o in n.output if o}
    todo = [*lost, *(name for n in gone for name in needs(n))]
    while todo:
        name = todo.pop()
        if reads[name]:
            continue
        node = makers.get(name)
        if node is None:
            model.weights.pop(name, None)
        elif id(node) not in dead and not any(reads[o] for o in node.output):
            dead.add(id(node))
            names = list(needs(node))
            reads.subtract(names)
            todo += names
    return dead


def _reads(model: Model, nodes: Sequence[NodeProto]) -> Counter[str]:
    """How often a tensor is read by these nodes, or goes into or out of a graph."""
    reads = Counter(name for n in nodes for name in needs(n))
    for scope in scopes(model.skeleton.graph):
        reads.update(v.name for v in (*scope.graph.output, *scope.graph.input))
    return reads
