"""Layers of integers as least squares sees them: in real numbers, and written back as integers that are better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import array, graph, inputs, pruned, run
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from onnxprune import api
from onnxprune.fit import Fitted, Layer, layers, reconstruction, tail
from onnxprune.fit.expressions import Grid
from onnxprune.fit.rounding import rounded
from onnxprune.fit.unclipped import unclipped
from onnxprune.fit.walk import Walk
from onnxprune.model import Model
from onnxprune.run import open_session
from onnxprune.shapes import infer

RNG = np.random.default_rng(3)
S, Z = np.float32(0.05), np.uint8(117)
Q = "q = QuantizeLinear(x, s, z) "
BACK = " y = DequantizeLinear(o, t, z)"
DYNAMIC = "q, qs, qz = DynamicQuantizeLinear(x) "
SCALED = " f = Cast<to = 1>(i) m = Mul(qs, w_s) y = Mul(f, m)"


def integers(*shape: int, kind: Any = np.int8, most: int = 90) -> Any:
    return RNG.integers(-most, most, shape).astype(kind)


def per(n: int) -> Any:
    return RNG.uniform(0.005, 0.02, n).astype(np.float32)


IMAGE, ROWS = "(float[2, 6, 5, 7] x) => (float[k] y)", "(float[9, 6] x) => (float[k] y)"
OF_W = "s, z, w, w_s, w_z, t, z"
CONV = {"w": integers(4, 6, 3, 3), "w_s": per(4), "w_z": np.zeros(4, np.int8)}
TABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "QLinearConv": (IMAGE, f"{Q} o = QLinearConv<pads = [1, 0, 1, 2], strides = [2, 1]>(q, {OF_W}){BACK}", CONV),
    "QLinearConv with a bias": (IMAGE, f"{Q} o = QLinearConv(q, {OF_W}, b){BACK}", CONV | {"b": integers(4, kind=np.int32, most=900)}),
    "QLinearConv, channels last": (
        "(float[2, 5, 7, 6] x) => (float[k] y)",
        f"{Q} o = com.microsoft.QLinearConv<pads = [1, 0, 1, 2], strides = [2, 1], channels_last = 1>(q, {OF_W}, b){BACK}",
        CONV | {"b": integers(4, kind=np.int32, most=900)},
    ),
    "QLinearConv by groups": (
        IMAGE, f"{Q} o = QLinearConv<group = 2>(q, {OF_W}){BACK}",
        {"w": integers(4, 3, 2, 2).view(np.uint8), "w_s": np.float32(0.01), "w_z": np.uint8(131)},
    ),
    "QGemm": (
        ROWS, f"{Q} o = com.microsoft.QGemm<transB = 1, alpha = -0.5>(q, s, z, w, w_s, w_z, b, t, z){BACK}",
        {"w": integers(4, 6), "w_s": per(4), "w_z": integers(4, most=3), "b": integers(4, kind=np.int32, most=900)},
    ),
    "QGemm into floats": (
        ROWS, f"{Q} y = com.microsoft.QGemm(q, s, z, w, w_s, w_z)", {"w": integers(6, 4), "w_s": np.float32(0.01), "w_z": np.int8(2)},
    ),
    "QLinearMatMul": (
        ROWS, f"{Q} o = QLinearMatMul(q, {OF_W}){BACK}", {"w": integers(6, 4), "w_s": per(4), "w_z": np.zeros(4, np.int8)},
    ),
    "MatMulInteger": (ROWS, f"{DYNAMIC} i = MatMulInteger(q, w, qz, w_z) {SCALED}",
                      {"w": integers(6, 4), "w_s": per(4), "w_z": integers(4, most=3)}),
    "ConvInteger": (IMAGE, f"{DYNAMIC} i = ConvInteger<pads = [1, 1, 1, 1]>(q, w, qz) {SCALED}",
                    {"w": integers(4, 6, 3, 3), "w_s": np.float32(0.01)}),
}  # fmt: skip


def walked(model: ModelProto) -> tuple[Walk, Layer, Any]:
    """A walk over one batch, and the only layer."""
    own = Model.load(model).normalised()
    shapes = infer(own)
    walk = Walk(own, [inputs(model, 2)], shapes.dtype)
    rank = lambda name: len(shapes.static(name) or ())  # noqa: E731
    (layer,) = layers(own, rank)
    assert isinstance(layer, Layer)
    return walk, layer, shapes


@pytest.mark.parametrize(("signature", "body", "weights"), TABLE.values(), ids=TABLE)
def test_a_layer_of_integers_is_one_of_real_numbers(signature: str, body: str, weights: dict[str, Any]) -> None:
    walk, layer, shapes = walked(graph(signature, body, s=S, z=Z, t=np.float32(0.04), **weights))
    matrix = layer.read(walk.model)
    groups, _, each = matrix.shape
    bias = Fitted(walk, shapes.dtype, {}).bias(layer, groups * each)
    assert bias is not None
    (x,), (y,) = layer.inputs(walk), walk.real(layer.out)
    at = np.arange(layer.places(x))
    ours = layer.rows(x, at).astype(np.float64) @ matrix + bias.reshape(groups, 1, -1)
    its = tail(layer, walk, groups * each, y.ndim)
    whole = " o = " in body
    assert (its.low, its.high) == (pytest.approx((-117 * 0.04, 138 * 0.04)) if whole else (-np.inf, np.inf))
    error = np.abs(np.clip(ours, its.low, its.high) - layer.targets(y, at)).max()
    assert error <= (0.0201 if whole else 1e-4)
    (real,) = unclipped(walk, layer.out)
    np.testing.assert_allclose(layer.targets(real, at), ours, atol=2e-4)
    np.testing.assert_allclose(layer.grid(walk.model).nearest(matrix), matrix, rtol=1e-6)  # type: ignore[union-attr]
    before = walk.model.weights["w"].array()
    layer.write(walk.model, matrix)
    assert (walk.model.weights["w"].array() == before).all()


def test_an_integer_product_that_is_used_otherwise_is_no_layer() -> None:
    body = f"{DYNAMIC} i = MatMulInteger(q, w, qz) f = Cast<to = 1>(i) y = Mul(f, qs)"
    own = Model.load(graph(ROWS, body, w=integers(6, 4))).normalised()
    assert layers(own, lambda name: 2) == []


def test_rounding_with_feedback_is_on_the_grid_and_moves_outputs_less() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 3)) @ rng.standard_normal((3, 40)) + 0.05 * rng.standard_normal((400, 40))
    matrix, scale = rng.standard_normal((40, 6)), np.broadcast_to(rng.uniform(0.1, 0.3, 6), (40, 6))
    grid = Grid(scale, -8 * scale, 7 * scale)
    found, alone = rounded(matrix, grid, rows.T @ rows), grid.nearest(matrix)
    np.testing.assert_allclose(np.rint(found / scale), found / scale, atol=1e-9)
    assert found.min() >= (-8 * scale).min()
    assert found.max() <= (7 * scale).max()
    wrong = [np.square(rows @ (w - matrix)).sum() for w in (found, alone)]
    assert wrong[0] < 0.5 * wrong[1]


CLASSIFIER = "(float[N, 3, 8, 8] x) => (float[N, 5] y)"
BODY = """a = Conv<pads = [1, 1, 1, 1]>(x, wa, ba) r = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(r, wc, bc) t = Add(c, r) u = Relu(t)
    d = Conv<pads = [1, 1, 1, 1]>(u, wd, bd) p = GlobalAveragePool(d) f = Flatten(p) y = Gemm<transB = 1>(f, g, gb)"""
SHAPES = {"wa": (16, 3, 3, 3), "ba": (16,), "wc": (16, 16, 3, 3), "bc": (16,), "wd": (16, 16, 3, 3), "bd": (16,), "g": (5, 16),
          "gb": (5,)}  # fmt: skip


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.left = iter([{"x": np.random.default_rng(k).standard_normal((8, 3, 8, 8)).astype(np.float32)} for k in range(4)])

    def get_next(self) -> Any:
        return next(self.left, None)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """A small network in both of the quantiser's forms, with scales of channels and without."""
    folder = tmp_path_factory.mktemp("quantised")
    onnx.save(graph(CLASSIFIER, BODY, **SHAPES), folder / "float.onnx")
    paths = {}
    for form in QuantFormat:
        for by_channel in (True, False):
            paths[form.name, by_channel] = folder / f"{form.name}{by_channel}.onnx"
            quantize_static(folder / "float.onnx", paths[form.name, by_channel], Reader(), form, per_channel=by_channel,
                            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8)  # fmt: skip
    return paths


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("of", ["params", "macs"])
def test_both_forms_of_a_quantised_network_keep_as_much(quantised: dict[tuple[str, bool], Path], by_channel: bool, of: str) -> None:
    kept = []
    for form in QuantFormat:
        report = pruned(onnx.load(quantised[form.name, by_channel]), of=of).report
        kept.append(report.after.macs / report.before.macs)
    assert abs(kept[0] - kept[1]) < 0.02


FEEDS = [{"x": np.random.default_rng(k).standard_normal((16, 3, 8, 8)).astype(np.float32)} for k in range(10)]


@pytest.mark.parametrize("by_channel", [True, False])
def test_integers_are_solved_for_and_rounded(quantised: dict[tuple[str, bool], Path], by_channel: bool) -> None:
    source = quantised["QOperator", by_channel]
    result = api.prune(source, ratio=0.3, calib=FEEDS)
    report = result.report.reconstruction
    assert len(report["layers"]) >= 3
    assert set(report["skipped"].values()) <= {reconstruction.NOTHING}
    assert report["output_error"]["refitted"] < 0.5 * report["output_error"]["sliced"]
    after = result.model.to_proto()
    kinds = {t.name: t.data_type for t in after.graph.initializer}
    assert kinds == {t.name: t.data_type for t in onnx.load(source).graph.initializer} | kinds
    sliced = api.prune(source, plan=result.plan, reconstruct="none").model.to_proto()
    biases = [n.input[8] for n in after.graph.node if n.op_type == "QLinearConv"]
    assert all(kinds[name] == TensorProto.INT32 for name in biases)
    assert any((array(after, name) != array(sliced, name)).any() for name in biases)
    scales = [n.input[4] for n in after.graph.node if n.op_type == "QLinearConv"]
    assert by_channel == any((array(after, name) != array(sliced, name)).any() for name in scales)
    dense = onnx.load(source)
    fresh = {"x": np.random.default_rng(99).standard_normal((64, 3, 8, 8)).astype(np.float32)}
    wanted, got, before = (run(m, fresh)[0] for m in (dense, after, sliced))
    assert np.square(got - wanted).sum() < 0.6 * np.square(before - wanted).sum()


def test_units_of_integers_can_be_left_out_one_by_one(quantised: dict[tuple[str, bool], Path]) -> None:
    """The first layer's weight has a zero point for every channel, and nothing that it reads can go."""
    result = api.prune(quantised["QOperator", True], ratio=0.3, calib=FEEDS[:2], criterion="oracle", reconstruct="none")
    assert result.report.after.macs < result.report.before.macs


def test_products_of_integers_are_solved_for() -> None:
    """As `quantize_dynamic` writes them."""
    source = dynamic()
    feeds = [{"x": np.random.default_rng(k).standard_normal((64, 12)).astype(np.float32)} for k in range(10)]
    result = api.prune(source, ratio=0.3, calib=feeds)
    report = result.report.reconstruction
    assert {layer["layer"].partition("_")[0] for layer in report["layers"]} == {"MatMulInteger"}
    assert report["output_error"]["refitted"] < 0.7 * report["output_error"]["sliced"]


def dynamic() -> ModelProto:
    weights: dict[str, Any] = {}
    body, last, rng = "", "x", np.random.default_rng(0)
    for k, (n, m) in enumerate([(12, 32), (32, 32), (32, 5)]):
        whole = rng.standard_normal((n, m)) / np.sqrt(n)
        weights |= {f"s{k}": (np.abs(whole).max(0) / 127).astype(np.float32), f"b{k}": rng.standard_normal(m).astype(np.float32) / 9}
        weights[f"w{k}"] = np.round(whole / weights[f"s{k}"]).astype(np.int8)
        body += (
            f"q{k}, t{k}, z{k} = DynamicQuantizeLinear({last}) i{k} = MatMulInteger(q{k}, w{k}, z{k}) "
            f"f{k} = Cast<to = 1>(i{k}) m{k} = Mul(t{k}, s{k}) d{k} = Mul(f{k}, m{k}) a{k} = Add(d{k}, b{k}) r{k} = Relu(a{k}) "
        )
        last = f"r{k}"
    return graph("(float[N, 12] x) => (float[N, 5] y)", body + "y = Identity(a2)", **weights)


def test_integers_that_would_be_worse_are_not_written(quantised: dict[tuple[str, bool], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction.Equations, "rounded", lambda self, matrix, bias, grid: (matrix, bias + 100))
    source = quantised["QOperator", True]
    result = api.prune(source, ratio=0.3, calib=FEEDS)
    sliced = api.prune(source, plan=result.plan, reconstruct="none").model.to_proto()
    after = {t.name: numpy_helper.to_array(t) for t in result.model.to_proto().graph.initializer}
    assert all((after[t.name] == numpy_helper.to_array(t)).all() for t in sliced.graph.initializer)


def _attended(kind: str, per_column: bool) -> ModelProto:
    """Tokens through a layer whose units may go, and attention that holds the weight of query, key and value."""
    rng = np.random.default_rng(0)
    columns = 96 if per_column else 1
    body = """h = MatMul(x, w0) r = Relu(h) q, s1, z1 = DynamicQuantizeLinear(r)
        a = com.microsoft.QAttention<num_heads = 4>(q, w, b, s1, w_s, , z1, w_z) y = MatMul(a, w2)"""
    return graph(
        "(float[N, 6, 12] x) => (float[N, 6, 5] y)", body if kind == "QAttention" else "",
        w0=(rng.standard_normal((12, 24)) / 4).astype(np.float32), w=rng.integers(-90, 90, (24, 96)).astype(np.int8),
        b=(rng.standard_normal(96) / 9).astype(np.float32), w2=(rng.standard_normal((32, 5)) / 6).astype(np.float32),
        w_s=rng.uniform(0.002, 0.006, columns).astype(np.float32), w_z=np.zeros(columns, np.int8),
    )  # fmt: skip


def _channels_last(op_type: str) -> ModelProto:
    """Two convolutions with channels last, between which channels may go."""
    rng = np.random.default_rng(0)
    if op_type == "NhwcConv":
        body = """a = com.microsoft.NhwcConv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, wa, ba) r = Relu(a)
            c = com.microsoft.NhwcConv<kernel_shape = [3, 3]>(r, wc, bc) y = ReduceMean<axes = [1, 2], keepdims = 0>(c)"""
        weights: dict[str, Any] = {"wa": (24, 3, 3, 3), "ba": (24,), "wc": (5, 24, 3, 3), "bc": (5,)}
    else:
        body = """q = QuantizeLinear(x, s, z)
            a = com.microsoft.QLinearConv<pads = [1, 1, 1, 1], channels_last = 1>(q, s, z, wa, wa_s, wz, t, z, ba)
            c = com.microsoft.QLinearConv<channels_last = 1>(a, t, z, wc, wc_s, cz, t, z, bc)
            d = DequantizeLinear(c, t, z) y = ReduceMean<axes = [1, 2], keepdims = 0>(d)"""
        weights = {
            "wa": rng.integers(-90, 90, (24, 3, 3, 3)).astype(np.int8), "wa_s": np.full(24, 0.004, np.float32),
            "wz": np.zeros(24, np.int8), "ba": rng.integers(-900, 900, 24).astype(np.int32),
            "wc": rng.integers(-90, 90, (5, 24, 3, 3)).astype(np.int8), "wc_s": np.full(5, 0.002, np.float32),
            "cz": np.zeros(5, np.int8), "bc": rng.integers(-900, 900, 5).astype(np.int32),
            "s": np.float32(0.03), "z": np.uint8(128), "t": np.float32(0.04),
        }  # fmt: skip
    return graph("(float[N, 8, 8, 3] x) => (float[N, 5] y)", body, **weights)


OTHERS = {
    "QAttention": (_attended("QAttention", False), (6, 12)), "QAttention, by columns": (_attended("QAttention", True), (6, 12)),
    "QLinearConv, channels last": (_channels_last("QLinearConv"), (8, 8, 3)),
    "NhwcConv": (_channels_last("NhwcConv"), (8, 8, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_a_refit_of_them_loses_less_on_inputs_that_it_has_not_seen(kind: str) -> None:
    model, dims = OTHERS[kind]
    mix = np.random.default_rng(5).standard_normal((4, dims[-1]))

    def batches(seed: int, count: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return [{"x": (rng.standard_normal((16, *dims[:-1], 4)) @ mix / 2).astype(np.float32)} for _ in range(count)]

    sliced = api.prune(model, ratio=0.4, scope="local", calib=batches(0, 24), reconstruct="none")
    fitted = api.prune(model, calib=batches(0, 24), plan=sliced.plan)
    assert fitted.report.reconstruction is not None
    named = {"QAttention": "QAttention", "NhwcConv": "NhwcConv"}.get(kind.split(",")[0], "QLinearConv")
    node = [n for n in fitted.model.skeleton.graph.node if n.op_type == named][-1]
    layer = next(r for r in fitted.report.reconstruction["layers"] if r["layer"] == node.name)
    assert layer["after"] < layer["before"]
    dense = open_session(Model.load(model))

    def error(result: Any) -> float:
        own = open_session(result.model)
        return sum(float(np.square(own.run(None, f)[0] - dense.run(None, f)[0]).sum()) for f in batches(1, 4))

    assert error(fitted) < 0.8 * error(sliced)
