"""Convolutions and matrix products as layers of `fit.linear`: their rows, columns and targets.

A column is one input channel at one kernel position, channel-major. Knows windows and weights, no groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.expressions import Grid, Parameter
from onnxprune.fit.few_bits import Stack
from onnxprune.fit.linear import RESHAPED, DimsOf, Extent, Shift, Unsolvable, restricted
from onnxprune.fit.requantised import FewBits
from onnxprune.fit.unclipped import unclipped
from onnxprune.fit.walk import Walk
from onnxprune.model import Array, Model
from onnxprune.trace import Ids, Mask, Reduction, Trace


@dataclass(frozen=True)
class Window:
    """How a convolution slides: one entry a spatial axis; `pads` are (begin, end) pairs, or `auto` decides them.

    `stuff`: zeros go between the inputs and the kernel is flipped (a transposed convolution, as a plain one)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    auto: str = "NOTSET"
    stuff: tuple[int, ...] = ()
    extra: tuple[int, ...] = ()

    def padded(self, x: Array) -> Array:
        """x [N, C, *sizes] with all zeros that the kernel meets, between the inputs and around them."""
        if self.stuff:
            dims = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], self.stuff, strict=True)]
            wide = np.zeros((*x.shape[:2], *dims), x.dtype)
            wide[(slice(None), slice(None), *(slice(None, None, s) for s in self.stuff))] = x
            x = wide
        reach = [d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True)]
        if self.stuff:
            pads = [(r - a, r - b + e) for r, (a, b), e in zip(reach, self.pads, self.extra, strict=True)]
        elif self.auto.startswith("SAME"):
            total = [max(0, (-(-n // s) - 1) * s + r + 1 - n)
                     for n, s, r in zip(x.shape[2:], self.strides, reach, strict=True)]  # fmt: skip
            low = [t // 2 if self.auto == "SAME_UPPER" else -(-t // 2) for t in total]
            pads = [(a, t - a) for a, t in zip(low, total, strict=True)]
        else:
            pads = [(0, 0)] * len(reach) if self.auto == "VALID" else list(self.pads)
        x = np.pad(x, [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in pads)])
        cut = [slice(-min(a, 0), n + min(b, 0)) for (a, b), n in zip(pads, x.shape[2:], strict=True)]
        return x[(slice(None), slice(None), *cut)]

    def results(self, dims: Sequence[int]) -> list[int]:
        """Output sizes for padded input sizes."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        return [(n - r) // s + 1 for n, r, s in zip(dims, reach, self.strides, strict=True)]


@dataclass(frozen=True)
class Layer:
    """`node` computes `out` from `data` with a weight whose layout `matrix` and `restore` know (see `linear.Linear`).

    groups: independent blocks of channels. window: None for a matrix product. x_axis, y_axis: the feature axes.
    bias: input index of the node's own bias, or None where it can have none. scale: factor on bias (Gemm's beta).
    end: what it computes, where that is not what the node gives.
    """

    index: int
    node: NodeProto
    data: str
    weight: Parameter | FewBits | Stack
    matrix: Callable[[Array], Array] = field(repr=False)
    restore: Callable[[Array, tuple[int, ...]], Array] = field(repr=False)
    groups: int = 1
    window: Window | None = None
    x_axis: int = -1
    y_axis: int = -1
    bias: int | None = None
    scale: float = 1.0
    end: str = ""
    feeds_back: bool = False

    @property
    def out(self) -> str:
        """The node's output; of a product of integers, what has its scale."""
        return self.end or str(self.node.output[0])

    @property
    def title(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def roots(self) -> tuple[str, ...]:
        """The initializers that hold the weight."""
        return self.weight.roots

    @property
    def key(self) -> tuple[str, ...]:
        """Layers with the same initializers share the matrix."""
        return self.roots

    def on(self, node: NodeProto) -> Layer:
        """The same layer of a copy of the graph."""
        return replace(self, node=node)

    def read(self, model: Model) -> Array:
        """[groups, columns, outputs], float64."""
        return self.matrix(self.weight.read(model))

    def write(self, model: Model, matrix: Array) -> None:
        """Store the nearest values that the initializer can hold, in its layout."""
        self.weight.write(model, self.restore(matrix, self.weight.shape(model)))

    def grid(self, model: Model) -> Grid | None:
        """[groups, columns, outputs]: the values that can be stored; None where these are floats, or of blocks."""
        grid = None if isinstance(self.weight, FewBits) else self.weight.grid(model)
        return None if grid is None else grid.map(self.matrix)

    def folded(self, value: Array, outputs: int) -> Array | None:
        """[groups * outputs]: the bias times `scale`; None where it varies along any other axis."""
        if value.size not in (1, outputs) or value.shape[-1:] not in ((), (value.size,)):
            return None
        return np.broadcast_to(self.scale * value.ravel(), outputs)

    def shift(self, outputs: int) -> Shift | None:
        """The node's own bias, which `scale` multiplies."""
        return None if self.bias is None else Shift(self.node, self.bias, np.full(outputs, self.scale))

    def inputs(self, walk: Walk) -> list[Array]:
        """What it reads in every batch, of a convolution with channels behind the batch."""
        return [np.moveaxis(x, self.x_axis, 1) if self.window else x for x in walk.real(self.data)]

    def sample(self, x: Array, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Positions of a convolution's output, which every sample of the batch has; rows of a matrix product."""
        there = self.places(x)
        many = -(-most // len(x)) if self.window else most
        return np.sort(rng.choice(there, min(there, max(many, 1)), replace=False))

    def dense(self, trace: Trace, kept: Mask, walk: Walk, name: str, outputs: int) -> Iterable[Array]:
        """The tensor `name` of every batch at the kept positions; Unsolvable where the cut changed more of it."""
        if trace.shapes.static(name) is None:
            raise Unsolvable("its output is new in the pruned graph")
        values = (restricted(trace, kept, name, y) for y in unclipped(walk, name))
        first = next(values)
        if first.shape[self.y_axis] != outputs * self.groups:
            raise Unsolvable(RESHAPED)
        return chain([first], values)

    def units(self, reductions: Sequence[Reduction], rank: Callable[[str], int | None]) -> Ids | None:
        """[groups, channels]: the ids of the axis that the node itself sums over."""
        axis = self.x_axis % (rank(self.data) or 1)
        for r in reductions if rank(self.data) else ():
            if self.node.input[r.operand] == self.data and r.block and r.block.axes == (axis,):
                return r.block.ids.reshape(self.groups, -1)
        return None

    def extent(self, dims: DimsOf) -> Extent | None:
        """See `linear.Linear`."""
        x, y = dims(self.data), dims(self.out)
        if not x or not y:
            return None
        channels, outputs = x[self.x_axis] or 1, y[self.y_axis] or 1
        rows = prod(n or 1 for n in y) // outputs
        return Extent(rows, self.groups, channels // self.groups * self.taps(), outputs // self.groups)

    def taps(self) -> int:
        """Columns of one input channel."""
        return prod(self.window.kernel) if self.window else 1

    def places(self, x: Array) -> int:
        """How many rows an input makes: of one sample (convolution), of all (matrix product)."""
        if self.window is None:
            return int(x.size // x.shape[self.x_axis])
        return int(prod(self.window.results(self.window.padded(x[:1, :1]).shape[2:])))

    def rows(self, x: Array, at: NDArray[np.int64]) -> Array:
        """[groups, rows, columns]: the inputs of the chosen output positions, sample-major."""
        if self.window is None:
            flat = np.moveaxis(x, self.x_axis, -1).reshape(-1, x.shape[self.x_axis])
            return flat[at][None]
        padded = self.window.padded(x)
        n, c, *dims = padded.shape
        where = np.stack(np.unravel_index(at, self.window.results(dims)))
        starts = [w * s for w, s in zip(where, self.window.strides, strict=True)]
        steps = np.array(list(product(*(range(k) for k in self.window.kernel))), np.int64).T
        flat_index = np.zeros((len(at), steps.shape[1]), np.int64)
        for axis, size in enumerate(dims):
            flat_index = flat_index * size + starts[axis][:, None] + steps[axis][None] * self.window.dilations[axis]
        picked = padded.reshape(n, self.groups, c // self.groups, -1)[..., flat_index]  # n g c P k
        return np.ascontiguousarray(picked.transpose(1, 0, 3, 2, 4)).reshape(
            self.groups, n * len(at), c // self.groups * self.taps()
        )

    def targets(self, y: Array, at: NDArray[np.int64]) -> Array:
        """[groups, rows, outputs]: what stands at the chosen output positions, in the order of `rows`."""
        return self.split(self.picked(y, at))

    def picked(self, y: Array, at: NDArray[np.int64]) -> Array:
        """[samples, channels, positions]: what stands at the chosen positions; those of a matrix product are of one
        sample."""
        if self.window is None:
            return np.moveaxis(y, self.y_axis, -1).reshape(-1, y.shape[self.y_axis])[at].T[None]
        first = np.moveaxis(y, self.y_axis, 1)
        return first.reshape(*first.shape[:2], -1)[..., at]

    def split(self, picked: Array) -> Array:
        """[groups, rows, outputs] of what was `picked`, sample-major."""
        n, o, p = picked.shape
        return picked.reshape(n, self.groups, o // self.groups, p).transpose(1, 0, 3, 2).reshape(self.groups, n * p, -1)


def depthwise(layer: object, model: Model) -> bool:
    """Whether each channel of a layer is made of one other, so that it makes up for none that goes elsewhere."""
    return isinstance(layer, Layer) and layer.groups > 1 and layer.read(model).shape[1] == layer.taps()
