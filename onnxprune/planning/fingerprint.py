"""What tells one graph from another whatever its weights are. Knows protobuf only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper

from onnxprune.model import Model


def fingerprint(model: Model) -> str:
    """32 hexadecimal digits of the structure of a normalised model: its operators, names and attributes, the types and
    shapes of its parameters. Their values do not count, nor the sizes of inputs, nor what was written for people: the
    same network trained further, or exported for another picture size, is the same graph."""
    digest = hashlib.sha256()
    for part in _model(model):
        digest.update(f"{part!r}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _model(model: Model) -> Iterator[Any]:
    yield sorted((o.domain, o.version) for o in model.skeleton.opset_import)
    yield sorted((name, weight.onnx_type, tuple(weight.shape)) for name, weight in model.weights.items())
    listed = [i for i in model.graph.input if i.name not in model.weights]
    yield [(i.name, i.type.tensor_type.elem_type) for i in listed], [o.name for o in model.graph.output]
    yield from map(_node, model.graph.node)


def _node(node: NodeProto) -> Any:
    attributes = sorted(((a.name, _value(a)) for a in node.attribute), key=lambda named: named[0])
    return node.domain, node.op_type, node.name, list(node.input), list(node.output), attributes


def _value(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else _plain(value)


def _plain(value: Any) -> Any:
    """What counts of a value of an attribute."""
    match value:
        case TensorProto():
            return value.data_type, list(value.dims)
        case SparseTensorProto():
            return value.values.data_type, list(value.dims)
        case GraphProto():
            names = [i.name for i in value.input], [o.name for o in value.output]
            return *names, [(t.name, _plain(t)) for t in value.initializer], [_node(n) for n in value.node]
    return value
