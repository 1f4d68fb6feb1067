"""Concrete sizes for symbolic input dimensions: which to try, in which order.

Knows the names of dimensions, no tensors.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnx import TensorProto, TensorShapeProto, ValueInfoProto

from .errors import UsageError

Role = Literal["batch", "token", "length", "space"]
Sizes = dict[str, int]
"""One number for each symbol."""
Axis = int | str
"""A static size, or a symbol, or an expression over symbols."""

_LADDER: dict[Role, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "batch": ((2, 4, 8, 1), (3, 6, 16, 2)),
    "token": ((16, 8, 4, 32, 64, 128, 512), (21, 24, 11, 5, 12, 128, 1024)),
    "length": ((16, 64, 256, 1024, 4096, 16000), (21, 24, 83, 128, 320, 1600, 5000, 20000)),
    "space": ((64, 32, 128, 224, 256, 512), (83, 96, 128, 160, 192, 448, 320, 24)),
}
"""For the first and the second probe, the likeliest first. The second begins with an odd number, so that what is
rounded up to a multiple shows."""
_NAME = re.compile(r"[^\W\d][\w.]*")
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)


@dataclass(frozen=True)
class Plan:
    """The axes of every input and the role of every symbol in them."""

    axes: dict[str, tuple[Axis, ...]]
    roles: dict[str, Role]
    queries: tuple[int, ...]

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        return {n: tuple(d if isinstance(d, int) else evaluate(d, sizes) for d in a) for n, a in self.axes.items()}

    def candidates(self, probe: int) -> Iterator[Sizes]:
        """Sizes to try: every symbol its own number; then fewer distinct ones, and other magnitudes."""
        seen: list[Sizes] = []
        rungs = max((len(_LADDER[r][probe]) for r in self.roles.values() if r != "batch"), default=1)
        steps = [(0, rung) for rung in range(rungs)] + [(b, 0) for b in range(1, len(_LADDER["batch"][probe]))]
        for batch, rung in steps:
            for sizes in self._variants(probe, batch, rung):
                if sizes not in seen and all(d > 0 for s in self.shapes(sizes).values() for d in s):
                    seen.append(sizes)
                    yield sizes

    def _variants(self, probe: int, batch: int, rung: int) -> Iterator[Sizes]:
        def size(symbol: str, distinct: bool, role: Role | None = None) -> int:
            role = role or self.roles[symbol]
            ladder = _LADDER[role][probe]
            base = ladder[min(batch if role == "batch" else rung, len(ladder) - 1)]
            place = [s for s, r in self.roles.items() if r == role].index(symbol) if distinct else 0
            return base + place * {"batch": 2 + probe, "space": 32 if base % 32 == 0 else 16}.get(role, 4 + probe)

        others = [s for s, r in self.roles.items() if r != "batch"]
        yield {s: size(s, True) for s in self.roles}
        yield {s: size(s, r != "batch") for s, r in self.roles.items()}
        same = {s: size(s, False) for s in self.roles}
        yield same
        if len(others) > 1 and "token" in self.roles.values():
            # Keys and values of the past have four axes but are as long as a text; a mask is longer by the query.
            text = {**same, **{s: size(s, False, "token") for s in others}}
            yield text
            yield from ({**text, s: text[s] + q} for q in self.queries for s in others)


def symbol(dim: TensorShapeProto.Dimension) -> str:
    """The name of an open dimension; a "?" stands for any size and ties nothing."""
    return str(dim.dim_param) if re.search(r"\w", dim.dim_param) else ""


def plan(inputs: Sequence[ValueInfoProto], fixed: Mapping[str, Sequence[int]]) -> Plan:
    """Read the inputs' declared dimensions; `fixed` gives sizes for some inputs (0 or less: as declared)."""
    types = {i.name: i.type.tensor_type for i in inputs if i.type.WhichOneof("value") == "tensor_type"}
    for name in fixed:
        if name not in types:
            raise UsageError(f"the model has no input {name!r}; its inputs are {', '.join(types)}")
    declared: dict[str, list[Axis]] = {}
    for name, tensor in types.items():
        if tensor.HasField("shape"):
            dims = [(d.dim_value if d.dim_value > 0 else symbol(d)) for d in tensor.shape.dim]
            declared[name] = [d or ("axis 0" if i == 0 else f"{name} axis {i}") for i, d in enumerate(dims)]
        elif name in fixed:
            declared[name] = [d if d > 0 else f"{name} axis {i}" for i, d in enumerate(fixed[name])]
    bound: Sizes = {}
    for name, wanted in fixed.items():
        if len(wanted) != len(declared[name]):
            raise UsageError(f"input {name!r} has {len(declared[name])} dimensions, {len(wanted)} sizes were given")
        for i, (have, want) in enumerate(zip(declared[name], wanted, strict=True)):
            clash = have if isinstance(have, int) else bound.get(have, want)
            if want > 0 and clash != want:
                raise UsageError(f"dimension {i} of input {name!r} is {clash}, not {want}")
            if want > 0 and isinstance(have, str):
                bound[have] = want
    plain = {d for axes in declared.values() for d in axes if isinstance(d, str) and _NAME.fullmatch(d)}
    roles: dict[str, Role] = {}
    axes: dict[str, tuple[Axis, ...]] = {}
    for name, dims in declared.items():
        axes[name] = tuple(bound.get(d, d) if isinstance(d, str) else d for d in dims)
        for i, d in enumerate(axes[name]):
            if isinstance(d, str) and not _is_expression(d, plain):
                role = _role(i, len(dims), types[name].elem_type)
                roles[d] = "batch" if "batch" in (role, roles.get(d)) else roles.get(d, role)
    for name in axes:
        axes[name] = tuple(_bind(d, bound) if isinstance(d, str) and d not in roles else d for d in axes[name])
    queries = {d for n, a in axes.items() if types[n].elem_type in _INTEGERS for d in a[1:2] if isinstance(d, int)}
    return Plan(axes, roles, tuple(sorted(queries | {1})))


def _role(axis: int, rank: int, element: int) -> Role:
    if axis == 0:
        return "batch"
    if element in _INTEGERS:
        return "token"
    return "space" if rank >= 4 else "length"


def _is_expression(dim: str, symbols: set[str]) -> bool:
    """Exporters also name a dimension "past + present"; it is one only if its parts are dimensions themselves."""
    names = _NAME.findall(dim)
    if dim in symbols or not names or not symbols.issuperset(names):
        return False
    try:
        return evaluate(dim, dict.fromkeys(names, 2)) > 0
    except ValueError:
        return False


def _bind(dim: str, bound: Sizes) -> str:
    """An expression with the sizes that are given in place of their symbols."""
    return _NAME.sub(lambda m: str(bound.get(m[0], m[0])), dim)


def evaluate(dim: str, sizes: Sizes) -> int:
    """The size of a symbol or of a sum, difference, product or quotient of symbols and integers."""
    if dim in sizes:
        return sizes[dim]
    try:
        return _evaluate(ast.parse(_NAME.sub(lambda m: str(sizes[m[0]]), dim), mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"not an expression over dimensions: {dim!r}") from error


def _evaluate(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp):
        a, b = _evaluate(node.left), _evaluate(node.right)
        match node.op:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.Mult():
                return a * b
            case ast.FloorDiv() | ast.Div():
                return a // b
    raise ValueError("not an expression over dimensions")
