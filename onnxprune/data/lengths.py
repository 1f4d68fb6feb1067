"""Inputs that tell attention how long a sequence is, with what lies in its cache: random ones would not run.

Knows the inputs of a graph and who reads them, no stage.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import NodeProto

from onnxprune.model import Model, traits

_TOLD: Mapping[str, tuple[int, Mapping[int, int]]] = {
    "GroupQueryAttention": (3, {5: -1, 6: 0}),
    "SparseAttention": (3, {7: 0, 8: 0}),
    "Attention": (4, {6: 0}),
}
"""By operator: which input is the cache of keys [batch, heads, steps, size], and which inputs tell the number of all
steps, with what is added to it. A cache that what is new is written into holds all of them."""
SIZES = ("Shape", "Size")
"""What these read may hold any numbers."""


def told_lengths(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """By the name of an input that tells lengths, what it has to say where inputs have these shapes: the steps that are
    in the cache, and those that the first input beside it brings. A mask whose sums are lengths says 1: it hides
    nothing."""
    inputs = shapes.keys() - model.weights.keys()
    found = dict.fromkeys(_summed(model, inputs), 1)
    for node in model.graph.node:
        past, told = _TOLD.get(node.op_type, (0, {}))
        names = {i: name for i, name in enumerate(node.input) if name in inputs}
        cached = shapes[names[past]][2] if past in names and len(shapes[names[past]]) == 4 else 0
        new = next((s[1] for s in shapes.values() if len(s) in (2, 3)), 0)
        steps = cached if f"{node.domain}::{node.op_type}" in traits.IN_PLACE else cached + new
        found |= {names[i]: steps + more for i, more in told.items() if i in names}
    return found


def _summed(model: Model, inputs: Collection[str]) -> set[str]:
    """Those of these inputs by whose sums lengths are computed."""
    makers = {name: node for node in model.graph.node for name in node.output}
    asked = [(node, _TOLD[node.op_type][1]) for node in model.graph.node if node.op_type in _TOLD]
    lengths = {name for node, told in asked for i, name in enumerate(node.input) if i in told}
    sums = {name for name in _behind(lengths, makers) if name in makers and makers[name].op_type == "ReduceSum"}
    return _behind(sums, makers) & set(inputs)


def _behind(names: Collection[str], makers: Mapping[str, NodeProto]) -> set[str]:
    """The tensors of whose numbers these are computed, themselves among them."""
    found, pending = set[str](), [*names]
    while pending:
        name = pending.pop()
        maker = makers.get(name)
        if name not in found and maker is not None and maker.op_type not in SIZES:
            pending += maker.input
        found.add(name)
    return found
