"""Convolutions and matrix products: contractions stated as equations over lettered axes.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import LETTERS, channel_axis, note_sum_of, ranks_known, spell
from onnxprune.trace.rules.inputs import Conv, DeformConv, DynamicMatMul, Gemm, Integer, QGemm, QLinear, ToFloat

KERNEL, IMAGE, RESULT = "UVW", "XYZ", "PQR"
INTEGER_ZEROS = {Integer.LEFT: Integer.LEFT_ZERO, Integer.RIGHT: Integer.RIGHT_ZERO}
QLINEAR_ZEROS = {QLinear.LEFT: QLinear.LEFT_ZERO, QLinear.RIGHT: QLinear.RIGHT_ZERO}


def _vector(op: Op, i: int, spelled: str) -> list[str]:
    """A scale, zero point or bias: one value a channel, or one for all."""
    dims = op.dims(i)
    return ["" if n == 1 else spelled for n in dims]


def _image(channels: str, spatial: str, at: int) -> list[str]:
    """The spelling of an image with its channels on axis `at`."""
    spelled = ["n", *spatial]
    spelled.insert(at, channels)
    return spelled


def _conv(
    op: Op, x: int, w: int, per_channel: Sequence[int], fills: Mapping[int, int] | None = None, transposed: bool = False
) -> None:
    """`x`, `w`: which inputs are data and weight. `per_channel`: those with one value an output channel, or one for
    all. `fills`: the zero point of each factor."""
    if not ranks_known(op, [x, w]):
        return None
    spatial = len(op.dims(w)) - 2
    groups = int(op.attr("group", 1))
    first, second = op.dims(w)[0], op.dims(w)[1]
    if first is None or second is None:
        return op.freeze("the weight's shape is not known")
    ins, outs = (first // groups, second) if transposed else (second, first // groups)
    if groups == 1:
        sizes, cin, cout = {"c": ins, "o": outs}, "c", "o"
    else:
        sizes, cin, cout = {"g": groups, "c": ins, "o": outs}, "gc", "go"
    weight = [cin, "o"] if transposed else [cout, "c"]
    kernel, image, result = KERNEL[:spatial], IMAGE[:spatial], RESULT[:spatial]
    channel = channel_axis(op, spatial + 2)
    spellings = {
        x: _image(cin, image, channel),
        w: [*weight, *kernel],
        **{i: _vector(op, i, cout) for i in per_channel},
    }
    op.eq(
        spellings, {0: _image(cout, result, channel)}, sizes=sizes, pinned=kernel + image, fills=fills, silent=kernel,
        macs="goc"[groups == 1 :] + kernel + (image if transposed else result),
        text="a convolution whose other side stays",
    )  # fmt: skip
    if groups > 1 and transposed:
        op.edit(lambda e: e.attr("group", (e.out_shape(0)[channel] or 1) // e.in_size(w, 1)))
    elif groups > 1:
        op.edit(lambda e: e.attr("group", (e.in_shape(x)[channel] or groups * ins) // e.in_size(w, 1)))


def conv(op: Op) -> None:
    """Conv, by groups or not."""
    _conv(op, Conv.X, Conv.WEIGHT, [Conv.BIAS])


def fused_conv(op: Op) -> None:
    """com.microsoft FusedConv: Conv with an activation, and a tensor that is added."""
    _conv(op, Conv.X, Conv.WEIGHT, [Conv.BIAS])
    if op.has(Conv.SUM):
        own = op.out_blocks(0)
        spelled = spell(op.dims(Conv.SUM))
        op.eq({Conv.SUM: spelled}, {0: spelled})
        added = op.blocks(Conv.SUM)
        for a, b in ((a, b) for a in own for b in added if a.axes == b.axes):
            op.couple(a.ids, b.ids)
        if {b.axes for b in own} != {b.axes for b in added}:
            op.freeze("the fused sum has another structure", outputs=True)
        op.set(0, own)
        note_sum_of(op, [Conv.SUM], [Conv.X, Conv.SUM])


def deform_conv(op: Op) -> None:
    """Offsets and masks tell positions; channels of several offset groups would have to go in equal numbers."""
    op.freeze("offsets are told apart by position", inputs=(DeformConv.OFFSET, DeformConv.MASK))
    if op.attr("offset_group", 1) > 1:
        op.freeze("several offset groups", inputs=(DeformConv.X,))
    _conv(op, DeformConv.X, DeformConv.WEIGHT, [DeformConv.BIAS])


def conv_transpose(op: Op) -> None:
    """ConvTranspose: the weight has its input channels first."""
    _conv(op, Conv.X, Conv.WEIGHT, [Conv.BIAS], transposed=True)


def conv_transpose_padded(op: Op) -> None:
    """com.microsoft ConvTransposeWithDynamicPads: ConvTranspose with an input that says how much is cut off."""
    _conv(op, Conv.X, Conv.WEIGHT, [Conv.BIAS + 1], transposed=True)


def conv_integer(op: Op) -> None:
    """ConvInteger: products of whole numbers less their zero points."""
    per_channel = [Integer.LEFT_ZERO, Integer.RIGHT_ZERO] if op.dims(Integer.RIGHT_ZERO) else []
    _conv(op, Integer.LEFT, Integer.RIGHT, per_channel, INTEGER_ZEROS)


def qlinear_conv(op: Op) -> None:
    """QLinearConv: scale and zero point of the weight are one a channel, or one for all."""
    per_channel = [QLinear.RIGHT_SCALE, QLinear.RIGHT_ZERO, QLinear.BIAS]
    _conv(op, QLinear.LEFT, QLinear.RIGHT, per_channel, QLINEAR_ZEROS)


def gemm(op: Op) -> None:
    """Gemm, com.microsoft FusedGemm."""
    _gemm(op, Gemm.A, Gemm.B, Gemm.C)


def qgemm(op: Op) -> None:
    """com.microsoft QGemm: scale and zero point of the weight are one a column, or one for all."""
    _gemm(op, QGemm.A, QGemm.B, QGemm.C, [QGemm.B_SCALE, QGemm.B_ZERO], {QGemm.A: QGemm.A_ZERO, QGemm.B: QGemm.B_ZERO})


def _gemm(
    op: Op, a: int, b: int, c: int, per_column: Sequence[int] = (), fills: Mapping[int, int] | None = None
) -> None:
    if not ranks_known(op, [a, b]):
        return
    left = ["k", "m"] if op.attr("transA", 0) else ["m", "k"]
    right = ["n", "k"] if op.attr("transB", 0) else ["k", "n"]
    ins = {a: spell(op.dims(a), left), b: spell(op.dims(b), right)}
    if op.has(c):
        ins[c] = spell(op.dims(c), ["m", "n"][2 - len(op.dims(c)) :]) if op.dims(c) else []
    ins |= {i: _vector(op, i, "n") for i in per_column}
    op.eq(ins, {0: ["m", "n"]}, macs="mkn", fills=fills, text="a matrix product whose other side stays")
    if op.has(c):
        note_sum_of(op, [c], [a, c])


def _matmul(
    op: Op, a: int, b: int, rows: Sequence[int] = (), columns: Sequence[int] = (), both: Sequence[int] = (),
    fills: Mapping[int, int] | None = None, bias: int | None = None,
) -> None:  # fmt: skip
    """rows, columns, both: scales and zero points of the left side, the right one, the result: one for all, or one a
    row (of the left and the result) or column (of the right), with batch axes or without. bias: one a column."""
    if not ranks_known(op, [a, b]):
        return
    left, right = len(op.dims(a)), len(op.dims(b))
    batch = max(left, right, 2) - 2
    letters = LETTERS[:batch]
    one = [*letters[max(batch - left + 2, 0) :], *("MK" if left > 1 else "K")]
    two = [*letters[max(batch - right + 2, 0) :], *("KN" if right > 1 else "K")]
    if op.attr("transA", 0):
        one[-2:] = one[:-3:-1]
    if op.attr("transB", 0):
        two[-2:] = two[:-3:-1]
    one, two = (
        [s[-2], *s[:-2], s[-1]] if op.attr(name, 0) else s for s, name in ((one, "transBatchA"), (two, "transBatchB"))
    )
    out = [*letters, *("M" if left > 1 else ""), *("N" if right > 1 else "")]
    ins = {a: spell(op.dims(a), one), b: spell(op.dims(b), two)}
    for inputs, spelled, row in ((rows, one, "M"), (columns, two, "N"), (both, out, "M")):
        for i in inputs:
            dims = op.dims(i)
            ins[i] = spell(dims, [row] if len(dims) == 1 else spelled[-len(dims) :])
    if bias is not None:
        ins[bias] = ["N"]
    op.eq(ins, {0: out}, macs=letters + "MKN", fills=fills, text="a matrix product whose other side stays")


def matmul(op: Op) -> None:
    """MatMul, com.microsoft FusedMatMul and its kind."""
    _matmul(op, 0, 1)


def dynamic_quantize_matmul(op: Op) -> None:
    """com.microsoft DynamicQuantizeMatMul: what it is given is rounded by its own range, and normalised by nothing."""
    columns = [i for i in (DynamicMatMul.SCALE, DynamicMatMul.ZERO) if op.has(i) and op.dims(i)]
    _matmul(op, DynamicMatMul.A, DynamicMatMul.B, columns=columns, bias=DynamicMatMul.BIAS)


def matmul_integer_to_float(op: Op) -> None:
    """com.microsoft MatMulIntegerToFloat: MatMulInteger, times both scales."""
    rows = [i for i in (ToFloat.A_SCALE, ToFloat.A_ZERO) if op.has(i) and op.dims(i)]
    columns = [i for i in (ToFloat.B_SCALE, ToFloat.B_ZERO) if op.has(i) and op.dims(i)]
    fills = {ToFloat.A: ToFloat.A_ZERO, ToFloat.B: ToFloat.B_ZERO}
    _matmul(op, ToFloat.A, ToFloat.B, rows, columns, fills=fills, bias=ToFloat.BIAS)


def matmul_integer(op: Op) -> None:
    """MatMulInteger: products of whole numbers less their zero points."""
    _matmul(op, Integer.LEFT, Integer.RIGHT, [Integer.LEFT_ZERO], [Integer.RIGHT_ZERO], fills=INTEGER_ZEROS)


def qlinear_matmul(op: Op) -> None:
    """QLinearMatMul: scales and zero points are one for all, or one a row or column."""
    rows, columns = [QLinear.LEFT_SCALE, QLinear.LEFT_ZERO], [QLinear.RIGHT_SCALE, QLinear.RIGHT_ZERO]
    _matmul(op, QLinear.LEFT, QLinear.RIGHT, rows, columns, [QLinear.Y_SCALE, QLinear.Y_ZERO], QLINEAR_ZEROS)


def einsum(op: Op) -> None:
    """Einsum: the equation is the operator's own."""
    used = range(len(op.inputs))
    if not ranks_known(op, used):
        return
    lefts, out = _terms(op.attr("equation"), [len(op.dims(i)) for i in used])
    twice = {x for s in lefts for x in s if s.count(x) > 1}  # a diagonal
    ins = {i: spell(op.dims(i), list(s)) for i, s in enumerate(lefts)}
    macs = "".join(dict.fromkeys("".join(lefts))) if len(used) > 1 else ""
    op.eq(
        ins, {0: ["" if x in twice else x for x in out]}, macs=macs, pinned="".join(sorted(twice)),
        text="an einsum whose other side stays",
    )  # fmt: skip


def _terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of every operand and of the result, those that stand behind "..." and "->" written out."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [rank - len(term) + len("...") for term, rank in zip(terms, ranks, strict=True)]
    widest = max((n for n, term in zip(hidden, terms, strict=True) if "..." in term), default=0)
    dots = "".join([x for x in reversed(LETTERS) if x not in equation][:widest])
    lefts = [term.replace("...", dots[widest - n :]) for n, term in zip(hidden, terms, strict=True)]
    if arrow:
        return lefts, out.replace("...", dots)
    flat = "".join(lefts)
    return lefts, dots + "".join(sorted(x for x in set(flat) if flat.count(x) == 1 and x not in dots))
