"""Shapes of outputs where sizes are expressions: what ONNX's own inference gives up on, one small function an operator.

Each gives the dims of its outputs, with None for a size that has no form. Operators that are not in the table hand
sizes on as ONNX's inference says, which knows names of sizes but does not calculate. Knows one node, not the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from onnx import TensorProto

from onnxprune.model import traits
from onnxprune.shapes import symbolic_movement as movement
from onnxprune.shapes import symbolic_windows as windows
from onnxprune.shapes.node_view import Need, OutputDims, SymbolicDims, ValueTypes, View, dims_of
from onnxprune.shapes.quotients import ceil_div, floor_div
from onnxprune.shapes.symbols import Dim, Lost, Size, joint, maximum

Rule = Callable[[View], OutputDims | None]


def _broadcast(v: View) -> OutputDims | None:
    all_dims = [v.dims(i) for i in range(len(v.types)) if v.given(i)]
    if any(d is None for d in all_dims):
        return None
    rank = max(len(d or ()) for d in all_dims)
    out: list[Dim | None] = [1] * rank
    for dims in all_dims:
        for k, n in enumerate(dims or (), rank - len(dims or ())):
            v.need("fits", out[k], n)
            out[k] = joint(out[k], n)
    return [tuple(out)]


def _filled(v: View) -> OutputDims:
    target = v.entries(0)
    return [None if target is None else tuple(target)]


def _range(v: View) -> OutputDims:
    ends = [v.entries(i) for i in range(3)]
    if any(not e or e[0] is None for e in ends):
        return [(None,)]
    start, limit, delta = (e[0] for e in ends if e)
    if not all(isinstance(x, Size) or float(x).is_integer() for x in (start, limit, delta)):
        return [(None,)]
    start, limit, delta = (x if isinstance(x, Size) else int(x) for x in (start, limit, delta))
    return [(maximum(ceil_div(limit - start, delta), 0),)]


def _einsum(v: View) -> OutputDims | None:
    terms, arrow, out = v.word("equation", "").replace(" ", "").partition("->")
    sizes: dict[str, Dim | None] = {}
    parts = terms.split(",")
    if (
        not arrow
        or "." in terms
        or any(v.dims(i) is None or len(v.dims(i) or ()) != len(p) for i, p in enumerate(parts))
    ):
        return None
    for i, letters in enumerate(parts):
        for letter, n in zip(letters, v.dims(i) or (), strict=True):
            have = sizes.get(letter)
            sizes[letter] = n if have is None or have == 1 or (isinstance(n, int) and n != 1) else have
    return [tuple(sizes.get(x) for x in out)]


def _attention(v: View) -> OutputDims | None:
    """What is given out of keys, values and scores, which ONNX leaves open where there is no past."""
    query, key, value, past = v.dims(0), v.dims(1), v.dims(2), v.dims(4)
    if query is None or key is None or value is None or (v.given(4) and past is None):
        return None
    if len(query) == 3:
        heads, shared = v.attr("q_num_heads"), v.attr("kv_num_heads")
        batch, steps, length = query[0], query[1], key[1]
        widths = [None if n is None else floor_div(n, shared) for n in (key[2], value[2])]
        out: SymbolicDims = (batch, steps, None if widths[1] is None else widths[1] * heads)
    else:
        batch, heads, steps, _ = query
        shared, length, widths = key[1], key[2], [key[3], value[3]]
        out = (batch, heads, steps, value[3])
    if past is not None:
        length = None if length is None or past[2] is None else length + past[2]
    found: OutputDims = [out, *((batch, shared, length, n) for n in widths), (batch, heads, steps, length)]
    return found[: len(v.node.output)]


def _past_of_shared_keys(v: View) -> None:
    """com.microsoft GroupQueryAttention, of which exporters leave the head size of the past open. As long as all keys
    are is what a mask is that is made for them."""
    query, key, heads, shared = v.dims(0), v.dims(1), v.attr("num_heads"), v.attr("kv_num_heads")
    packed = not v.given(1)
    width, parts = (query, heads + 2 * shared) if packed else (key, shared)
    total = v.entries(6)
    for past in (v.dims(3), v.dims(4)):
        if past is None or len(past) != 4:
            continue
        v.need("is", past[1], shared)
        if width is not None and isinstance(width[-1], int):
            v.need("is", past[3], width[-1] // parts)
        if query is None or query[1] is None or past[2] is None:
            continue
        steps, cosines = past[2] + query[1], v.dims(7)
        if total:
            v.need("same", total[0], steps)
        if cosines is not None:
            v.need("holds", cosines[0], steps)
        if query[0] is not None:  # several sequences with a past go on by one step only
            v.need("holds", 0, (query[0] - 1) * (query[1] - 1) * past[2])


def _past_in_place(v: View) -> None:
    """com.microsoft SparseAttention, which writes into the past: this is as long as all keys may be, and so are
    layouts and angles."""
    query, key, past, rows, cosines = map(v.dims, (0, 1, 3, 5, 9))
    if query is None or past is None:
        return
    shared, packed = v.attr("kv_num_heads"), not v.given(1)
    width, parts = (query, v.attr("num_heads") + 2 * shared) if packed else (key, shared)
    v.need("is", past[1], shared)
    if width is not None and isinstance(width[-1], int):
        v.need("is", past[3], width[-1] // parts)
    v.need("holds", past[2], query[1])
    if rows is not None and rows[1] is not None:
        v.need("holds", (rows[1] - 1) * v.attr("sparse_block_size"), past[2])
    if cosines is not None:
        v.need("holds", cosines[0], past[2])
    for total in v.entries(7) or ():
        v.need("holds", past[2], total)
        v.need("holds", total, query[1])


DAMAGED = (Lost, ZeroDivisionError, IndexError, TypeError)
"""What the attributes of damaged files lead to."""
RULES: dict[str, Rule] = dict.fromkeys(traits.BROADCASTING, _broadcast) | {
    "Reshape": movement.reshape, "Flatten": movement.flatten, "Expand": movement.expand, "Tile": movement.tile,
    "Pad": movement.pad, "Slice": movement.slice_, "Concat": movement.concat, "Split": movement.split,
    "TopK": movement.top_k, "Squeeze": movement.squeeze, "Conv": windows.conv, "ConvInteger": windows.conv,
    "QLinearConv": windows.conv_nested(3), "ConvTranspose": windows.conv_transpose, "MaxPool": windows.pool,
    "AveragePool": windows.pool, "LpPool": windows.pool, "Resize": windows.resize, "Upsample": windows.resize,
    "DepthToSpace": windows.depth_to_space, "SpaceToDepth": windows.depth_to_space, "ConstantOfShape": _filled,
    "Range": _range, "Einsum": _einsum, "Attention": _attention,
}  # fmt: skip
"""By operator of the default domain; asked only where something is no number."""


ATTENDING = frozenset({"MultiHeadAttention", "DecoderMaskedMultiHeadAttention"})
"""Operators of com.microsoft that take queries, keys and values first."""


def needs(view: View) -> list[Need]:
    """What has to hold for a node to run whose shapes others infer."""
    if view.node.op_type == "GroupQueryAttention":
        with suppress(*DAMAGED):
            _past_of_shared_keys(view)
    elif view.node.op_type == "SparseAttention":
        with suppress(*DAMAGED):
            _past_in_place(view)
    return view.needs


def _attended(v: View) -> SymbolicDims | None:
    """What attention of com.microsoft gives, by the layouts of its query, keys and values that have their batch first:
    [batch, steps, width], heads apart, or packed together."""
    query, key, value = v.dims(0), v.dims(1), v.dims(2)
    if query is None:
        return None
    if len(query) == 5:  # [batch, steps, heads, 3, size]
        return (*query[:2], None if query[2] is None or query[4] is None else query[2] * query[4])
    if key is not None and len(key) == 5:  # [batch, length, heads, 2, size]
        return query
    if value is not None and len(value) == 4:  # [batch, heads, length, size]
        return (*query[:2], None if value[1] is None or value[3] is None else value[1] * value[3])
    return None if value is None or len(value) != 3 else (*query[:2], value[2])


def with_presents(view: View, out: ValueTypes | None) -> ValueTypes | None:
    """The types of the outputs of an operator of com.microsoft, with what attention gives and the present keys and
    values, where these did not come out: present ones are as the past ones, but for how long they are."""
    found = list(out or ())
    if found and found[0] is not None and view.node.op_type in ATTENDING and None in (dims_of(found[0]) or (None,)):
        with suppress(Lost):
            found[0] = view.element(0), _attended(view)
    for i, o in traits.REMEMBERING.get(f"{view.node.domain}::{view.node.op_type}", {}).items():
        dims = view.dims(i)
        if out is None or dims is None or o >= len(view.node.output):
            continue
        found += [None] * (o + 1 - len(found))
        if dims_of(found[o]) is None:
            found[o] = view.element(i), (*dims[:-2], None, dims[-1])
    return found or out


def infer(view: View) -> ValueTypes | None:
    """The types of the outputs by the node's rule; None where there is none, or it has no answer."""
    rule = RULES.get(view.node.op_type)
    if rule is None:
        return None
    try:
        shapes = rule(view)
    except (Lost, ZeroDivisionError, IndexError, ValueError, TypeError, KeyError):
        return None  # attributes of damaged files may be of any type and number
    if shapes is None:
        return None
    if view.node.op_type in traits.BROADCASTING:  # of which type it is ONNX knows
        return [(TensorProto.UNDEFINED, dims) for dims in shapes]
    return [(element, dims) for element, dims in zip(_elements(view, len(shapes)), shapes, strict=True)]


def _elements(view: View, count: int) -> list[int]:
    op = view.node.op_type
    if op == "TopK":
        return [view.element(0), TensorProto.INT64]
    if op == "MaxPool":
        return [view.element(0), TensorProto.INT64][:count]
    if op == "ConstantOfShape":
        tensor = view.attr("value")
        return [TensorProto.FLOAT if tensor is None else tensor.data_type]
    if op == "ConvInteger":
        return [TensorProto.INT32]
    return [view.element(7 if op == "QLinearConv" else 0)] * count
