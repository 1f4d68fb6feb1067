"""A quantised graph in real numbers: every rounding left out, so that two of them can be compared as exactly as others.

What was stored in 8 bits becomes a float that need not be whole; its limits stay. Knows graphs; what an operator
becomes, `reals` knows, and how far two graphs may differ, others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxprune.model import Model, attribute, bodies, needs, traits
from onnxprune.prove.outputs import Types
from onnxprune.prove.reals import REAL_FORMS
from onnxprune.prove.step import FLOAT, LIMITS, CannotUnround, Step

IN_BYTES = 4
"""From this `accuracy_level` on a MatMulNBits rounds what it is given to integers of 8 bits."""
BITS_OF_BYTE = 8
INTEGERS = {*LIMITS, TensorProto.INT32}
"""Types of tensors that are floats afterwards."""


def rounds(nodes: Sequence[NodeProto]) -> bool:
    """Whether any of the nodes rounds to integers."""
    kinds = {n.op_type for n in nodes if n.op_type != "MatMulNBits" or attribute(n, "accuracy_level", 0) >= IN_BYTES}
    return not kinds.isdisjoint(REAL_FORMS.keys() - {"DequantizeLinear"}) or any(map(_rounds_inside, nodes))


def _rounds_inside(node: NodeProto) -> bool:
    """Whether it rounds on the way, and nothing keeps it from that."""
    in_bytes = node.op_type == "QMoE" and attribute(node, "expert_weight_bits", 4) == BITS_OF_BYTE
    return node.op_type in traits.ROUNDING_INSIDE or (in_bytes and bool(attribute(node, "block_size", 0)))


@dataclass
class Unrounded:
    """Writes graphs in real numbers. known: element types of tensors; rank: how many axes one has. floats: what was an
    integer and is none now; types_before: of which type. still_rounding: nodes by name, and why."""

    known: Types
    rank: Callable[[str], int | None]
    floats: set[str] = field(default_factory=set)
    still_rounding: dict[str, str] = field(default_factory=dict)
    types_before: dict[str, int] = field(default_factory=dict)

    def types(self, name: str) -> int | None:
        """The element type of a tensor as it is written."""
        return FLOAT if name in self.floats else self.known(name)

    def kind(self, name: str, model: Model) -> int | None:
        """The element type of a parameter of `model` or of a tensor of the graph as it was."""
        weight = model.weights.get(name)
        return weight.onnx_type if weight is not None else self.known(name)

    def __call__(self, model: Model) -> Model:
        """A copy in real numbers."""
        model = model.copy()
        del model.skeleton.graph.value_info[:]
        self._graph(model, model.skeleton.graph)
        return model

    def _graph(self, model: Model, graph: GraphProto) -> None:
        made: list[NodeProto] = []
        for node in graph.node:
            for _, body in bodies(node):
                self._graph(model, body)
            made += self._node(model, node)
        copies = [NodeProto.FromString(n.SerializeToString()) for n in made]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(copies)
        for info in graph.output:
            if info.name in self.floats:
                info.type.tensor_type.elem_type = FLOAT

    def _node(self, model: Model, node: NodeProto) -> list[NodeProto]:
        step, before = Step(self, model, node), set(self.floats)
        try:
            if _rounds_inside(node):
                raise CannotUnround("it rounds inside")
            if node.op_type in REAL_FORMS:
                REAL_FORMS[node.op_type](step)
                return step.made
            return self._other(step)
        except CannotUnround as why:
            self.still_rounding[node.name] = f"{node.op_type} '{node.name}' ({why})"
            self.floats.intersection_update(before)
            return self._again(Step(self, model, node))

    def _other(self, step: Step) -> list[NodeProto]:
        """A node that does not round: what it gives is of the kind that it is given."""
        node = step.node
        read = [n for n in needs(node) if n in self.floats]
        if any(True for _ in bodies(node)):
            self._as_its_bodies(node, read)
            return [node]
        return self._on_floats(step, read) if read else [node]

    def _as_its_bodies(self, node: NodeProto, read: Sequence[str]) -> None:
        """What an If gives is float where both branches give floats; any other owner of bodies has to stay as it is."""
        outs = [[o.name in self.floats for o in body.output] for _, body in bodies(node)]
        if node.op_type == "If" and all(o == outs[0] for o in outs):
            self._became(dict(zip(node.output, outs[0], strict=False)), read)
        elif any(map(any, outs)) or not self.floats.isdisjoint(node.input):
            raise CannotUnround("it carries integers in and out of its bodies")

    def _on_floats(self, step: Step, read: Sequence[str]) -> list[NodeProto]:
        """The node, given floats (`read`) in place of integers: all that it is given are floats then."""
        node, model = step.node, step.model
        for i, name in enumerate(node.input):
            if name not in self.floats and self.kind(name, model) in LIMITS:
                node.input[i] = step.cast(name)
        if node.op_type == "Cast" and step.attr("to") in INTEGERS:
            node.attribute[0].i = FLOAT
        kinds = {name: self.known(name) for name in node.output if name}
        made = node.op_type not in traits.SIZES
        self._became({n: kind in INTEGERS or (kind is None and made) for n, kind in kinds.items()}, read)
        return [*step.made, node]

    def _became(self, outs: Mapping[str, bool], read: Sequence[str]) -> None:
        """These outputs are floats now, in place of the type that they had, or that what they are made of had."""
        of_read = next((self.types_before[n] for n in read if n in self.types_before), FLOAT)
        for name, real in outs.items():
            if real:
                self.floats.add(name)
                self.types_before[name] = self.known(name) or of_read

    def _again(self, step: Step) -> list[NodeProto]:
        """A node that still rounds is given integers, as before."""
        for i, name in enumerate(step.node.input):
            kind = self.known(name) or self.types_before.get(name)
            if name in self.floats and kind in INTEGERS:
                step.node.input[i] = out = step.model.fresh_name(f"{name}_whole")
                step.put("Round", name)
                step.made.append(
                    helper.make_node("Cast", [step.made[-1].output[0]], [out], name=f"{out}_node", to=kind)
                )
        return [*step.made, step.node]
