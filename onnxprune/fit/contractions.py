"""Sums of products in which several axes may be summed over, stand apart or come out: an Einsum of an activation and a
parameter, or a product with a stack of matrices.

Axes are letters, as in Einsum: what both have and the output too are groups, what both have and the output has not are
columns, what the parameter alone has are outputs, what the activation alone has are rows. Knows letters and axes, no
groups of units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.expressions import Grid, Parameter
from onnxprune.fit.linear import RESHAPED, DimsOf, Extent, Shift, Unsolvable, restricted
from onnxprune.fit.walk import Walk
from onnxprune.model import Array, Model, attribute
from onnxprune.trace import KEPT, Ids, Mask, Reduction, Trace

Rank = Callable[[str], int | None]


@dataclass(frozen=True)
class Contraction:
    """`node` sums products of `data`, whose axes are the letters `x`, and a parameter, of `w`; the output has `y`.
    sizes: of the letters of `w` (see `linear.Linear`)."""

    index: int
    node: NodeProto
    data: str
    weight: Parameter
    x: str
    w: str
    y: str
    sizes: tuple[tuple[str, int], ...]
    feeds_back: bool = False
    bias: int | None = None

    @property
    def _apart(self) -> str:
        return "".join(c for c in self.w if c in self.x and c in self.y)

    @property
    def _summed(self) -> str:
        return "".join(c for c in self.w if c in self.x and c not in self.y)

    @property
    def _made(self) -> str:
        return "".join(c for c in self.w if c not in self.x)

    @property
    def _places(self) -> str:
        return "".join(c for c in self.x if c not in self.w)

    def _size(self, letters: str) -> int:
        return prod(dict(self.sizes)[c] for c in letters)

    @property
    def groups(self) -> int:
        """Positions of the axes that all three have."""
        return self._size(self._apart)

    @property
    def y_axis(self) -> int | None:
        """Where the outputs are one axis of their own; None where they are several."""
        return self.y.index(self._made) - len(self.y) if len(self._made) == 1 and not self._apart else None

    @property
    def out(self) -> str:
        """The node's output."""
        return str(self.node.output[0])

    @property
    def title(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def roots(self) -> tuple[str, ...]:
        """The initializers that hold the weight."""
        return self.weight.roots

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for nodes that read the same initializer in the same way."""
        return (*self.roots, self._apart, self._summed, self._made)

    def on(self, node: NodeProto) -> Contraction:
        """The same of a copy of the graph."""
        return replace(self, node=node)

    def read(self, model: Model) -> Array:
        """[groups, columns, outputs], float64."""
        return self._matrix(self.weight.read(model))

    def _matrix(self, value: Array) -> Array:
        order = [self.w.index(c) for c in self._apart + self._summed + self._made]
        return value.transpose(order).reshape(self.groups, self._size(self._summed), self._size(self._made))

    def grid(self, model: Model) -> Grid | None:
        """[groups, columns, outputs]: the values that can be stored; None where these are floats."""
        grid = self.weight.grid(model)
        return None if grid is None else grid.map(self._matrix)

    def write(self, model: Model, matrix: Array) -> None:
        """Store what `read` would give back."""
        letters = self._apart + self._summed + self._made
        value = matrix.reshape([self._size(c) for c in letters])
        self.weight.write(model, value.transpose([letters.index(c) for c in self.w]))

    def folded(self, value: Array, outputs: int) -> Array | None:
        """It has no bias of its own."""
        return None

    def shift(self, outputs: int) -> Shift | None:
        """It has no bias of its own."""
        return None

    def inputs(self, walk: Walk) -> list[Array]:
        """What it reads in every batch."""
        return walk.value(self.data)

    def sample(self, x: Array, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Positions of the axes that only the activation has."""
        there = prod(x.shape[self.x.index(c)] for c in self._places)
        return np.sort(rng.choice(there, min(there, max(most, 1)), replace=False))

    def rows(self, x: Array, at: NDArray[np.int64]) -> Array:
        """[groups, rows, columns]; Unsolvable where an axis of the activation is repeated for the parameter's."""
        return self._laid(x, self.x, self._summed)[:, at]

    def targets(self, y: Array, at: NDArray[np.int64]) -> Array:
        """[groups, rows, outputs]"""
        return self._laid(y, self.y, self._made)[:, at]

    def _laid(self, value: Array, letters: str, last: str) -> Array:
        """[groups, rows, `last`] of a tensor with these letters."""
        dims = dict(zip(letters, value.shape, strict=True))
        if any(dims[c] != n for c, n in self.sizes if c in dims):
            raise Unsolvable(RESHAPED)
        order = [letters.index(c) for c in self._apart + self._places + last]
        return value.transpose(order).reshape(self.groups, -1, self._size(last))

    def dense(self, trace: Trace, kept: Mask, walk: Walk, name: str, outputs: int) -> Iterable[Array]:
        """The tensor `name` of every batch at the kept positions; Unsolvable where the cut changed more of it."""
        if trace.shapes.static(name) is None:
            raise Unsolvable("its output is new in the pruned graph")
        return (restricted(trace, kept, name, y) for y in walk.once(name))

    def units(self, reductions: Sequence[Reduction], rank: Rank) -> Ids | None:
        """[groups, channels]: the ids of the axes that the node sums over, where one block holds them all."""
        letters = self._apart + self._summed
        for r in reductions:
            if self.node.input[r.operand] != self.data or r.block is None:
                continue
            own = [self.x[a] for a in r.block.axes]
            if set(own) <= set(letters) and set(own) & set(self._summed):
                ids = np.full([self._size(c) for c in letters], KEPT, np.int64)
                inner = r.block.ids.transpose(np.argsort([letters.index(c) for c in own]))
                ids[...] = inner.reshape([self._size(c) if c in own else 1 for c in letters])
                return ids.reshape(self.groups, -1)
        return None

    def extent(self, dims: DimsOf) -> Extent | None:
        """See `linear.Linear`."""
        x = dims(self.data)
        if x is None:
            return None
        rows = prod(x[self.x.index(c)] or 1 for c in self._places)
        return Extent(rows, self.groups, self._size(self._summed), self._size(self._made))


def contraction(
    index: int, node: NodeProto, side: int, weight: Parameter, letters: tuple[str, str, str], model: Model
) -> Contraction | None:
    """`letters` of both operands and of the output; the parameter is operand `side`. None where the sum is no linear
    map of the activation's rows: a letter is summed on one side alone, or stands twice."""
    x, w, y = letters[1 - side], letters[side], letters[2]
    shape = weight.shape(model)
    if len(shape) != len(w) or any(len(set(s)) < len(s) for s in (x, w, y)):
        return None
    alone = (set(x) - set(w) - set(y)) | (set(w) - set(x) - set(y))
    if alone or not set(x) & set(w) - set(y):
        return None
    return Contraction(index, node, str(node.input[1 - side]), weight, x, w, y, tuple(zip(w, shape, strict=True)))


def einsum(
    index: int, node: NodeProto, weights: Sequence[Parameter | None], rank: Rank, model: Model
) -> Contraction | None:
    """An Einsum of two operands, one of them a parameter; an ellipsis is written out."""
    text = str(attribute(node, "equation", "")).replace(" ", "")
    if len(node.input) != 2 or "->" not in text or sum(w is not None for w in weights) != 1:
        return None
    left, out = text.split("->")
    parts = left.split(",")
    side = 0 if weights[0] is not None else 1
    weight, axes = weights[side], rank(node.input[1 - side])
    if weight is None or axes is None or len(parts) != 2 or "." in parts[side]:
        return None
    more = axes - len(parts[1 - side].replace("...", ""))
    free = "".join(c for c in ascii_uppercase if c not in text)[:more] if "..." in parts[1 - side] else ""
    one, two, made = (s.replace("...", free) for s in (*parts, out))
    return contraction(index, node, side, weight, (one, two, made), model)


def stacked(index: int, node: NodeProto, side: int, weight: Parameter, rank: Rank, model: Model) -> Contraction | None:
    """A product with a stack of matrices: their leading axes are those of the activation, as far as it has as many."""
    axes, own = rank(node.input[1 - side]), len(weight.shape(model))
    if axes is None or axes < 2:
        return None
    leading = ascii_uppercase[: max(axes, own) - 2]
    ends = ("mk", "kn")
    mine, other = (leading[len(leading) + 2 - n :] + ends[s] for n, s in ((own, side), (axes, 1 - side)))
    letters = (mine, other) if side == 0 else (other, mine)
    return contraction(index, node, side, weight, (*letters, f"{leading}mn"), model)
