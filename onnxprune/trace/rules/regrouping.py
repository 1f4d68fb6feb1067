"""The columns of a MatMulNBits that lose their neighbours: blocks are made anew of those that are left.

What was in one block may have two scales then, so that the numbers become codes again, by scales of their own; a block
that is left as it was keeps its codes. A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from onnxprune.model import Array, Weight, attribute
from onnxprune.trace.cells import Cells
from onnxprune.trace.editor import Editor
from onnxprune.trace.labels import Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.inputs import NBits
from onnxprune.trace.steps import Steps, codes_of

SLAB = 1 << 20
"""Numbers that are quantised at a time."""
WHOLE = (1.0,)
"""Codes reach as far as the numbers do; a refit, which knows what counts, looks closer."""
TABLE = (NBits.B, NBits.SCALES, NBits.ZEROS)


def possible(op: Op) -> bool:
    """Whether codes, scales and zero points are parameters that nobody else reads, in blocks one after the other."""
    own = [i for i in TABLE if op.has(i)]
    if not all(op.is_parameter(i) and op.trace.readers[op.inputs[i]] == [op.index] for i in own):
        return False
    return in_order(op) and all(its.stored_shape(its.shape) == tuple(op.dims(i)) for i, its in table(op).items())


def in_order(op: Op) -> bool:
    """Whether every input has the scale of the block that it lies in."""
    if not op.has(NBits.GROUPS):
        return True
    groups, each = op.table(NBits.GROUPS), int(op.attr("block_size", 0))
    return groups is not None and np.array_equal(groups, np.arange(groups.size) // each)


def table(op: Op) -> dict[int, Cells]:
    """How numbers [outputs, inputs] lie in the operands that hold codes, scales and zero points."""
    outputs, inputs, each = (int(op.attr(name, 0)) for name in ("N", "K", "block_size"))
    shape, bits = (outputs, inputs), int(op.attr("bits", 4))
    found = {NBits.B: Cells(shape, bits, each=each)}
    for i in (i for i in TABLE[1:] if op.has(i)):
        whole = op.trace.shapes.dtype(op.inputs[i]) == TensorProto.UINT8
        found[i] = Cells(shape, bits if whole else 0, len(op.dims(i)) == 1, run=each)
    return found


def regroup(e: Editor, table: Mapping[int, Cells], rows: Ids, columns: Ids) -> None:
    """Codes, scales and zero points of the rewritten node, from the numbers of the columns that are left."""
    kept, alive = e.kept(rows), e.kept(columns)
    if not table[NBits.SCALES].parted(alive):
        return
    held = {i: e.model.weights[e.node.input[i]] for i in table}
    stored = {i: e.trace.model.weights[e.original.input[i]].array().reshape(rows.size, -1) for i in table}
    steps = Steps(int(attribute(e.original, "bits", 4)), NBits.ZEROS in table, held[NBits.SCALES].dtype)
    where, made = np.flatnonzero(kept), {i: list[Array]() for i in table}
    for some in np.array_split(where, -(-where.size * alive.size // SLAB) or 1):
        part = {i: its.sized((some.size, columns.size)).of(stored[i][some])[:, alive] for i, its in table.items()}
        for i, found in _regrouped(part, steps, table[NBits.SCALES].run).items():
            made[i].append(found)
    for i, parts in made.items():
        fresh = table[i].sized((where.size, int(alive.sum()))).stored(np.concatenate(parts).astype(held[i].dtype))
        e.model.weights[e.node.input[i]] = Weight.of(fresh.reshape(held[i].shape), held[i].onnx_type)


def _regrouped(held: Mapping[int, Array], steps: Steps, each: int) -> dict[int, Array]:
    """Codes, scales and zero points [rows, columns] of new blocks, of those that the columns had."""
    codes, scale = held[NBits.B].astype(np.float64), held[NBits.SCALES].astype(np.float64)
    zero = held[NBits.ZEROS].astype(np.float64) if NBits.ZEROS in held else np.full(codes.shape, float(steps.middle))
    numbers = (codes - zero) * scale
    for start in range(0, codes.shape[1], each):
        at = slice(start, start + each)
        own, point = scale[:, start].copy(), zero[:, start].copy()
        mixed = np.flatnonzero((scale[:, at] != own[:, None]).any(1) | (zero[:, at] != point[:, None]).any(1))
        if not mixed.size:
            continue
        part = numbers[mixed, at]
        own[mixed], point[mixed] = steps.chosen(part, np.ones(part.shape[1]), (own[mixed], point[mixed]), WHOLE)
        codes[mixed, at] = codes_of(part, own[mixed, None], point[mixed, None], steps.top)
        scale[:, at], zero[:, at] = own[:, None], point[:, None]
    return {i: found for i, found in zip(TABLE, (codes, scale, zero), strict=True) if i in held}
