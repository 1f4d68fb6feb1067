"""What the rules share: spelling of axes, and editing along one labelled axis. Knows one `Op`, not the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from string import ascii_lowercase, ascii_uppercase

import numpy as np

from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.op import Misfit, Op
from onnxprune.trace.operands import Dims

LETTERS = ascii_lowercase + ascii_uppercase
CAPITALS = ascii_uppercase
"""For axes that have no counterpart among those of the data, which are spelled in small letters."""


def spell(dims: Dims, letters: Sequence[str] | None = None) -> list[str]:
    """One letter an axis, none where the axis is of size one."""
    return ["" if n == 1 else x for n, x in zip(dims, letters or LETTERS, strict=False)]


def aligned(dims: Dims, rank: int) -> list[str]:
    """The spelling of an operand that is broadcast, right-aligned, to `rank` axes."""
    return spell(dims, LETTERS[rank - len(dims) : rank])


def ranks_known(op: Op, inputs: Sequence[int], outputs: Sequence[int] = ()) -> bool:
    """Whether the number of axes of these inputs and outputs is known; where it is not, all that comes in stays."""
    known = all(op.rank(i) is not None for i in inputs if op.has(i))
    known = known and all(op.out_rank(i) is not None for i in outputs)
    if not known and op.labelled():
        op.freeze("the rank of a tensor is not known")
    return known


def axis_of(op: Op, default: int, rank: int) -> int:
    """The axis that the attribute `axis` gives, counted from the front."""
    axis = int(op.attr("axis", default))
    return axis + rank if axis < 0 else axis


def own_axis(op: Op, default: int, rank: int) -> int:
    """The axis that the attribute gives. Misfit where it is none of the input's."""
    axis = axis_of(op, default, rank)
    if not 0 <= axis < rank:
        raise Misfit(f"its axis {op.attr('axis', default)} is none of the {rank} that it is given")
    return axis


def axes_of(op: Op, rank: int, i: int = 1) -> list[int] | None:
    """Axes given as input `i` or as attribute; None where they are not given, or not known."""
    value = op.value(i) if op.has(i) else op.attr("axes")
    return None if value is None else [int(a) % rank for a in np.asarray(value).ravel()]


def unary(op: Op, also: Sequence[int] = ()) -> None:
    """Position by position on the first input; `also`: further outputs of the same shape."""
    if ranks_known(op, [0]):
        spelled = spell(op.dims(0))
        op.eq({0: spelled}, {0: spelled, **dict.fromkeys(also, spelled)})


def first_only(op: Op) -> None:
    """Everything but the first input is a scalar, or lends its type only."""
    unary(op)
    op.seen.update(range(1, len(op.inputs)))


SUMS = ("Add", "Sub", "Sum", "Mean", "com.microsoft::QLinearAdd")
"""Elementwise operators by which branches are added."""


def pointwise(op: Op) -> None:
    """Numpy broadcasting over all inputs; the scales and zero points of quantised ones are scalars among them."""
    used = [i for i in range(len(op.inputs)) if op.has(i)]
    if ranks_known(op, used):
        rank = max(len(op.dims(i)) for i in used)
        op.eq({i: aligned(op.dims(i), rank) for i in used}, {0: list(LETTERS[:rank])})
        if op.type in SUMS:
            note_sum_of(op, used, used)


def channel_axis(op: Op, rank: int) -> int:
    """Where the channels of an image are: behind its spatial axes, if the operator says so, else after the batch."""
    last = op.attr("channels_last", 0) or op.type.startswith("com.microsoft::Nhwc")
    return rank - 1 if last else 1


def note_sum_of(op: Op, positions: Iterable[int], terms: Iterable[int]) -> None:
    """The output is a sum of what is made of the inputs `terms`; `positions`: those of them that go into it position
    by position. Where two are computed, and not parameters, these are branches that are added."""
    if sum(bool(op.blocks(i)) and not op.is_parameter(i) for i in terms) > 1:
        for b in (b for i in positions if not op.is_parameter(i) for b in op.blocks(i)):
            op.note_added(b.ids)


def opaque(op: Op) -> None:
    """The operator looks at the whole tensor, or at positions by value: nothing that reaches it may change."""
    op.freeze("looks at positions by value")


def inner_parts(op: Op, block: Block, axis: int, cuts: Sequence[int]) -> list[Ids]:
    """Cut a block along `axis` at the given positions. Rows of a nested block must go together in every part."""
    k = block.axes.index(axis)
    parts = np.split(block.ids, list(cuts), axis=k)
    parts = [p for p in parts if p.shape[k]]
    if k > 0 and len(parts) > 1:
        turned = [np.moveaxis(p, k, -1) for p in parts] if k == block.ids.ndim - 1 else None
        for part in parts:
            op.labels.rectangle(part)
            if turned is not None:
                op.couple(op.labels.derive(part), op.labels.derive(block.ids))
            else:  # a middle axis: too many ways to go wrong, its outer axes stay
                outer = block.ids
                for _ in range(block.ids.ndim - 1):
                    outer = op.labels.derive(outer)
                op.freeze_ids(outer, "cuts a middle axis")
    return parts


def remap(block: Block, ids: Ids, axes: Sequence[int | None]) -> Block | None:
    """A block over new axes; those of size one or without an axis are dropped."""
    keep = [k for k, a in enumerate(axes) if a is not None and ids.shape[k] > 1]
    if not keep:
        return None
    index = tuple(slice(None) if k in keep else 0 for k in range(ids.ndim))
    return Block(tuple(a for k in keep if (a := axes[k]) is not None), ids[index])


def rows_of(op: Op, block: Block) -> Ids:
    """The ids of a block along its first axis."""
    ids = block.ids
    while ids.ndim > 1:
        ids = op.labels.derive(ids)
    return ids
