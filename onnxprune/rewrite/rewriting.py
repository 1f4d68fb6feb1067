"""Plan -> Model: slice the parameters, then let every operator patch what encodes a size. Knows tensors, no importance.

Nothing else in the file changes. Parameters are copied on write: uses that need different slices get their own copy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx import NodeProto, helper

from onnxprune.model import Model, every_node, forget_shapes, needs, rearranged, scopes
from onnxprune.rewrite.parameters import Slicer
from onnxprune.trace import Editor, Mask, Trace


@dataclass
class Rewritten:
    """The rewritten graph and where its new parameters come from (new name -> original name)."""

    model: Model
    aliases: dict[str, str] = field(default_factory=dict)


def rewrite(trace: Trace, kept: Mask) -> Rewritten:
    """A model whose parameters hold only kept ids. `trace.model` stays as it is."""
    model = trace.model.copy()
    aliases = Slicer(trace, kept, model).sliced()
    _patch(trace, kept, model)
    _forget_shapes(trace, kept, model)
    if model.skeleton.ir_version < 4:  # there every initializer is an input, too
        listed = {i.name for i in model.skeleton.graph.input}
        model.skeleton.graph.input.extend(
            helper.make_tensor_value_info(n, w.onnx_type, w.shape) for n, w in model.weights.items() if n not in listed
        )
    return Rewritten(model, aliases)


def _patch(trace: Trace, kept: Mask, model: Model) -> None:
    """Let every operator edit its node, then put the new nodes beside theirs and drop what is needed no more."""
    before: dict[int, list[NodeProto]] = defaultdict(list)
    after: dict[int, list[NodeProto]] = defaultdict(list)
    gone: set[int] = set()
    nodes = every_node(model.skeleton.graph)
    for index, edit in trace.edits:
        edit(Editor(trace, kept, model, index, nodes[index], before[index], after[index], gone))
    dead: set[int] = set()
    if gone:
        ordered = [n for k, node in enumerate(nodes) for n in (*before[k], node, *after[k])]
        dead = _dead(model, ordered, [nodes[k] for k in gone])
    rearranged(model.skeleton.graph, before, after, lambda node: id(node) in dead)


def _dead(model: Model, nodes: Sequence[NodeProto], gone: Sequence[NodeProto]) -> set[int]:
    """By `id`, the nodes that are `gone`, and what nobody but these read: sizes computed for them. Weights that nobody
    else read go with them."""
    dead = {id(n) for n in gone}
    reads = _reads(model, [n for n in nodes if id(n) not in dead])
    makers = {o: n for n in nodes for o in n.output if o}
    todo = [name for n in gone for name in needs(n)]
    while todo:
        name = todo.pop()
        if reads[name]:
            continue
        node = makers.get(name)
        if node is None:
            model.weights.pop(name, None)
        elif id(node) not in dead and not any(reads[o] for o in node.output):
            dead.add(id(node))
            names = list(needs(node))
            reads.subtract(names)
            todo += names
    return dead


def _reads(model: Model, nodes: Sequence[NodeProto]) -> Counter[str]:
    """How often a tensor is read by these nodes, or goes into or out of a graph."""
    reads = Counter(name for n in nodes for name in needs(n))
    for scope in scopes(model.skeleton.graph):
        reads.update(v.name for v in (*scope.graph.output, *scope.graph.input))
    return reads


def _forget_shapes(trace: Trace, kept: Mask, model: Model) -> None:
    """Value_info of tensors that changed or went is dropped; that of the others stays."""
    made = {o for n in every_node(model.skeleton.graph) for o in n.output}
    changed = {o for n in trace.nodes for o in n.output if o not in made}
    changed |= {name for name, blocks in trace.blocks.items() if any(not kept[b.ids].all() for b in blocks)}
    forget_shapes(model.skeleton.graph, changed)
