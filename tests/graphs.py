"""Builders and checks for hand-made graphs: text models with random weights, pruned, proven, and run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.api import Result, prune

Shape = tuple[int, ...]
POSITIVE = ("var", "gain", "scale")


def graph(signature: str, body: str, opset: int = 17, seed: int = 0, **weights: Shape | NDArray[Any]) -> ModelProto:
    """A model from the text of a graph. Weights are arrays, or shapes to be filled at random (`var*`, `gain*`: positive)."""
    text = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> g {signature} {{ {body} }}'
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(seed)
    for name, given in weights.items():
        array = filled(random, name, given) if isinstance(given, tuple) else np.asarray(given)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def filled(random: np.random.Generator, name: str, shape: Shape) -> NDArray[Any]:
    if name.startswith(POSITIVE):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    fan = int(np.prod(shape)) / max(shape) if len(shape) > 1 else 1.0
    return (random.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def array(model: ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def replace(model: ModelProto, name: str, value: NDArray[Any]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.array(value, order="C"), name))


def silence(model: ModelProto, where: Mapping[str, tuple[int, Sequence[int]]]) -> ModelProto:
    """Zero the given positions of an axis of parameters, so that nothing is lost where they are removed."""
    for name, (axis, positions) in where.items():
        value = np.moveaxis(array(model, name), axis, 0)
        value[list(positions)] = 0
        replace(model, name, np.moveaxis(value, 0, axis))
    return model


def inputs(model: ModelProto, batch: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs; every symbolic axis has the size `batch`. Integers are 0 or 1."""
    random = np.random.default_rng(seed)
    held = {t.name for t in model.graph.initializer}
    feeds = {}
    for i in model.graph.input:
        if i.name not in held:
            kind = i.type.tensor_type.elem_type
            shape = [d.dim_value or batch for d in i.type.tensor_type.shape.dim]
            value = random.standard_normal(shape) if kind == TensorProto.FLOAT else random.integers(0, 2, shape)
            feeds[i.name] = value.astype(helper.tensor_dtype_to_np_dtype(kind))
    return feeds


def run(model: ModelProto, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def shapes(model: ModelProto | Result) -> dict[str, Shape]:
    proto = model.model.to_proto() if isinstance(model, Result) else model
    return {t.name: tuple(t.dims) for t in proto.graph.initializer}


def pruned(model: ModelProto, equal: bool = False, batches: Sequence[int] = (1, 3), **options: Any) -> Result:
    """Prune `model`, and check without the package's help that outputs keep their shapes at several batch sizes.

    equal: what goes was silent, so that the outputs are those of the original."""
    result = prune(model, **{"ratio": 0.5, "residual": "all", "fast": True} | options)
    proof = result.report.proof
    assert proof.couplings > 0
    assert proof.error <= proof.tolerance
    after = result.model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    for batch in batches:
        feeds = inputs(model, batch, batch)
        expected, got = run(model, feeds), run(after, feeds)
        assert [x.shape for x in got] == [x.shape for x in expected]
        if equal:
            for x, y in zip(expected, got, strict=True):
                np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)
    return result
