"""Numbers as codes of a few bits: which scale and zero point a block of them gets. Knows arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of the range of a block that its codes may be spread over: what is beyond is clipped."""


@dataclass(frozen=True)
class Steps:
    """bits: of a code. points: whether there are zero points; else the middle code is zero. dtype: of scales."""

    bits: int
    points: bool
    dtype: np.dtype[Any]

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The code that is zero where there are no zero points."""
        return 1 << (self.bits - 1)

    def chosen(
        self, part: Numbers, weigh: Numbers, own: tuple[Numbers, Numbers], shares: Sequence[float] = SHRUNK
    ) -> tuple[Numbers, Numbers]:
        """Scale and zero point [rows] for numbers [rows, block] that count as `weigh` [block] says: those that are
        there, or that share of the range which moves what is summed least."""
        best, least = own, _moved(part, weigh, *own, self.top)
        for share in shares:
            tried = self._spread(share * part.min(1), share * part.max(1))
            moved = _moved(part, weigh, *tried, self.top)
            better = moved < least
            best = np.where(better, tried[0], best[0]), np.where(better, tried[1], best[1])
            least = np.minimum(least, moved)
        return best

    def _spread(self, low: Numbers, high: Numbers) -> tuple[Numbers, Numbers]:
        """Scale and zero point by which codes reach from `low` to `high`, and hold zero."""
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        if not self.points:
            scale = np.maximum(-low / self.middle, high / (self.top - self.middle))
            zero = np.full(len(low), float(self.middle))
        else:
            scale = (high - low) / self.top
            zero = np.rint(np.divide(-low, scale, out=np.zeros(len(low)), where=scale > 0))
        return np.maximum(scale, 1e-8).astype(self.dtype).astype(np.float64), zero


def codes_of(value: Numbers, scale: Numbers, zero: Numbers, top: int) -> Numbers:
    """The nearest codes, 0 to `top`."""
    steps = np.divide(value, scale, out=np.zeros(value.shape), where=scale != 0)
    return np.asarray(np.clip(np.rint(steps + zero), 0, top))


def _moved(part: Numbers, weigh: Numbers, scale: Numbers, zero: Numbers, top: int) -> Numbers:
    """[rows]: squares of what rounding does, as far as each number counts."""
    found = (codes_of(part, scale[:, None], zero[:, None], top) - zero[:, None]) * scale[:, None]
    return np.asarray(np.square(found - part) @ weigh)
