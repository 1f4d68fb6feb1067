"""Every If made to go a given way, so that a proof sees both of its branches. Knows bodies and conditions, no ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from onnx import GraphProto, NodeProto, helper

from onnxprune.model import Model, Weight, bodies, scopes, set_nodes

DEEPEST = 3
"""Levels of Ifs in Ifs that are told apart; a deeper one goes the way of the one so many above it."""


Decided = Callable[[str], bool]
"""Whether a condition is the same for all inputs of all sizes: such an If goes one way only, and what follows may have
sizes that no other way gives."""


def branch_choices(model: Model, decided: Decided = lambda condition: False) -> list[tuple[bool, ...]]:
    """All ways in which every If of a level can go; none without an If."""
    depth = min(DEEPEST, max((d for _, d in _ifs(model.skeleton.graph, 1, decided)), default=0))
    return list(product((True, False), repeat=depth)) if depth else []


def with_choices_forced(model: Model, way: tuple[bool, ...], decided: Decided = lambda condition: False) -> Model:
    """A copy in which the Ifs of level k go as `way[k]` says. A condition stays one that is computed: ONNX Runtime puts
    a branch whose condition is a constant into the graph around it, and has crashed at that."""
    model = model.copy()
    constants = {truth: model.fresh_name(f"every_if_{str(truth).lower()}") for truth in set(way)}
    for truth, name in constants.items():
        model.weights[name] = Weight.of(np.array(truth))
    ifs = [*_ifs(model.skeleton.graph, 1, decided)]
    choices = {id(node): way[(depth - 1) % len(way)] for node, depth in ifs}
    for scope in reversed(scopes(model.skeleton.graph)):  # what is inside first: nodes are copied when others come in
        nodes: list[NodeProto] = []
        for node in scope.graph.node:
            if id(node) in choices:
                truth, condition = choices[id(node)], model.fresh_name(f"{node.input[0]}_forced")
                nodes.append(helper.make_node("Or" if truth else "And", [node.input[0], constants[truth]], [condition]))
                node.input[0] = condition
            nodes.append(node)
        if len(nodes) > len(scope.graph.node):
            set_nodes(scope.graph, nodes)
    return model


def _ifs(graph: GraphProto, depth: int, decided: Decided) -> Iterator[tuple[NodeProto, int]]:
    for node in graph.node:
        own = node.op_type == "If" and not decided(node.input[0])
        if own:
            yield node, depth
        for _, body in bodies(node):
            yield from _ifs(body, depth + own, decided)
