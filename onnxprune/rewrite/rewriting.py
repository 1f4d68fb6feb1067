"""Plan -> Model: slice the parameters, then let every operator patch what encodes a size. Knows tensors, no importance.

Nothing else in the file changes. Parameters are copied on write: uses that need different slices get their own copy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import NodeProto, helper

from onnxprune.model import Model, every_node, forget_shapes, needs, rearranged, scopes
from onnxprune.rewrite.slicing import take
from onnxprune.trace import Editor, Mask, Slice, Trace


@dataclass
class Rewritten:
    """The rewritten graph and where its new parameters come from (new name -> original name)."""

    model: Model
    aliases: dict[str, str] = field(default_factory=dict)


def rewrite(trace: Trace, kept: Mask) -> Rewritten:
    """A model whose parameters hold only kept ids. `trace.model` stays as it is."""
    model = trace.model.copy()
    aliases = _slice_all(trace, kept, model)
    before: dict[int, list[NodeProto]] = defaultdict(list)
    after: dict[int, list[NodeProto]] = defaultdict(list)
    gone: set[int] = set()
    nodes = every_node(model.proto.graph)
    for index, edit in trace.edits:
        edit(Editor(trace, kept, model, index, nodes[index], before[index], after[index], gone))
    dead: set[int] = set()
    if gone:
        ordered = [n for k, node in enumerate(nodes) for n in (*before[k], node, *after[k])]
        dead = _dead(model, ordered, [nodes[k] for k in gone])
    rearranged(model.proto.graph, before, after, lambda node: id(node) in dead)
    _forget_shapes(trace, kept, model)
    if model.proto.ir_version < 4:  # there every initializer is an input, too
        listed = {i.name for i in model.proto.graph.input}
        model.proto.graph.input.extend(
            helper.make_tensor_value_info(n, w.onnx_type, w.shape) for n, w in model.weights.items() if n not in listed
        )
    return Rewritten(model, aliases)


def _dead(model: Model, nodes: Sequence[NodeProto], gone: Sequence[NodeProto]) -> set[int]:
    """By `id`, the nodes that are `gone`, and what nobody but these read: sizes computed for them."""
    dead = {id(n) for n in gone}
    reads = Counter(name for n in nodes if id(n) not in dead for name in needs(n))
    for scope in scopes(model.proto.graph):
        reads.update(v.name for v in (*scope.graph.output, *scope.graph.input))
    makers = {o: n for n in nodes for o in n.output if o}
    todo = [name for n in gone for name in needs(n)]
    while todo:
        name = todo.pop()
        node = makers.get(name)
        if node is None and not reads[name]:
            model.weights.pop(name, None)
        if node is not None and id(node) not in dead and not any(reads[o] for o in node.output):
            dead.add(id(node))
            names = list(needs(node))
            reads.subtract(names)
            todo += names
    return dead


def _forget_shapes(trace: Trace, kept: Mask, model: Model) -> None:
    """Value_info of tensors that changed or went is dropped; that of the others stays."""
    graph = model.proto.graph
    made = {o for n in every_node(graph) for o in n.output}
    changed = {o for n in trace.nodes for o in n.output if o not in made}
    changed |= {name for name, blocks in trace.blocks.items() if any(not kept[b.ids].all() for b in blocks)}
    stay = [v for v in graph.value_info if v.name not in changed]
    if len(stay) != len(graph.value_info):
        stay = [type(v).FromString(v.SerializeToString()) for v in stay]
        del graph.value_info[:]
        graph.value_info.extend(stay)
    forget_shapes(graph, changed)


def _slice_all(trace: Trace, kept: Mask, model: Model) -> dict[str, str]:
    aliases: dict[str, str] = {}
    uses: dict[str, int] = defaultdict(int)
    nodes = every_node(model.proto.graph)
    for node in nodes:
        for name in node.input:
            uses[name] += 1
    outputs = {o.name for scope in scopes(model.proto.graph) for o in scope.graph.output}
    by_name: dict[str, list[Slice]] = defaultdict(list)
    for s in trace.slices.values():
        by_name[s.parameter].append(s)
    for name, slices in by_name.items():
        variants: dict[Any, list[Slice]] = defaultdict(list)
        for s in slices:
            cut = [b for b in s.blocks if not kept[b.ids].all()]
            variants[tuple((b.axes, b.ids.shape, kept[b.ids].tobytes()) for b in cut)].append(s)
        listed = sum(len(s.uses) for s in slices)
        everywhere = any(not s.uses for s in slices)
        whole = not everywhere and (listed < uses[name] or name in outputs or () in variants)
        weight = model.weights[name]
        for k, members in enumerate(m for variant, m in variants.items() if variant):
            sliced = take(weight, members[0].blocks, kept)
            if k == 0 and not whole:
                model.weights[name] = sliced
                continue
            fresh = model.fresh_name(f"{name}_pruned")
            model.weights[fresh] = sliced
            aliases[fresh] = trace.aliases.get(name, name)
            for s in members:
                for number, i in s.uses:
                    nodes[number].input[i] = fresh
    return aliases
