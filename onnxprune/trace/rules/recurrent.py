"""LSTM, GRU, RNN: one unit is a hidden neuron of one direction, in every gate, bias, peephole and state.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.model import traits
from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.inputs import Recurrent


def _over(axes: tuple[int, ...], ids: Ids) -> list[Block]:
    big = [k for k in range(ids.ndim) if ids.shape[k] > 1]
    return [Block(tuple(axes[k] for k in big), ids.reshape([ids.shape[k] for k in big]))] if big else []


def recurrent(op: Op) -> None:
    """LSTM, GRU, RNN; of two directions every unit stays."""
    gates = traits.GATES[op.type]
    shape = op.dims(Recurrent.WEIGHT)
    if len(shape) != 3 or None in shape or op.attr("layout", 0):
        return op.freeze("the weight's shape is not known, or the batch comes first")
    directions, hidden, features = (n or 1 for n in shape)
    hidden //= gates
    units, inputs = op.fresh("hidden", (directions, hidden)), op.fresh("input", (features,))
    op.labels.rectangle(units)
    if directions > 1:
        op.freeze_ids(op.labels.derive(units), "both directions stay")
    weight_in, recurrence = _over((2,), inputs), _over((0, 2), units)
    _weights(op, Recurrent.WEIGHT, units, gates, ["", "", "i"], weight_in)
    _weights(op, Recurrent.RECURRENCE, units, gates, ["d", "", "h"], recurrence)
    _weights(op, Recurrent.BIAS, units, 2 * gates)
    _weights(op, Recurrent.PEEPHOLES, units, 3)
    for i in (Recurrent.WEIGHT, Recurrent.RECURRENCE):
        for b in op.blocks(i):
            if 2 in b.axes:
                op.note_sum(i, b)
    why = "a recurrent layer reads an axis of fixed size"
    op.meet(Recurrent.X, ["s", "b", "i"], ["", "", "i"], weight_in, why, pinned="sb")
    for i in (Recurrent.STATE, Recurrent.CELL):
        if op.has(i):
            state = ["d" if directions > 1 else "", "b", "h"]
            op.meet(i, state, ["d", "b", "h"], recurrence, "a state of fixed size", pinned="b")
    op.set(0, _over((1, 3), units))
    op.set(1, _over((0, 2), units))
    op.set(2, _over((0, 2), units))
    op.edit(lambda e: e.attr("hidden_size", e.in_size(Recurrent.RECURRENCE, 2)))
    steps = float((op.first_dims(Recurrent.X) or (1,))[0] or 1)
    each = steps * directions * gates * hidden
    op.note_macs([(each * hidden, (units, units)), (each * features, (units, inputs))])


def _weights(
    op: Op, i: int, units: Ids, repeats: int, spelled: Sequence[str] = (), beside: Sequence[Block] = ()
) -> None:
    """An input of which axis 1 holds the units `repeats` times, gate by gate; `beside`, spelled so, is on its others.
    It may be an expression over parameters, as exporters write to reorder gates."""
    if not op.has(i):
        return
    if op.is_parameter(i):
        return op.own(i, *_over((0, 1), np.tile(units, (1, repeats))), *beside)
    sizes = {"d": len(units), "q": repeats, "h": units.shape[1]}
    letters = ["d", "qh", "x"][: len(op.dims(i))]
    op.meet(i, letters, ["d", "h"], _over((0, 1), units), "computed weights", sizes, "q")
    if spelled:
        op.meet(i, spelled, spelled, beside, "computed weights")
