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
from onnxprune.prove.difference import all_finite, difference
from onnxprune.prove.findings import Fault, Findings
from onnxprune.prove.original import Original, Run
from onnxprune.prove.outputs import Types, with_outputs
from onnxprune.prove.places import Places
from onnxprune.prove.tolerances import NEAR, Scale
from onnxprune.run import Chain, Session, first_line, opened
from onnxprune.trace import Trace

LOST = 0.1
"""Of the largest value of a tensor: what rounding moves so far has no digit left that says anything."""
TINY = float(np.finfo(np.float32).tiny)
OTHER_GAINS = (2.0, 4.0, 8.0, 0.5, 0.25, 0.125)
"""Inputs on which rounding alone blurs what is compared are tried so many times as large."""


@dataclass
class Pair:
    """The original and the rewritten model `after`.

    taps: tensors inside that are compared. tolerance: of every tensor, by its own scale; largest_noise: as `Scale` has
    it. transform: what is done to both before they are run; types: the element types of their tensors then. rounding:
    operators whose rounding is a decision; tolerance_when_fed: once these are fed, where it is another. free: weights
    that may be given in the place of either model's own; free_runs: the first run with them, where it came with the
    others. lender: a pair of the same graphs with other weights, whose sessions serve where they can; drawn: whether
    the weights are random. finite_tensors: those that the real weights make finite, and random ones have to."""

    trace: Trace
    places: Places
    after: Model
    taps: Sequence[str]
    options: Options
    tolerance: float
    transform: Callable[[Model], Model]
    types: Types
    largest_noise: int = NEAR
    rounding: Collection[str] = ()
    tolerance_when_fed: float = 0.0
    free: tuple[Mapping[str, Weight], Mapping[str, Weight]] = field(default_factory=lambda: ({}, {}))
    lender: Pair | None = None
    drawn: bool = False
    finite_tensors: set[str] | None = None
    free_runs: list[tuple[Run, list[Any]]] = field(default_factory=list)

    def compared(self, ks: Sequence[int], deep: bool) -> Findings:
        """Run both at the sizes of the assignments `ks`, with the tensors inside at the first one that runs if `deep`;
        CheckFailed where they differ, RuntimeFailure where the original runs nowhere."""
        pruned, found = self.pruned, Findings()
        several: Iterable[list[Run]] = self._masked.runs(ks, deep)
        if isinstance(pruned, Chain) and self._masked.fits_in_memory(ks):  # which is read once for all of them
            several = [[run for runs in several for run in runs]]
        for runs in several:
            self._judged(runs, pruned, partial(self._results, runs, pruned), found)
        return found

    def again(self, run: Run) -> Findings:
        """Run both on the inputs of an earlier run, with the tensors inside."""
        if self.lender is not None and self.lender.free_runs:
            masked_run, got = self.lender.free_runs.pop()
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
        masked, pruned = self._masked.first_session.get(id(run.sizes)), self.pruned
        if not isinstance(masked, Session) or not isinstance(pruned, Session):
            return None
        return (masked, pruned) if masked.holds(self.free[0]) and pruned.holds(self.free[1]) else None

    def _results(self, runs: Sequence[Run], pruned: Session | Chain) -> list[list[Any]]:
        """What the rewritten model gives on the inputs of the runs, and on those of its run with free weights."""
        every = [*runs, *self._masked.free_runs] if isinstance(pruned, Chain) and not self.free_runs else runs
        feeds, names = [r.feeds for r in every], [[*r.values] for r in every]
        if len(every) > len(runs) and isinstance(pruned, Chain):
            with suppress(Exception):  # what a runtime does not take is run apart
                *results, got = pruned.run_all(feeds, names, [self.free[1]])
                self.free_runs.append((every[-1], got))
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
        return Original(self.trace, self.places.kept, self.taps, self.options, self.transform, self.types, self.free[0])

    @cached_property
    def pruned(self) -> Session | Chain:
        """The session of the rewritten model. CheckFailed where it does not load and the original does."""
        model = with_outputs(self.types, self.transform(self.after), self.taps)
        try:
            return opened(model, self.options, self.types, self.free[1])
        except RuntimeFailure as e:
            self._opened(
                self.transform(self.trace.model)
            )  # raises where that does not load either: the user should hear
            raise CheckFailed(f"the pruned model does not load: {e}") from e

    def _where(self, runs: Sequence[Run]) -> str:
        sizes = "; ".join(r.open_sizes for r in runs if r.open_sizes)
        return f" at {sizes}" if sizes else ""

    def _judge(self, run: Run, got: Mapping[str, Any], found: Findings) -> None:
        """CheckFailed where the results of a run differ by more than they may. Where rounding alone makes as much of
        it, as a recurrent layer may be chaotic on some inputs, others have to tell."""
        self._check_finite(run)
        given, fault = run, self._fault(run, got, found)
        if fault is not None and fault.blurred and self.drawn:
            raise RuntimeFailure("rounding alone moves what they make as far")  # others say more
        for gain in OTHER_GAINS:
            if fault is None or not fault.blurred:
                break
            run = self._masked.again(given.with_gain(gain))
            got = dict(zip(run.values, self.pruned.run_all([run.feeds], [[*run.values]])[0], strict=True))
            fault = self._fault(run, got, found)
        if fault is not None:
            raise CheckFailed(
                f"the pruned model differs from the masked original by {fault.error:.1e} (allowed {fault.allowed:.0e})"
                f" in '{fault.name}'{self._where([run])}{self._parting(run, fault.allowed)}"
            )

    def _fault(self, run: Run, got: Mapping[str, Any], found: Findings) -> Fault | None:
        """What is wrong with the results of a run; where nothing is, they are added to what was `found`."""
        errors, allowed, noise = self._verdict(run, got)
        bad = self._scale.beyond(errors, allowed, run.values)
        if bad:
            blurred = any(n in noise and 4 * noise[n] > self._scale.farthest(n) for n in bad)
            return Fault(bad[0], errors[bad[0]], allowed[bad[0]], blurred)
        found.add(run, errors, allowed, self._scale.outputs)
        return None

    def _check_finite(self, run: Run) -> None:
        """RuntimeFailure where drawn weights make something infinite that the real ones do not."""
        whole, known = {name for name, value in run.values.items() if all_finite(value)}, self.finite_tensors
        if not self.drawn:
            self.finite_tensors = whole if known is None else known & (whole | (known - run.values.keys()))
        elif known is not None and not whole >= known & run.values.keys():
            raise RuntimeFailure("what they make is not finite")

    def _verdict(
        self, run: Run, got: Mapping[str, Any]
    ) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:  # fmt: skip
        """How far each tensor is off, how far it may be, and how far rounding moves it where that was measured: where
        it is too far off, once rounding is known; where it still is, once both models decide from the same values."""
        scale = self._scale
        noise: dict[str, float] = {}
        lost: set[str] = set()
        errors = {name: scale.error(name, value, got[name]) for name, value in run.values.items()}
        allowed = {name: scale.tolerance_of(name) for name in errors}
        if scale.beyond(errors, allowed, run.values) and self.options.check_rtol is None:
            noise, lost = self._noise(run)
            allowed = {n: max(a, min(scale.farthest(n), 4 * noise[n])) for n, a in allowed.items()}
        if scale.beyond(errors, allowed, run.values):
            fed = self._errors_with_decisions_fed(run)
            if fed is not None:
                errors = fed
                allowed = {n: self.tolerance_when_fed or allowed.get(n, scale.tolerance_of(n)) for n in fed}
        return {n: e for n, e in errors.items() if n not in lost}, allowed, noise

    @cached_property
    def _scale(self) -> Scale:
        return Scale(
            self.trace, self.places, self.taps, self.options.check_atol, self.tolerance, self.largest_noise, self.drawn
        )

    def _noise(self, run: Run) -> tuple[dict[str, float], set[str]]:
        """How far rounding alone moves each tensor of the masked original; and those inside of which it leaves no
        digit, so that they say nothing (the mean of what is centred)."""
        names = list(run.values)
        again, moved = rounding.nudged(self._original(run, names), run.feeds, self.options.seed)
        got = self._values(again, moved, names)
        noise = {n: self._scale.error(n, run.values[n], got[n]) for n in names}
        inside = [n for n in names if n not in self._scale.outputs and noise[n] > self._scale.farthest(n)]
        return noise, {n for n in inside if LOST < difference(run.values[n], got[n], TINY) < np.inf}

    def _errors_with_decisions_fed(self, run: Run) -> dict[str, float] | None:
        """The errors once the pruned model is fed what the original decides and rounds from, with those of what that
        is; None where nothing is decided."""
        wanted = list(run.values)
        after = self.transform(self.after)
        names = rounding.deciding(self.types, self.transform(self.trace.model), after, self.rounding)
        every = list(dict.fromkeys((*wanted, *names)))
        try:
            mine = self._values(with_outputs(self.types, after, names), run.feeds, names)
            expected = self._values(self._original(run, every), run.feeds, every)
            parts = {n: self._scale.kept_part(n, expected[n]) for n in names}
            decided = {n: p.reshape(mine[n].shape) for n, p in parts.items() if p.size == mine[n].size}
            if not decided:
                return None
            answers = {rounding.fed_name(n): x for n, x in decided.items()}
            open_graph = with_outputs(self.types, after, every)
            model = rounding.with_decisions_fed(self.types, open_graph, decided, self.rounding)
            got = self._values(model, {**run.feeds, **answers}, every)
        except Exception:  # decisions that it was not fed do not fit these: a runtime has many ways to say so
            return None
        run.values.update(expected)
        return {n: self._scale.error(n, expected[n], got[n]) for n in every}

    def _parting(self, run: Run, tolerance: float) -> str:
        """The first node, in order, at whose output the two models part, or the original gives something else when it
        is run again: some kernels of a runtime read memory that nobody wrote."""
        ours = {o for n in self.after.skeleton.graph.node for o in n.output}
        producer = {o: n for n in self.trace.model.skeleton.graph.node for o in n.output}
        names = [o for o in producer if o in ours and self.types(o) in FLOATS]
        try:
            left, again = (self._values(self._original(run, names), run.feeds, names) for _ in range(2))
            right = self._values(with_outputs(self.types, self.transform(self.after), names), run.feeds, names)
        except Exception:  # an error message must not fail for want of more to say
            return ""
        for name in names:
            node = f"{producer[name].op_type} '{producer[name].name}'"
            if self._scale.error(name, left[name], again[name]) > tolerance:
                return f"; the original itself gives other numbers in every run, from {node} on"
            if self._scale.error(name, left[name], right[name]) > tolerance:
                return f"; they part at {node}"
        return ""

    def _original(self, run: Run, names: Sequence[str]) -> Model:
        return with_outputs(self.types, self._masked.at(run.sizes), names)

    def _opened(self, model: Model) -> Session | Chain:
        return opened(model, self.options, self.types)

    def _values(self, model: Model, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, Any]:
        return dict(zip(names, self._opened(model).run(feeds, names), strict=True))
