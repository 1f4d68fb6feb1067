"""The backstop of shape inference: operators that ONNX has no schema for are asked of ONNX Runtime, one at a time.

Knows one node and the types of its inputs, not the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, helper

from onnxprune.run import onnx_runtime, watched, with_stand_ins

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
_COUNTS = ((1, 0), (3, 0))
"""(period, least): inputs of a trial run count up to `period`, from `least` on."""
_INTEGER_COUNTS = (*_COUNTS, (1, 1), (1, 2))
"""The same where there are integers: these may be axes or sizes, which a result depends on."""


@dataclass(frozen=True)
class LoneNode:
    """A node taken out of its graph: by name the types of what it reads, and the values of what is constant."""

    proto: NodeProto
    types: dict[str, TypeProto]
    constants: dict[str, TensorProto]
    opsets: list[OperatorSetIdProto]
    ir_version: int

    def model(self) -> ModelProto:
        """A model of this node: what is known is an initializer, everything else an input."""
        given = [helper.make_value_info(n, t) for n, t in self.types.items() if n not in self.constants]
        outputs = [helper.make_empty_tensor_value_info(n) for n in self.proto.output if n]
        graph = helper.make_graph([self.proto], "node", given, outputs, list(self.constants.values()))
        return helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)


def probe_with_runtime(node: LoneNode) -> list[tuple[int, Named | None] | None]:
    """(element type, dims) of each output; where ONNX Runtime's own inference leaves a dimension open the node is run
    on two inputs, and only what both agree on is believed. No answer is [] (an operator that is not installed).
    RuntimeFailure where there is no ONNX Runtime to ask."""
    if any(t.WhichOneof("value") != "tensor_type" for t in node.types.values()):
        return []
    runtime = onnx_runtime()
    try:
        session = _session(node, runtime)
        outputs = {o.name: o for o in session.get_outputs()}
    except Exception:  # ONNX Runtime's errors have no common base
        return []
    found: dict[str, Named | None] = {n: tuple(o.shape) or None for n, o in outputs.items()}
    if any(not dims or None in dims for dims in found.values()):
        found |= _measured(session)
    elements = {n: _element(o) for n, o in outputs.items()}
    return [None if (element := elements.get(n)) is None else (element, found.get(n)) for n in node.proto.output]


def _session(node: LoneNode, ort: Any) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    processor = ["CPUExecutionProvider"]
    return with_stand_ins(node.model(), processor, lambda source: watched()(source, options, providers=processor))


def _element(argument: Any) -> int | None:
    """The element type of an input or output of a session; None where it is no tensor, or of no type that is known."""
    found = _ELEMENTS.get(argument.type.removeprefix("tensor(").rstrip(")"))
    return None if found is None else int(found)


def _measured(session: Any) -> dict[str, Named | None]:
    """The dims of outputs that several inputs agree on. Where sizes are open, they are tried with numbers, which says
    how many dims there are and no more."""
    inputs = session.get_inputs()
    names, shapes = [o.name for o in session.get_outputs()], list[list[tuple[int, ...]]]()
    opened = list(dict.fromkeys(d for i in inputs for d in i.shape if not isinstance(d, int)))
    sizes = {d: 11 + 2 * k for k, d in enumerate(opened)}
    for period, least in _INTEGER_COUNTS if any("int" in i.type for i in inputs) else _COUNTS:
        feed = {i.name: _counting(i, sizes, period, least) for i in inputs}
        if any(x is None for x in feed.values()):
            return {}
        with suppress(Exception):  # as above
            shapes.append([tuple(x.shape) for x in session.run(names, feed)])
    if len(shapes) < 2:
        return {}
    return {name: _agreed(found, not opened) for name, *found in zip(names, *shapes, strict=True)}


def _counting(argument: Any, sizes: Mapping[Any, int], period: int, least: int) -> Any:
    """An array for an input of a session; None where it has no type or size that can be tried."""
    element = _element(argument)
    dims = [sizes.get(d, d) for d in argument.shape]
    if element is None or None in argument.shape or math.prod(dims) > RUN_LIMIT:
        return None
    counted = np.arange(math.prod(dims)).reshape(dims) % period + least
    return counted.astype(helper.tensor_dtype_to_np_dtype(element))


def _agreed(shapes: Sequence[tuple[int, ...]], believed: bool) -> Named | None:
    """What several runs agree on: the rank, and where the numbers are to be believed the dims."""
    if len({len(x) for x in shapes}) > 1:
        return None
    columns = (set(column) for column in zip(*shapes, strict=True))
    return tuple(d.pop() if len(d) == 1 and believed else None for d in columns)
