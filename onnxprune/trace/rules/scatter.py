"""Values put into a tensor at known positions. A rule knows one `Op`, not the graph."""

from __future__ import annotations

import numpy as np

from onnxprune.trace.editor import Editor
from onnxprune.trace.op import Op
from onnxprune.trace.rules.inputs import DATA, INDICES, UPDATES


def overwritten(op: Op) -> bool:
    """Known positions of a vector get other values: what they hold goes with what they held."""
    at, own, new = op.value(INDICES), op.block_on(DATA, 0), op.block_on(UPDATES, 0)
    shape = op.dims(DATA)
    if at is None or own is None or len(shape) > 1 or at.ndim != 2 or op.attr("reduction", "none") != "none":
        return False
    at = at.ravel() % own.ids.size
    if new is None or new.ids.shape != at.shape or own.ids.size != shape[0]:
        return False
    op.couple(own.ids[at], new.ids)
    op.set(0, [own])

    def positions(e: Editor) -> None:
        alive = e.kept(own.ids)
        if not alive.all():
            e.const(INDICES, (np.cumsum(alive) - 1)[at[alive[at]]].reshape(-1, 1).astype(np.int64))

    op.edit(positions)
    return True
