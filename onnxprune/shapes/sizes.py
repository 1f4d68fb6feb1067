"""Numbers for the open dimensions of the inputs: which to try, in which order.

Knows the names of dimensions, no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnx import TensorProto, TensorShapeProto, ValueInfoProto

from onnxprune.errors import UsageError
from onnxprune.model import Model
from onnxprune.shapes.quotients import parsed
from onnxprune.shapes.symbols import Dim, Size, evaluated, name_of
from onnxprune.shapes.symbols import symbol as open_dimension

Role = Literal["batch", "token", "length", "space"]
Sizes = dict[str, int]
"""One number for each symbol."""
Axis = int | str
"""As declared: a number, or a symbol, or an expression over symbols."""

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


_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
NEAR, FAR = 256, 1 << 16
"""A size that has to fit others is looked for so near, and among multiples of what has to divide it so far."""


@dataclass(frozen=True)
class Plan:
    """The axes of every input and the role of every symbol in them. bound: the declared symbols that were given a
    size."""

    axes: dict[str, tuple[Dim, ...]]
    roles: dict[str, Role]
    queries: tuple[int, ...]
    bound: Mapping[str, int]

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        return {n: tuple(evaluated(d, sizes) or 0 for d in a) for n, a in self.axes.items()}

    def symbols(self, name: str) -> dict[int, str]:
        """The open dimensions of an input, by axis."""
        named = ((k, name_of(d)) for k, d in enumerate(self.axes[name]))
        return {k: s for k, s in named if s is not None}

    def possible(self, sizes: Sizes) -> bool:
        return all(d > 0 for s in self.shapes(sizes).values() for d in s)

    def more(self, first: Sizes) -> Iterator[list[Sizes]]:
        """Sizes at which a proof is worth something beside the first: ones, large, unequal and equal primes, and
        others. Each as a list of what to try in its place, the likeliest first."""
        symbols = list(self.roles)
        spaces = [s for s in symbols if self.roles[s] == "space"]

        def scaled(sizes: Sizes) -> list[Sizes]:
            """An image is larger than a text is long: also with odd and even sides that leave something to pool."""
            lifted = [{s: n + lift if s in spaces else n for s, n in sizes.items()} for lift in (60, 94, 220)]
            even = [{s: -(-(n + lift) // 32) * 32 if s in spaces else n for s, n in sizes.items()} for lift in (0, 64)]
            return [sizes, *lifted, *even] if spaces else [sizes]

        primes = [_PRIMES[k % len(_PRIMES)] for k in range(len(symbols))]
        batches = [s for s in symbols if self.roles[s] == "batch"]
        large = {"batch": 1 if len(batches) < len(symbols) else 8, "token": 128, "length": 512, "space": 0}
        yield scaled(dict.fromkeys(symbols, 1))
        yield [  # what is long is so in one sample: a proof runs it
            dict(zip(symbols, sizes, strict=True))
            for shrink in (1, 2)
            for tops in [
                [max(large[r] // shrink, 1 if r == "batch" else 2 * first[s] // shrink) for s, r in self.roles.items()]
            ]
            for sizes in ([n + k for k, n in enumerate(tops)], tops)
        ]
        yield scaled(dict(zip(symbols, reversed(primes), strict=True)))
        yield scaled(dict.fromkeys(symbols, 3))
        yield scaled(dict(zip(symbols, primes, strict=True)))
        yield scaled({s: 1 if s in batches else 7 + k for k, s in enumerate(symbols)})
        yield scaled({s: 4 + k if s in batches else 13 for k, s in enumerate(symbols)})
        yield scaled(dict.fromkeys(symbols, 5))
        yield scaled(dict.fromkeys(symbols, 7))

    def fitted(self, sizes: Sizes, holds: Sequence[Callable[[Sizes], bool]], divisor: int) -> Sizes:
        """Sizes near these at which all of `holds` do, as far as they are found by moving one symbol at a time; batches
        last. divisor: something has to be a multiple of it."""
        order = sorted(self.roles, key=lambda s: self.roles[s] == "batch")
        for _ in range(2):
            wrong = [h for h in holds if not h(sizes)]
            for s in order:
                if not wrong:
                    return sizes
                for n in _near(sizes[s], divisor):
                    moved = {**sizes, s: n}
                    if not any(h(moved) for h in wrong):  # as most: the others need not be asked
                        continue
                    left = [h for h in holds if not h(moved)]
                    if len(left) < len(wrong) and self.possible(moved):
                        sizes, wrong = moved, left
                        if not left:
                            return sizes
        return sizes

    def candidates(self, probe: int) -> Iterator[Sizes]:
        """Sizes to try: every symbol its own number; then fewer distinct ones, and other magnitudes."""
        seen: list[Sizes] = []
        rungs = max((len(_LADDER[r][probe]) for r in self.roles.values() if r != "batch"), default=1)
        steps = [(0, rung) for rung in range(rungs)] + [(b, 0) for b in range(1, len(_LADDER["batch"][probe]))]
        for batch, rung in steps:
            for sizes in self._variants(probe, batch, rung):
                if sizes not in seen and self.possible(sizes):
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


def _near(n: int, divisor: int) -> Iterator[int]:
    """Sizes, the nearest first, and multiples of the divisor."""
    for step in range(1, NEAR):
        yield from (m for m in (n + step, n - step) if m > 0)
    yield from range(divisor, FAR if divisor > 1 else 0, divisor)


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
        accepts = f"input {name!r} is [{', '.join(map(str, declared[name]))}]"
        if len(wanted) != len(declared[name]):
            raise UsageError(f"{accepts}: give {len(declared[name])} sizes, not {len(wanted)}, 0 for one to leave open")
        for i, (have, want) in enumerate(zip(declared[name], wanted, strict=True)):
            clash = have if isinstance(have, int) else bound.get(have, want)
            if want > 0 and clash != want:
                raise UsageError(f"{accepts}: its dimension {i} is {clash}, not {want}")
            if want > 0 and isinstance(have, str):
                bound[have] = want
    plain = {d for axes in declared.values() for d in axes if isinstance(d, str) and _NAME.fullmatch(d)}
    roles: dict[str, Role] = {}
    axes: dict[str, tuple[Dim, ...]] = {}
    for name, dims in declared.items():
        for i, d in enumerate(dims):
            if isinstance(d, str) and d not in bound and not _is_expression(d, plain):
                role = _role(i, len(dims), types[name].elem_type)
                roles[d] = "batch" if "batch" in (role, roles.get(d)) else roles.get(d, role)
    for name, dims in declared.items():
        axes[name] = tuple(_dim(d, bound, roles) for d in dims)
    queries = {d for n, a in axes.items() if types[n].elem_type in _INTEGERS for d in a[1:2] if isinstance(d, int)}
    return Plan(axes, roles, tuple(sorted(queries | {1})), bound)


def _dim(declared: Axis, bound: Sizes, roles: Mapping[str, Role]) -> Dim:
    """A declared dimension as a number or an expression."""
    if isinstance(declared, int):
        return declared
    if declared in bound:
        return bound[declared]
    return open_dimension(declared) if declared in roles else evaluate(declared, bound)


def declare(model: Model, plan: Plan) -> None:
    """Write the sizes that were given into the declared inputs, and into whatever else bears the same symbol."""
    graph = model.proto.graph
    for info in graph.input:
        tensor = info.type.tensor_type
        for k, size in enumerate(plan.axes.get(info.name, ()) if plan.bound else ()):
            if k == len(tensor.shape.dim):
                tensor.shape.dim.add()
            if isinstance(size, int):
                tensor.shape.dim[k].dim_value = size
    for info in (*graph.output, *graph.value_info) if plan.bound else ():
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param in plan.bound:
                dim.dim_value = plan.bound[dim.dim_param]


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
        found = evaluate(dim, dict.fromkeys(names, 2))
    except ValueError:
        return False
    return isinstance(found, Size) or found > 0


def evaluate(dim: str, sizes: Mapping[str, int]) -> Dim:
    """A sum, difference, product or quotient of symbols and integers, with the sizes that are known put in."""
    names = list(dict.fromkeys(_NAME.findall(dim)))
    plain = {name: f"s{k}" for k, name in enumerate(names)}
    back = {new: name for name, new in plain.items()}
    text = _NAME.sub(lambda m: plain[m[0]], dim)
    return parsed(text, lambda s: sizes[back[s]] if back[s] in sizes else open_dimension(back[s]))
