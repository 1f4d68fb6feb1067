"""A node with bodies in both networks: what each body is given in either, and how far apart the node's outputs are.

Knows bodies and what was kept, no solutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from onnx import NodeProto

from onnxprune.fit.bodies import Body, Visits, visits
from onnxprune.fit.compared import Dense
from onnxprune.fit.linear import RESHAPED, Unsolvable, restricted
from onnxprune.fit.unrun import in_common
from onnxprune.fit.walk import Walk
from onnxprune.model import Weight, bodies
from onnxprune.rewrite import Rewritten
from onnxprune.trace import Mask, Trace

EXACT = 1e-10
"""An error, relative to the energy, that is none."""


@dataclass(frozen=True)
class Part:
    """One body as it is by now with all that it is given, the same of the dense network, and how many of the last
    visits only choose."""

    body: Body
    given: Visits
    dense: Dense
    held: int


@dataclass(frozen=True)
class State:
    """A node with its bodies, the weights of the graph, and where copies come from."""

    node: NodeProto
    weights: dict[str, Weight]
    aliases: dict[str, str]


class Owner:
    """The node `index` of a walk of the cut graph `after`; `dense` is the walk of the other one, whose last `held`
    batches only choose. idle: its bodies that do not run. Unsolvable where the dense graph has no such node."""

    def __init__(
        self, trace: Trace, kept: Mask, dense: Walk, current: Walk, after: Rewritten, index: int, held: int
    ) -> None:  # fmt: skip
        self.trace, self.kept, self.dense, self.current, self.after = trace, kept, dense, current, after
        self.index, self.node, self.held = index, current.nodes[index], held
        self.idle: list[str] = []
        self.outputs = [o for o in self.node.output if o and (current.readers[o] or o in current.outputs)]
        twin = next((dense.made_by[o] for o in self.outputs if o in dense.made_by), None)
        if twin is None:
            raise Unsolvable("its output is new in the pruned graph")
        self.twin = twin

    @property
    def error(self) -> float:
        """Squared error of the outputs relative to their energy in the dense network, on the batches that choose."""
        total = 0.0
        for name in self.outputs:
            there, here = self.dense.value(name)[-self.held :], self.current.value(name)[-self.held :]
            if not isinstance(there[0], np.ndarray) or there[0].dtype.kind != "f":
                continue
            pairs = [(restricted(self.trace, self.kept, name, y), z) for y, z in zip(there, here, strict=True)]
            if any(y.shape != z.shape for y, z in pairs):
                raise Unsolvable(RESHAPED)
            lost = sum(float(np.square(y - z, dtype=np.float64).sum()) for y, z in pairs)
            total += lost / max(sum(float(np.square(y, dtype=np.float64).sum()) for y, _ in pairs), 1e-30)
        return total

    def parts(self, others: frozenset[str]) -> Iterator[Part]:
        """The bodies that run in both networks; `others`: names of parameters that are read outside of the graph."""
        then, now = visits(self.dense, self.twin), visits(self.current, self.index)
        runs = [name for name, given in now.items() if given]
        common = in_common(self.current, self.index, runs, self.trace.rank)
        for name, _ in bodies(self.node):
            both = sorted(then[name].keys() & now[name].keys())
            scope = self.trace.scope(self.dense.first + self.twin, name)
            if not both or scope is None:
                self.idle.append(name)
                continue
            feeds = [then[name][v] for v in both]
            model = Body.of(self.dense, self.twin, name).model
            walk = Walk(model, feeds, self.dense.types, self.dense.providers, scope.numbers.start)
            held = sum(batch >= self.current.batches - self.held for batch, _ in both)
            body = Body.of(self.current, self.index, name, others, common)
            yield Part(
                body, {v: now[name][v] for v in both}, Dense(self.trace, feeds, self.dense.providers, walk), held
            )

    def state(self) -> State:
        """All that a refit may change."""
        node = NodeProto()
        node.CopyFrom(self.node)
        return State(node, dict(self.after.model.weights), dict(self.after.aliases))

    def restore(self, state: State) -> None:
        """Undo whatever was changed since then."""
        self.node.CopyFrom(state.node)
        _refill(self.after.model.weights, state.weights)
        _refill(self.after.aliases, state.aliases)


T = TypeVar("T")


def _refill(own: dict[str, T], then: Mapping[str, T]) -> None:
    """In place, as others hold it, too."""
    own.clear()
    own.update(then)
