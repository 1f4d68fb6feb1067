"""Operators that this build of ONNX Runtime has no kernel for: functions stand in for them, and this is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper, parser

import onnxprune
from onnxprune.api import prune, verify
from onnxprune.cli import main
from onnxprune.errors import RuntimeFailure
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


@pytest.mark.parametrize("opset", [10, 13, 18, 21])
@pytest.mark.parametrize("case", CASES)
def test_a_function_is_of_the_operators_of_the_model(case: str, opset: int) -> None:
    source = ModelProto.FromString(CASES[case][0].SerializeToString())
    constants = [n for n in source.graph.node if n.op_type == "Constant" and n.attribute[0].name == "value_float"]
    for node in constants:  # there are such from opset 12 on
        value = numpy_helper.from_array(np.float32(node.attribute[0].f))
        node.attribute[0].CopyFrom(helper.make_attribute("value", value))
    source.opset_import[0].version = opset
    x = RNG.standard_normal(SHAPES.get(case, (2, 6, 6, 3))).astype(np.float32)
    wanted = ort.InferenceSession(by_hand(case, source).SerializeToString()).run(None, {"x": x})[0]
    got = open_session(Model.load(source)).run(None, {"x": x})[0]
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert not any("cannot load" in note for note in prune(source, ratio=0.4, fast=True).report.proof.notes)


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


def biased(case: str, sequences: int, heads: int) -> ModelProto:
    """The same with a bias [sequences or 1, heads or 1, places, places]."""
    proto = ModelProto.FromString(ATTENTION[case].SerializeToString())
    next(n for n in proto.graph.node if "Packed" in n.op_type).input.append("sb")
    drawn = np.random.default_rng(2).standard_normal((sequences, heads, 5, 5)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(drawn, "sb"))
    return proto


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
    tables = np.broadcast_to(weights.get("sb", np.zeros((1, 1, 5, 5))), (2, heads, 5, 5))
    for start, end, table in ((0, 3, tables[0]), (3, 8, tables[1])):
        q, k, v = (p[start:end].reshape(end - start, heads, -1).transpose(1, 0, 2) for p in parts)
        scores = np.exp(scale * q @ k.transpose(0, 2, 1) + table[:, : end - start, : end - start])
        out[start:end] = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(end - start, -1)
    return np.asarray(out @ weights["v"])


PLACED = {f"{case}, biased {n} by {h}": biased(case, n, h) for case in ATTENTION for n, h in ((1, 1), (1, 4), (2, 4))}


@pytest.mark.parametrize("case", [*ATTENTION, *PLACED])
def test_packed_tokens_see_their_own_sequence(case: str) -> None:
    source = (ATTENTION | PLACED)[case]
    case = case.partition(",")[0]
    x = RNG.standard_normal((8, 12)).astype(np.float32)
    got = open_session(Model.load(source)).run(None, {"x": x})[0]
    assert np.abs(got - attended(source, x)).max() <= 1e-5
    result = prune(source, ratio=0.4, fast=True)
    after = result.model.to_proto()
    assert any(case in note for note in result.report.proof.notes)
    assert result.report.after.parameters < 0.8 * result.report.before.parameters
    got = open_session(result.model).run(None, {"x": x})[0]
    assert np.abs(got - attended(after, x)).max() <= 1e-5


def test_query_key_and_value_may_be_one_tensor() -> None:
    source = ATTENTION["PackedMultiHeadAttention"]
    one = ModelProto.FromString(source.SerializeToString())
    weights = {t.name: numpy_helper.to_array(t) for t in one.graph.initializer}
    sides = [weights[n].reshape(12, 4, 1, 8) for n in ("uq", "uk", "uv")]
    kept = [n for n in one.graph.node if n.op_type != "MatMul" or n.output[0] == "y"]
    packed = next(n for n in kept if "Packed" in n.op_type)
    packed.input[:] = ["qkv", "", "", *packed.input[3:]]
    made = parser.parse_graph("g (float[8, 12] x) => (float[8, 4, 3, 8] qkv) { f = MatMul(x, all) qkv = Reshape(f, to) }")
    del one.graph.node[:]
    one.graph.node.extend([*kept[:-2], *made.node, *kept[-2:]])
    one.graph.initializer.append(numpy_helper.from_array(np.concatenate(sides, 2).reshape(12, 96), "all"))
    one.graph.initializer.append(numpy_helper.from_array(np.array([8, 4, 3, 8]), "to"))
    x = RNG.standard_normal((8, 12)).astype(np.float32)
    got = open_session(Model.load(one)).run(None, {"x": x})[0]
    assert np.abs(got - attended(source, x)).max() <= 1e-5


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


def step_feeds(past: int) -> dict[str, Array]:
    feeds = {"x": RNG.standard_normal((2, 1, 12)), "p": RNG.standard_normal((2, 2, 4, past, 8))}
    return {name: value.astype(np.float32) for name, value in feeds.items()} | {"m": np.ones((2, 6), np.int32)}


def test_one_step_with_a_past() -> None:
    """DecoderMaskedSelfAttention is Attention with a past and one token."""
    feeds = step_feeds(5)
    wanted = ort.InferenceSession(one_step("Attention").SerializeToString()).run(None, feeds)
    got = open_session(Model.load(STEP)).run(None, feeds)
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
    kept = prune(STEP, ratio=0.4, fast=True, kv_heads=True).report
    assert any("DecoderMaskedSelfAttention" in note for note in kept.proof.notes)


def in_a_buffer() -> ModelProto:
    """One step whose past is the first five of nine places, and whose present is all nine."""
    proto = one_step("DecoderMaskedSelfAttention", ", past_present_share_buffer = 1", ", , n")
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in ("p", "r"):
            value.type.tensor_type.shape.dim[3].dim_value = 9
    return proto


def test_one_step_in_a_buffer() -> None:
    source, feeds = in_a_buffer(), step_feeds(9)
    filled = feeds | {"p": feeds["p"][:, :, :, :5]}
    wanted = ort.InferenceSession(one_step("Attention").SerializeToString()).run(None, filled)
    got = open_session(Model.load(source)).run(None, feeds)
    assert np.array_equal(got[0], wanted[0])
    assert np.array_equal(got[1], np.concatenate([wanted[1], feeds["p"][:, :, :, 6:]], 3))
    result = prune(source, ratio=0.4, fast=True, kv_heads=True)
    assert result.model.weights["v"].shape == (16, 4)


def at_opset(proto: ModelProto, version: int) -> ModelProto:
    proto = ModelProto.FromString(proto.SerializeToString())
    proto.opset_import[0].version = version
    return proto


def with_beams() -> ModelProto:
    proto = one_step("DecoderMaskedSelfAttention", "", ", , n, beams, before")
    shapes = {"beams": [1], "before": [2, 1, 6]}
    proto.graph.input.extend(helper.make_tensor_value_info(name, 6, shape) for name, shape in shapes.items())
    return proto


@pytest.mark.parametrize(
    ("proto", "why"),
    [(with_beams(), "tells beams apart"), (at_opset(ATTENTION["PackedAttention"], 13), "takes opset 15, and the model has 13")],
    ids=["beams", "opset"],
)
def test_what_nothing_can_stand_in_for_is_said_before_any_work(proto: ModelProto, why: str) -> None:
    with pytest.raises(RuntimeFailure, match=why):
        prune(proto, fast=True)
    onnxprune.inspect(proto)


def test_times_are_not_those_of_stand_ins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said before the model is pruned, not after."""
    dense, out = tmp_path / "dense.onnx", tmp_path / "out.onnx"
    onnx.save(CASES["NhwcConv"][0], dense)
    orders = (
        [str(dense), str(out), "--fast", "--benchmark", "--log-level", "info"], ["compare", str(dense), str(dense), "--benchmark"],
        ["sweep", str(dense), str(tmp_path / "sweep"), "--ratios", "0.3", "--fast", "--benchmark"],
    )
    for order in orders:
        assert main(order) == 4
        said = capsys.readouterr().err
        assert "cannot be timed here: ONNX Runtime has no kernel for NhwcConv" in said
        assert "prove" not in said
        assert not out.exists()
