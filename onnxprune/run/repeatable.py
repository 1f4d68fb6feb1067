"""What a model does not do alike twice, as a proof sees it: what is drawn at random is a constant.

An operator that draws does so for every position on its own, and no two runs, and no two sizes, draw alike. Whatever it
draws, two models are equal only if they are where it draws a constant. A BatchNormalization in training is worse: ONNX
Runtime writes the new statistics over those that it was given, so that the next run of a session begins with them.
Knows nodes, no ids.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import Model, Weight, attribute, attributes, every_node, opset, rearranged, traits


def settled(model: Model, types: Callable[[str], int | None]) -> Model:
    """`model`, or a copy of it in which nothing is drawn: a draw is a point of its range, a Bernoulli its probability,
    a Dropout keeps everything; and every run begins alike. `types` gives the element type of a tensor, or None."""
    if opset(model) < 9 or not any(_draws(n) or _trains(n) for n in every_node(model.skeleton.graph)):
        return model
    model = model.copy()
    before: dict[int, list[NodeProto]] = defaultdict(list)
    for k, node in enumerate(every_node(model.skeleton.graph)):
        if _draws(node):
            before[k] += _constant(model, node, types)
        if _trains(node):
            before[k] += _computed(model, node, types)
    rearranged(model.skeleton.graph, before, {})
    return model


def _draws(node: NodeProto) -> bool:
    """Whether a node draws at random; a Dropout does only where it may be told to train."""
    if node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type in traits.DRAWING or (node.op_type == "Dropout" and len(node.input) > 2)


def _trains(node: NodeProto) -> bool:
    """Whether a node is a BatchNormalization that writes new statistics."""
    return node.op_type == "BatchNormalization" and bool(attribute(node, "training_mode", 0))


def _computed(model: Model, node: NodeProto, types: Callable[[str], int | None]) -> list[NodeProto]:
    """Make the statistics that `node` is given tensors of their own in every run: nothing is added, and no runtime can
    know that beforehand."""
    kind = types(node.input[3]) or TensorProto.FLOAT
    base = model.fresh_name(node.output[0] + "_nothing")
    model.weights[base + "_0"] = Weight.of(np.zeros((), helper.tensor_dtype_to_np_dtype(kind)), kind)
    steps = [
        helper.make_node("Size", [node.input[0]], [base + "_size"], name=base + "_size"),
        helper.make_node("Cast", [base + "_size"], [base + "_cast"], name=base + "_cast", to=kind),
        helper.make_node("Mul", [base + "_cast", base + "_0"], [base], name=base),
    ]
    for i in (3, 4):
        given, node.input[i] = node.input[i], f"{base}_{i}"
        steps.append(helper.make_node("Add", [given, base], [node.input[i]], name=node.input[i]))
    return steps


def _constant(model: Model, node: NodeProto, types: Callable[[str], int | None]) -> list[NodeProto]:
    """Make `node` one that draws nothing; what has to stand before it."""
    given = attributes(node)
    kind = given.get("dtype") or types(node.output[0]) or TensorProto.FLOAT
    if node.op_type == "Dropout":
        del node.input[2:]
        return []
    del node.attribute[:]
    if node.op_type == "Bernoulli":
        node.op_type = "Cast"
        node.attribute.append(helper.make_attribute("to", kind))
        return []
    normal = node.op_type.startswith("RandomNormal")
    low, high = (
        (given.get("mean", 0.0), given.get("scale", 1.0)) if normal else (given.get("low", 0.0), given.get("high", 1.0))
    )
    point = low + high if normal else low + 0.7 * (high - low)
    shape = model.fresh_name(node.output[0] + "_shape")
    first = []
    if node.op_type in traits.DRAWING_LIKE:
        first = [helper.make_node("Shape", [node.input[0]], [shape], name=shape)]
    else:
        model.weights[shape] = Weight.of(np.array(given["shape"], np.int64))
    node.op_type, node.input[:] = "ConstantOfShape", [shape]
    node.attribute.append(helper.make_attribute("value", helper.make_tensor("value", kind, [1], [point])))
    return first
