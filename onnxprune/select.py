"""Which units go: the budget inside the constraints. Knows units, buckets and rectangles; no operator and no ONNX.

Units that live on the same axes and in the same rows of the same rectangles form a *bucket*. Buckets that share a
rectangle are *linked* and lose an equal fraction, so that every kept row keeps the same number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import floor, gcd

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from onnxprune.groups import Groups
from onnxprune.labels import Mask
from onnxprune.options import Options

Scores = NDArray[np.float64]


@dataclass
class Linked:
    """Linked buckets, each sorted by score, the least important first. Step k takes `len(bucket) // steps` of each."""

    buckets: list[list[int]]
    steps: int
    gone: float = 0.0

    def units(self, k: int) -> list[int]:
        return [u for b in self.buckets for u in b[: k * len(b) // self.steps]]


def select(groups: Groups, scores: Scores, options: Options) -> Mask:
    """A mask over classes: the units to remove. Every rectangle still holds; nothing frozen is in it."""
    allowed = _allowed(groups, options)
    removed = np.zeros(len(allowed), bool)
    if options.heads:
        for units in _heads(groups, scores, options, removed):
            trial = removed.copy()
            trial[list(units)] = True
            if not groups.faults(trial):
                removed = trial
    stuck: set[int] = set()
    linked = _linked(groups, scores, allowed, removed)
    while True:
        trial = removed.copy()
        for part, k in zip(linked, _steps(groups, linked, scores, options), strict=True):
            if not stuck.intersection(u for b in part.buckets for u in b):
                trial[part.units(k)] = True
        bad = groups.faults(trial)
        if not bad:
            return trial
        fresh = bad - stuck
        if not fresh:
            return removed
        stuck |= fresh


def _allowed(groups: Groups, options: Options) -> Mask:
    allowed = groups.prunable.copy()
    if not options.residual:
        allowed &= ~groups.normed
    if not options.conv_residual:
        allowed &= ~groups.streams
    return allowed


def _heads(groups: Groups, scores: Scores, options: Options, removed: Mask) -> list[frozenset[int]]:
    """Row units to remove: of every family (rows on the same axes) the least important, as many as the ratio says.

    A family too small for the ratio (one of two heads at 0.3) keeps its rows: their insides are pruned instead."""
    families: dict[Hashable, dict[frozenset[int], None]] = defaultdict(dict)
    for units in groups.rows.values():
        if not any(groups.normed_whole[u] for u in units) or options.residual:
            families[frozenset().union(*(groups.of[u] for u in units))].setdefault(units)
    out = []
    for family in families.values():
        rows = sorted(family, key=lambda units: sum(scores[u] for u in units))
        if len(rows) < 2 or len(frozenset().union(*rows)) != sum(map(len, rows)):
            continue
        n = round(options.ratio * len(rows))
        if n / len(rows) > options.ratio + 0.05:
            n = floor(options.ratio * len(rows))
        n = min(n, floor(options.max_ratio * len(rows) + 1e-9), len(rows) - 1)
        if n:
            out.append(frozenset().union(*rows[:n]))
    return out


def _linked(groups: Groups, scores: Scores, allowed: Mask, removed: Mask) -> list[Linked]:
    live = allowed & ~removed
    rows: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    links = DisjointSet(range(len(groups.rectangles)))
    touched: dict[tuple[int, ...], list[int]] = {}
    for r, ids in enumerate(groups.rectangles):
        if ids.ndim < 2:
            continue
        flat = groups.classes[ids].reshape(-1, ids.shape[-1])
        row, column = np.nonzero(live[flat])
        pairs, times = np.unique(np.stack([flat[row, column], row]), axis=1, return_counts=True)
        for (unit, where), n in zip(pairs.T.tolist(), times.tolist(), strict=True):
            rows[unit].append((r, where, n))
    buckets: dict[Hashable, list[int]] = defaultdict(list)
    for u in np.flatnonzero(live).tolist():
        buckets[groups.of[u], tuple(sorted(rows[u]))].append(u)
    del touched
    for key in buckets:
        mine = [r for r, _, _ in key[1]]  # type: ignore[index]
        for r in mine[1:]:
            links.merge(mine[0], r)
    joined: dict[Hashable, list[list[int]]] = defaultdict(list)
    gone: dict[Hashable, int] = defaultdict(int)
    for key, units in buckets.items():
        mine = [r for r, _, _ in key[1]]  # type: ignore[index]
        name: Hashable = ("linked", links[mine[0]]) if mine else key
        joined[name].append(sorted(units, key=lambda u: (scores[u], u)))
    for r, ids in enumerate(groups.rectangles):
        if ids.ndim > 1:
            dead = np.unique(groups.classes[ids])
            gone["linked", links[r]] = max(gone["linked", links[r]], int(removed[dead].sum()))
    out = []
    for name, parts in joined.items():
        left = sum(map(len, parts))
        out.append(Linked(parts, gcd(*map(len, parts)), gone[name] / (left + gone[name])))
    return out


def _steps(groups: Groups, linked: Sequence[Linked], scores: Scores, options: Options) -> list[int]:
    """How many steps each set of linked buckets takes."""
    limits = [_limit(part, options) for part in linked]
    if options.scope == "local":
        wanted = [max(0.0, (options.ratio - p.gone) / (1 - p.gone)) * p.steps for p in linked]
        return [_round(p, w, limit, options) for p, w, limit in zip(linked, wanted, limits, strict=True)]
    total = sum(len(b) for p in linked for b in p.buckets)
    queue = []
    for i, part in enumerate(linked):
        units = [u for b in part.buckets for u in b]
        mean = float(np.mean(scores[units])) or 1.0
        worst = 0.0
        for k in range(limits[i]):
            step = set(part.units(k + 1)) - set(part.units(k))
            worst = max(worst, float(np.mean([scores[u] for u in step])) / mean)
            queue.append((worst, k, i, len(step)))
    taken, count = 0, [0] * len(linked)
    for _, k, i, n in sorted(queue):
        if taken >= options.ratio * total:
            break
        count[i], taken = k + 1, taken + n
    return [_round(p, k, limit, options) for p, k, limit in zip(linked, count, limits, strict=True)]


def _limit(part: Linked, options: Options) -> int:
    """The most steps: the floor of the global scope, --max-ratio, --min-channels, and one unit at the least."""
    smallest = min(map(len, part.buckets))
    share = min(options.max_ratio, 1 - options.floor if options.scope == "global" else 1.0)
    least = max(options.min_channels, 1)
    most = min(floor(share * part.steps + 1e-9), floor((smallest - least) * part.steps / smallest))
    return max(0, most)


def _round(part: Linked, wanted: float, limit: int, options: Options) -> int:
    """The number of steps nearest to `wanted` whose kept counts are multiples of --round-to."""
    n, each = options.round_to, min(map(len, part.buckets))
    good = [k for k in range(limit + 1) if k == 0 or (each - k * each // part.steps) % n == 0]
    if n > 1 and each % n == 0 or n == 1:
        return min(good, key=lambda k: (abs(k - wanted), k))
    multiples = [k for k in good if k]
    return min(multiples, key=lambda k: (abs(k - wanted), k)) if multiples and wanted > 0 else 0
