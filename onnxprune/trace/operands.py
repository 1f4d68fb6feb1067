"""What an equation is made of: tensors spelled in letters, and their blocks. Knows letters and ids, no operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod

from onnxprune.trace.labels import Block, Ids

Dims = tuple[int | None, ...]
Demand = Callable[[Sequence[tuple[Block, int | None]]], None]
"""Asks that one-dimensional blocks of one parameter, outermost first, be born as one; with the number of ids wanted
along each axis, None for all of them."""


@dataclass(frozen=True)
class Operand:
    """One tensor of an equation: its axes spelled in letters, its static dims (None = unknown), its blocks."""

    name: str
    spelling: Sequence[str]
    dims: Dims
    blocks: tuple[Block, ...] = ()

    def long(self, letters: Set[str], sizes: Mapping[str, int]) -> Iterator[str]:
        """Those of `letters` along which the tensor has other than one position. sizes: of those of split axes."""
        for axis, dim in zip(self.spelling, self.dims, strict=True):
            yield from (x for x in axis if x in letters and (sizes[x] if len(axis) > 1 else dim) != 1)


@dataclass(frozen=True, eq=False)
class Lettered:
    """A block spelled in letters: `ids` has one axis per letter, outermost first."""

    letters: tuple[str, ...]
    ids: Ids
    operand: int = -1


def split_axis(sizes: Mapping[str, int], spelled: str, n: int, size: int | None) -> list[tuple[str, int]]:
    """(letter, size) of each letter of an axis of `n` ids; none where it has no letter, or where its ids stand for runs
    of positions under a letter that stands for single ones. sizes: of the letters of split axes."""
    if len(spelled) > 1:
        if prod(sizes[x] for x in spelled) == n:
            return [(x, sizes[x]) for x in spelled]
        return [(spelled[0], n)] if sizes[spelled[0]] == n else []
    return [(spelled, n)] if spelled and size in (None, n) else []
