"""What may go of a group, and how much, in one place for all who ask. Knows options and groups, no scores."""

from __future__ import annotations

from math import floor

from onnxprune.options import Options
from onnxprune.trace import Groups, Mask

SLIP = 1e-9
"""What a product of floats may be short of a whole number: 50 * 0.58 is 28.999999999999996 and means 29."""

FLOOR = 0.1
"""Share of a group's units that stays where groups compete for one budget."""


def most_of(units: int, share: float) -> int:
    """How many of `units` go at most where a `share` (0..1) of them may."""
    return floor(share * units + SLIP)


def share_above_floor(options: Options) -> float:
    """The largest share of a group that may go where its floor stays: 0..1."""
    return min(options.max_ratio, 1 - FLOOR)


def largest_share(options: Options) -> float:
    """The largest share of a group that may go in one ranking of all (the global scope keeps every group's floor) or
    when each loses a share of its own: 0..1."""
    return share_above_floor(options) if options.scope == "global" else options.max_ratio


def movable(groups: Groups, options: Options) -> Mask:
    """[classes]: the units that may go where residual channels are asked to stay or not."""
    allowed = groups.prunable.copy()
    if options.residual != "all":
        allowed &= ~groups.normed
    if options.residual == "none":
        allowed &= ~groups.streams
    return allowed
