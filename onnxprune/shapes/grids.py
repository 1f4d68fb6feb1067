"""Indices that are computed along axes of run-time size: an offset for every place, and a step along each open axis.

That is what exporters write for `as_strided`, windows and positions: sums of ranges times strides. Knows one node, not
the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.shapes.quotients import floor_div, mod, quotient
from onnxprune.shapes.symbolic_values import LIMIT, Array, Value
from onnxprune.shapes.symbols import Dim, Size, lower

FOLLOWED = frozenset(
    ["Range", "Add", "Sub", "Mul", "Mod", "Div", "Gather", "Unsqueeze", "Reshape", "Expand", "Cast", "Identity"]
)


@dataclass(frozen=True)
class Grid:
    """The entry at (i, j, ..) is base[i, j, ..] + steps[0] * i + ..: `base` has one place along the axes of `steps`,
    which are open; `dims` are the sizes of all axes."""

    base: Array
    steps: Mapping[int, Dim]
    dims: tuple[Dim, ...]

    @staticmethod
    def of(value: Value) -> Grid:
        return Grid(value.data.astype(object), {}, value.data.shape)


def follow(node: NodeProto, given: Sequence[Grid | None], dims: tuple[Dim | None, ...] | None) -> Grid | None:
    """What the node gives where its inputs are such grids; `dims`: of its output. None where it is no grid any more."""
    if dims is None or None in dims or not given or given[0] is None:
        return None
    sizes = tuple(d for d in dims if d is not None)
    x = given[0]
    try:
        match node.op_type:
            case "Range" if all(g is not None and g.base.size == 1 and not g.steps for g in given):
                start, _, step = (g.base.reshape(-1)[0] for g in given if g is not None)
                return Grid(_array([start]), {0: step}, sizes) if isinstance(sizes[0], Size) else None
            case "Cast" | "Identity":
                return Grid(x.base, x.steps, sizes)
            case "Unsqueeze" | "Reshape" | "Expand":
                return _placed(x, sizes)
            case "Gather" if len(given) == 2 and given[1] is not None:
                return _picked(x, given[1], next((a.i for a in node.attribute if a.name == "axis"), 0), sizes)
            case "Mod" | "Div" if len(given) == 2 and given[1] is not None and _one_number(given[1]):
                return _divided(node.op_type, x, given[1].base.reshape(-1)[0], sizes)
            case "Add" | "Sub" | "Mul" if len(given) == 2 and given[1] is not None:
                return _combined(node.op_type, x, given[1], sizes)
    except (ArithmeticError, TypeError, ValueError):
        return None
    return None


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


def _one_number(x: Grid) -> bool:
    return not x.steps and x.base.size == 1 and isinstance(x.base.reshape(-1)[0], int)


def _picked(x: Grid, index: Grid, axis: int, sizes: tuple[Dim, ...]) -> Grid | None:
    """Fixed places along an axis, or a table that is looked up at places which are the same along every open axis."""
    axis %= len(x.dims)
    if any(step != 0 for step in index.steps.values()) or axis in x.steps:
        return None
    if index.steps and len(x.dims) > 1:
        return None
    more = index.base.ndim - 1
    base = np.asarray(np.take(x.base, index.base.astype(np.int64), axis=axis), object)
    steps = {k + more if k > axis else k: s for k, s in x.steps.items()}
    return Grid(base, steps | {k + axis: 0 for k in index.steps}, sizes)


def _divided(op: str, x: Grid, by: int, sizes: tuple[Dim, ...]) -> Grid | None:
    """The quotient by a number that divides every step, or what is left of it."""
    steps = {k: quotient(s, by) for k, s in x.steps.items()}
    if None in steps.values() or any(lower(n) < 0 for n in (*x.base.ravel(), *x.steps.values())):
        return None
    f = mod if op == "Mod" else floor_div
    base = _array([f(n, by) for n in x.base.ravel()]).reshape(x.base.shape)
    return Grid(base, {k: 0 if op == "Mod" or s is None else s for k, s in steps.items()}, sizes)


def _combined(op: str, x: Grid, y: Grid, sizes: tuple[Dim, ...]) -> Grid | None:
    x, y = (_aligned(g, len(sizes)) for g in (x, y))
    if any(isinstance(n, Size) and g.dims[k] not in (1, n) for g in (x, y) for k, n in enumerate(sizes)):
        return None
    if np.prod([1 if isinstance(n, Size) else n for n in sizes]) > LIMIT:
        return None
    if op == "Mul":
        x, y = (x, y) if not y.steps and y.base.size == 1 else (y, x)
        if y.steps or y.base.size != 1:
            return None
        factor = y.base.reshape(-1)[0]
        return Grid(x.base * factor, {k: s * factor for k, s in x.steps.items()}, sizes)
    sign = 1 if op == "Add" else -1
    steps = {k: x.steps.get(k, 0) + sign * y.steps.get(k, 0) for k in x.steps.keys() | y.steps.keys()}
    return Grid(np.asarray(x.base + sign * y.base, object), steps, sizes)


def _aligned(x: Grid, rank: int) -> Grid:
    more = rank - len(x.dims)
    return Grid(x.base.reshape((1,) * more + x.base.shape), {k + more: s for k, s in x.steps.items()},
                (*(1,) * more, *x.dims))  # fmt: skip
