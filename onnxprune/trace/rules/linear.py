"""Convolutions and matrix products: contractions stated as equations over lettered axes.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import LETTERS, ranks_known, spell

KERNEL, IMAGE, RESULT = "UVW", "XYZ", "PQR"


def _vector(op: Op, i: int, spelled: str) -> list[str]:
    """A scale, zero point or bias: one value a channel, or one for all."""
    dims = op.dims(i)
    return ["" if n == 1 else spelled for n in dims]


def _conv(op: Op, x: int, w: int, vectors: tuple[int, ...], fills: dict[int, int], transposed: bool = False) -> None:
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
    spellings = {
        x: ["n", cin, *image],
        w: [*weight, *kernel],
        **{i: _vector(op, i, cout) for i in vectors if op.has(i)},
    }
    op.eq(
        spellings, {0: ["n", cout, *result]}, sizes=sizes, pinned=kernel + image, fills=fills, silent=kernel,
        macs="goc"[groups == 1 :] + kernel + (image if transposed else result), text="a convolution with a fixed side",
    )  # fmt: skip
    if groups > 1 and transposed:
        op.edit(lambda e: e.attr("group", (e.out_shape(0)[1] or 1) // e.in_size(w, 1)))
    elif groups > 1:
        op.edit(lambda e: e.attr("group", (e.in_shape(x)[1] or groups * ins) // e.in_size(w, 1)))


def conv(op: Op) -> None:
    _conv(op, 0, 1, (2,), {})


def fused_conv(op: Op) -> None:
    """com.microsoft: Conv with an activation and a tensor Z that is added."""
    _conv(op, 0, 1, (2,), {})
    if op.has(3):
        own = op.trace.blocks.get(op.node.output[0], ())
        op.eq({3: spell(op.dims(3))}, {0: spell(op.dims(3))})
        for a in own:
            for b in op.blocks(3):
                if a.axes == b.axes:
                    op.couple(a.ids, b.ids)
        if {b.axes for b in own} != {b.axes for b in op.blocks(3)}:
            op.freeze("the fused sum has another structure", outputs=True)
        op.set(0, own)


def deform_conv(op: Op) -> None:
    """Offsets and masks tell positions; channels of several offset groups would have to go in equal numbers."""
    op.freeze("offsets are told apart by position", inputs=(2, 4))
    if op.attr("offset_group", 1) > 1:
        op.freeze("several offset groups", inputs=(0,))
    _conv(op, 0, 1, (3,), {})


def conv_transpose(op: Op) -> None:
    _conv(op, 0, 1, (2,), {}, transposed=True)


def conv_integer(op: Op) -> None:
    _conv(op, 0, 1, (2, 3) if op.dims(3) else (), {0: 2, 1: 3})


def qlinear_conv(op: Op) -> None:
    _conv(op, 0, 3, (4, 5, 8), {0: 2, 3: 5})


def gemm(
    op: Op, a: int = 0, b: int = 1, c: int = 2, more: tuple[int, ...] = (), fills: dict[int, int] | None = None
) -> None:
    if not ranks_known(op, [a, b]):
        return
    left = ["k", "m"] if op.attr("transA", 0) else ["m", "k"]
    right = ["n", "k"] if op.attr("transB", 0) else ["k", "n"]
    ins = {a: spell(op.dims(a), left), b: spell(op.dims(b), right)}
    if op.has(c):
        ins[c] = spell(op.dims(c), ["m", "n"][2 - len(op.dims(c)) :]) if op.dims(c) else []
    ins |= {i: _vector(op, i, "n") for i in more if op.has(i)}
    op.eq(ins, {0: ["m", "n"]}, macs="mkn", fills=fills, text="a matrix product with a fixed side")


def qgemm(op: Op) -> None:
    gemm(op, 0, 3, 6, (4, 5), {0: 2, 3: 5})


def _matmul(
    op: Op, a: int, b: int, rows: tuple[int, ...] = (), columns: tuple[int, ...] = (), both: tuple[int, ...] = (),
    fills: dict[int, int] | None = None,
) -> None:  # fmt: skip
    """rows, columns, both: scales and zero points of the left side, the right one, the result: one for all, or one a
    row (of the left and the result) or column (of the right), with batch axes or without."""
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
    out = [*letters, *("M" if left > 1 else ""), *("N" if right > 1 else "")]
    ins = {a: spell(op.dims(a), one), b: spell(op.dims(b), two)}
    for told, spelled, row in ((rows, one, "M"), (columns, two, "N"), (both, out, "M")):
        for i in (i for i in told if op.has(i)):
            dims = op.dims(i)
            ins[i] = spell(dims, [row] if len(dims) == 1 else spelled[-len(dims) :])
    op.eq(ins, {0: out}, macs=letters + "MKN", fills=fills, text="a matrix product with a fixed side")


def matmul(op: Op) -> None:
    if op.attr("transBatchA", 0) or op.attr("transBatchB", 0):
        return op.freeze("batch axes are transposed inside the operator")
    _matmul(op, 0, 1)


def matmul_integer(op: Op) -> None:
    _matmul(op, 0, 1, (2,), (3,), fills={0: 2, 1: 3})


def qlinear_matmul(op: Op) -> None:
    _matmul(op, 0, 3, (1, 2), (4, 5), (6, 7), {0: 2, 3: 5})


def einsum(op: Op) -> None:
    used = list(range(len(op.node.input)))
    if not ranks_known(op, used):
        return
    terms = op.attr("equation").replace(" ", "").split("->")
    sides = terms[0].split(",")
    spare = [x for x in reversed(LETTERS) if x not in op.attr("equation")]
    widest = max((len(op.dims(i)) - len(s) + 3 for i, s in enumerate(sides) if "..." in s), default=0)
    dots = "".join(spare[:widest])

    def expand(text: str, rank: int | None) -> str:
        if "..." not in text:
            return text
        n = widest if rank is None else rank - len(text) + 3
        return text.replace("...", dots[widest - n :])

    lefts = [expand(s, len(op.dims(i))) for i, s in enumerate(sides)]
    if len(terms) == 2:
        out = expand(terms[1], None)
    else:
        flat = "".join(lefts)
        out = dots + "".join(sorted(x for x in set(flat) if flat.count(x) == 1 and x not in dots))
    twice = {x for s in lefts for x in s if s.count(x) > 1}  # a diagonal
    op.eq(
        {i: spell(op.dims(i), list(s)) for i, s in enumerate(lefts)}, {0: ["" if x in twice else x for x in out]},
        macs="".join(dict.fromkeys("".join(lefts))) if len(used) > 1 else "", text="an einsum with a fixed side",
        pinned="".join(sorted(twice)),
    )  # fmt: skip
