"""What a run says of groups: their sizes, what is frozen, why nothing goes, what a plan should take.

Knows groups and options; prints nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune import profile
from onnxprune.allocate import Costs
from onnxprune.groups import Groups
from onnxprune.labels import Mask
from onnxprune.options import FrozenInfo, GroupInfo, Options


def infos(groups: Groups, kept: Mask) -> tuple[GroupInfo, ...]:
    alive = groups.alive(kept)
    sizes = profile.of_units(groups)
    work = np.zeros(len(groups.prunable))
    for count, blocks in groups.trace.macs.values():
        for ids in blocks:
            np.add.at(work, groups.classes[ids], count / ids.size)
    out = []
    for component in groups.components():
        units = np.unique(np.concatenate([groups.classes[groups.blocks[k][2]].ravel() for k in component]))
        units = units[~groups.derived[units] & (units != groups.classes[0])]
        live = units[groups.prunable[units]]
        if live.size:
            layers = tuple(dict.fromkeys(groups.blocks[k][0].parameter for k in component))
            heads = any(row <= set(live.tolist()) for row in groups.rows.values())
            out.append(GroupInfo(
                groups.name(component), layers, int(units.size), int(live.size), int(alive[units].sum()),
                int(sizes[units].sum()), int(work[units].sum()), "head" if heads else "channel",
                bool(groups.normed[live].any()),
            ))  # fmt: skip
    return tuple(out)


def frozen(groups: Groups) -> tuple[FrozenInfo, ...]:
    out: dict[tuple[str, int], FrozenInfo] = {}
    for s, axes, ids in groups.blocks:
        classes = groups.classes[ids.ravel()]
        stuck = [c for c in np.unique(classes).tolist() if groups.reason[c] is not None]
        why = groups.reason[stuck[0]] if stuck else None
        if why is not None and why.text:
            n = int(np.isin(classes, stuck).sum())
            out.setdefault(
                (s.parameter, axes[-1]), FrozenInfo(s.parameter, axes[-1], n, why.op_type, why.node, why.text)
            )
    return tuple(out.values())


def nothing(groups: Groups, options: Options) -> str:
    if not groups.blocks:
        nodes = groups.trace.model.proto.graph.node
        bodies = sorted({n.op_type for n in nodes if any(a.HasField("g") for a in n.attribute)})
        where = f" outside the bodies of {', '.join(bodies)}, which stay as they are" if bodies else ""
        return f"the model has no weights that could be pruned{where}"
    if groups.prunable.any():
        return f"ratio {options.ratio} removes no unit inside the limits; raise it, or allow more (--residual, --heads)"
    reasons = [f for f in frozen(groups) if f.reason]
    why = f": {reasons[0].reason} ({reasons[0].op_type} '{reasons[0].node}')" if reasons else ""
    return f"every channel is tied to an axis of fixed size{why}; see `onnxprune inspect`"


def predicted(costs: Costs | None, alive: Mask) -> dict[str, Any] | None:
    """Milliseconds before and after, by what the plan was made with."""
    if costs is None:
        return None
    return {"predicted": {"unit": "ms", "before": 1e3 * costs.whole, "after": 1e3 * costs.total(alive)}}
