"""The masked original beside the rewritten graph: at all sizes with the real weights, and with weights drawn anew.

Knows which graphs are run, and in which number format they can be compared exactly; not what a proof says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod

from onnx import TensorProto

from onnxprune.errors import RuntimeFailure
from onnxprune.model import Model, Weight, traits
from onnxprune.options import Options
from onnxprune.prove.branches import Decided, branch_choices, with_choices_forced
from onnxprune.prove.findings import Findings
from onnxprune.prove.original import Run
from onnxprune.prove.pair import Pair
from onnxprune.prove.places import Places
from onnxprune.prove.redraw import redrawn
from onnxprune.prove.slices import Source
from onnxprune.prove.tolerances import FAR, NEAR
from onnxprune.prove.unrounded import Unrounded, rounds
from onnxprune.trace import Trace

TOLERANCE = {TensorProto.FLOAT16: 1e-2, TensorProto.BFLOAT16: 5e-2}
STEPS = 4
"""Of 8 bits, by which the outputs of a graph that rounds may differ, unless rounding alone is shown to make more."""
GAINS = (1.0, 0.3, 0.05)
"""Spreads of the weights that are drawn, until what they make is finite."""


@dataclass(frozen=True)
class Shown:
    """Findings on one kind of weights, and what could not be shown."""

    found: list[Findings]
    note: str


@dataclass
class Comparison:
    """Both graphs, to be run on the same inputs. `sources`: whose slices the parameters of `after` are."""

    places: Places
    sources: Mapping[str, Source]
    after: Model
    options: Options

    def on_real_weights(self) -> tuple[Pair, Shown]:
        """What was found at all sizes, and with which pair: of a quantised graph in real numbers, and at one size as it
        rounds; in words how far apart it is then. CheckFailed where they differ, RuntimeFailure where not even the
        original runs."""
        plain, real, ks = self.as_it_rounds, self.in_real_numbers, self.assignments
        if real is None:
            return plain, Shown([plain.compared(ks, deep=True)], "")
        try:
            main = real.compared(ks, deep=True)
        except RuntimeFailure as why:
            note = f"compared with its rounding: {why.message}"
            return plain, Shown([plain.compared(ks, deep=True)], note)
        assert main.run is not None, "it ran at one size at least"
        rounded = plain.again(main.run)
        return real, Shown([main, rounded], f"as it rounds, the outputs are equal within {rounded.error:.1e}")

    def on_drawn_weights(self, pair: Pair, run: Run) -> Shown:
        """The pair with weights that are drawn anew, on the inputs of one run; where there are none that run, why.
        CheckFailed where they differ."""
        left = pair.transform.still_rounding.values() if isinstance(pair.transform, Unrounded) else ()
        note = f"compared with the rounding of {', '.join(left)}" if left else ""
        why = "there is none that can be drawn"
        for gain in GAINS if pair.free[0] else ():
            original, new = self._redrawn(gain)
            trace = replace(pair.trace, model=original)
            drawn = replace(pair, trace=trace, after=new, largest_noise=FAR, lender=pair, drawn=True, free_runs=[])
            if gain == GAINS[-1]:
                drawn = replace(drawn, finite_tensors=None)
            found, failed = _both_ways(drawn, run)
            if any(f.seen or f.tensors for f in found):
                return Shown(found, "; ".join(filter(None, (note, *failed))))
            why = next(iter(failed), "nothing that they make is finite")
        return Shown([], f"weights that are drawn anew show nothing: {why}")

    @property
    def as_it_rounds(self) -> Pair:
        """Both graphs as they are."""
        return self._pairs[0]

    @property
    def in_real_numbers(self) -> Pair | None:
        """Both graphs without their rounding, where they round: the tensors inside are compared there."""
        return self._pairs[1]

    @cached_property
    def assignments(self) -> list[int]:
        """The assignments of sizes, each once; first the smallest of those in which no open dimension is one."""
        return _assignments(self.places.trace)

    @cached_property
    def _pairs(self) -> tuple[Pair, Pair | None]:
        """Their sessions are ready for other weights."""
        places, after, options = self.places, self.after, self.options
        trace = places.trace
        transform = Unrounded(trace.shapes.dtype, trace.rank) if rounds(trace.nodes) else None
        if transform is not None:
            transform(trace.model)  # which says what still rounds, and what are no integers any more
        types = trace.shapes.dtype if transform is None else transform.types
        inside = places.interior(after, trace.shapes.probe[self.assignments[0]], types)
        names = [*dict.fromkeys((*places.taps, *inside))]
        original, new = self._redrawn()
        free = _others(original, trace.model), _others(new, after)
        exact = options.check_rtol if options.check_rtol is not None else tolerance_of(trace)
        plain = Pair(trace, places, after, names, options, exact, lambda model: model, trace.shapes.dtype, free=free)
        if transform is None:
            return plain, None
        if options.check_rtol is None:
            exact = max(exact, min(len(transform.still_rounding), STEPS) / 127)
        real = replace(plain, tolerance=exact, transform=transform, types=types, largest_noise=FAR, free_runs=[])
        plain = replace(plain, taps=places.taps, free=({}, {}))
        if exact < STEPS / 127:
            plain = replace(
                plain, tolerance=STEPS / 127, largest_noise=1, rounding=traits.ROUNDING, tolerance_when_fed=NEAR * exact
            )
        return plain, real

    def _redrawn(self, gain: float = 1.0) -> tuple[Model, Model]:
        """Both models with weights that are drawn anew."""
        places = self.places
        return redrawn(places.trace, places.kept, self.sources, self.after, self.options.seed, gain)


def _others(new: Model, old: Model) -> dict[str, Weight]:
    """The weights of a model that are other ones in another."""
    return {name: weight for name, weight in new.weights.items() if weight is not old.weights.get(name)}


def _both_ways(pair: Pair, run: Run) -> tuple[list[Findings], list[str]]:
    """What was found with every If going each way, and which way does not run."""
    found, failed = [], []
    decided: Decided = lambda condition: pair.trace.shapes.value(condition) is not None  # noqa: E731
    every = branch_choices(pair.trace.model, decided)
    for way in every or [()]:
        transform = partial(_with_ifs_forced, transform=pair.transform, way=way, decided=decided)
        try:
            found.append(replace(pair, transform=transform, lender=None if way else pair.lender).again(run))
        except RuntimeFailure as failure:
            branches = " in ".join("then" if truth else "else" for truth in reversed(way))
            failed.append(f"branches that do not run on drawn weights: {branches}" if way else failure.message)
    return found, failed


def _with_ifs_forced(
    model: Model, transform: Callable[[Model], Model], way: tuple[bool, ...], decided: Decided
) -> Model:
    return transform(with_choices_forced(model, way, decided) if way else model)


def _assignments(trace: Trace) -> list[int]:
    inputs = trace.shapes.inputs
    ks = [k for k in range(len(inputs)) if inputs[k] not in [inputs[j] for j in range(k)]]

    def cost(k: int) -> tuple[int, int]:
        varied = [n for name, shape in inputs[k].items() for a, n in enumerate(shape)
                  if any(inputs[j][name][a] != n for j in ks)]  # fmt: skip
        return sum(n == 1 for n in varied), sum(prod(shape) for shape in inputs[k].values())

    best = min(ks, key=cost)
    return [best, *(k for k in ks if k != best)]


def tolerance_of(trace: Trace) -> float:
    """By the coarsest number format in the graph."""
    kinds = {w.onnx_type for w in trace.model.weights.values()} | {trace.shapes.dtype(n) for n in trace.blocks}
    return max((t for k, t in TOLERANCE.items() if k in kinds), default=1e-5)
