"""Blocks of weights of a few bits that were made anew of the columns that are left, with scales of their own.

Such weights are no slices. So all blocks of a row are given one scale and one zero point, before and after: by these
the columns that are left are slices like any others, and the proof is about them. What is written instead has to be
near to the numbers that were kept. Knows slices and what was kept; not how codes are chosen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from onnx import NodeProto

from onnxprune.errors import CheckFailed
from onnxprune.model import Array, Derived, Model, Weight, attribute, every_node
from onnxprune.prove.slices import DIFFERS, Source, cells_of
from onnxprune.trace import Cells, Mask, Slice, Trace

FAR, STEPS = 0.7, 8
"""How far the numbers in the place of those that were kept may be off, relative to these: by so many steps of a code's
range, and never so far; numbers of other columns are off by 1.4."""
SLAB = 1 << 20
"""Numbers that are compared at a time."""


def alike(trace: Trace, kept: Mask, after: Model) -> tuple[Trace, Model]:
    """Both graphs with one scale in every row of the weights whose blocks were made anew. CheckFailed where the shape
    of such a weight is not that of its slice, or its numbers are others."""
    parted = _parted(trace, kept)
    if not parted:
        return trace, after
    model, new = trace.model.copy(), after.copy()
    for name, even in evening(trace, kept).items():
        weight = model.weights[name]
        model.weights[name] = Weight(weight.onnx_type, weight.shape, Derived(weight, even))
    nodes = {node.name: node for node in every_node(after.skeleton.graph)}
    tables: dict[int, dict[int, Slice]] = defaultdict(dict)
    for s in parted:
        ((index, i),) = s.uses
        tables[index][i] = s
    for index, table in tables.items():
        node = nodes[trace.nodes[index].name]
        for i, s in table.items():
            new.weights[node.input[i]] = _slice(s, kept, after.weights[node.input[i]], model, node.input[i])
        _check_near(node, table, kept, trace.model, after)
    return replace(trace, model=model), new


def evening(trace: Trace, kept: Mask) -> Mapping[str, Callable[[Array], Array]]:
    """By parameter of the original, how its rows get one number each."""
    return {s.parameter: partial(_even, s.cells) for s in _parted(trace, kept) if s.cells and s.cells.run > 1}


def told(trace: Trace, kept: Mask) -> str:
    """What was proven of them, in words; "" where there are none."""
    count = sum(s.cells is not None and s.cells.each > 0 for s in _parted(trace, kept))
    weights = f"{count} weights of few bits have" if count > 1 else "a weight of few bits has"
    return f"{weights} new blocks: compared with one scale in every row, and near to the numbers kept" if count else ""


def _parted(trace: Trace, kept: Mask) -> list[Slice]:
    """Of the parameters whose cells share numbers or blocks, those in which some are left without the others."""
    found = []
    for s in trace.slices.values():
        if s.cells is not None and max(s.cells.run, s.cells.each) > 1:
            last = next(b for b in s.blocks if b.axes == (len(s.cells.shape) - 1,))
            found += [s] if s.cells.parted(kept[last.ids]) else []
    return found


def _even(cells: Cells, stored: Array) -> Array:
    rows = cells_of(stored, cells)
    return cells.stored(np.repeat(rows[..., :1], rows.shape[-1], -1)).reshape(stored.shape)


def _slice(s: Slice, kept: Mask, written: Weight, model: Model, name: str) -> Weight:
    """What is kept of a parameter of `model`, in the place of what was written."""
    source, own = Source(s.parameter, s.blocks, s.cells), model.weights[s.parameter]
    assert s.cells is not None
    shape = s.cells.stored_shape(source.dims(own.shape, kept))
    if (written.onnx_type, written.shape) != (own.onnx_type, shape):
        raise CheckFailed(
            f"{DIFFERS}: its parameter '{name}' has shape {list(written.shape)}, where {list(shape)} is kept"
        )
    return Weight(own.onnx_type, shape, Derived(own, lambda array: source.of(array, kept).reshape(shape)))


def _check_near(node: NodeProto, table: Mapping[int, Slice], kept: Mask, before: Model, after: Model) -> None:
    """CheckFailed where the numbers that a node reads are not those that were kept, but for rounding."""
    rows, columns = (next(kept[b.ids] for b in table[1].blocks if b.axes == (axis,)) for axis in (0, 1))
    middle, where = 1 << (int(attribute(node, "bits", 4)) - 1), np.flatnonzero(rows)
    own, then = ({i: m.weights[n].array() for i, n in names.items()} for m, names in (
        (after, {i: node.input[i] for i in table}), (before, {i: s.parameter for i, s in table.items()}),
    ))  # fmt: skip
    wrong = whole = 0.0
    for at in np.array_split(np.arange(where.size), -(-where.size * columns.size // SLAB) or 1):
        made = _numbers(table, own, where.size, at, int(columns.sum()), middle)
        wanted = _numbers(table, then, rows.size, where[at], columns.size, middle)[:, columns]
        wrong, whole = wrong + float(np.square(made - wanted).sum()), whole + float(np.square(wanted).sum())
    if not wrong <= min(FAR, STEPS / (2 * middle)) ** 2 * whole:
        source = table[1].parameter
        raise CheckFailed(f"{DIFFERS}: the numbers of '{node.input[1]}' are not those that are kept of '{source}'")


def _numbers(
    table: Mapping[int, Slice], stored: Mapping[int, Array], count: int, rows: Array, columns: int, middle: int
) -> Array:
    """[rows, columns]: what codes stand for, by scales and zero points, in some of `count` rows."""
    parts = []
    for i, s in table.items():
        assert s.cells is not None
        some = stored[i].reshape(count, -1)[rows]
        parts.append(cells_of(some, s.cells.sized((rows.size, columns))).astype(np.float32))
    codes, scale, *zero = parts
    return np.asarray((codes - (zero[0] if zero else np.float32(middle))) * scale)
