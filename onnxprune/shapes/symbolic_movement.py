"""Sizes of what only moves elements or repeats them: reshapes, slices, concatenations, paddings. Knows one node, not
the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxprune.shapes.node_view import OutputDims, View
from onnxprune.shapes.quotients import ceil_div, floor_div, quotient
from onnxprune.shapes.symbols import Dim, joint, lower, maximum, minimum, product

ENDLESS = 2**31 - 1
"""A bound of a slice from here on means the end."""


def element_count(dims: Sequence[Dim | None] | None) -> Dim | None:
    """Of a tensor of these dims; None where one of them has no form."""
    if dims is None or any(d is None for d in dims):
        return None
    return product(d for d in dims if d is not None)


def reshape(v: View) -> OutputDims:
    """Reshape: 0 stands for the size that was there, -1 for what is left of the elements."""
    before, target = v.dims(0), v.entries(1, "shape")
    if target is None:
        return [None]
    if before is not None and not v.attr("allowzero", 0):
        target = [before[k] if d == 0 and k < len(before) else d for k, d in enumerate(target)]
    return [tuple(None if d == -1 else d for d in _filled_in(v, target, element_count(before)))]


def _filled_in(v: View, target: list[Any], whole: Dim | None) -> list[Any]:
    """A target with what is left of `whole` elements in its one open place, whether it is written as -1 or not."""
    open_ = [k for k, d in enumerate(target) if d is None or d == -1]
    if not open_:
        v.need("same", whole, element_count(target))
    if len(open_) != 1 or whole is None:
        return target
    rest = product(d for k, d in enumerate(target) if k != open_[0])
    if rest == 0:
        return target
    v.needs.append(("multiple", whole, rest))
    return [floor_div(whole, rest) if k == open_[0] else d for k, d in enumerate(target)]


def flatten(v: View) -> OutputDims:
    """Flatten: the axes before one, and those from it on."""
    dims = v.dims(0)
    if dims is None:
        return [(None, None)]
    axis = v.attr("axis", 1)
    axis += len(dims) if axis < 0 else 0
    return [(element_count(dims[:axis]), element_count(dims[axis:]))]


def expand(v: View) -> OutputDims | None:
    """Expand to a target, which may be smaller than what is there."""
    before, target = v.dims(0), v.entries(1)
    if before is None or target is None:
        return None
    rank = max(len(before), len(target))
    old = (*(1,) * (rank - len(before)), *before)
    new = (*(1,) * (rank - len(target)), *target)
    return [tuple(joint(a, b) for a, b in zip(old, new, strict=True))]


def tile(v: View) -> OutputDims | None:
    """Tile: as often as the repeats say."""
    dims, repeats = v.dims(0), v.entries(1)
    if dims is None or repeats is None:
        return None
    return [tuple(None if d is None or r is None else d * r for d, r in zip(dims, repeats, strict=True))]


def pad(v: View) -> OutputDims | None:
    """Pad, along all axes or those that are named."""
    dims, pads = v.dims(0), v.entries(1, "paddings" if "paddings" in v.attributes else "pads")
    if dims is None:
        return None
    axes = v.entries(3) if v.given(3) else list(range(len(dims)))
    if axes is None or None in axes or pads is None:
        return [(None,) * len(dims)]
    out = list(dims)
    for k, axis in enumerate(axes):
        d, lo, hi = out[axis], pads[k], pads[k + len(axes)]
        out[axis] = None if d is None or lo is None or hi is None else d + lo + hi
    return [tuple(out)]


def slice_(v: View) -> OutputDims | None:
    """Slice: bounds, axes and steps as inputs or, in older opsets, attributes."""
    dims = v.dims(0)
    if dims is None:
        return None
    starts, ends = v.entries(1, "starts"), v.entries(2, "ends")
    bounds = starts if starts is not None else ends
    axes = v.entries(3, "axes") if v.given(3) or "axes" in v.attributes else list(range(len(bounds or ())))
    if axes is None or None in axes or bounds is None:
        return [(None,) * len(dims)]
    unknown = [None] * len(bounds)
    lows, highs = (unknown if x is None else x for x in (starts, ends))
    steps = v.entries(4) if v.given(4) else None
    steps = [1] * len(axes) if steps is None else steps
    out = list(dims)
    for k, axis in enumerate(axes):
        n, low, high, step = out[axis], lows[k], highs[k], steps[k]
        out[axis] = None if n is None else _sliced(n, low, high, step)
    return [tuple(out)]


def _sliced(n: Dim, lo: Any, hi: Any, step: Any) -> Dim | None:
    if not isinstance(step, int) or step == 0:
        return None
    if step < 0:  # back to front, from a place at the end to before the first
        whole = isinstance(lo, int) and (lo == -1 or lo >= ENDLESS) and isinstance(hi, int) and hi <= -ENDLESS
        return ceil_div(n, -step) if whole else None
    first, last = _clamped(lo, n), _clamped(hi, n)
    if first is None or last is None:
        return None
    return ceil_div(maximum(last - first, 0), step)


def _clamped(bound: Any, n: Dim) -> Dim | None:
    """Where a slice begins or ends along an axis of size `n`."""
    if bound is None:
        return None
    if isinstance(bound, int):
        if bound >= ENDLESS:
            return n
        return minimum(bound, n) if bound >= 0 else maximum(n + bound, 0)
    return minimum(bound, n) if lower(bound) >= 0 else None


def concat(v: View) -> OutputDims | None:
    """Concat: the sum along its axis; along the others all are the same."""
    all_dims = [v.dims(i) for i in range(len(v.types))]
    given = [d for d in all_dims if d is not None]
    if len(given) < len(all_dims):
        return None
    axis = v.attr("axis", 1) % len(given[0])
    out: list[Dim | None] = []
    for k, column in enumerate(zip(*given, strict=True)):
        out.append(next((n for n in column if isinstance(n, int)), column[0]))
        for n in column if k != axis else ():
            v.need("same", out[-1], n)
    parts = [d[axis] for d in given]
    known = [n for n in parts if n is not None]
    out[axis] = sum(known) if len(known) == len(parts) else None
    return [tuple(out)]


def split(v: View) -> OutputDims | None:
    """Split into parts of the sizes that are given, or of equal ones and a last that may be smaller."""
    dims, count = v.dims(0), len(v.node.output)
    if dims is None:
        return None
    axis = v.attr("axis", 0) % len(dims)
    sizes: list[Any] | None = v.entries(1, "split") if v.given(1) or "split" in v.attributes else None
    n = dims[axis]
    if sizes is None and n is not None:
        each = quotient(n, count)
        sizes = [each] * count
        if each is None:
            step = ceil_div(n, count)
            sizes = [*[step] * (count - 1), n - step * (count - 1)]
    return [(*dims[:axis], s, *dims[axis + 1 :]) for s in sizes or [None] * count]


def top_k(v: View) -> OutputDims | None:
    """TopK: values and their places."""
    dims = v.dims(0)
    if dims is None:
        return None
    k, axis = v.entries(1, "k"), v.attr("axis", -1) % len(dims)
    found = (*dims[:axis], k[0] if k else None, *dims[axis + 1 :])
    return [found, found]


def squeeze(v: View) -> OutputDims | None:
    """Squeeze without axes: an open axis is taken for one of several positions."""
    dims = v.dims(0)
    if dims is None or v.given(1) or "axes" in v.attributes:
        return None
    return [tuple(d for d in dims if d != 1)]
