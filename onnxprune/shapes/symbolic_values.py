"""Values of which some entries are expressions over the open dimensions, or unknown. Knows arrays, no graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnxprune.model import traits
from onnxprune.shapes import symbols
from onnxprune.shapes.quotients import mod, quotient, trunc_div
from onnxprune.shapes.symbols import Dim, Size

LIMIT = 4096
"""Values of more elements are not followed."""
Array = np.ndarray[Any, np.dtype[Any]]
Exact = Callable[[str, Sequence[Array]], Array]


class Value(NamedTuple):
    """An array of `element`s. Where it is an array of objects, some entries are expressions over the open dimensions
    (`Size`) or, where not even that is known, None."""

    data: Array
    element: np.dtype[Any]

    @property
    def whole(self) -> bool:
        """Whether every entry is a number."""
        return self.data.dtype != object

    @staticmethod
    def of(data: Any, element: np.dtype[Any] | None = None) -> Value:
        """An array as a value; of objects that all turn out to be numbers it becomes one of `element`s."""
        array = np.asarray(data)
        if array.dtype == object and element is not None and all(_plain(x) for x in array.flat):
            array = array.astype(element)
        return Value(array, element or array.dtype)


def _plain(x: Any) -> bool:
    return x is not None and not isinstance(x, Size)


def shape_value(dims: Sequence[Dim]) -> Value:
    """Dims as the int64 vector that a Shape gives."""
    data = np.empty(len(dims), object)
    data[:] = dims
    return Value.of(data, np.dtype(np.int64))


def followed(op: str, a: Mapping[str, Any], inputs: Sequence[Value | None], exact: Exact) -> list[Value] | None:
    """The outputs of an operator on values of which some entries are no numbers; None where there is no form for it.
    `exact` computes an entry whose arguments are numbers."""
    given = [v for v in inputs if v is not None]
    found: Value | None = None
    if op == "Cast":
        found = _cast(given[0], onnx.helper.tensor_dtype_to_np_dtype(a["to"]))
    elif op == "Clip":
        found = _clipped(inputs, exact)
    elif op in SUMMED:
        found = _reduced(op, a, given)
    elif op == "Mod":
        found = None if a.get("fmod", 0) else _entrywise(op, given, exact)
    elif op in ENTRYWISE and len(given) == len(inputs):
        found = _entrywise(op, given, exact)
    return None if found is None else [found]


def _cast(x: Value, to: np.dtype[Any]) -> Value | None:
    return Value.of(x.data, to) if to.kind in "iuf" and x.element.kind in "iuf" else None


def _clipped(inputs: Sequence[Value | None], exact: Exact) -> Value | None:
    x, *limits = inputs
    if x is None or x.element.kind not in "iu":
        return None
    for limit, f in zip(limits, ("Max", "Min"), strict=False):
        x = x if limit is None else _entrywise(f, [x, limit], exact)
    return x


def _reduced(op: str, a: Mapping[str, Any], given: Sequence[Value]) -> Value | None:
    """A sum, product or extreme along axes that are known."""
    x, *more = given
    if any(not v.whole for v in more):
        return None
    axes = list(a.get("axes", ())) or [int(k) for v in more for k in v.data.ravel()]
    if not axes and a.get("noop_with_empty_axes", 0):
        return None
    joined = np.frompyfunc(lambda p, q: _entry(SUMMED[op], p, q), 2, 1)
    data, keep = x.data, bool(a.get("keepdims", 1))
    for k in sorted({k % data.ndim for k in axes or range(data.ndim)}, reverse=True):
        reduced = joined.reduce(data, axis=k)
        data = np.asarray(np.expand_dims(np.asarray(reduced, object), k) if keep else reduced, object)
    return Value.of(data, x.element)


def _entrywise(op: str, values: Sequence[Value], exact: Exact) -> Value:
    arrays = np.broadcast_arrays(*(v.data for v in values))
    if arrays[0].size > LIMIT:
        raise ValueError("too large to follow")
    out = np.empty(arrays[0].shape, object)
    elements = [v.element for v in values]
    for k in np.ndindex(out.shape):
        given = [x[k] for x in arrays]
        if all(_plain(x) for x in given):
            typed = [np.asarray(x, e) for x, e in zip(given, elements, strict=True)]
            out[k] = exact(op, typed)[()].item()
        elif op in ("Min", "Max", "And", "Or"):
            found = given[0]
            for x in given[1:]:
                found = _entry(op, found, x)
            out[k] = found
        else:
            out[k] = _entry(op, *given, rounds=elements[0].kind != "f")
    return Value.of(out, np.dtype(bool) if op in TRUTHS else elements[1 if op == "Where" else 0])


def _entry(op: str, *given: Any, rounds: bool = True) -> Any:
    """One entry; None where it has no form. rounds: whether a division is one of integers."""
    if op in LOGIC:
        return _LOGICAL[op](*given)
    if op in ("Mul", "Div") and not rounds:
        return _scaled(op, *given)
    numbers = [_exact(x) for x in given]
    if any(x is None for x in numbers):
        return None
    try:
        return EXPRESSIONS[op](*numbers)
    except ArithmeticError:
        return None


def _where(condition: Any, p: Any, q: Any) -> Any:
    if p is not None and p == q:
        return p
    return None if condition is None else p if condition else q


def _decided(decides: bool, *given: Any) -> bool | None:
    """And or Or of truths: one of them that `decides` is enough, otherwise all have to be known."""
    return decides if decides in given else None if None in given else not decides


def _exact(x: Any) -> Dim | None:
    if x is None or isinstance(x, Size):
        return x
    return int(x) if float(x).is_integer() else None


def _scaled(op: str, p: Any, q: Any) -> Dim | None:
    """The product or quotient of floats that is an integer whatever the sizes are."""
    if p is None or q is None:
        return None
    try:
        (a, b), (c, d) = ((x, 1) if isinstance(x, Size) else float(x).as_integer_ratio() for x in (p, q))
        if op == "Div":
            c, d = d, c
        return quotient(a * c, b * d)
    except ArithmeticError:
        return None


def _compared(*signs: int) -> Callable[[Dim, Dim], bool | None]:
    def f(p: Dim, q: Dim) -> bool | None:
        sign = symbols.compared(p, q)
        return None if sign is None else sign in signs

    return f


EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda p, q: p + q, "Sub": lambda p, q: p - q, "Mul": lambda p, q: p * q, "Div": trunc_div,
    "Mod": mod, "Min": symbols.minimum, "Max": symbols.maximum, "Neg": lambda p: -p,
    "Abs": lambda p: p if symbols.lower(p) >= 0 else None, "Floor": lambda p: p, "Ceil": lambda p: p,
    "Round": lambda p: p, "Equal": _compared(0),
    "Less": _compared(-1), "Greater": _compared(1), "LessOrEqual": _compared(-1, 0),
    "GreaterOrEqual": _compared(0, 1),
}  # fmt: skip
"""What is followed over expressions; an argument is a number without a fraction or a `Size`."""
_LOGICAL: dict[str, Callable[..., Any]] = {
    "Where": _where, "And": partial(_decided, False), "Or": partial(_decided, True),
    "Not": lambda p: None if p is None else not p,
}  # fmt: skip
LOGIC = _LOGICAL.keys()
ENTRYWISE = (EXPRESSIONS.keys() | LOGIC) - {"Mod"}
TRUTHS = traits.COMPARING | (traits.LOGICAL - {"Xor"})
SUMMED = {"ReduceSum": "Add", "ReduceProd": "Mul", "ReduceMin": "Min", "ReduceMax": "Max"}
