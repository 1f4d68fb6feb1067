"""Weights of a few bits, several of them in a byte, with a scale and a zero point for every block of an axis.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod

import numpy as np
from onnx import TensorProto

from onnxprune.trace.cells import Cells
from onnxprune.trace.editor import Editor
from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.op import Misfit, Op
from onnxprune.trace.rules import regrouping
from onnxprune.trace.rules.base import LETTERS, ranks_known, spell
from onnxprune.trace.rules.inputs import Blocks, NBits

FIXED = "a matrix product whose other side stays"
LISTED = "2 bits with a list of blocks, which runtimes read in ways of their own"
ONE_BLOCK = "its inputs are one block, or in blocks of an order of their own"


def matmul_nbits(op: Op) -> None:
    """com.microsoft MatMulNBits: rows of B (outputs) go one by one; so do its columns (inputs) where blocks can be made
    of those that are left (see `regrouping`), else by whole blocks."""
    if not ranks_known(op, [NBits.A, NBits.B]):
        return
    outputs, inputs, each = (int(op.attr(name, 0)) for name in ("N", "K", "block_size"))
    if min(outputs, inputs, each) < 1:
        raise Misfit("it does not say its sizes N, K and block_size")
    if op.has(NBits.GROUPS) and int(op.attr("bits", 4)) == 2:
        return op.freeze(LISTED)
    rows = op.fresh("rows", (outputs,))
    if outputs == 1:
        op.freeze_ids(rows, "one output")
    singly = regrouping.possible(op)
    columns = _single_columns(op, rows, inputs, each) if singly else _whole_blocks(op, rows, inputs, each)
    if op.has(NBits.BIAS):
        op.meet(NBits.BIAS, ["N"], ["N"], [Block((0,), rows)], FIXED)
    batch = spell(op.dims(NBits.A)[:-1])
    op.meet(NBits.A, [*batch, "K"], ["K"], [Block((0,), columns)], FIXED)
    op.eq({NBits.A: [*batch, "K"]}, {0: [*batch, ""]}, text=FIXED)
    op.set(0, (*op.out_blocks(0), *([Block((len(batch),), rows)] if outputs > 1 else [])))
    sample = op.trace.shapes.of_sample(op.inputs[NBits.A]) or ()
    op.note_macs([(prod(float(n or 1) for n in sample[:-1]) * inputs * outputs, (columns, rows))])
    op.edit(lambda e: e.attr("N", int(e.kept(rows).sum())))
    op.edit(lambda e: e.attr("K", int(e.kept(columns).sum())))
    if op.has(NBits.GROUPS):
        op.edit(partial(_renumbered, columns=columns, each=each))
    if singly:
        op.edit(partial(regrouping.regroup, table=regrouping.table(op), rows=rows, columns=columns))


def _single_columns(op: Op, rows: Ids, inputs: int, each: int) -> Ids:
    """The ids of the inputs [inputs], one each; those of a block are tied where nothing is to be quantised again."""
    columns = op.fresh("columns", (inputs,))
    if op.trace.whole_blocks and inputs <= each:
        op.freeze_ids(columns, ONE_BLOCK)
    elif op.trace.whole_blocks:
        op.couple(np.repeat(columns[::each], each)[:inputs], columns)
    for i, cells in regrouping.table(op).items():
        op.own(i, Block((0,), rows), Block((1,), columns), cells=cells)
    return columns


def _whole_blocks(op: Op, rows: Ids, inputs: int, each: int) -> Ids:
    """The ids of the inputs [inputs], alike in a block."""
    count = -(-inputs // each)
    blocks = op.fresh("blocks", (count,))
    if count == 1 or not regrouping.in_order(op):
        op.freeze_ids(blocks, ONE_BLOCK)
    grid = [Block((0,), rows), Block((1,), blocks)]
    op.meet(NBits.B, ["N", "P", "Z"], ["N", "P"], grid, FIXED, pinned="Z", silent="Z")
    whole = op.has(NBits.ZEROS) and op.trace.shapes.dtype(op.inputs[NBits.ZEROS]) == TensorProto.UINT8
    _beside(op, NBits.SCALES, grid, 0)
    _beside(op, NBits.ZEROS, grid, int(op.attr("bits", 4)) if whole else 0)
    return np.repeat(blocks, each)[:inputs]


def _renumbered(e: Editor, columns: Ids, each: int) -> None:
    """Which block every input that is left lies in, be it that the last block is written out in full or not."""
    kept = e.kept(columns)
    if not kept.all():
        full = e.dims(e.original.input[NBits.GROUPS]) != [columns.size]
        length = -(-int(kept.sum()) // each) * each if full else int(kept.sum())
        e.const(NBits.GROUPS, (np.arange(length) // each).astype(np.int32))


def _beside(op: Op, i: int, grid: Sequence[Block], bits: int) -> None:
    """Input `i` has a number for every block of every row: as a matrix, in one row, or several in a byte."""
    if not op.has(i):
        return
    dims = op.dims(i)
    if len(dims) == 2 and not bits:
        return op.meet(i, ["N", "P"], ["N", "P"], grid, FIXED)
    if not op.is_parameter(i):
        return op.freeze_blocks(grid, "computed scales or zero points in one row")
    shape = (grid[0].ids.size, grid[1].ids.size)
    op.own(i, *grid, cells=Cells(shape, bits, len(dims) == 1))


def gather_block_quantized(op: Op) -> None:
    """com.microsoft GatherBlockQuantized: rows are looked up; another axis goes by whole blocks, the others one by
    one."""
    if not ranks_known(op, [Blocks.DATA, Blocks.INDICES], [0]):
        return
    data, rank = op.dims(Blocks.DATA), len(op.dims(Blocks.DATA))
    looked_up, cut = int(op.attr("gather_axis", 0)) % rank, int(op.attr("quantize_axis", 1)) % rank
    wide, each = len(op.dims(Blocks.INDICES)), int(op.attr("block_size", 128))
    place = cut if cut < looked_up else cut + wide - 1
    length, stored = op.out_dims(0)[place], data[cut]
    if None in (length, stored) or looked_up == cut or not each:
        return op.freeze("its blocks are not known")
    spelled = ["" if k == cut else s for k, s in enumerate(spell(data, LETTERS))]
    whole = op.trace.shapes.dtype(op.inputs[Blocks.DATA]) != TensorProto.UINT8
    ins = dict.fromkeys((Blocks.DATA, Blocks.SCALES, *([Blocks.ZEROS] if whole else [])), spelled)
    out = [*spelled[:looked_up], *[""] * wide, *spelled[looked_up + 1 :]]
    op.eq(ins, {0: out}, pinned=spelled[looked_up], text="rows are looked up by run-time indices")
    blocks = _blocks(op, ins, cut, (length or 0, stored or 1, each))
    if not whole:
        _own_points(op, Block((cut,), blocks), looked_up)
    values = Block((place,), np.repeat(blocks, each)[:length])
    indices = (Block(tuple(looked_up + a for a in b.axes), b.ids) for b in op.blocks(Blocks.INDICES))
    op.set(0, [*op.out_blocks(0), values, *indices])


def _blocks(op: Op, ins: Mapping[int, Sequence[str]], cut: int, sizes: tuple[int, int, int]) -> Ids:
    """The ids of the blocks along axis `cut`, met by the inputs. sizes: how many positions, how many elements hold
    them, and how many positions make a block."""
    length, stored, each = sizes
    blocks = op.fresh("blocks", (-(-length // each),))
    if blocks.size == 1 or each % (length // stored):
        op.freeze_ids(blocks, "all of the axis is one block")
    held = np.repeat(blocks, each * stored // length)[:stored]
    for i, spelled in ins.items():
        along = ["P" if k == cut else s for k, s in enumerate(spelled)]
        if op.has(i):
            op.meet(i, along, ["P"], [Block((0,), held if i == Blocks.DATA else blocks)], FIXED)
    return blocks


def _own_points(op: Op, block: Block, looked_up: int) -> None:
    """Zero points of a table that is looked up lie several in a byte along the axis of its blocks."""
    if not op.has(Blocks.ZEROS):
        return
    data, cut = op.dims(Blocks.DATA), block.axes[0]
    for axis in {*range(len(data))} - {cut, looked_up}:
        op.freeze_axis(Blocks.DATA, axis, "its zero points lie several in a byte")
    if not op.is_parameter(Blocks.ZEROS):
        return op.freeze_blocks([block], "computed zero points, several in a byte")
    shape = tuple(block.ids.size if k == cut else n or 1 for k, n in enumerate(data))
    op.own(Blocks.ZEROS, block, cells=Cells(shape, int(op.attr("bits", 4))))
