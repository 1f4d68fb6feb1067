"""Small values that are known without running a model: shape arithmetic, node by node, in plain numpy.

Entries may be expressions over the open dimensions, or unknown: see `symbolic_values`. Knows one node, not the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from onnxprune.shapes.symbolic_values import LIMIT, Array, Value, followed

Dims = tuple[int | None, ...]
Attributes = Mapping[str, Any]
Kernel = Callable[[Attributes, Sequence[Array | None]], Sequence[Array]]


def _need(x: Array | None) -> Array:
    if x is None:
        raise ValueError("a required input is absent")
    return x


def _ints(a: Attributes, xs: Sequence[Array | None], name: str, position: int) -> tuple[int, ...] | None:
    """A list of integers that older opsets keep in an attribute and newer ones in an input."""
    if name in a:
        return tuple(a[name])
    x = xs[position] if position < len(xs) else None
    return None if x is None else tuple(int(v) for v in x.reshape(-1))


def _bounded(shape: Sequence[int]) -> tuple[int, ...]:
    if math.prod(shape) > LIMIT:
        raise ValueError("too large to follow")
    return tuple(int(d) for d in shape)


def _gather(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x, i = _need(xs[0]), _need(xs[1])
    axis = a.get("axis", 0) % x.ndim
    _bounded(x.shape[:axis] + i.shape + x.shape[axis + 1 :])
    if i.size and (i.min() < -x.shape[axis] or i.max() >= x.shape[axis]):
        raise ValueError("index out of range")
    return [np.asarray(np.take(x, i, axis=axis), dtype=x.dtype)]


def _gather_elements(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x, i = _need(xs[0]), _need(xs[1])
    axis = a.get("axis", 0) % x.ndim
    return [np.take_along_axis(x[tuple(slice(None if k == axis else n) for k, n in enumerate(i.shape))], i, axis)]


def _concat(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    return [np.concatenate([_need(x) for x in xs], axis=a.get("axis", 1))]


def _unsqueeze(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    return [np.expand_dims(_need(xs[0]), _ints(a, xs, "axes", 1) or ())]


def _squeeze(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    return [np.squeeze(_need(xs[0]), _ints(a, xs, "axes", 1))]


def _slice(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x = _need(xs[0])
    starts, ends = _ints(a, xs, "starts", 1) or (), _ints(a, xs, "ends", 2) or ()
    axes = _ints(a, xs, "axes", 3) or tuple(range(len(starts)))
    steps = _ints(a, xs, "steps", 4) or (1,) * len(starts)
    cut = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = x.shape[axis]
        low, high = (0, n) if step > 0 else (0, n - 1)
        first = min(max(start + n if start < 0 else start, low), high)
        last = min(max(end + n if end < 0 else end, 0 if step > 0 else -1), high if step > 0 else n)
        cut[axis % x.ndim] = slice(first, None if last < 0 else last, step)
    return [x[tuple(cut)]]


def _reshape(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x = _need(xs[0])
    target = _ints(a, xs, "shape", 1) or ()
    if not a.get("allowzero", 0):
        target = tuple(x.shape[i] if d == 0 else d for i, d in enumerate(target))
    return [x.reshape(target)]


def _flatten(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x, axis = _need(xs[0]), a.get("axis", 1)
    return [x.reshape(math.prod(x.shape[: axis + x.ndim if axis < 0 else axis]), -1)]


def _split(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x, axis, parts = _need(xs[0]), a.get("axis", 0), a["#outputs"]
    sizes = _ints(a, xs, "split", 1)
    if sizes is None:
        step = -(-x.shape[axis] // parts)
        sizes = (step,) * (parts - 1) + (x.shape[axis] - step * (parts - 1),)
    return np.split(x, np.cumsum(sizes)[:-1], axis=axis)


def _tile(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x, repeats = _need(xs[0]), _ints(a, xs, "repeats", 1) or ()
    _bounded([d * r for d, r in zip(x.shape, repeats, strict=True)])
    return [np.tile(x, repeats)]


def _expand(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x = _need(xs[0])
    return [np.broadcast_to(x, _bounded(np.broadcast_shapes(x.shape, _ints(a, xs, "shape", 1) or ())))]


def _cast(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x, to = _need(xs[0]), onnx.helper.tensor_dtype_to_np_dtype(a["to"])
    if to.kind not in "biuf" or (to.kind in "iu" and x.dtype.kind == "f" and not (np.abs(x) < 2**31).all()):
        raise ValueError("cast is not followed")
    return [x.astype(to)]


def _divide(x: Array, y: Array) -> Array:
    if x.dtype.kind == "f":
        return np.asarray(x / y)
    if not np.all(y):
        raise ValueError("division by zero")
    return np.asarray(np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y)), dtype=x.dtype)


def _mod(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x, y = _need(xs[0]), _need(xs[1])
    if x.dtype.kind != "f" and not np.all(y):
        raise ValueError("division by zero")
    return [np.fmod(x, y) if a.get("fmod", 0) else np.mod(x, y)]


def _clip(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    x, low, high = (*xs, None, None)[:3]
    low, high = a.get("min", low), a.get("max", high)
    out = _need(x)
    out = out if low is None else np.maximum(out, low)
    return [out if high is None else np.minimum(out, high)]


def _reduce(f: Callable[..., Any], floats_only: bool = False) -> Kernel:
    def kernel(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
        x, axes = _need(xs[0]), _ints(a, xs, "axes", 1)
        if not axes and a.get("noop_with_empty_axes", 0):
            return [x]
        if floats_only and x.dtype.kind != "f":
            raise ValueError("rounding is not followed")
        return [np.asarray(f(x, axis=axes or None, keepdims=bool(a.get("keepdims", 1))), dtype=x.dtype)]

    return kernel


def _range(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    start, limit, delta = (_need(x).reshape(()) for x in xs)
    count = max(math.ceil((float(limit) - float(start)) / float(delta)), 0)
    _bounded((count,))
    return [np.asarray(start + np.arange(count).astype(start.dtype) * delta, dtype=start.dtype)]


def _constant_of_shape(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    fill = onnx.numpy_helper.to_array(a["value"]).reshape(-1)[0] if "value" in a else np.float32(0)
    return [np.full(_bounded([int(d) for d in _need(xs[0])]), fill, dtype=fill.dtype)]


def _nonzero(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    return [np.array(np.nonzero(np.atleast_1d(_need(xs[0]))), np.int64)]


def _constant(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    (name, value), *_ = ((k, v) for k, v in a.items() if k != "#outputs")
    if name == "value":
        return [onnx.numpy_helper.to_array(value)] if math.prod(value.dims) <= LIMIT else []
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    return [np.array(value, kinds[name])]


def _transpose(a: Attributes, xs: Sequence[Array | None]) -> Sequence[Array]:
    return [np.transpose(_need(xs[0]), a.get("perm"))]


MOVEMENT: dict[str, Kernel] = {
    "Gather": _gather, "Concat": _concat, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Slice": _slice,
    "Reshape": _reshape, "Flatten": _flatten, "Split": _split, "Tile": _tile, "Expand": _expand,
    "Transpose": _transpose, "Identity": lambda _, xs: [_need(xs[0])],
}  # fmt: skip
"""Operators that only move elements: run on the mask of known entries as well."""

UFUNCS: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Pow": np.power, "Min": np.minimum,
    "Max": np.maximum, "Neg": np.negative, "Abs": np.abs, "Sign": np.sign, "Sqrt": np.sqrt, "Floor": np.floor,
    "Ceil": np.ceil, "Round": np.round, "Exp": np.exp, "Log": np.log, "Reciprocal": lambda x: (1 / x).astype(x.dtype),
    "Not": np.logical_not, "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor, "Where": np.where,
    "Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal,
    "GreaterOrEqual": np.greater_equal,
}  # fmt: skip

OTHERS: dict[str, Kernel] = {
    "Cast": _cast, "Mod": _mod, "Clip": _clip, "Range": _range, "ConstantOfShape": _constant_of_shape,
    "NonZero": _nonzero, "Constant": _constant, "ReduceSum": _reduce(np.sum), "ReduceProd": _reduce(np.prod),
    "ReduceMin": _reduce(np.min), "ReduceMax": _reduce(np.max), "ReduceMean": _reduce(np.mean, floats_only=True),
    "GatherElements": _gather_elements,
}  # fmt: skip

REFERENCE = frozenset(["ScatterND", "ScatterElements", "GatherND", "CumSum", "Trilu", "OneHot", "Pad", "Sum"])
"""Rarer operators, run by `onnx.reference`."""


def _reference_size(op: str, a: Attributes, xs: Sequence[Array | None]) -> Sequence[int]:
    """The shape of what a rarer operator gives, where it can be larger than all that goes in."""
    if op == "OneHot":
        return (_need(xs[0]).size, int(_need(xs[1]).reshape(-1)[0]))
    if op == "Pad":
        pads = np.array(_ints(a, xs, "pads", 1) or (), object).reshape(2, -1)
        return [
            max(x, 1) * (abs(int(p)) + 1)
            for x, p in zip((_need(xs[0]).size, *[1] * pads.shape[1]), (0, *pads.sum(0)), strict=False)
        ]
    return ()


_TYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
FOLLOWED_TYPES = frozenset(np.dtype(t) for t in _TYPES)
FOLLOWED: frozenset[str] = frozenset(MOVEMENT) | frozenset(UFUNCS) | frozenset(OTHERS) | REFERENCE


def attributes(node: NodeProto) -> dict[str, Any]:
    """Of a node, by name, as Python values; "#outputs" is how many outputs it has."""
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
    return found | {"#outputs": len(node.output)}


def propagate(node: NodeProto, inputs: Sequence[Value | None], opset: int) -> list[Value] | None:
    """The outputs of `node` if they are small and follow from the known `inputs` (None: absent); else None."""
    try:
        with np.errstate(all="ignore"):
            found = _run(node, inputs, opset)
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, RuntimeError, ArithmeticError, MemoryError):
        return None  # attributes of damaged files may be of any type
    return found if found and all(v.data.size <= LIMIT and v.element in FOLLOWED_TYPES for v in found) else None


def _run(node: NodeProto, inputs: Sequence[Value | None], opset: int) -> list[Value] | None:
    op, a = node.op_type, attributes(node)
    if op in MOVEMENT:
        return _moved(op, a, inputs)
    if any(v is not None and not v.whole for v in inputs):
        return followed(op, a, inputs, exact)
    xs = [None if v is None else v.data for v in inputs]
    if op in UFUNCS:
        return [_elementwise(op, [_need(x) for x in xs])]
    if op in OTHERS:
        return [Value.of(np.asarray(x)) for x in OTHERS[op](a, xs)]
    return _by_reference(node, a, xs, opset) if op in REFERENCE else None


def _moved(op: str, a: Attributes, inputs: Sequence[Value | None]) -> list[Value] | None:
    """Elements of any sort in other places; where they go has to be known."""
    if op != "Concat" and any(v is not None and not v.whole for v in inputs[1:]):
        return None
    element = next((v.element for v in inputs if v is not None), None)
    found = MOVEMENT[op](a, [None if v is None else v.data for v in inputs])
    return [Value.of(np.ascontiguousarray(x).reshape(x.shape), element) for x in found]


def _by_reference(node: NodeProto, a: Attributes, xs: Sequence[Array | None], opset: int) -> list[Value]:
    _bounded(_reference_size(node.op_type, a, xs))
    from onnx.reference import ReferenceEvaluator  # brings two hundred modules

    named = {n: _need(x) for n, x in zip(node.input, xs, strict=True) if n}
    found: Any = ReferenceEvaluator(node, opsets={"": opset}).run(None, named)
    return [Value.of(np.asarray(x)) for x in found]


def exact(op: str, xs: Sequence[Array]) -> Array:
    """An operator that is applied entry by entry, on numbers."""
    return np.asarray(OTHERS["Mod"]({}, xs)[0]) if op == "Mod" else _elementwise(op, xs).data


def _elementwise(op: str, xs: Sequence[Array]) -> Value:
    _bounded(np.broadcast_shapes(*(x.shape for x in xs)))
    f = UFUNCS[op]
    if op in ("Min", "Max"):
        out = xs[0]
        for x in xs[1:]:
            out = f(out, x)
    else:
        out = np.asarray(f(*xs))
        if op == "Pow" or (op == "Where" and out.dtype != xs[1].dtype):
            out = out.astype(xs[0].dtype if op == "Pow" else xs[1].dtype)
    return Value.of(np.asarray(out))
