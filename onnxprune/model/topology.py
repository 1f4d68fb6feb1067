"""Who makes and who reads which tensor of a graph. Knows nodes and tensors, no operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from onnx import ModelProto, NodeProto

from onnxprune.model.graph import needs
from onnxprune.model.model import Model


class Topology:
    """Who makes and who reads which tensor of the main graph, by index of node. reads: of every node, with what its
    bodies take from outside; `made_by`, `readers`: of every tensor."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.nodes = list(model.skeleton.graph.node)
        self.reads = [set(needs(n)) for n in self.nodes]
        self.made_by = {o: k for k, n in enumerate(self.nodes) for o in n.output if o}
        self.readers: dict[str, set[int]] = defaultdict(set)
        for k, names in enumerate(self.reads):
            for name in names:
                self.readers[name].add(k)
        self.outputs = [o.name for o in model.skeleton.graph.output]

    @cached_property
    def expressions(self) -> set[int]:
        """Indices of the nodes into which parameters go and nothing else."""
        found, known = set[int](), set(self.model.weights)
        for k, node in enumerate(self.nodes):
            if self.reads[k] and self.reads[k] <= known:
                found.add(k)
                known.update(node.output)
        return found

    def ancestors(self, names: Sequence[str], stop: Container[str] = (), first: int = 0) -> set[int]:
        """Indices of all nodes, from `first` on, that the tensors depend on; `stop` tensors are not looked behind."""
        found, todo = set[int](), list(names)
        while todo:
            name = todo.pop()
            k = self.made_by.get(name)
            if k is not None and k >= first and name not in stop and k not in found:
                found.add(k)
                todo += self.reads[k]
        return found

    def followers(self, nodes: Iterable[int], known: Container[int] = ()) -> set[int]:
        """These nodes and all that depend on them, without those that are `known`, as is what depends on them."""
        todo, found = list(nodes), set[int]()
        while todo:
            k = todo.pop()
            if k not in found and k not in known:
                found.add(k)
                todo += [r for o in self.nodes[k].output for r in self.readers[o]]
        return found

    def reader(self, tensor: str) -> NodeProto | None:
        """The only reader of a tensor that is no output of the graph."""
        readers = self.readers[tensor]
        if len(readers) != 1 or tensor in self.outputs:
            return None
        node = self.nodes[next(iter(readers))]
        return node if list(node.input).count(tensor) == 1 else None

    def piece(self, nodes: Sequence[int], ins: Iterable[Any], outs: Iterable[Any]) -> Model:
        """These nodes as a model of their own; `ins` and `outs` describe what it is given and gives."""
        source = self.model.skeleton
        proto = ModelProto(
            ir_version=max(source.ir_version, 4), opset_import=source.opset_import, functions=source.functions
        )
        proto.graph.name = "piece"
        proto.graph.node.extend(self.nodes[k] for k in nodes)
        proto.graph.input.extend(ins)
        proto.graph.output.extend(outs)
        names = {n for k in nodes for n in needs(self.nodes[k])}  # which a refit may have changed
        return Model(proto, {n: self.model.weights[n] for n in names & self.model.weights.keys()})

    @property
    def makers(self) -> Mapping[str, NodeProto]:
        """The node that makes a tensor."""
        return _Makers(self)


class _Makers(Mapping[str, NodeProto]):
    """Looked up when asked: one dict for every layer that asks would be quadratic."""

    def __init__(self, graph: Topology) -> None:
        self.graph = graph

    def __getitem__(self, name: str) -> NodeProto:
        node: NodeProto = self.graph.nodes[self.graph.made_by[name]]
        return node

    def __iter__(self) -> Iterator[str]:
        return iter(self.graph.made_by)

    def __len__(self) -> int:
        return len(self.graph.made_by)
