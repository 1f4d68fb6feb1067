"""The same network loses the same channels however its file is written: by which exporter, before or after an optimiser,
with initializers or Constant nodes, with shared or cloned weights. `tools/make_pairs.py` writes the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnxprune.api import prune

DATA = Path(__file__).parent / "data"
NETWORKS = sorted({p.name.split(".")[0] for p in DATA.glob("*.onnx")})
VARIANTS = sorted({p.name.split(".", 1)[1].removesuffix(".onnx") for p in DATA.glob("*.onnx")})
Shapes = Counter[tuple[int, ...]]


def as_constants(model: ModelProto) -> None:
    """Every initializer becomes a Constant node."""
    nodes = [
        helper.make_node("Constant", [], [t.name], name=f"{t.name}_constant", value=t) for t in model.graph.initializer
    ]
    _replace(model, [*nodes, *model.graph.node])
    names = {t.name for t in model.graph.initializer}
    del model.graph.initializer[:]
    listed = [i for i in model.graph.input if i.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(listed)


def as_initializers(model: ModelProto) -> None:
    """Every Constant node of a tensor becomes an initializer."""
    held = {
        n.output[0]: n.attribute[0].t
        for n in model.graph.node
        if n.op_type == "Constant" and n.attribute[0].HasField("t")
    }
    for name, tensor in held.items():
        tensor.name = name
    model.graph.initializer.extend(held.values())
    _replace(model, [n for n in model.graph.node if n.output[0] not in held])


def shared(model: ModelProto) -> None:
    """Biases are zeros, and equal vectors are one initializer: exporters write one zero vector for many layers. (A shared
    matrix would tie layers on purpose, which is another network.)"""
    biases = {i for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm") for i in n.input[2:]}
    biases |= {i for n in model.graph.node if n.op_type == "Add" for i in n.input}
    for t in model.graph.initializer:
        if t.name in biases and t.data_type == onnx.TensorProto.FLOAT:
            t.CopyFrom(numpy_helper.from_array(np.zeros(list(t.dims), np.float32), t.name))
    first: dict[tuple[str, ...], str] = {}
    same = {}
    for t in model.graph.initializer:
        if len(t.dims) < 2:
            key = (str(t.data_type), str(list(t.dims)), numpy_helper.to_array(t).tobytes().hex())
            same[t.name] = first.setdefault(key, t.name)
    for node in model.graph.node:
        node.input[:] = [same.get(i, i) for i in node.input]
    _drop_unread(model)


def cloned(model: ModelProto) -> None:
    """Every use of an initializer has its own copy."""
    held = {t.name: t for t in model.graph.initializer}
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name in held:
                seen[name] += 1
                if seen[name] > 1:
                    copy = onnx.TensorProto()
                    copy.CopyFrom(held[name])
                    copy.name = node.input[k] = f"{name}_clone{seen[name]}"
                    model.graph.initializer.append(copy)


def listed_as_inputs(model: ModelProto) -> None:
    """Initializers are graph inputs as well, as in files of old opsets."""
    have = {i.name for i in model.graph.input}
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in model.graph.initializer
        if t.name not in have
    )


def behind_identity(model: ModelProto) -> None:
    """Every weight goes through an Identity."""
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    for node in model.graph.node:
        node.input[:] = [f"{i}_same" if i in floats else i for i in node.input]
    nodes = [helper.make_node("Identity", [i], [f"{i}_same"], name=f"{i}_identity") for i in sorted(floats)]
    _replace(model, [*nodes, *model.graph.node])


def renamed(model: ModelProto) -> None:
    """No node has a name."""
    for node in model.graph.node:
        node.name = ""


EDITS = [as_constants, as_initializers, shared, cloned, listed_as_inputs, behind_identity, renamed]


def _replace(model: ModelProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _drop_unread(model: ModelProto) -> None:
    read = {i for n in model.graph.node for i in n.input} | {o.name for o in model.graph.output}
    kept = [t for t in model.graph.initializer if t.name in read]
    copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)


def load(network: str, variant: str) -> ModelProto:
    return onnx.load(DATA / f"{network}.{variant}.onnx")


def matrices(model: ModelProto) -> Shapes:
    """The shapes of all matrices and kernels in use, axes sorted, without those of size one."""
    read = {i for n in model.graph.node for i in n.input}
    shapes = (sorted(n for n in t.dims if n > 1) for t in model.graph.initializer
              if t.name in read and t.data_type == onnx.TensorProto.FLOAT)  # fmt: skip
    return Counter(tuple(s) for s in shapes if len(s) > 1)


def kept(model: ModelProto) -> Shapes:
    return matrices(prune(model, ratio=0.5, residual="all", fast=True).model.to_proto())


@cache
def expected(network: str) -> Shapes:
    return kept(load(network, "script.sim"))


@pytest.mark.parametrize("network", NETWORKS)
def test_channels_go(network: str) -> None:
    model = load(network, "script.sim")
    before, after = matrices(model), expected(network)
    assert before.total() == after.total()
    assert sum(np.prod(s) * k for s, k in after.items()) < 0.5 * sum(np.prod(s) * k for s, k in before.items())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_exporter_and_optimiser(network: str, variant: str) -> None:
    assert kept(load(network, variant)) == expected(network)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("exporter", ["script", "dynamo"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_way_of_holding_weights(network: str, exporter: str, edit: Callable[[ModelProto], None]) -> None:
    model = load(network, exporter)
    edit(model)
    onnx.checker.check_model(model)
    assert kept(model) == expected(network)
