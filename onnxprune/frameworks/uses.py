"""The uses of an ONNX model's parameters: what a plan removes in each, and which of them a tensor may be.

Exporters share equal tensors, so that of one parameter other positions may go at each of its readers. Knows names,
arrays and plans; no torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np

from onnxprune.frameworks.arrays import is_float, long_sides, scaled_from, turned_onto
from onnxprune.frameworks.rows import RowIndex
from onnxprune.frameworks.transfer import Cuts, by_name, by_parameter, removals_of
from onnxprune.model import Array, Model, every_node
from onnxprune.planning import Plan, Removal
from onnxprune.trace import Block, Mask


@dataclass(frozen=True)
class Use:
    """One use of a parameter that may be a tensor, and what goes from the tensor if it is. `node`: its reader."""

    parameter: str
    node: int
    cuts: Cuts


class Uses:
    """All uses of the parameters that hold more than one number, by parameter; nodes by index, bodies included."""

    def __init__(self, model: Model, plan: Plan, tensors: Mapping[str, Array]) -> None:
        self.nodes = every_node(model.graph)
        self.arrays = {n: a for n, w in model.weights.items() if (a := w.array()).size > 1 and is_float(a)}
        self.names = by_name([n for n, a in tensors.items() if a.ndim], self.arrays)
        self.of: dict[str, list[Use]] = {}
        removals = by_parameter(plan)
        for index, node in enumerate(self.nodes):
            for i, name in enumerate(node.input):
                if name in self.arrays:
                    mine = [r for r in removals.get(name, ()) if r.use in ("", f"{node.name}:{i}")]
                    self.of.setdefault(name, []).append(Use(name, index, removals_of(mine)))

    @cached_property
    def alike(self) -> dict[tuple[int, ...], list[str]]:
        """Parameters by the lengths of their axes."""
        found: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name in self.of:
            found[long_sides(self.arrays[name])].append(name)
        return found

    @cached_property
    def rows(self) -> RowIndex:
        """Rows and elements of all parameters."""
        return RowIndex({n: (self.arrays[n], [self._kept(u) for u in uses]) for n, uses in self.of.items()})

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Nodes by the tensors that they read."""
        found: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in node.input:
                found[name].append(index)
        return found

    def after(self, node: int) -> set[int]:
        """The nodes that read what a node makes."""
        return {reader for out in self.nodes[node].output for reader in self.readers.get(out, ())}

    def paths(self, use: Use) -> Iterator[str]:
        """The module that the reader of a use is named after, as exporters name nodes: of layer1.0.act
        /layer1/layer1.0/act/PRelu. An Identity, by which exporters share, has the name of what reads it, too."""
        node = self.nodes[use.node]
        passed = self.after(use.node) if node.op_type == "Identity" else ()
        for name in (node.name, *(self.nodes[reader].name for reader in passed)):
            yield ".".join(name.strip("/").split("/")[:-1])

    def named(self, name: str, array: Array) -> list[Use]:
        """Uses of the parameter that has a tensor's name, if it has its shape."""
        parameter = self.names.get(name)
        return self.of.get(parameter, []) if parameter and self.arrays[parameter].shape == array.shape else []

    def equal(self, array: Array) -> Iterator[Use]:
        """Uses of parameters with the values of `array`, axes in any order."""
        for parameter in self.alike.get(long_sides(array), ()):
            axis_of = turned_onto(array, self.arrays[parameter])
            if axis_of is not None:
                yield from _turned(self.of[parameter], axis_of)

    def scaled(self, array: Array, only: str | None) -> Iterator[tuple[Use, int, Array]]:
        """Uses of parameters (or of one) that are `array` times one factor for each position of an axis: (use, axis,
        factors)."""
        for parameter in [only] if only else self.alike.get(long_sides(array), ()):
            for axis_of, axis, factors in scaled_from(array, self.arrays[parameter]):
                for use in _turned(self.of[parameter], axis_of):
                    yield use, axis, factors

    def _kept(self, use: Use) -> Mask:
        """Which elements of a parameter stay in one use."""
        shape = self.arrays[use.parameter].shape
        mask = np.ones(shape, bool)
        for r in use.cuts:
            ids = np.arange(int(np.prod(r.shape))).reshape(r.shape)
            mask &= ~np.isin(Block(r.axes, ids).spread(shape), r.remove)
        return mask


def _turned(uses: Sequence[Use], axis_of: Mapping[int, int]) -> Iterator[Use]:
    """The uses with their cuts on other axes."""
    for use in uses:
        cuts = frozenset(replace(r, axes=tuple(axis_of[axis] for axis in r.axes)) for r in use.cuts)
        yield replace(use, cuts=cuts)


def along(cuts: Cuts, axis: int) -> Cuts | None:
    """What goes along one axis, as it goes from a vector; None where that axis is tangled with another."""
    here = [r for r in cuts if axis in r.axes]
    return None if any(len(r.axes) > 1 for r in here) else frozenset(replace(r, axes=(0,)) for r in here)


def cuts_of(mask: Mask) -> Cuts | None:
    """What goes by axes; None where what stays is not all combinations of some positions of every axis."""
    alive = [mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)) for axis in range(mask.ndim)]
    if not np.array_equal(mask, reduce(np.logical_and.outer, alive)):
        return None
    gone = [np.flatnonzero(~a).tolist() for a in alive]
    return frozenset(Removal("", (k,), (mask.shape[k],), tuple(g)) for k, g in enumerate(gone) if g)
