"""How numbers of a few bits, or of a matrix written as one row, lie in a parameter.

Ids go by cells: one number each, along the axes that the operator has in mind. The parameter holds several of them in a
byte, or all of them along one axis, or one for several neighbours. Knows arrays and blocks, no operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod

import numpy as np

from onnxprune.model import Array
from onnxprune.trace.labels import Block, Mask

BYTE = 8


@cache
def _in_bytes(bits: int) -> Array:
    """[256]: the cells of so many bits that a byte holds, one in each byte of a number, the lowest bits first."""
    shifts = np.arange(0, BYTE, bits, dtype=np.uint8)
    cells = (np.arange(256, dtype=np.uint8)[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    return cells.view(f"u{len(shifts)}").ravel()


@dataclass(frozen=True)
class Cells:
    """`shape` of the cells. bits: of one cell, where bytes hold several of them: the lowest bits first, each row of the
    last axis in bytes of its own; 0 where each is an element. flat: whether the parameter has one axis only. run: how
    many neighbours along the last axis have one number between them. each: how many of them fill a block, where blocks
    are an axis of their own and the last one is filled up."""

    shape: tuple[int, ...]
    bits: int = 0
    flat: bool = False
    run: int = 1
    each: int = 0

    def of(self, stored: Array) -> Array:
        """The cells [shape] of a parameter, each as an element of its type."""
        rows = stored.reshape(*self.shape[:-1], -1)
        if 0 < self.bits < BYTE:
            rows = _in_bytes(self.bits)[rows].view(np.uint8)
        return np.asarray((rows.repeat(self.run, -1) if self.run > 1 else rows)[..., : self.shape[-1]])

    def stored(self, cells: Array) -> Array:
        """The parameter that holds these cells, in the shape that it has in the file; bits that are left over are 0."""
        cells = cells[..., :: self.run]
        if self.bits:
            per = BYTE // self.bits
            wide = np.zeros((*cells.shape[:-1], -(-cells.shape[-1] // per) * per), np.uint8)
            wide[..., : cells.shape[-1]] = cells
            shifts = np.arange(0, BYTE, self.bits, dtype=np.uint8)
            cells = np.bitwise_or.reduce(wide.reshape(*wide.shape[:-1], -1, per) << shifts, axis=-1)
        if self.each:
            blob = self.each * self.bits // BYTE
            cells = np.pad(cells, [*[(0, 0)] * (cells.ndim - 1), (0, -cells.shape[-1] % blob)])
            cells = cells.reshape(*cells.shape[:-1], -1, blob)
        return cells.reshape(-1) if self.flat else cells

    def stored_shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        """The shape of the parameter for so many cells."""
        if self.each:
            return (*dims[:-1], -(-dims[-1] // self.each), self.each * self.bits // BYTE)
        last = -(-dims[-1] // self.run)
        shape = (*dims[:-1], -(-last * self.bits // BYTE) if self.bits else last)
        return (prod(shape),) if self.flat else shape

    def sized(self, dims: Sequence[int]) -> Cells:
        """The same for another number of cells."""
        return replace(self, shape=tuple(dims))

    def parted(self, kept: Array) -> bool:
        """Whether any of what shares a number, or a block, goes without the rest of it: `kept` along the last axis."""
        step = max(self.run, self.each)
        first = kept[::step].repeat(step)[: kept.size] if step > 1 else kept
        return not np.array_equal(first, kept)

    def together(self, blocks: Sequence[Block], kept: Mask) -> tuple[Cells | None, tuple[Block, ...]]:
        """The same with one cell for what shares a number or a block, where all of that goes or stays together: of a
        large parameter less is to be unpacked so. cells None: elements."""
        step, last = max(self.run, self.each), len(self.shape) - 1
        own = next((b for b in blocks if b.axes == (last,)), None)
        if step == 1 or any(last in b.axes for b in blocks if b is not own) or (own and self.parted(kept[own.ids])):
            return self, tuple(blocks)
        runs = replace(self, shape=(*self.shape[:-1], -(-self.shape[-1] // step)), run=1)
        coarse = (Block(b.axes, b.ids[::step]) if b is own else b for b in blocks)
        return None if self.each else runs, tuple(coarse)
