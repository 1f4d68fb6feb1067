"""Convolutions and matrix products as layers of `fit.linear`, and the list of all layers of a graph.

One small function a family of operators builds the `Layer`; everything after it (statistics, scores, refitting) speaks
of rows, columns and targets only. A column is one input channel at one kernel position, channel-major. Knows operators
and weights, no groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.expressions import Parameter, attribute, parameter
from onnxprune.fit.linear import Linear, Shift, Unfit, restricted
from onnxprune.fit.recurrent import recurrent
from onnxprune.fit.walk import Walk
from onnxprune.model import Model, traits
from onnxprune.trace import Ids, Mask, Reduction, Trace

Array = NDArray[Any]
Kind = TypeVar("Kind", bound=Linear)


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
    """

    index: int
    node: NodeProto
    data: str
    weight: Parameter
    matrix: Callable[[Array], Array] = field(repr=False)
    restore: Callable[[Array, tuple[int, ...]], Array] = field(repr=False)
    groups: int = 1
    window: Window | None = None
    x_axis: int = -1
    y_axis: int = -1
    bias: int | None = None
    scale: float = 1.0
    feeds_back: bool = False

    @property
    def out(self) -> str:
        return str(self.node.output[0])

    @property
    def title(self) -> str:
        return str(self.node.name)

    @property
    def roots(self) -> tuple[str, ...]:
        return (self.weight.root,)

    @property
    def key(self) -> tuple[str, ...]:
        return self.roots

    def on(self, node: NodeProto) -> Layer:
        return replace(self, node=node)

    def read(self, model: Model) -> Array:
        return self.matrix(self.weight.read(model))

    def write(self, model: Model, matrix: Array) -> None:
        self.weight.write(model, self.restore(matrix, self.weight.read(model).shape))

    def folded(self, value: Array, outputs: int) -> Array | None:
        if value.size not in (1, outputs) or value.shape[-1:] not in ((), (value.size,)):
            return None
        return np.broadcast_to(self.scale * value.ravel(), outputs)

    def shift(self, outputs: int) -> Shift | None:
        return None if self.bias is None else Shift(self.node, self.bias, np.full(outputs, self.scale))

    def inputs(self, walk: Walk) -> list[Array]:
        return walk.value(self.data)

    def sample(self, x: Array, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
        there = self.places(x)
        many = -(-most // len(x)) if self.window else most
        return np.sort(rng.choice(there, min(there, max(many, 1)), replace=False))

    def dense(self, trace: Trace, kept: Mask, walk: Walk, name: str, outputs: int) -> Iterable[Array] | str:
        if trace.shapes.static(name) is None:
            return "its output is new in the pruned graph"
        values = walk.value(name)
        if restricted(trace, kept, name, values[0]).shape[self.y_axis] != outputs * self.groups:
            return "its output has another shape in the pruned graph"
        return (restricted(trace, kept, name, y) for y in values)

    def units(self, reductions: Sequence[Reduction], rank: Callable[[str], int | None]) -> Ids | None:
        axis = self.x_axis % (rank(self.data) or 1)
        for r in reductions if rank(self.data) else ():
            if self.node.input[r.operand] == self.data and r.block and r.block.axes == (axis,):
                return r.block.ids.reshape(self.groups, -1)
        return None

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
        if self.window is None:
            return np.moveaxis(y, self.y_axis, -1).reshape(-1, y.shape[self.y_axis])[at][None]
        n, o = y.shape[:2]
        picked = y.reshape(n, self.groups, o // self.groups, -1)[..., at]
        return picked.transpose(1, 0, 3, 2).reshape(self.groups, n * len(at), o // self.groups)


Nodes = Mapping[str, NodeProto]
Handle = Callable[[int, NodeProto, Model, Nodes, Callable[[str], int | None]], Layer | None]


def _convolution(index: int, node: NodeProto, model: Model, made_by: Nodes, rank: Any) -> Layer | None:
    weight = parameter(node.input[1], model, made_by)
    if weight is None or attribute(node, "activation") is not None or len(node.input) > 3:
        return None
    shape = weight.read(model).shape
    n, groups = len(shape) - 2, int(attribute(node, "group", 1))
    kernel = tuple(shape[2:])
    pads = list(attribute(node, "pads", [0] * 2 * n))
    window = Window(
        kernel, tuple(attribute(node, "strides", [1] * n)), tuple(attribute(node, "dilations", [1] * n)),
        tuple(zip(pads[:n], pads[n:], strict=True)), str(attribute(node, "auto_pad", "NOTSET")),
    )  # fmt: skip

    def matrix(w: Array) -> Array:
        return w.reshape(groups, w.shape[0] // groups, -1).transpose(0, 2, 1)

    def restore(m: Array, to: tuple[int, ...]) -> Array:
        return m.transpose(0, 2, 1).reshape(to)

    if node.op_type == "ConvTranspose":
        if window.auto != "NOTSET" or attribute(node, "output_shape") is not None:
            return None
        window = Window(kernel, (1,) * n, window.dilations, window.pads, "NOTSET", window.strides,
                        tuple(attribute(node, "output_padding", [0] * n)))  # fmt: skip
        turn = tuple(range(2, 2 + n))

        def matrix(w: Array) -> Array:
            flipped = np.flip(w, turn).reshape(groups, w.shape[0] // groups, w.shape[1], -1)
            return flipped.transpose(0, 1, 3, 2).reshape(groups, -1, w.shape[1])

        def restore(m: Array, to: tuple[int, ...]) -> Array:
            flipped = m.reshape(groups, to[0] // groups, -1, to[1]).transpose(0, 1, 3, 2)
            return np.flip(flipped.reshape(to), turn)

    return Layer(index, node, node.input[0], weight, matrix, restore, groups, window, 1, 1, 2)


def _gemm(index: int, node: NodeProto, model: Model, made_by: Nodes, rank: Any) -> Layer | None:
    weight = parameter(node.input[1], model, made_by)
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    if weight is None or attribute(node, "activation") is not None or not alpha or not beta:
        return None
    turned = bool(attribute(node, "transB", 0))
    return Layer(
        index, node, node.input[0], weight,
        lambda w: (alpha * (w.T if turned else w))[None],
        lambda m, to: (m[0].T if turned else m[0]) / alpha,
        x_axis=0 if attribute(node, "transA", 0) else 1, y_axis=1, bias=2, scale=beta,
    )  # fmt: skip


def _matmul(index: int, node: NodeProto, model: Model, made_by: Nodes, rank: Any) -> Layer | None:
    for side in (1, 0):
        weight = parameter(node.input[side], model, made_by)
        if weight is None or len(weight.read(model).shape) != 2:
            continue
        if parameter(node.input[1 - side], model, made_by) is not None or (rank(node.input[1 - side]) or 0) < 2:
            return None
        if side == 1:
            return Layer(index, node, node.input[0], weight, lambda w: w[None], lambda m, to: m[0])
        return Layer(
            index, node, node.input[1], weight, lambda w: w.T[None], lambda m, to: m[0].T, x_axis=-2, y_axis=-2
        )
    return None


HANDLES: dict[str, Handle] = {
    "Conv": _convolution, "ConvTranspose": _convolution, "FusedConv": _convolution, "Gemm": _gemm, "FusedGemm": _gemm,
    "MatMul": _matmul,
}  # fmt: skip


def layers(model: Model, rank: Callable[[str], int | None], skipped: dict[str, str] | None = None) -> list[Linear]:
    """Every linear map of an activation by a parameter in the main graph, in order. `skipped` collects the nodes that
    hold one which cannot be told apart, with the reason."""
    nodes = list(model.proto.graph.node)
    made_by = {o: n for n in nodes for o in n.output}
    found: list[Linear] = []
    for index, node in enumerate(nodes):
        handle = HANDLES.get(node.op_type)
        layer = handle(index, node, model, made_by, rank) if handle else None
        if layer is not None and layer.data not in model.weights:
            found.append(layer)
        if node.op_type in traits.GATES:
            try:
                found += recurrent(index, node, model, made_by)
            except Unfit as why:
                (skipped if skipped is not None else {})[node.name] = str(why)
    return found


def shared(found: Sequence[Kind]) -> list[list[Kind]]:
    """Layers by the matrix that they share, in the order of the last of each."""
    by_key: dict[Hashable, list[Kind]] = defaultdict(list)
    for layer in found:
        by_key[layer.key].append(layer)
    return sorted(by_key.values(), key=lambda members: members[-1].index)
