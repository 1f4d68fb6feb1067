"""Inputs that tell attention how long a sequence is, with what lies in its cache: random ones would not run.

Knows the inputs of a graph and who reads them, no stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

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
    found: dict[str, int] = {}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        past, told = _TOLD.get(node.op_type, (0, {}))
        computed = [node.input[i] for i in told if i < len(node.input) and node.input[i] in makers]
        found |= dict.fromkeys(_summed(computed, makers, shapes.keys() - model.weights.keys()), 1)
        names = {i: name for i, name in enumerate(node.input) if name in shapes and name not in model.weights}
        cached = shapes[names[past]][2] if past in names and len(shapes[names[past]]) == 4 else 0
        new = next((s[1] for s in shapes.values() if len(s) in (2, 3)), 0)
        steps = cached if f"{node.domain}::{node.op_type}" in traits.IN_PLACE else cached + new
        found |= {names[i]: steps + more for i, more in told.items() if i in names}
    return found


def _summed(names: Iterable[str], makers: Mapping[str, NodeProto], inputs: Collection[str]) -> set[str]:
    """The inputs of a graph by whose sums the tensors of these names are computed."""
    found, seen = set[str](), set[tuple[str, bool]]()
    pending = [(name, False) for name in names]
    while pending:
        name, summed = here = pending.pop()
        if here in seen:
            continue
        seen.add(here)
        if name in inputs and summed:
            found.add(name)
        maker = makers.get(name)
        if maker is not None and maker.op_type not in SIZES:
            pending += [(read, summed or maker.op_type == "ReduceSum") for read in maker.input]
    return found
