"""If, Loop, Scan: what enters a body and what leaves it bears the same labels; the body is traced like any graph.

What a loop carries is one tensor in turn: what it begins with, what a body gives back and what comes out in the end are
coupled position by position, so that whatever holds for one run of the body holds for all. A rule knows one `Op` and
may have its bodies traced.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.shapes import scan_parts
from onnxprune.trace.equation import Equation, Operand
from onnxprune.trace.labels import Block
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import spell

Named = tuple[str, tuple[Block, ...]]
SEEN = "its body sees the whole tensor"


def if_(op: Op) -> None:
    branches = [op.trace.scope(op.index, name) for name in ("then_branch", "else_branch")]
    given = []
    for scope in branches:
        if scope is None:
            return op.freeze("a branch is missing")
        op.trace.enter(scope)
        given.append([o.name for o in scope.graph.output])
    for k, names in enumerate(zip(*given, strict=True)):
        op.set(k, _one(op, [(name, op.trace.of(name)) for name in names], "the branches differ"))


def loop(op: Op) -> None:
    scope = op.trace.scope(op.index, "body")
    if scope is None:
        return op.freeze("the body is missing")
    op.freeze(SEEN, inputs=(0, 1))
    count = op.value(0)
    inner = [i.name for i in scope.graph.input]
    carried = range(2, len(op.inputs))
    for i in carried:
        _bind(op, inner[i], i)
    op.trace.enter(scope, float(count.ravel()[0]) if count is not None and count.size else 1.0)
    outer = [o.name for o in scope.graph.output]
    for i in carried:
        op.set(i - 2, _carried(op, inner[i], outer[i - 1]))
    for k in range(len(carried), len(outer) - 1):
        op.set(k, [_shifted(b, 0) for b in op.trace.of(outer[k + 1])])


def scan(op: Op) -> None:
    scope = op.trace.scope(op.index, "body")
    states, given, gives = scan_parts(op.node)
    if scope is None or len(op.inputs) != len(scope.graph.input):
        return op.freeze("this form of Scan is not followed")  # that of opset 8, with a batch of its own
    inner, outer = [i.name for i in scope.graph.input], [o.name for o in scope.graph.output]
    for i in range(states):
        _bind(op, inner[i], i)
    turns: list[int] = []
    for i, axis in enumerate(given, states):
        rank = op.rank(i)
        if rank is None:
            op.freeze(SEEN, inputs=(i,))
            continue
        axis %= rank
        turns += [n for n in op.dims(i)[axis : axis + 1] if n is not None]
        op.freeze_axis(i, axis, "its body sees one position at a time")
        op.enter(inner[i], [_dropped(b, axis) for b in op.blocks(i) if axis not in b.axes])
    op.trace.enter(scope, float(turns[0]) if turns else 1.0)
    for i in range(states):
        op.set(i, _carried(op, inner[i], outer[i]))
    for name, k, axis in zip(outer[states:], range(states, len(op.outputs)), gives, strict=False):
        rank = op.trace.rank(name)
        blocks = op.trace.of(name)
        if rank is None:
            _hold(op, blocks, SEEN)
            continue
        op.set(k, [_shifted(b, axis % (rank + 1)) for b in blocks])


def _bind(op: Op, inner: str, i: int) -> None:
    """What is carried enters the body as it is, where its shape is the same in every turn."""
    if op.has(i) and op.trace.shapes.static(inner) is not None and op.trace.shapes.static(inner) == op.dims(i):
        op.enter(inner, op.blocks(i))
    else:
        op.freeze("what is carried changes its shape", inputs=(i,))


def _carried(op: Op, inner: str, outer: str) -> tuple[Block, ...]:
    return _one(op, [(name, op.trace.of(name)) for name in (inner, outer)], "carried with an axis of fixed size")


def _one(op: Op, tensors: Sequence[Named], text: str) -> tuple[Block, ...]:
    """Tensors that stand for one another: coupled position by position."""
    dims = [op.trace.shapes.static(name) for name, _ in tensors]
    if any(d is None or len(d) != len(dims[0] or ()) for d in dims):
        for _, blocks in tensors:
            _hold(op, blocks, "its shape is not known")
        return ()
    operands = [Operand(n, spell(d or ()), d or (), blocks) for (n, blocks), d in zip(tensors, dims, strict=True)]
    equation = Equation(op.trace.labels, op.why(text), operands)
    equation.solve()
    return equation.output(spell(dims[0] or ()))


def _hold(op: Op, blocks: Sequence[Block], text: str) -> None:
    for block in blocks:
        op.trace.labels.freeze(block.ids, op.why(text))


def _shifted(block: Block, axis: int) -> Block:
    """The block where a new axis comes in at `axis`."""
    return Block(tuple(a + (a >= axis) for a in block.axes), block.ids, block.coarse)


def _dropped(block: Block, axis: int) -> Block:
    return Block(tuple(a - (a > axis) for a in block.axes), block.ids, block.coarse)
