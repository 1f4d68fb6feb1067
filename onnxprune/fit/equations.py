"""What is asked of a layer in one refit, and what became of it: rows, targets and errors on rows that only judge.

Knows layers and what follows them, no graph and no walk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit.expressions import Grid
from onnxprune.fit.least_squares import RIDGES, Problem, Solution, solve
from onnxprune.fit.linear import Linear
from onnxprune.fit.normal import Moments
from onnxprune.fit.rounding import rounded
from onnxprune.fit.tails import Tail
from onnxprune.model import Array
from onnxprune.steady import in_turn

Asked = tuple[Array, Array | None, tuple[int, ...], NDArray[np.int64], Array]
"""Of one batch: what a layer reads, what is added to what it gives, the shape of that, where it is looked at, and what
it should give there."""


class Gathering:
    """Of every group what is looked at in so many batches: rows, what is wanted of them, and what is added to them."""

    def __init__(self, batches: int, groups: int) -> None:
        self.groups = groups
        self.parts: list[list[tuple[Array, ...]]] = [[] for _ in range(batches)]

    def add(self, layer: Linear, its: Tail, asked: Iterable[Asked]) -> None:
        """Every batch of one more layer. One batch is asked for after the other; they are worked on side by side."""

        def taken(one: Asked) -> tuple[Array, ...]:
            x, other, shape, at, wanted = one
            offset = np.broadcast_to(its.offset.reshape(self.groups, 1, -1), wanted.shape)
            if other is not None:
                offset = offset + layer.targets(np.broadcast_to(other, shape), at)
            return layer.rows(x, at), wanted, offset

        for own, found in zip(self.parts, in_turn(taken, asked), strict=True):
            own.append(found)

    def joined(self) -> list[tuple[Array, ...]]:
        """(rows, wanted, offset) of every group, the last batches last. Nothing of it is held here any more."""
        columns = [list(column) for column in zip(*(part for own in self.parts for part in own), strict=True)]
        self.parts.clear()
        found = []
        for g in range(self.groups):
            own = [[part[g] for part in column] for column in columns]
            if g == self.groups - 1:
                columns.clear()
            found.append(tuple(map(_joined, own)))
        return found


def _joined(parts: list[Array]) -> Array:
    """[rows, numbers] one after the other, float32; where all rows are the same one, it is held once. Each of `parts`
    is let go of when it was copied: together they may take half of the memory."""
    count = sum(map(len, parts))
    if all(part.strides[0] == 0 and np.array_equal(part[:1], parts[0][:1]) for part in parts):
        return np.broadcast_to(parts[0][:1].astype(np.float32), (count, parts[0].shape[1]))
    whole, done = np.empty((count, parts[0].shape[1]), np.float32), 0
    parts.reverse()
    while parts:
        part = parts.pop()
        whole[done : done + len(part)] = part
        done += len(part)
    return whole


class Light(NamedTuple):
    """A rougher and quicker refit, to tell plans apart: it looks at one row of so many, tries these ridges, and fits to
    those rows only that do not choose."""

    rows: int = 6
    ridges: tuple[float, ...] = (1e-2, 1.0)


@dataclass
class Refit:
    """What happened to one layer: squared errors on held-out rows, relative to the target's energy."""

    layer: str
    before: float
    after: float
    ridge: float


@dataclass
class Refits:
    """All layers that were solved for, and those that were not with the reason."""

    solved: list[Refit] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(parts: Iterable[Refits]) -> Refits:
        """All of several graphs."""
        whole = Refits()
        for part in parts:
            whole.solved += part.solved
            whole.skipped |= part.skipped
        return whole


@dataclass
class Equations:
    """Layers that share a matrix, as they are: matrix [groups, columns, outputs], bias [groups, outputs], and what they
    read and should give, a problem a group. movable: there is a parameter for a new bias. held: share of the rows, the
    last ones, that only judge."""

    members: list[Linear]
    tails: list[Tail]
    matrix: Array
    bias: Array
    movable: bool
    problems: list[Problem]
    held: float

    def _held(self, p: Problem) -> int:
        return max(1, round(len(p.rows) * self.held))

    def _tests(self) -> list[Problem]:
        return [p.part(slice(len(p.rows) - self._held(p), None)) for p in self.problems]

    @property
    def error(self) -> float:
        """Squared error on the held-out rows of the layers as they are."""
        return self.error_of(self.matrix, self.bias)

    def error_of(self, matrix: Array, bias: Array) -> float:
        """The same of other weights."""
        return sum(p.error(w, b) for p, w, b in zip(self._tests(), matrix, bias, strict=True))

    def seen(self, group: int = 0) -> tuple[Array, Array]:
        """Second moments [columns, columns] of what a group reads, about the mean where a bias makes up for it, and the
        mean [columns]; of all rows but those that are held out, by which it is judged."""
        p = self.problems[group]
        rows = p.part(slice(0, max(len(p.rows) - self._held(p), 1))).rows
        moments = Moments.of(rows, rows[:, :0])
        return (moments.centred() if self.movable else moments.raw())[0], moments.mean

    def rounded(self, matrix: Array, bias: Array, grid: Grid) -> tuple[Array, Array]:
        """The weights as integers hold them, and biases that make up for what this moves on average."""
        found, shifted = matrix.copy(), bias.copy()
        for g in range(len(self.problems)):
            gram, mean = self.seen(g)
            found[g] = rounded(matrix[g], Grid(grid.step[g], grid.low[g], grid.high[g]), gram)
            if self.movable:
                shifted[g] = bias[g] + mean @ (matrix[g] - found[g])
        return found, shifted

    @property
    def energy(self) -> float:
        """What errors are relative to: squares of the centred target on the held-out rows; never zero."""
        return sum(p.energy() + 1e-30 for p in self._tests())

    def solve(self, light: Light | None) -> list[Solution]:
        """One solution a group; the old weights where they are exact."""
        how = (light.ridges, False) if light else (RIDGES, True)
        found = []
        for p, test, w, b in zip(self.problems, self._tests(), self.matrix, self.bias, strict=True):
            exact = test.error(w, b) <= 1e-10 * test.energy()
            found.append(Solution(w, b, 0, 0, 0) if exact else solve(p, w, b, self._held(p), *how))
        return found
