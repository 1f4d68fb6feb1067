"""Plans in the terms of a graph: from the units that go to removals by name, and back.

Knows groups and plans, no scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.groups import Groups
from onnxprune.labels import Mask
from onnxprune.options import Options
from onnxprune.plan import Plan, Removal


def removed_by(groups: Groups, plan: Plan) -> Mask:
    removed = np.zeros(len(groups.prunable), bool)
    blocks = {(s.parameter, axes, ids.shape, _use(groups, s)): ids for s, axes, ids in groups.blocks}
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


def _use(groups: Groups, s: Any) -> str:
    nodes = groups.trace.nodes
    return ",".join(f"{nodes[n].name}:{i}" for n, i in s.uses)


def plan_of(groups: Groups, kept: Mask, options: Options) -> Plan:
    out: dict[str, tuple[Removal, ...]] = {}
    for component in groups.components():
        removals = []
        for k in component:
            s, axes, ids = groups.blocks[k]
            gone = np.flatnonzero(~kept[ids.ravel()])
            if gone.size:
                removals.append(Removal(s.parameter, axes, ids.shape, tuple(gone.tolist()), _use(groups, s)))
        if removals:
            out[groups.blocks[component[0]][0].parameter] = tuple(removals)
    return Plan(out, options.scope, options.ratio, options.criterion)
