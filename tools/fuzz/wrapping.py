"""Node tests of the onnx wheel put between two layers with weights, so that there is something to prune around them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
BYTES = (TensorProto.UINT8, TensorProto.INT8)
CASTS = (TensorProto.BOOL, TensorProto.INT32, TensorProto.INT64, TensorProto.INT16)
WIDTH = 3
"""Channels that a layer reads or gives outside."""
NEWEST, IR = 26, 13
"""The newest opset and IR version that ONNX Runtime loads, instead of later ones."""


@dataclass
class Wrapped:
    """A node test between layers: the model, what stands before and behind the node, inputs as the test has them."""

    name: str
    model: ModelProto
    producers: list[tuple[str, str, int]] = field(default_factory=list)
    """(weight, bias, axis of the weight that the node reads)"""
    consumers: list[tuple[str, int]] = field(default_factory=list)
    direct: set[str] = field(default_factory=set)
    """Tensors of the test that come from a layer with nothing in between: where a channel is zero, so are they."""
    feeds: dict[str, NDArray[Any]] = field(default_factory=dict)
    opened: str = ""
    """The input whose first axis is of any size."""


class _Wrap:
    """Builds one `Wrapped`: `conv` puts convolutions along axis 1 instead of products along the last axis."""

    def __init__(self, case: Any, name: str, conv: bool, way: str = "") -> None:
        self.model = ModelProto()
        self.model.CopyFrom(case.model)
        self.model.ir_version = min(case.model.ir_version, IR)
        for domain in self.model.opset_import:
            if domain.domain in ("", "ai.onnx"):
                domain.version = min(domain.version, NEWEST)
        self.out = Wrapped(name, self.model)
        self.conv = conv
        self.random = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.after: list[NodeProto] = []
        self._inputs(case, way)
        self._outputs(case)
        graph = self.model.graph
        inner = [*self.nodes, *graph.node, *self.after]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(inner)

    def _inputs(self, case: Any, way: str) -> None:
        graph = self.model.graph
        values = dict(zip([i.name for i in graph.input], case.data_sets[0][0], strict=False))
        kept: list[ValueInfoProto] = []
        wanted = _chosen(graph.input, self.conv)[: None if way == "all" else 1]
        for info in graph.input:
            value = values.get(info.name)
            if info.name in wanted and isinstance(value, np.ndarray) and value.size:
                kept.append(self._produce(info, value))
                if way == "open":
                    self.out.opened = kept[-1].name
                    kept[-1].type.tensor_type.shape.dim[0].dim_param = "N"
            elif way == "fed" or not isinstance(value, np.ndarray) or value.dtype == object:
                kept.append(info)
                if value is not None:
                    self.out.feeds[info.name] = value
            else:
                tensor = numpy_helper.from_array(value, info.name)
                graph.initializer.append(tensor)
        del graph.input[:]
        graph.input.extend(kept)

    def _produce(self, info: ValueInfoProto, value: NDArray[Any]) -> ValueInfoProto:
        """A layer whose output has the shape of `info`, about where the test's own values lie."""
        name, kind = info.name, info.type.tensor_type.elem_type
        shape, axis = [*value.shape], 1 if self.conv else value.ndim - 1
        width = shape[axis]
        shape[axis] = WIDTH
        real = value.astype(np.float32) if kind in FLOATS else np.zeros(value.shape, np.float32)
        middle = float(np.nan_to_num(real).mean()) if real.size else 0.0
        spread = min(float(np.nan_to_num(real).std()) if real.size else 1.0, 10.0) or 1.0
        ends = [width, WIDTH, *[1] * (value.ndim - 2)] if self.conv else [WIDTH, width]
        weight = self._weight(name, spread * self.random.standard_normal(ends) / np.sqrt(WIDTH))
        bias = self._weight(name + "_bias", middle + 0.3 * spread * self.random.standard_normal(width))
        source, base = f"{name}_given", f"{name}_made"
        direct = kind == TensorProto.FLOAT
        last = name if direct else f"{base}_float"
        if self.conv:
            self.nodes.append(helper.make_node("Conv", [source, weight, bias], [last], name=base))
        else:
            self.nodes += [
                helper.make_node("MatMul", [source, weight], [base], name=base),
                helper.make_node("Add", [base, bias], [last], name=base + "_sum"),
            ]
        if direct:
            self.out.direct.add(name)
        else:
            self.nodes.append(self._cast(last, name, kind))
        self.out.producers.append((weight, bias, 0 if self.conv else 1))
        self.out.feeds[source] = self.random.standard_normal(shape).astype(np.float32)
        return helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)

    def _cast(self, source: str, target: str, kind: int) -> NodeProto:
        if kind in BYTES:
            scale = self._weight(target + "_step", np.full((), 0.05))
            zero = numpy_helper.from_array(np.array(120 if kind == TensorProto.UINT8 else 3).astype(
                helper.tensor_dtype_to_np_dtype(kind)), self._free(target + "_zero"))  # fmt: skip
            self.model.graph.initializer.append(zero)
            return helper.make_node("QuantizeLinear", [source, scale, zero.name], [target], name=target + "_as")
        if kind == TensorProto.BOOL:
            none = self._weight(target + "_none", np.zeros(()))
            return helper.make_node("Greater", [source, none], [target], name=target + "_as")
        return helper.make_node("Cast", [source], [target], name=target + "_as", to=kind)

    def _outputs(self, case: Any) -> None:
        graph = self.model.graph
        kept: list[ValueInfoProto] = []
        given = {t.name for t in graph.initializer} | {i.name for i in graph.input}
        for info, value in zip(graph.output, case.data_sets[0][1], strict=False):
            kind = info.type.tensor_type.elem_type
            fits = isinstance(value, np.ndarray) and value.ndim >= (3 if self.conv else 1)
            if not fits or kind not in (*FLOATS, *BYTES, *CASTS) or info.name in given:
                kept.append(info)
                continue
            kept.append(self._consume(info.name, kind, value.shape))
        del graph.output[:]
        graph.output.extend(kept)

    def _consume(self, name: str, kind: int, shape: Sequence[int]) -> ValueInfoProto:
        axis = 1 if self.conv else len(shape) - 1
        ends = [WIDTH, shape[1], *[1] * (len(shape) - 2)] if self.conv else [shape[axis], WIDTH]
        weight = self._weight(name + "_read", self.random.standard_normal(ends) / np.sqrt(max(shape[axis], 1)))
        source = name
        if kind != TensorProto.FLOAT:
            source = name + "_float"
            self.after.append(helper.make_node("Cast", [name], [source], name=source, to=TensorProto.FLOAT))
        made = self._free(name + "_end")
        self.after.append(helper.make_node("Conv" if self.conv else "MatMul", [source, weight], [made], name=made))
        self.out.consumers.append((weight, 1 if self.conv else 0))
        out = [*shape]
        out[axis] = WIDTH
        return helper.make_tensor_value_info(made, TensorProto.FLOAT, None)

    def _weight(self, name: str, array: NDArray[Any]) -> str:
        name = self._free(name + "_w")
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def _free(self, name: str) -> str:
        taken = {x for n in self.model.graph.node for x in [*n.input, *n.output]}
        while name in taken:
            name += "_"
        return name


def _chosen(inputs: Sequence[ValueInfoProto], conv: bool) -> list[str]:
    """The inputs that get a layer: floats of rank two at least (three for a convolution), or, without any, others."""
    for kinds in (FLOATS, (*BYTES, *CASTS)):
        names = [i.name for i in inputs if i.type.tensor_type.elem_type in kinds
                 and (len(i.type.tensor_type.shape.dim) >= 3 if conv else len(i.type.tensor_type.shape.dim) >= 2)
                 and i.type.tensor_type.shape.dim[1 if conv else -1].dim_value > 1]  # fmt: skip
        if names:
            return names
    return []


def wrapped(only: str = "") -> Iterator[Wrapped]:
    """Every node test whose name holds `only`, in up to eight wrappings: products or convolutions, before one input or
    all; the other inputs are constants or stay inputs; the sizes are the test's, or the first one is open."""
    for case in _cases():
        graph = case.model.graph
        for conv in (False, True) if only in case.name else ():
            many = len(_chosen(graph.input, conv))
            for way in ("", "open", "fed", "all") if many else ():
                if (way == "all" and many < 2) or (way == "fed" and len(graph.input) < 2):
                    continue
                name = "-".join([case.name, "conv" if conv else "matmul", *([way] if way else [])])
                one = _Wrap(case, name, conv, way).out
                if one.producers:
                    yield one


@cache
def _cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(collect_testcases(None))
