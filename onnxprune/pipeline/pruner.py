"""One model made ready to be pruned, and any number of cuts of it: what depends neither on the ratio nor on the
criterion (shapes, trace, inputs, statistics) is worked out once.

Knows the order of the stages and what they hand on; how one does its work is its own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from onnxprune.data import unread
from onnxprune.errors import NothingToPrune
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import tuning
from onnxprune.pipeline.stages import Clock, analysed, check, proven, ran
from onnxprune.planning import Decision, Plan, Planner, asked, curves, in_spite_of_fast, plan_of, profile, settled
from onnxprune.progress import now
from onnxprune.refit import folded, merged, refitted
from onnxprune.report import Report, branch_infos, caches, drawn, frozen, infos, notes, nothing, predicted
from onnxprune.results import Cost, Proof
from onnxprune.rewrite import Rewritten
from onnxprune.trace import Mask


class Pruned(NamedTuple):
    """A proven smaller model, the plan that made it, and the report of the run."""

    model: Model
    plan: Plan
    report: Report


class Pruner:
    """A model (a path, bytes, a ModelProto or a graphsurgeon Graph) ready to be cut.

    groups: of its channels. options: those that were given, with nothing left open; where it is fine-tuned, calibrated
    on the part of the user's inputs that does not judge. parts: the inputs to fine-tune on, if that is asked for.
    doubts: what is wrong with the inputs that were given."""

    def __init__(self, model: Any, options: Options, clock: Clock, plan: Plan | None = None) -> None:
        """plan: what goes, if that is known. Raises what every job does: UsageError, NothingToPrune,
        RuntimeFailure."""
        tuning.check(options)
        clock("load")
        source = Model.load(model)
        self.groups = analysed(source, options, clock, plan=plan)
        clock("decide")
        self.options, self.parts = tuning.parted(self.groups, settled(self.groups, options))
        self.doubts = unread(options.calib, source)
        self.planner = Planner(self.groups, self.options, lambda stage, share: now()(stage, share))

    @property
    def cost(self) -> Cost:
        """Of the model as it is."""
        return profile.cost(self.groups.trace.model, profile.macs(self.groups.trace))

    def cut(self, ratio: float, criterion: str, clock: Clock) -> Pruned:
        """What `onnxprune.prune` makes with this ratio and criterion, byte for byte; raises what it does."""
        clock("decide")
        options = replace(self.options, ratio=ratio, criterion=criterion)
        return self.carried_out(self.planner.decide(options), options, clock)

    def carried_out(self, decision: Decision, options: Options, clock: Clock, plan: Plan | None = None) -> Pruned:
        """Rewrite, prove, refit, fine-tune, report. `plan`: where the decision is an earlier one."""
        groups = self.groups
        if not decision.removed.any():
            raise NothingToPrune(nothing(groups, options) if plan is None else "the plan removes nothing")
        after, kept, proof, after_macs, story = self._refit(
            decision, proven(groups, decision.removed, options, clock), options, clock
        )
        for note in decision.notes:
            clock.progress.warn(note)
        tuned = None if self.parts is None else tuning.trained(groups, after, self.parts, options, clock)
        if decision.inputs is not None:
            ran(groups, after.model, decision.inputs.feeds, options, clock)
        clock("")
        report = Report(
            self.cost, profile.cost(after.model, after_macs),
            infos(groups, kept, asked(groups, options)), frozen(groups), proof, replace(options, calib=None),
            (*notes.of(groups), *in_spite_of_fast(options), *decision.notes), None, dict(clock.seconds), story,
            curves.curve_infos(groups, decision.curve_set, kept) if decision.curve_set else (),
            predicted(decision.costs, groups.alive(kept)) if options.of == "latency" else None,
            tuned, warnings=self.doubts, caches=caches(groups.trace, after.model), **drawn(groups, kept),
            branches=branch_infos(groups, kept, decision.curve_set.branches if decision.curve_set else None),
        )  # fmt: skip
        return Pruned(after.model, (plan or plan_of(groups, kept, options)).refitted(story, tuned), report)

    def _refit(
        self, decision: Decision, done: tuple[Rewritten, Mask, Proof, float], options: Options, clock: Clock
    ) -> tuple[Rewritten, Mask, Proof, float, Mapping[str, Any] | None]:
        """What `proven` gave with weights fitted anew, or the cut that weights alone make; and the story of it."""
        after, kept = done[:2]
        story: Mapping[str, Any] | None = None
        if decision.inputs is not None and options.reconstruct == "ls":
            clock("reconstruct")
            refit = refitted(self.groups, decision, after, options, clock.progress)
            story = refit.reconstruction_report
            if refit.fallback is not None:
                return *proven(self.groups, refit.fallback, options, clock), story
            check(self.groups, kept, after, options, clock)
        elif options.reconstruct in ("merge", "fold") or decision.merge:
            clock("reconstruct")
            way = folded if options.reconstruct == "fold" else merged
            story = way(self.groups, decision.removed, after)
            check(self.groups, kept, after, options, clock)
        return *done, story
