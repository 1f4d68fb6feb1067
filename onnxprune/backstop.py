"""The backstop of shape inference: operators that ONNX has no schema for are asked of ONNX Runtime, one at a time.

Knows one node and the types of its inputs, not the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, helper

from .runtime import watched

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
    """The dims of outputs, measured at two values of the inputs and of their open sizes; None for one of these that
    differs and is none of the open ones."""
    inputs = session.get_inputs()
    names, shapes = [o.name for o in session.get_outputs()], []
    opened = list(dict.fromkeys(d for i in inputs for d in i.shape if not isinstance(d, int)))
    tried = [{d: 11 + 2 * k + turn * 3**k for k, d in enumerate(opened)} for turn in (0, 1)]  # none is another + c
    for period, sizes in zip((1, 3), tried, strict=True):
        feed = {}
        for i in inputs:
            element = _ELEMENTS.get(i.type.removeprefix("tensor(").rstrip(")"))
            dims = [sizes.get(d, d) for d in i.shape]
            if element is None or None in i.shape or math.prod(dims) > RUN_LIMIT:
                return {}
            counted = np.arange(math.prod(dims)).reshape(dims) % period
            feed[i.name] = counted.astype(helper.tensor_dtype_to_np_dtype(element))
        try:
            shapes.append([tuple(x.shape) for x in session.run(names, feed)])
        except Exception:  # as above
            return {}
    told = {(tried[0][size], tried[1][size]): size for size in opened}
    first, second = shapes
    return {
        n: tuple(a if a == b else told.get((a, b)) for a, b in zip(x, y, strict=True)) if len(x) == len(y) else None
        for n, x, y in zip(names, first, second, strict=True)
    }
