"""From statistics to a plan: error curves, measured factors, and the shares that spend the budget where it hurts least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocate import Choice, Costs, allocate
from onnxprune.groups import Groups
from onnxprune.labels import Mask
from onnxprune.obs import eliminate
from onnxprune.options import Options
from onnxprune.select import Linked, parts, select
from onnxprune.sensitivity import Judge, factor
from onnxprune.sites import Site, collect

Array = NDArray[np.float64]
Feeds = Sequence[Mapping[str, NDArray[Any]]]
LEVELS = 64
TRIAL = 0.45
"""Share of a set that is taken out to measure its factor."""


@dataclass
class Curve:
    """Of one set of linked buckets: relative error at its sites after each level, and the measured factor."""

    part: Linked
    losses: Array
    factor: float | None = None


@dataclass
class Evidence:
    """Scores of all classes and a curve for each set."""

    scores: Array
    curves: list[Curve]
    sites: list[Site]


def observe(
    groups: Groups, importance: Array, feeds: Feeds, options: Options,
    progress: Callable[[str, float], None] | None = None,
) -> Evidence:  # fmt: skip
    """Statistics of the dense network over `feeds`, and from them the order in which units go and what it costs."""
    say = progress or (lambda stage, share: None)
    sites = collect(groups, feeds, options.providers, options.seed, lambda s: say("statistics", s))
    _, linked = parts(groups, importance, options)
    scores = np.zeros(len(groups.prunable))
    curves = []
    for k, part in enumerate(linked):
        say("scores", k / len(linked))
        levels = part.steps if part.steps <= LEVELS and not part.coarse(0.5) and part.steps > 8 else LEVELS
        most = int(levels * min(options.max_ratio, 1 - options.floor))
        inside = np.isin(np.arange(len(scores)), [u for b in part.buckets for u in b])
        near = [s for s in sites if inside[s.units].any()]
        order, losses = eliminate(part.buckets, levels, most, near, importance, len(scores))
        scores[list(order)] = list(order.values())
        curves.append(Curve(part, losses))
    return Evidence(scores, curves, sites)


def measure(
    groups: Groups, evidence: Evidence, feeds: Feeds, options: Options, progress: Callable[[float], None] | None = None
) -> None:
    """Find the factor of every curve on inputs that the statistics have not seen."""
    judge = Judge(groups, feeds, options.providers)
    plain = replace(options, heads=False, round_to=1, min_channels=1)
    for k, curve in enumerate(evidence.curves):
        if progress:
            progress(k / len(evidence.curves))
        removed = select(groups, evidence.scores, plain, {curve.part.name: TRIAL})
        inside = [u for b in curve.part.buckets for u in b]
        share = float(removed[inside].mean()) if removed.any() else 0.0
        loss = float(np.interp(share, np.linspace(0, 1, len(curve.losses)), np.nan_to_num(curve.losses, posinf=1.0)))
        curve.factor = factor(judge, evidence.sites, removed, loss) if share else None
    known = [c.factor for c in evidence.curves if c.factor is not None]
    for curve in evidence.curves:
        if curve.factor is None:
            curve.factor = float(np.median(known)) if known else 1.0


def shares(groups: Groups, evidence: Evidence, options: Options, budget: float, costs: Costs) -> dict[int, float]:
    """What every set loses, by its name, so that `costs` fall to `budget`."""
    gone, _ = parts(groups, evidence.scores, options)
    choices = [
        Choice([u for b in c.part.buckets for u in b], c.losses * (1.0 if c.factor is None else c.factor))
        for c in evidence.curves
    ]
    taken = allocate(choices, costs, _dead(groups, gone), budget)
    return {c.part.name: t for c, t in zip(evidence.curves, taken, strict=True)}


def _dead(groups: Groups, removed: Mask) -> Mask:
    """Classes that are gone with `removed`, rows among them."""
    alive = np.zeros(len(removed), bool)
    np.logical_or.at(alive, groups.classes, groups.kept_ids(removed))
    return ~alive
