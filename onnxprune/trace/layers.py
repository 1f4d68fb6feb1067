"""Which units a name stands for: of a node or a parameter those that its layer makes, of a group all that it has.

A layer makes the units of its parameters that do not come in with its data: a convolution its filters, not the channels
that it reads. Its bias, a BatchNorm or an activation behind it stands for them, too, as far as nobody else reads what
is in between. Knows nodes, parameters and ids, no operator and no rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.model import needs
from onnxprune.trace.labels import Ids

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxprune.trace.groups import Groups

NONE: Ids = np.zeros(0, np.int64)


@dataclass
class Made:
    """Units, as sorted classes that may go. fresh: those that the layer makes. carried: those in what it gives. read:
    those of its parameters that come in with its data."""

    fresh: Ids = field(default_factory=NONE.copy)
    carried: Ids = field(default_factory=NONE.copy)
    read: Ids = field(default_factory=NONE.copy)

    def add(self, fresh: Ids, carried: Ids, read: Ids) -> None:
        """What one more node says of the name."""
        self.fresh, self.carried = np.union1d(self.fresh, fresh), np.union1d(self.carried, carried)
        self.read = np.union1d(self.read, read)


@dataclass
class Layers:
    """made: by the name of a node or a parameter. read: of every node, by number, the parameters that it works with.
    axes: by the name of a group (see `Groups.name`) all of its units, by that of another axis those on it. groups:
    names; home: [classes], of every unit the number of its group, -1 of others."""

    home: Ids
    made: dict[str, Made] = field(default_factory=dict)
    read: dict[int, tuple[str, ...]] = field(default_factory=dict)
    axes: dict[str, Ids] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)

    def units(self, names: Iterable[str]) -> Ids:
        """The units that these nodes and parameters make; where they make none, those that they carry on."""
        found = [self.made[name] for name in names if name in self.made]
        fresh = _union(m.fresh for m in found)
        return fresh if fresh.size else _union(m.carried for m in found)

    def groups_of(self, units: Ids) -> list[str]:
        """The names of the groups that have any of these units."""
        return [self.groups[k] for k in np.unique(self.home[units]).tolist() if k >= 0]


def layers(groups: Groups) -> Layers:
    """What every name of the graph stands for."""
    out = Layers(np.full(len(groups.prunable), -1))
    parameters: dict[str, Ids] = {}
    for k, (s, _, ids) in enumerate(groups.blocks):
        units = _movable(groups, [ids])
        parameters[s.parameter] = np.union1d(parameters.get(s.parameter, NONE), units)
        out.axes[groups.label(k)] = np.union1d(out.axes.get(groups.label(k), NONE), units)
    for k, component in enumerate(groups.components()):
        units = _movable(groups, [groups.blocks[k][2] for k in component])
        out.groups.append(groups.name(component))
        out.axes[out.groups[k]], out.home[units] = units, k
    walk = _Walk(groups, out, {name: {name: units} for name, units in parameters.items()})
    for k, node in enumerate(groups.trace.nodes):
        if names := walk.visit(node):
            out.read[k] = tuple(name for name in names if name in parameters)
    return out


@dataclass
class _Walk:
    """sources: of every tensor that depends on weights alone, the names behind it (parameters, and the nodes that work
    on them), each with its units. fresh: of other tensors, the units that the layer before them makes."""

    groups: Groups
    out: Layers
    sources: dict[str, Mapping[str, Ids]]
    fresh: dict[str, Ids] = field(default_factory=dict)

    def visit(self, node: NodeProto) -> Iterable[str]:
        """Take in one node; the names behind what it works with. One that only makes weights ready is such a name of
        the layer that reads them."""
        trace = self.groups.trace
        behind: dict[str, Ids] = {}
        for name in needs(node):
            behind |= self.sources.get(name, {})
        held = _union(behind.values())
        if trace.fixed.issuperset(node.output):
            self.sources |= dict.fromkeys(node.output, behind | {node.name: held} if behind else {})
            return ()
        data = {name: units for name in needs(node) if name not in self.sources and (units := self._on(name)).size}
        if not data and not held.size:  # what makes states of zeros is no layer, what is frozen makes nothing
            self.sources |= {name: {} for name in node.output}
        carried = _union(self._on(name) for name in node.output)
        came = _union(data.values())
        fresh = np.setdiff1d(held, came)
        if len(data) == 1 and len(trace.readers[(before := next(iter(data)))]) == 1:
            fresh = np.union1d(fresh, np.intersect1d(self.fresh.get(before, NONE), carried))
        self.fresh |= dict.fromkeys(node.output, fresh)
        self.out.made.setdefault(node.name, Made()).add(fresh, carried, np.intersect1d(held, came))
        for name, units in behind.items():
            own = (np.intersect1d(of, units) for of in (fresh, carried, came))
            self.out.made.setdefault(name, Made()).add(*own)
        return behind

    def _on(self, tensor: str) -> Ids:
        """The units along the axes of a tensor."""
        return _movable(self.groups, [block.ids for block in self.groups.trace.blocks.get(tensor, ())])


def _movable(groups: Groups, blocks: Iterable[Ids]) -> Ids:
    """The units among these ids that may go, each once; of a row, those in it."""
    classes = _union(groups.classes[ids] for ids in blocks)
    rows = [
        np.fromiter(groups.rows[c], np.int64) for c in classes[groups.derived[classes]].tolist() if c in groups.rows
    ]
    found = _union([classes, *rows])
    return found[groups.prunable[found]]


def _union(parts: Iterable[Ids]) -> Ids:
    """All numbers, each once, sorted."""
    found = [part.ravel() for part in parts]
    return np.unique(np.concatenate(found)) if found else NONE
