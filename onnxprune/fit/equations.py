"""What is asked of a layer in one refit, and what became of it: rows, targets and errors on rows that only judge.

Knows layers and what follows them, no graph and no walk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from onnxprune.fit.expressions import Grid
from onnxprune.fit.least_squares import RIDGES, Problem, Solution, solve
from onnxprune.fit.linear import Linear
from onnxprune.fit.normal import Moments
from onnxprune.fit.rounding import rounded
from onnxprune.fit.tails import Tail
from onnxprune.model import Array


def joined(parts: Sequence[Array]) -> Array:
    """[rows, numbers] one after the other, float32; where all rows are the same one, it is held once."""
    if all(part.strides[0] == 0 and np.array_equal(part[:1], parts[0][:1]) for part in parts):
        return np.broadcast_to(parts[0][:1].astype(np.float32), (sum(map(len, parts)), parts[0].shape[1]))
    return np.concatenate(parts).astype(np.float32, copy=False)


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
