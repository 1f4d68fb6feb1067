"""Indices that are computed along axes of run-time size: an offset for every place, and a step along each open axis.

That is what exporters write for `as_strided`, windows and positions: sums of ranges times strides. Knows one node, not
the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.model import attribute
from onnxprune.shapes.quotients import floor_div, mod, quotient
from onnxprune.shapes.symbolic_values import LIMIT, Array, Value
from onnxprune.shapes.symbols import Dim, Size, lower


@dataclass(frozen=True)
class Grid:
    """The entry at (i, j, ..) is base[i, j, ..] + steps[0] * i + ..: `base` has one place along the axes of `steps`,
    which are open; `dims` are the sizes of all axes."""

    base: Array
    steps: Mapping[int, Dim]
    dims: tuple[Dim, ...]

    @staticmethod
    def of(value: Value) -> Grid:
        """Known indices: a grid without an open axis."""
        return Grid(value.data.astype(object), {}, value.data.shape)


def follow(node: NodeProto, given: Sequence[Grid | None], dims: tuple[Dim | None, ...] | None) -> Grid | None:
    """What the node gives where its inputs are such grids; `dims`: of its output. None where it is no grid any more."""
    if dims is None or None in dims or not given or given[0] is None:
        return None
    sizes = tuple(d for d in dims if d is not None)
    operands = [g for g in given if g is not None]
    try:
        if node.op_type in _OF_FIRST:  # its other inputs say sizes and axes, as `dims` do
            return _OF_FIRST[node.op_type](given[0], sizes)
        if len(operands) < len(given) or len(given) != (3 if node.op_type == "Range" else 2):
            return None
        return _OF_ALL[node.op_type](node, operands, sizes)
    except (ArithmeticError, TypeError, ValueError):
        return None


def _counted(node: NodeProto, ends: Sequence[Grid], sizes: tuple[Dim, ...]) -> Grid | None:
    if any(g.base.size != 1 or g.steps for g in ends) or not isinstance(sizes[0], Size):
        return None
    start, _, step = (g.base.reshape(-1)[0] for g in ends)
    return Grid(_array([start]), {0: step}, sizes)


def _unmoved(x: Grid, sizes: tuple[Dim, ...]) -> Grid:
    return Grid(x.base, x.steps, sizes)


def _array(entries: Sequence[Any]) -> Array:
    out = np.empty(len(entries), object)
    out[:] = entries
    return out


def _placed(x: Grid, sizes: tuple[Dim, ...]) -> Grid | None:
    """With more axes, or fewer, of one place each; along new ones of several all is the same."""
    own = [k for k, n in enumerate(x.dims) if n != 1]
    places, k = dict[int, int](), len(sizes)
    for axis in reversed(own):  # the inner axes of an Expand are those that were there
        k -= 1
        while k >= 0 and sizes[k] != x.dims[axis]:
            k -= 1
        if k < 0:
            return None
        places[axis] = k
    shape = [1] * len(sizes)
    for axis, at in places.items():
        shape[at] = x.base.shape[axis]
    fresh = {k: 0 for k, n in enumerate(sizes) if isinstance(n, Size) and k not in places.values()}
    base = x.base.reshape(shape)
    full = [1 if isinstance(n, Size) else n for n in sizes]
    if np.prod(full) > LIMIT:
        return None
    return Grid(np.broadcast_to(base, full), {**{places[a]: s for a, s in x.steps.items()}, **fresh}, sizes)


def _picked(node: NodeProto, operands: Sequence[Grid], sizes: tuple[Dim, ...]) -> Grid | None:
    """Fixed places along an axis, or a table that is looked up at places which are the same along every open axis."""
    x, index = operands
    axis = attribute(node, "axis", 0) % len(x.dims)
    if any(step != 0 for step in index.steps.values()) or axis in x.steps:
        return None
    if index.steps and len(x.dims) > 1:
        return None
    more = index.base.ndim - 1
    base = np.asarray(np.take(x.base, index.base.astype(np.int64), axis=axis), object)
    steps = {k + more if k > axis else k: s for k, s in x.steps.items()}
    return Grid(base, steps | {k + axis: 0 for k in index.steps}, sizes)


def _divided(node: NodeProto, operands: Sequence[Grid], sizes: tuple[Dim, ...]) -> Grid | None:
    """The quotient by a number that divides every step, or what is left of it."""
    x, divisor = operands
    by = _number(divisor)
    if not isinstance(by, int):
        return None
    steps = {k: quotient(s, by) for k, s in x.steps.items()}
    if None in steps.values() or any(lower(n) < 0 for n in (*x.base.ravel(), *x.steps.values())):
        return None
    f = mod if node.op_type == "Mod" else floor_div
    base = _array([f(n, by) for n in x.base.ravel()]).reshape(x.base.shape)
    return Grid(base, {k: 0 if node.op_type == "Mod" or s is None else s for k, s in steps.items()}, sizes)


def _number(x: Grid) -> Any:
    """The entry of a grid of one; None for others."""
    return x.base.reshape(-1)[0] if not x.steps and x.base.size == 1 else None


def _summed(node: NodeProto, operands: Sequence[Grid], sizes: tuple[Dim, ...]) -> Grid | None:
    x, y = (_aligned(g, len(sizes)) for g in operands)
    if not _fills(x, sizes) or not _fills(y, sizes):
        return None
    sign = 1 if node.op_type == "Add" else -1
    steps = {k: x.steps.get(k, 0) + sign * y.steps.get(k, 0) for k in x.steps.keys() | y.steps.keys()}
    return Grid(np.asarray(x.base + sign * y.base, object), steps, sizes)


def _scaled(node: NodeProto, operands: Sequence[Grid], sizes: tuple[Dim, ...]) -> Grid | None:
    """A grid times a number, in whichever order."""
    x, y = (_aligned(g, len(sizes)) for g in operands)
    if not _fills(x, sizes) or not _fills(y, sizes):
        return None
    x, factor = (x, _number(y)) if _number(y) is not None else (y, _number(x))
    return None if factor is None else Grid(x.base * factor, {k: s * factor for k, s in x.steps.items()}, sizes)


def _aligned(x: Grid, rank: int) -> Grid:
    more = rank - len(x.dims)
    return Grid(x.base.reshape((1,) * more + x.base.shape), {k + more: s for k, s in x.steps.items()},
                (*(1,) * more, *x.dims))  # fmt: skip


def _fills(x: Grid, sizes: tuple[Dim, ...]) -> bool:
    """Whether it has one place or all of them along each open axis, and together with others not too many."""
    if any(isinstance(n, Size) and x.dims[k] not in (1, n) for k, n in enumerate(sizes)):
        return False
    return bool(np.prod([1 if isinstance(n, Size) else n for n in sizes]) <= LIMIT)


_OF_FIRST: dict[str, Callable[[Grid, tuple[Dim, ...]], Grid | None]] = {
    "Cast": _unmoved, "Identity": _unmoved, "Unsqueeze": _placed, "Reshape": _placed, "Expand": _placed,
}  # fmt: skip
_OF_ALL: dict[str, Callable[[NodeProto, Sequence[Grid], tuple[Dim, ...]], Grid | None]] = {
    "Range": _counted, "Gather": _picked, "Mod": _divided, "Div": _divided, "Add": _summed, "Sub": _summed,
    "Mul": _scaled,
}  # fmt: skip
FOLLOWED = _OF_FIRST.keys() | _OF_ALL.keys()
"""Operators that make grids, or other grids of grids."""
