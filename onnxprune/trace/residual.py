"""Residual branches: sums x + f(x), and the nodes that only f(x) needs, which a network can do without.

A branch is a unit of its own kind: one id, which every product inside it carries, so that costs, plans and masks know
it like any other. Where whole heads of caches may go, the cache of an attention goes with it. Knows nodes, tensors and
sizes, no importance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from onnx import NodeProto

from onnxprune.model import FLOATS, Topology, attribute
from onnxprune.shapes import Size
from onnxprune.trace.labels import Ids

if TYPE_CHECKING:
    from onnxprune.trace.tracing import Trace

SUMS = {"Add": (0, 1), "SkipLayerNormalization": (0, 1), "SkipSimplifiedLayerNormalization": (0, 1)}
"""Operators that add two streams, and the inputs that these are."""
HANDING_ON = frozenset({"Add", "Cast", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear"})
"""What stands between the branches of one stream: a sum with another branch, rounding, nothing."""


@dataclass(frozen=True)
class Branch:
    """A branch f(x) of a sum. name: the first tensor that the sum makes, which names it everywhere. node: the sum, by
    number; operand: which of its inputs is f(x), stream: which is x. nodes: those that nobody but the branch needs, by
    number. caches: inputs and outputs of the graph that hold what it remembers, and go with it. sized: the inputs among
    these whose open sizes others ask for (the length of the past is asked of one layer for all), each with the other
    caches that have the same. ids: [1], the id that stands for it."""

    name: str
    node: int
    operand: int
    stream: int
    nodes: frozenset[int]
    caches: frozenset[str]
    sized: Mapping[str, tuple[str, ...]] = field(compare=False)
    ids: Ids = field(compare=False)


def caches_of(branches: Iterable[Branch]) -> set[str]:
    """The inputs and outputs of the graph that go with these branches."""
    every = [*branches]
    stay = {past for past, instead in asked_instead(every).items() if past == instead}
    return {name for branch in every for name in branch.caches} - stay


def asked_instead(branches: Iterable[Branch]) -> dict[str, str]:
    """Of the caches that go with these branches and whose sizes others ask for, the one to ask instead: one that stays.
    The first of them itself where there is none, which then stays for its sizes."""
    every = [*branches]
    gone, found = {name for branch in every for name in branch.caches}, dict[str, str]()
    for past, alike in sorted((past, alike) for branch in every for past, alike in branch.sized.items()):
        found[past] = next((name for name in alike if name not in gone or found.get(name) == name), past)
    return found


def enter_branches(trace: Trace) -> None:
    """Find the branches of a traced graph, in its order, and give each an id, which its products carry from now on."""
    graph = Topology(trace.model)
    trace.branches = tuple(_found(trace, graph))
    for branch in trace.branches:
        for k in branch.nodes & trace.macs.keys():
            trace.macs[k] = tuple((count, (*blocks, branch.ids)) for count, blocks in trace.macs[k])


def _found(trace: Trace, graph: Topology) -> list[Branch]:
    search, found = _Search(trace, graph), []
    for k, node in enumerate(graph.nodes):
        for stream, operand in _ways(trace, graph, k):
            nodes, caches = search.only_for(k, node.input[operand], node.input[stream])
            works = any(j in trace.macs for j in nodes)
            if works and not any(trace.excluded(trace.nodes[j]) for j in (k, *nodes)):
                ids = trace.labels.fresh(("branch", node.output[0]), (1,))
                found.append(
                    Branch(node.output[0], k, operand, stream, nodes, caches, search.sized(caches, nodes), ids)
                )
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
    readers = {k for x in stream for k in graph.readers[x] if graph.nodes[k].op_type != "Shape"}
    return bool(readers) and not readers.isdisjoint(graph.ancestors([branch], stream, min(readers)))


@dataclass(frozen=True)
class _Search:
    """What only a branch needs: nodes, and where whole heads of caches may go, its caches."""

    trace: Trace
    graph: Topology

    @cached_property
    def _outputs(self) -> set[str]:
        return {o.name for o in self.trace.model.skeleton.graph.output}

    def only_for(self, total: int, branch: str, stream: str) -> tuple[frozenset[int], frozenset[str]]:
        """The nodes of which nobody needs anything once the sum `total` no longer adds `branch` to `stream`, and the
        caches that only they use."""
        caches = self._read_by(branch, stream)
        while True:
            held = {name for outputs in caches.values() for name in outputs}
            nodes = self._without(total, branch, held)
            whole = {past: outs for past, outs in caches.items() if self._is_whole(past, outs, nodes)}
            if whole == caches:
                for scope in self.trace.scopes:
                    nodes |= {*scope.numbers} if scope.owner in nodes else set()
                return frozenset(nodes), frozenset({*caches, *held})
            caches = whole

    def _read_by(self, branch: str, stream: str) -> dict[str, list[str]]:
        """The caches that a branch reads."""
        if not self.trace.kv_heads:
            return {}
        behind = self.graph.ancestors([branch], {stream})
        read = {name for k in behind for name in self.graph.reads[k]}
        return {past: outs for past, outs in self.trace.caches.items() if past in read}

    def _is_whole(self, past: str, outs: Sequence[str], nodes: set[int]) -> bool:
        """Whether a cache is read and made by these nodes only, but for sizes that another cache has, too."""
        others = self.graph.readers[past] - nodes
        asked = not others or (bool(self._alike(past)) and all(self._asks_open_sizes(k, past) for k in others))
        return asked and {self.graph.made_by.get(name, -1) for name in outs} <= nodes

    def sized(self, caches: Iterable[str], nodes: Iterable[int]) -> dict[str, tuple[str, ...]]:
        """See `Branch`."""
        inputs = self.trace.caches.keys() & {*caches}
        return {past: self._alike(past) for past in inputs if self.graph.readers[past] - {*nodes}}

    def _alike(self, past: str) -> tuple[str, ...]:
        """The other caches that have the same sizes, wherever they are open."""
        own = self._open_sizes(past)
        return tuple(name for name in self.trace.caches if name != past and self._open_sizes(name) == own)

    def _open_sizes(self, name: str) -> list[Size | None]:
        return [size if isinstance(size, Size) else None for size in self.trace.shapes.sizes(name) or ()]

    def _asks_open_sizes(self, k: int, past: str) -> bool:
        """Whether a node asks for the shape of a cache, and all who read that for open sizes in it."""
        node, open_sizes = self.graph.nodes[k], self._open_sizes(past)
        if node.op_type != "Shape":
            return False
        asked = open_sizes[attribute(node, "start", 0) : attribute(node, "end")]
        readers = [self.graph.nodes[j] for j in self.graph.readers[node.output[0]]]
        return None not in asked or (
            node.output[0] not in self._outputs and all(self._takes_some(reader, asked) for reader in readers)
        )

    def _takes_some(self, node: NodeProto, sizes: Sequence[Size | None]) -> bool:
        """Whether a node takes out of these sizes none but open ones."""
        places = self.graph.model.weights.get(node.input[1]) if node.op_type == "Gather" else None
        return places is not None and all(sizes[k] is not None for k in places.array().ravel().tolist())

    def _without(self, total: int, branch: str, held: set[str]) -> set[int]:
        """The nodes of which nobody needs anything without a branch and these outputs."""
        graph = self.graph
        needed = (self._outputs - held) | (graph.reads[total] - {branch})
        gone, todo = {total}, [branch, *sorted(held)]
        while todo:
            k = graph.made_by.get(todo.pop())
            if k is None or k in gone:
                continue
            if not any(o in needed or graph.readers[o] - gone for o in graph.nodes[k].output if o):
                gone.add(k)
                todo += graph.reads[k]
        return gone - {total}
