"""Plans in the terms of a graph: from the units that go to removals by name, and back.

Knows groups and plans, no scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.options import Options
from onnxprune.planning.fingerprint import fingerprint
from onnxprune.planning.plan import Plan, Removal
from onnxprune.trace import Groups, Mask


def removed_by(groups: Groups, plan: Plan, force: bool = False) -> Mask:
    """The units that a plan removes, as a mask over classes. Raises UsageError where it is not a plan of this graph
    (with `force`: where it does not fit), or leaves what cannot be."""
    if plan.fingerprint not in ("", fingerprint(groups.trace.model)) and not force:
        raise UsageError(
            "the plan was made of another graph: operators, names, attributes or shapes differ; make it of this model, "
            "or give --force-plan if what it names is the same here"
        )
    removed = np.zeros(len(groups.prunable), bool)
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
    if (removed & ~groups.prunable).any() or groups.faults(removed):
        raise UsageError(
            "the plan removes channels that must stay, or leaves a tensor that is no rectangle; edit it or make it anew"
        )
    return removed


def key(groups: Groups, k: int) -> tuple[Any, ...]:
    """What tells a slice block from all others of a graph: parameter, axes, shape and use of its removals."""
    s, axes, ids = groups.blocks[k]
    return s.parameter, axes, ids.shape, groups.use(s)


def plan_of(groups: Groups, kept: Mask, options: Options) -> Plan:
    """The plan that leaves the ids of `kept`."""
    out: dict[str, tuple[Removal, ...]] = {}
    for component in groups.components():
        removals = []
        for k in component:
            parameter, axes, shape, use = key(groups, k)
            gone = np.flatnonzero(~kept[groups.blocks[k][2].ravel()])
            if gone.size:
                removals.append(Removal(parameter, axes, shape, tuple(gone.tolist()), use))
        if removals:
            name = groups.name(component)
            out[name] = (*out.get(name, ()), *removals)
    mark = fingerprint(groups.trace.model)
    ratio_of = dict(options.ratio_of)
    return Plan(out, options.scope, options.ratio, options.criterion, mark, options.reconstruct, ratio_of)
