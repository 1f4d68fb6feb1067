"""Operators that this build of ONNX Runtime has no kernel for: functions stand in for them, and this is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper, parser

from onnxprune.api import prune, verify
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Model
from onnxprune.run import open_session

Array = NDArray[Any]
RNG = np.random.default_rng(0)
SCALES = "xs = Constant<value_float = 0.05> () xz = Constant <value = uint8 {128}> ()"


def model(text: str, kind: str = "float[N, 6, 6, 3]", **shapes: tuple[int, ...]) -> ModelProto:
    """A graph x -> y in ONNX's text form, with drawn weights."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g ({kind} x) => (float[N, M] y) {{ {text} }}'
    )
    for name, shape in shapes.items():
        fan = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
        value = rng.standard_normal(shape) / np.sqrt(fan)
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for k, node in enumerate(proto.graph.node):
        node.name = node.name or f"n{k}"
    return proto


CONV = "w = Flatten(p) y = MatMul(w, l)"
CASES: dict[str, tuple[ModelProto, str]] = {
    "NhwcConv": (
        model(
            "a = com.microsoft.NhwcConv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x, u, ub) r = Relu(a) "
            "b = com.microsoft.NhwcConv<kernel_shape = [3, 3]>(r, v) w = Flatten(b) y = MatMul(w, l)",
            u=(16, 3, 3, 3), ub=(16,), v=(8, 16, 3, 3), l=(8, 4),
        ),
        "a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(t, u, ub) r = Relu(a) "
        "b = Conv<kernel_shape = [3, 3]>(r, v) w = Flatten(b) y = MatMul(w, l)",
    ),
    "NhwcFusedConv": (
        model(
            'a = com.microsoft.NhwcFusedConv<kernel_shape = [1, 1], activation = "Relu">(x, u, ub) '
            'b = com.microsoft.NhwcFusedConv<kernel_shape = [1, 1], activation = "LeakyRelu", activation_params = [0.2]>'
            '(a, v, vb, a) c = com.microsoft.NhwcFusedConv<kernel_shape = [6, 6]>(b, z) w = Flatten(c) y = MatMul(w, l)',
            u=(16, 3, 1, 1), ub=(16,), v=(16, 16, 1, 1), vb=(16,), z=(8, 16, 6, 6), l=(8, 4),
        ),
        "a0 = Conv(t, u, ub) a = Relu(a0) b0 = Conv(a, v, vb) b1 = Add(b0, a) b = LeakyRelu<alpha = 0.2>(b1) "
        "c = Conv(b, z) w = Flatten(c) y = MatMul(w, l)",
    ),
    "FusedMatMulActivation": (
        model(
            'a = com.microsoft.FusedMatMulActivation<activation = "Relu", transB = 1, alpha = 0.5>(x, u) y = MatMul(a, v)',
            "float[N, 12]", u=(24, 12), v=(24, 4),
        ),
        "q = Transpose(u) a0 = MatMul(x, q) h = Constant<value_float = 0.5>() a1 = Mul(a0, h) a = Relu(a1) y = MatMul(a, v)",
    ),
    "QLinearReduceMean": (
        model(
            f"{SCALES} ys = Constant<value_float = 0.02> () a = MatMul(x, u) r = Relu(a) q = QuantizeLinear(r, xs, xz) "
            "m = com.microsoft.QLinearReduceMean<axes = [1], keepdims = 0>(q, xs, xz, ys, xz) "
            "d = DequantizeLinear(m, ys, xz) y = MatMul(d, v)",
            "float[N, 5, 12]", u=(12, 24), v=(24, 4),
        ),
        f"{SCALES} ys = Constant<value_float = 0.02> () a = MatMul(x, u) r = Relu(a) q = QuantizeLinear(r, xs, xz) "
        "f = DequantizeLinear(q, xs, xz) g = ReduceMean<axes = [1], keepdims = 0>(f) m = QuantizeLinear(g, ys, xz) "
        "d = DequantizeLinear(m, ys, xz) y = MatMul(d, v)",
    ),
}  # fmt: skip
SHAPES = {"FusedMatMulActivation": (2, 12), "QLinearReduceMean": (2, 5, 12)}


def by_hand(case: str, weights: ModelProto) -> ModelProto:
    """The same network in operators that every runtime has, written here once more."""
    text = CASES[case][1]
    turned = "t = Transpose<perm = [0, 3, 1, 2]>(x) " if case.startswith("Nhwc") else ""
    kind = {"FusedMatMulActivation": "float[N, 12]", "QLinearReduceMean": "float[N, 5, 12]"}.get(case, "float[N, 6, 6, 3]")
    own = model(turned + text, kind)
    own.graph.initializer.extend(weights.graph.initializer)
    return own


@pytest.mark.parametrize("case", CASES)
def test_what_has_no_kernel_is_run_as_a_function(case: str) -> None:
    source = CASES[case][0]
    with pytest.raises(Exception, match=case):
        ort.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    x = RNG.standard_normal(SHAPES.get(case, (2, 6, 6, 3))).astype(np.float32)
    got = open_session(Model.load(source)).run(None, {"x": x})[0]
    wanted = ort.InferenceSession(by_hand(case, source).SerializeToString()).run(None, {"x": x})[0]
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fast", [True, False])
def test_it_is_pruned_and_the_report_says_what_ran(case: str, fast: bool) -> None:
    source = CASES[case][0]
    result = prune(source, ratio=0.4, fast=fast)
    assert any(case in note for note in result.report.proof.notes)
    after = result.model.to_proto()
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in source.graph.node if n.op_type != "Constant"]
    assert result.report.after.parameters < result.report.before.parameters
    proof = verify(source, after, result.plan)
    assert any(case in note for note in proof.notes)
    x = RNG.standard_normal(SHAPES.get(case, (2, 6, 6, 3))).astype(np.float32)
    assert ort.InferenceSession(by_hand(case, after).SerializeToString()).run(None, {"x": x})[0].shape == (2, 4)


PACKED = "o = Constant<value = int32[2, 5] {0, 1, 2, 8, 9, 3, 4, 5, 6, 7}>() e = Constant<value = int32[3] {0, 3, 8}>()"
ATTENTION: dict[str, ModelProto] = {
    "PackedAttention": model(
        f"{PACKED} a = com.microsoft.PackedAttention<num_heads = 4>(x, u, ub, o, e) y = MatMul(a, v)",
        "float[8, 12]", u=(12, 96), ub=(96,), v=(32, 4),
    ),
    "PackedMultiHeadAttention": model(
        f"{PACKED} q = MatMul(x, uq) k = MatMul(x, uk) w = MatMul(x, uv) "
        "a = com.microsoft.PackedMultiHeadAttention<num_heads = 4>(q, k, w, ub, o, e) y = MatMul(a, v)",
        "float[8, 12]", uq=(12, 32), uk=(12, 32), uv=(12, 32), ub=(96,), v=(32, 4),
    ),
}  # fmt: skip


def attended(proto: ModelProto, x: Array) -> Array:
    """What packed attention gives: each sequence by itself, in numpy."""
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    if "u" in weights:
        node = next(n for n in proto.graph.node if "Packed" in n.op_type)
        sizes = next((list(a.ints) for a in node.attribute if a.name == "qkv_hidden_sizes"), [weights["u"].shape[1] // 3] * 3)
        parts = np.split(x @ weights["u"] + weights["ub"], np.cumsum(sizes)[:2], 1)
    else:
        biases = np.split(weights["ub"], np.cumsum([weights["uq"].shape[1], weights["uk"].shape[1]]))
        parts = [x @ weights[n] + b for n, b in zip(("uq", "uk", "uv"), biases, strict=True)]
    node = next(n for n in proto.graph.node if "Packed" in n.op_type)
    said = {a.name: a for a in node.attribute}
    heads, scale = said["num_heads"].i, said["scale"].f if "scale" in said else 8**-0.5
    out = np.zeros((8, parts[2].shape[1]))
    for start, end in ((0, 3), (3, 8)):
        q, k, v = (p[start:end].reshape(end - start, heads, -1).transpose(1, 0, 2) for p in parts)
        scores = np.exp(scale * q @ k.transpose(0, 2, 1))
        out[start:end] = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(end - start, -1)
    return np.asarray(out @ weights["v"])


@pytest.mark.parametrize("case", ATTENTION)
def test_packed_tokens_see_their_own_sequence(case: str) -> None:
    source = ATTENTION[case]
    x = RNG.standard_normal((8, 12)).astype(np.float32)
    got = open_session(Model.load(source)).run(None, {"x": x})[0]
    assert np.abs(got - attended(source, x)).max() <= 1e-5
    result = prune(source, ratio=0.4, fast=True)
    after = result.model.to_proto()
    assert any(case in note for note in result.report.proof.notes)
    assert result.report.after.parameters < 0.8 * result.report.before.parameters
    got = open_session(result.model).run(None, {"x": x})[0]
    assert np.abs(got - attended(after, x)).max() <= 1e-5


def one_step(op_type: str, more: str = "", rest: str = "") -> ModelProto:
    """One token beside a cache, by an operator that holds the weight of query, key and value."""
    proto = model(
        f"n = Constant<value = int32[1] {{5}}>() a, r = com.microsoft.{op_type}<num_heads = 4{more}>(x, u, ub, m, p{rest}) "
        "w = Flatten(a) y = MatMul(w, v)",
        "float[2, 1, 12]", u=(12, 96), ub=(96,), v=(32, 4),
    )  # fmt: skip
    proto.graph.input.extend(
        [helper.make_tensor_value_info("p", 1, [2, 2, 4, 5, 8]), helper.make_tensor_value_info("m", 6, [2, 6])]
    )
    proto.graph.output.append(helper.make_tensor_value_info("r", 1, [2, 2, 4, 6, 8]))
    return proto


STEP = one_step("DecoderMaskedSelfAttention", rest=", , n")


def test_one_step_with_a_past() -> None:
    """DecoderMaskedSelfAttention is Attention with a past and one token; what shares a buffer has no stand-in."""
    feeds = {"x": RNG.standard_normal((2, 1, 12)), "p": RNG.standard_normal((2, 2, 4, 5, 8))}
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()} | {"m": np.ones((2, 6), np.int32)}
    wanted = ort.InferenceSession(one_step("Attention").SerializeToString()).run(None, feeds)
    got = open_session(Model.load(STEP)).run(None, feeds)
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
    kept = prune(STEP, ratio=0.4, fast=True, kv_heads=True).report
    assert any("DecoderMaskedSelfAttention" in note for note in kept.proof.notes)
    with pytest.raises(OnnxPruneError, match="DecoderMaskedSelfAttention"):
        prune(one_step("DecoderMaskedSelfAttention", ", past_present_share_buffer = 1", ", , n"), fast=True)
