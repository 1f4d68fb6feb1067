"""The masked original: what a rewritten graph has to equal.

Every reduction over a labelled axis sees kept positions only: sums are masked with zeros, statistics are taken over
gathered positions and scattered back. Activations stay what they were, so no mask can produce a NaN; what a removed
channel holds no longer matters once nothing sums over it, be it infinite. Knows reductions and what was kept, no
importance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import FLOATS, HALVES, Model, Weight, every_node, opset, rearranged
from onnxprune.trace import Block, Dims, Editor, Mask, Trace, kept_shape, positions


def masked(trace: Trace, kept: Mask, sizes: Mapping[str, Dims]) -> Model:
    """The masked original for a run in which the tensors have these sizes."""

    def at(name: str, block: Block) -> Block:
        static = trace.shapes.static(name) or ()
        run = sizes.get(name) or ()
        return block.at([n if k is None else None for k, n in zip(static, run, strict=True)])

    model = trace.model.copy()
    nodes = every_node(model.proto.graph)
    before: dict[int, list[NodeProto]] = defaultdict(list)
    after: dict[int, list[NodeProto]] = defaultdict(list)
    done: set[int] = set()
    edits: dict[int, list[Any]] = defaultdict(list)
    for index, edit in trace.edits:
        edits[index].append(edit)
    for r in trace.reductions:
        node = nodes[r.node]
        if r.kind == "sum":
            assert r.block is not None
            if not kept[r.block.ids].all():
                name = trace.nodes[r.node].input[r.operand]
                mask = _mask(trace, name, at(name, r.block), kept, sizes.get(name) or ())
                node.input[r.operand] = _masked(trace, model, node.input[r.operand], name, mask, r.fill, before[r.node])
            continue
        if all(kept[b.ids].all() for _, b in (*r.ins, *r.outs)):
            continue
        for i, block in r.ins:
            block = at(trace.nodes[r.node].input[i], block)
            node.input[i] = _gathered(model, node.input[i], block, kept, before[r.node])
        for o, block in r.outs:
            name = node.output[o]
            node.output[o] = model.fresh_name(name + "_kept")
            _scattered(model, node.output[o], name, at(name, block), kept, after[r.node])
        if r.node not in done:
            done.add(r.node)
            attributes = Editor(trace, kept, model, r.node, node, [], [])
            for edit in edits[r.node]:
                edit(attributes)
    rearranged(model.proto.graph, before, after)
    del model.proto.graph.value_info[:]
    return model


def _add(model: Model, base: str, array: NDArray[Any], onnx_type: int | None = None) -> str:
    name = model.fresh_name(base)
    model.weights[name] = Weight.of(array, onnx_type)
    return name


def _mask(trace: Trace, name: str, block: Block, kept: Mask, dims: Sequence[int | None]) -> Mask:
    """The kept positions of a block, broadcastable to its tensor."""
    weight = trace.model.weights.get(name)
    return kept[block.spread(weight.shape if weight is not None else dims)]


def _masked(trace: Trace, model: Model, source: str, name: str, mask: Mask, fill: str, before: list[NodeProto]) -> str:
    out = model.fresh_name(name + "_masked")
    kind = trace.shapes.dtype(name) or TensorProto.FLOAT
    if kind in FLOATS and not fill and (kind in HALVES or opset(model) < 9):  # for which runtimes may have no Where
        held = _add(model, out + "_mask", mask.astype(helper.tensor_dtype_to_np_dtype(kind)), kind)
        before.append(helper.make_node("Mul", [source, held], [out], name=out))
        return out
    fill = fill or _add(model, out + "_zero", np.zeros((), helper.tensor_dtype_to_np_dtype(kind)), kind)
    held = _add(model, out + "_mask", mask)
    before.append(helper.make_node("Where", [held, source, fill], [out], name=out))
    return out


def _gathered(model: Model, name: str, block: Block, kept: Mask, nodes: list[NodeProto]) -> str:
    for axis, where in zip(block.axes, positions(block.ids, kept), strict=True):
        name = _pick(model, name, axis, block.axes, where, nodes)
    return name


def _pick(model: Model, name: str, axis: int, axes: Sequence[int], where: NDArray[Any], nodes: list[NodeProto]) -> str:
    """Positions `where` along `axis`: the same in every row (Gather), or row by row (GatherElements)."""
    rows = where.reshape(-1, where.shape[-1]).astype(np.int64)
    out = model.fresh_name(f"{name}_at{axis}")
    same = bool((rows == rows[0]).all())
    gathered = out if same else out + "_like"
    at = _add(model, out + "_index", rows[0])
    nodes.append(helper.make_node("Gather", [name, at], [gathered], name=gathered, axis=axis))
    if not same:  # the Gather above only lends its shape to the indices
        own = [*axes[: where.ndim - 1], axis]
        order = sorted(range(where.ndim), key=lambda k: own[k])
        spread = where.astype(np.int64).transpose(order)
        for k in range(max(own) + 1):
            if k not in own:
                spread = np.expand_dims(spread, k)
        rank = _add(model, out + "_rows", spread)
        shape, index = out + "_shape", out + "_at"
        nodes += [
            helper.make_node("Shape", [gathered], [shape], name=shape),
            *_trailing(model, rank, spread.ndim, shape, out, nodes),
            helper.make_node("Expand", [out + "_wide", shape], [index], name=index),
            helper.make_node("GatherElements", [name, index], [out], name=out, axis=axis),
        ]
    return out


def _trailing(model: Model, rows: str, rank: int, shape: str, out: str, nodes: list[NodeProto]) -> list[NodeProto]:
    """Give the index array trailing axes of size one, up to the rank of the data."""
    own = _add(model, out + "_own", np.array(model.weights[rows].shape, np.int64))
    start = _add(model, out + "_from", np.array([rank], np.int64))
    end = _add(model, out + "_to", np.array([1 << 31], np.int64))
    tail, ones, full = out + "_tail", out + "_ones", out + "_full"
    return [
        helper.make_node("Slice", [shape, start, end], [tail], name=tail),
        helper.make_node("Div", [tail, tail], [ones], name=ones),
        helper.make_node("Concat", [own, ones], [full], name=full, axis=0),
        helper.make_node("Reshape", [rows, full], [out + "_wide"], name=out + "_wide"),
    ]


def _scattered(model: Model, source: str, target: str, block: Block, kept: Mask, nodes: list[NodeProto]) -> None:
    """Give kept positions back their places; what stands at removed places does not matter."""
    mask = kept[block.ids]
    shape = kept_shape(block.ids, kept)
    assert shape is not None
    name = source
    for k in reversed(range(mask.ndim)):
        alive = np.asarray(mask.any(axis=tuple(range(k + 1, mask.ndim))))
        if k:
            rows = mask.any(axis=tuple(range(k, mask.ndim)))
            alive = alive[rows].reshape(*shape[:k], mask.shape[k])
        back = np.maximum(np.cumsum(alive, axis=-1) - 1, 0)
        name = _pick(model, name, block.axes[k], block.axes, back, nodes)
    nodes.append(helper.make_node("Identity", [name], [target], name=target + "_back"))
