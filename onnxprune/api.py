"""The public API: load, trace, group, score, select, rewrite, prove. Data flows one way.

Knows the order of the stages and what they hand on; how one does its work is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from onnxprune.auditing import audited
from onnxprune.blame import answered
from onnxprune.errors import CheckFailed, NothingToPrune
from onnxprune.model import Model
from onnxprune.options import Compared, Inspection, Options, Progress, Report, Verified
from onnxprune.planning import Decision, Plan, curves, decide, plan_of, planner, profile, removed_by, settled
from onnxprune.refit import merged, refitted, replayed
from onnxprune.report import frozen, infos, notes, nothing, predicted
from onnxprune.rewrite import rewrite
from onnxprune.stages import Clock, analysed, check, checked, proven, ran
from onnxprune.trace import Groups, Trace

STEPS = 6
"""Of the search for the largest cut: each halves what is open."""


@dataclass(frozen=True)
class Result:
    """A proven smaller model, the plan that made it, and the report of the run."""

    model: Model
    plan: Plan
    report: Report


@answered
def prune(
    model: Any, options: Options | None = None, *, plan: Plan | None = None, force_plan: bool = False,
    progress: Progress | None = None, **kw: Any,
) -> Result:  # fmt: skip
    """Prune `model` (a path, a ModelProto or a graphsurgeon Graph) and prove the result.

    Keyword arguments are the fields of `Options`. With `plan` that plan is applied instead of a new one, which must be
    of this graph unless `force_plan` says that what it names is the same here.
    Raises UsageError (bad input), NothingToPrune, CheckFailed (a proof failed), RuntimeFailure (ONNX Runtime)."""
    options = checked(replace(options or Options(), **kw))
    clock = Clock(progress)
    groups = analysed(_loaded(model, clock), options, clock)
    clock("decide")
    options = settled(groups, options)
    if plan is None:
        decision = decide(groups, options, progress)
    else:
        decision = replayed(groups, removed_by(groups, plan, force_plan), options)
    return _carried_out(groups, decision, options, clock, plan)


@answered
def largest(
    model: Any, holds: Callable[[Result], bool], options: Options | None = None, *, progress: Progress | None = None,
    **kw: Any,
) -> Result:  # fmt: skip
    """The largest cut for which `holds` says yes, by bisection of the ratio to about a sixtieth; what does not depend
    on the ratio (inputs, statistics, curves) is worked out once. CheckFailed where none is small enough. The smaller
    models are taken to be the worse ones."""
    options = checked(replace(options or Options(), **kw))
    clock = Clock(progress)
    groups = analysed(_loaded(model, clock), options, clock)
    clock("decide")
    options = settled(groups, options)
    plans = planner(groups, options, progress)
    low, high, best = 0.0, 1.0, None
    for step in range(STEPS):
        ratio = (low + high) / 2
        if progress:
            progress("search", step / STEPS)
        asked = replace(options, ratio=ratio)
        decision = plans(asked)
        if decision.removed.any():
            result = _carried_out(groups, decision, asked, clock, None)
            fine = holds(result)
            best = result if fine else best
        else:
            fine = True
        low, high = (ratio, high) if fine else (low, ratio)
    if best is None:
        raise CheckFailed(f"no cut is small enough to hold what was asked for: not even --ratio {high:.3f} does")
    return best


def _loaded(model: Any, clock: Clock) -> Model:
    clock("load")
    return Model.load(model)


def _carried_out(groups: Groups, decision: Decision, options: Options, clock: Clock, plan: Plan | None) -> Result:
    """Rewrite, prove, refit, report."""
    if not decision.removed.any():
        raise NothingToPrune(nothing(groups, options) if plan is None else "the plan removes nothing")
    after, kept, proof, after_macs = proven(groups, decision.removed, options, clock)
    story: Mapping[str, Any] | None = None
    if decision.inputs is not None and options.reconstruct == "ls":
        clock("reconstruct")
        refit = refitted(groups, decision, after, options, clock.progress)
        if refit.fallback is not None:
            after, kept, proof, after_macs = proven(groups, refit.fallback, options, clock)
        else:
            check(groups, kept, after, options, clock)
        story = refit.story
    elif options.reconstruct == "merge" or decision.merge:
        clock("reconstruct")
        story = merged(groups, decision.removed, after)
        check(groups, kept, after, options, clock)
    if decision.inputs is not None:
        ran(groups, after.model, decision.inputs.feeds, options, clock)
    clock("")
    report = Report(
        profile.cost(groups.trace.model, profile.macs(groups.trace)), profile.cost(after.model, after_macs),
        infos(groups, kept), frozen(groups), proof, replace(options, calib=None),
        (*notes.of(groups), *decision.notes), None, dict(clock.seconds), story,
        curves.curve_infos(groups, decision.curve_set, kept) if decision.curve_set else (),
        predicted(decision.costs, groups.alive(kept)) if options.of == "latency" else None,
    )  # fmt: skip
    done = replace(options, reconstruct=_reconstructed(story))
    return Result(after.model, replace(plan or plan_of(groups, kept, done), reconstruct=done.reconstruct), report)


def _reconstructed(story: Mapping[str, Any] | None) -> Literal["ls", "merge", "none"]:
    """What was done to the weights that stay."""
    if story is None or "failed" in story or story.get("fell_back"):
        return "none"
    return "merge" if story.get("method") == "merge" else "ls"


@answered
def inspect(model: Any, options: Options | None = None, **kw: Any) -> Inspection:
    """The groups of coupled channels of a model, what is frozen and why."""
    groups = analysed(Model.load(model), checked(replace(options or Options(), **kw)), Clock())
    kept = np.ones(groups.trace.labels.n, bool)
    cost = profile.cost(groups.trace.model, profile.macs(groups.trace))
    return Inspection(infos(groups, kept), frozen(groups), cost, notes.of(groups))


@answered
def compare(
    a: Any, b: Any, data: Any = None, options: Options | None = None, *, metric: str = "", gates: Any = None,
    samples: int | None = None, **kw: Any,
) -> Compared:  # fmt: skip
    """Costs of two models with the same inputs and outputs, and how good `b` is beside `a` on `data` (what --calib
    takes, with labels where there are any; None makes inputs up). Gates that do not hold are named, not raised."""
    from onnxprune.measure import compared

    options = checked(replace(options or Options(), **kw))
    quality = compared(a, data, options, metric, samples).measure(Model.load(b).normalised(), gates, options.seed)
    costs = [profile.cost(g.trace.model, profile.macs(g.trace)) for g in
             (analysed(Model.load(x), options, Clock()) for x in (a, b))]  # fmt: skip
    return Compared(costs[0], costs[1], asdict(quality))


@answered
def plan(model: Any, options: Options | None = None, **kw: Any) -> Plan:
    """The plan that `prune` would apply."""
    options = checked(replace(options or Options(), **kw))
    groups = analysed(Model.load(model), options, Clock())
    options = settled(groups, options)
    return plan_of(groups, groups.kept_ids(decide(groups, options).removed), options)


@answered
def apply(model: Any, plan: Plan, options: Options | None = None, *, force_plan: bool = False, **kw: Any) -> Model:
    """`model` without what `plan` removes. Unproven: `verify` proves it, `prune(plan=...)` does both."""
    groups = analysed(Model.load(model), checked(replace(options or Options(), **kw)), Clock())
    return rewrite(groups.trace, groups.kept_ids(removed_by(groups, plan, force_plan))).model


@answered
def completed(
    model: Any, plan: Plan, options: Options | None = None, *, force_plan: bool = False, **kw: Any
) -> tuple[Model, Plan]:
    """The graph whose names a plan bears, and the plan with everything that is coupled to what an edited one removes.

    Raises UsageError where it is not a plan of `model`."""
    groups = analysed(Model.load(model), checked(replace(options or Options(), **kw)), Clock())
    found = plan_of(groups, groups.kept_ids(removed_by(groups, plan, force_plan)), Options())
    return groups.trace.model, replace(plan, groups=found.groups, fingerprint=found.fingerprint)


@answered
def verify(
    model: Any, pruned: Any, plan: Plan, options: Options | None = None, *, force_plan: bool = False,
    refitted: bool | None = None, **kw: Any,
) -> Verified:  # fmt: skip
    """Prove that `pruned` is `model` without what `plan` removes; CheckFailed where it is not.

    `refitted`: whether weights may have other values than those of `model`; None: if the run that made the plan
    refitted them. Then their shapes and the graph are proven, and what they are worth is measured."""
    options = checked(replace(options or Options(), **kw))
    groups = analysed(Model.load(model), options, Clock())
    kept = groups.kept_ids(removed_by(groups, plan, force_plan))
    given = pruned if isinstance(pruned, Model) else Model.load(pruned)
    free = plan.reconstruct in ("ls", "merge") if refitted is None else refitted
    return audited(groups, kept, given, free, options)


@answered
def trace(model: Any, options: Options | None = None, **kw: Any) -> Trace:
    """Labels, couplings, reductions and edits of a model (see `onnxprune.trace`)."""
    return analysed(Model.load(model), checked(replace(options or Options(), **kw)), Clock()).trace
