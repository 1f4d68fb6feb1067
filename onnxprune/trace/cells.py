"""How numbers of a few bits, or of a matrix written as one row, lie in a parameter. Knows arrays, no ids.

Ids go by cells: one number each, along the axes that the operator has in mind. The parameter holds several of them in a
byte, or all of them along one axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from onnxprune.model import Array

BYTE = 8


@dataclass(frozen=True)
class Cells:
    """`shape` of the cells. bits: of one cell, where bytes hold several of them: the lowest bits first, each row of the
    last axis in bytes of its own; 0 where each is an element. flat: whether the parameter has one axis only."""

    shape: tuple[int, ...]
    bits: int = 0
    flat: bool = False

    def of(self, stored: Array) -> Array:
        """The cells [shape] of a parameter, each as an element of its type."""
        if not self.bits:
            return stored.reshape(self.shape)
        rows = stored.reshape(*self.shape[:-1], -1)
        shifts = np.arange(0, BYTE, self.bits, dtype=np.uint8)
        each = (rows[..., None] >> shifts) & np.uint8((1 << self.bits) - 1)
        return np.asarray(each.reshape(*rows.shape[:-1], -1)[..., : self.shape[-1]])

    def stored(self, cells: Array) -> Array:
        """The parameter that holds these cells, in the shape that it has in the file; bits that are left over are 0."""
        if self.bits:
            per = BYTE // self.bits
            wide = np.zeros((*cells.shape[:-1], -(-cells.shape[-1] // per) * per), np.uint8)
            wide[..., : cells.shape[-1]] = cells
            shifts = np.arange(0, BYTE, self.bits, dtype=np.uint8)
            cells = np.bitwise_or.reduce(wide.reshape(*wide.shape[:-1], -1, per) << shifts, axis=-1)
        return cells.reshape(-1) if self.flat else cells

    def stored_shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        """The shape of the parameter for so many cells."""
        last = -(-dims[-1] * self.bits // BYTE) if self.bits else dims[-1]
        shape = (*dims[:-1], last)
        return (prod(shape),) if self.flat else shape

    def sized(self, dims: Sequence[int]) -> Cells:
        """The same for another number of cells."""
        return replace(self, shape=tuple(dims))
