"""The weight of query, key and value side by side inside com.microsoft Attention or QAttention: what it makes is no
tensor of the graph, but it is x @ W + b, and x is.

Knows two operators and their weight, no units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from onnxprune.fit.codes import operand
from onnxprune.fit.expressions import Parameter
from onnxprune.fit.linear import RESHAPED, DimsOf, Extent, Unsolvable
from onnxprune.fit.products import Layer
from onnxprune.fit.walk import Walk
from onnxprune.model import Array, Model
from onnxprune.trace import Mask, Trace

X, WEIGHT, BIAS = range(3)


@dataclass(frozen=True)
class Packed(Layer):
    """A product with the weight [inputs, outputs] of a node, as a layer whose output only the node itself sees."""

    weight_shape: tuple[int, int] = (0, 0)

    @property
    def out(self) -> str:
        """None that the graph knows."""
        return ""

    def dense(self, trace: Trace, kept: Mask, walk: Walk, name: str, outputs: int) -> Iterable[Array]:
        """What the weight of the graph that was not cut makes of what it reads there, at the columns that were kept;
        Unsolvable where the cut changed more of them."""
        known = next((o for o in self.node.output if o), "")
        if known not in walk.made_by:
            raise Unsolvable("its output is new in the pruned graph")
        k = walk.made_by[known]
        twin = walk.nodes[k]
        weight = operand(twin, WEIGHT, walk.model, walk.makers)
        columns = next((b for b in trace.of(twin.input[WEIGHT], (walk.first + k, WEIGHT)) if b.axes == (1,)), None)
        if weight is None or columns is None or kept[columns.ids].sum() != outputs:
            raise Unsolvable(RESHAPED)
        alive = np.flatnonzero(kept[columns.ids])
        matrix = weight.read(walk.model)[:, alive].astype(np.float32)
        bias = walk.model.weights[twin.input[BIAS]].array()[alive] if any(twin.input[BIAS:3]) else np.float32(0)
        return (np.asarray(x.astype(np.float32) @ matrix + bias) for x in walk.real(twin.input[X]))

    def extent(self, dims: DimsOf) -> Extent | None:
        """See `linear.Linear`."""
        x = dims(self.data)
        if x is None or len(x) != 3:
            return None
        columns, outputs = self.weight_shape
        return Extent((x[0] or 1) * (x[1] or 1), 1, columns, outputs)

    def on(self, node: NodeProto) -> Packed:
        """The same of a copy of the graph."""
        return replace(self, node=node)


def packed(index: int, node: NodeProto, weight: Parameter | None, model: Model) -> Packed | None:
    """The layer in a com.microsoft Attention or QAttention; None where its weight is computed, or the bias is."""
    if weight is None or (any(node.input[BIAS:3]) and node.input[BIAS] not in model.weights):
        return None
    rows, columns = weight.shape(model)
    return Packed(
        index,
        node,
        node.input[X],
        weight,
        lambda w: w[None],
        lambda m, to: m[0],
        bias=BIAS,
        weight_shape=(rows, columns),
    )
