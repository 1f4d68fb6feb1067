"""The graph in a form that can be differentiated: float, of fixed sizes, with nothing left implicit.

Knows the graph, no units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import HALVES, Model, Weight, attributes, traits
from onnxprune.shapes import Shapes
from onnxprune.trace import Dims

WINDOWS = traits.POOLS | {"Conv"}


def smoothed(source: Model) -> Model:
    """The model in float32 and without the rounding of activations (a straight-through estimator): node by node the
    same graph, so that places in the trace are places in it.

    Half precision is widened because gradients underflow in it. QuantizeLinear and DequantizeLinear of activations
    pass their input on (Bengio et al. 2013, arXiv 1308.3432); of weights they stay."""
    model = source.copy()
    for name, weight in list(model.weights.items()):
        if weight.onnx_type in HALVES:
            model.weights[name] = Weight.of(weight.array().astype(np.float32))
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.elem_type in HALVES:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    _pass_roundings_on(model)
    for node in model.graph.node:
        _widen_attributes(node)
    del model.graph.value_info[:]
    return model


def _pass_roundings_on(model: Model) -> None:
    """Put Identity in place of the quantisation of activations. Changes `model`."""
    through: set[str] = set()
    constant = set(model.weights)
    for node in model.graph.node:
        if node.input and all(i in constant for i in node.input if i):
            constant.update(node.output)
        elif node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in through):
            through |= set(node.output) if node.op_type == "QuantizeLinear" else set()
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]
        elif through & set(node.input):
            through.update(node.output)  # what moves integers moves floats just as well


def _widen_attributes(node: NodeProto) -> None:
    """Casts to half precision and constants in it. Changes `node`."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALVES:
            attribute.i = TensorProto.FLOAT
        elif attribute.t.data_type in HALVES:
            tensor = TensorProto.FromString(attribute.t.SerializeToString())
            half = Weight(attribute.t.data_type, attribute.t.dims, tensor)
            Weight.of(half.array().astype(np.float32)).fill(attribute.t)


def freeze_sizes(model: Model, shapes: Shapes) -> None:
    """Write the sizes of a run into the graph, and what they settle in place of what computes it: values of integers,
    paddings, the positions of strided slices. Changes `model`."""
    graph = model.skeleton.graph
    settled = _settled(model, shapes)
    nodes = _explicit(model, shapes, settled)
    made = {o for n in nodes for o in n.output}
    del graph.node[:]
    graph.node.extend(nodes)
    for name in settled.keys() - made - model.weights.keys():
        model.weights[name] = Weight.of(settled[name])
    for info in graph.input:
        size = shapes.inputs[0].get(info.name)
        if size is not None and info.name not in model.weights:
            info.type.CopyFrom(helper.make_tensor_type_proto(info.type.tensor_type.elem_type, size))
    for name in sorted(made & shapes.probe[0].keys()):
        if kind := shapes.dtype(name):
            graph.value_info.append(helper.make_tensor_value_info(name, kind, shapes.probe[0][name]))


def _settled(model: Model, shapes: Shapes) -> dict[str, NDArray[Any]]:
    """Integers and booleans inside the graph that sizes alone decide."""
    outputs = {o.name for o in model.graph.output}
    values = {o: shapes.value(o) for node in model.graph.node for o in node.output if o and o not in outputs}
    return {o: v for o, v in values.items() if v is not None and v.dtype.kind in "iub"}


def _explicit(model: Model, shapes: Shapes, settled: Mapping[str, NDArray[Any]]) -> list[NodeProto]:
    """Copies of the nodes that still have something to compute, nothing in them left to a mode or a step."""
    held = {n: w.array() for n, w in model.weights.items() if w.size <= 1024 and w.dtype.kind == "i"} | dict(settled)
    sizes: dict[str, Dims] = {n: tuple(w.shape) for n, w in model.weights.items()} | shapes.probe[0]
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if all(o in settled for o in node.output if o):
            continue
        one = NodeProto.FromString(node.SerializeToString())
        if one.input and one.output[0] not in sizes:  # a gate's product, of which the shapes do not know
            sizes[one.output[0]] = sizes.get(one.input[0], ())
        if one.op_type in WINDOWS:
            _write_pads(one, sizes)
        gathers = _gathers(model, one, sizes.get(one.input[0], ()), held) if one.op_type == "Slice" else []
        nodes += gathers or [one]
    return nodes


def _write_pads(node: NodeProto, sizes: Mapping[str, Dims]) -> None:
    """auto_pad and ceil_mode of a window written as pads, where its sizes are known. Changes `node`."""
    given = attributes(node)
    auto, ceil = given.get("auto_pad", b"NOTSET"), given.get("ceil_mode", 0)
    missing = [] if auto in (b"NOTSET", b"") and not ceil else _missing(node, given, sizes)
    if not missing:
        return
    if ceil and (node.op_type == "LpPool" or given.get("count_include_pad", 0)):
        return  # the ceil_mode overhang would enter the average, where a pad does
    pads = _pads(missing, given.get("pads") or [0] * 2 * len(missing), auto)
    rest = [a for a in node.attribute if a.name not in ("auto_pad", "ceil_mode", "pads")]
    del node.attribute[:]
    node.attribute.extend([*rest, helper.make_attribute("pads", pads)])


def _missing(node: NodeProto, given: Mapping[str, Any], sizes: Mapping[str, Dims]) -> list[int]:
    """How many positions the windows cover beyond those that each spatial axis has; nothing where sizes are open."""
    before, after = (sizes.get(n, ())[2:] for n in (node.input[0], node.output[0]))
    kernel = given.get("kernel_shape") or (sizes.get(node.input[1], ())[2:] if node.op_type == "Conv" else ())
    n = len(before)
    if len(after) != n or len(kernel) != n or None in before + after:
        return []
    steps, spread = given.get("strides") or [1] * n, given.get("dilations") or [1] * n
    return [
        (int(y or 0) - 1) * s + (k - 1) * d + 1 - int(x or 0)
        for x, y, k, s, d in zip(before, after, kernel, steps, spread, strict=True)
    ]


def _pads(missing: Sequence[int], pads: Sequence[int], auto: bytes) -> list[int]:
    """Begins and ends, as ONNX writes them, that make up for what is `missing` at the edges of each axis in all; the
    `pads` that are written stay where no mode puts others, and ceil_mode adds to their ends."""
    n = len(missing)
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        whole = [max(m, 0) for m in missing]
        begin = [m // 2 if auto == b"SAME_UPPER" else m - m // 2 for m in whole]
        return [*begin, *(m - b for m, b in zip(whole, begin, strict=True))]
    return [*pads[:n], *(max(m - b, e) for m, b, e in zip(missing, pads[:n], pads[n:], strict=True))]


def _gathers(model: Model, node: NodeProto, dims: Dims, held: Mapping[str, NDArray[Any]]) -> list[NodeProto]:
    """A Slice with steps as a Gather for each of its axes; none where it has no steps, or they are not known."""
    found = _positions(node, dims, held)
    out, source = [], node.input[0]
    for k, (axis, where) in enumerate(found):
        target = node.output[0] if k == len(found) - 1 else model.fresh_name(f"{node.output[0]}_axis{axis}")
        index = model.fresh_name(target + "_positions")
        model.weights[index] = Weight.of(where)
        out.append(helper.make_node("Gather", [source, index], [target], name=target, axis=axis % len(dims)))
        source = target
    return out


def _positions(node: NodeProto, dims: Dims, held: Mapping[str, NDArray[Any]]) -> list[tuple[int, NDArray[np.int64]]]:
    """(axis, the positions taken) of every axis of a Slice with steps."""
    names = [*node.input[1:], *[""] * (5 - len(node.input))]
    if not names[3] or any(n and n not in held for n in names):
        return []
    starts, ends, steps = (held[names[k]].ravel().tolist() for k in (0, 1, 3))
    axes = held[names[2]].ravel().tolist() if names[2] else list(range(len(starts)))
    if all(step == 1 for step in steps) or any(dims[axis] is None for axis in axes):
        return []
    found = []
    for start, end, step, axis in zip(starts, ends, steps, axes, strict=True):
        size = int(dims[axis] or 0)
        stop = None if step < 0 and end < -size else end
        found.append((axis, np.arange(size)[start:stop:step].astype(np.int64)))
    return found
