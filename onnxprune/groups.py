"""Units and groups: what the ids of a trace amount to. Knows ids, slices and rectangles, no operator and no ONNX.

unit: a class of coupled ids. row unit: a class of derived ids (heads, convolution groups), removed with all it holds.
group: a connected component of the networkx graph whose nodes are (parameter, axes) and whose edges are couplings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from onnxprune.labels import Ids, Mask, Reason, kept_shape
from onnxprune.trace import Slice, Trace


@dataclass
class Groups:
    """classes: class of every id. reason: why a class stays, or None. prunable: classes that are units.

    rows: row unit (class) -> the units it holds. inside: of a row unit, the ids of its rows. home: of every class, a
    number that stands for the set of slice blocks it lives in. normed: classes that cross a normalisation over their
    own axis (normed_whole: over all of it, not inside rows). streams: units of branches that are added.
    """

    trace: Trace
    classes: Ids
    reason: list[Reason | None]
    prunable: Mask
    rows: dict[int, frozenset[int]]
    blocks: list[tuple[Slice, tuple[int, ...], Ids]]
    home: NDArray[np.uint64]
    rectangles: list[Ids]
    derived: Mask
    normed: Mask
    normed_whole: Mask
    streams: Mask
    inside: dict[int, list[int]] = field(default_factory=dict)
    graph: nx.Graph = field(default_factory=nx.Graph)

    def kept_ids(self, removed: Mask) -> Mask:
        """Which ids are kept when the units of `removed` (a mask over classes) go. A row goes with all it holds."""
        alive = ~removed
        children = self.trace.labels.children.items()
        changed = True
        while changed:
            changed = False
            for derived, members in children:
                c, any_left = self.classes[derived], alive[self.classes[members]].any()
                if alive[c] and not any_left:
                    alive[c], changed = False, True
        return alive[self.classes]

    def faults(self, removed: Mask) -> set[int]:
        """Units in a constraint that `removed` would break: not a rectangle, emptied, or rows that disagree."""
        kept = self.kept_ids(removed)
        bad: set[int] = set()
        for ids in self.rectangles:
            if kept_shape(ids, kept) is None:
                bad |= self._leaves(ids[~kept[ids]].tolist() or ids.ravel().tolist())
        for derived, members in self.trace.labels.children.items():
            c = self.classes[derived]
            if kept[members].any() != kept[derived] or (self.reason[c] is not None and not kept[derived]):
                bad |= self._leaves(members.tolist())
        return bad

    def _leaves(self, ids: Iterable[int]) -> set[int]:
        """The units that ids amount to: their classes, and for row units the units in them."""
        out: set[int] = set()
        seen: set[int] = set()
        todo = list(ids)
        while todo:
            i = todo.pop()
            c = int(self.classes[i])
            if c in seen:
                continue
            seen.add(c)
            if c in self.inside:
                todo += self.inside[c]
            else:
                out.add(c)
        return out

    def components(self) -> Iterator[list[int]]:
        """Indices of slice blocks, a list for each group."""
        for nodes in nx.connected_components(self.graph):
            yield sorted(nodes)


def build(trace: Trace) -> Groups:
    labels = trace.labels
    classes, reasons = labels.solve()
    reason: list[Reason | None] = list(reasons)
    count = len(reason)
    derived = np.zeros(count, bool)
    inside: dict[int, list[int]] = defaultdict(list)
    for d, members in labels.children.items():
        if (classes[members] != classes[d]).any():  # else its row goes as one anyway
            derived[classes[d]] = True
            inside[int(classes[d])] += members.tolist()
    blocks = [(s, b.axes, b.ids) for s in trace.slices.values() for b in s.blocks if b.ids.any()]
    home = np.zeros(count, np.uint64)
    marks = np.random.default_rng(0).integers(1, 1 << 63, len(blocks), np.uint64)
    for mark, (_, _, ids) in zip(marks, blocks, strict=True):
        home[np.unique(classes[ids])] += mark  # sums of random numbers tell sets apart
    free = np.array([r is None for r in reason], bool)
    prunable = (home > 0) & free & ~derived
    streams = np.zeros(count, bool)
    for ids in labels.sums:
        streams[classes[ids]] = True
    normed, whole = np.zeros(count, bool), np.zeros(count, bool)
    for ids in labels.normed:
        normed[classes[ids]] = True
        if ids.ndim == 1:
            whole[classes[ids]] = True
    groups = Groups(
        trace, classes, reason, prunable, {}, blocks, home,
        _rectangles(labels.rectangles.values(), classes), derived, normed, whole, streams,
    )  # fmt: skip
    groups.inside = inside
    groups.rows = _rows(groups)
    groups.graph = _graph(groups)
    return groups


def _rectangles(blocks: Iterable[Ids], classes: Ids) -> list[Ids]:
    """Each distinct rectangle once, without the axes along which everything goes together anyway."""
    seen: dict[tuple[tuple[int, ...], bytes], Ids] = {}
    for ids in blocks:
        units = classes[ids]
        for k in reversed(range(ids.ndim)):
            if ids.ndim > 1 and bool((units == np.take(units, [0], k)).all()):
                ids, units = np.take(ids, 0, k), np.take(units, 0, k)
        seen.setdefault((ids.shape, units.tobytes()), ids)
    return list(seen.values())


def _rows(groups: Groups) -> dict[int, frozenset[int]]:
    """Row units that may go: everything they hold may go, closed under rows that are emptied on the way."""
    children = groups.trace.labels.children
    held: dict[int, set[int]] = defaultdict(set)
    rows_of: dict[int, list[tuple[int, frozenset[int]]]] = defaultdict(list)
    for d, members in children.items():
        leaves = frozenset(groups._leaves(members.tolist()))
        c = int(groups.classes[d])
        held[c] |= leaves
        for leaf in leaves:
            rows_of[leaf].append((c, leaves))
    out: dict[int, frozenset[int]] = {}
    for c in held:
        if groups.reason[c] is not None or not groups.derived[c]:
            continue
        units, todo, seen = set(held[c]), list(held[c]), {c}
        while todo and len(units) < 1 << 16:
            leaf = todo.pop()
            for other, leaves in rows_of[leaf]:
                if other not in seen and leaves <= units:
                    seen.add(other)
                    todo += held[other] - units
                    units |= held[other]
        if units and all(groups.prunable[u] for u in units):
            out[c] = frozenset(units)
    return out


def _graph(groups: Groups) -> nx.Graph:
    """Nodes: slice blocks (by index), with parameter and axes. Edges: the operator that couples them."""
    graph: nx.Graph = nx.Graph()
    home: dict[Hashable, int] = {}
    labels = groups.trace.labels
    first = np.full(len(groups.prunable), -1)
    for k, (s, axes, ids) in enumerate(groups.blocks):
        graph.add_node(k, parameter=s.parameter, axes=axes)
        for key in {labels.born_in(int(i)) for i in (ids.flat[0], ids.flat[-1])}:
            home.setdefault(key, k)
        units = np.unique(groups.classes[ids])
        units = units[units != groups.classes[0]]
        graph.add_edges_from(((other, k) for other in np.unique(first[units]).tolist() if other >= 0), operator="")
        first[units[first[units] < 0]] = k
    for a, b, why in labels.pairs:
        u, v = home.get(labels.born_in(int(a[0]))), home.get(labels.born_in(int(b[0])))
        if u is not None and v is not None and u != v:
            graph.add_edge(u, v, operator=f"{why.op_type} {why.node}")
    return graph
