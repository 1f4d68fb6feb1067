"""Models that turn rounding into something larger: decisions made of close values, long recurrences of looked-up rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphs import graph, inputs, pruned, shapes
from onnx import ModelProto

import onnxprune.api  # noqa: F401
from onnxprune.errors import CheckFailed
from onnxprune.model import Model, Weight
from onnxprune.pipeline import stages
from onnxprune.prove import proofs as verify
from onnxprune.prove import rounding
from onnxprune.prove.original import Run
from onnxprune.prove.pair import Pair


def ranked() -> ModelProto:
    """64 scores that differ by less than sums of 512 terms in another order do, and the order of these scores."""
    close = (1 + 1e-5 * np.random.default_rng(0).standard_normal((512, 64))).astype(np.float32)
    return graph(
        "(float[N, 16] x) => (float[N, 64] y, float[N, 64] z)",
        """
        h = MatMul(x, w1)
        r = Relu(h)
        s = MatMul(r, close)
        best, order = TopK<axis = 1>(s, all)
        y = Gather<axis = 0>(table, order)
        z = MatMul(r, w2)
        """,
        w1=(16, 512), close=close, w2=(512, 64), all=np.array([64]), table=np.arange(64).astype(np.float32),
    )  # fmt: skip


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every processor rounds in its own way, some not at all here: the pruned model's scores are off by as much."""
    compare, account, rng = verify.equivalence, verify.compared, np.random.default_rng(0)

    def off(trace: Any, kept: Any, after: Model, options: Any) -> Any:
        after = after.copy()
        values = after.weights["close"].array()
        after.weights["close"] = Weight.of(values * (1 + 1e-6 * rng.standard_normal(values.shape).astype(np.float32)))
        return compare(trace, kept, after, options)

    monkeypatch.setattr(stages, "equivalence", off)
    monkeypatch.setattr(verify, "compared", lambda *given: dataclasses.replace(account(*given), differing=()))


@pytest.mark.usefixtures("rounded")
def test_decisions_of_close_values_are_compared_for_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    pruned(ranked(), batches=(1,))
    monkeypatch.setattr(rounding, "deciding", lambda *given: [])
    with pytest.raises(CheckFailed, match="differs from the masked original"):
        pruned(ranked(), batches=(1,))


def in_a_branch() -> ModelProto:
    """The same order, made in a branch of an If, and how many of it are read: a wrong one does not even run."""
    close = (1 + 1e-5 * np.random.default_rng(0).standard_normal((512, 64))).astype(np.float32)
    return graph(
        "(float[1, 16] x) => (float[1, k] y)",
        """
        h = MatMul(x, w1)
        r = Relu(h)
        s = MatMul(r, close)
        sum = ReduceSum<keepdims = 0>(s)
        some = Greater(sum, least)
        order = If(some) <
            then_branch = yes () => (int64[1, k] best) { same = Identity(s) value, best = TopK<axis = 1>(same, all) },
            else_branch = no () => (int64[1, k] rest) { rest = Identity(table_order) }
        >
        y = Gather<axis = 0>(table, order)
        """,
        w1=(16, 512), close=close, all=np.array([64]), least=np.float32(-1), table_order=np.arange(64)[None],
        table=np.arange(64).astype(np.float32),
    )  # fmt: skip


def looked_at() -> ModelProto:
    """Samples at positions far out, in an image in which neighbours have nothing in common."""
    close = np.random.default_rng(0).uniform(0, 100, (512, 64)) * np.tile([1, 1e-4], 32)
    return graph(
        "(float[1, 16] x, float[1, 1, 4, 99000] image) => (float[16, 1, 2, 2] y)",
        """
        h = MatMul(x, w1)
        r = Relu(h)
        s = MatMul(r, close)
        at = Reshape(s, shape)
        y = RoiAlign<output_height = 2, output_width = 2, sampling_ratio = 1>(image, at, zeros)
        """,
        w1=(16, 512), close=close.astype(np.float32), shape=np.array([16, 4]), zeros=np.zeros(16, np.int64),
    )  # fmt: skip


@pytest.mark.usefixtures("rounded")
@pytest.mark.parametrize("made", [in_a_branch, looked_at])
def test_what_branches_decide_and_positions_count_as_decisions(
    made: Callable[[], ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned(made(), batches=(1,))
    monkeypatch.setattr(rounding, "decides_from", lambda *given: [])
    with pytest.raises(CheckFailed, match="differs from the masked original"):
        pruned(made(), batches=(1,))


@pytest.mark.usefixtures("rounded")
@pytest.mark.parametrize("wrong", ["close", "table", "w2"])
def test_a_wrong_weight_before_or_after_a_decision_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Pair._errors_with_decisions_fed

    def tampered(both: Pair, run: Run) -> Any:
        weights = both.after.weights
        weights[wrong] = Weight.of(weights[wrong].array() * np.float32(1.01))
        return right(both, run)

    monkeypatch.setattr(Pair, "_errors_with_decisions_fed", tampered)
    with pytest.raises(CheckFailed, match="differs from the masked original"):
        pruned(ranked(), batches=(1,))


def test_floats_that_go_in_and_those_of_weights_are_nudged() -> None:
    model = graph(
        "(int64[N, 6] ids, float[N, 6, 16] x) => (float[N, 6, 5] y)",
        "e = Gather<axis = 0>(table, ids) h = Add(e, x) s = Mul(h, few) y = MatMul(s, w)",
        table=(20, 16), few=np.array([0.5], np.float32), w=(16, 5),
    )  # fmt: skip
    source = Model.load(model)
    feeds = inputs(model, 2)
    moved, same = rounding.nudged(source, feeds, 0)
    np.testing.assert_array_equal(same["ids"], feeds["ids"])
    np.testing.assert_array_equal(moved.weights["few"].array(), source.weights["few"].array())
    for was, value in ((feeds["x"], same["x"]), *((source.weights[n].array(), moved.weights[n].array()) for n in ("table", "w"))):
        assert 0 < np.abs(value / was - 1).max() < 1e-5


def test_a_batch_that_is_split_into_one_is_pinned() -> None:
    """Exported from one image in a list: the batch is declared free, and works as one only."""
    model = graph(
        "(float[N, 3, 8, 8] x) => (float[a, b] y)",
        """
        one = Split<axis = 0>(x, ones)
        image = Squeeze(one, first)
        scaled = Mul(image, factor)
        again = Unsqueeze(scaled, first)
        c = Conv(again, w1)
        r = Relu(c)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        y = Gemm<transB = 1>(f, w2)
        """,
        ones=np.array([1]), first=np.array([0]), factor=np.float32(0.5), w1=(8, 3, 3, 3), w2=(5, 8),
    )  # fmt: skip
    result = pruned(model, batches=(1,))
    assert shapes(result)["w1"] == (4, 3, 3, 3)
    assert "works at one size only" in "".join(result.report.notes)
