"""Caches: inputs of a graph that it gives out again beside what is new, as past and present keys and values.

Which ones there are is seen by how values move: joined with others on the way, and never computed with. Which of their
axes may lose heads is seen by ids. Knows nodes and ids, no names and no architecture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import NodeProto

from onnxprune.model import Scope, traits
from onnxprune.trace.labels import Block, Ids, Labels, Mask

Moves = dict[str, list[tuple[str, bool]]]
"""By tensor, those that hold its values, and whether beside others."""


def caches(scopes: Sequence[Scope], nodes: Sequence[NodeProto]) -> dict[str, list[str]]:
    """By input of the main graph, the outputs that hold its values beside others; inputs that no output holds so are
    not among them."""
    moves: Moves = defaultdict(list)
    for scope in scopes:
        for node in scope.graph.node:
            for source, target, beside in _moved(node):
                if source and target:
                    moves[source].append((target, beside))
        if scope.owner >= 0 and nodes[scope.owner].op_type == "If":
            for inner, outer in zip(scope.graph.output, nodes[scope.owner].output, strict=False):
                moves[inner.name].append((outer, True))
    graph = scopes[0].graph
    outputs = {o.name for o in graph.output}
    found = {i.name: sorted(outputs & _reached(i.name, moves)) for i in graph.input}
    return {name: held for name, held in found.items() if held}


def _moved(node: NodeProto) -> Iterator[tuple[str, str, bool]]:
    """Which outputs of a node hold the values of which inputs, and whether beside others."""
    kind = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    for i, o in traits.REMEMBERING.get(kind, {}).items():
        yield from ((source, target, True) for source in node.input[i : i + 1] for target in node.output[o : o + 1])
    if kind in traits.PUTTING:
        yield from ((source, target, True) for source in _put(node) for target in node.output)
    elif kind in traits.MOVING or kind == "Cast":
        yield from ((source, target, False) for source in node.input[:1] for target in node.output)


def _put(node: NodeProto) -> Sequence[str]:
    """The inputs whose values are put beside others: all, those to choose from, or the one that is written into."""
    if node.op_type == "Concat":
        return list(node.input)
    return list(node.input[1:] if node.op_type == "Where" else node.input[:1])


def _reached(name: str, moves: Moves) -> set[str]:
    """What holds the values of a tensor beside others."""
    seen, todo = {(name, False)}, [(name, False)]
    while todo:
        at, beside = todo.pop()
        more = {(target, beside or joins) for target, joins in moves.get(at, ())} - seen
        seen |= more
        todo += more
    return {target for target, beside in seen if beside}


def along(block: Block, axes: Sequence[int], ids: Ids) -> Ids | None:
    """`ids` over `axes` as ids of a block that has these axes, repeated along its others; None where that is not so."""
    if not {*axes} <= {*block.axes}:
        return None
    at = [block.axes.index(a) for a in axes]
    shape = [1] * block.ids.ndim
    for k, n in zip(at, ids.shape, strict=True):
        shape[k] = n
    if any(n not in (1, m) for n, m in zip(shape, block.ids.shape, strict=True)):
        return None
    return np.broadcast_to(ids.transpose(np.argsort(at)).reshape(shape), block.ids.shape)


@dataclass(frozen=True)
class Settled:
    """What a finished trace says of ids. known: the blocks of all tensors; dims: static sizes of a tensor."""

    labels: Labels
    known: Mapping[str, tuple[Block, ...]]
    dims: Callable[[str], Sequence[int | None] | None]

    @cached_property
    def _classes(self) -> Ids:
        return self.labels.joined()

    @cached_property
    def _stays(self) -> Mask:
        stays = np.zeros(int(self._classes.max()) + 1, bool)
        for ids, _ in self.labels.frozen:
            stays[self._classes[ids]] = True
        return stays

    def heads(self, past: str, present: Sequence[str]) -> tuple[Block | None, list[str]]:
        """The block of a cache of which whole rows, its heads, may go, and the outputs of `present` that have it, too:
        the outermost one that is the same there position by position, and of which not everything stays. None where
        there is no such."""
        for block in sorted(self.known[past], key=lambda b: b.axes):
            own = self._classes[block.ids]
            same = [name for name in present if self._has(name, block.axes, own)]
            if same and not self._stays[own].all():
                return (None, []) if self._is_inside_heads(past, block, own) else (block, same)
        return None, []

    def _has(self, name: str, axes: tuple[int, ...], own: Ids) -> bool:
        """Whether a tensor has these classes along these axes, the same ones along its others."""
        found = ((self._classes[b.ids], along(b, axes, own)) for b in self.known.get(name, ()))
        return any(there is not None and np.array_equal(there, units) for units, there in found)

    def _is_inside_heads(self, name: str, block: Block, own: Ids) -> bool:
        """Whether an axis lies inside heads: after an axis that has one only, or because its classes are columns
        somewhere, several of them, of a block of several rows. The first axis is that of samples."""
        if len(block.axes) > 1:
            return False
        if 1 in (self.dims(name) or ())[1 : block.axes[0]]:
            return True
        for ids, *_ in self.labels.tables.values():
            columns = self._classes[self.labels.derive(ids.T)]
            if np.ptp(columns) and np.isin(own, columns).any():
                return True
        for block in (b for blocks in self.known.values() for b in blocks if b.ids.ndim > 1):
            units = self._classes[block.ids]
            rows = units.reshape(-1, units.shape[-1])
            if np.ptp(rows[0]) and (rows == rows[0]).all() and np.isin(own, rows[0]).any():
                return True
        return False
