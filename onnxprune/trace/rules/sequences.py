"""Sequences and optionals: tensors that are put in under their names, and taken out again.

A sequence of which it is not known what it holds keeps everything. A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnxprune.trace.editor import Editor
from onnxprune.trace.labels import Block
from onnxprune.trace.node_editor import new_dims
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import own_axis, ranks_known
from onnxprune.trace.rules.control import one_tensor, shifted
from onnxprune.trace.rules.joining import concat, part

UNKNOWN = "it is not known what the sequence holds"
SPLIT = 1
"""The input that lists the sizes of parts."""


def _as(op: Op, op_type: str, inputs: tuple[str, ...], outputs: tuple[str, ...], axis: int) -> Op:
    """The same node as another operator, of tensors instead of a sequence."""
    return Op(op.trace, op.index, helper.make_node(op_type, inputs, outputs, op.node.name, axis=axis))


def put(op: Op) -> None:
    """SequenceConstruct, SequenceInsert, SequenceErase, SequenceEmpty, Optional: tensors go in as they are; of
    parameters nothing goes that way."""
    if op.out_elements() is None:
        return op.freeze(UNKNOWN)
    op.freeze("a parameter in a sequence", inputs=[i for i in range(len(op.inputs)) if op.is_parameter(i)])
    return counted(op)


def counted(op: Op) -> None:
    """SequenceLength, OptionalHasElement: how many tensors there are, which stays."""
    op.seen.update(range(len(op.inputs)))


def take(op: Op) -> None:
    """SequenceAt, OptionalGetElement: the tensor at a position, or the only one."""
    if op.out_rank() is None and op.out_elements() is not None:
        return counted(op)  # an optional gives the sequence that it holds
    names, at = op.elements(0), op.value(1) if op.has(1) else np.zeros(1, np.int64)
    if names is None or at is None or not -len(names) <= int(at.ravel()[0]) < len(names):
        return op.freeze(UNKNOWN)
    counted(op)
    return op.set(0, op.blocks_of(names[int(at.ravel()[0])]))


def split(op: Op) -> None:
    """SplitToSequence: runs of positions of one axis, or its positions, one by one."""
    names = op.out_elements()
    if names is None or not ranks_known(op, [0]):
        return op.freeze(UNKNOWN)
    axis = own_axis(op, 0, len(op.dims(0)))
    if len(op.dims_of(names[0]) or ()) < len(op.dims(0)):
        op.freeze_axis(0, axis, "its positions are told apart")
        rest = [shifted(b, axis, -1) for b in op.blocks(0) if axis not in b.axes]
        for name in names:
            op.enter(name, rest)
        return None
    if part(_as(op, "Split", op.inputs[:1], names, axis), axis):
        op.edit(lambda e: _sizes(e, names, axis))
    return None


def _sizes(e: Editor, names: tuple[str, ...], axis: int) -> None:
    """The sizes of the parts are written where they change."""
    old = [e.dims(name)[axis] for name in names]
    new = [new_dims(e.dims(name), e.trace.of(name), e.mask)[axis] for name in names]
    if old != new:
        e.const(SPLIT, np.array(new, np.int64))


def join(op: Op) -> None:
    """ConcatFromSequence: tensors side by side, on an axis of theirs or on a new one."""
    names = op.elements(0)
    if names is None or op.out_rank() is None:
        return op.freeze(UNKNOWN)
    axis = op.attr("axis") % (op.out_rank() or 1)
    if not op.attr("new_axis", 0):
        return concat(_as(op, "Concat", names, op.outputs, axis))
    blocks: tuple[Block, ...] = one_tensor(op, names, "stacked with an axis of fixed size")
    return op.set(0, [shifted(b, axis) for b in blocks])
