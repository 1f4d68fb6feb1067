"""Which residual branches may go whole, and what the outputs lose without each.

Knows branches and trials, no operator.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.options import Options, Progress
from onnxprune.planning.named import Asked
from onnxprune.planning.trials import Trials
from onnxprune.trace import Groups, Mask


def measured(
    groups: Groups, trials: Trials, options: Options, asked: Asked, progress: Progress | None = None
) -> dict[int, float]:
    """The output error without each branch that may go, by its class, when what is left makes up for it; nothing where
    that takes too long and nobody asked for it."""
    may = free(groups, asked)
    if options.blocks is False or not (options.blocks or trials.room(len(may))):
        return {}

    def cuts() -> Iterator[Mask]:
        for k, unit in enumerate(may):
            if progress:
                progress("branches", k / len(may))
            removed = np.zeros(len(groups.prunable), bool)
            removed[unit] = True
            yield removed

    return {unit: error for unit, error in zip(may, trials.lost(cuts()), strict=True) if error is not None}


def free(groups: Groups, asked: Asked) -> list[int]:
    """The classes of the residual branches of which no unit has a share of its own to lose, in the order of the
    graph."""
    named = np.array([*asked], np.int64)
    held: dict[str, list[np.ndarray]] = {}
    for s, _, ids in groups.blocks if named.size else ():
        held.setdefault(s.parameter, []).append(groups.classes[ids].ravel())
    out = []
    for unit, branch in groups.branches.items():
        names = {name for k in branch.nodes for name in groups.trace.nodes[k].input}
        if not any(np.isin(units, named).any() for name in names for units in held.get(name, ())):
            out.append(unit)
    return out
