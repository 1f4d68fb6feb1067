"""Graphs run in pieces for a proof: the same outputs, no weaker a proof."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import api
from onnxprune.data import random_inputs
from onnxprune.errors import CheckFailed, RuntimeFailure
from onnxprune.model import Model, Weight
from onnxprune.options import Options
from onnxprune.prove import proofs as verify
from onnxprune.rewrite import Rewritten
from onnxprune.run import Session, chain
from onnxprune.shapes import infer
from tests.graphs import graph, pruned

MODELS = Path(__file__).parents[1] / "models"


def chained(source: onnx.ModelProto | Path) -> tuple[Model, chain.Chain, list[dict[str, np.ndarray]]]:
    model = Model.load(source).normalised()
    shapes = infer(model)
    opened = chain.opened(model, Options(), shapes.dtype)
    assert isinstance(opened, chain.Chain)
    return model, opened, [random_inputs(model, sizes, 0) for sizes in shapes.inputs]


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("name", ["tiny_conv", "tiny_attention"])
def test_pieces_compute_what_the_whole_computes(name: str) -> None:
    model, pieces, feeds = chained(MODELS / f"{name}.onnx")
    assert pieces.blocks > 5
    whole = Session(model, ["cpu"])
    for feed, at_once, got in zip(feeds, whole.run_all(feeds), pieces.run_all(feeds), strict=True):
        for expected, same, value in zip(whole.run(feed), at_once, got, strict=True):
            np.testing.assert_array_equal(same, expected)
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("body", ["{dead} {live}", "{live} {dead}"])
def test_nodes_that_nothing_uses_have_to_load(body: str) -> None:
    live = "a = MatMul(x, v) b = Relu(a) c = MatMul(b, w) y = Neg(c)"
    dead = "d = MatMul(x, v) e = Relu(d) f = Neg(e) g = Reshape(f, w)"
    model = graph("(float[N, 8] x) => (float[N, 8] y)", body.format(dead=dead, live=live), v=(8, 8), w=(8, 8))
    _, pieces, feeds = chained(model)
    with pytest.raises(RuntimeFailure, match="Reshape"):
        pieces.run_all(feeds)


@pytest.mark.usefixtures("in_pieces")
def test_what_crosses_is_carried_as_long_as_it_is_needed() -> None:
    """A skip over many pieces, an input read late, an output made early, a body that reads from outside, and weights
    and inputs that are outputs."""
    model = graph(
        "(float[N, 8] x, float[N, 8] late, bool flag) => (float[N, 8] early, float[N, 8] y, float[8, 8] w, float[N, 8] z)",
        """early = MatMul(x, w) a = Relu(early) b = Neg(a) c = MatMul(b, v) d = Relu(c) e = Add(d, early)
        f = If<then_branch = then () => (float[N, 8] t) { t = Add(e, a) }, else_branch = other () => (float[N, 8] o)
        { o = Mul(e, b) }>(flag) g = Identity(f) unused = Neg(g) z = Identity(late) y = Add(g, late)""",
        w=(8, 8), v=(8, 8),
    )  # fmt: skip
    loaded, pieces, feeds = chained(model)
    assert pieces.blocks > 3
    for expected, value in zip(Session(loaded, ["cpu"]).run(feeds[0]), pieces.run(feeds[0]), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("in_pieces")
def test_what_numpy_has_no_type_for_is_not_cut() -> None:
    """Between the two casts nothing may be cut: a sequence."""
    model = graph(
        "(float[N, 8] x) => (float[N, 8] y)",
        """a = Relu(x) b = MatMul(a, w) s = SplitToSequence<axis = 1>(b) c = ConcatFromSequence<axis = 1>(s)
        d = Relu(c) e = MatMul(d, v) y = Neg(e)""",
        w=(8, 8), v=(8, 8),
    )  # fmt: skip
    loaded, pieces, feeds = chained(model)
    assert pieces.blocks > 1
    assert all("s" not in piece.ins for piece in pieces.pieces)
    np.testing.assert_allclose(pieces.run(feeds[0])[0], Session(loaded, ["cpu"]).run(feeds[0])[0], rtol=1e-5)


def test_the_memory_decides_about_pieces_and_the_report_says_so() -> None:
    model = graph("(float[N, 64] x) => (float[N, 64] y)", "a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)",
                  w=(64, 512), v=(512, 64))  # fmt: skip
    assert pruned(model).report.proof.blocks == 1
    small = pruned(model, memory=1 << 20)
    assert small.report.proof.blocks > 1


@pytest.mark.usefixtures("in_pieces")
def test_a_wrong_model_is_caught_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    right = api.rewrite

    def wrong(*args: Any) -> Rewritten:
        after = right(*args)
        weight = after.model.weights["conv2_weight"]
        after.model.weights["conv2_weight"] = Weight.of(weight.array() + np.float32(0.1))
        return after

    account = verify.compared
    monkeypatch.setattr("onnxprune.pipeline.stages.rewrite", wrong)
    monkeypatch.setattr(verify, "compared", lambda *given: dataclasses.replace(account(*given), differing=()))
    with pytest.raises(CheckFailed, match="differs from the masked original"):
        api.prune(MODELS / "tiny_conv.onnx", fast=True)


@pytest.mark.usefixtures("in_pieces")
def test_nodes_need_not_be_in_order() -> None:
    """Masking puts back what a normalisation over several axes gives, the last axis first."""
    model = graph(
        "(float[N, 3, 6, 6] x) => (float[N, 4] y)",
        """a = Conv<pads = [1, 1, 1, 1]>(x, w) b = LayerNormalization<axis = 1>(a, gain, shift) c = Conv(b, v)
        d = GlobalAveragePool(c) e = Flatten(d) y = MatMul(e, u)""",
        w=(8, 3, 3, 3), gain=(8, 6, 6), shift=(8, 6, 6), v=(16, 8, 3, 3), u=(16, 4),
    )  # fmt: skip
    proof = pruned(model).report.proof
    assert proof.blocks > 3


@pytest.mark.usefixtures("in_pieces")
def test_weights_that_are_packed_are_given_by_another_session() -> None:
    """MatMulNBits takes its weights as constants, so that ONNX Runtime packs them once: other ones for one of the feeds
    make a session of their own, and the others keep theirs."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (2, 24, 1, 16), np.uint8)
    nbits = "com.microsoft.MatMulNBits<K = 32, N = 24, bits = 4, block_size = 32>"
    source = graph(
        "(float[N, 32] x) => (float[N, 5] y)", f"a = {nbits}(x, b, s) r = Relu(a) y = MatMul(r, w)", 17, 0,
        b=codes[0], s=(24, 1), w=(24, 5),
    )  # fmt: skip
    model = Model.load(source).normalised()
    others = {"b": Weight.of(codes[1])}
    changed = Model(model.skeleton, {**model.weights, **others})
    shapes = infer(model)
    pieces = chain.opened(model, Options(), shapes.dtype, others)
    assert isinstance(pieces, chain.Chain)
    feeds = [random_inputs(model, shapes.inputs[0], seed) for seed in range(2)]
    got = pieces.run_all([*feeds, feeds[0]], weights=[others])
    for feed, net, (value,) in zip([*feeds, feeds[0]], [model, model, changed], got, strict=True):
        np.testing.assert_allclose(value, Session(net, ["cpu"]).run(feed)[0], rtol=1e-5, atol=1e-5)
    assert not np.allclose(got[0][0], got[2][0])
    assert not Session(model, ["cpu"], others).holds(others)
