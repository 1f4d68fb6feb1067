"""Types, shapes and small values of every tensor: one pass over the nodes, at sizes that are numbers or expressions.

Each node is shown to ONNX's own inference together with the values that are already known, so a Reshape whose target
is computed from shapes needs no second pass; where sizes are expressions, `symbolic_shapes` fills in what ONNX leaves
open. No declared shape but the inputs' is believed: files carry stale ones. Knows nodes, no ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper, shape_inference

from onnxprune import guard
from onnxprune.model import Model, bodies, captured, defined, traits
from onnxprune.shapes import body_inference, grids, symbolic_shapes
from onnxprune.shapes.backstop import alone, probe_with_runtime
from onnxprune.shapes.body_inference import Body
from onnxprune.shapes.grids import Grid
from onnxprune.shapes.known import Pass
from onnxprune.shapes.node_view import Kind, Need, Sizes, View, dims_of, is_open, is_vague, merged, type_of
from onnxprune.shapes.schemas import schema_of
from onnxprune.shapes.shape_rules import LIKE_FIRST, plausible, possible
from onnxprune.shapes.symbolic_values import LIMIT, Value, shape_value
from onnxprune.shapes.symbols import Lost, Size, product
from onnxprune.shapes.values import FOLLOWED, FOLLOWED_TYPES, propagate

_DATALESS = frozenset([
    "Add", "And", "Cast", "Concat", "Conv", "DequantizeLinear", "Div", "Equal", "Gemm", "MatMul", "MatMulInteger",
    "Mul", "QuantizeLinear", "Sub", "Where",
])  # fmt: skip
"""Common operators whose output shape does not depend on what is in their inputs; nor does Gather's, whose indices are
only looked at."""


_INTEGERS = (TensorProto.INT32, TensorProto.INT64)


def _rank_only(kind: Kind | None) -> Kind | None:
    dims = dims_of(kind)
    return (kind[0], (None,) * len(dims)) if isinstance(kind, tuple) and dims is not None else kind


@dataclass(frozen=True)
class _Node:
    proto: NodeProto
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    standard: bool
    schema: Any
    signature: bytes
    captured: tuple[str, ...]

    @property
    def memoised(self) -> bool:
        return not self.captured


class Inference:
    """The passes over one model; equal nodes at equal shapes (repeated layers, the second pass) are inferred once."""

    def __init__(self, model: Model) -> None:
        self._weights = model.weights
        self._values: dict[str, Value | None] = {}
        self._known_types: dict[Kind, TypeProto] = {}
        self._named: dict[str, Size] = {}
        self._memo: dict[Any, tuple[list[Kind | None] | None, list[Need]]] = {}
        self._followed: dict[Any, list[Value] | None] = {}
        self._schemas: dict[tuple[str, str], Any] = {}
        self._ir = model.proto.ir_version
        self._opsets = list(model.proto.opset_import)
        self._versions = {o.domain: o.version for o in self._opsets}
        self._opset = self._versions.get("", self._versions.get("ai.onnx", 1))
        self._nodes = [self._described(n) for n in model.proto.graph.node]
        self._bodies: dict[frozenset[str], list[_Node]] = {}
        self._weight_kinds: dict[str, Kind] = {n: (w.onnx_type, w.shape) for n, w in self._weights.items()}

    def run(self, inputs: Mapping[str, Kind], limit: float = math.inf) -> Pass | None:
        """One pass; None as soon as more than `limit` nodes failed."""
        state = Pass({**inputs, **self._weight_kinds})
        with guard.bounded("shape inference", 60 + len(self._nodes) / 100):
            for node in self._nodes:
                self._step(node, state)
                if state.failures > limit:
                    return None
        return state

    def _described(self, node: NodeProto) -> _Node:
        op, domain, outputs, attributes = node.op_type, node.domain, tuple(node.output), list(node.attribute)
        standard = domain in ("", "ai.onnx")
        if (op, domain) not in self._schemas:
            self._schemas[op, domain] = self._schema(op, "" if standard else domain)
        parts = [op.encode(), domain.encode(), bytes(map(bool, outputs))]
        parts += sorted(a.SerializeToString(deterministic=True) for a in attributes)
        outer = tuple(dict.fromkeys(name for _, body in bodies(node) for name in captured(body)))
        schema = self._schemas[op, domain]
        return _Node(node, op, tuple(node.input), outputs, standard, schema, b"\0".join(parts), outer)

    def _schema(self, op: str, domain: str) -> Any:
        version = self._versions.get(domain) if domain else self._opset
        return None if version is None else schema_of(op, domain, version)

    def _value(self, name: str, state: Pass) -> Value | None:
        return state.values[name] if name in state.values else self.constant(name)

    def constant(self, name: str) -> Value | None:
        """A weight that is small enough to be a value."""
        if name not in self._values:
            weight = self._weights.get(name)
            small = weight is not None and weight.size <= LIMIT and weight.dtype in FOLLOWED_TYPES
            self._values[name] = Value.of(weight.array()) if small and weight is not None else None
        return self._values[name]

    def _step(self, node: _Node, state: Pass) -> None:
        found = self._shape_of(node, state) if node.standard else None
        if found is None and node.standard and node.op in FOLLOWED:
            given = [self._value(n, state) if n else None for n in node.inputs]
            if all(v is not None or not n for v, n in zip(given, node.inputs, strict=True)):
                found = self._follow(node, given)
        if found is not None:
            for name, value in zip(node.outputs, found, strict=False):
                if name:
                    state.values[name] = value
                    state.kinds[name] = (_ELEMENT[value.element], value.data.shape)
            return
        kinds = self._enter(node, state) if node.standard and node.op in traits.CONTROL else self._infer(node, state)
        for name, kind in zip(node.outputs, kinds, strict=False):
            if name and kind is not None:
                state.give(name, kind)
        if node.standard and node.op in grids.FOLLOWED and len(node.outputs) == 1:
            grid = grids.follow(node.proto, [self._grid(n, state) for n in node.inputs], state.sizes(node.outputs[0]))
            if grid is not None:
                state.grids[node.outputs[0]] = grid

    def _grid(self, name: str, state: Pass) -> Grid | None:
        if name in state.grids:
            return state.grids[name]
        value = self._value(name, state) if name else None
        integers = value is not None and value.element.kind in "iu" and None not in value.data.ravel().tolist()
        return Grid.of(value) if integers and value is not None else None

    def _enter(self, node: _Node, state: Pass) -> Sequence[Kind | None]:
        """Infer the bodies of a node, and from them its outputs."""
        condition = self._value(node.inputs[0], state) if node.op == "If" else None
        known = condition is not None and condition.whole and condition.data.size == 1

        def body(graph: GraphProto) -> Body:
            def run() -> None:
                failures, needs = state.failures, len(state.needs)
                for inner in nodes:
                    self._step(inner, state)
                state.failures = failures  # at sizes that are tried out, or in a branch that is never taken
                del state.needs[needs:]

            nodes = self._bodies.setdefault(frozenset(defined(graph)), [self._described(n) for n in graph.node])
            return Body(graph, run, state.kinds, state.values, state.give)

        kinds = [state.kinds.get(n) if n else None for n in node.inputs]
        taken = bool(condition.data.all()) if known and condition is not None else None
        return body_inference.infer(node.proto, kinds, taken, body)

    def _follow(self, node: _Node, given: Sequence[Value | None]) -> list[Value] | None:
        key = (node.signature, *map(_content, given))
        if key not in self._followed:
            self._followed[key] = propagate(node.proto, given, self._opset)
        return self._followed[key]

    def _shape_of(self, node: _Node, state: Pass) -> list[Value] | None:
        if node.op not in traits.SIZES:
            return None
        dims = state.sizes(node.inputs[0])
        if dims is None or None in dims:
            return None
        known = [d for d in dims if d is not None]
        if node.op == "Size":
            try:
                whole = np.array(product(known), object)
            except Lost:
                return None
            return [Value.of(whole, np.dtype(np.int64))]
        bounds = {a.name: a.i for a in node.proto.attribute}
        return [shape_value(known[bounds.get("start", 0) : bounds.get("end", len(known))])]

    def _infer(self, node: _Node, state: Pass) -> Sequence[Kind | None]:
        proto = node.proto
        kinds = [state.kinds.get(n) if n else None for n in node.inputs]
        values: list[Value | None] = [None] * len(kinds)
        if not node.standard or node.op not in _DATALESS:
            values = [self._value(n, state) if n else None for n in node.inputs]
        telling = {"Gather": "", "Range": "iuf", "Resize": "iuf", "Upsample": "f"}.get(node.op, "biu")
        if node.standard and not possible(proto, kinds, values[-1] if values else None):
            state.failures += 1
            return []
        data = {i: v.data for i, v in enumerate(values) if v is not None and v.whole and v.data.dtype.kind in telling}
        key = None
        if node.memoised:
            present = bytes(map(bool, node.inputs))
            contents = tuple((i, *_content(v)) for i, v in enumerate(values) if v is not None)
            key = (node.signature, present, tuple(kinds), contents)
        if key is None or key not in self._memo:
            out = self._ask(node, kinds, data, state)
            if out is not None and node.standard and not plausible(proto, kinds, out):
                out = None
            needs: list[Need] = []
            if node.standard and (is_open(kinds, values) or is_vague(out)):
                view = View(proto, kinds, values, self._opset)
                out = merged(out, symbolic_shapes.infer(view))
                needs = view.needs
            if key is not None:
                self._memo[key] = out, needs
        else:
            out, needs = self._memo[key]
        state.needs += needs
        if out is None:
            state.failures += all(k is not None or not n for k, n in zip(kinds, node.inputs, strict=True))
            return []
        return out

    def _ask(
        self, node: _Node, given: Sequence[Kind | None], data: Mapping[int, Any], state: Pass
    ) -> list[Kind | None] | None:
        """The kinds of the outputs, as ONNX or, for other domains, ONNX Runtime infers them; None: it cannot run."""
        proto, names = node.proto, node.inputs
        types = {n: self._type(k) for n, k in zip(names, given, strict=True) if n}
        types |= {n: self._type(state.kinds[n]) for n in node.captured if n in state.kinds}
        tensors = {names[i]: numpy_helper.from_array(x, names[i]) for i, x in data.items()}
        if node.schema is None and node.standard and proto.op_type in LIKE_FIRST:
            return list(given[:1])
        if node.schema is None:
            return self._probed(proto, types, tensors)
        try:
            if node.schema.has_type_and_shape_inference_function:
                found = shape_inference.infer_node_outputs(
                    node.schema, proto, types, tensors, opset_imports=self._opsets, ir_version=self._ir
                )
            else:
                found = self._whole(proto, types, tensors)
        except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
            if node.schema.has_type_and_shape_inference_function:
                return None
            found = {}  # a function whose body ONNX cannot read, such as one without an attribute that has a default
        kinds = [self._kind(found[n]) if n in found else None for n in proto.output]
        if node.standard and proto.op_type in LIKE_FIRST and kinds and dims_of(kinds[0]) is None:
            kinds[0] = given[0]  # ONNX leaves the shape of these out
        vague = any(
            n and dims_of(k) is None and not isinstance(k, bytes) for n, k in zip(proto.output, kinds, strict=True)
        )
        told = all(dims_of(k) is not None for n, k in zip(names, given, strict=True) if n)
        if vague and (told or not node.standard):
            probed = self._probed(proto, types, tensors)
            if node.standard and any(
                n not in tensors and t.tensor_type.elem_type in _INTEGERS for n, t in types.items()
            ):
                probed = [_rank_only(k) for k in probed]  # they may be axes or sizes
            return probed or (kinds if found else None)
        return kinds

    def _probed(
        self, proto: NodeProto, types: Mapping[str, TypeProto], tensors: Mapping[str, TensorProto]
    ) -> list[Kind | None]:
        found = probe_with_runtime(proto, types, tensors, self._opsets, self._ir)
        return [None if k is None else (k[0], self._sizes(k[1])) for k in found]

    def _whole(
        self, proto: NodeProto, types: Mapping[str, TypeProto], tensors: Mapping[str, TensorProto]
    ) -> dict[str, TypeProto]:
        """Operators that ONNX defines by a function body only are inferred as a model of one node."""
        model = alone(proto, types, tensors, self._opsets, self._ir)
        graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        return {v.name: v.type for v in (*graph.value_info, *graph.output)}

    def _type(self, kind: Kind | None) -> TypeProto:
        if kind is None:
            return TypeProto()
        if kind not in self._known_types:
            for d in dims_of(kind) or ():
                if isinstance(d, Size):
                    self._named[d.text] = d
            self._known_types[kind] = type_of(kind)
        return self._known_types[kind]

    def _kind(self, proto: TypeProto) -> Kind | None:
        which = proto.WhichOneof("value")
        if which != "tensor_type":
            return proto.SerializeToString(deterministic=True) if which else None
        tensor = proto.tensor_type
        if not tensor.HasField("shape"):
            return tensor.elem_type, None
        return tensor.elem_type, self._sizes(
            [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
        )

    def _sizes(self, dims: Iterable[int | str | None] | None) -> Sizes | None:
        """Numbers, and names of sizes that were handed on; names that ONNX made up mean nothing."""
        return None if dims is None else tuple(d if isinstance(d, int) else self._named.get(d or "") for d in dims)


_ELEMENT = {t: int(helper.np_dtype_to_tensor_dtype(t)) for t in FOLLOWED_TYPES}


def _content(value: Value | None) -> tuple[Any, ...]:
    if value is None:
        return ()
    data = value.data
    return value.element, data.shape, data.tobytes() if value.whole else tuple(data.ravel().tolist())
