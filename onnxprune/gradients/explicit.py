"""The graph in a form that can be differentiated: float, of fixed sizes, with nothing left implicit.

Knows the graph, no units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import HALVES, Model, Weight, traits
from onnxprune.shapes import Shapes
from onnxprune.trace import Dims

WINDOWS = traits.POOLS | {"Conv"}


def smoothed(source: Model) -> Model:
    """The model in float32 and without the rounding of activations (a straight-through estimator): node by node the
    same graph, so that places in the trace are places in it.

    Half precision is widened because gradients underflow in it. QuantizeLinear and DequantizeLinear of activations
    pass their input on (Bengio et al. 2013, arXiv 1308.3432); of weights they stay."""
    model = source.copy()
    graph = model.proto.graph
    for name, weight in list(model.weights.items()):
        if weight.onnx_type in HALVES:
            model.weights[name] = Weight.of(weight.array().astype(np.float32))
    for info in (*graph.input, *graph.output):
        if info.type.tensor_type.elem_type in HALVES:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    through: set[str] = set()
    constant = set(model.weights)
    for node in graph.node:
        if node.input and all(i in constant for i in node.input if i):
            constant.update(node.output)
        elif node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in through):
            through |= set(node.output) if node.op_type == "QuantizeLinear" else set()
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]
        elif through & set(node.input):
            through.update(node.output)  # what moves integers moves floats just as well
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
            elif attribute.t.data_type in HALVES:
                half = Weight(
                    attribute.t.data_type, attribute.t.dims, TensorProto.FromString(attribute.t.SerializeToString())
                )
                Weight.of(half.array().astype(np.float32)).fill(attribute.t)
    del graph.value_info[:]
    return model


def frozen(model: Model, shapes: Shapes) -> None:
    """Write the sizes of a run into the graph, and what they settle in place of what computes it: values of integers,
    paddings, the positions of strided slices. Changes `model`."""
    graph = model.proto.graph
    outputs = {o.name for o in graph.output}
    known: dict[str, NDArray[Any]] = {}
    for node in graph.node:
        values = {o: shapes.value(o) for o in node.output if o and o not in outputs}
        known |= {o: v for o, v in values.items() if v is not None and v.dtype.kind in "iub"}
    rest = [n for n in graph.node if not all(o in known for o in n.output if o)]
    held = {n: w.array() for n, w in model.weights.items() if w.size <= 1024 and w.dtype.kind == "i"} | known
    nodes: list[NodeProto] = []
    sizes = {n: tuple(w.shape) for n, w in model.weights.items()} | shapes.probe[0]
    for node in rest:
        one = NodeProto.FromString(node.SerializeToString())
        if one.input and one.output[0] not in sizes:  # a gate's product, of which the shapes do not know
            sizes[one.output[0]] = sizes.get(one.input[0], ())
        dims = [sizes.get(n, ()) for n in (*one.input[:1], *one.output[:1])]
        if one.op_type in WINDOWS:
            _pad(one, dims, sizes.get(one.input[1], ()) if one.op_type == "Conv" else ())
        picked = _picks(model, one, dims[0], held) if one.op_type == "Slice" else []
        nodes += picked or [one]
    made = {o for n in nodes for o in n.output}
    del graph.node[:]
    graph.node.extend(nodes)
    for name in known.keys() - made - model.weights.keys():
        model.weights[name] = Weight.of(known[name])
    for info in graph.input:
        size = shapes.inputs[0].get(info.name)
        if size is not None and info.name not in model.weights:
            info.type.CopyFrom(helper.make_tensor_type_proto(info.type.tensor_type.elem_type, size))
    for name in sorted(made & shapes.probe[0].keys()):
        if kind := shapes.dtype(name):
            graph.value_info.append(helper.make_tensor_value_info(name, kind, shapes.probe[0][name]))


def _pad(node: NodeProto, dims: Sequence[Dims], weight: Dims) -> None:
    """auto_pad and ceil_mode of a window written as pads, from the sizes before and after."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    auto, ceil = given.get("auto_pad", b"NOTSET"), given.get("ceil_mode", 0)
    before, after = dims[0][2:], dims[1][2:]
    n = len(before)
    kernel = given.get("kernel_shape") or list(weight[2:])
    counts_pads = node.op_type == "LpPool" or given.get("count_include_pad", 0)
    if (
        (auto in (b"NOTSET", b"") and not ceil)
        or not n
        or len(after) != n
        or len(kernel) != n
        or None in before + after
    ):
        return
    if ceil and counts_pads:  # what hangs over counts in the mean only where it was written as a pad
        return
    steps, spread = given.get("strides") or [1] * n, given.get("dilations") or [1] * n
    pads = list(given.get("pads") or [0] * 2 * n)
    for k in range(n):
        reach = (int(after[k] or 0) - 1) * steps[k] + (kernel[k] - 1) * spread[k] + 1 - int(before[k] or 0)
        if auto in (b"SAME_UPPER", b"SAME_LOWER"):
            least = max(reach, 0)
            pads[k] = least // 2 if auto == b"SAME_UPPER" else least - least // 2
            pads[n + k] = least - pads[k]
        elif ceil:
            pads[n + k] = max(reach - pads[k], pads[n + k])
    rest = [a for a in node.attribute if a.name not in ("auto_pad", "ceil_mode", "pads")]
    del node.attribute[:]
    node.attribute.extend([*rest, helper.make_attribute("pads", pads)])


def _picks(model: Model, node: NodeProto, dims: Dims, held: dict[str, NDArray[Any]]) -> list[NodeProto]:
    """A Slice with steps as a Gather for each of its axes; none where it has no steps, or they are not known."""
    names = [*node.input[1:], *[""] * (5 - len(node.input))]
    if not names[3] or any(n and n not in held for n in names):
        return []
    starts, ends, steps = (held[names[k]].ravel().tolist() for k in (0, 1, 3))
    axes = held[names[2]].ravel().tolist() if names[2] else list(range(len(starts)))
    if all(step == 1 for step in steps) or any(dims[axis] is None for axis in axes):
        return []
    out, source = [], node.input[0]
    for k, (start, end, step, axis) in enumerate(zip(starts, ends, steps, axes, strict=True)):
        target = node.output[0] if k == len(axes) - 1 else model.fresh_name(f"{node.output[0]}_axis{axis}")
        stop = None if step < 0 and end < -int(dims[axis] or 0) else end
        where = np.arange(int(dims[axis] or 0))[start:stop:step]
        index = model.fresh_name(target + "_positions")
        model.weights[index] = Weight.of(where.astype(np.int64))
        out.append(helper.make_node("Gather", [source, index], [target], name=target, axis=axis % len(dims)))
        source = target
    return out
