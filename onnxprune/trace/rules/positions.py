"""Operators that know the positions of some axes and hand the others on: transforms, windows put back, masks, cuts.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from math import prod

import numpy as np

from onnxprune.trace.editor import Editor
from onnxprune.trace.labels import Block
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import CAPITALS, opaque, own_axis, ranks_known, spell
from onnxprune.trace.rules.inputs import DFT_AXIS, Col2Im, Compress, CropPad
from onnxprune.trace.rules.movement import picked

MASKED = "positions are selected by a condition"


def _passed(op: Op, axes: Collection[int], text: str) -> None:
    """All axes but these pass."""
    spelled = spell(op.dims(0))
    out = ["" if k in axes else s for k, s in enumerate(spelled)]
    op.eq({0: spelled}, {0: out}, pinned="".join(spelled[k] for k in axes), text=text)


def center_crop_pad(op: Op) -> None:
    """CenterCropPad: axes that keep their size pass; of others positions are cut off or put around them."""
    if not ranks_known(op, [0], [0]):
        return
    rank = len(op.dims(0))
    axes = [int(a) % rank for a in op.attr("axes", range(rank))]
    moved = [k for k in axes if op.dims(0)[k] is None or op.dims(0)[k] != op.out_dims(0)[k]]
    _passed(op, moved, "cut or padded around its middle")
    op.edit(lambda e: e.sizes(CropPad.SHAPE, 0, axes))


def col2im(op: Op) -> None:
    """Col2Im: the columns of every channel are put back where its windows were. Channels go whole."""
    if not ranks_known(op, [0]):
        return None
    block, columns = op.value(Col2Im.BLOCK), op.dims(0)[1]
    if block is None or columns is None:
        return op.freeze("the shape of its windows is not known")
    each = prod(int(n) for n in block.ravel())
    channel = ["c" if columns > each else "", "k" if each > 1 else ""]
    sizes = {"c": columns // each, "k": each}
    out = ["n", channel[0], *("" for _ in block.ravel())]
    op.eq({0: ["n", "".join(channel), "l"]}, {0: out}, sizes=sizes, pinned="kl", text="a position of a window")


def compress(op: Op) -> None:
    """Compress: positions along `axis` that a condition selects; where it is known, these go with what they hold."""
    if not ranks_known(op, [0]):
        return None
    rank = len(op.dims(0))
    if op.attr("axis") is None and rank > 1:
        return opaque(op)
    axis, chosen = own_axis(op, 0, rank), op.value(Compress.CONDITION)
    block = op.block_on(0, axis)
    if block is None or chosen is None or op.dims(0)[axis] != block.ids.shape[block.axes.index(axis)]:
        op.freeze(MASKED, inputs=(Compress.CONDITION,))
        return _passed(op, [axis], MASKED)
    at = np.flatnonzero(chosen.ravel())
    op.set(0, [*(b for b in op.blocks(0) if b is not block), *picked(op, block, axis, at, (axis,))])
    op.edit(partial(_condition, axis=axis, block=block, at=at))
    return None


def _condition(e: Editor, axis: int, block: Block, at: np.ndarray) -> None:
    alive = e.along(block, axis)
    if alive.size != block.ids.shape[block.axes.index(axis)]:
        e.const(Compress.CONDITION, np.isin(alive, at))


def dft(op: Op) -> None:
    """DFT: a transform along one axis; the last one holds real and imaginary parts."""
    if not ranks_known(op, [0]):
        return None
    axis = op.attr("axis", 1) if op.opset < 20 else op.value(DFT_AXIS) if op.has(DFT_AXIS) else -2
    if axis is None:
        return op.freeze("the axis is computed at run time")
    rank = len(op.dims(0))
    return _passed(op, {int(axis) % rank, rank - 1}, "a transform along this axis")


def square(op: Op) -> None:
    """Det, com.microsoft Inverse: of the matrices on the last two axes."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        out = [*spelled[:-2], *([] if op.type == "Det" else ["", ""])]
        op.eq({0: spelled}, {0: out}, pinned="".join(spelled[-2:]), text="a side of a matrix")


def unfold(op: Op) -> None:
    """com.microsoft UnfoldTensor: windows along one axis, whose positions get an axis of their own at the end."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        axis = int(op.attr("dim", -1)) % len(spelled)
        out = ["" if k == axis else s for k, s in enumerate(spelled)]
        op.eq({0: spelled}, {0: [*out, ""]}, pinned=spelled[axis], text="a window slides over this axis")


def distances(op: Op) -> None:
    """com.microsoft CDist: of every row of one matrix to every row of the other. A column goes in both."""
    if ranks_known(op, [0, 1]):
        op.eq({0: spell(op.dims(0), "mk"), 1: spell(op.dims(1), "nk")}, {0: ["m", "n"]}, macs="mkn")
        for b in op.blocks(1):  # a distance is nothing where both are
            if b.axes[-1] == 1:
                op.note_sum(1, b)


def one_hot(op: Op) -> None:
    """OneHot: a new axis, on which one position is told by value."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0), CAPITALS)
        axis = int(op.attr("axis", -1)) % (len(spelled) + 1)
        op.eq({0: spelled}, {0: [*spelled[:axis], "", *spelled[axis:]]})
