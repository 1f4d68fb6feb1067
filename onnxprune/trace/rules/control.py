"""If, Loop, Scan: what enters a body and what leaves it bears the same labels; the body is traced like any graph.

What a loop carries is one tensor in turn: what it begins with, what a body gives back and what comes out in the end are
coupled position by position, so that whatever holds for one run of the body holds for all. A rule knows one `Op` and
may have its bodies traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxprune.shapes import scan_parts
from onnxprune.trace.equation import Equation
from onnxprune.trace.labels import Block
from onnxprune.trace.op import Op
from onnxprune.trace.operands import Operand
from onnxprune.trace.rules.base import spell
from onnxprune.trace.rules.inputs import Loop

SEEN = "its body sees the whole tensor"


def if_(op: Op) -> None:
    """If: what the branches give is one tensor. Of a run one branch is part, either as likely as the other."""
    branches = [op.body(name) for name in ("then_branch", "else_branch")]
    given = []
    for body in branches:
        if body is None:
            return op.freeze("a branch is missing")
        op.trace_body(body, 1 / len(branches))
        given.append([o.name for o in body.graph.output])
    for k, names in enumerate(zip(*given, strict=True)):
        op.set(k, one_tensor(op, names, "the branches differ"))


def loop(op: Op) -> None:
    """Loop: what is carried is one tensor in turn; what is given once a turn gets a new first axis."""
    body = op.body("body")
    if body is None:
        return op.freeze("the body is missing")
    op.freeze(SEEN, inputs=(Loop.COUNT, Loop.CONDITION))
    count = op.value(Loop.COUNT)
    inner = [i.name for i in body.graph.input]
    carried = range(Loop.CARRIED, len(op.inputs))
    for i in carried:
        _bind(op, inner[i], i)
    op.trace_body(body, float(count.ravel()[0]) if count is not None and count.size else 1.0)
    outer = [o.name for o in body.graph.output]
    for i in carried:  # the body does not give the count back, and the node not the condition either
        op.set(i - Loop.CARRIED, _carried(op, inner[i], outer[i - 1]))
    for k in range(len(carried), len(outer) - 1):
        op.set(k, [shifted(b, 0) for b in op.blocks_of(outer[k + 1])])


def scan(op: Op) -> None:
    """Scan: states are carried like those of a loop; the others come and go position by position along an axis."""
    body = op.body("body")
    states, in_axes, out_axes = scan_parts(op.node)
    if body is None or len(op.inputs) != len(body.graph.input):
        return op.freeze("this form of Scan is not followed")  # that of opset 8, with a batch of its own
    inner, outer = [i.name for i in body.graph.input], [o.name for o in body.graph.output]
    for i in range(states):
        _bind(op, inner[i], i)
    turns = [_enter_by_position(op, inner[i], i, axis) for i, axis in enumerate(in_axes, states)]
    op.trace_body(body, float(next((n for n in turns if n is not None), 1)))
    for i in range(states):
        op.set(i, _carried(op, inner[i], outer[i]))
    for name, k, axis in zip(outer[states:], range(states, len(op.outputs)), out_axes, strict=False):
        dims, blocks = op.dims_of(name), op.blocks_of(name)
        if dims is None:
            op.freeze_blocks(blocks, SEEN)
        else:
            op.set(k, [shifted(b, axis % (len(dims) + 1)) for b in blocks])


def _enter_by_position(op: Op, inner: str, i: int, axis: int) -> int | None:
    """Input `i` enters a body without `axis`, whose size is given back: so often the body runs."""
    rank = op.rank(i)
    if rank is None:
        op.freeze(SEEN, inputs=(i,))
        return None
    axis %= rank
    op.freeze_axis(i, axis, "its body sees one position at a time")
    op.enter(inner, [shifted(b, axis, -1) for b in op.blocks(i) if axis not in b.axes])
    return op.dims(i)[axis]


def _bind(op: Op, inner: str, i: int) -> None:
    """What is carried enters the body as it is, where its shape is the same in every turn."""
    dims = op.dims_of(inner)
    if op.has(i) and dims is not None and dims == op.dims(i):
        op.enter(inner, op.blocks(i))
    else:
        op.freeze("what is carried changes its shape", inputs=(i,))


def _carried(op: Op, inner: str, outer: str) -> tuple[Block, ...]:
    return one_tensor(op, (inner, outer), "carried with an axis of fixed size")


def one_tensor(op: Op, names: Sequence[str], text: str) -> tuple[Block, ...]:
    """The blocks of tensors that stand for one another: coupled position by position."""
    blocks = [op.blocks_of(name) for name in names]
    dims = [d for d in map(op.dims_of, names) if d is not None]
    if len(dims) < len(names) or len({len(d) for d in dims}) > 1:
        for own in blocks:
            op.freeze_blocks(own, "its shape is not known")
        return ()
    operands = [Operand(name, spell(d), d, own) for name, d, own in zip(names, dims, blocks, strict=True)]
    equation = Equation(op.labels, op.why(text), operands)
    equation.solve()
    return equation.output(spell(dims[0]))


def shifted(block: Block, axis: int, by: int = 1) -> Block:
    """The block where a new axis comes in at `axis`; by -1, where that one, on which it does not lie, is gone."""
    return replace(block, axes=tuple(a + by * (a >= axis) for a in block.axes))
