"""What a run says of groups: their sizes, what is frozen, why nothing goes, what a plan should take.

Knows groups and options; prints nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.model import Model, bodies
from onnxprune.options import Options
from onnxprune.planning import Costs, asked, profile, select
from onnxprune.results import BranchInfo, CacheInfo, FrozenInfo, GroupInfo, LayerInfo
from onnxprune.trace import Groups, Mask, Trace

ADVICE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("raise it", {"ratio": 0.999}),
    ("leave out --no-residual", {"residual": "conv"}),
    ("--residual lets those go that cross a normalisation over their own axis", {"residual": "all"}),
    ("leave out --no-heads", {"heads": True}),
    ("lower --min-channels", {"min_channels": 1}),
    ("raise --max-ratio", {"max_ratio": 1.0}),
    ("lower --round-to", {"round_to": 1}),
    ("leave out --ratio-of", {"ratio_of": {}}),
)
"""What may help where nothing goes, and what it does to the options; the likeliest first."""
SIZES = ("not known", "run-time")
"""Words of the reasons that are none where every input has the size that it is given."""
EXCLUDING = (("--nodes-to-exclude", "nodes_to_exclude"), ("--op-types-to-exclude", "op_types_to_exclude"))
FOLLOWS = "whose other side stays"
"""How reasons end that only follow from what stands before: what a layer reads can be no narrower than it is given."""
FROM_INPUT = "the other side is an input of the model"
"""The reason of those where nothing stands before."""


def infos(groups: Groups, kept: Mask, shares: Mapping[int, float] | None = None) -> tuple[GroupInfo, ...]:
    """The groups that have prunable units, with what is left of each where only `kept` [ids] stay. `shares`: those
    that are asked of units (see `planning.named`)."""
    alive = groups.alive(kept)
    sizes = profile.of_units(groups)
    gone = {groups.trace.nodes[k].name for branch in groups.trace.dropped(kept) for k in branch.nodes}
    work, out = _macs_of_units(groups), []
    readers: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(groups.trace.nodes):
        for name in node.input:
            readers[name].append(index)
    for component in groups.components():
        units = np.unique(np.concatenate([groups.classes[groups.blocks[k][2]].ravel() for k in component]))
        units = units[~groups.derived[units] & (units != groups.classes[0])]
        live = units[groups.prunable[units]]
        if live.size:
            layers = tuple(dict.fromkeys(groups.blocks[k][0].parameter for k in component))
            heads, rows = _rows(groups, frozenset(live.tolist()))
            reading = sorted({index for name in layers for index in readers[name]})
            nodes = dict.fromkeys(groups.trace.nodes[index].name for index in reading)
            left = 0 if gone.issuperset(nodes) else int(alive[units].sum())
            out.append(GroupInfo(
                groups.name(component), layers, int(units.size), int(live.size), left,
                int(sizes[units].sum()), int(work[units].sum()), "head" if heads else "channel",
                bool(groups.normed[live].any()), tuple(nodes), rows,
                _asked(shares or {}, live.tolist()), _caches(groups, live),
            ))  # fmt: skip
    return tuple(out)


def _macs_of_units(groups: Groups) -> NDArray[np.float64]:
    """[classes]: the multiply-accumulates that each unit has a part in, shared out among those beside it."""
    work = np.zeros(len(groups.prunable))
    for count, blocks in (product for node in groups.trace.macs.values() for product in node):
        own = (groups.classes[ids] for ids in blocks)
        for units in {units.tobytes(): units for units in own}.values():  # states times states are theirs once
            np.add.at(work, units, count / units.size)
    return work


def _caches(groups: Groups, units: NDArray[np.int64]) -> tuple[str, ...]:
    """The inputs and outputs of the model that have these units."""
    trace = groups.trace
    held = ((name, b) for name, axes in sorted(trace.resized) for b in trace.of(name) if b.axes == axes)
    return tuple(dict.fromkeys(name for name, b in held if np.isin(groups.classes[b.ids], units).any()))


def caches(trace: Trace, after: Model) -> tuple[CacheInfo, ...]:
    """The inputs and outputs that are caches, as they were and as they are `after`."""
    names = {
        name
        for found in (trace.cached, trace.caches if trace.kv_heads else {})
        for name in (*found, *chain(*found.values()))
    }
    old, new = trace.model.skeleton.graph, after.skeleton.graph
    sides: tuple[tuple[Literal["input", "output"], Any, Any], ...] = (
        ("input", old.input, new.input), ("output", old.output, new.output),
    )  # fmt: skip
    return tuple(
        CacheInfo(info.name, kind, _sizes(info), _sizes(now[info.name]) if info.name in now else ())
        for kind, ours, theirs in sides
        for now in [{info.name: info for info in theirs}]
        for info in ours
        if info.name in names
    )


def _sizes(info: Any) -> tuple[int | str, ...]:
    return tuple(d.dim_value or d.dim_param or "?" for d in info.type.tensor_type.shape.dim)


def _asked(shares: Mapping[int, float], units: Iterable[int]) -> tuple[float, ...]:
    """Each share that is asked of some of the units."""
    return tuple(sorted({shares[u] for u in units if u in shares}))


def branch_infos(groups: Groups, kept: Mask, losses: Mapping[int, float] | None = None) -> tuple[BranchInfo, ...]:
    """The residual branches, in the order of the graph. losses: what was measured of each, by its class."""
    trace, out = groups.trace, []
    for unit, branch in groups.branches.items():
        read = {name for k in branch.nodes for name in trace.nodes[k].input if name in trace.model.weights}
        own = (name for name in read if branch.nodes.issuperset(trace.readers.get(name, ())))
        macs = sum(count for k in branch.nodes for count, _ in trace.macs.get(k, ()))
        out.append(BranchInfo(
            branch.name, trace.nodes[branch.node].name, len(branch.nodes),
            sum(trace.model.weights[name].size for name in own), round(macs), (losses or {}).get(unit),
            not kept[branch.ids].all(),
        ))  # fmt: skip
    return tuple(out)


def layer_infos(groups: Groups) -> tuple[LayerInfo, ...]:
    """The nodes that work with parameters, in their order."""
    layers, trace = groups.layers, groups.trace
    out = []
    for k, names in layers.read.items():
        node = trace.nodes[k]
        parameters = tuple((name, tuple(trace.model.weights[name].shape)) for name in names)
        makes, reads = layers.groups_of(layers.units([node.name])), layers.groups_of(layers.made[node.name].read)
        out.append(LayerInfo(node.name, node.op_type, parameters, tuple(makes), tuple(reads)))
    return tuple(out)


def _rows(groups: Groups, live: frozenset[int]) -> tuple[bool, int]:
    """Whether rows of these units have an attention map each, and how many rows there are that have no unit in common
    and one size, and leave none out; 0 where they are not so."""
    inside = {row: units for row, units in groups.rows.items() if units <= live}
    heads = any(groups.channels[row] for row in inside)
    distinct = {units for row, units in inside.items() if bool(groups.channels[row]) == heads}
    sizes = {len(units) for units in distinct}
    even = len(sizes) == 1 and sum(map(len, distinct)) == len(live) == len(frozenset().union(*distinct))
    return heads, len(distinct) if even else 0


def frozen(groups: Groups) -> tuple[FrozenInfo, ...]:
    """The axes of parameters of which something stays, and the first reason for it."""
    out: dict[tuple[str, int], FrozenInfo] = {}
    given = {i.name for i in groups.trace.model.graph.input} - groups.trace.model.weights.keys()
    fed = {n.name for n in groups.trace.nodes if not given.isdisjoint(n.input)}
    for s, axes, ids in groups.blocks:
        classes = groups.classes[ids.ravel()]
        stuck = [c for c in np.unique(classes).tolist() if groups.reason[c] is not None]
        why = groups.reason[stuck[0]] if stuck else None
        if why is not None and why.text:
            n = int(np.isin(classes, stuck).sum())
            text = FROM_INPUT if why.text.endswith(FOLLOWS) and why.node in fed else why.text
            out.setdefault((s.parameter, axes[-1]), FrozenInfo(s.parameter, axes[-1], n, why.op_type, why.node, text))
    return tuple(out.values())


def nothing(groups: Groups, options: Options) -> str:
    """Why no unit goes, and what would change that: one line."""
    if not groups.blocks:
        nodes = groups.trace.model.skeleton.graph.node
        owners = sorted({n.op_type for n in nodes if any(bodies(n))})
        where = f" outside the bodies of {', '.join(owners)}, which stay as they are" if owners else ""
        return f"the model has no weights that could be pruned{where}"
    if groups.prunable.any():
        return f"ratio {options.ratio} removes no unit inside the limits; {_helpful(groups, options)}"
    weights = groups.trace.model.weights
    if all(groups.trace.excluded(n) for n in groups.trace.nodes if not weights.keys().isdisjoint(n.input)):
        by = [flag for flag, given in EXCLUDING if getattr(options, given)]
        return f"everything is excluded by {' and '.join(by)}"
    why, share = _blocking(groups)
    said = f": {why.reason} ({why.op_type} '{why.node}'), which holds {share:.0%} of the parameters" if why else ""
    sized = why is not None and any(word in why.reason for word in SIZES)
    mend = "fix the sizes of its inputs with --overwrite-input-shape NAME:SIZES, or " if sized else ""
    return f"every channel is tied to an axis of fixed size{said}; {mend}see `onnxprune inspect`"


def _helpful(groups: Groups, options: Options) -> str:
    """The first piece of advice by which something would go; where none is enough alone, all that are in the way."""
    even, scores = replace(options, scope="local"), np.zeros(len(groups.prunable))
    differing = [(say, to) for say, to in ADVICE if any(getattr(options, k) != v for k, v in to.items())]
    for say, to in differing:
        trial = replace(even, **to)
        if select(groups, scores, trial, asked=asked(groups, trial)).any():
            return say
    limits = " and ".join(say for say, to in differing if "ratio" not in to)
    return limits or "its groups are too narrow: see `onnxprune inspect`"


def _blocking(groups: Groups) -> tuple[FrozenInfo | None, float]:
    """What keeps most parameters in place, at the node that keeps most of these, and its share of all that are in
    groups. An operator that stands at many nodes counts as one; of a parameter, only the axis that it holds most of.
    That outputs keep their shape, and what only follows from another reason, is said where there is nothing else."""
    weights = groups.trace.model.weights
    held: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    nodes: dict[tuple[str, str], dict[FrozenInfo, float]] = defaultdict(lambda: defaultdict(float))
    for info in frozen(groups):
        weight, kind = weights[info.parameter], (info.op_type, info.reason)
        axis = weight.shape[info.axis] if info.axis < len(weight.shape) else 1
        size = weight.size * min(1.0, info.units / max(axis, 1))
        held[kind][info.parameter] = max(held[kind][info.parameter], size)
        nodes[kind][replace(info, parameter="", axis=0, units=0)] += size
    if not held:
        return None, 0.0
    kind = max(held, key=lambda k: (not k[1].endswith((FOLLOWS, FROM_INPUT)), k[0] != "output", sum(held[k].values())))
    whole = sum(weights[name].size for name in {s.parameter for s, _, _ in groups.blocks})
    return max(nodes[kind], key=lambda info: nodes[kind][info]), sum(held[kind].values()) / max(whole, 1)


def predicted(costs: Costs | None, alive: Mask) -> dict[str, Any] | None:
    """Milliseconds before and after, by what the plan was made with."""
    if costs is None:
        return None
    return {"predicted": {"unit": "ms", "before": 1e3 * costs.whole, "after": 1e3 * costs.total(alive)}}
