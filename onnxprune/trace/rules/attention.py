"""Attention as one operator: opset 23 and the com.microsoft fusions. Heads and head dimensions are letters.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from onnxprune.trace.labels import KEPT, Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import ranks_known, spell
from onnxprune.trace.tracing import Reduction


def _scale(op: Op, depth: int) -> None:
    """The default scale is 1/sqrt(head size): written out, so that it stays the original's."""
    if not op.attr("scale"):
        op.edit(lambda e: e.attr("scale", 1.0 / sqrt(depth)))


def _maps(op: Op, ids: Ids) -> None:
    """Every row [heads, ..] of `ids` has an attention map, which the operator keeps to itself."""
    op.trace.labels.maps.append(op.trace.labels.derive(ids))


def _heads(op: Op, i: int, axis: int, sizes: tuple[int, ...]) -> Ids | None:
    block = next((b for b in op.blocks(i) if b.axes == (axis,)), None)
    return None if block is None else block.ids.reshape(sizes)


def attention(op: Op) -> None:
    """ONNX opset 23 and 24: query, key, value of rank 3 (heads inside the last axis) or 4. What is causal tells the
    queries apart; a past is as wide as the keys and values."""
    if not ranks_known(op, [0, 1, 2]):
        return None
    flat = len(op.dims(0)) == 3
    depths = [op.dims(i)[-1] for i in range(3)]
    counts = [op.attr("q_num_heads"), op.attr("kv_num_heads")] if flat else [op.dims(0)[1], op.dims(1)[1]]
    if None in depths or None in counts:
        return op.freeze("the head size is not known")
    heads, shared = (int(n or 0) for n in counts)
    depth, value = (int(n or 0) // (shared if flat else 1) for n in depths[1:])
    sizes = {"g": shared, "r": heads // shared, "d": depth, "e": value}
    if flat:
        ins = {0: ["b", "s", "grd"], 1: ["b", "t", "gd"], 2: ["b", "t", "ge"]}
        out = ["b", "s", "gre"]
    else:
        ins = {0: ["b", "gr", "s", "d"], 1: ["b", "g", "t", "d"], 2: ["b", "g", "t", "e"]}
        out = ["b", "gr", "s", "e"]
    if op.has(3):
        dims = op.dims(3)
        ins[3] = spell(dims, ["b", "gr", "s", "t"][4 - len(dims) :])
    for i, spelled in ((4, ["b", "g", "p", "d"]), (5, ["b", "g", "p", "e"]), (6, ["b"])):
        if op.has(i):
            ins[i] = spelled
    outs = {0: out, 1: ["b", "g", "", "d"], 2: ["b", "g", "", "e"], 3: ["b", "gr", "s", ""]}
    pinned = "tps" if op.attr("is_causal", 0) else "tp"
    op.eq(ins, outs, sizes=sizes, pinned=pinned, macs="grdste", summed={"d": 0}, text="attention with a fixed side")
    _scale(op, depth)
    for b in op.blocks(0):
        if not flat and b.axes == (1, 3):
            _maps(op, b.ids)
    q, kv = (_heads(op, 0, 2, (heads, depth)), _heads(op, 1, 2, (shared, depth))) if flat else (None, None)
    if q is not None:
        _maps(op, q)
    for name, ids in (("q_num_heads", q), ("kv_num_heads", kv)):
        if ids is not None:
            _count_heads(op, name, ids)


def _count_heads(op: Op, name: str, ids: Ids) -> None:
    """The attribute says how many rows of `ids` [heads, head size] there are."""
    op.trace.labels.rectangle(ids)
    op.edit(lambda e: e.attr(name, int(e.kept(ids).any(axis=1).sum())))


def multi_head(op: Op) -> None:
    """com.microsoft MultiHeadAttention with separate query, key and value of rank 3."""
    if not ranks_known(op, [0, 1, 2]) or not (op.has(1) and op.has(2)) or any(len(op.dims(i)) != 3 for i in range(3)):
        return op.freeze("packed query, key and value")
    heads = int(op.attr("num_heads"))
    last = [op.dims(i)[2] for i in range(3)]
    if None in last:
        return op.freeze("the head size is not known")
    depth, value = int(last[1] or 0) // heads, int(last[2] or 0) // heads
    ins = {0: ["b", "s", "hd"], 1: ["b", "t", "hd"], 2: ["b", "t", "he"]}
    if op.has(5):
        ins[5] = spell(op.dims(5), ["b", "h", "s", "t"])
    for i, x in ((6, "d"), (7, "e")):
        if op.has(i):
            ins[i] = ["b", "h", "p", x]
    bias = _own_bias(op, 3, (heads * depth, heads * depth, heads * value)) if op.has(3) else None
    if bias is not None:
        for i in range(3):
            op.meet(i, ["", "", "x"], ["x"], [Block((0,), bias[i])], "a bias of fixed size")
        op.trace.reductions.append(Reduction(op.index, "sum", 3, Block((0,), _only(bias, 0))))
    sizes = {"h": heads, "d": depth, "e": value}
    outs = {0: ["b", "s", "he"], 1: ["b", "h", "", "d"], 2: ["b", "h", "", "e"], 3: ["b", "h", "s", "t"]}
    op.eq(ins, outs, sizes=sizes, pinned="tp", macs="hdste", summed={"d": 0}, text="attention with a fixed side")
    _scale(op, depth)
    q = _heads(op, 0, 2, (heads, depth))
    if q is not None:
        _maps(op, q)
        op.trace.labels.rectangle(q)
        op.edit(lambda e: e.attr("num_heads", int(e.kept(q).any(axis=1).sum())))


def _own_bias(op: Op, i: int, sizes: tuple[int, ...]) -> list[Ids] | None:
    """The bias of query, key and value side by side, as three blocks of one axis."""
    if op.node.input[i] not in op.trace.model.weights:
        op.freeze("a computed bias of query, key and value")
        return None
    parts = [op.trace.labels.fresh((None, op.node.name, f"bias{k}"), (n,)) for k, n in enumerate(sizes)]
    op.trace.own((op.index, i), (Block((0,), np.concatenate(parts)),))
    return parts


def _only(parts: list[Ids], k: int) -> Ids:
    return np.concatenate([p.ravel() if m == k else np.full(p.size, KEPT) for m, p in enumerate(parts)])


def fused(op: Op) -> None:
    """com.microsoft Attention: one weight for query, key and value."""
    if not ranks_known(op, [0, 1]) or any(n is None for n in op.dims(1)):
        return op.freeze("the weight's shape is not known")
    if op.node.input[1] not in op.trace.model.weights or op.has(4) or op.has_output(1) or op.attr("do_rotary", 0):
        return op.freeze("a computed weight, or past keys and values")
    heads, (features, total) = int(op.attr("num_heads")), op.dims(1)
    widths = [int(n) for n in op.attr("qkv_hidden_sizes", [int(total or 0) // 3] * 3)]
    labels = op.trace.labels
    parts = [labels.fresh((None, op.node.name, f"qkv{k}"), (heads, n // heads)) for k, n in enumerate(widths)]
    q, k, v = parts
    inputs = labels.fresh((None, op.node.name, "input"), (int(features or 1),))
    op.couple(q, k)
    op.couple(labels.derive(k), labels.derive(v))
    _maps(op, q)
    for x in parts:
        labels.rectangle(x)
    if widths[0] == widths[2]:
        labels.rectangle(np.stack(parts))
    flat = np.concatenate([p.ravel() for p in parts])
    op.trace.own((op.index, 1), (Block((0,), inputs), Block((1,), flat)))
    if op.has(2):
        op.trace.own((op.index, 2), (Block((0,), flat),))
        op.trace.reductions.append(Reduction(op.index, "sum", 2, Block((0,), _only(parts, 1))))
    op.trace.reductions.append(Reduction(op.index, "sum", 1, Block((1,), _only(parts, 1))))
    op.trace.reductions.append(Reduction(op.index, "sum", 1, Block((0,), inputs)))
    op.meet(0, ["b", "s", "c"], ["", "", "c"], [Block((2,), inputs)], "attention reads an axis of fixed size")
    if op.has(5):
        op.meet(
            5, spell(op.dims(5), ["b", "h", "s", "t"]), ["h"], [Block((0,), labels.derive(v))], "a bias of fixed heads"
        )
    op.set(0, [Block((2,), v.ravel())])
    _scale(op, widths[0] // heads)
    op.edit(lambda e: e.attr("num_heads", int(e.kept(v).any(axis=1).sum())))
    if op.attr("qkv_hidden_sizes"):
        op.edit(lambda e: e.attr("qkv_hidden_sizes", [int(e.kept(p).sum()) for p in parts]))


def grouped_query(op: Op) -> None:
    """com.microsoft GroupQueryAttention with separate query, key and value.

    Its kernels take one head size for all three, a multiple of eight: of a head go eight neighbours at a time."""
    if not ranks_known(op, [0]) or not (op.has(1) and op.has(2)) or op.rank(1) is None:
        return op.freeze("packed query, key and value")
    if any(op.has(i) for i in range(12, len(op.inputs))):
        return op.freeze("a quantised cache, or a norm inside the operator")
    heads, shared = int(op.attr("num_heads")), int(op.attr("kv_num_heads"))
    width = op.dims(1)[2]
    if width is None:
        return op.freeze("the head size is not known")
    depth = width // shared
    sizes = {"g": shared, "r": heads // shared, "d": depth, "e": depth}
    ins = {0: ["b", "s", "grd"], 1: ["b", "t", "gd"], 2: ["b", "t", "ge"]}
    for i, x in ((3, "d"), (4, "e")):
        if op.has(i):
            ins[i] = ["b", "g", "p", x]
    if op.has(10):
        ins[10] = [x if n != 1 else "" for x, n in zip(["b", "gr", "s", "t"], op.dims(10), strict=True)]
    if op.has(11):
        ins[11] = ["gr"]
    outs = {0: ["b", "s", "gre"], 1: ["b", "g", "", "d"], 2: ["b", "g", "", "e"], 3: ["b", "gr", "s", "t"]}
    op.eq(ins, outs, sizes=sizes, pinned="tp", macs="grdste", text="attention with a fixed side")
    q, k, v = _heads(op, 0, 2, (heads, depth)), _heads(op, 1, 2, (shared, depth)), _heads(op, 2, 2, (shared, depth))
    if q is None or k is None or v is None:
        return None
    labels = op.trace.labels
    _maps(op, q)
    for block in (q, np.stack([k, v])):
        labels.rectangle(block)
    whole = op.attr("do_rotary", 0) or depth % 8  # the rotation knows its pairs: heads go whole
    for ids in (q, k, v):
        labels.tie(ids.reshape(len(ids), -1, depth if whole else 8), 2, op.why("head sizes are multiples of eight"))
    _scale(op, depth)
    op.edit(lambda e: e.attr("num_heads", int(e.kept(q).any(axis=1).sum())))
    op.edit(lambda e: e.attr("kv_num_heads", int(e.kept(k).any(axis=1).sum())))
