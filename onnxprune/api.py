"""The public API: load, trace, group, score, select, rewrite, prove. Data flows one way.

Knows the order of the stages and what they hand on; how one does its work is its own affair.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from onnxprune.errors import CheckFailed, UsageError
from onnxprune.files import is_text
from onnxprune.measure import Gates, check_timed, compared, timed
from onnxprune.model import Model
from onnxprune.options import OptionKeywords, Options, Progress, given, unread
from onnxprune.pipeline import Clock, Pruner, analysed, audited, checked, searching
from onnxprune.planning import Plan, Planner, criteria, plan_of, profile, removed_by, settled, uses_inputs
from onnxprune.progress import inside
from onnxprune.refit import replayed
from onnxprune.rehearsal import blame_model
from onnxprune.report import Report, branch_infos, frozen, infos, layer_infos, notes, report_html, report_text
from onnxprune.results import Compared, Inspection, Verified
from onnxprune.rewrite import rewrite
from onnxprune.trace import Trace, dependencies

Name = str | os.PathLike[str]
STEPS = 6
"""Of the search for the largest cut: each halves what is open."""


@dataclass(frozen=True, repr=False)
class Result:
    """A proven smaller model, the plan that made it, and the report of the run."""

    model: Model
    plan: Plan
    report: Report

    def save(self, path: str | os.PathLike[str], external_data: bool | None = None) -> Path:
        """Write the model whole or not at all; its weights beside it, in PATH.data, if `external_data` (None: where a
        file cannot hold them). UsageError or RuntimeFailure where it cannot be written."""
        self.model.save(path, external_data)
        return Path(path)

    def summary(self) -> str:
        """What the command line prints: before and after, what was removed, what stayed and why, the proof."""
        return report_text(self.report)

    def __repr__(self) -> str:
        before, after = self.report.before, self.report.after
        return (
            f"<onnxprune.Result: parameters {before.parameters:,} -> {after.parameters:,}, MACs {before.macs:,} -> "
            f"{after.macs:,}, equal within {self.report.proof.error:.1e}>"
        )

    def _repr_html_(self) -> str:
        return report_html(self.report)


@blame_model
def prune(
    model: Any, options: Options | None = None, *, plan: Plan | Name | None = None, force_plan: bool = False,
    validate: Any = None, metric: Any = "", gates: Gates | None = None, progress: Progress | None = None,
    **keywords: Unpack[OptionKeywords],
) -> Result:  # fmt: skip
    """Prune `model` (a path, bytes, a ModelProto or a graphsurgeon Graph) and prove the result.

    Keyword arguments are the fields of `Options`. With `plan` (or its path) that plan is applied instead of a new one,
    which must be of this graph unless `force_plan` says that what it names is the same here. validate: data on which
    both models are measured (what `compare` takes) by `metric`, into `report.validation`; `gates` must hold there.
    Raises UsageError (bad input), NothingToPrune, CheckFailed (a proof or a gate failed), RuntimeFailure (ONNX Runtime,
    a provider, the disk)."""
    options = _asked(options, keywords)
    _refuse_unread(options, keywords, validate, plan is not None)
    plan = plan if plan is None else Plan.of(plan)
    options = options if plan is None else _planned(options, plan)
    if gates and validate is None:
        raise UsageError("`gates` need data: give it with `validate`")
    comparison = None if validate is None else compared(model, validate, options, metric, gates=gates)
    clock = Clock()
    pruner = Pruner(model, options, clock, plan)
    options = pruner.options
    if plan is None and options.max_latency is not None:
        result = Result(*searching.fast_enough(pruner, model, clock))
    elif plan is None:
        decision = pruner.planner.decide(options)
        pruner.planner.rest()
        result = Result(*pruner.carried_out(decision, options, clock))
    else:
        decision = replayed(pruner.groups, removed_by(pruner.groups, plan, force_plan), options)
        result = Result(*pruner.carried_out(decision, options, clock, plan))
    if comparison is None:
        return result
    quality = comparison.judged(result.model, gates, options.seed)
    return replace(result, report=replace(result.report, validation=quality))


@blame_model
def largest(
    model: Any, holds: Callable[[Result], bool], options: Options | None = None, *, progress: Progress | None = None,
    **keywords: Unpack[OptionKeywords],
) -> Result:  # fmt: skip
    """The largest cut for which `holds` says yes, by bisection of the ratio to about a sixtieth, as `report.search`
    tells; what does not depend on the ratio is worked out once. CheckFailed where no cut is small enough."""
    options = _asked(options, keywords)
    _refuse_unread(options, keywords)
    if options.max_latency is not None:
        raise UsageError("max_latency asks for the smallest cut, not for the largest: give it to `prune`")
    clock = Clock()
    pruner = Pruner(model, options, clock)
    low, high, best, tried, stages = 0.0, 1.0, None, list[dict[str, Any]](), clock.progress
    for step in range(STEPS):
        ratio, fine = (low + high) / 2, True
        asked = replace(pruner.options, ratio=ratio)
        clock("decide")
        decision = pruner.planner(asked)
        if decision.removed.any():
            with inside(f"search: ratio {ratio:.3f}", step / STEPS) as clock.progress:
                result = Result(*pruner.carried_out(decision, asked, clock))
                if (result.report.finetune or {}).get("interrupted"):
                    raise KeyboardInterrupt
                fine = holds(result)
            best = result if fine else best
        stages.step(f"ratio {ratio:.3f} {'holds' if fine else 'does not hold'}", (step + 1) / STEPS)
        low, high = (ratio, high) if fine else (low, ratio)
        tried.append({"ratio": ratio, "holds": fine})
    if best is None:
        raise CheckFailed(f"no cut is small enough to hold what was asked for: not even --ratio {high:.3f} does")
    return replace(best, report=replace(best.report, search={"ratio": best.report.options.ratio, "tried": tried}))


def _asked(options: Options | None, keywords: OptionKeywords) -> Options:
    """The options with what the keywords say, checked; a criterion may be a function."""
    said: dict[str, Any] = {**keywords}
    if callable(said.get("criterion")):
        said["criterion"] = criteria.named(said["criterion"])
    return checked(given(options, said))


def _planned(options: Options, plan: Plan) -> Options:
    """The options under which a plan can be followed: it says itself whether heads of a cache go."""
    return replace(options, kv_heads=options.kv_heads or plan.kv_heads)


def _refuse_unread(options: Options, keywords: OptionKeywords, data: Any = None, plan: bool = False) -> None:
    """UsageError for a keyword of this call that nobody would read. An Options may serve several calls: what it holds
    is not asked."""
    asked = unread.differing({**keywords})
    bounded = options.max_latency is not None
    times = bounded or options.of == "latency" or options.round_to == 0
    measured = options.resolved().scope == "sensitivity"
    inputs = uses_inputs(options.resolved()) or bool(options.finetune)
    texts, made_up = any(map(is_text, (options.calib, data))), inputs and options.calib is None
    run = unread.Run(
        inputs, data is not None, times, plan, fast=options.fast, measured=measured, texts=texts, made_up=made_up,
        bounded=bounded,
    )  # fmt: skip
    unread.check(asked, run)


@blame_model
def inspect(model: Any, options: Options | None = None, **keywords: Unpack[OptionKeywords]) -> Inspection:
    """The groups of coupled channels of a model, what is frozen and why."""
    groups = analysed(Model.load(model), _asked(options, keywords), Clock(), runs=False)
    kept = np.ones(groups.trace.labels.n, bool)
    cost = profile.cost(groups.trace.model, profile.macs(groups.trace))
    return Inspection(
        infos(groups, kept),
        frozen(groups),
        cost,
        notes.of(groups),
        layer_infos(groups),
        branch_infos(groups, kept),
        dependencies(groups),
    )


@blame_model
def compare(
    a: Any, b: Any, data: Any = None, options: Options | None = None, *, metric: Any = "",
    gates: Gates | None = None, samples: int | None = None, benchmark: bool = False, **keywords: Unpack[OptionKeywords],
) -> Compared:  # fmt: skip
    """Costs of two models with the same inputs and outputs, and how good `b` is beside `a` on `data` (what --calib
    takes, with labels or without; None makes inputs up); `benchmark` times both. Failed gates are named, not raised."""
    options = _asked(options, keywords)
    for model in (a, b) if benchmark else ():
        check_timed(model, options)
    comparison = compared(a, data, options, metric, samples, gates)
    quality = comparison.measure(Model.load(b).normalised(), gates, options.seed)
    traces = [analysed(Model.load(x), options, Clock()).trace for x in (a, b)]
    before, after = (profile.cost(trace.model, profile.macs(trace)) for trace in traces)
    times = {"measured": timed(Model.load(a), Model.load(b), options).to_json()} if benchmark else None
    return Compared(before, after, asdict(quality), times)


@blame_model
def plan(model: Any, options: Options | None = None, **keywords: Unpack[OptionKeywords]) -> Plan:
    """The plan that `prune` would apply."""
    options = _asked(options, keywords)
    _refuse_unread(options, keywords)
    if options.max_latency is not None:
        pruner = Pruner(model, options, Clock())
        decision, options = searching.decided(pruner, model)
        return plan_of(pruner.groups, pruner.groups.kept_ids(decision.removed), options)
    groups = analysed(Model.load(model), options, Clock(), runs=uses_inputs(options.resolved()))
    options = settled(groups, options)
    return plan_of(groups, groups.kept_ids(Planner(groups, options).decide(options).removed), options)


@blame_model
def apply(
    model: Any, plan: Plan | Name, options: Options | None = None, *, force_plan: bool = False,
    **keywords: Unpack[OptionKeywords],
) -> Model:  # fmt: skip
    """`model` without what `plan` (or that at this path) removes. Unproven: `verify` proves it, `prune(plan=...)` does
    both."""
    plan = Plan.of(plan)
    groups = analysed(Model.load(model), _planned(_asked(options, keywords), plan), Clock(), False, plan)
    return rewrite(groups.trace, groups.kept_ids(removed_by(groups, plan, force_plan))).model


@blame_model
def completed(
    model: Any, plan: Plan | Name, options: Options | None = None, *, force_plan: bool = False,
    **keywords: Unpack[OptionKeywords],
) -> tuple[Model, Plan]:  # fmt: skip
    """The graph whose names a plan bears, and the plan with everything that is coupled to what an edited one removes,
    and with how many heads and groups that leaves.

    Raises UsageError where it is not a plan of `model`."""
    plan = Plan.of(plan)
    groups = analysed(Model.load(model), _planned(_asked(options, keywords), plan), Clock(), False, plan)
    found = plan_of(groups, groups.kept_ids(removed_by(groups, plan, force_plan)), Options(), rows=True)
    return groups.trace.model, replace(plan, groups=found.groups, fingerprint=found.fingerprint)


@blame_model
def verify(
    model: Any, pruned: Any, plan: Plan | Name, options: Options | None = None, *, force_plan: bool = False,
    refitted: bool | None = None, **keywords: Unpack[OptionKeywords],
) -> Verified:  # fmt: skip
    """Prove that `pruned` is `model` without what `plan` (or that at this path) removes; CheckFailed where it is not.

    `refitted`: whether weights may have other values than those of `model`; None: if the run that made the plan
    refitted them. Then their shapes and the graph are proven, and what they are worth is measured."""
    plan = Plan.of(plan)
    options = _planned(_asked(options, keywords), plan)
    groups = analysed(Model.load(model), options, Clock(), plan=plan)
    kept = groups.kept_ids(removed_by(groups, plan, force_plan))
    small = pruned if isinstance(pruned, Model) else Model.load(pruned)
    free = plan.refits if refitted is None else refitted
    return audited(groups, kept, small, free, options)


@blame_model
def trace(model: Any, options: Options | None = None, **keywords: Unpack[OptionKeywords]) -> Trace:
    """Labels, couplings, reductions and edits of a model (see `onnxprune.trace`)."""
    return analysed(Model.load(model), _asked(options, keywords), Clock(), runs=False).trace
