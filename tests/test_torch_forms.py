"""Operators in torch give what ONNX's own node tests expect, and what ONNX Runtime gives; gradients pass. Needs torch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import graph, inputs
from numpy.typing import NDArray
from onnx.backend.test.case.node import collect_testcases

from onnxprune.errors import NothingToPrune
from onnxprune.model import Model

torch = pytest.importorskip("torch")

from onnxprune.finetuning.network import Network  # noqa: E402
from onnxprune.finetuning.operators import FORMS  # noqa: E402

RUNTIMES_OWN = {
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}
"""ONNX Runtime differs from ONNX's reference here, and OUT is run by the runtime."""
ELSEWHERE = {"Cast", "CastLike", "GlobalLpPool", "SimplifiedLayerNormalization"}
"""Forms of ONNX's own domain that no node test of the types that there are here is for: rows below."""


@cache
def node_tests() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for case in collect_testcases(None):
        kinds = {n.op_type for n in case.model.graph.node}
        plain = all(isinstance(x, np.ndarray | np.generic | float | int) and np.asarray(x).dtype.kind in "fiub"
                    for ins, outs in case.data_sets for x in (*ins, *outs))  # fmt: skip
        if len(case.model.graph.node) == 1 and plain and kinds <= FORMS.keys() | {"Resize", "If", "Loop", "Scan"}:
            found.setdefault(kinds.pop(), []).append(case)
    return found


@pytest.mark.parametrize("kind", sorted(FORMS.keys() | {"Resize", "Loop", "Scan"}))
def test_a_form_gives_what_the_node_tests_of_onnx_expect(kind: str) -> None:
    if kind in ELSEWHERE or "::" in kind:
        return
    right = 0
    for case in node_tests()[kind]:
        for ins, outs in case.data_sets:
            feed = {i.name: np.asarray(x) for i, x in zip(case.model.graph.input, ins, strict=False)}
            found = given(case, feed)
            if found is None:
                continue
            right += 1
            for a, b in zip(found, outs, strict=True):
                if case.name not in RUNTIMES_OWN:
                    agree(
                        a.detach().numpy(),
                        np.asarray(b),
                        1e-2 if np.asarray(b).dtype == np.float16 else 1e-5,
                        case.name,
                    )
    assert right


def given(case: Any, feed: dict[str, NDArray[Any]]) -> list[Any] | None:
    """None where the network says that it does not do this, and names the operator."""
    try:
        return Network(Model.load(case.model))(feed, [o.name for o in case.model.graph.output])
    except NothingToPrune as why:
        if f"cannot be fine-tuned: {case.model.graph.node[0].op_type} " not in str(why):
            raise
        return None


def agree(a: NDArray[Any], b: NDArray[Any], near: float, name: str) -> None:
    assert a.shape == b.shape, name
    np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-3, atol=near, err_msg=name)


IMAGE, TOKENS = "(float[N, 8, 6, 6] x) => (float[N, 8, O, P] y)", "(float[N, 5, 16] x) => (float[N, 5, M] y)"
ROWS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("Cast", IMAGE, "h = Cast<to = 7>(x) f = Cast<to = 1>(h) g = Mul(f, w) y = Add(g, x)", {"w": (8, 1, 1)}),
    ("CastLike", IMAGE, "h = Cast<to = 7>(x) f = CastLike(h, x) y = Mul(f, w)", {"w": (8, 1, 1)}),
    ("GlobalLpPool", IMAGE, "h = Mul(x, w) y = GlobalLpPool<p = 2>(h)", {"w": (8, 1, 1)}),
    ("SimplifiedLayerNormalization", TOKENS, "y = SimplifiedLayerNormalization<epsilon = 0.1>(x, gain)", {"gain": (16,)}),
    ("com.microsoft::Gelu", TOKENS, "h = MatMul(x, w) y = com.microsoft.Gelu(h)", {"w": (16, 8)}),
    ("com.microsoft::BiasGelu", TOKENS, "h = MatMul(x, w) y = com.microsoft.BiasGelu(h, b)", {"w": (16, 8), "b": (8,)}),
    ("com.microsoft::FastGelu", TOKENS, "h = MatMul(x, w) y = com.microsoft.FastGelu(h, b)", {"w": (16, 8), "b": (8,)}),
    ("com.microsoft::QuickGelu", TOKENS, "h = MatMul(x, w) y = com.microsoft.QuickGelu(h)", {"w": (16, 8)}),
    ("com.microsoft::FusedMatMul", TOKENS, "y = com.microsoft.FusedMatMul<alpha = 0.5, transB = 1>(x, w)", {"w": (8, 16)}),
    ("com.microsoft::FusedConv", IMAGE, "y = com.microsoft.FusedConv<kernel_shape = [3, 3], activation = \"Relu\">(x, w, b)", {"w": (8, 8, 3, 3), "b": (8,)}),
    ("com.microsoft::SkipLayerNormalization", TOKENS, "h = MatMul(x, w) y = com.microsoft.SkipLayerNormalization(x, h, gain, b, c)",
     {"w": (16, 16), "gain": (16,), "b": (16,), "c": (16,)}),
    ("com.microsoft::SkipSimplifiedLayerNormalization", TOKENS, "h = MatMul(x, w) y = com.microsoft.SkipSimplifiedLayerNormalization(x, h, gain, c)",
     {"w": (16, 16), "gain": (16,), "c": (16,)}),
    ("com.microsoft::MultiHeadAttention", TOKENS, "q = MatMul(x, w) k = MatMul(x, v) y = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, x, b)",
     {"w": (16, 16), "v": (16, 16), "b": (48,)}),
    ("Upsample", IMAGE.replace("float[N, 8, O, P]", "float[N, 8, 12, 12]"), "h = Mul(x, w) s = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() y = Resize(h, , s)", {"w": (8, 1, 1)}),
    ("If", TOKENS, """m = ReduceMean<keepdims = 0>(x) z = Constant<value_float = 0.0>() c = Greater(m, z)
     y = If(c) <then_branch = t () => (float[N, 5, 8] a) { a = MatMul(x, w) }, else_branch = e () => (float[N, 5, 8] d) { d = MatMul(x, v) }>""",
     {"w": (16, 8), "v": (16, 8)}),
    ("no form, no gradient", TOKENS, "h = MatMul(x, w) n = Det(s) y = Mul(h, n)", {"w": (16, 8), "s": (3, 3)}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "signature", "body", "weights"), ROWS, ids=[r[0] for r in ROWS])
def test_a_graph_gives_what_the_runtime_gives_and_learns(
    kind: str, signature: str, body: str, weights: dict[str, Any]
) -> None:
    model = graph(signature, body, **weights)
    feed = inputs(model, 3)
    wanted = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
    names = [n for n in weights if n != "s"]
    network = Network(Model.load(model).normalised(), names)
    (found,) = network(feed, ["y"])
    agree(found.detach().numpy(), wanted, 1e-5, kind)
    (found**2).sum().backward()
    learned = [n for n, leaf in network.leaves.items() if leaf.grad is not None and bool((leaf.grad != 0).any())]
    assert learned == (names if kind != "If" else learned[:1])


def test_every_fused_form_has_a_row() -> None:
    rows = {row[0] for row in ROWS} | {"com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear"}
    assert {k for k in FORMS if "::" in k} | ELSEWHERE <= rows


def test_what_has_no_form_and_a_gradient_to_pass_is_named() -> None:
    model = graph("(float[N, 3, 3] x) => (float[N] y)", "h = MatMul(x, w) y = Det(h)", w=(3, 3))
    with pytest.raises(NothingToPrune, match=r"cannot be fine-tuned: Det .*no derivative"):
        Network(Model.load(model).normalised(), ["w"])(inputs(model, 2), ["y"])


def test_codes_are_trained_as_reals_and_written_as_codes() -> None:
    """Straight-through: the network computes with codes; the gradient reaches the reals; what is written is codes."""
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(-128, 128, (8, 4)).astype(np.int8), np.array([0.1, 0.02, 0.3, 0.5], np.float32)
    model = graph("(float[N, 8] x) => (float[N, 4] y)", "r = DequantizeLinear<axis = 1>(w, s, z) y = MatMul(x, r)",
                  w=codes, s=scale, z=np.array([0, 3, -2, 1], np.int8))  # fmt: skip
    network = Network(Model.load(model).normalised(), ["w", "s", "z"])
    assert list(network.leaves) == ["w"]
    assert np.array_equal(network.weights()["w"].array(), codes)
    x = np.eye(8, dtype=np.float32)
    network({"x": x}, ["y"])[0].sum().backward()
    assert network.leaves["w"].grad.abs().sum() > 0
    with torch.no_grad():
        network.leaves["w"] += 0.4 * torch.from_numpy(scale)
    assert np.array_equal(network.weights()["w"].array(), codes)
    with torch.no_grad():
        network.leaves["w"] += 0.4 * torch.from_numpy(scale)
    written = network.weights()["w"].array()
    assert np.array_equal(written, np.minimum(codes.astype(int) + 1, 127))
    onnx.checker.check_model(model)


def test_moments_scales_settings_and_masks_stay() -> None:
    mask = np.where(np.tri(5), 0, -1e9).astype(np.float32)
    model = graph(
        "(float[N, 5, 5] x) => (float[N, 5, 5] y)",
        "b = BatchNormalization(x, gain, bias, mean, var) m = Add(b, mask) s = Softmax(m) p = Pow(s, e) y = MatMul(p, w)",
        gain=(5,), bias=(5,), mean=(5,), var=(5,), mask=mask, e=np.array([2.0, 2, 2, 2, 2], np.float32), w=(5, 5),
    )  # fmt: skip
    assert set(Network(Model.load(model).normalised(), [t.name for t in model.graph.initializer]).leaves) == {
        "gain",
        "bias",
        "w",
    }
