"""The masked original and the rewritten graph on the same inputs, and how far apart they are: at every output, and at
tensors inside. What differs is looked at again with what rounding may have moved taken out, before it is called wrong.

Knows a trace, what was kept, and how to run models; not where their weights come from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CheckFailed, RuntimeFailure
from onnxprune.model import FLOATS, Model, Weight
from onnxprune.options import Options
from onnxprune.prove import rounding
from onnxprune.prove.difference import difference, finite, hollow, largest
from onnxprune.prove.original import Original, Run
from onnxprune.prove.places import Places, with_outputs
from onnxprune.prove.slices import kept_of
from onnxprune.run import Chain, Session, first_line, opened
from onnxprune.trace import Trace

FAR = 100
"""Times the tolerance: what rounding may move a tensor inside a graph, or one of random weights, where it is shown that
it does."""
MANY = 16
"""Values that a channel has at least to be measured by its own scale: of a few all may be near zero."""
NEAR = 10
"""The same of an output of the real model; and of tensors inside and random weights, what they may be in any case."""


@dataclass
class Findings:
    """What a comparison found. run: the first one; error: of outputs, inner: of tensors inside; allowed: what an output
    may have been. seen: the outputs of which something could be compared; hollow: why some could not, at some size.
    tensors: those inside that were."""

    run: Run | None = None
    error: float = 0.0
    inner: float = 0.0
    allowed: float = 0.0
    batches: list[int] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    providers: tuple[str, ...] = ()
    blocks: int = 1
    seen: set[str] = field(default_factory=set)
    hollow: dict[str, str] = field(default_factory=dict)
    tensors: set[str] = field(default_factory=set)


@dataclass
class Pair:
    """The original and the rewritten model `after`. `form`: what is done to both before they are run, `types` the
    element types of the tensors then. tolerance: of every tensor, by its own scale. rounds: operators whose rounding
    is a decision; exact: the tolerance once they are told, where it is another. free: weights that may be
    given in the place of either model's own; lender: a pair of the same graphs with other weights, whose sessions serve
    where they can, and drawn: whether the weights are random. extra: the first run with the free weights, where it came
    with the others. finite: tensors that the real weights make finite, and random ones are to make so, too."""

    trace: Trace
    places: Places
    after: Model
    taps: Sequence[str]
    options: Options
    tolerance: float
    form: Callable[[Model], Model]
    types: Callable[[str], int | None]
    far: int = NEAR
    rounds: Collection[str] = ()
    exact: float = 0.0
    free: tuple[Mapping[str, Weight], Mapping[str, Weight]] = field(default_factory=lambda: ({}, {}))
    lender: Pair | None = None
    drawn: bool = False
    finite: set[str] | None = None
    extra: list[tuple[Run, list[Any]]] = field(default_factory=list)

    def compared(self, ks: Sequence[int], deep: bool) -> Findings:
        """Run both at the sizes of the assignments `ks`, with the tensors inside at the first one that runs if `deep`;
        CheckFailed where they differ, RuntimeFailure where the original runs nowhere."""
        pruned, found = self.pruned, Findings()
        several: Iterable[list[Run]] = self._masked.runs(ks, deep)
        if isinstance(pruned, Chain) and self._masked.fit(ks):  # which is read once for all of them
            several = [[run for runs in several for run in runs]]
        for runs in several:
            self._judged(runs, pruned, partial(self._results, runs, pruned), found)
        return found

    def again(self, run: Run) -> Findings:
        """Run both on the inputs of an earlier run, with the tensors inside."""
        if self.lender is not None and self.lender.extra:
            masked_run, got = self.lender.extra.pop()
            return self._judged([masked_run], self.lender.pruned, lambda: [got], Findings())
        lent = self.lender._lent(run) if self.lender is not None else None
        if lent is None:
            pruned = self.pruned
            runs = [self._masked.again(run)]
            return self._judged(runs, pruned, partial(self._results, runs, pruned), Findings())
        (masked, pruned), models, free = lent, (self.trace.model, self.after), self.free
        theirs, ours = ({n: m.weights[n].array() for n in own} for m, own in zip(models, free, strict=True))
        again = self._masked.again(run, masked, theirs)
        return self._judged([again], pruned, lambda: [pruned.run(run.feeds, list(again.values), ours)], Findings())

    def _lent(self, run: Run) -> tuple[Session, Session] | None:
        """The sessions of a run of this pair, where other weights can be given to them."""
        masked, pruned = self._masked.held.get(id(run.sizes)), self.pruned
        if not isinstance(masked, Session) or not isinstance(pruned, Session):
            return None
        return (masked, pruned) if masked.holds(self.free[0]) and pruned.holds(self.free[1]) else None

    def _results(self, runs: Sequence[Run], pruned: Session | Chain) -> list[list[Any]]:
        """What the rewritten model gives on the inputs of the runs, and of the extra one of the original."""
        every = [*runs, *self._masked.extra] if isinstance(pruned, Chain) and not self.extra else runs
        feeds, names = [r.feeds for r in every], [[*r.values] for r in every]
        if len(every) > len(runs) and isinstance(pruned, Chain):
            with suppress(Exception):  # what a runtime does not take is run apart
                *results, got = pruned.run_all(feeds, names, [self.free[1]])
                self.extra.append((every[-1], got))
                return results
        return pruned.run_all(feeds[: len(runs)], names[: len(runs)])

    def _judged(
        self, runs: Sequence[Run], pruned: Session | Chain, run: Callable[[], list[list[Any]]], found: Findings
    ) -> Findings:
        try:
            results = run()
        except Exception as e:
            raise CheckFailed(f"the pruned model does not run{self._where(runs)}: {first_line(e)}") from e
        found.run = found.run or replace(runs[0], values={})
        found.providers, found.blocks = pruned.used, max(found.blocks, pruned.blocks, *(r.blocks for r in runs))
        for each, got in zip(runs, results, strict=True):
            self._judge(each, dict(zip(each.values, got, strict=True)), found)
        return found

    @cached_property
    def _masked(self) -> Original:
        return Original(self.trace, self.places.kept, self.taps, self.options, self.form, self.types, self.free[0])

    @cached_property
    def pruned(self) -> Session | Chain:
        model = with_outputs(self.types, self.form(self.after), self.taps)
        try:
            return opened(model, self.options, self.types, self.free[1])
        except RuntimeFailure as e:
            self._opened(self.form(self.trace.model))  # if it does not load either, that is what the user should hear
            raise CheckFailed(f"the pruned model does not load: {e}") from e

    def _where(self, runs: Sequence[Run]) -> str:
        told = "; ".join(r.told for r in runs if r.told)
        return f" at {told}" if told else ""

    def _judge(self, run: Run, got: Mapping[str, Any], found: Findings) -> None:
        whole = {name for name, value in run.values.items() if finite(value)}
        if not self.drawn:
            self.finite = whole if self.finite is None else self.finite & (whole | (self.finite - run.values.keys()))
        elif self.finite is not None and not whole >= self.finite & run.values.keys():
            raise RuntimeFailure("what they make is not finite")
        errors = {name: self._error(name, value, got[name]) for name, value in run.values.items()}
        allowed = {name: self._tolerance(name) for name in errors}
        if self._beyond(errors, allowed, run) and self.options.check_rtol is None:
            noise = self._noise(run)
            allowed = {n: max(a, min(self._far(n), 4 * noise[n])) for n, a in allowed.items()}
        if self._beyond(errors, allowed, run):
            told = self._told(run)
            if told is not None:
                errors = told
                allowed = {n: self.exact or allowed.get(n, self._tolerance(n)) for n in told}
        bad = self._beyond(errors, allowed, run)
        if bad:
            name = bad[0]
            raise CheckFailed(
                f"the pruned model differs from the masked original by {errors[name]:.1e} (allowed {allowed[name]:.0e})"
                f" in '{name}'{self._where([run])}{self._parting(run, allowed[name])}"
            )
        found.batches.append(run.batch)
        found.sizes.append(run.told)
        found.allowed = max([found.allowed, *(allowed[n] for n in allowed if n in self._outputs)])
        for name, error in errors.items():
            why = hollow(run.values[name])
            if name not in self._outputs:
                found.inner = max(found.inner, error)
                found.tensors |= set() if why else {name}
            else:
                found.error = max(found.error, error)
                found.seen |= set() if why else {name}
                found.hollow |= {name: why} if why else {}

    @cached_property
    def _outputs(self) -> set[str]:
        return {o.name for o in self.trace.model.proto.graph.output}

    @cached_property
    def _levelled(self) -> set[str]:
        """What a saturating operator gives the outputs, whose input is looked at."""
        return set().union(*(outs for made, outs in self.places.ends.items() if self._reads(made)))

    def _reads(self, made: str) -> bool:
        return any(
            n.input[0] in self.taps for n in self.trace.model.proto.graph.node if n.output and n.output[0] == made
        )

    def _tolerance(self, name: str) -> float:
        """Of outputs that the user sees; sums inside, and of random weights, cancel out more often."""
        return self.tolerance * (1 if name in self._outputs and not self.drawn else NEAR)

    def _far(self, name: str) -> float:
        """What it may be where rounding is shown to make as much."""
        return self.tolerance * (self.far if name in self._outputs else FAR)

    def _beyond(self, errors: Mapping[str, float], allowed: Mapping[str, float], run: Run) -> list[str]:
        """What differs by more than is allowed, outputs first."""
        return [
            name for name, error in errors.items()
            if error > allowed[name] and not error * largest([run.values[name]]) <= self.options.check_atol
        ]  # fmt: skip

    def _error(self, name: str, value: Any, got: Any) -> float:
        floor = 1e-2 if name in self._levelled else 1e-6
        if isinstance(value, np.ndarray) and isinstance(got, np.ndarray) and value.shape != got.shape:
            part = self._kept(name, value)
            if part.size != got.size:
                return np.inf
            value = part.reshape(got.shape)
        return difference(value, got, floor, self._channels(name, value))

    def _channels(self, name: str, value: Any) -> int | None:
        """The axis of a tensor's channels, where each has enough values to have a scale of its own."""
        if not isinstance(value, np.ndarray):
            return None
        axes = (a for b in self.trace.blocks.get(name, ()) for a in b.axes[-1:])
        return next((a for a in axes if a < value.ndim and value.size >= MANY * value.shape[a]), None)

    def _kept(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        """What the rewritten graph holds of a tensor of the original, flat."""
        static = self.trace.shapes.static(name) or ()
        dims = [n if k is None else None for k, n in zip(static, value.shape, strict=False)]
        blocks = [b.at(dims) for b in self.trace.blocks.get(name, ())]
        kept = self.places.kept
        return kept_of(value, [b for b in blocks if not kept[b.ids].all()], kept)

    def _noise(self, run: Run) -> dict[str, float]:
        """How far rounding alone moves each tensor of the masked original."""
        names = list(run.values)
        again, moved = rounding.nudged(self._original(run, names), run.feeds, self.options.seed)
        got = self._values(again, moved, names)
        return {n: self._error(n, run.values[n], got[n]) for n in names}

    def _told(self, run: Run) -> dict[str, float] | None:
        """The errors once the pruned model is told what the original decides and rounds from, with those of what that
        is; None where nothing is decided."""
        wanted = list(run.values)
        after = self.form(self.after)
        names = rounding.deciding(self.types, self.form(self.trace.model), after, self.rounds)
        every = list(dict.fromkeys((*wanted, *names)))
        try:
            mine = self._values(with_outputs(self.types, after, names), run.feeds, names)
            expected = self._values(self._original(run, every), run.feeds, every)
            parts = {n: self._kept(n, expected[n]) for n in names}
            decided = {n: p.reshape(mine[n].shape) for n, p in parts.items() if p.size == mine[n].size}
            if not decided:
                return None
            answers = {f"{n}_told": x for n, x in decided.items()}
            model = rounding.told(self.types, with_outputs(self.types, after, every), decided, self.rounds)
            got = self._values(model, {**run.feeds, **answers}, every)
        except Exception:  # decisions that it was not told do not fit these: a runtime has many ways to say so
            return None
        run.values.update(expected)
        return {n: self._error(n, expected[n], got[n]) for n in every}

    def _parting(self, run: Run, tolerance: float) -> str:
        """The first node, in order, at whose output the two models part."""
        ours = {o for n in self.after.proto.graph.node for o in n.output}
        producer = {o: n for n in self.trace.model.proto.graph.node for o in n.output}
        names = [o for o in producer if o in ours and self.types(o) in FLOATS]
        try:
            left = self._values(self._original(run, names), run.feeds, names)
            right = self._values(with_outputs(self.types, self.form(self.after), names), run.feeds, names)
        except Exception:  # an error message must not fail for want of more to say
            return ""
        for name in names:
            if self._error(name, left[name], right[name]) > tolerance:
                return f"; they part at {producer[name].op_type} '{producer[name].name}'"
        return ""

    def _original(self, run: Run, names: Sequence[str]) -> Model:
        model = self._masked.at(run.sizes)
        return with_outputs(self.types, model, names)

    def _opened(self, model: Model) -> Session | Chain:
        return opened(model, self.options, self.types)

    def _values(self, model: Model, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, Any]:
        return dict(zip(names, self._opened(model).run(feeds, names), strict=True))
