"""What is known about every tensor's shape and value before anything runs.

The model is inferred twice, each symbolic input dimension at two sizes: what is the same in both is static. Knows sizes
and values, no ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .errors import UsageError
from .inference import Inference, Pass
from .model import Model
from .shape_rules import Kind
from .sizes import Plan, Sizes, plan
from .values import Array, Dims, Value

Inputs = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shapes:
    """Shapes of all tensors of the main graph at two choices of input sizes (`inputs`, which can be run).

    `pinned` names the symbolic dimensions for which only one size was found to work: they count as static.
    """

    probe: tuple[dict[str, Dims], dict[str, Dims]]
    inputs: tuple[Inputs, Inputs]
    passes: tuple[Pass, Pass] = field(repr=False)
    constant: Callable[[str], Value | None] = field(repr=False)
    pinned: tuple[str, ...] = ()

    def static(self, name: str) -> Dims | None:
        """The dims that no symbolic input dimension changes, None for the others; None where the rank is unknown."""
        return self._static.get(name)

    @cached_property
    def _static(self) -> dict[str, Dims]:
        first, second = self.probe
        both = ((name, dims, second.get(name)) for name, dims in first.items())
        return {
            name: a if a == b else tuple(x if x == y else None for x, y in zip(a, b, strict=True))
            for name, a, b in both
            if b is not None and len(a) == len(b)
        }

    def of_sample(self, name: str) -> Dims | None:
        """The dims at the first probe as they would be for one sample, where the batch is dynamic."""
        first, second = (p.get(name) for p in self.probe)
        if first is None or second is None or len(first) != len(second):
            return first
        batches = ((a[0], b[0]) for a, b in zip(*(p.values() for p in self.inputs), strict=True) if a and a[0] != b[0])
        n, m = next(batches, (1, 1))
        return tuple(x // n if x and y and x != y and x * m == y * n else x for x, y in zip(first, second, strict=True))

    def dtype(self, name: str) -> int | None:
        kind = self.passes[0].kinds.get(name)
        return kind[0] if isinstance(kind, tuple) and kind[0] else None

    def value(self, name: str) -> Array | None:
        """The value of a small tensor that is the same at both probes."""
        first, second = self.probe_value(0, name), self.probe_value(1, name)
        if first is None or second is None or first.shape != second.shape or first.dtype != second.dtype:
            return None
        return first if np.array_equal(first, second, equal_nan=first.dtype.kind == "f") else None

    def probe_value(self, probe: int, name: str) -> Array | None:
        value = self._value(probe, name)
        return value.data if value is not None and value.known is None else None

    def partial(self, name: str) -> tuple[Array, Array] | None:
        """(entries, mask of those that are static) of an integer vector of which some are and some are not."""
        first, second = self._value(0, name), self._value(1, name)
        if first is None or second is None or first.data.ndim != 1 or first.data.shape != second.data.shape:
            return None
        same = first.mask & second.mask & (first.data == second.data)
        if first.data.dtype.kind not in "iu" or same.all() or not same.any():
            return None
        return np.where(same, first.data, 0), same

    def _value(self, probe: int, name: str) -> Value | None:
        found = self.passes[probe].values.get(name)
        return found if found is not None else self.constant(name)


def infer(model: Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    """Infer every shape at two sizes of each symbolic input dimension that `input_shapes` leaves open."""
    graph = model.proto.graph
    inputs = [i for i in graph.input if i.name not in model.weights]
    axes = plan(inputs, input_shapes or {})
    elements = {i.name: i.type for i in inputs}
    kinds: dict[str, Kind] = {}
    for name, proto in elements.items():
        tensor = proto.WhichOneof("value") == "tensor_type"
        kinds[name] = (proto.tensor_type.elem_type, None) if tensor else proto.SerializeToString(deterministic=True)
    search = _Search(Inference(model), axes, kinds)
    first, at_first = search.best(0, {})
    second, at_second = (first, at_first) if not axes.roles else search.best(1, at_first, first.failures)
    if second.failures > first.failures:  # made for one size whatever its inputs declare, such as a batch of one
        second, at_second = first, at_first
    return Shapes(
        probe=(_probe(first), _probe(second)),
        inputs=(axes.shapes(at_first), axes.shapes(at_second)),
        passes=(first, second),
        constant=search.inference.constant,
        pinned=tuple(s for s in axes.roles if at_first[s] == at_second[s]),
    )


@dataclass
class _Search:
    inference: Inference
    plan: Plan
    kinds: dict[str, Kind]

    def best(self, probe: int, other: Sizes, enough: int = 0) -> tuple[Pass, Sizes]:
        """The first sizes at which at most `enough` nodes fail, else those with the fewest failures. A second probe
        differs from the first in every symbol, or else in as many as can be."""
        candidates = [s for s in self.plan.candidates(probe) if all(s[n] != other.get(n) for n in s)]
        if other:
            batch = [s for s, r in self.plan.roles.items() if r == "batch"]
            rest = [s for s in other if s not in batch]
            for varied in (batch, rest):
                if batch and rest:
                    candidates += [{**other, **{s: c[s] for s in varied}} for c in candidates]
        found: tuple[Pass, Sizes] | None = None
        for sizes in candidates:
            state = self.run(sizes, math.inf if found is None else found[0].failures - 1)
            found = found if state is None else (state, sizes)
            if found is not None and found[0].failures <= enough:
                break
        if found is None:
            raise UsageError("no sizes fit the model's input dimensions: give them with --overwrite-input-shape")
        return found

    def run(self, sizes: Sizes, limit: float) -> Pass | None:
        given = {n: _with_dims(self.kinds[n], dims) for n, dims in self.plan.shapes(sizes).items()}
        return self.inference.run({**self.kinds, **given}, limit)


def _with_dims(kind: Kind, dims: tuple[int, ...]) -> Kind:
    return (kind[0], dims) if isinstance(kind, tuple) else kind


def _probe(state: Pass) -> dict[str, Dims]:
    return {n: k[1] for n, k in state.kinds.items() if isinstance(k, tuple) and k[1] is not None}
