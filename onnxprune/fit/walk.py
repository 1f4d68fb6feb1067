"""Run a graph piece by piece over many batches: what was computed stays, and weights ahead of it may still change.

Knows nodes and tensors, no operator and no importance. Reconstruction walks two graphs side by side this way, each node
running once per batch however many layers are looked at on the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from onnxprune.errors import RuntimeFailure
from onnxprune.model import Model
from onnxprune.runtime import first_line, open_session
from onnxprune.trace import captured

Array = NDArray[Any]


class Topology:
    """Who makes and who reads which tensor of the main graph, by index of node."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.nodes = list(model.proto.graph.node)
        self.reads = [read_by(n) for n in self.nodes]
        self.made_by = {o: k for k, n in enumerate(self.nodes) for o in n.output if o}
        self.readers: dict[str, set[int]] = defaultdict(set)
        for k, names in enumerate(self.reads):
            for name in names:
                self.readers[name].add(k)
        self.outputs = [o.name for o in model.proto.graph.output]

    def ancestors(self, names: Sequence[str], stop: Container[str] = ()) -> set[int]:
        """Indices of all nodes that the tensors depend on; `stop` tensors are not looked behind."""
        found, todo = set[int](), list(names)
        while todo:
            name = todo.pop()
            k = self.made_by.get(name)
            if k is not None and name not in stop and k not in found:
                found.add(k)
                todo += self.reads[k]
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
        source = self.model.proto
        proto = ModelProto(
            ir_version=max(source.ir_version, 4), opset_import=source.opset_import, functions=source.functions
        )
        proto.graph.name = "piece"
        proto.graph.node.extend(self.nodes[k] for k in nodes)
        proto.graph.input.extend(ins)
        proto.graph.output.extend(outs)
        names = {n for k in nodes for n in read_by(self.nodes[k])}  # which a refit may have changed
        return Model(proto, {n: self.model.weights[n] for n in names & self.model.weights.keys()})

    @property
    def makers(self) -> dict[str, NodeProto]:
        """The node that makes a tensor."""
        return {o: self.nodes[k] for o, k in self.made_by.items()}


class Walk(Topology):
    """`model` over `feeds` (one dict of inputs a batch). `types` gives the ONNX element type of a tensor."""

    def __init__(
        self, model: Model, feeds: Sequence[Mapping[str, Array]], types: Callable[[str], int | None],
        providers: Sequence[str] = ("cpu",),
    ) -> None:  # fmt: skip
        super().__init__(model)
        self.types, self.providers = types, providers
        self.inputs = {name for feed in feeds for name in feed}
        self.batches = len(feeds)
        self.values: dict[str, list[Array]] = {n: [feed[n] for feed in feeds] for n in self.inputs}
        self.done: set[int] = set()
        self.taps: dict[int, str] = {}

    def tap(self, index: int) -> str:
        """The name of a node's first output; one that the graph gives no name gets one, for this walk only."""
        node = self.nodes[index]
        if node.output[0]:
            return str(node.output[0])
        if index not in self.taps:
            self.taps[index] = self.model.fresh_name(f"{self._named(index)}_tap")
            self.made_by[self.taps[index]] = index
        return self.taps[index]

    def _named(self, index: int) -> str:
        return next(str(o) for o in self.nodes[index].output if o)

    def makes(self, index: int) -> list[str]:
        """The tensors that a node makes."""
        return [*filter(None, self.nodes[index].output), *filter(None, [self.taps.get(index)])]

    def value(self, name: str) -> list[Array]:
        """The tensor's value in every batch, run for where it is not at hand."""
        if name in self.model.weights:
            return [self.model.weights[name].array()] * self.batches
        if name not in self.values:
            self._run([name])
        return self.values[name]

    def forget(self, nodes: Iterable[int]) -> None:
        """What these nodes and all that follow them made is stale: their weights changed."""
        todo, stale = list(nodes), set[int]()
        while todo:
            k = todo.pop()
            if k not in stale:
                stale.add(k)
                todo += [r for o in self.nodes[k].output for r in self.readers[o]]
        for k in stale:
            for o in self.makes(k):
                self.values.pop(o, None)
        self.done -= stale

    def release(self, keep: Iterable[str] = ()) -> None:
        """Let go of what no node that is still to run will read."""
        wanted = {*keep, *self.outputs, *self.inputs}
        for name in list(self.values):
            if name not in wanted and self.readers[name] <= self.done:
                del self.values[name]

    def _run(self, names: Sequence[str]) -> None:
        piece = sorted(self.ancestors(names, self.values))
        inside = set(piece)
        made = {o for k in piece for o in self.makes(k)}
        ins = sorted({n for k in piece for n in self.reads[k]} & (self.values.keys() - made))
        crossing = {o for o in made if self.readers[o] - inside - self.done or o in self.outputs}
        outs = sorted({n for n in (*names, *crossing) if n not in self.values})
        session = open_session(self._piece(piece, ins, outs), self.providers)
        kept: dict[str, list[Array]] = {o: [] for o in outs}
        for b in range(self.batches):
            try:
                results = session.run(outs, {n: self.values[n][b] for n in ins})
            except Exception as error:
                raise RuntimeFailure(f"ONNX Runtime failed on calibration batch {b}: {first_line(error)}") from error
            for o, x in zip(outs, results, strict=True):
                kept[o].append(x)
        self.values |= kept
        self.done |= inside

    def _piece(self, nodes: Sequence[int], ins: Sequence[str], outs: Sequence[str]) -> Model:
        model = self.piece(nodes, map(self._info, ins), map(self._info, outs))
        for k in self.taps.keys() & set(nodes):
            model.graph.node[nodes.index(k)].output[0] = self.taps[k]
        return model

    def _info(self, name: str) -> Any:
        for info in (*self.model.proto.graph.input, *self.model.proto.graph.output):
            if info.name == name and not info.type.HasField("tensor_type"):
                return info
        like = next((self._named(k) for k, tap in self.taps.items() if tap == name), name)
        kind = self.types(like)
        if kind is None:
            raise RuntimeFailure(f"tensor '{name}' has no known type, so the graph cannot be run piece by piece")
        values = self.values.get(name)  # the body of a Scan must know how many axes there are
        return helper.make_tensor_value_info(name, kind, [None] * values[0].ndim if values else None)


def read_by(node: NodeProto) -> set[str]:
    """Names of the tensors that a node, or a body inside it, reads."""
    names = {n for n in node.input if n}
    for a in node.attribute:
        for body in [a.g] if a.HasField("g") else list(a.graphs):
            names |= captured(body)
    return names
