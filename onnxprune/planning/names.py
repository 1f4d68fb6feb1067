"""Plans in the terms of a graph: from the units that go to removals by name, and back.

Knows groups and plans, no scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.options import Options
from onnxprune.planning.fingerprint import fingerprint
from onnxprune.planning.plan import Plan, Removal
from onnxprune.trace import Groups, Mask, left


def removed_by(groups: Groups, plan: Plan, force: bool = False) -> Mask:
    """The units that a plan removes, as a mask over classes. Raises UsageError where it is not a plan of this graph
    (with `force`: where it does not fit), or leaves what cannot be."""
    if plan.fingerprint not in ("", fingerprint(groups.trace.model)) and not force:
        raise UsageError(
            "the plan was made of another graph: operators, names, attributes or shapes differ; make it of this model, "
            "or give --force-plan if what it names is the same here"
        )
    removed = np.zeros(len(groups.prunable), bool)
    branches = {branch.name: unit for unit, branch in groups.branches.items()}
    for name in plan.branches:
        if name not in branches:
            raise UsageError(
                f"the plan's residual branch that ends at {name} is not in this model; is it the plan of another one?"
            )
        removed[branches[name]] = True
    blocks = {key(groups, k): ids for k, (_, _, ids) in enumerate(groups.blocks)}
    for name, removals in plan.groups.items():
        for r in removals:
            ids = blocks.get((r.parameter, r.axes, r.shape, r.use))
            if ids is None or max(r.remove, default=0) >= ids.size:
                raise UsageError(
                    f"the plan's {r.parameter} {list(r.axes)} of {name} is not in this model; "
                    "is it the plan of another one?"
                )
            classes = groups.classes[ids.ravel()[list(r.remove)]]
            removed[classes[~groups.derived[classes]]] = True
    units = removed.copy()
    units[[*branches.values()]] = False
    if (units & ~groups.prunable).any() or groups.faults(removed):
        raise UsageError(
            "the plan removes channels that must stay, or leaves a tensor that is no rectangle; edit it or make it anew"
        )
    return removed


def key(groups: Groups, k: int) -> tuple[Any, ...]:
    """What tells a slice block from all others of a graph: parameter, axes, shape and use of its removals."""
    s, axes, ids = groups.blocks[k]
    return s.parameter, axes, ids.shape, groups.use(s)


def plan_of(groups: Groups, kept: Mask, options: Options, rows: bool = False) -> Plan:
    """The plan that leaves the ids of `kept`. rows: its removals tell of heads and groups (see `Removal`)."""
    holders = groups.holders() if rows else {}
    out: dict[str, tuple[Removal, ...]] = {}
    for component in groups.components():
        removals = []
        for k in component:
            parameter, axes, shape, use = key(groups, k)
            ids = groups.blocks[k][2].ravel()
            gone = np.flatnonzero(~kept[ids])
            if gone.size:
                told = _rows(groups.classes[ids].tolist(), kept[ids], holders)
                removals.append(Removal(parameter, axes, shape, tuple(gone.tolist()), use, told))
        if removals:
            name = groups.name(component)
            out[name] = (*out.get(name, ()), *removals)
    mark = fingerprint(groups.trace.model)
    ratio_of = dict(options.ratio_of)
    return Plan(
        out, options.scope, options.ratio, options.criterion, mark, options.reconstruct, ratio_of,
        tuple(branch.name for branch in groups.trace.dropped(kept)), bool(left(groups.trace, kept)),
        groups.trace.whole_blocks and any(s.cells is not None and s.cells.each for s, _, _ in groups.blocks),
    )  # fmt: skip


def _rows(units: Sequence[int], kept: Mask, holders: Mapping[int, Sequence[int]]) -> tuple[int, ...]:
    """The finest rows of equal size that positions fall into: how many there are, and how many are left."""
    held: dict[int, list[int]] = defaultdict(list)
    for position, unit in enumerate(units):
        for row in holders.get(unit, ()):
            held[row].append(position)
    for size in sorted({len(positions) for positions in held.values()}):
        rows = {tuple(positions) for positions in held.values() if len(positions) == size}
        if 1 < size < len(units) and sorted(chain.from_iterable(rows)) == list(range(len(units))):
            return len(rows), sum(bool(kept[list(row)].any()) for row in rows)
    return ()
