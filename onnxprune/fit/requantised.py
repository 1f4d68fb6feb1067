"""The matrix of a MatMulNBits, read and written: new numbers are quantised block by block.

What each output sums is rounded in order, and what rounding one number does to the output the later ones make up for
(GPTQ: Frantar et al. 2022, arXiv 2210.17323, algorithm 1); scale and zero point of a block are chosen when it is
reached. Knows one operator and arrays, no units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.few_bits import Coded, coded
from onnxprune.fit.rounding import Nearest, damped, fed_back, feedback
from onnxprune.model import Array, Model, Weight, attribute
from onnxprune.trace import Cells, Steps, codes_of

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class BlockGrid:
    """Scale and zero point of every block, both [outputs, blocks], and the largest code."""

    scale: Numbers
    zero: Numbers
    top: int

    def at(self, block: int) -> tuple[Numbers, Numbers]:
        """Those of one block, [outputs] each."""
        return self.scale[:, block], self.zero[:, block]


@dataclass(frozen=True)
class FewBits:
    """The weight of `node`, a MatMulNBits, as a parameter [inputs, outputs]."""

    node: NodeProto
    table: Coded

    @staticmethod
    def of(node: NodeProto, model: Model) -> FewBits | None:
        """None where a part of it is computed, or its blocks lie in an order of their own."""
        table = coded(node, 1)
        ordered = len(node.input) > 4 and bool(node.input[4])
        if table is None or ordered or not table.known(model):
            return None
        return FewBits(node, table)

    @property
    def root(self) -> str:
        """The initializer that holds the codes."""
        return str(self.node.input[1])

    @property
    def roots(self) -> tuple[str, ...]:
        """All that its numbers are made of."""
        return tuple(str(name) for name in self.node.input[1:4] if name)

    def shape(self, model: Model) -> tuple[int, ...]:
        """[inputs, outputs], without reading it."""
        return int(attribute(self.node, "K")), int(attribute(self.node, "N"))

    def read(self, model: Model) -> Array:
        """Its numbers, float64."""
        return self.table.numbers(model)[:, : self.shape(model)[0]].T.astype(np.float64)

    def write(self, model: Model, value: Array, root: str | None = None) -> None:
        """Store the nearest codes, by the scales that it has."""
        grid = self.grid(model)
        places = np.arange(len(value)) // self.table.each
        scale, zero = grid.scale[:, places], grid.zero[:, places]
        self._store(model, codes_of(value.T, scale, zero, grid.top))

    def grid(self, model: Model) -> BlockGrid:
        """The scales and zero points that it has."""
        scale, zero = self.table.grids(model)
        return BlockGrid(scale.astype(np.float64), zero.astype(np.float64), (1 << self.table.bits) - 1)

    def steps(self, model: Model) -> Steps:
        """How scales and zero points are chosen for it."""
        return Steps(self.table.bits, len(self.roots) > 2, model.weights[self.roots[1]].dtype)

    def requantised(self, model: Model, value: Numbers, gram: Numbers) -> tuple[Numbers, BlockGrid]:
        """What is nearest to `value` [inputs, outputs] by the second moments [inputs, inputs] of what it multiplies,
        and its scales and zero points."""
        weigh, each = np.maximum(np.diag(gram), 1e-12), self.table.each
        grid, steps = self.grid(model), self.steps(model)
        new = replace(grid, scale=grid.scale.copy(), zero=grid.zero.copy())

        def reached(part: slice, rows: Numbers) -> Nearest:
            block = part.start // each
            scale, zero = steps.chosen(rows.T, weigh[part], grid.at(block))
            new.scale[:, block], new.zero[:, block] = scale, zero
            return lambda _, row: (codes_of(row[:, None], scale[:, None], zero[:, None], grid.top)[:, 0] - zero) * scale

        return fed_back(value, _feedback(gram), reached, each), new

    def set_grid(self, model: Model, grid: BlockGrid) -> None:
        """Store other scales and zero points."""
        _, scales, *zeros = self.roots
        held = model.weights[scales]
        model.weights[scales] = Weight.of(grid.scale.astype(held.dtype).reshape(held.shape), held.onnx_type)
        for name in zeros:
            held = model.weights[name]
            if held.dtype == np.uint8:
                cells = Cells(grid.zero.shape, self.table.bits, len(held.shape) == 1)
                model.weights[name] = Weight.of(cells.stored(grid.zero.astype(np.uint8)))
            else:
                model.weights[name] = Weight.of(grid.zero.astype(held.dtype).reshape(held.shape), held.onnx_type)

    def _store(self, model: Model, codes: Array) -> None:
        """Codes [outputs, inputs]; what fills the last block stays."""
        held = self.table.codes(model).copy()
        held[:, : codes.shape[1]] = codes
        shape = model.weights[self.root].shape
        model.put(self.root, Cells(held.shape, self.table.bits).stored(held).reshape(shape))


def _feedback(gram: Numbers) -> Numbers:
    """How later columns make up for each column (see `rounding.feedback`); that none does where there is no factor."""
    try:
        return feedback(damped(gram))
    except (np.linalg.LinAlgError, ValueError):
        return np.eye(len(gram))
