"""The masked original: what a rewritten graph has to equal.

Every reduction over a labelled axis sees kept positions only: sums are masked with zeros, statistics are taken over
gathered positions and scattered back. Activations stay what they were, so no mask can produce a NaN; what a removed
channel holds no longer matters once nothing sums over it, be it infinite. Knows reductions and what was kept, no
importance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import FLOATS, HALVES, Model, Weight, every_node, opset, rearranged
from onnxprune.trace import Block, Branch, Dims, Editor, Mask, Reduction, Trace, kept_shape, positions


def masked(trace: Trace, kept: Mask, sizes: Mapping[str, Dims]) -> Model:
    """The masked original for a run in which the tensors have these sizes."""
    masking = _Masking(trace, kept, sizes, trace.model.copy())
    masking.reductions()
    del masking.model.skeleton.graph.value_info[:]
    return masking.model


@dataclass
class _Masking:
    """The graph that is masked, `model`, at these `sizes`."""

    trace: Trace
    kept: Mask
    sizes: Mapping[str, Dims]
    model: Model

    def reductions(self) -> None:
        """Mask what every reduction sees, a node at a time."""
        nodes = every_node(self.model.skeleton.graph)
        before: dict[int, list[NodeProto]] = defaultdict(list)
        after: dict[int, list[NodeProto]] = defaultdict(list)
        edits: dict[int, list[Callable[[Editor], None]]] = defaultdict(list)
        for index, edit in self.trace.edits:
            edits[index].append(edit)
        for r in self.trace.reductions:
            if r.kind == "sum":
                self._mask_sum(r, nodes[r.node], before[r.node])
            elif not all(self.kept[b.ids].all() for _, b in (*r.ins, *r.outs)):
                self._gather_statistics(r, nodes[r.node], before[r.node], after[r.node])
                editor = Editor(self.trace, self.kept, self.model, r.node, nodes[r.node], [], [])
                for edit in edits.pop(r.node, ()):  # once a node: its sizes are those of what is gathered
                    edit(editor)
        for branch in self.trace.dropped(self.kept):
            self._silence(branch, nodes[branch.node], before[branch.node])
        rearranged(self.model.skeleton.graph, before, after)

    def _silence(self, branch: Branch, node: NodeProto, before: list[NodeProto]) -> None:
        """Give the sum at the end of a residual branch nothing of it."""
        name = self.trace.nodes[branch.node].input[branch.operand]
        source = node.input[branch.operand]
        node.input[branch.operand] = self._filled(source, name, np.zeros((), bool), "", before)

    def _mask_sum(self, r: Reduction, node: NodeProto, before: list[NodeProto]) -> None:
        """Give the node its operand with zeros, or what else `r` fills in, where a position is removed."""
        assert r.block is not None
        if self.kept[r.block.ids].all():
            return
        name = self.trace.nodes[r.node].input[r.operand]
        mask = self._mask(name, self._at(name, r.block))
        node.input[r.operand] = self._filled(node.input[r.operand], name, mask, r.fill, before)

    def _gather_statistics(
        self, r: Reduction, node: NodeProto, before: list[NodeProto], after: list[NodeProto]
    ) -> None:
        """Give the node kept positions only, and what it makes of these its places back."""
        for i, block in r.ins:
            block = self._at(self.trace.nodes[r.node].input[i], block)
            node.input[i] = self._gathered(node.input[i], block, before)
        for o, block in r.outs:
            name = node.output[o]
            node.output[o] = self.model.fresh_name(name + "_kept")
            self._scattered(node.output[o], name, self._at(name, block), after)

    def _at(self, name: str, block: Block) -> Block:
        """The block of a tensor as it is at these sizes."""
        static = self.trace.shapes.static(name) or ()
        return block.at([n if k is None else None for k, n in zip(static, self._run(name), strict=True)])

    def _run(self, name: str) -> Sequence[int | None]:
        """The sizes of a tensor in the run; as far as they are always the same, of one that another branch computes."""
        return self.sizes.get(name) or self.trace.shapes.static(name) or ()

    def _add(self, base: str, array: NDArray[Any], onnx_type: int | None = None) -> str:
        name = self.model.fresh_name(base)
        self.model.weights[name] = Weight.of(array, onnx_type)
        return name

    def _mask(self, name: str, block: Block) -> Mask:
        """The kept positions of a block, broadcastable to its tensor."""
        weight = self.trace.model.weights.get(name)
        return self.kept[block.spread(weight.shape if weight is not None else self._run(name))]

    def _filled(self, source: str, name: str, mask: Mask, fill: str, nodes: list[NodeProto]) -> str:
        """`source` where the mask of tensor `name` is true, and tensor `fill` (zero without one) elsewhere."""
        out = self.model.fresh_name(name + "_masked")
        kind = self.trace.shapes.dtype(name) or TensorProto.FLOAT
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        may_lack_where = kind in HALVES or opset(self.model) < 9  # of a runtime
        if kind in FLOATS and not fill and may_lack_where:
            factors = self._add(out + "_mask", mask.astype(dtype), kind)
            nodes.append(helper.make_node("Mul", [source, factors], [out], name=out))
            return out
        fill = fill or self._add(out + "_zero", np.zeros((), dtype), kind)
        condition = self._add(out + "_mask", mask)
        nodes.append(helper.make_node("Where", [condition, source, fill], [out], name=out))
        return out

    def _gathered(self, name: str, block: Block, nodes: list[NodeProto]) -> str:
        """The kept positions of a block in tensor `name`."""
        for axis, where in zip(block.axes, positions(block.ids, self.kept), strict=True):
            name = self._pick(name, axis, block.axes, where, nodes)
        return name

    def _scattered(self, source: str, target: str, block: Block, nodes: list[NodeProto]) -> None:
        """Give kept positions back their places; what stands at removed places does not matter."""
        mask = self.kept[block.ids]
        shape = kept_shape(block.ids, self.kept)
        assert shape is not None
        name = source
        for k in reversed(range(mask.ndim)):
            alive = np.asarray(mask.any(axis=tuple(range(k + 1, mask.ndim))))
            if k:
                rows = mask.any(axis=tuple(range(k, mask.ndim)))
                alive = alive[rows].reshape(*shape[:k], mask.shape[k])
            back = np.maximum(np.cumsum(alive, axis=-1) - 1, 0)
            name = self._pick(name, block.axes[k], block.axes, back, nodes)
        nodes.append(helper.make_node("Identity", [name], [target], name=target + "_back"))

    def _pick(self, name: str, axis: int, axes: Sequence[int], where: NDArray[Any], nodes: list[NodeProto]) -> str:
        """Positions `where` along `axis`: the same in every row (Gather), or row by row (GatherElements)."""
        rows = where.reshape(-1, where.shape[-1]).astype(np.int64)
        out = self.model.fresh_name(f"{name}_at{axis}")
        same = bool((rows == rows[0]).all())
        gathered = out if same else out + "_like"
        at = self._add(out + "_index", rows[0])
        nodes.append(helper.make_node("Gather", [name, at], [gathered], name=gathered, axis=axis))
        if not same:  # the Gather above only lends its shape to the indices
            own = [*axes[: where.ndim - 1], axis]
            spread = _along(where.astype(np.int64), own)
            shape, index = out + "_shape", out + "_at"
            nodes += [
                helper.make_node("Shape", [gathered], [shape], name=shape),
                *self._with_trailing_axes(self._add(out + "_rows", spread), spread.ndim, shape, out),
                helper.make_node("Expand", [out + "_wide", shape], [index], name=index),
                helper.make_node("GatherElements", [name, index], [out], name=out, axis=axis),
            ]
        return out

    def _with_trailing_axes(self, rows: str, rank: int, shape: str, out: str) -> list[NodeProto]:
        """Give the index array trailing axes of size one, up to the rank of the data."""
        own = self._add(out + "_own", np.array(self.model.weights[rows].shape, np.int64))
        start = self._add(out + "_from", np.array([rank], np.int64))
        end = self._add(out + "_to", np.array([1 << 31], np.int64))
        tail, ones, full = out + "_tail", out + "_ones", out + "_full"
        return [
            helper.make_node("Slice", [shape, start, end], [tail], name=tail),
            helper.make_node("Div", [tail, tail], [ones], name=ones),
            helper.make_node("Concat", [own, ones], [full], name=full, axis=0),
            helper.make_node("Reshape", [rows, full], [out + "_wide"], name=out + "_wide"),
        ]


def _along(array: NDArray[np.int64], axes: Sequence[int]) -> NDArray[np.int64]:
    """The axes of an array moved to where `axes` says, with axes of size one between them."""
    spread = array.transpose(sorted(range(array.ndim), key=list(axes).__getitem__))
    for k in range(max(axes) + 1):
        if k not in axes:
            spread = np.expand_dims(spread, k)
    return spread
