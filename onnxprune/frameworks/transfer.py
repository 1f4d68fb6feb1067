"""A plan applied to a framework's own weights: arrays by name, such as a torch state dict.

What a plan removes is first said in the names of these weights (`renamed`), so that the result is a plan again: it can
be kept, and applied by name alone to any network of that architecture, an untrained one too. Knows arrays and plans, no
graph.
"""

from __future__ import annotations

import fnmatch
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.model import Array, Weight
from onnxprune.planning import Plan, Removal
from onnxprune.rewrite import take
from onnxprune.trace import Block, kept_shape

Cuts = frozenset[Removal]
"""What goes from one tensor; parameter and use are left empty, so that equal cuts are equal."""


@dataclass(frozen=True)
class Heads:
    """The heads of an attention, or the groups of a convolution or a norm, along an axis of a weight: how many there
    were and are, and of how many positions each (of query, key and value together where one weight makes all)."""

    axis: int
    before: tuple[int, int]
    after: tuple[int, int]


class Sliced(dict[str, Array]):
    """The arrays of a smaller network by name, and `plan`: what went, in these names."""

    def __init__(self, arrays: Mapping[str, Array], plan: Plan) -> None:
        super().__init__(arrays)
        self.plan = plan

    @property
    def branches(self) -> tuple[str, ...]:
        """The residual branches that the plan takes out whole, by the tensor of the ONNX model that each ends at: their
        weights are still here, and the network's code is the caller's to change."""
        return self.plan.branches

    @property
    def heads(self) -> dict[str, tuple[Heads, ...]]:
        """Of each weight with an axis of heads or groups that lost some or became smaller, by name; a plan says so that
        was read beside its model, and one that was made of it (`renamed`)."""
        found: dict[str, tuple[Heads, ...]] = {}
        for name, removals in by_parameter(self.plan).items():
            along = sorted((r for r in removals if r.rows and len(r.axes) == 1), key=lambda r: r.axes)
            if along and self[name].squeeze().ndim > 1:
                found[name] = tuple(_heads(r) for r in along)
        return found


def _heads(r: Removal) -> Heads:
    """The heads of a removal that tells of them."""
    before, after = r.rows
    size = prod(r.shape)
    return Heads(r.axes[0], (before, size // before), (after, (size - len(r.remove)) // after))


def apply_plan(
    plan: Plan | str | os.PathLike[str],
    state: Mapping[str, Array],
    model: Any = None,
    keep: Sequence[str] = (),
    force_plan: bool = False,
) -> Sliced:
    """The arrays of `state` without what `plan` removes, in the same order and types; the others as they are.

    The other arguments as for `renamed`. Raises UsageError where a tensor cannot be told for certain."""
    return sliced(renamed(plan, state, model, keep, force_plan), state, keep, certain=model is not None)


def renamed(
    plan: Plan | str | os.PathLike[str],
    state: Mapping[str, Array],
    model: Any = None,
    keep: Sequence[str] = (),
    force_plan: bool = False,
) -> Plan:
    """`plan` (or that at this path) in the names and axes of `state`.

    Without `model` by name alone, up to one prefix that all names have or lack. With `model`, the dense ONNX model that
    the plan was made of, by name, shape and values: `state` must then hold the weights that were exported. Tensors
    whose names match a glob of `keep` are left as they are. `force_plan`: take `model` although the plan was made of
    another graph. Raises UsageError where this is not certain."""
    plan = Plan.of(plan)
    if model is not None:
        from onnxprune.frameworks.matching import matched

        found = matched(plan, state, model, keep, force_plan)
    else:
        found = _by_name_alone(plan, state)
    groups = {
        name: tuple(replace(cut, parameter=name) for cut in sorted(cuts, key=lambda c: c.axes))
        for name, cuts in found.items()
        if cuts
    }
    return replace(plan, groups=groups, fingerprint="")


def sliced(
    plan: Plan | str | os.PathLike[str], state: Mapping[str, Array], keep: Sequence[str] = (), certain: bool = False
) -> Sliced:
    """`state` without what a plan in its own names removes; `keep` as for `renamed`. certain: every tensor was found in
    the model, so that one beside others of another length is meant to be.

    Raises UsageError where a name is missing, a tensor would be no rectangle, or those of a module would not fit."""
    plan = Plan.of(plan)
    cuts = by_parameter(plan)
    missing = sorted(cuts.keys() - state.keys())
    if missing:
        raise UsageError(f"the plan's '{missing[0]}' is not among the weights; is it in their names (--save-plan)?")
    after = {name: cut(name, array, removals_of(cuts.get(name, ()))) for name, array in state.items()}
    stay = [name for name in state if any(fnmatch.fnmatchcase(name, pattern) for pattern in keep)]
    if not certain:
        _check_modules({n: a for n, a in state.items() if n not in stay}, after)
    return Sliced(after, plan)


def cut(name: str, array: Array, cuts: Cuts) -> Array:
    """One tensor without `cuts`; `name` is for the message."""
    if not cuts:
        return array
    blocks, masks, start = [], [], 0
    for r in cuts:
        size = prod(r.shape)
        if not fits(r, array.shape):
            raise UsageError(
                f"the plan removes from {list(r.shape)} positions of axes {list(r.axes)} of '{name}', which is "
                f"{list(array.shape)}; are these the weights of another network, or pruned already?"
            )
        blocks.append(Block(r.axes, np.arange(start, start + size).reshape(r.shape)))
        masks.append(np.ones(size, bool))
        masks[-1][list(r.remove)] = False
        start += size
    kept = np.concatenate(masks)
    if any(kept_shape(block.ids, kept) is None for block in blocks):
        raise UsageError(
            f"without what the plan removes, '{name}' is empty or no rectangle; edit the plan or make it anew"
        )
    return take(Weight.of(array), blocks, kept).array()


def fits(removal: Removal, shape: Sequence[int]) -> bool:
    """Whether a tensor of `shape` has these positions; the first of several axes may be counted in runs."""
    if max(removal.axes) >= len(shape) or max(removal.remove, default=0) >= prod(removal.shape):
        return False
    sizes = [shape[axis] for axis in removal.axes]
    runs = len(sizes) > 1 and sizes[0] % removal.shape[0] == 0
    return sizes[1:] == list(removal.shape[1:]) and (sizes[0] == removal.shape[0] or runs)


def removals_of(removals: Iterable[Removal]) -> Cuts:
    """What goes, without saying from which tensor."""
    return frozenset(replace(r, parameter="", use="") for r in removals)


def by_name(names: Iterable[str], parameters: Iterable[str]) -> dict[str, str]:
    """The parameter of each tensor that has its name, up to one prefix that all of them have or all of them lack.

    Raises UsageError where several prefixes fit equally well."""
    names, parameters = list(names), set(parameters)
    exact = {name: name for name in names if name in parameters}
    if exact:
        return exact
    fitting: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in names:
        for parameter in parameters:
            if name.endswith(f".{parameter}"):
                fitting[name[: -len(parameter)], ""][name] = parameter
            elif parameter.endswith(f".{name}"):
                fitting["", parameter[: -len(name)]][name] = parameter
    if not fitting:
        return {}
    most = max(map(len, fitting.values()))
    best = sorted(prefix for prefix, found in fitting.items() if len(found) == most)
    if len(best) > 1:
        raise UsageError(
            f"the plan's names fit the weights under several prefixes ({', '.join(a or b for a, b in best)}); "
            "keep the tensors under one of them in the file"
        )
    return fitting[best[0]]


def by_parameter(plan: Plan) -> dict[str, list[Removal]]:
    """The removals of a plan, by the parameter that they are of."""
    out: dict[str, list[Removal]] = defaultdict(list)
    for removals in plan.groups.values():
        for r in removals:
            out[r.parameter].append(r)
    return out


def _by_name_alone(plan: Plan, state: Mapping[str, Array]) -> dict[str, Cuts]:
    removals = by_parameter(plan)
    names = by_name(state, removals)
    missing = sorted(removals.keys() - set(names.values()))
    if missing:
        more = f" and {len(missing) - 1} more of its parameters" if len(missing) > 1 else ""
        raise UsageError(
            f"the plan's '{missing[0]}'{more} cannot be found by name; give the ONNX file that the plan was made of "
            "(--model), so that weights are found by their values"
        )
    shared = next((p for p in names.values() if any(r.use for r in removals[p])), None)
    if shared:
        raise UsageError(
            f"the exporter made '{shared}' stand for several equal tensors; give the ONNX file that the plan was made "
            "of (--model), so that each is found"
        )
    return {name: removals_of(removals[parameter]) for name, parameter in names.items()}


def _check_modules(before: Mapping[str, Array], after: Mapping[str, Array]) -> None:
    """Vectors of one module that were as long as an axis beside them must be so still: an exporter that folds or shares
    tensors leaves out some names, and what no name says would stay as it was."""
    modules: dict[str, list[str]] = defaultdict(list)
    for name, array in before.items():
        if array.ndim:
            modules[name.rpartition(".")[0]].append(name)
    for names in modules.values():
        lengths = Counter(axis for n in names for axis in {*zip(before[n].shape, after[n].shape, strict=True)})
        for name in (n for n in names if before[n].ndim == 1):
            (old,), (new,) = before[name].shape, after[name].shape
            others = {m for (n, m), count in lengths.items() if n == old and count > ((n, m) == (old, new))}
            if others and new not in others:
                raise UsageError(
                    f"'{name}' would keep {new} of {old} positions where the tensors beside it keep "
                    f"{', '.join(map(str, sorted(others)))}; give the ONNX file that the plan was made of (--model)"
                )
