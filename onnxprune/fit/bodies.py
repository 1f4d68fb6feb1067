"""The bodies of If, Loop and Scan as graphs of their own, with all that they are given whenever they run.

A branch runs once for a batch or not at all; the body of a Loop or a Scan runs in turns, of which some of every batch
are looked at. Its inputs are found by running the node once, with these as further outputs, one for each turn. A
parameter that a loop carries and hands on as it is bears its own name inside. Knows walks and bodies, no layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from onnxprune.errors import RuntimeFailure
from onnxprune.fit.walk import Walk
from onnxprune.model import Array, Model, attribute, bodies, captured, every_node, opset, renamed
from onnxprune.run import on_host

TURNS = 16
"""Of a batch that are looked at, evenly spread."""
Visit = tuple[int, int]
"""(batch, turn) in which a body runs."""
Visits = Mapping[Visit, Mapping[str, Array]]
"""What a body is given whenever it runs, by the names that it has inside."""


@dataclass(frozen=True)
class Body:
    """A body `graph` of a node, and `model`: a copy of it as a model that shares the weights. others: names of weights
    that something outside reads, too."""

    graph: GraphProto
    model: Model
    others: frozenset[str]

    @staticmethod
    def of(
        walk: Walk, index: int, name: str, others: frozenset[str] = frozenset(), common: frozenset[str] = frozenset()
    ) -> Body:
        """The body in attribute `name` of a node of a walk; `others`: what is read outside the graph of that walk;
        `common`: what other bodies of the node may read, too."""
        node = walk.nodes[index]
        graph = dict(bodies(node))[name]
        handed_on = invariant(node, graph, walk.model)
        model = _alone(graph, walk.model)
        renamed(model.graph, handed_on)
        read = {n for k, names in enumerate(walk.reads) if k != index for n in names}
        read |= {n for other, g in bodies(node) if other != name for n in captured(g)} - common
        read |= {n for n in node.input if n not in handed_on.values()} | set(walk.outputs)
        return Body(graph, model, others | read)

    def put_back(self) -> None:
        """Let the body read what the nodes of the copy read by now: parameters that were copied, or biases that are
        new."""
        for node, now, before in zip(every_node(self.graph), every_node(self.model.graph), self._before(), strict=True):
            for k, name in enumerate(now.input):
                if k >= len(before) or before[k] != name:
                    node.input.extend([""] * (k + 1 - len(node.input)))
                    node.input[k] = name

    def _before(self) -> list[list[str]]:
        """What the nodes of the copy read when it was made."""
        fresh = GraphProto()
        fresh.CopyFrom(self.graph)
        there = {i.name: j.name for i, j in zip(self.graph.input, self.model.graph.input, strict=True)}
        renamed(fresh, {a: b for a, b in there.items() if a != b})
        return [list(node.input) for node in every_node(fresh)]


def _alone(graph: GraphProto, model: Model) -> Model:
    """A copy of a body as the graph of a model with the weights of another: what is added to them or changed in one is
    so in the other, and no name is given twice."""
    source = model.skeleton
    proto = ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
    proto.graph.CopyFrom(graph)
    proto.graph.name = model.fresh_name(graph.name or "body")
    return replace(model, skeleton=proto, taken={})


def invariant(node: NodeProto, graph: GraphProto, model: Model) -> dict[str, str]:
    """Inputs of a body that are parameters: those that a Loop or a Scan is given and hands on from turn to turn as they
    are, with the names of these."""
    carried: Sequence[tuple[int, int]] = ()
    if node.op_type == "Loop":
        carried = [(i, i - 1) for i in range(2, len(node.input))]
    elif node.op_type == "Scan":
        carried = [(i, i) for i in range(len(node.input) - int(attribute(node, "num_scan_inputs", 0)))]
    same = {o: str(n.input[0]) for n in graph.node if n.op_type == "Identity" for o in n.output}
    found = {}
    for i, out in carried:
        name, given = graph.input[i].name, graph.output[out].name
        while given in same:
            given = same[given]
        if given == name and node.input[i] in model.weights:
            found[name] = str(node.input[i])
    return found


def visits(walk: Walk, index: int) -> dict[str, Visits]:
    """By attribute, when each body of a node runs in a walk and what it is given; RuntimeFailure where it cannot be
    run that way."""
    node = walk.nodes[index]
    found: dict[str, dict[Visit, Mapping[str, Array]]] = {}
    for name, graph in bodies(node):
        outside = [n for n in captured(graph) if n not in walk.model.weights]
        around = [{n: walk.value(n)[b] for n in outside} for b in range(walk.batches)]
        found[name] = {(b, t): around[b] | given for b, t, given in _turns(walk, index, name, graph)}
    return {name: dict(each) for name, each in found.items()}


def _turns(walk: Walk, index: int, name: str, graph: GraphProto) -> Iterator[tuple[int, int, dict[str, Array]]]:
    """(batch, turn, what the body is given as its inputs)"""
    node = walk.nodes[index]
    if node.op_type == "If":
        for b, taken in enumerate(walk.value(node.input[0])):
            if bool(np.ravel(taken)[0]) == (name == "then_branch"):
                yield b, 0, {}
        return
    if graph.initializer or (node.op_type == "Scan" and opset(walk.model) < 9):
        raise RuntimeFailure("this form of it is not followed")
    fixed = invariant(node, graph, walk.model)
    stacked = _stacked(walk, index, [i.name for i in graph.input if i.name not in fixed])
    for b in range(walk.batches):
        there = min((len(v[b]) for v in stacked.values()), default=0)
        for t in sorted(set(np.linspace(0, there - 1, min(there, TURNS)).round().astype(int).tolist())):
            yield b, t, {n: np.asarray(v[b][t]) for n, v in stacked.items()}


def _stacked(walk: Walk, index: int, names: Sequence[str]) -> dict[str, list[Array]]:
    """Of every batch what the body of a Loop or a Scan is given as these inputs, [turns, ..]."""
    ins = sorted(n for n in walk.reads[index] if n not in walk.model.weights)
    for n in ins:
        walk.value(n)
    model = walk.piece([index], map(walk.info, ins), ())
    node = model.graph.node[0]
    graph = next(g for _, g in bodies(node))
    expected = len(graph.output) - (node.op_type == "Loop")
    node.output.extend(f"{node.name}_unread_{k}" for k in range(len(node.output), expected))
    for a in node.attribute:
        if a.name in ("scan_output_axes", "scan_output_directions"):
            a.ints.extend([0] * len(names))
    outs = []
    for n in names:
        kind = walk.types(n)
        if kind is None:
            raise RuntimeFailure(f"the type of '{n}' is not known")
        graph.node.add().CopyFrom(helper.make_node("Identity", [n], [f"{n}_turn"]))
        graph.output.add().CopyFrom(helper.make_tensor_value_info(f"{n}_turn", kind, None))
        outs.append(f"{n}_turns")
        model.graph.output.add().CopyFrom(helper.make_tensor_value_info(outs[-1], kind, None))
    node.output.extend(outs)
    made = ([on_host(x) for x in every] for every in walk.through(model, ins, outs).values())
    return dict(zip(names, made, strict=True))
