"""LSTM, GRU, RNN: one unit is a hidden neuron of one direction, in every gate, bias, peephole and state.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

import numpy as np

from onnxprune.model import traits
from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.tracing import Reduction


def _over(axes: tuple[int, ...], ids: Ids) -> list[Block]:
    big = [k for k in range(ids.ndim) if ids.shape[k] > 1]
    return [Block(tuple(axes[k] for k in big), ids.reshape([ids.shape[k] for k in big]))] if big else []


def recurrent(op: Op) -> None:
    gates = traits.GATES[op.type]
    w = op.dims(1)
    if len(w) != 3 or None in w or op.attr("layout", 0):
        return op.freeze("the weight's shape is not known, or the batch comes first")
    repeats = {1: gates, 2: gates, 3: 2 * gates, 7: 3}
    directions, hidden, features = int(w[0] or 1), int(w[1] or 1) // gates, int(w[2] or 1)
    labels = op.trace.labels
    units = labels.fresh((None, op.node.name, "hidden"), (directions, hidden))
    inputs = labels.fresh((None, op.node.name, "input"), (features,))
    labels.rectangle(units)
    if directions > 1:
        labels.freeze(labels.derive(units), op.why("both directions stay"))
    weight_in, recurrence = _over((2,), inputs), _over((0, 2), units)
    extra = {1: weight_in, 2: recurrence}
    spelled = {1: ["", "", "i"], 2: ["d", "", "h"]}
    for i, repeat in repeats.items():
        if op.has(i) and op.node.input[i] in op.trace.model.weights:
            op.trace.own((op.index, i), (*_over((0, 1), np.tile(units, (1, repeat))), *extra.get(i, ())))
        elif op.has(i):  # an expression over parameters, as exporters write to reorder gates
            sizes = {"d": directions, "q": repeat, "h": hidden}
            op.meet(
                i, ["d", "qh", "x"][: len(op.dims(i))], ["d", "h"], _over((0, 1), units), "computed weights", sizes, "q"
            )
            if i in extra:
                op.meet(i, spelled[i], spelled[i], extra[i], "computed weights")
    for i in (1, 2):
        op.trace.reductions += [Reduction(op.index, "sum", i, b) for b in op.blocks(i) if 2 in b.axes]
    op.meet(0, ["s", "b", "i"], ["", "", "i"], weight_in, "a recurrent layer reads an axis of fixed size", pinned="sb")
    for i in (5, 6):
        if op.has(i):
            state = ["d" if directions > 1 else "", "b", "h"]
            op.meet(i, state, ["d", "b", "h"], recurrence, "a state of fixed size", pinned="b")
    op.set(0, _over((1, 3), units))
    op.set(1, _over((0, 2), units))
    op.set(2, _over((0, 2), units))
    op.edit(lambda e: e.attr("hidden_size", e.in_size(2, 2)))
    steps = float((op.trace.shapes.probe[0].get(op.node.input[0]) or (1,))[0] or 1)
    op.trace.macs[op.index] = (op.trace.repeats * steps * directions * gates * hidden * (hidden + features), (units,))
