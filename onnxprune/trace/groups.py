"""Units and groups: what the ids of a trace amount to. Knows ids, slices and rectangles, no operator and no ONNX.

unit: a class of coupled ids. row unit: a class of derived ids (heads, convolution groups), removed with all it holds.
group: a connected component of the networkx graph whose nodes are (parameter, axes) and whose edges are couplings.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from onnxprune.trace.labels import Ids, Mask, Reason, kept_shape, side_by_side
from onnxprune.trace.tracing import Slice, Trace


@dataclass
class Groups:
    """classes: class of every id. reason: why a class stays, or None. prunable: classes that are units.

    rows: row unit (class) -> the units it holds. inside: of a row unit, the ids of its rows. home: of every class, a
    number that stands for the set of slice blocks it lives in. normed: classes that cross a normalisation over their
    own axis (normed_whole: over all of it, not inside rows). streams: units of branches that are added. channels: row
    units that are channels of a tensor of their own (an attention map has one a head). tables: blocks of which only
    whole rows and whole columns may go; crossed: the units in them; columns: row units that are such columns.
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
    channels: Mask
    crossed: Mask
    columns: Mask
    tables: list[Ids]
    inside: dict[int, list[int]] = field(default_factory=dict)
    graph: nx.Graph = field(default_factory=nx.Graph)

    def kept_ids(self, removed: Mask) -> Mask:
        """Which ids are kept when the units of `removed` (a mask over classes) go. A row goes with all it holds."""
        alive = ~removed
        rows, members, starts = self._nested
        own, held = self.classes[rows], self.classes[members]
        while True:
            emptied = own[alive[own] & ~np.logical_or.reduceat(alive[held], starts)]
            if not emptied.size:
                return alive[self.classes]
            alive[emptied] = False

    def alive(self, kept: Mask) -> Mask:
        """Classes of which an id is kept (see `kept_ids`)."""
        found = np.zeros(len(self.prunable), bool)
        found[self.classes[kept]] = True
        return found

    def faults(self, removed: Mask) -> set[int]:
        """Units in a constraint that `removed` would break: not a rectangle, emptied, or rows that disagree."""
        kept = self.kept_ids(removed)
        flat, starts, vectors = self._vectors
        emptied = np.flatnonzero(~np.logical_or.reduceat(kept[flat], starts))
        bad: set[int] = set()
        for ids in [*(vectors[k] for k in emptied), *(ids for ids in self.rectangles if ids.ndim > 1)]:
            if kept_shape(ids, kept) is None:
                gone = ids[~kept[ids]]
                bad |= self._leaves(gone if gone.size else ids.ravel())
        for ids in self.tables:
            mask = kept[ids]
            torn = mask != (mask.any(1, keepdims=True) & mask.any(0))
            bad |= self._leaves(ids[:, torn.any(0)][torn.any(1)].ravel()) if torn.any() else set()
        rows, members, starts = self._nested
        lost = ~kept[rows]
        wrong = np.logical_or.reduceat(kept[members], starts) == lost
        for row in rows[wrong | (lost & self._stays[self.classes[rows]])].tolist():
            bad |= self._leaves(self.trace.labels.children[row])
        return bad

    @cached_property
    def _nested(self) -> tuple[Ids, Ids, Ids]:
        return self.trace.labels.rows()

    @cached_property
    def _vectors(self) -> tuple[Ids, Ids, list[Ids]]:
        """The ids of all rectangles of one axis side by side, where each begins, and each."""
        vectors = [ids for ids in self.rectangles if ids.ndim == 1]
        return *side_by_side(vectors), vectors

    @cached_property
    def _stays(self) -> Mask:
        return np.array([r is not None for r in self.reason], bool)

    def _leaves(self, ids: Ids) -> set[int]:
        """The units that ids amount to: their classes, and for row units the units in them."""
        out: set[int] = set()
        seen: set[int] = set()
        todo = set(self.classes[ids].tolist())
        while todo:
            rows = {c for c in todo if c in self.inside}
            out |= todo - rows
            seen |= rows
            inside = np.array([i for c in rows for i in self.inside[c]], np.int64)
            todo = set(self.classes[inside].tolist()) - seen
        return out

    def components(self) -> Iterator[list[int]]:
        """Indices of slice blocks, a list for each group."""
        for nodes in nx.connected_components(self.graph):
            yield sorted(nodes)

    def name(self, component: Sequence[int]) -> str:
        """What a group is called everywhere, in tables and plans: after its first block, one that is its parameter's
        only if there is such a one. No two groups have one name, for each block is in one group."""
        k = next((k for k in component if not self.use(self.blocks[k][0])), component[0])
        s, axes, _ = self.blocks[k]
        use = self.use(s)
        return f"{s.parameter}[{','.join(map(str, axes))}]" + (f" of {use}" if use else "")

    def use(self, s: Slice) -> str:
        """The uses (NODE:INPUT) that a slice stands for, where its parameter has others beside them; otherwise ""."""
        if self._reads[s.parameter] <= len(s.uses):
            return ""
        return ",".join(f"{self.trace.nodes[n].name}:{i}" for n, i in s.uses)

    @cached_property
    def _reads(self) -> Counter[str]:
        """How often each tensor is an operand, or given out."""
        reads = Counter(name for node in self.trace.nodes for name in node.input)
        reads.update(o.name for scope in self.trace.scopes for o in scope.graph.output)
        return reads


def build(trace: Trace, heads: bool = True) -> Groups:
    """heads: whether whole rows may go; where they may not, or cannot, tables are tied to one row."""
    tables = trace.labels.tables
    while True:
        groups = _without_graph(trace)
        gone = {key: np.unique(groups.classes[rows]).tolist() for key, (_, rows, _) in tables.items()}
        stuck = [key for key, rows in gone.items() if not heads or not groups.rows.keys() >= set(rows)]
        if not stuck:
            groups.graph = _graph(groups)
            return groups
        trace.labels.flatten(stuck)


def _without_graph(trace: Trace) -> Groups:
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
    home, place = np.zeros(count, np.uint64), np.empty(count, np.int64)
    marks = np.random.default_rng(0).integers(1, 1 << 63, len(blocks), np.uint64)
    for mark, (_, _, ids) in zip(marks, blocks, strict=True):
        home[_once(classes[ids.ravel()], place)] += mark  # sums of random numbers tell sets apart
    free = np.array([r is None for r in reason], bool)
    prunable = (home > 0) & free & ~derived
    streams = np.zeros(count, bool)
    for ids in labels.sums:
        streams[classes[ids]] = True
    channels, crossed, columns = (np.zeros(count, bool) for _ in range(3))
    for ids, _, _ in labels.tables.values():
        crossed[classes[ids]] = True
        columns[classes[labels.derive(ids.T)]] = channels[classes[labels.derive(ids.T)]] = True
    alone = (b.ids for tensor in trace.blocks.values() for b in tensor if b.ids.ndim == 1)
    for ids in (*alone, *labels.maps):
        channels[classes[ids]] = True
    normed, whole = np.zeros(count, bool), np.zeros(count, bool)
    for ids in labels.normed:
        normed[classes[ids]] = True
        if ids.ndim == 1:
            whole[classes[ids]] = True
    groups = Groups(
        trace, classes, reason, prunable, {}, blocks, home,
        _rectangles(labels.rectangles.values(), classes), derived, normed, whole, streams, channels & derived,
        crossed, columns, [ids for ids, _, _ in labels.tables.values()],
    )  # fmt: skip
    groups.inside = inside
    groups.rows = _rows(groups)
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


def _once(numbers: Ids, place: Ids) -> Ids:
    """Each of the numbers once, in no order; `place` is scratch space that any of them is an index of."""
    order = np.arange(numbers.size)
    place[numbers] = order
    return np.asarray(numbers[place[numbers] == order])


def _rows(groups: Groups) -> dict[int, frozenset[int]]:
    """Row units that may go: everything they hold may go, closed under rows that are emptied on the way."""
    held: dict[int, set[int]] = defaultdict(set)
    leaves: dict[frozenset[int], set[int]] = defaultdict(set)  # what a row holds -> the row units that hold it
    for d, members in groups.trace.labels.children.items():
        inside, c = frozenset(groups._leaves(members)), int(groups.classes[d])
        held[c] |= inside
        leaves[inside].add(c)
    beginning: dict[int, list[frozenset[int]]] = defaultdict(list)  # by the least leaf
    for inside in leaves:
        beginning[min(inside, default=-1)].append(inside)
    out: dict[int, frozenset[int]] = {}
    for c, units in held.items():
        if groups.reason[c] is not None or not groups.derived[c]:
            continue
        units, more = set(units), set(units)
        while more and len(units) < 1 << 16:
            near = (inside for leaf in units if leaf in beginning for inside in beginning[leaf])
            emptied = {other for inside in near if inside <= units for other in leaves[inside]}
            more = set().union(*(held[other] for other in emptied)) - units
            units |= more
        if units and groups.prunable[list(units)].all():
            out[c] = frozenset(units)
    return out


def _graph(groups: Groups) -> nx.Graph:
    """Nodes: slice blocks (by index), with parameter and axes. Edges: the operator that couples them."""
    graph: nx.Graph = nx.Graph()
    home: dict[Hashable, int] = {}
    labels = groups.trace.labels
    first = np.full(len(groups.prunable), -1)
    place = np.empty(len(groups.blocks), np.int64)
    for k, (s, axes, ids) in enumerate(groups.blocks):
        graph.add_node(k, parameter=s.parameter, axes=axes)
        for key in {labels.born_in(int(i)) for i in (ids.flat[0], ids.flat[-1])}:
            home.setdefault(key, k)
        units = groups.classes[ids.ravel()]
        earlier = first[units]
        first[units[earlier < 0]] = k
        first[groups.classes[0]] = -1  # what always stays couples nothing
        others = _once(earlier[earlier >= 0], place)
        graph.add_edges_from(((other, k) for other in others.tolist()), operator="")
    for a, b, why in labels.pairs:
        u, v = home.get(labels.born_in(int(a[0]))), home.get(labels.born_in(int(b[0])))
        if u is not None and v is not None and u != v:
            graph.add_edge(u, v, operator=f"{why.op_type} {why.node}")
    return graph
