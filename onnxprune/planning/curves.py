"""From statistics to shares: error curves, measured factors, and the budget spent where it hurts least.

Knows curves, statistics and units, no operator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit import Site, WeightValues
from onnxprune.options import Options, Progress
from onnxprune.planning import branches, criteria
from onnxprune.planning.allocation import Choice, allocate, on_stairs, uniform
from onnxprune.planning.buckets import LinkedBuckets
from onnxprune.planning.costs import Costs
from onnxprune.planning.criteria.inputs import CriterionInputs
from onnxprune.planning.limits import FLOOR, most_of, share_above_floor
from onnxprune.planning.named import NOTHING, Asked
from onnxprune.planning.obs import eliminate
from onnxprune.planning.parting import Parts
from onnxprune.planning.profile import summed
from onnxprune.planning.selection import parts, reachable, select
from onnxprune.planning.trials import SHARES, Trials, factor, most_trials
from onnxprune.results import CurveInfo
from onnxprune.steady import each
from onnxprune.trace import Groups, Mask

Array = NDArray[np.float64]
Feeds = Sequence[Mapping[str, NDArray[Any]]]
LEVELS = 64
OWN, MOST, UNKNOWN = 1.0, 0.9999, 0.5
"""How far inputs are trusted: those of the user's own; others at most, however diverse the classes are that the model
sees in them; and where it has no classes that would show."""


@dataclass
class Curve:
    """Of one set of linked buckets: relative error at its sites after each level, and the measured factor."""

    part: LinkedBuckets
    losses: Array
    factor: float | None = None

    def at(self, share: float) -> float:
        """What is lost where a share of the units goes."""
        return float(np.interp(share, np.linspace(0, 1, len(self.losses)), np.nan_to_num(self.losses, posinf=1.0)))

    def bend(self, found: Mapping[float, float]) -> None:
        """Take what was measured, a factor for each share that was tried; where these are several, let the losses go
        through all of them."""
        if found:
            self.factor = float(np.median(list(found.values())))
        if len(found) > 1 and self.factor:
            at = np.linspace(0, 1, len(self.losses))
            self.losses = self.losses * np.interp(at, list(found), list(found.values())) / self.factor


@dataclass
class CurveSet:
    """Scores of all classes and a curve for each set. branches: of residual branches, by class, what the outputs lose
    without one alone."""

    scores: Array
    curves: list[Curve]
    sites: list[Site]
    branches: dict[int, float] = field(default_factory=dict)


def observe(
    groups: Groups, inputs: CriterionInputs, options: Options, progress: Progress | None = None, asked: Asked = NOTHING
) -> CurveSet:
    """From statistics of the dense network: the order in which units go (the criterion's) and what it costs."""
    say = progress or (lambda stage, share: None)
    importance = criteria.scores("l2", inputs)
    given = None if options.criterion == "obs" else criteria.scores(options.criterion, inputs)
    say("statistics", 0.0)
    sites = inputs.sites
    _, linked = parts(groups, importance if given is None else given, options, asked)
    scores = np.zeros(len(groups.prunable)) if given is None else given
    reading: dict[int, list[int]] = defaultdict(list)
    for k, site in enumerate(sites):
        for unit in np.unique(site.units).tolist():
            reading[unit].append(k)

    def eliminated(numbered: tuple[int, LinkedBuckets]) -> tuple[dict[int, float], Array]:
        k, part = numbered
        say("scores", k / len(linked))
        own = len(part.buckets) == 1 or (part.steps > 8 and not part.step_too_coarse(0.5))
        levels = part.steps if own and part.steps <= LEVELS else LEVELS
        most = most_of(levels, share_above_floor(options))
        near = [sites[k] for k in sorted({k for unit in part.members for k in reading.get(int(unit), ())})]
        return eliminate(part.buckets, levels, most, near, importance, given)

    curves = []
    for part, (order, losses) in zip(linked, each(eliminated, enumerate(linked), inputs.needs.together), strict=True):
        if given is None:
            scores[list(order)] = list(order.values())
        curves.append(Curve(part, losses))
    return CurveSet(scores, curves, list(sites))


def measure(
    groups: Groups, curve_set: CurveSet, inputs: Parts, options: Options, progress: Progress | None = None,
    asked: Asked = NOTHING, trust: float = 1.0,
) -> None:  # fmt: skip
    """Find the factor of every curve: what is lost when a large part of that set alone goes and the rest makes up for
    it. Where several parts are tried, the curve is bent to go through all of them. One whose share is `asked` for has
    none. Of so many sets that to try each takes too long, some are tried, all over the graph."""
    tried = SHARES[options.effort]
    free = [curve for curve in curve_set.curves if curve.part.name not in asked]
    if not free:
        return
    some = _in_order(groups, _spread(free, most_trials(groups.trace, options) // len(tried)))
    trials = Trials(groups, curve_set.sites, inputs, options, len(tried) * len(some))
    plain = replace(options, round_to=1, min_channels=1)
    heads, _ = parts(groups, curve_set.scores, plain, asked)
    given = select(groups, curve_set.scores, plain, {}, asked) & ~heads  # which stay while others are tried
    base = (trials.lost([heads])[0] or 0.0) if heads.any() else 0.0
    shares: list[tuple[int, float]] = []

    def cuts() -> Iterator[Mask]:
        """What is tried, with the number of its curve and the share that goes where so much may."""
        for k, (curve, wanted) in enumerate(product(some, tried)):
            if progress:
                progress("sensitivity", k / (len(some) * len(tried)))
            removed = select(groups, curve_set.scores, plain, {curve.part.name: wanted}, asked) & ~given
            share = float(removed[curve.part.members].mean())
            if share:
                shares.append((k // len(tried), share))
                yield removed

    found: list[dict[float, float]] = [{} for _ in some]
    for error, (k, share) in zip(trials.lost(cuts()), shares, strict=True):
        lost = factor(error, some[k].at(share), base)
        if lost is not None:
            found[k][share] = lost
    for curve, factors in zip(some, found, strict=True):
        curve.bend(factors)
    _complete(some)
    _between(free, {id(curve) for curve in some})
    if _branches_may_go(options, trust):
        curve_set.branches = branches.measured(groups, trials, options, asked, progress)


def _spread(curves: Sequence[Curve], most: int) -> Sequence[Curve]:
    """At most so many of them, evenly, with the first and the last."""
    if len(curves) <= most:
        return curves
    return [curves[k] for k in np.unique(np.linspace(0, len(curves) - 1, most).round().astype(int)).tolist()]


def _in_order(groups: Groups, curves: Sequence[Curve]) -> list[Curve]:
    """Sorted by the first node that a cut of each changes: what lies before it is then run once for all of them."""
    first: dict[str, int] = {}
    for k, node in enumerate(groups.trace.nodes):
        for name in node.input:
            first.setdefault(name, k)
    places = np.full(len(groups.prunable), len(groups.trace.nodes))
    for s, _, ids in groups.blocks:
        units = groups.classes[ids].ravel()
        places[units] = np.minimum(places[units], first.get(s.parameter, len(groups.trace.nodes)))
    return sorted(curves, key=lambda curve: int(places[curve.part.members].min()))


def _complete(curves: Sequence[Curve]) -> None:
    """Give those whose factor could not be measured that of the rest."""
    known = [c.factor for c in curves if c.factor is not None]
    for curve in curves:
        if curve.factor is None:
            curve.factor = float(np.median(known)) if known else 1.0


def _between(curves: Sequence[Curve], tried: set[int]) -> None:
    """Give those that were not tried, by `id`, what lies between the factors of those before and behind."""
    at = [k for k, curve in enumerate(curves) if id(curve) in tried]
    logs = [np.log(curves[k].factor or 1.0) for k in at]
    for k, curve in enumerate(curves):
        if id(curve) not in tried:
            curve.factor = float(np.exp(np.interp(k, at, logs)))


def spent(
    groups: Groups, curve_set: CurveSet, options: Options, budget: float, costs: Costs, trust: float = 1.0,
    asked: Asked = NOTHING,
) -> Mask:  # fmt: skip
    """What goes, units and residual branches, with the `shares` that bring `costs` down to `budget`."""
    found = shares(groups, curve_set, options, budget, costs, trust, asked)
    removed = select(groups, curve_set.scores, options, found, asked)
    removed[[unit for unit in curve_set.branches if found.get(unit)]] = True
    return removed


def shares(
    groups: Groups, curve_set: CurveSet, options: Options, budget: float, costs: Costs, trust: float = 1.0,
    asked: Asked = NOTHING,
) -> dict[int, float]:  # fmt: skip
    """What every set loses, by its name, so that `costs` fall to `budget`; those whose share is `asked` are left out.
    Residual branches stand among them by their class: 1 where one goes.

    `trust` in 0..1 says how much the inputs are worth: at 0 every set loses the same share, at 1 any share up to the
    floor."""
    gone = select(groups, curve_set.scores, options, {}, asked)
    dead = ~groups.alive(groups.kept_ids(gone))
    free = [c for c in curve_set.curves if c.part.name not in asked]
    total = costs.sum_of(budget)
    choices = _choices(free, options, costs, dead, total, trust)
    whole = curve_set.branches if _branches_may_go(options, trust) else {}
    for unit, loss in whole.items():
        within = branches.within(groups, unit)
        inside = tuple(k for k, c in enumerate(free) if within[c.part.members].all())
        choices.append(Choice([unit], np.array([0.0, loss]), inside=inside))
    taken = allocate(choices, costs, dead, total)
    return dict(zip((*(c.part.name for c in free), *whole), taken, strict=True))


def _branches_may_go(options: Options, trust: float) -> bool:
    """Unless asked for, a branch goes on inputs of the user's own only: what it does for those that it was trained for,
    inputs that are made up may not show, and it is gone whole. Nor does one go where every group keeps something."""
    if options.blocks is not None:
        return options.blocks
    return trust >= OWN and options.max_ratio == 1 and options.min_channels == 1


def _choices(
    free: Sequence[Curve], options: Options, costs: Costs, dead: Mask, total: float, trust: float
) -> list[Choice]:  # fmt: skip
    """What may be taken along each curve, and what that loses."""
    choices = [Choice(c.part.members, c.losses * (1.0 if c.factor is None else max(c.factor, 1e-9))) for c in free]
    if trust < 1 and choices:
        _bound(choices, uniform(choices, costs, dead, total), trust)
    for curve, choice in zip(free, choices, strict=True):
        choice.losses[~reachable(curve.part, len(choice.losses), options)] = np.inf
    if costs.stairs and options.round_to == 1:
        return on_stairs(choices, [c.part.steps for c in free], costs, dead)
    return choices


def _bound(choices: Sequence[Choice], even: float, trust: float) -> None:
    """Forbid what is further from the `even` share than inputs that are worth `trust` can say."""
    most = even + max(0.0, 1 - FLOOR - even) * trust
    for choice in choices:
        levels = len(choice.losses) - 1
        choice.losses[np.arange(levels + 1) > np.ceil(most * levels)] = np.inf


def curve_infos(groups: Groups, curve_set: CurveSet, kept: Mask) -> tuple[CurveInfo, ...]:
    """The curves as plain data, each with the point that was chosen on it. `kept`: ids, after everything."""
    alive = groups.alive(kept)
    homes: dict[int, str] = {}
    for component in groups.components():
        name = groups.name(component)
        homes |= {int(unit): name for k in component for unit in np.unique(groups.classes[groups.blocks[k][2]])}
    out = []
    for curve in curve_set.curves:
        units = curve.part.members
        losses = tuple(float(f"{x:.6g}") if np.isfinite(x) else None for x in curve.losses)
        share = float(1 - alive[units].mean())
        out.append(CurveInfo(homes.get(units[0], ""), len(units), losses, curve.factor, share))
    return tuple(out)


def pq(groups: Groups, scores: Array, options: Options, asked: Asked = NOTHING) -> dict[int, float]:
    """How compressible the weights of every set are, by its name, the most compressible one 1: the PQ index
    1 - d^(1/q - 1/p) |w|_p / |w|_q with p = 1/2, q = 1 over the weights of a unit's slices (Diao 2023, eq. 1)."""
    _, linked = parts(groups, scores, options, asked)
    roots, sums = (np.zeros(len(scores)) for _ in range(2))
    count = np.zeros(len(scores))
    values = WeightValues(groups.trace.nodes, groups.trace.model)
    for s, axes, ids in groups.blocks:
        value = values.of(s.parameter, s.cells)
        if value is None:
            continue
        weight = np.abs(value.astype(np.float64))
        for out, terms in ((roots, np.sqrt(weight)), (sums, weight), (count, np.ones_like(weight))):
            np.add.at(out, groups.classes[ids], summed(terms, axes, ids.shape))
    found = {}
    for part in (part for part in linked if part.name not in asked):
        units = part.members
        d, half, one = count[units].sum(), roots[units].sum(), sums[units].sum()
        found[part.name] = max(1 - half**2 / (d * one), 1e-3) if one > 0 else 1.0
    top = max(found.values(), default=1.0)
    return {name: value / top for name, value in found.items()}
