"""Small changes to one node of a rewritten graph: its attributes, constants of its own, nodes beside it.

Knows the node and the kept ids of its tensors, no importance and no operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import Array, Model, Weight
from onnxprune.trace import computed
from onnxprune.trace.kept import kept_shape
from onnxprune.trace.labels import Block, Ids, Mask
from onnxprune.trace.tracing import Trace


def new_dims(dims: Sequence[int | None], blocks: Sequence[Block], kept: Mask) -> list[int | None]:
    """The static dims of a tensor after pruning."""
    out = list(dims)
    for b in blocks:
        shape = kept_shape(b.ids, kept)
        for axis, n, m in zip(b.axes, b.ids.shape, shape or b.ids.shape, strict=True):
            if out[axis] == n or dims[axis] == n:
                out[axis] = m
    return out


@dataclass
class NodeEditor:
    """One node of the rewritten graph: the sizes of its tensors after pruning, and small changes.

    mask: of all ids, those that are kept. node: the copy in `model`, which is the rewritten one, of node `index` of the
    trace. before, after: nodes to put beside it. gone: nodes, by index, that are to be dropped."""

    trace: Trace
    mask: Mask
    model: Model
    index: int
    node: NodeProto
    before: list[NodeProto]
    after: list[NodeProto]
    gone: set[int] = field(default_factory=set)

    @property
    def original(self) -> NodeProto:
        """The node as it was traced."""
        return self.trace.nodes[self.index]

    def kept(self, ids: Ids) -> Mask:
        """Which of the ids are kept, in their shape."""
        return self.mask[ids]

    def in_shape(self, i: int) -> list[int | None]:
        """Dims of input `i` after pruning; None where they are known at run time only."""
        name = self.original.input[i]
        return new_dims(self.dims(name), self.trace.of(name, (self.index, i)), self.mask)

    def out_shape(self, i: int) -> list[int | None]:
        """Dims of output `i` after pruning; None where they are known at run time only."""
        name = self.original.output[i]
        return new_dims(self.dims(name), self.trace.blocks.get(name, ()), self.mask)

    def in_size(self, i: int, axis: int) -> int:
        """Size of a labelled axis of input `i` after pruning."""
        size = self.in_shape(i)[axis]
        assert size is not None, "a labelled axis is static"
        return size

    def dims(self, name: str) -> list[int | None]:
        """Dims of a tensor before pruning; none where its rank is not known."""
        return list(self.trace.shapes.static(name) or ())

    def attr(self, name: str, value: Any) -> None:
        """Set an attribute; one that has that value stays where it is."""
        for a in self.node.attribute:
            if a.name == name and helper.get_attribute_value(a) == value:
                return
        self.drop(name)
        self.node.attribute.append(helper.make_attribute(name, value))

    def drop(self, name: str) -> None:
        """Leave out an attribute, where there is one of that name."""
        for k, a in enumerate(self.node.attribute):
            if a.name == name:
                del self.node.attribute[k]
                return

    def const(self, i: int, array: Array, onnx_type: int | None = None) -> None:
        """Input `i` becomes a constant of this node's own."""
        name = self.fresh(i, "pruned")
        self.model.weights[name] = Weight.of(array, onnx_type)
        while len(self.node.input) <= i:
            self.node.input.append("")
        self.node.input[i] = name

    def where(self, i: int, mask: NDArray[np.bool_], new: NDArray[np.int64]) -> None:
        """Input `i`, computed at run time, is overridden where `mask` is set."""
        name = self.fresh(i, "pruned")
        self.before += computed.overridden(self.model, name, self.node.input[i], mask, new)
        self.node.input[i] = name

    def override(self, i: int, mask: NDArray[np.bool_], new: int | NDArray[np.int64]) -> None:
        """Input `i` is `new` where `mask` is set: as a constant where it is known, else at run time."""
        source = self.node.input[i]
        weight = self.model.weights.get(source)
        known = weight.array() if weight is not None else self.trace.shapes.value(source)
        if known is None:
            self.where(i, mask, np.where(mask, new, 0).astype(np.int64))
        else:
            kind = TensorProto.INT32 if known.dtype == np.int32 else TensorProto.INT64
            self.const(i, np.where(mask, new, known.ravel()).astype(known.dtype), kind)

    def fresh(self, i: int, what: str) -> str:
        """A name for what takes the place of input `i`."""
        return self.model.fresh_name(f"{self.node.name}_{i}_{what}")

    def replace(self, nodes: Sequence[int], op_type: str, source: str, array: NDArray[np.int64], **attrs: Any) -> None:
        """`op_type` of `source` and a constant takes the place of `nodes`, of which this is the last: name, output and
        documentation are its own."""
        self.gone.update(nodes)
        node = NodeProto()
        node.CopyFrom(self.node)
        self.node = node
        self.after.append(node)
        node.op_type = op_type
        del node.attribute[:], node.input[1:]
        for name, value in attrs.items():
            self.attr(name, value)
        node.input[0] = source
        self.const(1, array)
