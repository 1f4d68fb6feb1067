"""The backstop of shape inference: operators that ONNX has no schema for are asked of ONNX Runtime, one at a time.

Knows one node and the types of its inputs, not the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, helper

from onnxprune.run import watched

Named = tuple[int | str | None, ...]
"""Dims: numbers, names of sizes that are handed on, None for unknown ones."""
RUN_LIMIT = 1 << 24
"""Nodes whose inputs have more elements are not run."""
_ELEMENTS = {
    "float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "double": TensorProto.DOUBLE,
    "bfloat16": TensorProto.BFLOAT16, "bool": TensorProto.BOOL, "string": TensorProto.STRING,
    "int8": TensorProto.INT8, "int16": TensorProto.INT16, "int32": TensorProto.INT32, "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
}  # fmt: skip


def alone(
    node: NodeProto,
    types: Mapping[str, TypeProto],
    constants: Mapping[str, TensorProto],
    opsets: Sequence[OperatorSetIdProto],
    ir: int,
) -> ModelProto:
    """A model of this node: what is known is an initializer, everything else an input."""
    given = [helper.make_value_info(n, t) for n, t in types.items() if n not in constants]
    outputs = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
    graph = helper.make_graph([node], "node", given, outputs, list(constants.values()))
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def probe_with_runtime(
    node: NodeProto,
    types: Mapping[str, TypeProto],
    constants: Mapping[str, TensorProto],
    opsets: Sequence[OperatorSetIdProto],
    ir: int,
) -> list[tuple[int, Named | None] | None]:
    """(element type, dims) of each output; where ONNX Runtime's own inference leaves a dimension open the node is run
    on two inputs, and only what both agree on is believed. No answer is [] (an operator that is not installed)."""
    import onnxruntime as ort

    if any(t.WhichOneof("value") != "tensor_type" for t in types.values()):
        return []
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        model = alone(node, types, constants, opsets, ir).SerializeToString()
        session = watched()(model, options, providers=["CPUExecutionProvider"])
        outputs = {o.name: o for o in session.get_outputs()}
    except Exception:  # ONNX Runtime's errors have no common base
        return []
    inferred: dict[str, Named] = {n: tuple(o.shape) for n, o in outputs.items()}
    measured: dict[str, Named | None] = {}
    if any(not d or None in d for d in inferred.values()):
        measured = _run(session)
    out: list[tuple[int, Named | None] | None] = []
    for name in node.output:
        element = _ELEMENTS.get(outputs[name].type.removeprefix("tensor(").rstrip(")")) if name in outputs else None
        dims: Named | None = inferred.get(name) or None
        if name in measured:
            dims = measured[name]
        out.append(None if element is None else (int(element), dims))
    return out


def _run(session: Any) -> dict[str, Named | None]:
    """The dims of outputs that several inputs agree on, integers that may be axes or sizes among them. Where sizes are
    open, they are tried with numbers, which says how many dims there are and no more."""
    inputs = session.get_inputs()
    names, shapes = [o.name for o in session.get_outputs()], list[list[tuple[int, ...]]]()
    opened = list(dict.fromkeys(d for i in inputs for d in i.shape if not isinstance(d, int)))
    sizes = {d: 11 + 2 * k for k, d in enumerate(opened)}
    integers = any("int" in i.type for i in inputs)
    for period, least in ((1, 0), (3, 0), (1, 1), (1, 2)) if integers else ((1, 0), (3, 0)):
        feed = {}
        for i in inputs:
            element = _ELEMENTS.get(i.type.removeprefix("tensor(").rstrip(")"))
            dims = [sizes.get(d, d) for d in i.shape]
            if element is None or None in i.shape or math.prod(dims) > RUN_LIMIT:
                return {}
            counted = np.arange(math.prod(dims)).reshape(dims) % period + least
            feed[i.name] = counted.astype(helper.tensor_dtype_to_np_dtype(element))
        with suppress(Exception):  # as above
            shapes.append([tuple(x.shape) for x in session.run(names, feed)])
    if len(shapes) < 2:
        return {}
    out: dict[str, Named | None] = {}
    for name, *found in zip(names, *shapes, strict=True):
        same = len({len(x) for x in found}) == 1
        columns = (set(column) for column in zip(*found, strict=True)) if same else ()
        out[name] = tuple(d.pop() if len(d) == 1 and not opened else None for d in columns) if same else None
    return out
