"""What a tensor is before it is rounded and clipped to integers: a layer is fitted to that, since what is clipped away
tells how far beyond the limits it was. Knows operators that give integers, no units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.fit.codes import given, operand
from onnxprune.fit.walk import Walk
from onnxprune.model import Array, Model, Weight, attribute, attributes, opset
from onnxprune.run import open_session

FORMS: Mapping[str, tuple[str, int | None]] = {
    "QLinearConv": ("Conv", 8),
    "QLinearMatMul": ("MatMul", None),
    "QGemm": ("Gemm", 6),
}
"""By operator: the one of real numbers that computes the same, and where it has its bias."""


def unclipped(walk: Walk, name: str) -> Iterable[Array]:
    """A tensor in every batch as its node would give it in real numbers; where that is no node that gives integers, as
    it is. To be gone through once."""
    node = walk.nodes[walk.made_by[name]] if name in walk.made_by else None
    if node is not None and node.op_type == "QLinearAdd":
        return [a + b for a, b in zip(walk.real(node.input[0]), walk.real(node.input[3]), strict=True)]
    model = _in_floats(node, walk) if node is not None and node.op_type in FORMS else None
    if node is None or model is None:
        return walk.once(name)
    session = open_session(model, walk.providers)
    axis = -1 if attribute(node, "channels_last", 0) else 1
    first = (np.moveaxis(x, axis, 1) for x in walk.real(node.input[0]))
    return [np.moveaxis(session.run(["y"], {"x": x})[0], 1, axis) for x in first]


def _in_floats(node: NodeProto, walk: Walk) -> Model | None:
    """A model of the node alone, from `x` to `y`, channels first; None where its weights are computed."""
    kind, bias = FORMS[node.op_type]
    parts = [operand(node, k, walk.model, walk.makers) for k in (3, bias) if k and given(node, k)]
    if None in parts:
        return None
    weights = {x: Weight.of(p.read(walk.model).astype(np.float32)) for x, p in zip("wb", parts, strict=False) if p}
    attrs = attributes(node, "channels_last")
    if kind == "Gemm":
        attrs["beta"] = attrs.get("alpha", 1.0)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    graph = helper.make_graph([helper.make_node(kind, ["x", *weights], ["y"], **attrs)], "unclipped", [x], [y])
    opsets = [helper.make_opsetid("", max(opset(walk.model), 11))]
    ir_version = max(walk.model.skeleton.ir_version, 4)
    return Model(helper.make_model(graph, ir_version=ir_version, opset_imports=opsets), weights)
