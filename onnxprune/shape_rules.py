"""What ONNX's own shape inference leaves out: targets known in part, and whether a node can run at its shapes.

Knows one node, not the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx import NodeProto, TensorProto

from .values import Array, Dims, Value

Kind = tuple[int, Dims | None] | bytes
"""(element type, dims) of a tensor; the serialised TypeProto of a sequence, map or optional."""

_SPATIAL = frozenset(["Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "MaxPool", "AveragePool", "LpPool"])
LIKE_FIRST = frozenset(["GroupNormalization"])
"""Operators whose first output has the shape of the first input although ONNX's inference may not say so."""
_TARGETED = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}
"""Operators with a target shape, and at which input."""
MOST_AXES = 64
"""Of any tensor; numpy ends there."""


def dims_of(kind: Kind | None) -> Dims | None:
    return kind[1] if isinstance(kind, tuple) else None


def total(dims: Dims | None) -> int | None:
    known = [d for d in dims or () if d is not None]
    return math.prod(known) if dims is not None and len(known) == len(dims) else None


def plausible(node: NodeProto, kinds: Sequence[Kind | None], out: Sequence[Kind | None]) -> bool:
    """Whether the node can run at these shapes, as far as ONNX's inference does not check it."""
    dims = [dims_of(k) for k in out]
    if any(d is not None and d < (node.op_type in _SPATIAL) for ds in dims if ds for d in ds):
        return False
    if node.op_type == "Reshape":
        before, after = total(dims_of(kinds[0])), total(dims[0])
        return before is None or after is None or before == after
    return True


def possible(node: NodeProto, kinds: Sequence[Kind | None], index: Value | None) -> bool:
    """Whether a node may be shown to ONNX's inference at all: a target shape of a million axes is written out there."""
    at = _TARGETED.get(node.op_type)
    target = dims_of(kinds[at]) if at is not None and at < len(kinds) else None
    if target and (target[0] or 0) > MOST_AXES:
        return False
    return in_range(node, dims_of(kinds[0]) if kinds else None, index)


def in_range(node: NodeProto, dims: Dims | None, index: Value | None) -> bool:
    """Whether a Gather finds its known indices: a table of positions, a mask over the past are only so long."""
    if node.op_type not in ("Gather", "GatherND") or not dims or index is None or not index.data.size:
        return True
    if node.op_type == "GatherND":
        skipped = next((a.i for a in node.attribute if a.name == "batch_dims"), 0)
        lists = index.data.reshape(-1, index.data.shape[-1]).T
        return all(_within(x, n) for x, n in zip(lists, dims[skipped:], strict=False))
    return _within(index.data, dims[next((a.i for a in node.attribute if a.name == "axis"), 0)])


def _within(index: Array, size: int | None) -> bool:
    return size is None or -size <= int(index.min()) <= int(index.max()) < size


def from_partial(
    node: NodeProto, kinds: Sequence[Kind | None], values: Sequence[Value | None]
) -> list[Kind | None] | None:
    """Shapes that are known in part because their target is: ONNX's inference would give up all of them."""
    op = node.op_type
    if op == "Slice" and len(kinds) > 3 and isinstance(kinds[0], tuple) and kinds[0][1] is not None:
        axes = values[3]
        if axes is None or axes.known is not None or all(v is not None and v.known is None for v in values[1:3]):
            return None
        cut = {int(a) % len(kinds[0][1]) for a in axes.data.reshape(-1)}
        return [(kinds[0][0], tuple(None if i in cut else d for i, d in enumerate(kinds[0][1])))]
    if op == "TopK" and len(kinds) > 1 and values[1] is None and isinstance(kinds[0], tuple) and kinds[0][1]:
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1) % len(kinds[0][1])
        found = tuple(None if i == axis else d for i, d in enumerate(kinds[0][1]))
        return [(kinds[0][0], found), (TensorProto.INT64, found)]
    if op not in _TARGETED:
        return None
    target, length = values[_TARGETED[op]], total(dims_of(kinds[_TARGETED[op]]))
    if (target is not None and target.known is None) or length is None or not isinstance(kinds[0], tuple):
        return None
    wanted: list[int | None] = [None] * length
    if target is not None:
        wanted = [int(d) if k else None for d, k in zip(target.data, target.mask, strict=True)]
    if op == "Reshape":
        zero = any(a.name == "allowzero" and a.i for a in node.attribute)
        source = kinds[0][1] or ()
        copied = [source[i] if d == 0 and not zero and i < len(source) else d for i, d in enumerate(wanted)]
        return [(kinds[0][0], tuple(None if d == -1 else d for d in copied))]
    if op == "Expand":
        before = kinds[0][1]
        if before is None:
            return None
        rank = max(length, len(before))
        old: list[int | None] = [*(1,) * (rank - len(before)), *before]
        new: list[int | None] = [*(1,) * (rank - length), *wanted]
        return [(kinds[0][0], tuple(_broadcast(a, b) for a, b in zip(old, new, strict=True)))]
    element = next((a.t.data_type for a in node.attribute if a.name == "value"), TensorProto.FLOAT)
    return [(element, tuple(wanted))]


def _broadcast(a: int | None, b: int | None) -> int | None:
    if a == 1 or b == 1:
        return b if a == 1 else a
    return b if a is None else a
