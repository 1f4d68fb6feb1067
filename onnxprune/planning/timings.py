"""What every segment of a model costs in ONNX Runtime by its widths: seconds instead of MACs.

A segment is timed at a few widths of every block that cuts it; what it takes at others follows (see `kernels`). Knows
segments, widths and seconds, not what a unit is worth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from onnxprune.options import Options, Progress
from onnxprune.planning.costs import Array, Costs
from onnxprune.planning.kernels import BLOCK, Kernel, Point, Stair, fitted, rounded, targets
from onnxprune.planning.profile import share
from onnxprune.planning.segments import Segment, signature
from onnxprune.planning.selection import select
from onnxprune.planning.timer import Timer
from onnxprune.trace import Groups, Ids

SHARES = (0.65, 0.3)
"""Of two blocks, the widths beside the whole that are timed together."""
WHOLES = (0.3, 0.5, 0.75)
"""Shares of all units without which the whole model is timed."""
MULTIPLES = (1, 2, 4, 8, 16, 32)
TIMED_KINDS = 4
"""So many kinds of segments, those with the most MACs, show which multiples the runtime likes."""
PAYS = 0.5
"""Share of the expected saving from which a step is worth it."""
Lost = dict[int, int]
"""By set of units that lose alike (by number), the steps that go."""


def costs(groups: Groups, options: Options, progress: Progress | None = None) -> Costs:
    """Seconds of every segment by what is kept of its blocks, and what the whole model takes for such sums. What no
    width changes is fixed, or goes with a residual branch."""
    timer = Timer(groups, options)
    found = timer.segments.found
    kernels = []
    known: dict[str, Kernel] = {}
    for k, segment in enumerate(found):
        if progress:
            progress("timing", k / len(found))
        kernels.append(kernel(timer, segment, known))
    timer.save()
    made = _costs(groups, list(zip(found, kernels, strict=True)))
    return replace(made, prices=_prices(timer, made))


def _prices(timer: Timer, made: Costs) -> tuple[tuple[float, float], ...]:
    """What the whole model takes where its segments take so much in all: at some widths, the same share everywhere."""
    groups = timer.groups
    none = np.zeros(len(groups.prunable))
    uniform = replace(timer.options, scope="local", of="units", round_to=max(timer.options.round_to, BLOCK))
    cuts = [none > 0, *(select(groups, none, replace(uniform, ratio=ratio)) for ratio in WHOLES)]
    sums = [made.total(groups.alive(groups.kept_ids(removed))) for removed in cuts]
    prices = [(0.0, 0.0)]
    for total, seconds in sorted(zip(sums, timer.wholes(cuts), strict=True)):
        if total > 1.01 * prices[-1][0]:  # the dense one is the last: no cut takes longer
            prices.append((total, max(seconds, prices[-1][1] + 1e-9)))
    return tuple(prices)


def kernel(timer: Timer, segment: Segment, known: dict[str, Kernel]) -> Kernel:
    """How the time of a segment follows from the widths of its blocks. known: of segments before, which is added to:
    layers of equal sizes are alike, and to cut each of them at all widths takes longer than to time one."""
    some = list(_lost(timer, segment))
    alike = _alike(timer, segment, some)
    if alike not in known:
        known[alike] = _timed(timer, segment, some)
    return known[alike]


def _alike(timer: Timer, segment: Segment, some: Sequence[Lost]) -> str:
    """Equal for segments that are the same as they are, and where one block is as narrow as it is timed alone."""
    alone = [lost for k, lost in enumerate(some) if not k or {*lost} != {*some[k - 1]}]
    cut = [timer.alone(segment, lost) for lost in alone]
    widths = [None if one is None else [int(one[0][b].sum()) for b in segment.blocks] for one in cut]
    return json.dumps([widths, [[*lost.values()] for lost in some], [one and signature(*one[1]) for one in cut]])


def _timed(timer: Timer, segment: Segment, some: Sequence[Lost]) -> Kernel:
    """The kernel that takes what a segment takes without each of these."""
    cut = [alone for lost in some if (alone := timer.alone(segment, lost)) is not None]
    seconds = timer.seconds([piece for _, piece in cut])
    points = [
        Point(tuple(int(alive[b].sum()) for b in segment.blocks), taken)
        for (alive, _), taken in zip(cut, seconds, strict=True)
        if taken is not None
    ]
    if not points or points[0].widths != tuple(b.size for b in segment.blocks):
        return Kernel(0.0, (0.0,) * len(segment.blocks), 0.0, (Stair(),) * len(segment.blocks))
    return fitted(points)


def _lost(timer: Timer, segment: Segment) -> Iterator[Lost]:
    """What goes for each time of a segment: nothing, then of each block alone, then of two together."""
    families = {sets: block for sets, block in zip(timer.cuts(segment), segment.blocks, strict=True) if sets}
    found = [Lost()]
    for sets, block in families.items():
        found += [_steps(timer, sets, block, width) for width in targets(block.size)]
    if len(families) > 1:
        for parts in product(SHARES, repeat=2) if len(families) == 2 else ([s] * len(families) for s in SHARES):
            found.append(Lost())
            for (sets, block), part in zip(families.items(), parts, strict=True):
                found[-1] |= _steps(timer, sets, block, rounded(part * block.size))
    yield from {tuple(sorted((k, n) for k, n in lost.items() if n)): lost for lost in found}.values()


def _steps(timer: Timer, sets: Sequence[int], block: Ids, width: int) -> Lost:
    """The steps of each set that leave about so many positions of a block, all losing the same share."""
    free = sum(int(np.isin(block, timer.sets[k].members).sum()) for k in sets)
    part = min(1.0, (block.size - width) / max(free, 1))
    return {k: min(round(part * timer.sets[k].steps), timer.sets[k].steps - 1) for k in sets}


class _Term(NamedTuple):
    """Seconds of a product of blocks, with the stairs of each."""

    seconds: float
    blocks: tuple[Ids, ...]
    stairs: tuple[Stair, ...]


def _costs(groups: Groups, parts: Sequence[tuple[Segment, Kernel]]) -> Costs:
    """The costs of segments, of those inside a residual branch as long as that stays."""
    terms: list[_Term] = []
    fixed = 0.0
    for segment, k in parts:
        inside = [u for u, b in groups.branches.items() if segment.nodes[0] in b.nodes]
        whole = [u for u in inside if {*groups.branches[u].nodes, groups.branches[u].node}.issuperset(segment.nodes)]
        terms += _terms(segment, k, tuple(np.array([u]) for u in inside))
        if whole:
            terms.append(_Term(k.always, tuple(np.array([u]) for u in whole), (Stair(),) * len(whole)))
        else:
            fixed += k.always
    stairs = [[_table(b, s) for b, s in zip(t.blocks, t.stairs, strict=True)] for t in terms]
    return Costs(np.array([t.seconds for t in terms]), [t.blocks for t in terms], fixed, stairs)


def _terms(segment: Segment, k: Kernel, branches: tuple[Ids, ...]) -> Iterator[_Term]:
    """What moves with the widths of a segment: the product of its blocks, and each. branches: those that it is in."""
    plain = (Stair(),) * len(branches)
    if k.product:
        yield _Term(k.product, (*segment.blocks, *branches), (*k.stairs, *plain))
    for seconds, block, stair in zip(k.lines, segment.blocks, k.stairs, strict=True):
        if seconds:
            yield _Term(seconds, (block, *branches), (stair, *plain))


def _table(block: Ids, stair: Stair) -> Array | None:
    """What every width of a block counts for; None where it is the share, and where rows go whole."""
    return None if stair == Stair() or block.ndim > 1 else stair.table(block.size)


def multiple(groups: Groups, options: Options) -> int:
    """The least multiple of units by which a step pays: that, and every larger one, saves at least half of what its
    share of the work lets expect. In one thread: what kernels like does not hang on how work is shared out."""
    timer = Timer(groups, replace(options, threads=1))
    saved: dict[int, list[tuple[float, float]]] = {}
    for segment in _most_work(timer.segments.found, groups):
        for m in MULTIPLES:
            if (part := _saved_by_step(timer, segment, m)) is not None:
                saved.setdefault(m, []).append((part, segment.macs))
    timer.save()
    pays = {m: sum(x * w for x, w in found) / sum(w for _, w in found) >= PAYS for m, found in saved.items()}
    return next((m for m in sorted(pays) if all(pays[n] for n in pays if n >= m)), 1)


def _saved_by_step(timer: Timer, segment: Segment, multiple: int) -> float | None:
    """What a step of so many units saves, as a share (0..1) of what its share of the work lets expect; None where the
    segment cannot take it."""
    lost: tuple[Lost, Lost] = ({}, {})
    for sets, block in zip(timer.cuts(segment), segment.blocks, strict=True):
        step = _step(block.shape[-1], multiple)
        for k, width in enumerate(step or ()):
            lost[k].update(_steps(timer, sets, block, width * (block.size // block.shape[-1])))
    cut = [timer.alone(segment, steps) for steps in lost]
    if cut[0] is None or cut[1] is None:
        return None
    seconds = timer.seconds([piece for _, piece in filter(None, cut)])
    less, full = (share(segment.blocks, alive) for alive, _ in filter(None, cut))
    if seconds[0] is None or seconds[1] is None or less >= full:
        return None
    return min(max((1 - seconds[0] / seconds[1]) / (1 - less / full), 0.0), 1.0)


def _most_work(segments: Sequence[Segment], groups: Groups) -> list[Segment]:
    """One segment of each kind that units cut, those kinds first that have the most MACs in all."""
    kinds: dict[Any, list[Segment]] = {}
    for segment in segments:
        if segment.macs and any(groups.prunable[b].any() for b in segment.blocks):
            kinds.setdefault((segment.macs, tuple(b.shape for b in segment.blocks)), []).append(segment)
    most = sorted(kinds.values(), key=lambda alike: -sum(s.macs for s in alike))
    return [alike[0] for alike in most[:TIMED_KINDS]]


def _step(units: int, multiple: int) -> tuple[int, int] | None:
    """An odd multiple below nine tenths of the units and the even one above it; None of narrower blocks."""
    times = int(0.9 * units) // multiple
    odd = times - 1 + times % 2
    return (odd * multiple, (odd + 1) * multiple) if odd > 0 and (odd + 1) * multiple <= units else None
