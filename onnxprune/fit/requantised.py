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
from onnxprune.fit.rounding import damped, feedback
from onnxprune.model import Array, Model, Weight, attribute
from onnxprune.trace import Cells

Numbers = NDArray[np.float64]
SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of the range of a block that its codes may be spread over: what is beyond is clipped."""


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
        self._store(model, _codes(value.T, scale, zero, grid.top))

    def grid(self, model: Model) -> BlockGrid:
        """The scales and zero points that it has."""
        scale, zero = self.table.grids(model)
        return BlockGrid(scale.astype(np.float64), zero.astype(np.float64), (1 << self.table.bits) - 1)

    def requantised(self, model: Model, value: Numbers, gram: Numbers) -> tuple[Numbers, BlockGrid]:
        """What is nearest to `value` [inputs, outputs] by the second moments [inputs, inputs] of what it multiplies,
        and its scales and zero points."""
        factor, weigh = _feedback(gram), np.maximum(np.diag(gram), 1e-12)
        grid = self.grid(model)
        new = replace(grid, scale=grid.scale.copy(), zero=grid.zero.copy())
        left, out = value.T.astype(np.float64), np.empty(value.T.shape)
        for block, start in enumerate(range(0, len(value), self.table.each)):
            part = slice(start, min(start + self.table.each, len(value)))
            scale, zero = self._chosen(left[:, part], weigh[part], grid.at(block), model)
            new.scale[:, block], new.zero[:, block] = scale, zero
            errors = np.empty((len(out), part.stop - start))
            for k in range(start, part.stop):
                codes = _codes(left[:, k : k + 1], scale[:, None], zero[:, None], grid.top)
                out[:, k] = (codes[:, 0] - zero) * scale
                errors[:, k - start] = (left[:, k] - out[:, k]) / factor[k, k]
                left[:, k + 1 : part.stop] -= np.outer(errors[:, k - start], factor[k, k + 1 : part.stop])
            left[:, part.stop :] -= errors @ factor[part, part.stop :]
        return out.T, new

    def _chosen(
        self, part: Numbers, weigh: Numbers, own: tuple[Numbers, Numbers], model: Model
    ) -> tuple[Numbers, Numbers]:
        """Scale and zero point [outputs] for numbers [outputs, block]: those that it has, or that part of its range
        which moves the outputs least."""
        top = (1 << self.table.bits) - 1
        best, least = own, _moved(part, weigh, *own, top)
        for share in SHRUNK:
            tried = self._as_stored(*self._spread(share * part.min(1), share * part.max(1), top), model)
            moved = _moved(part, weigh, *tried, top)
            better = moved < least
            best = np.where(better, tried[0], best[0]), np.where(better, tried[1], best[1])
            least = np.minimum(least, moved)
        return best

    def _spread(self, low: Numbers, high: Numbers, top: int) -> tuple[Numbers, Numbers]:
        """Scale and zero point by which codes reach from `low` to `high`, and hold zero."""
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        if len(self.roots) < 3:  # without zero points the middle code is zero
            middle = (top + 1) // 2
            return np.maximum(-low / middle, high / (top - middle)), np.full(len(low), float(middle))
        scale = (high - low) / top
        return scale, np.rint(np.divide(-low, scale, out=np.zeros(len(low)), where=scale > 0))

    def _as_stored(self, scale: Numbers, zero: Numbers, model: Model) -> tuple[Numbers, Numbers]:
        kind = model.weights[self.roots[1]].dtype
        return np.maximum(scale, 1e-8).astype(kind).astype(np.float64), zero

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


def _codes(value: Array, scale: Array, zero: Array, top: int) -> Array:
    steps = np.divide(value, scale, out=np.zeros(value.shape), where=scale != 0)
    return np.asarray(np.clip(np.rint(steps + zero), 0, top))


def _moved(part: Numbers, weigh: Numbers, scale: Numbers, zero: Numbers, top: int) -> Numbers:
    """[outputs]: squares of what rounding does, as far as each input counts."""
    found = (_codes(part, scale[:, None], zero[:, None], top) - zero[:, None]) * scale[:, None]
    return np.asarray(np.square(found - part) @ weigh)


def _feedback(gram: Numbers) -> Numbers:
    """How later columns make up for each column (see `rounding.feedback`); that none does where there is no factor."""
    try:
        return feedback(damped(gram))
    except (np.linalg.LinAlgError, ValueError):
        return np.eye(len(gram))
