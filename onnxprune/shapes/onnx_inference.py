"""What ONNX's own inference says of a node, and ONNX Runtime where ONNX has no definition or leaves a shape open.

ONNX hands sizes on by their names, so every expression is shown to it under the text that it is written as, and read
back from that. Knows one node at a time, not the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import OperatorSetIdProto, TensorProto, TypeProto, numpy_helper, shape_inference

from onnxprune.shapes.backstop import LoneNode, probe_with_runtime
from onnxprune.shapes.node_record import NodeRecord
from onnxprune.shapes.node_view import SymbolicDims, ValueType, ValueTypes, dims_of, type_of
from onnxprune.shapes.shape_rules import LIKE_FIRST
from onnxprune.shapes.symbols import Size

_INTEGERS = (TensorProto.INT32, TensorProto.INT64)


class OnnxInference:
    """ONNX's inference at the operator versions and the IR version of one model."""

    def __init__(self, opsets: list[OperatorSetIdProto], ir_version: int) -> None:
        self._opsets = opsets
        self._ir_version = ir_version
        self._protos: dict[ValueType, TypeProto] = {}
        self._named: dict[str, Size] = {}

    def outputs(
        self, node: NodeRecord, given: ValueTypes, outer: Mapping[str, ValueType], data: Mapping[int, Any]
    ) -> ValueTypes | None:
        """The types of a node's outputs, from those of its inputs and of what its bodies read from outside; `data`:
        the inputs whose values are known, by position. None: the node cannot run."""
        if node.schema is None and _keeps_shape(node):
            return list(given[:1])
        alone = self._alone(node, given, outer, data)
        if node.schema is None:
            return self._probed(alone)
        found = _by_schema(node.schema, alone)
        if found is None:
            return None
        types = [self._value_type(found[n]) if n in found else None for n in node.outputs]
        if _keeps_shape(node) and types and dims_of(types[0]) is None:  # ONNX leaves the shape of these out
            types[0] = _shaped_like(given[0], types[0])
        if _left_open(node, given, types):
            return self._measured(node, alone) or (types if found else None)
        return types

    def _alone(
        self, node: NodeRecord, given: ValueTypes, outer: Mapping[str, ValueType], data: Mapping[int, Any]
    ) -> LoneNode:
        types = {n: self._proto(k) for n, k in zip(node.inputs, given, strict=True) if n}
        types |= {n: self._proto(k) for n, k in outer.items()}
        constants = {node.inputs[i]: numpy_helper.from_array(x, node.inputs[i]) for i, x in data.items()}
        return LoneNode(node.proto, types, constants, self._opsets, self._ir_version)

    def _probed(self, node: LoneNode) -> ValueTypes:
        return [None if k is None else (k[0], self._sizes(k[1])) for k in probe_with_runtime(node)]

    def _measured(self, node: NodeRecord, alone: LoneNode) -> ValueTypes:
        """As ONNX Runtime says; only the ranks where it was tried on integers that may be axes or sizes."""
        probed = self._probed(alone)
        return [_rank_only(k) for k in probed] if node.standard and _reads_integers(alone) else probed

    def _proto(self, value_type: ValueType | None) -> TypeProto:
        if value_type is None:
            return TypeProto()
        if value_type not in self._protos:
            self._named |= {d.text: d for d in dims_of(value_type) or () if isinstance(d, Size)}
            self._protos[value_type] = type_of(value_type)
        return self._protos[value_type]

    def _value_type(self, proto: TypeProto) -> ValueType | None:
        which = proto.WhichOneof("value")
        if which != "tensor_type":
            return proto.SerializeToString(deterministic=True) if which else None
        tensor = proto.tensor_type
        if not tensor.HasField("shape"):
            return tensor.elem_type, None
        return tensor.elem_type, self._sizes(
            [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
        )

    def _sizes(self, dims: Iterable[int | str | None] | None) -> SymbolicDims | None:
        """Numbers, and names of sizes that were handed on; names that ONNX made up mean nothing."""
        return None if dims is None else tuple(d if isinstance(d, int) else self._named.get(d or "") for d in dims)


def _by_schema(schema: Any, node: LoneNode) -> Mapping[str, TypeProto] | None:
    """The types of the outputs, by name, as ONNX's definition gives them; None: the node cannot run."""
    by_function = not schema.has_type_and_shape_inference_function
    try:
        if by_function:
            return _by_function_body(node)
        return shape_inference.infer_node_outputs(
            schema, node.proto, node.types, node.constants, opset_imports=node.opsets, ir_version=node.ir_version
        )
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return {} if by_function else None  # ONNX cannot read a body that needs an attribute with a default


def _by_function_body(node: LoneNode) -> dict[str, TypeProto]:
    """Operators that ONNX defines by a function body only are inferred as a model of one node."""
    graph = shape_inference.infer_shapes(node.model(), strict_mode=True, data_prop=True).graph
    return {v.name: v.type for v in (*graph.value_info, *graph.output)}


def _keeps_shape(node: NodeRecord) -> bool:
    return (node.op if node.standard else f"{node.proto.domain}::{node.op}") in LIKE_FIRST


def _shaped_like(first: ValueType | None, found: ValueType | None) -> ValueType | None:
    """The type of an output that has the shape of the first input, and its element type where no other is known."""
    if isinstance(first, tuple) and isinstance(found, tuple) and found[0]:
        return found[0], first[1]
    return first


def _left_open(node: NodeRecord, given: ValueTypes, types: ValueTypes) -> bool:
    """Whether not even the rank of an output came out, although ONNX's inference was told all it needs."""
    if node.standard and any(n and dims_of(k) is None for n, k in zip(node.inputs, given, strict=True)):
        return False
    open_ = (dims_of(k) is None and not isinstance(k, bytes) for k in types)
    return any(n and is_open for n, is_open in zip(node.outputs, open_, strict=True))


def _reads_integers(node: LoneNode) -> bool:
    """Whether it reads integers whose values are not known."""
    return any(n not in node.constants and t.tensor_type.elem_type in _INTEGERS for n, t in node.types.items())


def _rank_only(value_type: ValueType | None) -> ValueType | None:
    dims = dims_of(value_type)
    return (value_type[0], (None,) * len(dims)) if isinstance(value_type, tuple) and dims is not None else value_type
