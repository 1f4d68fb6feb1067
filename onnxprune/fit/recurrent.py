"""LSTM, GRU and RNN as least squares sees them: before its non-linearity a gate is a linear map of [x_t, h_(t-1)].

z_t = W x_t + R h_(t-1) + Wb + Rb, for each direction (ONNX: W [D, G H, F], R [D, G H, H], B [D, 2 G H]). The inputs and
outputs of all steps are at hand once the operator has run, so that its gates are layers like any other, with the
directions as groups and every step of every sample as a row. Peepholes work on the cell alone and stay as they are.
A GRU's third gate sees r_t * h_(t-1), or, with linear_before_reset, r_t * (R h_(t-1) + Rb) beside W x_t + Wb: two maps.

Knows one operator and its weights, no units.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import scipy
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.expressions import Grid, Parameter
from onnxprune.fit.linear import RESHAPED, DimsOf, Extent, Shift, Unsolvable
from onnxprune.fit.pieces import Pieces, moved
from onnxprune.fit.walk import Walk
from onnxprune.model import Array, Model, Topology, attribute, traits
from onnxprune.trace import KEPT, Ids, Mask, Reduction, Trace

X, H = 0, 1
"""The two sides: what comes from outside (W, first half of B) and what comes back (R, second half)."""


@dataclass(frozen=True)
class Steps:
    """One batch: x [rows, features] and h [directions, rows, hidden], the state before each row's step."""

    x: Array
    h: Array


@dataclass(frozen=True)
class Recurrent:
    """Some gates of a node, all of one kind: a run of them, by number. weights: W and R; widths: what they sum over;
    offset: B, if there is one. sides: which of the two these gates sum with. reset: R sees r * h."""

    index: int
    node: NodeProto
    weights: tuple[Parameter | Pieces, Parameter | Pieces]
    offset: Parameter | Pieces | None
    groups: int
    widths: tuple[int, int]
    gates: tuple[int, ...]
    sides: tuple[int, ...] = (X, H)
    reset: bool = False
    bias: int | None = 3
    y_axis: int = -1
    feeds_back: bool = True
    out: str = ""

    @property
    def data(self) -> str:
        """The sequence that the node reads."""
        return str(self.node.input[0])

    @property
    def title(self) -> str:
        """The node's name with its gates (z, r, h of a GRU) and, where it is one side only, W or R."""
        kind = "".join("zrh"[g] for g in self.gates) if self.node.op_type == "GRU" else ""
        return f"{self.node.name}{kind and ' ' + kind}{'' if len(self.sides) == 2 else ' ' + 'WR'[self.sides[0]]}"

    @property
    def roots(self) -> tuple[str, ...]:
        """The initializers of W and R, or of the one that these gates sum with."""
        return tuple(root for s in self.sides for root in self.weights[s].roots)

    @property
    def key(self) -> Hashable:
        """Equal for the same gates of the same weights."""
        return (*(w.key for w in self.weights), self.gates, self.sides)

    def on(self, node: NodeProto) -> Recurrent:
        """The same gates of a copy of the graph."""
        return replace(self, node=node)

    def _own(self, value: Array, axis: int = 1) -> Array:
        """The positions of these gates on an axis of all gates, as a view [.., gates, hidden, ..]."""
        shape = value.shape
        apart = value.reshape(*shape[:axis], traits.GATES[self.node.op_type], -1, *shape[axis + 1 :])
        return apart[(slice(None),) * axis + (slice(self.gates[0], self.gates[-1] + 1),)]

    def read(self, model: Model) -> Array:
        """[directions, features + hidden, outputs], float64: W beside R."""
        parts = [self._own(self.weights[s].read(model)) for s in self.sides]
        return np.concatenate([p.reshape(len(p), -1, p.shape[-1]) for p in parts], 2).transpose(0, 2, 1)

    def grid(self, model: Model) -> Grid | None:
        """None: what integers hold is the nearest to what is found."""
        return None

    def write(self, model: Model, matrix: Array) -> None:
        """Store what `read` would give back; all other gates stay as they are."""
        start = 0
        for s in self.sides:
            whole = np.ascontiguousarray(self.weights[s].read(model))
            own = self._own(whole)
            own[...] = matrix[:, start : start + self.widths[s]].transpose(0, 2, 1).reshape(own.shape)
            self.weights[s].write(model, whole)
            start += self.widths[s]

    def folded(self, value: Array, outputs: int) -> Array:
        """[directions * outputs]: Wb + Rb of these gates."""
        halves = self._own(value.reshape(self.groups, 2, -1), 2)
        return np.asarray(halves[:, list(self.sides)].sum(1)).reshape(outputs)

    def shift(self, outputs: int) -> Shift | None:
        """Wb, where the node has a bias: Rb stays as it is."""
        if not any(self.node.input[3:4]):
            return None

        def laid(moved: Array) -> Array:
            wide = np.zeros((self.groups, 2, traits.GATES[self.node.op_type] * self.widths[H]))
            own = self._own(wide, 2)[:, self.sides[0]]
            own[...] = moved.reshape(own.shape)
            return wide.reshape(self.groups, -1)

        return Shift(self.node, 3, np.ones(outputs), laid)

    def inputs(self, walk: Walk) -> list[Steps]:
        """The steps of every batch; an output sequence that nobody named is tapped."""
        xs, ys = walk.value(self.node.input[0]), walk.value(walk.tap(self.index))
        first = self.node.input[5] if len(self.node.input) > 5 else ""
        starts = walk.value(first) if first else [np.zeros(y.shape[1:], y.dtype) for y in ys]
        found = []
        for x, y, start in zip(xs, ys, starts, strict=True):
            h = np.empty_like(y)  # T D B H
            for d in range(self.groups):
                if self._backward(d):
                    h[:-1, d], h[-1, d] = y[1:, d], start[d]
                else:
                    h[1:, d], h[0, d] = y[:-1, d], start[d]
            steps = Steps(x.reshape(-1, x.shape[2]), h.transpose(1, 0, 2, 3).reshape(self.groups, -1, h.shape[3]))
            found.append(self._with_reset(steps, walk) if self.reset else steps)
        return found

    def _backward(self, direction: int) -> bool:
        return direction == 1 or attribute(self.node, "direction", "forward") == "reverse"

    def _with_reset(self, steps: Steps, walk: Walk) -> Steps:
        return Steps(
            steps.x, steps.h * scipy.special.expit(replace(self, gates=(1,), reset=False)._computed(steps, walk))
        )

    def _computed(self, steps: Steps, walk: Walk) -> Array:
        """[directions, rows, outputs]: the gates before their non-linearity."""
        matrix = self.read(walk.model)
        y: Array = self.rows(steps, np.arange(len(steps.x))) @ matrix.astype(steps.x.dtype)
        if self.offset is None:
            return y
        b = self.folded(self.offset.read(walk.model), len(matrix) * matrix.shape[2]).reshape(len(matrix), 1, -1)
        return np.asarray(y + b.astype(y.dtype))

    def sample(self, x: Steps, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """About `most` steps of all samples."""
        there = len(x.x)
        return np.sort(rng.choice(there, min(there, max(most, 1)), replace=False))

    def rows(self, x: Steps, at: NDArray[np.int64]) -> Array:
        """[directions, rows, features + hidden]: x_t beside h_(t-1), or one of the two."""
        parts = []
        if X in self.sides:
            parts.append(np.broadcast_to(x.x[at], (self.groups, len(at), x.x.shape[1])))
        if H in self.sides:
            parts.append(x.h[:, at])
        return np.concatenate(parts, 2)

    def targets(self, y: Array, at: NDArray[np.int64]) -> Array:
        """[directions, rows, outputs]"""
        return np.asarray(y[:, at])

    def dense(self, trace: Trace, kept: Mask, walk: Walk, name: str, outputs: int) -> Iterable[Array]:
        """These gates before their non-linearity, computed with the weights of the graph that was not cut, at the units
        that were kept; Unsolvable where the cut changed more of them."""
        known = next((o for o in self.node.output if o), "")
        if known not in walk.made_by:
            raise Unsolvable("its output is new in the pruned graph")
        k = walk.made_by[known]
        views = recurrent(k, walk.nodes[k], walk)
        twin = next(v for v in views if (v.gates, v.sides) == (self.gates, self.sides))
        alive = kept[twin._ids([r for r in trace.reductions if r.node == walk.first + k], H)]
        if (alive.sum(1) * len(self.gates) != outputs).any():
            raise Unsolvable(RESHAPED)
        where = [np.flatnonzero(np.tile(row, len(self.gates))) for row in alive]
        every = (twin._computed(steps, walk) for steps in twin.inputs(walk))
        return (np.stack([y[d][:, at] for d, at in enumerate(where)]) for y in every)

    def units(self, reductions: Sequence[Reduction], rank: Callable[[str], int | None]) -> Ids:
        """[directions, features + hidden]: the ids of the last axes of W and R."""
        return np.concatenate([self._ids(reductions, s) for s in self.sides], 1)

    def extent(self, dims: DimsOf) -> Extent | None:
        """See `linear.Linear`: every step of every sample is a row."""
        x = dims(self.data)
        rows = prod(n or 1 for n in x[:2]) if x else 1
        columns = sum(self.widths[s] for s in self.sides)
        return Extent(rows, self.groups, columns, len(self.gates) * self.widths[H])

    def _ids(self, reductions: Sequence[Reduction], side: int) -> Ids:
        """[directions, columns]: the labels of the last axis of W or R."""
        found = np.full((self.groups, self.widths[side]), KEPT, np.int64)
        for r in reductions:
            if r.operand == side + 1 and r.block is not None and r.block.axes in ((2,), (0, 2)):
                found[:] = r.block.ids.reshape(-1, self.widths[side])
        return found


def recurrent(index: int, node: NodeProto, graph: Topology) -> list[Recurrent]:
    """The layers of a recurrent node, in the order in which they are to be solved for."""
    weights, given = ([moved(name, graph) for name in names if name] for names in (node.input[1:3], node.input[3:4]))
    if None in (*weights, *given):
        raise Unsolvable("its weights are computed in the graph")
    if any(node.input[4:5]):
        raise Unsolvable("its sequences are of several lengths")
    if attribute(node, "layout", 0):
        raise Unsolvable("the batch comes before the steps")
    w, r = (p for p in weights if p is not None)
    directions, _, features = w.shape(graph.model)
    widths = features, r.shape(graph.model)[2]
    own = Recurrent(index, node, (w, r), next(iter(given), None), directions, widths, (0, 1, 2, 3))
    if node.op_type != "GRU":
        return [replace(own, gates=tuple(range(traits.GATES[node.op_type])))]
    views = [replace(own, gates=(0, 1))]
    if attribute(node, "linear_before_reset", 0):
        return [*views, replace(own, gates=(2,), sides=(X,), feeds_back=False), replace(own, gates=(2,), sides=(H,))]
    plain = attribute(node, "activations") is None and attribute(node, "clip") is None
    return [*views, replace(own, gates=(2,), reset=True)] if plain else views
