"""Which residual branches may go whole, and what the outputs lose without each.

Knows branches and trials, no operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxprune.options import Options, Progress
from onnxprune.planning.costs import Costs
from onnxprune.planning.named import Asked
from onnxprune.planning.trials import Trials, affordable
from onnxprune.trace import Groups, Mask


def measured(
    groups: Groups, trials: Trials, options: Options, asked: Asked, progress: Progress | None = None
) -> dict[int, float]:
    """The output error without each branch that may go, by its class, when what is left makes up for it. Where there is
    no time to refit without each, beside the other trials, as many as there is time for of those that look best in
    closed form; with time of their own, as branches pay in time, if the budget is time or they were asked for."""
    may = free(groups, asked)
    if not may:
        return {}
    most = trials.room
    if most < len(may) and (options.blocks or options.of == "latency"):
        trials = trials.others(min(len(may), affordable(groups.trace, options)) or len(may))
        most = trials.count
    if not most:
        return {}
    if most < len(may):
        rough = zip(trials.rough().lost(_without(groups, may)), may, strict=True)
        may = sorted(unit for _, unit in sorted(one for one in rough if one[0] is not None)[:most])

    def cuts() -> Iterator[Mask]:
        for k, removed in enumerate(_without(groups, may)):
            if progress:
                progress("branches", k / len(may))
            yield removed

    return {unit: error for unit, error in zip(may, trials.lost(cuts()), strict=True) if error is not None}


def _without(groups: Groups, units: Sequence[int]) -> Iterator[Mask]:
    """Nothing removed but each of these."""
    for unit in units:
        removed = np.zeros(len(groups.prunable), bool)
        removed[unit] = True
        yield removed


def by_rate(groups: Groups, lost: Mapping[int, float], costs: Costs) -> list[int]:
    """The branches of which it is known what is lost without them, those first that save most of the cost for it."""
    rates = {}
    for unit, removed in zip(lost, _without(groups, [*lost]), strict=True):
        saved = costs.whole - costs.total(groups.alive(groups.kept_ids(removed)))
        rates[unit] = lost[unit] / saved if saved > 0 else np.inf
    return sorted(rates, key=rates.__getitem__)


def within(groups: Groups, unit: int) -> Mask:
    """[classes]: those of which nothing is left without the residual branch of this class, as no other node reads a
    parameter that they cut."""
    nodes, readers = groups.branches[unit].nodes, groups.trace.readers
    found = np.ones(len(groups.prunable), bool)
    for s, _, ids in groups.blocks:
        if not nodes.issuperset(readers[s.parameter]):
            found[groups.classes[ids]] = False
    return found


def free(groups: Groups, asked: Asked) -> list[int]:
    """The classes of the residual branches of which no unit has a share of its own to lose, in the order of the
    graph."""
    named = np.array([*asked], np.int64)
    held: dict[str, list[np.ndarray]] = {}
    for s, _, ids in groups.blocks if named.size else ():
        held.setdefault(s.parameter, []).append(groups.classes[ids].ravel())
    out = []
    for unit, branch in groups.branches.items():
        names = {name for k in branch.nodes for name in groups.trace.nodes[k].input}
        if not any(np.isin(units, named).any() for name in names for units in held.get(name, ())):
            out.append(unit)
    return out
