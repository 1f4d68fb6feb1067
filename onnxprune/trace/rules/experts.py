"""Mixtures of experts as one operator: experts are rows that go whole, the hidden units in them columns.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxprune.trace.cells import BYTE, Cells
from onnxprune.trace.labels import KEPT, Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import ranks_known
from onnxprune.trace.rules.inputs import Experts

FIXED = "experts that read an axis of fixed size"
Layers = tuple[Experts.Layer, Experts.Layer, Experts.Layer]


def moe(op: Op) -> None:
    """com.microsoft MoE."""
    _mixture(op, Experts.FLOAT, 1, 1)


def quantised_moe(op: Op) -> None:
    """com.microsoft QMoE: weights of a few bits, with a scale for every row, or for every block of its columns. What
    shares a byte or a scale goes together."""
    if op.has(Experts.WEIGHTING):
        return op.freeze("experts are weighed by an input of their own")
    per = BYTE // int(op.attr("expert_weight_bits", 4))
    _mixture(op, Experts.CODED, per, int(op.attr("block_size", 0)) or per)


@dataclass(frozen=True)
class _Mixture:
    """The ids of all axes. units [experts, runs] of hidden units, inputs [runs] of what comes in, `run` neighbours in
    each; outputs; experts: of the rows of units. rows [experts, rows]: what the first layer makes, which is twice the
    units where gates lie beside them. per: how many numbers share a byte."""

    units: Ids
    inputs: Ids
    outputs: Ids
    experts: Ids
    rows: Ids
    run: int
    per: int

    @property
    def columns(self) -> Ids:
        """[width]: of what comes in."""
        return np.repeat(self.inputs, self.run)[: self.outputs.size]

    @property
    def hidden(self) -> Ids:
        """[experts, hidden units]"""
        return np.repeat(self.units, self.run, 1)


def _mixture(op: Op, layers: Layers, per: int, run: int) -> None:
    """per, run: how many numbers share a byte, and a scale or a byte."""
    up, down, gate = layers
    given = [i for layer in layers for i in layer if i is not None and op.has(i)]
    if not ranks_known(op, [Experts.X, Experts.ROUTER, up.weight, down.weight]):
        return
    its = _ids(op, up.weight, down.weight, per, run)
    if its is None or not all(map(op.is_parameter, given)):
        return op.freeze("the sizes of its experts are not known, or its weights are computed")
    last = len(op.dims(Experts.X)) - 1
    for i, axis in ((Experts.ROUTER, 0), *((Experts.X, axis) for axis in range(last))):
        op.freeze_axis(i, axis, "tokens are told apart")
    op.labels.rectangle(its.units)
    op.labels.rectangle(np.stack([its.columns, its.outputs]))  # what comes in is as wide as what goes out
    op.note_least(its.experts, int(op.attr("k", 1)))
    op.meet(Experts.X, [""] * last + ["c"], ["c"], [Block((0,), its.columns)], FIXED)
    op.meet(Experts.ROUTER, ["", "e"], ["e"], [Block((0,), its.experts)], FIXED)
    op.note_sum(Experts.X, Block((last,), its.columns))
    _makes(op, up, its, its.rows)
    _reads(op, down, its)
    if op.has(gate.weight):
        _makes(op, gate, its, its.hidden)
    whole = [(i, Block((0,), its.experts)) for i in given]
    op.note_gather([(Experts.ROUTER, Block((1,), its.experts)), *whole], [])
    op.set(0, [Block((last,), its.outputs)])
    _note_macs(op, its, op.has(gate.weight))


def _ids(op: Op, up: int, down: int, per: int, run: int) -> _Mixture | None:
    """None where the sizes are not known, or the weights lie in an order of their own."""
    sizes = (*op.dims(up)[:2], *op.dims(down)[1:], op.dims(Experts.X)[-1], op.dims(Experts.ROUTER)[-1])
    if None in sizes:
        return None
    experts, rows, outputs, stored, width, routed = (int(n or 0) for n in sizes)
    hidden = stored * per
    fusion = int(op.attr("swiglu_fusion", 0)) if rows == 2 * hidden else 0
    known = outputs == width and experts == routed and hidden % run == 0
    if not known or (rows, fusion) not in ((hidden, 0), (2 * hidden, 1), (2 * hidden, 2)):
        return None
    units = op.fresh("hidden", (experts, hidden // run))
    each = np.repeat(units, run, 1)
    made = (each, np.repeat(each, 2, 1), np.tile(each, (1, 2)))[fusion]  # side by side, or one after the other
    inputs = op.fresh("inputs", (-(-width // run),))
    return _Mixture(units, inputs, op.fresh("outputs", (outputs,)), op.labels.derive(units), made, run, per)


def _makes(op: Op, layer: Experts.Layer, its: _Mixture, rows: Ids) -> None:
    """A layer from what comes in to hidden units. One that goes makes zero, of which every activation makes zero."""
    made = Block((0, 1), rows)
    _own(op, layer.weight, [made, Block((2,), its.columns)], its, (*rows.shape, its.outputs.size))
    for i in (layer.bias, layer.scales, layer.zeros):
        if i is not None and op.has(i):
            blockwise = len(op.dims(i)) == 3
            blocks = [made, Block((2,), its.inputs)] if blockwise else [made]
            packed = i == layer.zeros
            _own(op, i, blocks, its if packed else None, (*rows.shape, its.inputs.size)[: len(op.dims(i))])
    for i in (layer.bias, layer.weight if layer.scales is None else layer.scales):
        if i is not None and op.has(i):
            op.note_sum(i, made)


def _reads(op: Op, layer: Experts.Layer, its: _Mixture) -> None:
    """The layer from hidden units to what goes out."""
    made, grid = Block((1,), its.outputs), (its.experts.size, its.outputs.size)
    _own(op, layer.weight, [made, Block((0, 2), its.hidden)], its, (*grid, its.hidden.shape[1]))
    for i in (layer.bias, layer.scales, layer.zeros):
        if i is not None and op.has(i):
            blockwise = len(op.dims(i)) == 3
            blocks = [made, Block((0, 2), its.units) if blockwise else Block((0,), its.experts)]
            _own(op, i, blocks, its if i == layer.zeros else None, (*grid, its.units.shape[1])[: len(op.dims(i))])


def _own(op: Op, i: int, blocks: Sequence[Block], packed: _Mixture | None, shape: tuple[int, ...]) -> None:
    """Parameter `i` of so many numbers, several in a byte where it is `packed`."""
    cells = Cells(shape, BYTE // packed.per) if packed is not None and packed.per > 1 else None
    op.own(i, *blocks, cells=cells)


def _note_macs(op: Op, its: _Mixture, gated: bool) -> None:
    """Every token goes through `k` experts, however many there are."""
    sample = op.trace.shapes.of_sample(op.inputs[Experts.X]) or ()
    tokens = prod(float(n or 1) for n in sample[:-1]) * int(op.attr("k", 1))
    experts, hidden = its.hidden.shape
    inside = (its.units, np.full((experts, 1), KEPT))  # the share of the units in those that are left
    rows = its.rows.shape[1] + hidden * gated
    width = its.outputs.size
    op.note_macs([(tokens * rows * width, (its.columns, *inside)), (tokens * hidden * width, (its.outputs, *inside))])
