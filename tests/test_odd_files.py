"""Files that are unusual and yet fine: every one is pruned, or what is not understood in it stays."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import graph, inputs, pruned, run, shapes, silence
from onnx import ModelProto, helper, numpy_helper

from onnxprune import api
from onnxprune.errors import NothingToPrune

MLP = "a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2)"
SIGNATURE = "(float[n, 16] x) => (float[n, 8] y)"
UNREAD = np.arange(512, dtype=np.float32)


def mlp() -> ModelProto:
    return graph(SIGNATURE, MLP, w1=(16, 32), w2=(32, 8))


def unread(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(UNREAD, "left"))


def unread_input(model: ModelProto) -> None:
    unread(model)
    model.graph.input.append(helper.make_tensor_value_info("left", 1, [512]))


def unread_constant(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["left"], value=numpy_helper.from_array(UNREAD)))


def unread_sparse(model: ModelProto) -> None:
    values = numpy_helper.from_array(UNREAD, "left")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.arange(512), "at"), [1024])
    )


def unread_in_a_body(model: ModelProto) -> None:
    body = "(float[n, 16] x, bool c) => (float[n, 8] y)"
    branches = "then_branch = one () => (float[n, 32] o) {{ o = Tanh(a) }}, else_branch = two () => (float[n, 32] p) {{ p = Neg(a) }}"
    made = graph(body, f"a = MatMul(x, w1) b = If(c) <{branches}> y = MatMul(b, w2)".replace("{{", "{").replace("}}", "}"),
                 w1=(16, 32), w2=(32, 8))  # fmt: skip
    made.graph.node[1].attribute[0].g.initializer.append(numpy_helper.from_array(UNREAD, "left"))
    model.CopyFrom(made)


@pytest.mark.parametrize("add", [unread, unread_input, unread_constant, unread_sparse, unread_in_a_body])
@pytest.mark.parametrize("fast", [True, False])
def test_a_weight_that_nobody_reads(add: object, fast: bool) -> None:
    """A runtime drops it as it loads the graph, and must not be handed it."""
    model = mlp()
    add(model)  # type: ignore[operator]
    result = api.prune(model, ratio=0.5, fast=fast)
    assert shapes(result)["w1"] == (16, 16)


def test_external_weights_that_nobody_reads(tmp_path: Path) -> None:
    model = mlp()
    unread(model)
    onnx.save(model, tmp_path / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    result = api.prune(tmp_path / "in.onnx", ratio=0.5, fast=True)
    assert shapes(result)["w1"] == (16, 16)
    np.testing.assert_array_equal(result.model.weights["left"].array(), UNREAD)


GROUPED = {
    "of every channel": (21, "g = GroupNormalization<num_groups = 8>(h, gain, bias)", (32,)),
    "of every group": (18, "g = GroupNormalization<num_groups = 8>(h, gain, bias)", (8,)),
    "as instances": (18, "k = Reshape(h, eight) i = InstanceNormalization(k, ones, zeros) s = Shape(h) u = Reshape(i, s) m = Mul(u, gain) g = Add(m, bias)", (32, 1, 1)),
    "as means": (18, "k = Reshape(h, eight) o = ReduceMean(k, last) d = Sub(k, o) q = Mul(d, d) v = ReduceMean(q, last) e = Add(v, least) r = Sqrt(e) i = Div(d, r) s = Shape(h) u = Reshape(i, s) m = Mul(u, gain) g = Add(m, bias)", (32, 1, 1)),
}  # fmt: skip
FIXED = {"eight": np.array([0, 8, -1]), "ones": np.ones(8, np.float32), "zeros": np.zeros(8, np.float32),
         "last": np.array([2]), "least": np.array([1e-5], np.float32)}  # fmt: skip


def test_every_form_of_a_group_normalisation_loses_the_same() -> None:
    kept = {}
    for name, (opset, norm, per) in GROUPED.items():
        body = f"h = Conv<pads = [1, 1, 1, 1]>(x, c0, b0) {norm} a = Relu(g) z = Conv(a, c1) p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB = 1>(f, w)"
        used = {n: v for n, v in FIXED.items() if n in norm}
        model = graph("(float[N, 3, 8, 8] x) => (float[N, 10] y)", body, opset, c0=(32, 3, 3, 3), b0=(32,),
                      c1=(16, 32, 3, 3), w=(10, 16), gain=np.ones(per, np.float32), bias=np.zeros(per, np.float32), **used)  # fmt: skip
        result = api.prune(model, ratio=0.5, fast=True)
        kept[name] = result.model.weights["c0"].array()
    first = kept["of every channel"]
    assert len(first) == 16
    for name, weight in kept.items():
        np.testing.assert_array_equal(weight, first, err_msg=name)


@pytest.mark.parametrize(("given", "taken", "match"), [
    ("seq(float[n, 16]) s", "x = SequenceAt(s, first)", "input 's' is a sequence"),
    ("optional(float[n, 16]) s", "x = OptionalGetElement(s)", "input 's' is an optional"),
    ("map(int64, float[n, 16]) s", "x = com.custom.Take(s)", "input 's' is a map"),
    ("sparse_tensor(float[n, 16]) s", "x = com.custom.Take(s)", "input 's' is a sparse tensor"),
])  # fmt: skip
def test_inputs_that_are_no_tensors(given: str, taken: str, match: str) -> None:
    model = graph(f"({given}) => (float[n, 8] y)", f"{taken} {MLP}", 18, w1=(16, 32), w2=(32, 8), first=np.array(0))
    with pytest.raises(NothingToPrune, match=match):
        api.prune(model, fast=True)


@pytest.mark.parametrize(("out", "made"), [
    ("seq(float[n, 8]) z", "z = SequenceConstruct(y, y)"), ("optional(float[n, 8]) z", "z = Optional(y)"),
])  # fmt: skip
def test_outputs_that_are_no_tensors(out: str, made: str) -> None:
    model = graph(f"(float[n, 16] x) => ({out})", f"{MLP} {made}", w1=(16, 32), w2=(32, 8))
    assert shapes(api.prune(model, ratio=0.5, fast=True))["w1"] == (16, 16)


def test_the_first_form_of_scan_stays() -> None:
    """That of opset 8 has a batch, and an input that says how long the sequences are."""
    scan = "z = Scan<num_scan_inputs = 1, body = turn (float[4] s, float[4] i) => (float[4] t, float[4] o) { t = Add(s, i) o = Identity(t) }>(, first, c)"
    body = f"a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) t, {scan} y = MatMul(z, w3)"
    model = graph("(float[1, 3, 8] x) => (float[1, 3, 2] y)", body, 8, w1=(8, 16), w2=(16, 4), w3=(4, 2),
                  first=np.zeros((1, 4), np.float32))  # fmt: skip
    found = shapes(pruned(model))
    assert (found["w1"], found["w2"], found["w3"]) == ((8, 8), (8, 4), (4, 2))


def steps(kind: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    low = 0 if kind == "uint4" else -7
    return np.random.default_rng(seed).integers(low, 8, shape).astype(np.int8).astype(getattr(ml_dtypes, kind, kind))


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8"])
@pytest.mark.parametrize(("body", "hidden", "scales", "kept"), [
    ("d1 = DequantizeLinear<axis = 0, block_size = 8>(q1, scale1, zero1) h = MatMul(x, d1) a = Relu(h)"
     "d2 = DequantizeLinear<axis = 0, block_size = 8>(q2, scale2, zero2) y = MatMul(a, d2)",
     (32, 64), ((4, 64), (8, 8)), {"q1": (32, 32), "q2": (32, 8), "scale1": (4, 32), "scale2": (4, 8), "zero2": (4, 8)}),
    ("d1 = DequantizeLinear<axis = 1, block_size = 16>(q1, scale1, zero1) h = MatMul(x, d1) a = Relu(h)"
     "d2 = DequantizeLinear<axis = 1, block_size = 8>(q2, scale2, zero2) y = MatMul(a, d2)",
     (32, 64), ((32, 4), (64, 1)), {"q1": (32, 32), "q2": (32, 8), "scale1": (32, 2), "scale2": (32, 1)}),
    ("d1 = DequantizeLinear<axis = 0, block_size = 8>(q1, scale1, zero1) h = MatMul(x, d1) a = Relu(h)"
     "d2 = DequantizeLinear<axis = 0, block_size = 64>(q2, scale2, zero2) y = MatMul(a, d2)",
     (32, 64), ((4, 64), (1, 8)), {"q1": (32, 32), "q2": (32, 8), "scale1": (4, 32), "scale2": (1, 8)}),
    ("d1 = DequantizeLinear<axis = 1, block_size = 8>(q1, scale1, zero1) t1 = Transpose(d1) h = MatMul(x, t1) a = Relu(h)"
     "d2 = DequantizeLinear<axis = 1, block_size = 16>(q2, scale2, zero2) t2 = Transpose(d2) y = MatMul(a, t2)",
     (64, 32), ((64, 4), (8, 4)), {"q1": (32, 32), "q2": (8, 32), "scale1": (32, 4), "scale2": (8, 2)}),
])  # fmt: skip
def test_blocks_that_share_a_scale_go_whole(
    kind: str, body: str, hidden: tuple[int, int], scales: tuple[tuple[int, int], tuple[int, int]], kept: dict[str, tuple[int, ...]]
) -> None:  # fmt: skip
    outer = (8, hidden[1] * hidden[0] // 32) if hidden[0] > hidden[1] else (hidden[1], 8)
    given = {"q1": steps(kind, hidden), "q2": steps(kind, outer), "zero1": steps(kind, scales[0], 1),
             "zero2": steps(kind, scales[1], 2), "scale1": scales[0], "scale2": scales[1]}  # fmt: skip
    result = pruned(graph("(float[n, 32] x) => (float[n, 8] y)", body, 21, **given), residual="conv")
    assert shapes(result).items() >= kept.items()


def test_a_last_block_that_is_not_full_stays_with_all_its_axis() -> None:
    """A convolution behind it is pruned as ever."""
    body = (
        "d = DequantizeLinear<axis = 1, block_size = 16>(q, scale) c = Conv(x, d) a = Relu(c) e = Conv(a, w2) b = Relu(e)"
        "f = DequantizeLinear<axis = 1, block_size = 4>(r, scale2) y = Conv(b, f)"
    )
    given = {"q": steps("int4", (40, 24, 3, 3)), "scale": (40, 2, 3, 3), "w2": (6, 40, 1, 1), "r": steps("int8", (5, 6, 1, 1)),
             "scale2": (5, 2, 1, 1)}  # fmt: skip
    found = shapes(pruned(graph("(float[n, 24, 8, 8] x) => (float[n, 5, 6, 6] y)", body, 21, **given), residual="conv"))
    assert (found["q"], found["scale"]) == ((20, 24, 3, 3), (20, 2, 3, 3))
    assert (found["w2"], found["r"], found["scale2"]) == ((6, 20, 1, 1), (5, 6, 1, 1), (5, 2, 1, 1))


def ints(*values: int) -> np.ndarray:
    return np.array(values)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(("attributes", "inputs", "given", "channels"), [
    ("axes = [2, 3], keep_aspect_ratio_policy = \"not_smaller\"", ", , s", {"s": ints(7, 7)}, 4),
    ("axes = [-1, -2], keep_aspect_ratio_policy = \"not_larger\"", ", , s", {"s": ints(7, 7)}, 4),
    ("keep_aspect_ratio_policy = \"not_smaller\"", ", , s", {"s": ints(2, 8, 4, 6)}, 8),  # one scale for all
    ("axes = [-2, -1]", ", , s", {"s": ints(7, 9)}, 4),
    ("axes = [1, 2]", ", , s", {"s": ints(8, 9)}, 4),
    ("axes = [1, 2]", ", s", {"s": floats(1, 2)}, 4),
    ("", ", s", {"s": floats(1, 1.1, 2, 2)}, 8),  # still 8 channels, and yet moved
    ("coordinate_transformation_mode = \"tf_crop_and_resize\"", "r, , s",
     {"r": floats(0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8), "s": ints(2, 8, 5, 5)}, 4),
    ("coordinate_transformation_mode = \"tf_crop_and_resize\"", "r, , s",
     {"r": floats(0, 0.2, 0.2, 0.2, 1, 0.9, 0.8, 0.8), "s": ints(2, 8, 5, 5)}, 8),
    ("coordinate_transformation_mode = \"tf_crop_and_resize\", axes = [2, 3]", "r, , s",
     {"r": floats(0.2, 0.2, 0.8, 0.8), "s": ints(5, 5)}, 4),
    ("antialias = 1, mode = \"linear\"", ", , s", {"s": ints(2, 8, 2, 3)}, 4),
    ("antialias = 1, mode = \"cubic\", exclude_outside = 1", ", s", {"s": floats(1, 1, 0.5, 0.5)}, 4),
])  # fmt: skip
def test_resized_axes_pass_where_nothing_moves(
    attributes: str, inputs: str, given: dict[str, np.ndarray], channels: int
) -> None:
    resized = f"r1 = Resize<{attributes}>(b, {inputs})".replace("<>", "")
    body = f"a = Conv(x, w1) b = Relu(a) {resized} c = Conv(r1, w2) d = Relu(c) y = Conv(d, w3)"
    model = graph("(float[2, 3, 4, 6] x) => (float[h, i, j, k] y)", body, 19, w1=(8, 3, 1, 1), w2=(6, 8, 1, 1),
                  w3=(5, 6, 1, 1), **given)  # fmt: skip
    found = shapes(pruned(model, residual="conv"))
    assert (found["w1"], found["w2"], found["w3"]) == ((channels, 3, 1, 1), (3, channels, 1, 1), (5, 3, 1, 1))


BEHIND = "c = Conv(b, w2) d = Relu(c) y = Conv(d, w3)"
EVEN = {"w1": (4, 3, 3, 3), "w2": (3, 4, 1, 1), "w3": (5, 3, 1, 1)}


@pytest.mark.parametrize("batch", ["2", "N"])
@pytest.mark.parametrize(("opset", "layer"), [
    (9, "ImageScaler<scale = 0.5, bias = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]>(a)"), (9, "Crop<border = [1, 1, 1, 1]>(a)"),
    (9, "Crop<border = [1, 1, 1, 1], scale = [4, 4]>(a)"), (9, "Affine<alpha = 2.0, beta = 1.0>(a)"),
    (9, "ParametricSoftplus<alpha = 2.0, beta = 1.0>(a)"), (9, "ScaledTanh<alpha = 2.0, beta = 1.0>(a)"),
    (9, "Scale<scale = 2.0>(a)"), (7, "Upsample<scales = [1.0, 1.0, 2.0, 2.0]>(a)"), (9, "MeanVarianceNormalization(a)"),
    (13, "MeanVarianceNormalization(a)"), (13, "MeanVarianceNormalization<axes = [2, 3]>(a)"),
])  # fmt: skip
def test_operators_of_the_first_opsets(opset: int, layer: str, batch: str) -> None:
    """ONNX has no schema for most of these any more, or cannot read their bodies; ONNX Runtime runs them."""
    model = graph(f"(float[{batch}, 3, 8, 8] x) => (float[{batch}, 5, h, w] y)",
                  f"a = Conv<pads = [1, 1, 1, 1]>(x, w1) b = {layer} {BEHIND}", opset, w1=(8, 3, 3, 3), w2=(6, 8, 1, 1),
                  w3=(5, 6, 1, 1))  # fmt: skip
    result = api.prune(model, ratio=0.5, fast=True)
    assert shapes(result) == EVEN
    for size in (2, 3) if batch == "N" else (2,):
        feeds = inputs(model, size)
        expected, got = run(model, feeds), run(result.model.to_proto(), feeds)
        assert [x.shape for x in got] == [x.shape for x in expected]


def test_an_operator_that_nobody_has_a_rule_for_leaves_the_rest_to_be_pruned() -> None:
    """How many dims it gives is all that is known of it."""
    model = graph("(float[N, 3, 8, 8] x) => (float[N, 5, h, w] y)",
                  f"a = Conv<pads = [1, 1, 1, 1]>(x, w1) b = DynamicSlice(a, start, stop, axes) {BEHIND}", 9,
                  w1=(8, 3, 3, 3), w2=(6, 8, 1, 1), w3=(5, 6, 1, 1), start=ints(0, 0), stop=ints(6, 6), axes=ints(2, 3))  # fmt: skip
    assert (
        shapes(api.prune(model, ratio=0.5, fast=True)).items()
        >= {**EVEN, "w1": (8, 3, 3, 3), "w2": (3, 8, 1, 1)}.items()
    )


@pytest.mark.parametrize("axis", [-1, 2])
def test_a_root_mean_square_norm_of_the_default_domain(axis: int) -> None:
    body = f"a = SimplifiedLayerNormalization<axis = {axis}, epsilon = 0.000001>(x, gain) b = MatMul(a, w1) c = Relu(b) y = MatMul(c, w2)"
    model = graph("(float[N, S, 16] x) => (float[N, S, 4] y)", body, gain=(16,), w1=(16, 32), w2=(32, 4))
    assert shapes(api.prune(model, ratio=0.5, fast=True)) == {"gain": (16,), "w1": (16, 16), "w2": (16, 4)}


def test_axes_that_are_numbered_from_the_last() -> None:
    """A Transpose with negative axes, as TorchScript writes for Mamba: nobody runs it, though it can be told what is
    meant. What is written runs."""
    found = []
    for perm in ("0, -2, -1, 1", "0, 2, 3, 1"):
        body = f"a = MatMul(x, w1) r = Reshape(a, to) t = Transpose<perm = [{perm}]>(r) s = Reshape(t, back) y = MatMul(s, w2)"
        model = graph("(float[N, 6, 8] x) => (float[N, 4, 4] y)", body, w1=(8, 24), w2=(36, 4), to=ints(0, 0, 4, 6),
                      back=ints(0, 0, 36))  # fmt: skip
        result = api.prune(model, ratio=0.5, fast=True).model.to_proto()
        found.append((shapes(result), run(result, inputs(model, 2))))
    (first, got), (second, expected) = found
    assert first == second
    assert first["w1"] == (8, 12)
    np.testing.assert_array_equal(got[0], expected[0])


def test_a_channel_that_is_no_number_goes() -> None:
    """ONNX Runtime divides by the deviation of a silent channel, which is zero: without it the outputs are numbers."""
    model = silence(
        graph("(float[2, 3, 4, 4] x) => (float[2, 5, 4, 4] y)", "a = Conv(x, w1) b = MeanVarianceNormalization(a) y = Conv(b, w2)",
              13, w1=(8, 3, 1, 1), w2=(5, 8, 1, 1)), {"w1": (0, [0, 3, 5, 6]), "w2": (1, [0, 3, 5, 6])})  # fmt: skip
    result = api.prune(model, ratio=0.5, fast=True)
    assert shapes(result) == {"w1": (4, 3, 1, 1), "w2": (5, 4, 1, 1)}
    assert np.isnan(run(model, inputs(model, 2))[0]).all()
    assert np.isfinite(run(result.model.to_proto(), inputs(model, 2))[0]).all()
