"""Which units go: the budget inside the constraints. Knows units and buckets (see `buckets`); no operator and no ONNX.

Where linked buckets have a common divisor, each loses an equal fraction, the least important first; where they have
none (chained channel shuffles), the least important set whose rows agree is found by integer programming.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import floor

import numpy as np

from onnxprune.options import Options
from onnxprune.planning.buckets import LinkedBuckets, Scores, linked_buckets
from onnxprune.planning.limits import largest_share, most_of, movable
from onnxprune.planning.named import NOTHING, Asked
from onnxprune.planning.rows import rows_that_go
from onnxprune.trace import Groups, Mask


def parts(groups: Groups, scores: Scores, options: Options, asked: Asked = NOTHING) -> tuple[Mask, list[LinkedBuckets]]:
    """The row units (heads) that go, as a mask over classes, and the sets of linked buckets that are left to choose:
    of the ratio these depend on the row units only."""
    removed, spent = rows_that_go(groups, scores, options, asked)
    return removed, linked_buckets(groups, scores, movable(groups, options) & ~removed & ~groups.grid_units, spent)


def select(
    groups: Groups, scores: Scores, options: Options, shares: Mapping[int, float] | None = None, asked: Asked = NOTHING
) -> Mask:
    """A mask over classes: the units to remove. Every rectangle still holds; nothing frozen is in it.

    `shares`: the share, 0..1, that every set of linked buckets loses, by `LinkedBuckets.name`; without it, what the
    ratio and scope say. `asked`: units whose sets lose what is asked of them in any case."""
    removed, linked = parts(groups, scores, options, asked)
    stuck: set[int] = set()
    own = [_own(part, options, asked) for part in linked]
    wanted = _wanted(linked, own, scores, options, shares)
    steps = [_round(p, w, _limit(p, o), o) for p, w, o in zip(linked, wanted, own, strict=True)]
    while True:
        trial = removed.copy()
        for part, k, o in zip(linked, steps, own, strict=True):
            if all(map(stuck.isdisjoint, part.buckets)):
                trial[_removals(part, k, o)] = True
        bad = groups.faults(trial)
        if not bad:
            return trial
        fresh = bad - stuck
        if not fresh:
            return removed
        stuck |= fresh


def _own(part: LinkedBuckets, options: Options, asked: Asked) -> Options:
    """The options as they are for one set of linked buckets: what is asked of it does not depend on others."""
    share = asked.get(part.name)
    return options if share is None else replace(options, ratio=share, scope="local", of="units")


def _removals(part: LinkedBuckets, wanted: float, options: Options) -> list[int]:
    """The units to remove for so many steps, a fraction of one where the steps are coarse."""
    if part.step_too_coarse(wanted):
        limit = most_of(part.size, largest_share(options))
        n = min(round(wanted * part.size / part.steps), limit)
        for least, slack in ((n, 0.02), (int(n * 0.9), 0.1)):
            if n and (units := part.solve_milp(min(limit, int(n * (1 + slack)) + 1), least)):
                return units
    return part.units(min(round(wanted), _limit(part, options)))


def _wanted(
    linked: Sequence[LinkedBuckets], own: Sequence[Options], scores: Scores, options: Options,
    shares: Mapping[int, float] | None,
) -> list[float]:  # fmt: skip
    """How many steps each set of linked buckets is to take; a fraction where its steps are coarse. `own`: the options
    of each (see `_own`)."""
    free = [part for part, its in zip(linked, own, strict=True) if its is options]
    found: dict[int, float] = {}
    if shares is not None:
        found = {part.name: shares.get(part.name, 0.0) * part.steps for part in free}
    elif options.scope != "local":
        found = dict(zip((part.name for part in free), _ranked_together(free, scores, options), strict=True))
    return [
        found[p.name] if p.name in found else max(0.0, (its.ratio - p.gone) / (1 - p.gone)) * p.steps
        for p, its in zip(linked, own, strict=True)
    ]


def _ranked_together(linked: Sequence[LinkedBuckets], scores: Scores, options: Options) -> list[float]:
    """Steps of each set where all units are in one ranking, of which the ratio goes."""
    total = sum(p.size for p in linked)
    queue = [level for i, part in enumerate(linked) for level in _ranking(i, part, scores, options)]
    taken, count = 0, [0] * len(linked)
    for _, _, i, k, n in sorted(queue):  # of equals, the smallest fraction first
        if taken >= options.ratio * total:
            break
        count[i], taken = k + 1, taken + n
    return [k * p.steps / p.levels for p, k in zip(linked, count, strict=True)]


def _ranking(
    i: int, part: LinkedBuckets, scores: Scores, options: Options
) -> Iterator[tuple[float, float, int, int, int]]:
    """Of every level that the `i`-th set may take: the largest mean score so far, the share that is gone before it,
    `i`, the level, and how many units it takes."""
    # a unit is measured by its own bucket: parts that cannot take the same fraction of every bucket compare, too
    value = {u: scores[u] / (float(np.mean(scores[b])) or 1.0) for b in part.buckets for u in b}
    worst = 0.0
    for k in range(_limit(part, options, part.levels)):
        step = set(part.units(k + 1, part.levels)) - set(part.units(k, part.levels))
        if step:
            worst = max(worst, float(np.mean([value[u] for u in step])))
            yield worst, k / part.levels, i, k, len(step)


def _limit(part: LinkedBuckets, options: Options, of: int = 0) -> int:
    """The most steps: the floor of the global scope, --max-ratio, --min-channels, and one unit at the least.

    `of`: the same in so many parts. Where they are finer than steps, a bucket may be emptied: its rows are not."""
    of = of or part.steps
    bucket = (min if of == part.steps else max)(map(len, part.buckets))
    least = max(options.min_channels, part.spared)
    return max(0, min(most_of(of, largest_share(options)), floor((bucket - least) * of / bucket)))


def reachable(part: LinkedBuckets, levels: int, options: Options) -> Mask:
    """Which of so many levels, from nothing to all of the set, are whole steps within half a level once rounded."""
    wanted = np.linspace(0, part.steps, levels)
    if options.round_to == 1:
        return np.ones(levels, bool)
    found = np.array([_round(part, float(k), _limit(part, options), options) for k in wanted])
    return np.abs(found - wanted) * (levels - 1) <= 0.5 * part.steps


def _round(part: LinkedBuckets, wanted: float, limit: int, options: Options) -> float:
    """The number of steps nearest to `wanted` whose kept counts are multiples of --round-to."""
    if options.round_to == 1 and part.step_too_coarse(wanted):
        return wanted
    n, each = options.round_to, min(map(len, part.buckets))
    steps = np.arange(limit + 1)
    good = steps[(steps == 0) | ((each - steps * each // part.steps) % n == 0)]
    if n == 1 or each % n == 0:
        return int(good[np.abs(good - wanted).argmin()])
    multiples = good[good > 0]
    return int(multiples[np.abs(multiples - wanted).argmin()]) if multiples.size and wanted > 0 else 0
