"""Quantised graphs in real numbers: each operator computes what it does, but for its rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import graph, inputs, pruned, run
from onnx import ModelProto

from onnxprune import api
from onnxprune.errors import CheckFailed
from onnxprune.model import Model, Weight
from onnxprune.pipeline import stages
from onnxprune.prove.unrounded import Unrounded, rounds
from onnxprune.shapes import infer

RNG = np.random.default_rng(5)
GIVEN: dict[str, Any] = {
    "s": np.float32(0.05), "z": np.uint8(120), "t": np.float32(0.02), "v": np.int8(3), "z0": np.uint8(0),
    "qa": RNG.integers(-90, 90, (4, 3, 3, 3)).astype(np.int8), "sa": np.array([0.01, 0.02, 0.015, 0.03], np.float32),
    "za": np.zeros(4, np.int8), "pa": RNG.integers(-900, 900, 4).astype(np.int32),
    "qm": RNG.integers(-90, 90, (8, 5)).astype(np.int8), "qt": RNG.integers(-90, 90, (5, 8)).astype(np.int8),
    "pm": RNG.integers(-900, 900, 5).astype(np.int32), "bias": np.float32(RNG.standard_normal(5)),
    "u": np.float32(1 / 256), "qk": RNG.integers(-90, 90, (8, 24)).astype(np.int8), "tokens": np.array([-1, 6, 8]),
    "sk": RNG.uniform(0.002, 0.01, 24).astype(np.float32), "zk": RNG.integers(-3, 3, 24).astype(np.int8),
    "bk": np.float32(RNG.standard_normal(24)), "sc": np.array([0.01, 0.02, 0.015, 0.03, 0.02], np.float32), "vc": np.array([0, 2, -3, 1, 0], np.int8),
}  # fmt: skip
Q = "q = QuantizeLinear(x, s, z) "
BACK = " y = DequantizeLinear(o, s, z)"
TABLE = [
    ("QuantizeLinear", Q + "y = DequantizeLinear(q, s, z)", 0.05),
    ("what moves between", Q + "f = Flatten(q) o = Transpose(f) y = DequantizeLinear(o, s, z)", 0.05),
    ("DequantizeLinear", Q + "d = DequantizeLinear(q, s, z) w = DequantizeLinear<axis = 1>(qm, sc, vc) f = Reshape(d, rows) "
     "y = MatMul(f, w)", 0.8),
    ("DynamicQuantizeLinear", "q, qs, qz = DynamicQuantizeLinear(x) y = DequantizeLinear(q, qs, qz)", 0.05),
    ("QLinearConv", Q + "o = QLinearConv<pads = [1, 1, 1, 1]>(q, s, z, qa, sa, za, s, z, pa)" + BACK, 0.5),
    ("QLinearMatMul", Q + "r = Reshape(q, rows) o = QLinearMatMul(r, s, z, qm, t, v, s, z)" + BACK, 0.5),
    ("QGemm", Q + "r = Reshape(q, rows) o = com.microsoft.QGemm(r, s, z, qm, t, v, pm, s, z)" + BACK, 0.5),
    ("QGemm turned", Q + "r = Reshape(q, rows) y = com.microsoft.QGemm<transB = 1>(r, s, z, qt, t, v, pm)", 0.8),
    ("MatMulInteger", "q, qs, qz = DynamicQuantizeLinear(x) r = Reshape(q, rows) i = MatMulInteger(r, qm, qz, v) "
     "f = Cast<to = 1>(i) m = Mul(qs, t) y = Mul(f, m)", 0.8),
    ("ConvInteger", "q, qs, qz = DynamicQuantizeLinear(x) i = ConvInteger(q, qa, qz) f = Cast<to = 1>(i) m = Mul(qs, t) "
     "y = Mul(f, m)", 0.8),
    ("MatMulIntegerToFloat", "q, qs, qz = DynamicQuantizeLinear(x) r = Reshape(q, rows) "
     "y = com.microsoft.MatMulIntegerToFloat(r, qm, qs, t, qz, v, bias)", 0.8),
    ("DynamicQuantizeMatMul", "r = Reshape(x, rows) y = com.microsoft.DynamicQuantizeMatMul(r, qm, t, v, bias)", 0.8),
    ("QLinearAdd", Q + "o = com.microsoft.QLinearAdd(q, s, z, q, t, z, s, z)" + BACK, 0.15),
    ("QLinearMul", Q + "o = com.microsoft.QLinearMul(q, s, z, q, t, z, s, z)" + BACK, 0.3),
    ("QLinearConcat", Q + "o = com.microsoft.QLinearConcat<axis = 1>(s, z, q, s, z, q, t, z)" + BACK, 0.15),
    ("QLinearAveragePool", Q + "o = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2]>(q, s, z, s, z)" + BACK, 0.15),
    ("QLinearGlobalAveragePool", Q + "o = com.microsoft.QLinearGlobalAveragePool(q, s, z, s, z)" + BACK, 0.15),
    ("QLinearLeakyRelu", Q + "o = com.microsoft.QLinearLeakyRelu<alpha = 0.1>(q, s, z, s, z)" + BACK, 0.15),
    ("QLinearConv, channels last", Q + "f = Transpose<perm = [0, 2, 3, 1]>(q) "
     "g = com.microsoft.QLinearConv<channels_last = 1>(f, s, z, qa, sa, za, s, z, pa) o = Transpose<perm = [0, 3, 1, 2]>(g)"
     + BACK, 0.5),
    ("pools, channels last", Q + "f = Transpose<perm = [0, 2, 3, 1]>(q) g = com.microsoft.NhwcMaxPool<kernel_shape = [2, 2]>(f) "
     "h = com.microsoft.QLinearAveragePool<channels_last = 1, kernel_shape = [2, 2]>(g, s, z, s, z) "
     "o = com.microsoft.QLinearGlobalAveragePool<channels_last = 1>(h, s, z, s, z)" + BACK, 0.15),
    ("QLinearWhere", Q + "g = Greater(x, t) o = com.microsoft.QLinearWhere(g, q, s, z, q, t, z, s, z)" + BACK, 0.15),
    ("QLinearSoftmax", Q + "p = com.microsoft.QLinearSoftmax<axis = 2, opset = 13>(q, s, z, u, z0) y = DequantizeLinear(p, u, z0)",
     0.02),
    ("QLinearSoftmax of opset 12", Q + "p = com.microsoft.QLinearSoftmax<axis = 2, opset = 12>(q, s, z, u, z0) "
     "y = DequantizeLinear(p, u, z0)", 0.02),
    ("QAttention", "r = Reshape(x, tokens) q, qs, qz = DynamicQuantizeLinear(r) "
     "y = com.microsoft.QAttention<num_heads = 2, unidirectional = 1>(q, qk, bk, qs, sk, , qz, zk)", 0.2),
    ("QLinearSigmoid", Q + "o = com.microsoft.QLinearSigmoid(q, s, z, t, z0) y = DequantizeLinear(o, t, z0)", 0.1),
    ("in a branch", Q + "y = If(yes) <then_branch = a () => (float[k] b) { b = DequantizeLinear(q, s, z) }, "
     "else_branch = c () => (float[k] d) { d = DequantizeLinear(q, t, z) }>", 0.05),
    ("out of a branch", Q + "o = If(yes) <then_branch = a () => (uint8[k] b) { b = Transpose(q) }, "
     "else_branch = c () => (uint8[k] d) { d = Flatten(q) }>" + BACK, 0.05),
]  # fmt: skip


def quantised(body: str) -> ModelProto:
    return graph("(float[N, 3, 8, 8] x) => (float[k] y)", body, opset=18, rows=np.array([-1, 8]), yes=np.array(True), **GIVEN)


@pytest.mark.parametrize(("body", "step"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_an_operator_in_real_numbers(body: str, step: float) -> None:
    source = quantised(body)
    model = Model.load(source).normalised()
    shapes = infer(model)
    assert rounds(model.skeleton.graph.node)
    form = Unrounded(shapes.dtype, lambda name: None if shapes.static(name) is None else len(shapes.static(name) or ()))
    real = form(model)
    assert not form.still_rounding
    assert not any(n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") or "QLinear" in n.op_type or "Integer" in n.op_type
                   for n in real.skeleton.graph.node)  # fmt: skip
    feeds = inputs(source, 2)
    expected, got = run(source, feeds)[0], run(real.to_proto(), feeds)[0]
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= step
    fine = run(real.to_proto(), {"x": feeds["x"] + np.float32(1e-4)})[0]
    assert (fine != got).mean() > 0.5  # nothing is held to steps


def test_what_cannot_be_taken_apart_still_rounds_and_is_named() -> None:
    body = "q = QuantizeLinear<block_size = 4>(x, blocks) y = DequantizeLinear<block_size = 4>(q, blocks)"
    source = graph("(float[N, 8, 6] x) => (float[N, 8, 6] y)", body, opset=21, blocks=np.full((1, 2, 6), 0.1, np.float32))
    model = Model.load(source).normalised()
    form = Unrounded(infer(model).dtype, lambda name: 3)
    form(model)
    assert list(form.still_rounding.values()) == ["QuantizeLinear 'QuantizeLinear_0' (it has a scale for every block)"]


def layers(depth: int, seed: int) -> ModelProto:
    """Matrices as `quantize_dynamic` writes them, a rounding of the whole stream before each."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {"zero": np.int8(0)}
    body, last = "", "x"
    for k in range(depth):
        n, m = 12 if k == 0 else 48, 5 if k == depth - 1 else 48
        whole = rng.standard_normal((n, m)) / np.sqrt(n)
        weights |= {f"s{k}": np.float32(np.abs(whole).max() / 127), f"b{k}": rng.standard_normal(m).astype(np.float32) / 9}
        weights[f"w{k}"] = np.round(whole / weights[f"s{k}"]).astype(np.int8)
        body += (
            f"q{k}, t{k}, z{k} = DynamicQuantizeLinear({last}) i{k} = MatMulInteger(q{k}, w{k}, z{k}, zero) "
            f"f{k} = Cast<to = 1>(i{k}) m{k} = Mul(t{k}, s{k}) d{k} = Mul(f{k}, m{k}) a{k} = Add(d{k}, b{k}) "
        )
        last = f"a{k}"
        if k < depth - 1:
            body, last = body + f"r{k} = Relu(a{k}) ", f"r{k}"
    return graph("(float[N, 12] x) => (float[N, 5] y)", body + f"y = Identity({last})", **weights)


@pytest.mark.parametrize("seed", range(6))
def test_a_deep_quantised_network_is_proven_to_the_accuracy_of_floats(seed: int) -> None:
    proof = pruned(layers(8, seed), batches=(1, 3)).report.proof
    assert proof.redrawn is not None
    assert proof.redrawn < 1e-4
    assert proof.tensors > 8


@pytest.mark.parametrize("wrong", ["w2", "s3", "b4"])
def test_a_mistake_that_a_step_would_cover_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the size of one step of 8 bits in one channel."""
    right = stages.equivalence

    def tampered(trace: Any, kept: Any, after: Model, options: Any) -> Any:
        after = after.copy()
        value = after.weights[wrong].array().copy()
        value.reshape(-1)[:1] += (np.abs(value).max() / 100 + 1).astype(value.dtype) if value.dtype == np.int8 else (
            np.float32(0.01) * np.abs(value).max()
        )  # fmt: skip
        after.weights[wrong] = Weight.of(value)
        monkeypatch.setattr("onnxprune.prove.slices._equal", lambda *given: True)
        return right(trace, kept, after, options)

    monkeypatch.setattr(stages, "equivalence", tampered)
    with pytest.raises(CheckFailed, match="differs from the masked original"):
        api.prune(layers(6, 0), fast=True, ratio=0.5)


