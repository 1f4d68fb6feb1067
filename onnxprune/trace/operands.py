"""What an equation is made of: tensors spelled in letters, and their blocks. Knows letters and ids, no operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Lettered:
    """A block spelled in letters: `ids` has one axis per letter, outermost first."""

    letters: tuple[str, ...]
    ids: Ids
    operand: int = -1
