"""Which units go: calibrate, score, allocate. Everything that `Options` leaves open about a plan is settled here.

Knows groups, scores and shares; no operator, and nothing of the rewriting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Calibration
from onnxprune.errors import RuntimeFailure
from onnxprune.fit import normalisations, re_estimated
from onnxprune.options import Options, Progress
from onnxprune.planning import branches, criteria, curves, timings
from onnxprune.planning.costs import Costs
from onnxprune.planning.criteria.inputs import CriterionInputs
from onnxprune.planning.limits import FLOOR
from onnxprune.planning.memory import checked
from onnxprune.planning.named import Asked, asked
from onnxprune.planning.parting import calibrated, counts, parted
from onnxprune.planning.reaching import SLACK, check_reachable
from onnxprune.planning.rows import rows_that_go
from onnxprune.planning.selection import select
from onnxprune.planning.trials import Trials
from onnxprune.steady import steady
from onnxprune.trace import Groups, Mask

FAR = 1.1
"""A plan that leaves this much more of the cost is of another size."""


@dataclass
class Decision:
    """removed: the units that go. groups: of the graph that was looked at.

    inputs: what was run, if anything was.
    merge: what goes is to be merged in weight space, because nothing better can be done. notes: what the user should
    know. given: by a plan, so that nothing else may go."""

    removed: Mask
    groups: Groups
    inputs: Calibration | None = None
    curve_set: curves.CurveSet | None = None
    merge: bool = False
    notes: tuple[str, ...] = ()
    costs: Costs | None = None
    given: bool = False


def settled(groups: Groups, options: Options) -> Options:
    """Resolved, and with the multiple to round to that this machine likes where it was left to be found out."""
    options = options.resolved()
    if options.round_to == 0:
        return replace(options, round_to=timings.multiple(groups, options))
    return options


class Planner:
    """Makes plans of one graph. Costs, inputs and statistics are worked out once, when they are first asked for; scores
    and curves once for each criterion.

    `options` must be settled; those of a plan may differ from them in ratio and criterion only."""

    def __init__(self, groups: Groups, options: Options, progress: Progress | None = None) -> None:
        self.groups, self.options, self.progress = groups, options, progress
        self.weights = CriterionInputs(groups, options)

    @steady()
    def __call__(self, options: Options) -> Decision:
        """The plan of one ratio and criterion. Where no inputs can be run, weights alone decide; a note says so."""
        if not uses_inputs(options):
            return self._by_weights(options)
        if isinstance(self._informed, Informed):
            return self._informed(options)
        merge = options.reconstruct != "none"
        how = f"so weights alone decided{' and were merged' if merge else ''}"
        why = f"no inputs could be run ({self._informed.message}), {how}"
        found = self._by_weights(replace(options, criterion="l2", scope="local"))
        return replace(found, merge=merge, notes=(why,))

    def decide(self, options: Options) -> Decision:
        """The same; UsageError where --ratio-of leaves no way to the target."""
        decision = self(options)
        if options.ratio_of and options.of != "units":
            check_reachable(self.groups, options, self.costs)
        return decision

    def rest(self) -> None:
        """Let go of statistics: where no other plan is to be made, they take memory that others need."""
        self.__dict__.pop("_informed", None)

    def _by_weights(self, options: Options) -> Decision:
        return Decision(by_weights(self.groups, options, self.costs, self.weights), self.groups, costs=self.costs)

    @cached_property
    def costs(self) -> Costs:
        """What the budget is counted in."""
        return costs_of(self.groups, self.options, self.progress)

    @cached_property
    def _informed(self) -> Informed | RuntimeFailure:
        """What decides by inputs; or why these cannot be run. UsageError where they take more than the memory."""
        groups, options = self.groups, self.options
        checked(groups, options)
        try:
            inputs = calibrated(groups, options, self.progress)
        except RuntimeFailure as error:
            return error
        return Informed(working(groups, inputs, options), options, inputs, self.costs, self.progress)


def costs_of(groups: Groups, options: Options, progress: Progress | None = None) -> Costs:
    """What the budget is counted in."""
    if options.of == "latency":
        return timings.costs(groups, options, progress)
    return Costs.of(groups, "params" if options.of == "params" else "macs")


def uses_inputs(options: Options) -> bool:
    """Whether the plan, or what follows it, looks at activations."""
    return bool(_look_at_inputs(options))


def _look_at_inputs(options: Options) -> list[str]:
    """The flags that do, of options that are resolved."""
    looks = {
        f"--criterion {options.criterion}": criteria.needs_inputs(options.criterion),
        "--scope sensitivity": options.scope == "sensitivity",
        "--reconstruct ls": options.reconstruct == "ls",
    }
    return [flag for flag, does in looks.items() if does]


def in_spite_of_fast(options: Options) -> tuple[str, ...]:
    """A note where inputs are run although `fast` is asked for, and what for; options are resolved."""
    asked = [*_look_at_inputs(options), *(["--finetune"] if options.finetune else [])]
    return (f"inputs were run in spite of --fast, for {' and '.join(asked)}",) if options.fast and asked else ()


def working(groups: Groups, inputs: Calibration, options: Options) -> Groups:
    """The graph that statistics are taken of: with the moments of made-up inputs in its BatchNorms."""
    if not inputs.synthetic or not normalisations(groups.trace.model):
        return groups
    return replace(groups, trace=re_estimated(groups.trace, inputs.feeds, options.providers))


class Informed:
    """A planner that scores on the inputs and allocates by what `options.scope` says."""

    def __init__(
        self, groups: Groups, options: Options, inputs: Calibration, costs: Costs,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.groups, self.inputs, self.costs, self.progress = groups, inputs, costs, progress
        self.parts = parted(inputs.feeds)
        labels = None if inputs.labels is None else inputs.labels[: sum(counts(groups, self.parts.fit))]
        self.criterion_inputs = CriterionInputs(groups, options, self.parts.fit, labels)
        self.asked = asked(groups, options)
        seen = curves.UNKNOWN if inputs.diversity is None else min(inputs.diversity, curves.MOST)
        self.trust = seen if inputs.synthetic else curves.OWN
        self.observed: dict[tuple[str, bytes], curves.CurveSet] = {}
        self.measured: dict[tuple[str, bytes, bytes], curves.CurveSet] = {}

    @steady()
    def __call__(self, options: Options) -> Decision:
        """The plan for one ratio and criterion."""
        curve_set: curves.CurveSet | None = None
        if options.criterion != "obs" and options.scope in ("local", "global", "pq"):
            scores = criteria.scores(options.criterion, self.criterion_inputs)
            removed = spread(self.groups, scores, options, self.costs, self.asked)
        elif options.scope in ("local", "pq"):
            curve_set = self.curve_set(options)
            removed = spread(self.groups, curve_set.scores, options, self.costs, self.asked)
        else:
            removed, curve_set = self.allocated(options)
        notes: tuple[str, ...] = ()
        if options.criterion == "obs" and options.reconstruct == "none":
            notes = ("the obs score assumes that weights are updated; without reconstruction l2 is the better choice",)
        return Decision(
            removed, self.groups, self.inputs, curve_set and replace(curve_set, sites=[]), notes=notes, costs=self.costs
        )  # fmt: skip

    def curve_set(self, options: Options) -> curves.CurveSet:
        """Curves, and for the sensitivity scope their factors: of the ratio they depend on the heads that go only."""

        def heads(scores: NDArray[np.float64]) -> bytes:
            return rows_that_go(self.groups, scores, options, self.asked)[0].tobytes()

        name = options.criterion
        seen = name, heads(criteria.scores("l2" if name == "obs" else name, self.criterion_inputs))
        if seen not in self.observed:
            self.observed[seen] = curves.observe(self.groups, self.criterion_inputs, options, self.progress, self.asked)
        found = self.observed[seen]
        if options.scope != "sensitivity":
            return found
        tried = *seen, heads(found.scores)
        if tried not in self.measured:
            found = replace(found, curves=[replace(curve) for curve in found.curves])
            curves.measure(self.groups, found, self.parts, options, self.progress, self.asked, self.trust)
            self.measured[tried] = found
        return self.measured[tried]

    def allocated(self, options: Options) -> tuple[Mask, curves.CurveSet]:
        """The budget spent along the curves."""
        groups, costs = self.groups, self.costs
        wanted = budget(groups, options, costs, self.criterion_inputs)
        for heads in (False, True) if options.heads and options.scope == "sensitivity" else (options.heads,):
            trial = replace(options, heads=heads)  # whole heads are the dearest units: only where nothing else is left
            curve_set = self.curve_set(trial)
            removed = self._better(self._spent(curve_set, trial, wanted), curve_set, trial, wanted)
            if not groups.rows or _cost(groups, costs, removed) <= SLACK * wanted:
                break
        return removed, curve_set

    def _spent(self, curve_set: curves.CurveSet, options: Options, wanted: float) -> Mask:
        """What goes where the budget is spent along the curves, and on residual branches."""
        return curves.spent(self.groups, curve_set, options, wanted, self.costs, self.trust, self.asked)

    def _better(self, removed: Mask, curve_set: curves.CurveSet, options: Options, wanted: float) -> Mask:
        """Of the plan by which residual branches go, one by which at most half of these may and one by which none does,
        that by which the outputs lose least: what each branch costs alone was measured; several cost more."""
        went = [unit for unit in branches.by_rate(self.groups, curve_set.branches, self.costs) if removed[unit]]
        if not went:
            return removed
        plans = [removed]
        for count in sorted({len(went) // 2, 0}, reverse=True):
            some = {unit: curve_set.branches[unit] for unit in went[:count]}
            plan = self._spent(replace(curve_set, branches=some), options, wanted)
            if _cost(self.groups, self.costs, plan) <= SLACK * wanted:
                plans.insert(0, plan)  # of equals, the one with fewer branches
        lost = Trials(self.groups, curve_set.sites, self.parts, options, len(plans)).lost(plans)
        return min(zip(lost, plans, strict=True), key=lambda one: np.inf if one[0] is None else one[0])[1]


@steady()
def by_weights(
    groups: Groups, options: Options, costs: Costs | None = None, inputs: CriterionInputs | None = None
) -> Mask:
    """The plan that needs nothing but weights. inputs: of the same groups, where there are some already."""
    scores = criteria.scores(options.criterion, inputs or CriterionInputs(groups, options))
    return spread(groups, scores, options, costs or costs_of(groups, options), asked(groups, options))


def rival(weights: Groups, decision: Decision, options: Options) -> Mask:
    """What weights alone remove for the same target, which no refit may be worse than; nothing where they cannot take
    as much, as groups have limits. `weights`: the groups with the moments that the network was trained with."""
    groups, costs = decision.groups, decision.costs or costs_of(decision.groups, options)
    removed = by_weights(weights, replace(options, criterion="l2", scope="local"), costs)
    wanted = max(budget(groups, options, costs), _cost(groups, costs, decision.removed))
    return removed if _cost(groups, costs, removed) <= FAR * wanted else np.zeros_like(removed)


def spread(groups: Groups, scores: NDArray[np.float64], options: Options, costs: Costs, given: Asked) -> Mask:
    """Uniform or global shares, or shares by the PQ index, so that the target is met beside what is `given`."""
    if options.scope == "pq":
        prior = curves.pq(groups, scores, options, given)
        return _bisected(
            lambda c: select(groups, scores, options, {n: min(c * v, 1 - FLOOR) for n, v in prior.items()}, given),
            lambda removed: _cost(groups, costs, removed), budget(groups, options, costs),
        )  # fmt: skip
    if options.of == "units":
        return select(groups, scores, options, asked=given)
    return _bisected(lambda r: select(groups, scores, replace(options, ratio=r, of="units"), asked=given),
                     lambda removed: _cost(groups, costs, removed), budget(groups, options, costs))  # fmt: skip


def budget(groups: Groups, options: Options, costs: Costs, inputs: CriterionInputs | None = None) -> float:
    """The cost to come down to: a share of the model's, or what removing the ratio of every group would leave: of the
    units in heads, or of whole heads where there is nothing else."""
    if options.of != "units":
        return (1 - options.ratio) * costs.whole
    uniform = replace(options, criterion="l2", scope="local", heads=False)
    removed = by_weights(groups, uniform, costs, inputs)
    if options.heads and not removed.any():
        removed = by_weights(groups, replace(uniform, heads=True), costs, inputs)
    return _cost(groups, costs, removed)


def _cost(groups: Groups, costs: Costs, removed: Mask) -> float:
    """What is left to pay without the units of `removed`."""
    return costs.total(groups.alive(groups.kept_ids(removed)))


def _bisected(plan: Callable[[float], Mask], cost: Callable[[Mask], float], wanted: float) -> Mask:
    """The plan whose cost is nearest to `wanted`, of a family that removes more the larger its argument."""
    low, high = 0.0, 1.0
    best, miss = plan(0.5), np.inf
    for _ in range(12):
        middle = (low + high) / 2
        removed = plan(middle)
        off = cost(removed) - wanted
        if abs(off) < miss:
            best, miss = removed, abs(off)
        low, high = (middle, high) if off > 0 else (low, middle)
    return best
