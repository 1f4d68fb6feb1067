"""From the ids of a trace to its groups: classes, and what may go of them.

Knows ids, slices and rectangles, no operator and no ONNX.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.trace.groups import Groups, SliceBlock
from onnxprune.trace.labels import Ids, Labels, Mask, Reason
from onnxprune.trace.tracing import Trace

LARGEST_ROW = 1 << 16
"""Units in a row, beyond which it is not looked for others that it empties."""


def build(trace: Trace, heads: bool = True) -> Groups:
    """heads: whether whole rows may go; where they may not, or cannot, tables are tied to one row."""
    tables = trace.labels.tables
    while True:
        groups = _grouped(trace)
        gone = {key: np.unique(groups.classes[rows]).tolist() for key, (_, rows, _, _) in tables.items()}
        stuck = [
            key
            for key, rows in gone.items()
            if not heads or not all(r in groups.rows or groups.prunable[r] for r in rows)
        ]
        if not stuck:
            return groups
        trace.labels.flatten(stuck)


def _grouped(trace: Trace) -> Groups:
    """Classes and what is known of each, with the rows that may go by what is known so far."""
    labels = trace.labels
    classes, reasons = labels.solve()
    reason: list[Reason | None] = list(reasons)
    count = len(reason)
    blocks = [(s, b.axes, b.ids) for s in trace.slices.values() for b in s.blocks if b.ids.any()]
    inside = _rows_inside(labels, classes)
    derived = np.zeros(count, bool)
    derived[[*inside]] = True
    location = _location_hash(blocks, classes, count)

    def units(parts: Iterable[Ids]) -> Mask:
        """The classes that any of these ids are of."""
        found = np.zeros(count, bool)
        for ids in parts:
            found[classes[ids]] = True
        return found

    tables = [table for table in labels.tables.values() if (classes[table[0]] != classes[table[0][:, :1]]).any()]
    grids, columns = [ids for ids, _, _, _ in tables], [columns for _, _, columns, _ in tables]
    alone = [b.ids for tensor in trace.blocks.values() for b in tensor]
    groups = Groups(
        trace, classes, reason, (location > 0) & np.array([r is None for r in reason], bool) & ~derived, {}, blocks,
        location, _rectangles(labels.rectangles.values(), classes), derived, units(_crossing(labels.normed, classes)),
        units(ids for ids in labels.normed if ids.ndim == 1), units(labels.sums),
        units((*columns, *alone, *labels.maps)) & derived, units(grids), units(columns), grids, inside,
    )  # fmt: skip
    groups.rows = _rows(groups)
    return groups


def _crossing(normed: Iterable[Ids], classes: Ids) -> Iterable[Ids]:
    """The rows whose statistics change with what goes of them. One of several that goes whole (a head of a cache, under
    a norm inside heads) leaves the others theirs."""
    for ids in normed:
        rows = ids.reshape(-1, ids.shape[-1])
        units = classes[rows]
        yield rows if ids.ndim == 1 else rows[(units != units[:, :1]).any(1)]


def _rows_inside(labels: Labels, classes: Ids) -> dict[int, list[int]]:
    """By row unit, the ids that its rows hold; a row of which everything goes as one anyway is none."""
    inside: dict[int, list[int]] = defaultdict(list)
    for d, members in labels.children.items():
        if (classes[members] != classes[d]).any():
            inside[int(classes[d])] += members.tolist()
    return inside


def _location_hash(blocks: Sequence[SliceBlock], classes: Ids, count: int) -> NDArray[np.uint64]:
    """By class, a sum of random numbers, one for each block that it lives in: equal sums are equal sets."""
    location, place = np.zeros(count, np.uint64), np.empty(count, np.int64)
    marks = np.random.default_rng(0).integers(1, 1 << 63, len(blocks), np.uint64)
    for mark, (_, _, ids) in zip(marks, blocks, strict=True):
        location[_once(classes[ids.ravel()], place)] += mark
    return location


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
    holders: dict[frozenset[int], set[int]] = defaultdict(set)  # what a row holds -> the row units that hold it
    for d, members in groups.trace.labels.children.items():
        inside, c = frozenset(groups._leaves(members)), int(groups.classes[d])
        held[c] |= inside
        holders[inside].add(c)
    beginning: dict[int, list[frozenset[int]]] = defaultdict(list)  # by the least leaf
    for inside in holders:
        beginning[min(inside, default=-1)].append(inside)

    def emptied(units: set[int]) -> set[int]:
        """The row units that hold nothing else."""
        near = (inside for leaf in units if leaf in beginning for inside in beginning[leaf])
        return {row for inside in near if inside <= units for row in holders[inside]}

    out: dict[int, frozenset[int]] = {}
    for c, leaves in held.items():
        if groups.reason[c] is None and groups.derived[c]:
            units, more = set(leaves), set(leaves)
            while more and len(units) < LARGEST_ROW:
                more = set().union(*(held[row] for row in emptied(units))) - units
                units |= more
            if units and groups.prunable[list(units)].all():
                out[c] = frozenset(units)
    return out
