"""Which nodes a user wants left alone: by names of nodes, parameters and groups, and by types of operators.

Knows names as they stand in the model and in tables, no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain

from onnx import NodeProto

from onnxprune.errors import UsageError
from onnxprune.model import Model, every_node, needs
from onnxprune.options import Options, matching, nearest, without_axes
from onnxprune.trace import LABELLED

OWN = ("", "ai.onnx")
"""Domains of the operators whose types bear no domain."""


def excluded(given: Model, working: Model, options: Options) -> Callable[[NodeProto], bool]:
    """Whether a node of `working`, the model as it is traced, is left alone. `given`: the model as the user sees it,
    whose constants are still nodes: such a node stands for its value, which is a parameter now. A single number or a
    list of sizes, which exporters share between layers, is none. UsageError where a name or a type is of nothing."""
    if not options.nodes_to_exclude and not options.op_types_to_exclude:
        return lambda node: False
    nodes = every_node(working.graph)
    ranks = _ranks(working, nodes)
    constants = [node for node in every_node(given.graph) if not ranks.keys().isdisjoint(node.output)]
    types = _existing_types(options.op_types_to_exclude, [*nodes, *constants])
    names = {node.name for node in (*nodes, *constants)} - {""}
    left, read = _existing_names(options.nodes_to_exclude, names, ranks)
    for node in constants:
        if node.name in left or not types.isdisjoint(_types(node)):
            read.update(node.output)
    return lambda node: node.name in left or not types.isdisjoint(_types(node)) or not read.isdisjoint(node.input)


def _ranks(model: Model, nodes: Iterable[NodeProto]) -> dict[str, int]:
    """The parameters that nodes read, and how many axes each has."""
    weights = ((name, model.weights[name]) for node in nodes for name in needs(node) if name in model.weights)
    return {name: len(w.shape) for name, w in weights if w.onnx_type in LABELLED and w.size > 1}


def _existing_names(texts: Iterable[str], names: set[str], ranks: Mapping[str, int]) -> tuple[set[str], set[str]]:
    """The nodes and the parameters that these names and patterns fit; UsageError where one of them fits nothing.
    ranks: of the parameters, the number of axes."""
    left: set[str] = set()
    read: set[str] = set()
    for text in texts:
        found, held = matching(text, names), matching(without_axes(text, ranks), ranks.keys())
        if not found and not held:
            near = nearest(text, chain(names, ranks))
            raise UsageError(f"--nodes-to-exclude {text}: no node, parameter or group has such a name{near}")
        left |= found
        read |= held
    return left, read


def _existing_types(types: Iterable[str], nodes: Iterable[NodeProto]) -> set[str]:
    """These types of operators; UsageError where the model has none of one."""
    known = {kind for node in nodes for kind in _types(node)}
    for kind in types:
        if kind not in known:
            raise UsageError(f"--op-types-to-exclude {kind}: the model has no such operator{nearest(kind, known)}")
    return set(types)


def _types(node: NodeProto) -> tuple[str, ...]:
    """How the type of a node may be written: as in the file, and as tables do."""
    return (node.op_type,) if node.domain in OWN else (node.op_type, f"{node.domain}::{node.op_type}")
