"""Which units go: the budget inside the constraints. Knows units, buckets and rectangles; no operator and no ONNX.

Units that live on the same axes and in the same rows of the same rectangles form a *bucket*. Buckets that share a
rectangle are *linked*: every kept row must keep the same number. Where the buckets have a common divisor, each loses an
equal fraction, the least important first; where they have none (chained channel shuffles), the least important set
whose rows agree is found by integer programming.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, gcd

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.options import Options
from onnxprune.trace import Groups, Ids, Mask, joined

Scores = NDArray[np.float64]
NODES = 1000
"""Of the search tree of one integer program: a limit in seconds would give another plan on a busy machine."""


@dataclass
class Linked:
    """Linked buckets, each sorted by score, the least important first. Step k takes `len(bucket) // steps` of each."""

    buckets: list[list[int]]
    steps: int
    gone: float = 0.0
    rectangles: Sequence[Ids] = ()
    scores: Scores | None = None

    def coarse(self, wanted: float) -> bool:
        """No whole number of steps comes near `wanted`: the common divisor leaves no real choice."""
        return len(self.buckets) > 1 and abs(round(wanted) - wanted) > 0.05 * self.steps

    @property
    def name(self) -> int:
        """The same whatever the scores."""
        return min(min(b) for b in self.buckets)

    @property
    def size(self) -> int:
        return sum(map(len, self.buckets))

    @property
    def ranks(self) -> int:
        """Into how many parts the units are ranked: the steps, or finer ones where those leave no real choice."""
        return self.steps if self.steps >= 10 else max(map(len, self.buckets))

    def units(self, k: int, of: int = 0) -> list[int]:
        """The units that `k` steps remove, or `k` parts `of` a number that need not divide the buckets."""
        return [u for b in self.buckets for u in b[: k * len(b) // (of or self.steps)]]

    def solved(self, most: int, least: int) -> list[int]:
        """Between `least` and `most` units of least total score such that all rows of a rectangle lose equally many."""
        units = sorted(u for b in self.buckets for u in b)
        column = {u: i for i, u in enumerate(units)}
        n, m = len(units), len(self.rectangles)
        total = np.zeros((1, n + m))
        total[0, :n] = 1
        constraints = [scipy.optimize.LinearConstraint(total, least, most)]
        widest = []
        for j, block in enumerate(self.rectangles):
            flat = block.reshape(-1, block.shape[-1]).tolist()
            rows = [row for row in flat if any(u in column for u in row)]
            table = scipy.sparse.lil_array((len(rows), n + m))
            for i, row in enumerate(rows):
                for u in row:
                    if u in column:
                        table[i, column[u]] += 1
            table[:, n + j] = -1
            constraints.append(scipy.optimize.LinearConstraint(table.tocsc(), 0, 0))
            widest.append(min(sum(u in column for u in row) for row in rows) - 1)
        cost = np.zeros(n + m)
        assert self.scores is not None
        cost[:n] = self.scores[units] + 1e-9
        bounds = scipy.optimize.Bounds(np.zeros(n + m), np.r_[np.ones(n), widest])
        found = scipy.optimize.milp(
            cost, integrality=np.r_[np.ones(n), np.zeros(m)], constraints=constraints, bounds=bounds,
            options={"node_limit": NODES, "mip_rel_gap": 0.02},
        )  # fmt: skip
        return [] if found.x is None else [u for u, x in zip(units, found.x, strict=False) if x > 0.5]


def parts(groups: Groups, scores: Scores, options: Options) -> tuple[Mask, list[Linked]]:
    """The row units (heads) that go, as a mask over classes, and the sets of linked buckets that are left to choose."""
    removed = np.zeros(len(groups.prunable), bool)
    spent = removed.copy()  # what counts towards the share that its group is to lose
    if options.heads:
        for units, own in _heads(groups, scores, options):
            trial = removed.copy()
            trial[list(units)] = True
            if not groups.faults(trial):
                removed = trial
                spent[list(units)] = not own
    return removed, _linked(groups, scores, _allowed(groups, options) & ~removed & ~groups.crossed, spent)


def select(groups: Groups, scores: Scores, options: Options, shares: Mapping[int, float] | None = None) -> Mask:
    """A mask over classes: the units to remove. Every rectangle still holds; nothing frozen is in it.

    `shares`: what every set of linked buckets loses, by `Linked.name`; without it, what the ratio and scope say."""
    removed, linked = parts(groups, scores, options)
    stuck: set[int] = set()
    if shares is None:
        steps = _steps(linked, scores, options)
    else:
        steps = [_round(p, shares.get(p.name, 0.0) * p.steps, _limit(p, options), options) for p in linked]
    while True:
        trial = removed.copy()
        for part, k in zip(linked, steps, strict=True):
            if all(map(stuck.isdisjoint, part.buckets)):
                trial[_removals(part, k, options)] = True
        bad = groups.faults(trial)
        if not bad:
            return trial
        fresh = bad - stuck
        if not fresh:
            return removed
        stuck |= fresh


def _removals(part: Linked, wanted: float, options: Options) -> list[int]:
    """The units to remove for so many steps, a fraction of one where the steps are coarse."""
    if part.coarse(wanted):
        limit = int(part.size * min(options.max_ratio, 1 - options.floor if options.scope == "global" else 1.0))
        n = min(round(wanted * part.size / part.steps), limit)
        for slack in (0.02, 0.1):
            if n and (units := part.solved(min(limit, int(n * (1 + slack)) + 1), n if slack < 0.1 else int(n * 0.9))):
                return units
    return part.units(min(round(wanted), _limit(part, options)))


def _allowed(groups: Groups, options: Options) -> Mask:
    allowed = groups.prunable.copy()
    if not options.residual:
        allowed &= ~groups.normed
    if not options.conv_residual:
        allowed &= ~groups.streams
    return allowed


def _heads(groups: Groups, scores: Scores, options: Options) -> list[tuple[frozenset[int], bool]]:
    """Row units to remove: of every family (rows on the same axes) the least important, as many as the ratio says; and
    whether they are a group of their own, beside that of the units in them.

    A family too small for the ratio (one of two heads at 0.3) keeps its rows: their insides are pruned instead. So do
    the groups of a convolution where the ratio can be taken inside them, which saves more: a group that goes leaves the
    other groups' weights as wide as they were. Those of a normalisation go: the statistics of the others stay."""
    families: dict[Hashable, dict[frozenset[int], int]] = defaultdict(dict)
    for row, units in groups.rows.items():
        if not any(groups.normed_whole[u] for u in units) or options.residual:
            families[bool(groups.columns[row]), frozenset(groups.home[list(units)].tolist())].setdefault(units, row)
    out = []
    for family in families.values():
        rows = sorted(family, key=lambda units: (scores[family[units]] + scores[list(units)].sum(), min(units)))
        if len(rows) < 2 or len(frozenset().union(*rows)) != sum(map(len, rows)):
            continue
        inside = list(rows[0])
        own = not groups.normed[inside].all() and all(groups.channels[family[units]] for units in rows)
        if not own and not groups.normed[inside].any() and _near(options.ratio, groups.home[inside]):
            continue
        n = round(options.ratio * len(rows))
        if n / len(rows) > options.ratio + 0.05:
            n = floor(options.ratio * len(rows))
        n = min(n, floor(options.max_ratio * len(rows) + 1e-9), len(rows) - 1)
        if n:
            out.append((frozenset().union(*rows[:n]), own))
    return out


def _near(ratio: float, home: NDArray[np.uint64]) -> bool:
    """Whether whole units come near the ratio of each kind of units in a row."""
    counts = np.unique(home, return_counts=True)[1]
    return bool((np.abs(np.round(ratio * counts) / counts - ratio) <= 0.05).all())


def _linked(groups: Groups, scores: Scores, live: Mask, spent: Mask) -> list[Linked]:
    nested = [ids for ids in groups.rectangles if ids.ndim > 1]
    marks = np.random.default_rng(1)
    where = np.zeros(len(live), np.uint64)  # a number that stands for the rows a unit is in, and how often
    link = np.full(len(live), -1)  # one of the rectangles it is in
    linked = [np.zeros((0, 2), np.int64)]
    gone = np.zeros(len(nested), np.int64)
    for r, ids in enumerate(nested):
        flat = groups.classes[ids].reshape(-1, ids.shape[-1])
        dead = spent[flat]
        gone[r] = np.unique(flat[dead]).size if dead.any() else 0
        row, column = np.nonzero(live[flat])
        units = flat[row, column]
        np.add.at(where, units, marks.integers(1, 1 << 63, len(flat), np.uint64)[row])
        others = np.unique(link[units])
        linked.append(np.stack([others[others >= 0], np.full((others >= 0).sum(), r)], 1))
        link[units] = r
    roots = np.append(joined(len(nested), *np.concatenate(linked).T), -1)
    most = np.zeros(len(nested) + 1, np.int64)
    np.maximum.at(most, roots[:-1], gone)
    alive = np.flatnonzero(live)
    alive = alive[np.argsort(scores[alive], kind="stable")]
    _, first, bucket = np.unique(groups.home[alive] + where[alive], return_index=True, return_inverse=True)
    order = np.argsort(bucket, kind="stable")
    buckets = np.split(alive[order], np.flatnonzero(np.diff(bucket[order])) + 1) if alive.size else []
    together: dict[Hashable, list[list[int]]] = defaultdict(list)
    for k in np.argsort(first).tolist():
        root = int(roots[link[buckets[k][0]]])
        together[root if root >= 0 else ("alone", k)].append(buckets[k].tolist())
    inside: dict[int, list[Ids]] = defaultdict(list)
    for r, ids in enumerate(nested):
        inside[int(roots[r])].append(groups.classes[ids])
    out = []
    for name, parts in together.items():
        left = sum(map(len, parts))
        root = name if isinstance(name, int) else -1
        share = int(most[root]) / (left + int(most[root]))
        out.append(Linked(parts, gcd(*map(len, parts)), share, inside[root], scores))
    return out


def _steps(linked: Sequence[Linked], scores: Scores, options: Options) -> list[float]:
    """How many steps each set of linked buckets takes; a fraction where its steps are coarse."""
    limits = [_limit(part, options) for part in linked]
    if options.scope == "local":
        wanted = [max(0.0, (options.ratio - p.gone) / (1 - p.gone)) * p.steps for p in linked]
        return [_round(p, w, limit, options) for p, w, limit in zip(linked, wanted, limits, strict=True)]
    total = sum(p.size for p in linked)
    queue = []
    for i, part in enumerate(linked):
        # a unit is measured by its own bucket: parts that cannot take the same fraction of every bucket compare, too
        value = {u: scores[u] / (float(np.mean(scores[b])) or 1.0) for b in part.buckets for u in b}
        worst = 0.0
        for k in range(_limit(part, options, part.ranks)):
            step = set(part.units(k + 1, part.ranks)) - set(part.units(k, part.ranks))
            if not step:
                continue
            worst = max(worst, float(np.mean([value[u] for u in step])))
            queue.append((worst, k / part.ranks, i, k, len(step)))
    taken, count = 0, [0] * len(linked)
    for _, _, i, k, n in sorted(queue):  # of equals, the smallest fraction first
        if taken >= options.ratio * total:
            break
        count[i], taken = k + 1, taken + n
    return [_round(p, k * p.steps / p.ranks, limit, options) for p, k, limit in zip(linked, count, limits, strict=True)]


def _limit(part: Linked, options: Options, of: int = 0) -> int:
    """The most steps: the floor of the global scope, --max-ratio, --min-channels, and one unit at the least.

    `of`: the same in so many parts. Where they are finer than steps, a bucket may be emptied: its rows are not."""
    of = of or part.steps
    bucket = (min if of == part.steps else max)(map(len, part.buckets))
    share = min(options.max_ratio, 1 - options.floor if options.scope == "global" else 1.0)
    least = max(options.min_channels, 1)
    most = min(floor(share * of + 1e-9), floor((bucket - least) * of / bucket))
    return max(0, most)


def reachable(part: Linked, levels: int, options: Options) -> Mask:
    """Which of so many levels, from nothing to all of the set, are whole steps within half a level once rounded."""
    wanted = np.linspace(0, part.steps, levels)
    if options.round_to == 1:
        return np.ones(levels, bool)
    found = np.array([_round(part, float(k), _limit(part, options), options) for k in wanted])
    return np.abs(found - wanted) * (levels - 1) <= 0.5 * part.steps


def _round(part: Linked, wanted: float, limit: int, options: Options) -> float:
    """The number of steps nearest to `wanted` whose kept counts are multiples of --round-to."""
    if options.round_to == 1 and part.coarse(wanted):
        return wanted
    n, each = options.round_to, min(map(len, part.buckets))
    steps = np.arange(limit + 1)
    good = steps[(steps == 0) | ((each - steps * each // part.steps) % n == 0)]
    if n == 1 or each % n == 0:
        return int(good[np.abs(good - wanted).argmin()])
    multiples = good[good > 0]
    return int(multiples[np.abs(multiples - wanted).argmin()]) if multiples.size and wanted > 0 else 0
