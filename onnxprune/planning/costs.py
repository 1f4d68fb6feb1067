"""What a model costs by what is kept of it: MACs, parameters or time, as a sum of products over blocks of units.

Knows costs, blocks and shares, no operator and no ONNX. A kernel that works on several channels at once takes as long
for one as for all of them, and some take longer for widths that they do not like: what is kept of a block counts by
its `stairs` where these are known.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from onnxprune.planning.profile import share
from onnxprune.trace import LABELLED, Groups, Ids

Array = NDArray[np.float64]
Stairs = Sequence[Array | None]
"""Of each block of a term, what every number of kept positions counts for, [size + 1] with 1 at the last; None where
that is the kept share."""


@dataclass(frozen=True)
class Costs:
    """`count` [terms]; term i costs count[i] * prod of the kept shares of `blocks[i]`, each an array of classes
    (see `profile.share`), or, where there are `stairs`, of what stairs[i] make of them; all terms together cost `fixed`
    besides.

    prices: (sum, cost) of some sums, rising, where what the terms come to is not yet the cost: weights that fit into a
    cache are read faster, so that a whole takes another time than its parts."""

    count: Array
    blocks: Sequence[tuple[Ids, ...]]
    fixed: float = 0.0
    stairs: Sequence[Stairs] = ()
    prices: tuple[tuple[float, float], ...] = ()

    @staticmethod
    def of(groups: Groups, what: str) -> Costs:
        """Of MACs (of one sample at the first probe's sizes) or of parameters."""
        terms: list[tuple[float, tuple[Ids, ...]]]
        if what == "macs":
            products = (product for node in groups.trace.macs.values() for product in node)
            terms = [(c, tuple(groups.classes[ids] for ids in b)) for c, b in products]
        else:
            weights = {n: w for n, w in groups.trace.model.weights.items() if w.onnx_type in LABELLED}
            by_use: dict[str, dict[Hashable, list[tuple[int, Ids]]]] = {n: {} for n in weights}
            for s, axes, ids in groups.blocks:
                by_use[s.parameter].setdefault(s.key, []).append((axes[0], groups.classes[ids]))
            terms = [
                (weights[n].size / max(len(uses), 1), (*_in_rows(blocks), *_branches(groups, n)))
                for n, uses in by_use.items()
                for blocks in (uses.values() or [[]])
            ]
        return Costs(np.array([c for c, _ in terms]), [b for _, b in terms])

    @property
    def whole(self) -> float:
        """Cost of the model as it is."""
        return self._priced(float(self.count.sum()) + self.fixed)

    def total(self, kept: NDArray[np.bool_]) -> float:
        """Cost when the classes of `kept` are left."""
        stairs = self.stairs or [()] * len(self.blocks)
        products = (c * _left(b, s, kept) for c, b, s in zip(self.count, self.blocks, stairs, strict=True))
        return self._priced(float(sum(products)) + self.fixed)

    def sum_of(self, cost: float) -> float:
        """What the terms may come to so that the cost is this one."""
        if not self.prices:
            return cost
        sums, costs = zip(*self.prices, strict=True)
        return float(np.interp(cost, costs, sums))

    def _priced(self, total: float) -> float:
        if not self.prices:
            return total
        sums, costs = zip(*self.prices, strict=True)
        beyond: float = max(total / sums[-1], 1.0)  # widths that kernels do not like
        return float(np.interp(total, sums, costs)) * beyond


def _left(blocks: tuple[Ids, ...], stairs: Stairs, kept: NDArray[np.bool_]) -> float:
    """What is left of a product of blocks."""
    plain = [b for k, b in enumerate(blocks) if not stairs or stairs[k] is None]
    steps = [float(s[int(kept[b].sum())]) for b, s in zip(blocks, stairs, strict=False) if s is not None]
    return share(plain, kept) * float(np.prod(steps))


def _branches(groups: Groups, parameter: str) -> Iterator[Ids]:
    """The classes of the residual branches without which nobody reads a parameter, each as a block of its own."""
    readers = groups.trace.readers.get(parameter, [])
    for unit, branch in groups.branches.items():
        if readers and branch.nodes.issuperset(readers):
            yield np.array([unit])


def _in_rows(blocks: Sequence[tuple[int, Ids]]) -> tuple[Ids, ...]:
    """Blocks with the first of their axes; those that have it in common (a grouped weight's) as rows along it."""
    firsts = [axis for axis, _ in blocks]
    rows = {axis: gcd(*(len(ids) for a, ids in blocks if a == axis)) for axis in firsts if firsts.count(axis) > 1}
    return tuple(ids.reshape(rows[axis], -1) if axis in rows else ids.ravel() for axis, ids in blocks)
