"""Operators over one tensor's positions, pools, resizes, reductions and quantisation.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.trace.labels import KEPT, Block
from onnxprune.trace.op import Op
from onnxprune.trace.operands import Dims
from onnxprune.trace.rules.base import LETTERS, axes_of, axis_of, channel_axis, own_axis, ranks_known, spell, unary
from onnxprune.trace.rules.inputs import Quantize, Resize
from onnxprune.trace.tracing import ReductionKind

UNPOOL_SIZES = 2
UPSAMPLE_SCALES = 1


def pool(op: Op) -> None:
    """Windows over the spatial axes; channels pass. Where a maximum lies is counted over all channels: only who undoes
    the pooling may be told it."""
    if ranks_known(op, [0]):
        if op.has_output(1) and op.readers(1) - {"MaxUnpool"}:
            op.freeze("positions are counted over all channels")
        spelled, out = spell(op.dims(0)), _without_spatial(op)
        spatial = "".join(sorted(set(spelled) - set(out)))
        op.eq({0: spelled}, {0: out, 1: out}, pinned=spatial, text="a window slides over this axis")


def _without_spatial(op: Op) -> list[str]:
    """The spelling of an image of which only batch and channels are left."""
    spelled = spell(op.dims(0))
    return [s if k in (0, channel_axis(op, len(spelled))) else "" for k, s in enumerate(spelled)]


def unpool(op: Op) -> None:
    """MaxUnpool: values go back to where the maxima were."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        out = [*spelled[:2], *("" for _ in spelled[2:])]
        op.eq({0: spelled, 1: spelled}, {0: out}, pinned=LETTERS[2 : len(spelled)])
        if op.has(UNPOOL_SIZES):
            op.edit(lambda e: e.sizes(UNPOOL_SIZES, 0))


def global_pool(op: Op) -> None:
    """GlobalAveragePool, GlobalMaxPool, GlobalLpPool: the spatial axes are reduced."""
    if ranks_known(op, [0]):
        op.eq({0: spell(op.dims(0))}, {0: _without_spatial(op)}, kind="gather")


def resize(op: Op) -> None:
    """Axes on which every position stays where it is pass; the others are interpolated."""
    if not ranks_known(op, [0], [0]):
        return
    spelled = spell(op.dims(0))
    axes = [int(a) % len(spelled) for a in op.attr("axes", range(len(spelled)))]
    moved = _moved(op, axes)
    same = [
        n is not None and n == m and k not in moved
        for k, (n, m) in enumerate(zip(op.dims(0), op.out_dims(0), strict=True))
    ]
    changed = "".join(s for s, ok in zip(spelled, same, strict=True) if not ok)
    op.eq({0: spelled}, {0: [s if ok else "" for s, ok in zip(spelled, same, strict=True)]}, pinned=changed)
    if op.has(Resize.SIZES):
        op.edit(lambda e: e.sizes(Resize.SIZES, 0, axes))


def _moved(op: Op, axes: Sequence[int]) -> set[int]:
    """Of the axes that a Resize or Upsample lists, those whose positions may move although their size stays: a scale
    that rounds to the same size, a cut-out, an aspect ratio that all of them make together."""
    mode = op.attr("coordinate_transformation_mode", "half_pixel")
    if op.attr("keep_aspect_ratio_policy", "stretch") != "stretch" or mode == "tf_half_pixel_for_nn":
        return set(axes)
    scales = op.attr("scales") or op.value(Resize.SCALES if len(op.inputs) > Resize.SCALES else UPSAMPLE_SCALES)
    moved = set()
    if scales is not None:
        moved |= {a for a, scale in zip(axes, np.ravel(scales), strict=False) if scale != 1}
    if mode == "tf_crop_and_resize":
        cut = op.value(Resize.REGION)
        ends = np.full((2, len(axes)), -1.0) if cut is None else np.reshape(cut, (2, -1))
        moved |= {a for a, start, end in zip(axes, *ends, strict=True) if (start, end) != (0, 1)}
    return moved


def grid_sample(op: Op) -> None:
    """GridSample: channels pass; every image has a grid of its own, whose values say where to look."""
    op.freeze("positions are told by value", inputs=[1])
    if ranks_known(op, [0]):
        spatial = LETTERS[2 : len(op.dims(0))]
        op.eq({0: spell(op.dims(0))}, {0: ["", "b", *("" for _ in spatial)]}, pinned="a" + spatial)


def roi_pool(op: Op) -> None:
    """RoiAlign, MaxRoiPool: pooled from regions of an image, which other inputs give; channels pass, nothing else."""
    op.freeze("regions are told by value", inputs=range(1, len(op.inputs)))
    if ranks_known(op, [0]):
        op.eq({0: spell(op.dims(0), "ncXY")}, {0: ["", "c", "", ""]}, pinned="nXY")


def along(op: Op, default: int = -1, also: tuple[int, ...] = ()) -> None:
    """Positions along one axis are told apart by value or normalised against each other; the others pass."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        axis = own_axis(op, default, len(spelled))
        out = [*spelled]
        out[axis] = ""
        outs = {0: out, **dict.fromkeys(also, out)}
        op.eq({0: spelled}, outs, pinned=spelled[axis], text="positions along this axis compete")


def top_k(op: Op) -> None:
    """TopK: values and where they were."""
    along(op, also=(1,))


def softmax(op: Op) -> None:
    """Softmax, LogSoftmax, Hardmax: along one axis; up to opset 12 over all axes from that one on. com.microsoft's
    QLinearSoftmax says which opset's it is."""
    if op.attr("opset", op.opset) >= 13:
        return along(op)
    if ranks_known(op, [0]):
        rank = len(op.dims(0))
        axis = axis_of(op, -1 if op.attr("opset") else 1, rank)
        spelled = spell(op.dims(0))
        out = [s if k < axis else "" for k, s in enumerate(spelled)]
        op.eq({0: spelled}, {0: out}, pinned="".join(spelled[axis:]), text="positions along this axis compete")


def arg(op: Op) -> None:
    """ArgMax, ArgMin."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        axis = axis_of(op, 0, len(spelled))
        out = [s for k, s in enumerate(spelled) if k != axis]
        if op.attr("keepdims", 1):
            out.insert(axis, "")
        op.eq({0: spelled}, {0: out}, pinned=spelled[axis], text="positions are told apart by value")


def cumsum(op: Op) -> None:
    """CumSum: what comes before a position counts."""
    axis = op.value(1)
    if ranks_known(op, [0]):
        if axis is None:
            return op.freeze("the axis is computed at run time")
        spelled = spell(op.dims(0))
        gone = spelled[int(axis.ravel()[0])]
        op.eq({0: spelled}, {0: ["" if s == gone else s for s in spelled]}, pinned=gone)


def reverse_sequence(op: Op) -> None:
    """Every sequence of a batch is turned round as far as it is long."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        time, batch = spelled[op.attr("time_axis", 0)], spelled[op.attr("batch_axis", 1)]
        out = ["" if s == time else s for s in spelled]
        op.eq({0: spelled, 1: [batch]}, {0: out}, pinned=time, text="steps are told apart")


def trilu(op: Op) -> None:
    """Trilu: a position of the last two axes stays or is zeroed."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        out, pinned = [*spelled[:-2], "", ""], "".join(spelled[-2:])
        op.eq({0: spelled}, {0: out}, pinned=pinned, text="rows and columns are told apart")


def qlinear_reduce(op: Op) -> None:
    """com.microsoft QLinearReduceMean, whose axes are an attribute."""
    reduce(op, len(op.inputs))


def reduce(op: Op, listed: int = 1) -> None:
    """ReduceSum and its kind; a sum of whatever sign is no normaliser, all else may be. listed: the input that may list
    the axes."""
    if not ranks_known(op, [0]):
        return None
    spelled = spell(op.dims(0))
    rank = len(spelled)
    axes = axes_of(op, rank, listed)
    if axes is None and op.has(listed):
        return op.freeze("the axes are computed at run time")
    if not axes:  # not given, or given as none
        axes = [] if op.attr("noop_with_empty_axes", 0) else list(range(rank))
    keep = op.attr("keepdims", 1)
    out = ["" if k in axes else s for k, s in enumerate(spelled) if keep or k not in axes]
    kind: ReductionKind = "sum" if op.type in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare") else "gather"
    before = {b.axes: b for b in op.blocks(0)}
    op.eq({0: spelled}, {0: out}, kind=kind)
    if op.type not in ("ReduceSum", "ReduceL1"):
        _note_normalised(op, before.values(), axes)


def _note_normalised(op: Op, blocks: Iterable[Block], axes: Sequence[int]) -> None:
    """Statistics over `axes` are taken of what has these blocks."""
    for b in blocks:
        over = [k for k, a in enumerate(b.axes) if a in axes]
        if over:
            op.note_normalised(b.ids, over)


def quantize(op: Op) -> None:
    """QuantizeLinear, DequantizeLinear: scale and zero point are scalars, vectors along `axis`, or one for every block
    of positions along it. Blocks go whole."""
    if not ranks_known(op, [0]):
        return
    spelled = spell(op.dims(0))
    rank = len(spelled)
    axis = max(min(axis_of(op, 1, rank), rank - 1), 0)  # a vector with one scale need not say its axis
    scale, sizes, pinned = spelled[axis] if spelled else "", dict[str, int](), ""
    count = op.dims(Quantize.SCALE)[axis] if len(op.dims(Quantize.SCALE)) == rank > 1 else 1
    each = int(op.attr("block_size", 0))
    if each and count != 1:
        scale, pinned = "P", spelled[axis] + "P"
        if count is not None and op.dims(0)[axis] == count * each:
            spelled[axis], sizes, pinned = "PQ", {"P": count, "Q": each}, "Q"
    ins = {0: spelled}
    for i in (Quantize.SCALE, Quantize.ZERO):
        if op.dims(i) not in ((), (1,)):
            ins[i] = _scale(op.dims(i), spelled, axis, scale)
    op.eq(ins, {0: spelled}, sizes=sizes, pinned=pinned, text="one scale for a run of positions")


def _scale(dims: Dims, spelled: Sequence[str], axis: int, letter: str) -> list[str]:
    """The spelling of scales or zero points: a vector along `axis`, or a tensor with as many axes as the data."""
    if len(dims) == 1:
        return [letter]
    return ["" if n == 1 else letter if k == axis else spelled[k] for k, n in enumerate(dims)]


def dynamic_quantize(op: Op) -> None:
    """DynamicQuantizeLinear: the scale is taken over everything, but it normalises nothing."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        op.eq({0: spelled}, {0: spelled}, stat="".join(spelled), normalises=False)


def constant_of_shape(op: Op) -> None:
    """ConstantOfShape: what is made up here may be made smaller."""
    dims = op.out_dims(0) if op.out_rank(0) is not None else ()
    if not op.has(0) or not dims:
        return
    op.set(0, op.born("fill", dims))
    op.edit(lambda e: e.sizes(0, 0))


def shape_of(op: Op) -> None:
    """Shape: where an axis may shrink it goes on giving the original's size; whoever uses that is patched by itself."""
    dims = op.dims(0)
    start, end = int(op.attr("start", 0)), op.attr("end")
    mask = np.zeros(len(dims), bool)
    for b in op.blocks(0):
        for k, a in enumerate(b.axes):
            mask[a] |= bool((b.ids != KEPT).any()) and b.ids.shape[k] == dims[a]
    mask, sizes = mask[start:end], np.array([n or 0 for n in dims], np.int64)[start:end]
    if op.blocks(0):
        op.edit(lambda e: e.pin(0, mask, sizes))


def image_scaler(op: Op) -> None:
    """Of files before opset 10: times a scale, and a bias of every channel, which is an attribute."""
    unary(op)
    block, bias = op.block_on(0, 1), op.attr("bias", [])
    if block is not None and len(bias) > 1:
        if block.axes != (1,) or block.ids.size != len(bias):
            return op.freeze("its biases are an attribute")
        op.edit(lambda e: e.attr("bias", [x for x, kept in zip(bias, e.kept(block.ids), strict=True) if kept]))


def dropout(op: Op) -> None:
    """Dropout: also its mask."""
    unary(op, also=(1,))
