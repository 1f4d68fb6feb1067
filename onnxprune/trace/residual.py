"""Residual branches: sums x + f(x), and the nodes that only f(x) needs, which a network can do without.

A branch is a unit of its own kind: one id, which every product inside it carries, so that costs, plans and masks know
it like any other. Knows nodes, tensors and sizes, no importance.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxprune.model import FLOATS, Topology
from onnxprune.trace.labels import Ids
from onnxprune.trace.tracing import Trace

SUMS = {"Add": (0, 1), "SkipLayerNormalization": (0, 1), "SkipSimplifiedLayerNormalization": (0, 1)}
"""Operators that add two streams, and the inputs that these are."""
HANDING_ON = frozenset({"Add", "Cast", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear"})
"""What stands between the branches of one stream: a sum with another branch, rounding, nothing."""


@dataclass(frozen=True)
class Branch:
    """A branch f(x) of a sum. name: the first tensor that the sum makes, which names it everywhere. node: the sum, by
    number; operand: which of its inputs is f(x), stream: which is x. nodes: those that nobody but the branch needs, by
    number. ids: [1], the id that stands for it."""

    name: str
    node: int
    operand: int
    stream: int
    nodes: frozenset[int]
    ids: Ids = field(compare=False)


def enter_branches(trace: Trace) -> None:
    """Find the branches of a traced graph, in its order, and give each an id, which its products carry from now on."""
    graph = Topology(trace.model)
    trace.branches = tuple(_found(trace, graph))
    for branch in trace.branches:
        for k in branch.nodes & trace.macs.keys():
            trace.macs[k] = tuple((count, (*blocks, branch.ids)) for count, blocks in trace.macs[k])


def _found(trace: Trace, graph: Topology) -> list[Branch]:
    outputs = {o.name for o in trace.model.skeleton.graph.output}
    found = []
    for k, node in enumerate(graph.nodes):
        for stream, operand in _ways(trace, graph, k):
            nodes = _only_for(graph, k, node.input[operand], outputs)
            works = any(j in trace.macs for j in nodes)
            if works and not any(trace.excluded(graph.nodes[j]) for j in (k, *nodes)):
                ids = trace.labels.fresh(("branch", node.output[0]), (1,))
                found.append(Branch(node.output[0], k, operand, stream, frozenset(nodes), ids))
                break
    return found


def _ways(trace: Trace, graph: Topology, k: int) -> list[tuple[int, int]]:
    """(stream, branch) of the inputs of a node: in which of both ways it is x + f(x), where x has all of its shape."""
    node = graph.nodes[k]
    places = SUMS.get(node.op_type, ())
    if len(node.input) < 2 or trace.shapes.dtype(node.output[0]) not in FLOATS:
        return []
    found = []
    for stream, operand in (places, places[::-1]) if places else ():
        x, branch = node.input[stream], node.input[operand]
        size = trace.shapes.sizes(node.output[0])
        if x == branch or size is None or trace.shapes.sizes(x) != size or branch not in graph.made_by:
            continue
        if _reads_what_was(graph, branch, _handed_on(graph, x)):
            found.append((stream, operand))
    return found


def _handed_on(graph: Topology, x: str) -> set[str]:
    """The tensors that a stream was, back through the sums with other branches; no weights."""
    found, todo = set[str](), [x]
    weights = graph.model.weights
    while todo:
        name = todo.pop()
        if name and name not in found and name not in weights:
            found.add(name)
            k = graph.made_by.get(name)
            if k is not None and graph.nodes[k].op_type in HANDING_ON:
                todo += graph.nodes[k].input
            elif k is not None and graph.nodes[k].op_type in SUMS and name != graph.nodes[k].output[0]:
                todo += graph.nodes[k].input[:2]
    return found


def _reads_what_was(graph: Topology, branch: str, stream: set[str]) -> bool:
    """Whether a branch depends on what its stream was before."""
    behind = graph.ancestors([branch], stream)
    return any(stream & graph.reads[k] for k in behind if graph.nodes[k].op_type != "Shape")


def _only_for(graph: Topology, total: int, branch: str, outputs: set[str]) -> set[int]:
    """The nodes of which nobody needs anything once the sum `total` no longer reads `branch`."""
    needed = outputs | (graph.reads[total] - {branch})
    gone, todo = {total}, [branch]
    while todo:
        k = graph.made_by.get(todo.pop())
        if k is None or k in gone:
            continue
        if not any(o in needed or graph.readers[o] - gone for o in graph.nodes[k].output if o):
            gone.add(k)
            todo += graph.reads[k]
    return gone - {total}
