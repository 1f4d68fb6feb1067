"""What is carried from step to step as a tensor: linear attention's states, and caches that are written in place.

A rule knows one `Op`, not the graph.
"""

from __future__ import annotations

from onnxprune.trace.labels import Block
from onnxprune.trace.op import Op
from onnxprune.trace.rules.attention import CACHED, FIXED, count_heads_left, heads_in_last, keep_scale
from onnxprune.trace.rules.base import LETTERS, own_axis, ranks_known, spell
from onnxprune.trace.rules.inputs import LinearAttention, TensorScatter


def linear_attention(op: Op) -> None:
    """com.microsoft LinearAttention: a state [keys' size, values' size] for each key; several
    queries may read one."""
    which = LinearAttention
    if not ranks_known(op, [which.QUERY, which.KEY, which.VALUE]):
        return None
    sizes = _sizes(op)
    if sizes is None or op.attr("state_window", 0):
        return op.freeze("heads that are shared otherwise, or of unknown size")
    ins = {
        which.QUERY: ["b", "t", "grd"],
        which.KEY: ["b", "t", "gd"],
        which.VALUE: ["b", "t", "ge"],
        which.PAST: ["b", "g", "d", "e"],
        which.DECAY: ["b", "t", "g" if op.dims(which.DECAY)[-1:] == (sizes["g"],) else "gd"],
        which.BETA: spell(op.dims(which.BETA), ["b", "t", "g"]),
    }
    if op.has(which.PAST) and op.blocks(which.PAST):
        op.freeze("a state that is computed", inputs=(which.PAST,))
    text = CACHED if op.has(which.PAST) else FIXED
    op.eq(ins, {0: ["b", "t", "gre"]}, sizes=sizes, pinned="t", macs="tgde tgrde", summed={"d": which.KEY}, text=text)
    keep_scale(op, sizes["d"])
    sides = ((which.KEY, "d", 2), (which.VALUE, "e", 3))
    found = [(heads_in_last(op, i, (sizes["g"], sizes[x])), axis) for i, x, axis in sides]
    op.set(1, [Block((1, axis), ids) for ids, axis in found if ids is not None])
    heads = sizes["g"] * sizes["r"]
    for i, name, count in ((which.QUERY, "q_num_heads", heads), (which.KEY, "kv_num_heads", sizes["g"])):
        ids = heads_in_last(op, i, (count, sizes["d"]))
        if ids is not None:
            op.note_maps(ids)
            op.labels.rectangle(ids)
            count_heads_left(op, name, ids)


def _sizes(op: Op) -> dict[str, int] | None:
    """States (g), queries for each (r), size of a key (d) and of a value (e); None where they are not known, or where
    keys are shared by several states."""
    queries, shared = int(op.attr("q_num_heads")), int(op.attr("kv_num_heads"))
    widths = [op.dims(i)[-1] for i in (LinearAttention.QUERY, LinearAttention.KEY, LinearAttention.VALUE)]
    query, key, value = (n or 0 for n in widths)
    if not (query and key and value) or queries % shared or key // shared != query // queries:
        return None
    return {"g": shared, "r": queries // shared, "d": key // shared, "e": value // shared}


def tensor_scatter(op: Op) -> None:
    """TensorScatter: new steps are written into a cache along one axis; all the others are the cache's."""
    if ranks_known(op, [TensorScatter.PAST, TensorScatter.UPDATE]):
        rank = len(op.dims(TensorScatter.PAST))
        axis = own_axis(op, -2, rank)
        spelled = spell(op.dims(TensorScatter.PAST), LETTERS[:rank])
        update = ["" if k == axis else s for k, s in enumerate(spelled)]
        ins = {TensorScatter.PAST: spelled, TensorScatter.UPDATE: update, TensorScatter.WHERE: spelled[:1]}
        op.freeze_axis(TensorScatter.UPDATE, axis, "steps are written to places of their own")
        op.eq(ins, {0: spelled}, pinned=spelled[axis], text=CACHED)
