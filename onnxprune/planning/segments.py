"""Pieces of a graph that a runtime runs as one: a contraction with what follows it, as models that can be timed alone.

Runtimes fuse activations, sums and normalisations into the convolution or matrix product before them, so that to time
operators one by one would count them twice. Every node that depends on an input is in exactly one segment. Knows
contractions and what is fused with them; nothing is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxprune.model import Model, Weight, needs
from onnxprune.rewrite import rewrite
from onnxprune.shapes import Inputs, Shapes
from onnxprune.trace import Groups, Ids, Mask, Trace, new_dims


@dataclass
class Segment:
    """Nodes by index; `blocks` as in Costs: the classes that cut it; `macs` of its contraction, if it has one."""

    nodes: list[int]
    blocks: tuple[Ids, ...]
    macs: float = 0.0
    inside: set[int] = field(default_factory=set)


@dataclass
class Segments:
    """All segments of a graph, and each of them as a model of its own at any widths. `at`: the sizes to run it at."""

    groups: Groups
    at: Shapes

    @property
    def trace(self) -> Trace:
        return self.groups.trace

    @cached_property
    def nodes(self) -> Sequence[NodeProto]:
        return list(self.trace.model.proto.graph.node)

    @cached_property
    def makers(self) -> dict[str, int]:
        return {o: i for i, node in enumerate(self.nodes) for o in node.output if o}

    @cached_property
    def constant(self) -> set[str]:
        """Tensors that depend on no input."""
        known = set(self.trace.model.weights)
        for node in self.nodes:
            if node.input and known.issuperset(needs(node)):
                known.update(node.output)
        return known

    @cached_property
    def found(self) -> list[Segment]:
        """A node without MACs belongs to the last of those it reads from, unless other units cut it."""
        out: list[Segment] = []
        home: dict[int, Segment] = {}
        for i, node in enumerate(self.nodes):
            if node.input and self.constant.issuperset(needs(node)):
                continue
            own = [self.groups.classes[b.ids].ravel() for o in node.output for b in self.trace.blocks.get(o, ())]
            units = set(np.unique(np.concatenate(own)).tolist()) if own else set()
            last = max((self.makers[x] for x in needs(node) if self.makers.get(x) in home), default=None)
            if i in self.trace.macs:
                macs, blocks = self.trace.macs[i]
                home[i] = Segment([], tuple(self.groups.classes[b] for b in blocks), macs, units)
                out.append(home[i])
            elif last is not None and units <= home[last].inside:
                home[i] = home[last]
            else:
                home[i] = Segment([], tuple(own), 0.0, units)
                out.append(home[i])
            home[i].nodes.append(i)
        return out

    def cut(self, segment: Segment, kept: Mask) -> tuple[Model, Inputs]:
        """The segment where only the ids of `kept` are left, and the sizes of its inputs."""
        model = rewrite(self._near(segment), kept).model
        makers = {o: k for k, node in enumerate(model.graph.node) for o in node.output if o}
        own = {o for i in segment.nodes for o in self.nodes[i].output}
        given = (set(self.makers) - own - self.constant) | {i.name for i in model.graph.input}
        ends = [o for i in segment.nodes for o in self.nodes[i].output if o and self._read_outside(o, segment)]
        used: set[int] = set()
        names: dict[str, None] = dict.fromkeys(ends)
        todo = list(ends)
        while todo:
            name = todo.pop()
            names[name] = None
            if name in makers and name not in given and makers[name] not in used:
                used.add(makers[name])
                todo += needs(model.graph.node[makers[name]])
        nodes = [model.graph.node[k] for k in sorted(used)]
        weights = {name: model.weights[name] for name in names if name in model.weights}
        graph = GraphProto(name="segment", node=nodes)
        sizes: Inputs = {}
        for name in names:
            if name not in given or name in weights:
                continue
            kind, value = self.trace.shapes.dtype(name) or 0, self.at.probe_value(0, name)
            if kind == TensorProto.INT64 and value is not None:  # sizes and indices
                weights[name] = Weight.of(value)
                continue
            dims = new_dims(self.at.probe[0][name], self.trace.of(name), kept)
            sizes[name] = tuple(int(d or 1) for d in dims)
            graph.input.append(helper.make_tensor_value_info(name, kind, sizes[name]))
        graph.output.extend(helper.make_tensor_value_info(o, self.trace.shapes.dtype(o) or 0, None) for o in ends)
        proto = ModelProto(ir_version=max(4, model.proto.ir_version), graph=graph)
        proto.opset_import.extend(model.proto.opset_import)
        graph_weights = Model(proto, {})
        for name, weight in weights.items():
            graph_weights._add(name, weight)
        return graph_weights, sizes

    def _near(self, segment: Segment) -> Trace:
        """The trace with nothing to rewrite but the segment and the constants that it reads."""
        inside, todo = set(segment.nodes), list(segment.nodes)
        while todo:
            fed = {self.makers[x] for x in needs(self.nodes[todo.pop()]) if x in self.constant and x in self.makers}
            todo += fed - inside
            inside |= fed
        read = {x for i in inside for x in needs(self.nodes[i])}
        touched = read | {o for i in inside for o in self.nodes[i].output}
        return replace(
            self.trace,
            slices={key: s for key, s in self.trace.slices.items() if s.parameter in read},
            edits=[(i, edit) for i, edit in self.trace.edits if i in inside],
            blocks={name: blocks for name, blocks in self.trace.blocks.items() if name in touched},
        )

    def _read_outside(self, name: str, segment: Segment) -> bool:
        return any(reader not in segment.nodes for reader in self.trace.readers.get(name, []))


def signature(model: Model, sizes: Inputs) -> list[Any]:
    """What decides how long a model takes: operators, attributes, shapes and types; no names and no weights."""
    number: dict[str, int] = {"": 0}
    weights = {
        name: [w.onnx_type, w.shape, w.array().tolist() if w.onnx_type == TensorProto.INT64 and w.size < 64 else 0]
        for name, w in model.weights.items()
    }
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    nodes = []
    for node in model.graph.node:
        names = [*node.input, *node.output]
        attributes = sorted(a.SerializeToString(deterministic=True).hex() for a in node.attribute)
        nodes.append([
            node.domain, node.op_type, attributes, [number.setdefault(x, len(number)) for x in names],
            [weights[x] if x in weights else [kinds[x], sizes.get(x)] if x in kinds else 0 for x in node.input],
        ])  # fmt: skip
    outputs = [number.get(o.name, -1) for o in model.graph.output]
    return [[[o.domain, o.version] for o in model.proto.opset_import], nodes, outputs]
