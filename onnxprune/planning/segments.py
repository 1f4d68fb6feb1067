"""Pieces of a graph that a runtime runs as one: a contraction with what follows it, as models that can be timed alone.

Runtimes fuse activations, sums and normalisations into the convolution or matrix product before them, so that to time
operators one by one would count them twice. Every node that depends on an input is in exactly one segment. Knows
contractions and what is fused with them; nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import Model, Topology, Weight, needs
from onnxprune.rewrite import rewrite
from onnxprune.shapes import Inputs, Shapes
from onnxprune.trace import Groups, Ids, Mask, Trace, new_dims

FRONT = "front_of_"
"""How the name of a node begins that is put before a segment, and is no part of it."""


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
        """The trace of the graph."""
        return self.groups.trace

    @cached_property
    def graph(self) -> Topology:
        """Who makes and reads what in the whole graph."""
        return Topology(self.trace.model)

    @cached_property
    def constant(self) -> set[str]:
        """Tensors that depend on no input."""
        known = set(self.trace.model.weights)
        for node, reads in zip(self.graph.nodes, self.graph.reads, strict=True):
            if node.input and known.issuperset(reads):
                known.update(node.output)
        return known

    @cached_property
    def found(self) -> list[Segment]:
        """A node without MACs belongs to the last of those it reads from, unless other units cut it."""
        out: list[Segment] = []
        home: dict[int, Segment] = {}
        made_by = self.graph.made_by
        for i, (node, reads) in enumerate(zip(self.graph.nodes, self.graph.reads, strict=True)):
            if node.input and self.constant.issuperset(reads):
                continue
            own = [self.groups.classes[b.ids].ravel() for o in node.output for b in self.trace.blocks.get(o, ())]
            units = set(np.unique(np.concatenate(own)).tolist()) if own else set()
            last = max((made_by[x] for x in reads if made_by.get(x) in home), default=None)
            if i in self.trace.macs:
                home[i] = self._contraction(i, units)
                out.append(home[i])
            elif last is not None and units <= home[last].inside:
                home[i] = home[last]
            else:
                home[i] = Segment([], tuple(own), 0.0, units)
                out.append(home[i])
            home[i].nodes.append(i)
        return out

    def _contraction(self, node: int, units: set[int]) -> Segment:
        """Of a node with MACs: what cuts several products of it cuts its time once."""
        products = self.trace.macs[node]
        apart = {int(branch.ids[0]) for branch in self.trace.branches}
        cuts = (b for _, cut_by in products for b in cut_by if b.size > 1 or int(b.flat[0]) not in apart)
        blocks = {(b.shape, b.tobytes()): self.groups.classes[b] for b in cuts}
        return Segment([], tuple(blocks.values()), sum(count for count, _ in products), units)

    def cut(self, segment: Segment, kept: Mask) -> tuple[Model, Inputs]:
        """The segment where only the ids of `kept` are left, and the sizes of its inputs."""
        model = rewrite(self._near(segment), kept).model
        graph = Topology(model)
        ends, given = self._borders(segment)
        nodes = sorted(graph.ancestors(ends, given))
        reads = dict.fromkeys(name for k in nodes for name in needs(graph.nodes[k]))
        fed = [name for name in reads if name in given and name not in model.weights]
        numbers = {name: weight for name in fed if (weight := self._number(name)) is not None}
        sizes = {name: self._size(name, kept) for name in fed if name not in numbers}
        alone = graph.piece(
            nodes,
            [helper.make_tensor_value_info(name, self._kind(name), dims) for name, dims in sizes.items()],
            [helper.make_tensor_value_info(name, self._kind(name), None) for name in ends],
        )
        alone.weights.update(numbers)
        return alone, self._with_fronts(alone, sizes)

    def _with_fronts(self, alone: Model, sizes: Mapping[str, tuple[int, ...]]) -> Inputs:
        """Put a convolution before what one makes in the whole graph; the sizes of what is given now."""
        found = dict(sizes)
        for name, size in sizes.items():
            readers = [node for node in alone.graph.node if name in needs(node)]
            if name in self.convolved and len(size) == 4 and all(_any_layout(node, name) for node in readers):
                del found[name]
                found[_put_before(alone, name, size[1])] = (size[0], 1, *size[2:])
        return found

    @cached_property
    def convolved(self) -> set[str]:
        """Tensors that a convolution makes, or what a runtime fuses with one: it may keep them in a layout of its own,
        of which another convolution needs to have a plain one made."""
        nodes = self.graph.nodes
        by = [segment for segment in self.found if any(nodes[k].op_type == "Conv" for k in segment.nodes)]
        made = {name for segment in by for k in segment.nodes for name in nodes[k].output}
        return {name for name in made if self._kind(name) == TensorProto.FLOAT}

    def _borders(self, segment: Segment) -> tuple[list[str], set[str]]:
        """The tensors that others read of a segment, and all that it could be given: inputs of the graph, and what
        depends on them and other segments make."""
        made = [o for i in segment.nodes for o in self.graph.nodes[i].output if o]
        inside = set(segment.nodes)
        ends = [o for o in made if not inside.issuperset(self.trace.readers.get(o, []))]
        inputs = {i.name for i in self.trace.model.graph.input}
        return ends, (self.graph.made_by.keys() - set(made) - self.constant) | inputs

    def _size(self, name: str, kept: Mask) -> tuple[int, ...]:
        """The shape of a tensor where only `kept` is left; of what is open or empty, 1."""
        dims = new_dims(self.at.probe[0][name], self.trace.of(name), kept)
        return tuple(int(d or 1) for d in dims)

    def _kind(self, name: str) -> int:
        """The type of a tensor, 0 where it is not known."""
        return self.trace.shapes.dtype(name) or 0

    def _number(self, name: str) -> Weight | None:
        """A size or an index that the segment is given: its value, if it is known at these sizes."""
        value = self.at.probe_value(0, name)
        return Weight.of(value) if self._kind(name) == TensorProto.INT64 and value is not None else None

    def _near(self, segment: Segment) -> Trace:
        """The trace with nothing to rewrite but the segment and the constants that it reads."""
        own = {name for i in segment.nodes for name in self.graph.reads[i]}
        inside = {*segment.nodes, *self.graph.ancestors(sorted(own & self.constant))}
        read = {name for i in inside for name in self.graph.reads[i]}
        touched = read | {o for i in inside for o in self.graph.nodes[i].output}
        return replace(
            self.trace,
            slices={key: s for key, s in self.trace.slices.items() if s.parameter in read},
            edits=[(i, edit) for i, edit in self.trace.edits if i in inside],
            blocks={name: blocks for name, blocks in self.trace.blocks.items() if name in touched},
        )


def _any_layout(node: NodeProto, name: str) -> bool:
    """Whether a node takes this input in a layout of the runtime's own: a convolution, or a sum, which is fused with
    the convolution that makes its other input if both have that layout."""
    return node.op_type == "Add" or (node.op_type == "Conv" and node.input[0] == name)


def _put_before(alone: Model, name: str, channels: int) -> str:
    """Let a convolution of one channel make what a segment is given, in the layout that the runtime has for it; the
    name of what that is given. With an activation behind it no sum of the segment is fused with it. What it makes has
    a name of its own, as fused kernels are named after it."""
    given = next(info for info in alone.graph.input if info.name == name)
    given.name, weight = f"{FRONT}{name}", f"{FRONT}weight_{name}"
    plain, made = f"{FRONT}plain_{name}", f"{FRONT}made_{name}"
    nodes = [*alone.graph.node]
    for node in nodes:
        node.input[:] = [made if x == name else x for x in node.input]
    del alone.graph.node[:]
    alone.graph.node.append(helper.make_node("Conv", [given.name, weight], [plain], given.name))
    alone.graph.node.append(helper.make_node("Relu", [plain], [made], plain))
    alone.graph.node.extend(nodes)
    given.type.tensor_type.shape.dim[1].dim_value = 1
    alone.weights[weight] = Weight.of(np.ones((channels, 1, 1, 1), np.float32))
    return str(given.name)


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
    return [[[o.domain, o.version] for o in model.skeleton.opset_import], nodes, outputs]
