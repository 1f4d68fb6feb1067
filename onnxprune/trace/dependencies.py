"""The dependency graph of a model as networkx: the axes of its parameters, and the operators that couple them.

Two kinds of nodes. `axis`: a block of a parameter's axes, with parameter, axes, use (NODE:INPUT, where the parameter
has others beside it), shape (of the block), units, free (how many of these may go), group (its name in plans and
reports) and frozen (the operator, node and reason that hold the others). `coupling`: an operator (op_type, node) that
lets units of one group go together only. An edge says that the operator couples this axis. The axes of one group, and
no others, are connected. Knows ids and slices, no operator and no ONNX.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.trace.groups import Groups
from onnxprune.trace.labels import KEPT, Ids, Reason

if TYPE_CHECKING:
    import networkx as nx


def dependencies(groups: Groups) -> nx.Graph:
    """The graph of all groups; a node's number has no meaning, `kind` says what it is."""
    import networkx as nx  # only here: it takes a tenth of a second

    graph: nx.Graph = nx.Graph()
    names = {k: groups.name(component) for component in groups.components() for k in component}
    for k in range(len(groups.blocks)):
        graph.add_node(k, kind="axis", group=names[k], **_axis(groups, k))
    homes = _homes(groups)
    group_of = {c: names[k] for k in range(len(groups.blocks)) for c in _units(groups, groups.blocks[k][2]).tolist()}
    numbers: dict[tuple[Reason, str], int] = {}
    for a, b, why in groups.trace.labels.pairs:
        for key, unit in (*_births(groups, a), *_births(groups, b)):
            group = group_of.get(unit, "")
            ends = [k for k in homes.get(key, ()) if names[k] == group]
            if ends:
                coupling = numbers.setdefault((why, group), len(groups.blocks) + len(numbers))
                graph.add_node(coupling, kind="coupling", op_type=why.op_type, node=why.node, group=group)
                graph.add_edges_from((coupling, end) for end in ends)
    graph.remove_nodes_from([n for n in numbers.values() if graph.degree(n) < 2])  # with what no parameter holds
    for component in groups.components():
        _tied_together(graph, component)
    return graph


def _axis(groups: Groups, k: int) -> dict[str, object]:
    s, axes, ids = groups.blocks[k]
    classes = _units(groups, ids)
    why = next((r for c in classes.tolist() if (r := groups.reason[c]) is not None and r.text), None)
    return {
        "parameter": s.parameter, "axes": list(axes), "use": groups.use(s), "shape": list(ids.shape),
        "units": int(classes.size), "free": int(groups.prunable[classes].sum()), "frozen": _said(why),
    }  # fmt: skip


def _units(groups: Groups, ids: Ids) -> Ids:
    """The classes of ids, each once, but for that of what always stays."""
    classes = np.unique(groups.classes[ids.ravel()])
    return np.asarray(classes[classes != groups.classes[KEPT]])


def _said(why: Reason | None) -> dict[str, str] | None:
    return None if why is None else {"op_type": why.op_type, "node": why.node, "reason": why.text}


def _homes(groups: Groups) -> dict[Hashable, list[int]]:
    """The blocks that hold ids of each birth."""
    homes: dict[Hashable, list[int]] = {}
    for k, (_, _, ids) in enumerate(groups.blocks):
        for key in dict.fromkeys(key for key, _ in _births(groups, ids.ravel())):
            homes.setdefault(key, []).append(k)
    return homes


def _births(groups: Groups, ids: Ids) -> Iterator[tuple[Hashable, int]]:
    """Where ids were born and the class of one that may go, for every stretch of ids that were born together; of a row,
    those of its first child."""
    labels, kept = groups.trace.labels, groups.classes[KEPT]
    starts = labels.birth_numbers(ids)
    edges = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(ids)]
    for begin, end in pairwise(edges):
        leaf = next((i for i in map(labels.leaf, ids[begin:end].tolist()) if groups.classes[i] != kept), KEPT)
        if leaf != KEPT:
            yield labels.born_in(leaf), int(groups.classes[leaf])


def _tied_together(graph: nx.Graph, component: list[int]) -> None:
    """Axes of one group that are the same positions, with no operator between them, are linked directly."""
    from networkx import node_connected_component

    first = component[0]
    reached = node_connected_component(graph, first)
    for k in component:
        if k not in reached:
            graph.add_edge(first, k)
            reached |= node_connected_component(graph, k)
