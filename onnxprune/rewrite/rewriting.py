"""Plan -> Model: slice the parameters, then let every operator patch what encodes a size. Knows tensors, no importance.

Nothing else in the file changes. Parameters are copied on write: uses that need different slices get their own copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx import NodeProto, helper

from onnxprune.model import Model, every_node, forget_shapes, needs, rearranged, retain, scopes, unneeded
from onnxprune.rewrite.branches import drop
from onnxprune.rewrite.parameters import Slicer
from onnxprune.trace import Editor, Mask, Trace, left


@dataclass
class Rewritten:
    """The rewritten graph and where its new parameters come from (new name -> original name)."""

    model: Model
    aliases: dict[str, str] = field(default_factory=dict)


def rewrite(trace: Trace, kept: Mask) -> Rewritten:
    """A model whose parameters hold only kept ids. `trace.model` stays as it is."""
    model = trace.model.copy()
    slicer = Slicer(trace, kept, model)
    aliases = slicer.sliced()
    _patch(trace, kept, model, slicer.nodes)
    drop(model, trace.dropped(kept))
    nodes = every_node(model.skeleton.graph)
    _forget_unread(trace, model, nodes)
    lost = trace.model.weights.keys() - model.weights.keys()
    retain(model.skeleton.graph.input, lambda i: i.name not in lost)  # which may list initializers, too
    _forget_shapes(trace, kept, model, nodes)
    model.taken = left(trace, kept)
    _declare(model)
    if model.skeleton.ir_version < 4:  # there every initializer is an input, too
        listed = {i.name for i in model.skeleton.graph.input}
        model.skeleton.graph.input.extend(
            helper.make_tensor_value_info(n, w.onnx_type, w.shape) for n, w in model.weights.items() if n not in listed
        )
    return Rewritten(model, aliases)


def _patch(trace: Trace, kept: Mask, model: Model, nodes: Sequence[NodeProto]) -> None:
    """Let every operator edit its node, then put the new nodes beside theirs and drop what is needed no more. nodes:
    those of the model, by number."""
    before: dict[int, list[NodeProto]] = defaultdict(list)
    after: dict[int, list[NodeProto]] = defaultdict(list)
    gone: set[int] = set()
    for index, edit in trace.edits:
        edit(Editor(trace, kept, model, index, nodes[index], before[index], after[index], gone))
    edited = {index for index, _ in trace.edits}
    lost = {name for k in edited for name in needs(trace.nodes[k])} - {name for k in edited for name in needs(nodes[k])}
    lost -= model.weights.keys()
    dead: set[int] = set()
    if gone or lost:
        ordered = [n for k, node in enumerate(nodes) for n in (*before[k], node, *after[k])]
        dead = unneeded(model.skeleton.graph, model.weights, ordered, [nodes[k] for k in gone], sorted(lost))
    if dead or any(before.values()) or any(after.values()):
        rearranged(model.skeleton.graph, before, after, lambda node: id(node) in dead)


def _forget_unread(trace: Trace, model: Model, nodes: Sequence[NodeProto]) -> None:
    """Drop weights that nobody reads any more, as sizes that an edit wrote anew: a runtime warns of them."""
    graph = model.skeleton.graph
    read = {name for node in nodes for name in needs(node)}
    read |= {o.name for scope in scopes(graph) for o in scope.graph.output}
    unread = model.weights.keys() & trace.readers.keys() - read
    for name in unread:
        del model.weights[name]
    for info in [info for info in graph.input if info.name in unread]:  # where weights are listed as inputs
        graph.input.remove(info)


def _forget_shapes(trace: Trace, kept: Mask, model: Model, nodes: Sequence[NodeProto]) -> None:
    """Value_info of tensors that changed or went is dropped; that of the others stays."""
    made = {o for n in nodes for o in n.output}
    changed = {o for n in trace.nodes for o in n.output if o not in made}
    changed |= {name for name, blocks in trace.blocks.items() if any(not kept[b.ids].all() for b in blocks)}
    changed |= {name for name in trace.shapes.sequences if not changed.isdisjoint(trace.shapes.elements(name) or ())}
    forget_shapes(model.skeleton.graph, changed)


def _declare(model: Model) -> None:
    """Inputs and outputs declare the sizes that they have now, where they declared any."""
    for info in (*model.skeleton.graph.input, *model.skeleton.graph.output):
        for axis, positions in (model.taken.get(info.name) or {}).items():
            dims = info.type.tensor_type.shape.dim
            if axis < len(dims) and dims[axis].HasField("dim_value"):
                dims[axis].dim_value = len(positions)
