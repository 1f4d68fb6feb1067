"""What is to be paid when sets of units lose shares: the costs of a model by what is left of every block.

Knows costs, blocks and shares, no loss and no ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from onnxprune.planning.costs import Array, Costs
from onnxprune.planning.profile import share
from onnxprune.trace import Ids


@dataclass(frozen=True)
class Paid:
    """The cost in all, that of each product [costs], and what is kept of each block [blocks]."""

    total: float
    products: Array
    kept: Array


@dataclass(frozen=True)
class Blocks:
    """Every block of every cost, so that what is to be paid follows from the shares of the blocks that are lost.

    owner: [blocks], the index of its cost. full: [costs], each when its blocks are whole. base: [blocks], the share of
    it that is not gone. held: [sets, blocks], sparse, the share of a block's positions that each set has. fixed: what
    is paid whatever is lost. size: [blocks], positions of those that have stairs, 0 of others; stairs: those of all
    blocks side by side, of each from `begin` [blocks]."""

    owner: Ids
    full: Array
    base: Array
    held: Any
    fixed: float
    size: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    stairs: Array = field(default_factory=lambda: np.zeros(0))
    begin: Ids = field(default_factory=lambda: np.zeros(0, np.int64))

    @staticmethod
    def of(sets: Sequence[Sequence[int]], costs: Costs, gone: NDArray[np.bool_]) -> Blocks:
        """Of sets of units, where the classes of `gone` are removed already."""
        terms = [(i, b) for i, bs in enumerate(costs.blocks) for b in bs]
        base = np.array([1.0 - gone[b].mean() for _, b in terms])
        full = costs.count.copy()
        for i, bs in enumerate(costs.blocks):  # of rows that are gone, each block knows
            left = float(np.prod([1.0 - gone[b].mean() for b in bs]))
            full[i] *= share(bs, ~gone) / left if left else 0.0
        held = _held(sets, [b for _, b in terms], len(gone))
        owner = np.array([i for i, _ in terms], np.int64)
        return Blocks(owner, full, base, held, costs.fixed, *_side_by_side(costs, len(terms)))

    def counts(self, kept: Array, which: Ids | slice = slice(None)) -> Array:
        """What the kept shares [..., blocks] of these blocks count for."""
        size, begin = self.size[which], self.begin[which]
        if not size.any():
            return kept
        at = np.where(size > 0, begin + np.rint(kept * size).astype(np.int64), 0)
        return np.where(size > 0, np.maximum(self.stairs[at], 1e-9), kept)

    def paid(self, taken: Array | float) -> Paid:
        """The cost when the sets lose these shares [sets], or all the same one, besides what is gone."""
        kept = self.counts(np.maximum(self.base - self.lost(taken), 1e-9))
        products = self.full.copy()
        np.multiply.at(products, self.owner, kept)
        return Paid(float(products.sum() + self.fixed), products, kept)

    def lost(self, taken: Array | float) -> Array:
        """[blocks]: the share of each that goes with these shares of the sets."""
        return np.asarray(np.broadcast_to(taken, self.held.shape[0]) @ self.held)

    def own(self, p: int) -> tuple[Ids, Array]:
        """The blocks that a set has a share of, and that share of each."""
        here = slice(self.held.indptr[p], self.held.indptr[p + 1])
        return self.held.indices[here], self.held.data[here]

    def savings(self, paid: Paid) -> Array:
        """[sets]: the cost that a small share of each set saves, by that share."""
        return np.asarray(self.held @ (paid.products[self.owner] / paid.kept))

    def stepped(self, p: int) -> bool:
        """Whether the costs of a set rise in stairs."""
        return bool((self.size[self.own(p)[0]] > 0).any())

    def near(self) -> list[Ids]:
        """Of each set, those that have a cost in common with it."""
        rows, blocks = self.held.nonzero()
        met = csr_array((np.ones(len(rows)), (rows, self.owner[blocks])), (self.held.shape[0], len(self.full)))
        both = csr_array(met @ met.T)
        return [np.sort(both.indices[both.indptr[p] : both.indptr[p + 1]]) for p in range(both.shape[0])]

    def along(self, p: int, taken: Array, shares: Array) -> Array:
        """[shares]: what the costs in which set `p` is come to when it loses these shares and the others what is
        `taken` [sets]."""
        own, held = self.own(p)
        if not own.size:
            return np.zeros(len(shares))
        others = taken.copy()
        others[p] = 0.0
        lost = self.lost(others)
        rest = self.full.copy()
        kept = self.counts(np.maximum(self.base - lost, 1e-9))
        kept[own] = 1.0
        np.multiply.at(rest, self.owner, kept)
        left = np.maximum(self.base[own] - lost[own] - shares[:, None] * held, 1e-9)
        counted = self.counts(left, own)
        mine, first = np.unique(self.owner[own], return_index=True)
        return np.asarray(np.multiply.reduceat(counted, first, axis=1) @ rest[mine])


def _side_by_side(costs: Costs, count: int) -> tuple[Ids, Array, Ids]:
    """Of so many blocks the positions where they have stairs, the stairs in a row, and where each begins."""
    stairs = [s for row in costs.stairs for s in row] or [None] * count
    size = np.array([0 if s is None else len(s) - 1 for s in stairs], np.int64)
    joined = np.concatenate([np.zeros(1), *(s for s in stairs if s is not None)])
    return size, joined, 1 + np.cumsum(size + (size > 0)) - size - (size > 0)


def _held(sets: Sequence[Sequence[int]], blocks: Sequence[Ids], classes: int) -> Any:
    """[sets, blocks], sparse: the share of a block's positions that are units of a set."""
    sizes = [b.size for b in blocks]
    units = np.concatenate([np.zeros(0, np.int64), *(b.ravel() for b in blocks)])
    there = csr_array((np.ones(len(units)), (units, np.repeat(np.arange(len(blocks)), sizes))), (classes, len(blocks)))
    members = np.concatenate([np.zeros(0, np.int64), *(np.asarray(s, np.int64) for s in sets)])
    owners = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    inside = csr_array((np.ones(len(members)), (owners, members)), (len(sets), classes))
    inside.data[:] = 1.0  # also of a unit that is named twice
    found = csr_array(inside @ there)
    found.sort_indices()
    found.data /= np.array(sizes)[found.indices]
    return found
