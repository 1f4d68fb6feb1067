"""Types, shapes and small values of every tensor: one pass over the nodes, at sizes that are numbers or expressions.

Each node is shown to ONNX's own inference together with the values that are already known, so a Reshape whose target
is computed from shapes needs no second pass; where sizes are expressions, `symbolic_shapes` fills in what ONNX leaves
open. No declared shape but the inputs' is believed: files carry stale ones. Knows nodes, no ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import GraphProto, helper

from onnxprune import guard
from onnxprune.model import Model, defined, traits
from onnxprune.shapes import body_inference, grids, sequences, symbolic_shapes
from onnxprune.shapes.body_inference import Body
from onnxprune.shapes.grids import Grid
from onnxprune.shapes.known import Pass
from onnxprune.shapes.node_record import NodeRecord, recorded
from onnxprune.shapes.node_view import Need, ValueType, ValueTypes, View, is_open, is_vague, merged
from onnxprune.shapes.onnx_inference import OnnxInference
from onnxprune.shapes.shape_rules import plausible, possible
from onnxprune.shapes.symbolic_values import LIMIT, Value, shape_value
from onnxprune.shapes.symbols import Lost, product
from onnxprune.shapes.values import FOLLOWED, FOLLOWED_TYPES, propagate

_DATALESS = frozenset([
    "Add", "And", "Cast", "Concat", "Conv", "DequantizeLinear", "Div", "Equal", "Gemm", "MatMul", "MatMulInteger",
    "Mul", "QuantizeLinear", "Sub", "Where",
])  # fmt: skip
"""Common operators whose output shape does not depend on what is in their inputs."""
_TELLING = {"Gather": "", "Range": "iuf", "Resize": "iuf", "Upsample": "f"}
"""Of which types (as numpy abbreviates them) the inputs are whose values ONNX's inference is told: where they may
decide the shape of what comes out. A Gather's indices are looked at, and no more."""
_TELLING_OTHERS = "biu"
_ELEMENT = {t: int(helper.np_dtype_to_tensor_dtype(t)) for t in FOLLOWED_TYPES}

Found = tuple[ValueTypes | None, list[Need]]
"""Of a node: the types of its outputs, None where it cannot run, and what has to hold for it to run."""


class Inference:
    """The passes over one model; equal nodes at equal shapes (repeated layers, the second pass) are inferred once."""

    def __init__(self, model: Model) -> None:
        versions = {o.domain: o.version for o in model.skeleton.opset_import}
        self._opset = versions.get("", versions.get("ai.onnx", 1))
        self._versions = versions | {"": self._opset}
        self._onnx = OnnxInference(list(model.skeleton.opset_import), model.skeleton.ir_version)
        self._weights = model.weights
        self._weight_types: dict[str, ValueType] = {n: (w.onnx_type, w.shape) for n, w in self._weights.items()}
        self._nodes = [recorded(n, self._versions) for n in model.skeleton.graph.node]
        self._bodies: dict[frozenset[str], list[NodeRecord]] = {}
        self._constants: dict[str, Value | None] = {}
        self._inferred: dict[Any, Found] = {}
        self._propagated: dict[Any, list[Value] | None] = {}

    def run(self, inputs: Mapping[str, ValueType], limit: float = math.inf) -> Pass | None:
        """One pass; None as soon as more than `limit` nodes failed."""
        state = Pass({**inputs, **self._weight_types})
        with guard.bounded("shape inference", 60 + len(self._nodes) / 100):
            for node in self._nodes:
                self._step(node, state)
                if state.failures > limit:
                    return None
        return state

    def constant(self, name: str) -> Value | None:
        """A weight that is small enough to be a value."""
        if name not in self._constants:
            weight = self._weights.get(name)
            small = weight is not None and weight.size <= LIMIT and weight.dtype in FOLLOWED_TYPES
            self._constants[name] = Value.of(weight.array()) if small and weight is not None else None
        return self._constants[name]

    def _value(self, name: str, state: Pass) -> Value | None:
        return state.values[name] if name in state.values else self.constant(name)

    def _step(self, node: NodeRecord, state: Pass) -> None:
        """Add what one node gives to what is known: its values if these follow, else its shapes."""
        values = self._values(node, state) if node.standard else None
        if values is not None:
            for name, value in zip(node.outputs, values, strict=False):
                if name:
                    state.values[name] = value
                    state.types[name] = (_ELEMENT[value.element], value.data.shape)
            return
        types = self._enter(node, state) if node.standard and node.op in traits.CONTROL else self._types(node, state)
        for name, value_type in zip(node.outputs, types, strict=False):
            if name and value_type is not None:
                state.give(name, value_type)
        if node.standard:
            self._follow(node, state)

    def _follow(self, node: NodeRecord, state: Pass) -> None:
        """Add what is known of the insides of what a node gives: what a sequence holds, indices along open axes."""
        if node.op in sequences.FOLLOWED:
            sequences.follow(node, state, partial(self._value, state=state), self._weights)
        if node.op in grids.FOLLOWED and len(node.outputs) == 1:
            grid = grids.follow(node.proto, [self._grid(n, state) for n in node.inputs], state.sizes(node.outputs[0]))
            if grid is not None:
                state.grids[node.outputs[0]] = grid

    def _values(self, node: NodeRecord, state: Pass) -> list[Value] | None:
        """The values of the outputs of a node that ONNX defines; None where they are not known, or too large."""
        if node.op in traits.SIZES:
            return _shape_values(node, state)
        if node.op not in FOLLOWED:
            return None
        given = [self._value(n, state) if n else None for n in node.inputs]
        if any(v is None and n for v, n in zip(given, node.inputs, strict=True)):
            return None
        key = (node.signature, *map(_content, given))
        if key not in self._propagated:
            self._propagated[key] = propagate(node.proto, given, self._opset)
        return self._propagated[key]

    def _grid(self, name: str, state: Pass) -> Grid | None:
        if name in state.grids:
            return state.grids[name]
        value = self._value(name, state) if name else None
        integers = value is not None and value.element.kind in "iu" and None not in value.data.ravel().tolist()
        return Grid.of(value) if integers and value is not None else None

    def _enter(self, node: NodeRecord, state: Pass) -> ValueTypes:
        """Infer the bodies of a node, and from them its outputs."""
        condition = self._value(node.inputs[0], state) if node.op == "If" else None
        known = condition is not None and condition.whole and condition.data.size == 1
        taken = bool(condition.data.all()) if known and condition is not None else None
        types = [state.types.get(n) if n else None for n in node.inputs]
        return body_inference.infer(node.proto, types, taken, partial(self._body, state))

    def _body(self, state: Pass, graph: GraphProto) -> Body:
        key = frozenset(defined(graph))
        if key not in self._bodies:
            self._bodies[key] = [recorded(n, self._versions) for n in graph.node]
        return Body(graph, partial(self._run_body, self._bodies[key], state), state.types, state.values, state.give)

    def _run_body(self, nodes: Sequence[NodeRecord], state: Pass) -> None:
        failures, needs = state.failures, len(state.needs)
        for node in nodes:
            self._step(node, state)
        state.failures = failures  # at sizes that are tried out, or in a branch that is never taken
        del state.needs[needs:]

    def _types(self, node: NodeRecord, state: Pass) -> ValueTypes:
        """The types of the outputs; a node that cannot run is counted."""
        types = [state.types.get(n) if n else None for n in node.inputs]
        values: list[Value | None] = [None] * len(types)
        if not node.standard or node.op not in _DATALESS:
            values = [self._value(n, state) if n else None for n in node.inputs]
        if node.standard and not possible(node.proto, types, values[-1] if values else None):
            state.failures += 1
            return []
        out, needs = self._found(node, types, values, state)
        state.needs += needs
        if out is None:
            state.failures += all(k is not None or not n for k, n in zip(types, node.inputs, strict=True))
            return []
        return out

    def _found(self, node: NodeRecord, types: ValueTypes, values: Sequence[Value | None], state: Pass) -> Found:
        """What is inferred of a node, which depends on its inputs only where no body reads anything else."""
        if node.captured:
            outer = {n: state.types[n] for n in node.captured if n in state.types}
            return self._infer(node, types, values, outer)
        present = bytes(map(bool, node.inputs))
        contents = tuple((i, *_content(v)) for i, v in enumerate(values) if v is not None)
        key = (node.signature, present, tuple(types), contents)
        if key not in self._inferred:
            self._inferred[key] = self._infer(node, types, values, {})
        return self._inferred[key]

    def _infer(
        self, node: NodeRecord, types: ValueTypes, values: Sequence[Value | None], outer: Mapping[str, ValueType]
    ) -> Found:
        telling = _TELLING.get(node.op, _TELLING_OTHERS)
        data = {i: v.data for i, v in enumerate(values) if v is not None and v.whole and v.data.dtype.kind in telling}
        out = self._onnx.outputs(node, types, outer, data)
        if not node.standard:
            view = View(node.proto, types, values, self._opset)
            return symbolic_shapes.with_presents(view, out), symbolic_shapes.needs(view)
        if out is not None and not plausible(node.proto, types, out):
            out = None
        if not is_open(types, values) and not is_vague(out):
            return out, []
        view = View(node.proto, types, values, self._opset)
        return merged(out, symbolic_shapes.infer(view)), view.needs


def _shape_values(node: NodeRecord, state: Pass) -> list[Value] | None:
    """What a Shape or Size gives; None where a size has no form."""
    dims = state.sizes(node.inputs[0])
    if dims is None or None in dims:
        return None
    known = [d for d in dims if d is not None]
    if node.op == "Shape":
        bounds = {a.name: a.i for a in node.proto.attribute}
        return [shape_value(known[bounds.get("start", 0) : bounds.get("end", len(known))])]
    try:
        return [Value.of(np.array(product(known), object), np.dtype(np.int64))]
    except Lost:
        return None


def _content(value: Value | None) -> tuple[Any, ...]:
    if value is None:
        return ()
    data = value.data
    return value.element, data.shape, data.tobytes() if value.whole else tuple(data.ravel().tolist())
