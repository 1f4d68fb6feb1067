"""Shapes of outputs where sizes are expressions: what ONNX's own inference gives up on, one small function an operator.

Each gives the dims of its outputs, with None for a size that has no form. Operators that are not in the table hand
sizes on as ONNX's inference says, which knows names of sizes but does not calculate. Knows one node, not the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnx import TensorProto

from onnxprune.model import traits
from onnxprune.shapes import symbolic_windows as windows
from onnxprune.shapes.node_view import Kind, Sizes, View
from onnxprune.shapes.quotients import ceil_div, floor_div, quotient
from onnxprune.shapes.symbols import Dim, Lost, Size, lower, maximum, minimum, product

Rule = Callable[[View], Sequence[Sizes | None] | None]
ENDLESS = 2**31 - 1
"""A bound of a slice from here on means the end."""


def total(dims: Sequence[Dim | None] | None) -> Dim | None:
    if dims is None or any(d is None for d in dims):
        return None
    return product(d for d in dims if d is not None)


def _reshape(v: View) -> list[Sizes | None]:
    before, target = v.dims(0), v.entries(1, "shape")
    if target is None:
        return [None]
    zero = bool(v.attr("allowzero", 0))
    if before is not None:
        target = [before[k] if d == 0 and not zero and k < len(before) else d for k, d in enumerate(target)]
    open_ = [k for k, d in enumerate(target) if d is None or d == -1]
    whole = total(before)
    if len(open_) == 1 and whole is not None:  # what is left of the elements, whether the target says so or not
        rest = product(d for k, d in enumerate(target) if k != open_[0])
        if rest != 0:
            v.needs.append(("multiple", whole, rest))
            target[open_[0]] = floor_div(whole, rest)
    elif not open_:
        v.need("same", whole, total(target))
    return [tuple(None if d == -1 else d for d in target)]


def _flatten(v: View) -> list[Sizes | None]:
    dims = v.dims(0)
    if dims is None:
        return [(None, None)]
    axis = v.attr("axis", 1)
    axis += len(dims) if axis < 0 else 0
    return [(total(dims[:axis]), total(dims[axis:]))]


def joint(a: Dim | None, b: Dim | None) -> Dim | None:
    """The size of two axes that are broadcast against each other."""
    if a == 1 or b == 1:
        return b if a == 1 else a
    if a == b or isinstance(a, int):  # the other one is as large, or one
        return a
    return b if isinstance(b, int) else None


def _broadcast(v: View) -> list[Sizes | None] | None:
    all_dims = [v.dims(i) for i in range(len(v.kinds)) if v.given(i)]
    if any(d is None for d in all_dims):
        return None
    rank = max(len(d or ()) for d in all_dims)
    out: list[Dim | None] = [1] * rank
    for dims in all_dims:
        for k, n in enumerate(dims or (), rank - len(dims or ())):
            v.need("fits", out[k], n)
            out[k] = joint(out[k], n)
    return [tuple(out)]


def _expand(v: View) -> list[Sizes | None] | None:
    before, target = v.dims(0), v.entries(1)
    if before is None or target is None:
        return None
    rank = max(len(before), len(target))
    old = (*(1,) * (rank - len(before)), *before)
    new = (*(1,) * (rank - len(target)), *target)
    return [tuple(joint(a, b) for a, b in zip(old, new, strict=True))]


def _filled(v: View) -> list[Sizes | None]:
    target = v.entries(0)
    return [None if target is None else tuple(target)]


def _tile(v: View) -> list[Sizes | None] | None:
    dims, repeats = v.dims(0), v.entries(1)
    if dims is None or repeats is None:
        return None
    return [tuple(None if d is None or r is None else d * r for d, r in zip(dims, repeats, strict=True))]


def _pad(v: View) -> list[Sizes | None] | None:
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


def clamped(bound: Any, n: Dim) -> Dim | None:
    """Where a slice begins or ends along an axis of size `n`."""
    if bound is None:
        return None
    if isinstance(bound, int):
        if bound >= ENDLESS:
            return n
        return minimum(bound, n) if bound >= 0 else maximum(n + bound, 0)
    return minimum(bound, n) if lower(bound) >= 0 else None


def _slice(v: View) -> list[Sizes | None] | None:
    dims = v.dims(0)
    if dims is None:
        return None
    starts, ends = v.entries(1, "starts"), v.entries(2, "ends")
    count = next((len(x) for x in (starts, ends) if x is not None), None)
    steps = v.entries(4) if v.given(4) else None
    axes = v.entries(3, "axes") if v.given(3) or "axes" in v.attributes else list(range(count or 0))
    if axes is None or None in axes or count is None:
        return [(None,) * len(dims)]
    out = list(dims)
    for k, axis in enumerate(axes):
        n, step = out[axis], 1 if steps is None else steps[k]
        lo, hi = (None if x is None else x[k] for x in (starts, ends))
        out[axis] = None if n is None else _sliced(n, lo, hi, step)
    return [tuple(out)]


def _sliced(n: Dim, lo: Any, hi: Any, step: Any) -> Dim | None:
    if not isinstance(step, int) or step == 0:
        return None
    if step < 0:  # back to front, from a place at the end to before the first
        whole = isinstance(lo, int) and (lo == -1 or lo >= ENDLESS) and isinstance(hi, int) and hi <= -ENDLESS
        return ceil_div(n, -step) if whole else None
    first, last = clamped(lo, n), clamped(hi, n)
    if first is None or last is None:
        return None
    return ceil_div(maximum(last - first, 0), step)


def _concat(v: View) -> list[Sizes | None] | None:
    all_dims = [v.dims(i) for i in range(len(v.kinds))]
    if any(d is None for d in all_dims):
        return None
    given = [d for d in all_dims if d is not None]
    axis = v.attr("axis", 1) % len(given[0])
    out: list[Dim | None] = []
    for k, column in enumerate(zip(*given, strict=True)):
        out.append(next((n for n in column if isinstance(n, int)), column[0]))
        for n in column if k != axis else ():
            v.need("same", out[-1], n)
    parts = [d[axis] for d in given]
    out[axis] = None
    if all(n is not None for n in parts):
        summed: Dim = 0
        for n in parts:
            summed = summed + n if n is not None else summed
        out[axis] = summed
    return [tuple(out)]


def _split(v: View) -> list[Sizes | None] | None:
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


def _top_k(v: View) -> list[Sizes | None] | None:
    dims = v.dims(0)
    if dims is None:
        return None
    k, axis = v.entries(1, "k"), v.attr("axis", -1) % len(dims)
    found = (*dims[:axis], k[0] if k else None, *dims[axis + 1 :])
    return [found, found]


def _range(v: View) -> list[Sizes | None]:
    ends = [v.entries(i) for i in range(3)]
    if any(not e or e[0] is None for e in ends):
        return [(None,)]
    start, limit, delta = (e[0] for e in ends if e)
    if not all(isinstance(x, Size) or float(x).is_integer() for x in (start, limit, delta)):
        return [(None,)]
    start, limit, delta = (x if isinstance(x, Size) else int(x) for x in (start, limit, delta))
    return [(maximum(ceil_div(limit - start, delta), 0),)]


def _squeeze(v: View) -> list[Sizes | None] | None:
    """Without axes: an open axis is taken for one of several positions."""
    dims = v.dims(0)
    if dims is None or v.given(1) or "axes" in v.attributes:
        return None
    return [tuple(d for d in dims if d != 1)]


def _einsum(v: View) -> list[Sizes | None] | None:
    terms, arrow, out = v.word("equation", "").replace(" ", "").partition("->")
    sizes: dict[str, Dim | None] = {}
    parts = terms.split(",")
    if (
        not arrow
        or "." in terms
        or any(v.dims(i) is None or len(v.dims(i) or ()) != len(p) for i, p in enumerate(parts))
    ):
        return None
    for i, letters in enumerate(parts):
        for letter, n in zip(letters, v.dims(i) or (), strict=True):
            have = sizes.get(letter)
            sizes[letter] = n if have is None or have == 1 or (isinstance(n, int) and n != 1) else have
    return [tuple(sizes.get(x) for x in out)]


def _attention(v: View) -> list[Sizes | None] | None:
    """What is given out of keys, values and scores, which ONNX leaves open where there is no past."""
    query, key, value, past = v.dims(0), v.dims(1), v.dims(2), v.dims(4)
    if query is None or key is None or value is None or (v.given(4) and past is None):
        return None
    if len(query) == 3:
        heads, shared = v.attr("q_num_heads"), v.attr("kv_num_heads")
        batch, steps, length = query[0], query[1], key[1]
        widths = [None if n is None else floor_div(n, shared) for n in (key[2], value[2])]
        out: Sizes = (batch, steps, None if widths[1] is None else widths[1] * heads)
    else:
        batch, heads, steps, _ = query
        shared, length, widths = key[1], key[2], [key[3], value[3]]
        out = (batch, heads, steps, value[3])
    if past is not None:
        length = None if length is None or past[2] is None else length + past[2]
    found: list[Sizes | None] = [out, *((batch, shared, length, n) for n in widths), (batch, heads, steps, length)]
    return found[: len(v.node.output)]


RULES: dict[str, Rule] = dict.fromkeys(traits.BROADCASTING, _broadcast) | {
    "Reshape": _reshape, "Flatten": _flatten, "Expand": _expand, "ConstantOfShape": _filled, "Tile": _tile,
    "Pad": _pad, "Slice": _slice, "Concat": _concat, "Split": _split, "TopK": _top_k, "Range": _range,
    "Squeeze": _squeeze, "Conv": windows.conv, "ConvInteger": windows.conv, "QLinearConv": windows.conv_nested(3),
    "ConvTranspose": windows.conv_transpose, "MaxPool": windows.pool, "AveragePool": windows.pool,
    "LpPool": windows.pool, "Resize": windows.resize, "Upsample": windows.resize,
    "DepthToSpace": windows.depth_to_space,
    "SpaceToDepth": windows.depth_to_space, "Einsum": _einsum, "Attention": _attention,
}  # fmt: skip
"""By operator of the default domain; asked only where something is no number."""


def infer(view: View) -> list[Kind | None] | None:
    """The kinds of the outputs by the node's rule; None where there is none, or it has no answer."""
    rule = RULES.get(view.node.op_type)
    if rule is None:
        return None
    try:
        shapes = rule(view)
    except (Lost, ZeroDivisionError, IndexError, ValueError, TypeError, KeyError):
        return None  # attributes of damaged files may be of any type and number
    if shapes is None:
        return None
    if view.node.op_type in traits.BROADCASTING:  # of which type it is ONNX knows
        return [(TensorProto.UNDEFINED, dims) for dims in shapes]
    return [(element, dims) for element, dims in zip(_elements(view, len(shapes)), shapes, strict=True)]


def _elements(view: View, count: int) -> list[int]:
    op = view.node.op_type
    if op == "TopK":
        return [view.element(0), TensorProto.INT64]
    if op == "MaxPool":
        return [view.element(0), TensorProto.INT64][:count]
    if op == "ConstantOfShape":
        tensor = view.attr("value")
        return [TensorProto.FLOAT if tensor is None else tensor.data_type]
    if op == "ConvInteger":
        return [TensorProto.INT32]
    return [view.element(7 if op == "QLinearConv" else 0)] * count
