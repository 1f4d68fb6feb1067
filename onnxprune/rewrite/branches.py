"""Residual branches taken out of a rewritten graph: what read x + f(x) reads x.

Knows nodes and tensors, no importance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from onnx import NodeProto, helper

from onnxprune.model import Model, bodies, every_node, needs, rearranged, unneeded
from onnxprune.rewrite.bounds import Ranges
from onnxprune.trace import Branch, asked_instead, caches_of

IDEMPOTENT = frozenset({"Relu", "Clip", "Abs", "Ceil", "Floor", "Round", "Sign"})
"""Once more changes nothing: f(f(x)) = f(x)."""


def drop(model: Model, branches: Sequence[Branch]) -> None:
    """Take these branches out of a rewritten graph, in place, with all that only they need.

    branches: in the order of the graph."""
    if branches:
        dropping = _Dropping(model, caches_of(branches))
        dropping.ask_instead(asked_instead(branches))
        for branch in branches:
            dropping.drop(branch)
        dropping.finish()


@dataclass
class _Dropping:
    """caches: what goes with the branches. now: what is read in place of a tensor. gone: sums, and what follows them in
    vain. lost: tensors that a node read that stays. before: new nodes, by the number of the one they stand before."""

    model: Model
    caches: Set[str]
    now: dict[str, str] = field(default_factory=dict)
    gone: list[NodeProto] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    before: dict[int, list[NodeProto]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.nodes = every_node(self.model.skeleton.graph)
        self.makers = {o: n for n in self.nodes for o in n.output if o}
        self.number = {id(n): k for k, n in enumerate(self.nodes)}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in {*needs(node)}:
                self.readers[name].append(node)
        self.outputs = {o.name for o in self.model.skeleton.graph.output}
        self.ranges = Ranges(self.model, self.makers, self.now)

    def ask_instead(self, caches: Mapping[str, str]) -> None:
        """Let whoever asks for the sizes of a cache that goes ask for those of another one."""
        for past, other in caches.items():
            for node in (node for node in self.readers[past] if node.op_type == "Shape"):
                node.input[0] = other

    def drop(self, branch: Branch) -> None:
        """Let whoever reads the sum at the end of a branch read the stream that goes into it. Its caches go with it."""
        node = self.makers[branch.name]
        self._forget(branch.caches & self.caches)
        if node.op_type == "Add":
            self._replace(node, node.input[branch.stream])
            return
        self.lost.append(node.input[branch.operand])
        node.input[branch.operand] = self._nothing(node, node.input[branch.stream])
        total, biased = "".join(node.output[3:4]), any(node.input[4:5])
        if total and not biased and total not in self.outputs:
            self._stand_for(total, node.input[branch.stream])

    def _forget(self, caches: Set[str]) -> None:
        """Neither take nor give these."""
        graph = self.model.skeleton.graph
        for listed in (graph.input, graph.output):
            for info in [info for info in listed if info.name in caches]:
                listed.remove(info)
        self.outputs -= caches
        self.lost += sorted(caches)

    def _replace(self, node: NodeProto, stream: str) -> None:
        """A node goes, and with it activations that do nothing to what the stream is now."""
        out = node.output[0]
        self.gone.append(node)
        self._stand_for(out, stream)
        last = self.makers.get(self.now[out])
        for reader in list(self.readers[out]):
            repeats = last is not None and reader.op_type in IDEMPOTENT and _alike(reader, last)
            if repeats or (reader.input[0] == out and self.ranges.idle(reader, out)):
                self._replace(reader, out)

    def _stand_for(self, name: str, stream: str) -> None:
        self.now[name] = self.now.get(stream, stream)
        if name in self.outputs:
            node = self.makers[name]
            kept = helper.make_node("Identity", [self.now[name]], [name], name=f"{node.name}_stream")
            self.before[self.number[id(node)]].append(kept)

    def _nothing(self, node: NodeProto, like: str) -> str:
        """Zeros of the shape of a tensor, for an operator that adds and does more besides."""
        out = self.model.fresh_name(f"{node.name}_no_branch")
        self.before[self.number[id(node)]].append(helper.make_node("Sub", [like, like], [out], name=out))
        return out

    def finish(self) -> None:
        """Let everybody read what there is now, and drop what nobody needs any more."""
        own = {id(n) for n in self.gone}
        direct = {name for name, nodes in self.readers.items() if any(id(n) not in own for n in nodes)}
        fresh = [n for nodes in self.before.values() for n in nodes]
        for node in (*self.nodes, *fresh):
            if id(node) not in own:
                _read_instead(node, self.now)
        ordered = [n for k, node in enumerate(self.nodes) for n in (*self.before.get(k, ()), node)]
        dead = unneeded(self.model.skeleton.graph, self.model.weights, ordered, self.gone, self.lost)
        alive = {name for name in direct if any(id(n) not in dead for n in self.readers[name])}
        self._name_as_before(alive)
        rearranged(self.model.skeleton.graph, self.before, {}, lambda node: id(node) in dead)

    def _name_as_before(self, read: set[str]) -> None:
        """A stream is called after the last sum that became it where all who read it read that: so a refit compares it
        with what the sum was. read: names that somebody read who is still there."""
        last = {stream: name for name, stream in self.now.items()}
        for stream, name in last.items():
            node = self.makers.get(stream)
            others = {n for n, s in self.now.items() if s == stream and n != name} | {stream}
            if node is None or others & read or stream in self.outputs or others & self.outputs or name in self.outputs:
                continue
            node.output[list(node.output).index(stream)] = name
            for reader in (n for n in (*self.nodes, *(x for xs in self.before.values() for x in xs))):
                _read_instead(reader, {stream: name})


def _alike(one: NodeProto, two: NodeProto) -> bool:
    """Whether two nodes do the same to their first inputs."""
    same = one.op_type == two.op_type and one.domain == two.domain and list(one.input)[1:] == list(two.input)[1:]
    return same and list(one.attribute) == list(two.attribute)


def _read_instead(node: NodeProto, names: dict[str, str]) -> None:
    """Other tensors in the places of those named; in the bodies of a node, too."""
    for i, name in enumerate(node.input):
        if name in names:
            node.input[i] = names[name]
    for _, body in bodies(node):
        for inner in body.node:
            _read_instead(inner, names)
        for out in body.output:
            out.name = names.get(out.name, out.name)
