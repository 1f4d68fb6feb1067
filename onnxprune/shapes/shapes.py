"""What is known about every tensor's shape and value before anything runs.

The model is inferred once with its open dimensions as symbols: what is a number then is static, for every admissible
size. It is inferred again at several choices of numbers, at which it can be run. Knows sizes and values, no ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Generic, TypeVar, overload

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.model import Model
from onnxprune.shapes.declared import plan_sizes
from onnxprune.shapes.footprint import within
from onnxprune.shapes.grids import Grid
from onnxprune.shapes.inference import Inference
from onnxprune.shapes.known import Pass
from onnxprune.shapes.node_view import ValueType, holds
from onnxprune.shapes.quotients import content
from onnxprune.shapes.size_choices import Assignment, SizePlan, other_sizes
from onnxprune.shapes.symbolic_values import Array, Value
from onnxprune.shapes.symbols import Dim, Size, evaluated, name_of
from onnxprune.shapes.values import Dims

T = TypeVar("T")
Inputs = dict[str, tuple[int, ...]]
ASSIGNMENTS = 6
"""At so many choices of sizes a model with an open dimension is looked at."""
MEMORY = 4 << 30
"""Bytes of activations at sizes that nobody asked for."""


class Lazy(Sequence[T], Generic[T]):
    """A sequence whose first item is there; the others are made when somebody asks for them."""

    def __init__(self, first: T, rest: Callable[[], Sequence[T]]) -> None:
        self._first, self._rest = first, rest

    @cached_property
    def _all(self) -> list[T]:
        return [self._first, *self._rest()]

    def __len__(self) -> int:
        return len(self._all)

    @overload
    def __getitem__(self, k: int) -> T: ...
    @overload
    def __getitem__(self, k: slice) -> list[T]: ...
    def __getitem__(self, k: int | slice) -> T | list[T]:
        return self._first if k == 0 else self._all[k]

    def __iter__(self) -> Iterator[T]:
        yield self._first
        yield from self._all[1:]


@dataclass(frozen=True)
class At:
    """One choice of numbers for the open dimensions, and what is known then."""

    sizes: Assignment
    inputs: Inputs
    state: Pass = field(repr=False)

    @cached_property
    def probe(self) -> dict[str, Dims]:
        """The shape of every tensor whose rank is known."""
        dims = ((n, self.state.dims(n)) for n in self.state.types)
        return {n: d for n, d in dims if d is not None}


@dataclass(frozen=True)
class Shapes:
    """Shapes of all tensors, for all sizes of the open dimensions (`general`) and at some of them (`at`).

    constant: the value of a small weight. fitted: sizes near given ones at which what the nodes need of them holds."""

    general: Pass = field(repr=False)
    at: Sequence[At]
    constant: Callable[[str], Value | None] = field(repr=False)
    plan: SizePlan
    fitted: Callable[[Assignment], Assignment] = field(repr=False)

    @cached_property
    def inputs(self) -> Sequence[Inputs]:
        """The shapes of the inputs at each choice of sizes."""
        return Lazy(self.at[0].inputs, lambda: [a.inputs for a in self.at[1:]])

    @cached_property
    def probe(self) -> Sequence[dict[str, Dims]]:
        """The shapes of all tensors at each choice of sizes."""
        return Lazy(self.at[0].probe, lambda: [a.probe for a in self.at[1:]])

    @cached_property
    def passes(self) -> Sequence[Pass]:
        """All that is known at each choice of sizes."""
        return Lazy(self.at[0].state, lambda: [a.state for a in self.at[1:]])

    @cached_property
    def pinned(self) -> tuple[str, ...]:
        """The open dimensions for which no second size was found to work."""
        return tuple(s for s in self.plan.roles if len({a.sizes[s] for a in self.at}) == 1)

    def sizes(self, name: str) -> tuple[Dim, ...] | None:
        """The dims as numbers and expressions over the open dimensions; None where the rank is unknown."""
        found = self.general.sizes(name)
        return None if found is None or None in found else tuple(d for d in found if d is not None)

    def static(self, name: str) -> Dims | None:
        """The dims that are the same for all sizes of the open dimensions, None for the others; None where the rank is
        unknown."""
        return self._static.get(name)

    @cached_property
    def _static(self) -> dict[str, Dims]:
        dims = ((n, self.general.dims(n)) for n in self.general.types)
        return {n: d for n, d in dims if d is not None}

    def of_sample(self, name: str) -> Dims | None:
        """The dims at the first choice of sizes as they would be for one sample, where the batch is open."""
        return self._where(name, self._one_sample)

    def where(self, name: str, inputs: Inputs) -> Dims | None:
        """The dims where the inputs have these shapes; as at the first choice of sizes what does not follow from
        them."""
        open_axes = ((inputs[i], self.plan.symbols(i)) for i in self.plan.axes if i in inputs)
        return self._where(name, {s: shape[k] for shape, symbols in open_axes for k, s in symbols.items()})

    def _where(self, name: str, sizes: Assignment) -> Dims | None:
        static = self.static(name)
        if static is not None and None not in static:
            return static
        dims = self.sizes(name)
        if dims is None:
            return self.probe[0].get(name)
        known = self.probe[0].get(name, (None,) * len(dims))
        return tuple(m if (n := evaluated(d, sizes)) is None else n for d, m in zip(dims, known, strict=True))

    @cached_property
    def _one_sample(self) -> Assignment:
        return {s: 1 if self.plan.roles[s] == "batch" else n for s, n in self.at[0].sizes.items()}

    def dtype(self, name: str) -> int | None:
        """The element type (a `TensorProto.DataType`); None where it is unknown, or the value no tensor."""
        value_type = self.general.types.get(name)
        return value_type[0] if isinstance(value_type, tuple) and value_type[0] else None

    def value(self, name: str) -> Array | None:
        """The value of a small tensor that is the same for all sizes of the open dimensions."""
        found = self._value(name)
        return found.data if found is not None and found.whole else None

    def probe_value(self, probe: int, name: str) -> Array | None:
        """The value of a small tensor at one choice of sizes, by its place in `at`."""
        found = self.passes[probe].values.get(name) or self.constant(name)
        return found.data if found is not None and found.whole else None

    def partial(self, name: str) -> tuple[Array, Array] | None:
        """(entries, mask of those that are static) of an integer vector of which some are and some are not."""
        found = self._value(name)
        if found is None or found.whole or found.data.ndim != 1 or found.element.kind not in "iu":
            return None
        same = np.array([d is not None and not isinstance(d, Size) for d in found.data], bool)
        if not same.any():
            return None
        return np.where(same, found.data, 0).astype(found.element), same

    def entries(self, name: str) -> list[Dim | None] | None:
        """The entries of an integer vector: numbers, expressions, None for unknown ones."""
        found = self._value(name)
        if found is None or found.element.kind not in "iu":
            return None
        return [x if x is None or isinstance(x, Size) else int(x) for x in found.data.ravel()]

    def grid(self, name: str) -> Grid | None:
        """Indices that are computed along open axes."""
        return self.general.grids.get(name)

    @property
    def sequences(self) -> Sequence[str]:
        """The sequences of which it is known what they hold."""
        return list(self.general.sequences)

    def elements(self, name: str) -> tuple[str, ...] | None:
        """The names of the tensors that a sequence holds; None where they are not known, and of a tensor."""
        return self.general.sequences.get(name)

    def _value(self, name: str) -> Value | None:
        found = self.general.values.get(name)
        return found if found is not None else self.constant(name)


def infer(model: Model, input_shapes: Mapping[str, Sequence[int]] | None = None, memory: int = MEMORY) -> Shapes:
    """Infer every shape, with each dimension of the inputs that is open and that `input_shapes` leaves open as a
    symbol, and at sizes at which a run takes at most `memory` bytes."""
    graph = model.skeleton.graph
    inputs = [i for i in graph.input if i.name not in model.weights]
    axes = plan_sizes(inputs, input_shapes or {})
    elements = {i.name: i.type for i in inputs}
    types: dict[str, ValueType] = {}
    for name, proto in elements.items():
        tensor = proto.WhichOneof("value") == "tensor_type"
        types[name] = (proto.tensor_type.elem_type, None) if tensor else proto.SerializeToString(deterministic=True)
    search = _Search(model, Inference(model), axes, types)
    if search.known:
        search = replace(search, plan=plan_sizes(inputs, input_shapes or {}, search.known))
        axes = search.plan
    first = search.first()
    at = Lazy(first, partial(search.others, first, memory)) if axes.roles else [first]
    return Shapes(search.general, at, search.inference.constant, axes, search.fitted)


@dataclass
class _Search:
    model: Model
    inference: Inference
    plan: SizePlan
    types: dict[str, ValueType]

    @cached_property
    def general(self) -> Pass:
        """With a symbol for every open dimension."""
        found = self.inference.run(self._given(self.plan.axes))
        assert found is not None
        return found

    @cached_property
    def known(self) -> Assignment:
        """The symbols that can be one number only."""
        found = ((name_of(a), b) for relation, a, b in self.general.needs if relation == "is")
        return {name: n for name, n in found if name is not None and isinstance(n, int)}

    @cached_property
    def needs(self) -> list[Callable[[Assignment], bool]]:
        """What has to hold of the symbols for all nodes to run."""
        found = dict.fromkeys(n for n in self.general.needs if any(isinstance(x, Size) for x in n[1:]))
        return [partial(holds, n) for n in found]

    def first(self) -> At:
        """The likeliest sizes at which no node fails, else those with the fewest failures."""
        found: At | None = None
        for sizes in self.plan.candidates(0):
            found = self._better(sizes, found) or found
            if found is not None and not found.state.failures:
                return found
        for sizes in list(self.plan.candidates(0))[:2] if self.needs else ():
            found = self._better(self.fitted(sizes), found) or found
        if found is None:
            raise UsageError("no sizes fit the model's input dimensions: give them with --overwrite-input-shape")
        return found

    def others(self, first: At, memory: int) -> list[At]:
        """Further sizes at which no more nodes fail than at the first."""
        out: list[At] = []
        ones, large, unequal, equal, *more = self.plan.more(first.sizes)
        for choices in (ones, large, unequal, equal, other_sizes(self.plan, first.sizes), *more):
            if len(out) + 1 == ASSIGNMENTS:
                break
            fitted = [self.fitted(sizes) for sizes in choices[:1]]
            for sizes in (*choices[:1], *fitted, *choices[1:]):
                seen = any(sizes == a.sizes for a in (first, *out))
                found = None if seen or not self.plan.possible(sizes) else self._at(sizes, first.state.failures)
                if found is not None and within(self.model, [found.state], memory):
                    out.append(found)
                    break
        return out

    def _better(self, sizes: Assignment, found: At | None) -> At | None:
        return self._at(sizes, math.inf if found is None else found.state.failures - 1)

    def fitted(self, sizes: Assignment) -> Assignment:
        """Assignment near these at which the needs hold."""
        parts = [content(part) for relation, _, part in self.general.needs
                 if relation == "multiple" or (relation == "same" and isinstance(part, Size))]  # fmt: skip
        return self.plan.fitted(sizes, self.needs, min(math.lcm(*parts), 1 << 16))

    def _at(self, sizes: Assignment, limit: float) -> At | None:
        wrong = sum(not need(sizes) for need in self.needs)
        shapes = self.plan.shapes(sizes)
        state = None if wrong > limit else self.inference.run(self._given(shapes), limit - wrong)
        if state is None:
            return None
        state.failures += wrong
        return At(sizes, shapes, state)

    def _given(self, shapes: Mapping[str, tuple[Dim, ...]]) -> dict[str, ValueType]:
        given = {n: _with_dims(self.types[n], dims) for n, dims in shapes.items()}
        return {**self.types, **given}


def _with_dims(value_type: ValueType, dims: tuple[Dim, ...]) -> ValueType:
    return (value_type[0], dims) if isinstance(value_type, tuple) else value_type
