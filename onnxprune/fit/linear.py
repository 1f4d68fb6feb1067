"""What statistics and least squares ask of a layer, whatever operator it is: rows, a matrix, an offset, labels.

out[group] = rows(input)[group] @ matrix[group] + bias[group]. Convolutions and matrix products are such layers
(`fit.products`), and so are the gates of a recurrent operator (`fit.recurrent`). Knows rows, matrices and labels; which
operator it is, `fit.finding` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.expressions import Grid
from onnxprune.fit.walk import Walk
from onnxprune.model import Array, Model, Weight
from onnxprune.rewrite import take
from onnxprune.trace import Ids, Mask, Reduction, Trace

RESHAPED = "its output has another shape in the pruned graph"
"""Why a layer cannot be compared with the dense network: more than its channels changed."""


class Unsolvable(Exception):
    """Why a layer, or a node that looks like one, cannot be solved for."""


@dataclass(frozen=True)
class Shift:
    """A parameter whose change by d moves the layer's offset by `factor` * d. `node` reads it as its input `operand`;
    an operand that is absent is to be made. `laid` puts a vector [outputs] where the parameter has it, zeros beside."""

    node: NodeProto
    operand: int
    factor: Array
    laid: Callable[[Array], Array] = lambda moved: moved


DimsOf = Callable[[str], tuple[int | None, ...] | None]
"""The dims of a tensor, by its name; None where its rank is not known."""


@dataclass(frozen=True)
class Extent:
    """`rows` that an input makes, of a matrix [groups, columns, outputs]."""

    rows: int
    groups: int
    columns: int
    outputs: int


class Linear(Protocol):
    """A layer of one graph. An *input* is what `inputs` gives for a batch, an array or several; only the layer looks
    inside."""

    @property
    def index(self) -> int:
        """Of its node in the main graph."""

    @property
    def node(self) -> NodeProto:
        """Whose weights these are."""

    @property
    def groups(self) -> int:
        """Independent blocks of channels, or directions."""

    @property
    def y_axis(self) -> int | None:
        """The axis of a compared tensor along which its outputs lie; None where they are no single axis."""

    @property
    def bias(self) -> int | None:
        """Input index of the node's own bias, or None where it can have none."""

    @property
    def feeds_back(self) -> bool:
        """Whether what it reads depends on its own weights."""

    @property
    def out(self) -> str:
        """The tensor that it computes; "" where that is within the operator."""

    @property
    def title(self) -> str:
        """What the report calls it."""

    @property
    def roots(self) -> tuple[str, ...]:
        """The initializers that hold its matrix."""

    @property
    def key(self) -> Hashable:
        """Equal for layers that share the matrix."""

    def on(self, node: NodeProto) -> Self:
        """The same layer of a copy of the graph."""

    @property
    def data(self) -> str:
        """The tensor that its node reads."""

    def extent(self, dims: DimsOf) -> Extent | None:
        """How large it is where tensors have these dims; None where they are not known."""

    def read(self, model: Model) -> Array:
        """[groups, columns, outputs], float64."""

    def write(self, model: Model, matrix: Array) -> None:
        """Store what `read` would give back."""

    def grid(self, model: Model) -> Grid | None:
        """[groups, columns, outputs]: the values that can be stored; None where these are floats."""

    def folded(self, value: Array, outputs: int) -> Array | None:
        """[groups * outputs]: the offset that the bias, as the node has it, stands for; None where it is another."""

    def shift(self, outputs: int) -> Shift | None:
        """The node's own bias."""

    def inputs(self, walk: Walk) -> Sequence[Any]:
        """What it reads in every batch."""

    def sample(self, x: Any, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """About `most` of the rows that an input makes, as `rows` and `targets` count them."""

    def rows(self, x: Any, at: NDArray[np.int64]) -> Array:
        """[groups, rows, columns]"""

    def targets(self, y: Array, at: NDArray[np.int64]) -> Array:
        """[groups, rows, outputs]: what stands in a compared tensor, in the order of `rows`."""

    def dense(self, trace: Trace, kept: Mask, walk: Walk, name: str, outputs: int) -> Iterable[Array]:
        """Of every batch, what the compared tensor `name` was at kept positions in the graph that was not cut;
        Unsolvable where that cannot be said."""

    def units(self, reductions: Sequence[Reduction], rank: Callable[[str], int | None]) -> Ids | None:
        """[groups, channels]: the ids of the channels that it sums over; None where they have none."""


def restricted(trace: Trace, kept: Mask, name: str, value: Array) -> Array:
    """A dense activation at the kept positions of its labelled axes."""
    blocks = [b.at(value.shape) for b in trace.of(name)]
    if all(kept[b.ids].all() for b in blocks):
        return value
    return take(Weight.of(value), blocks, kept).array()
