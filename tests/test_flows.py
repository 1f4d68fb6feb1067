"""Criteria of what goes in and what comes out, against the same by hand on arrays of every tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import array, graph, inputs, run, silence
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import ModelProto, helper

from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import criteria
from onnxprune.planning.criteria.inputs import CriterionInputs

Array = NDArray[Any]


def net() -> ModelProto:
    return graph(
        "(float[N,3,8,8] x) => (float[N,5] y)",
        """
        a = Conv(x, w0, b0) b = Relu(a) c = Conv(b, w1) d = Relu(c) p = GlobalAveragePool(d) f = Flatten(p)
        y = Gemm<transB=1>(f, w2)
        """,
        w0=(8, 3, 3, 3), b0=(8,), w1=(6, 8, 3, 3), w2=(5, 6),
    )  # fmt: skip


def stream() -> ModelProto:
    """Two branches that are added to a stream, the second one larger, and the classifier of it."""
    return graph(
        "(float[N,16] x) => (float[N,5] y)",
        """
        s0 = MatMul(x, w0) a = MatMul(s0, w1) b = Relu(a) c = MatMul(b, w2) s1 = Add(s0, c)
        d = MatMul(s1, w3) e = Relu(d) f = MatMul(e, w4) g = Mul(f, five) s2 = Add(g, s1) y = MatMul(s2, w5)
        """,
        w0=(16, 12), w1=(12, 9), w2=(9, 12), w3=(12, 7), w4=(7, 12), five=np.float32(5), w5=(12, 5),
    )  # fmt: skip


def scored(model: ModelProto, name: str, feeds: list[dict[str, Array]]) -> tuple[CriterionInputs, Array]:
    options = Options(criterion=name, residual="all").resolved()
    found = CriterionInputs(analysed(Model.load(model), options, Clock()), options, feeds)
    return found, criteria.scores(name, found)


def of(found: CriterionInputs, scores: Array, parameter: str, axis: int) -> Array:
    ids = next(ids for s, axes, ids in found.groups.blocks if s.parameter == parameter and axes == (axis,))
    return scores[found.groups.classes[ids]]


def every(model: ModelProto, feeds: list[dict[str, Array]], *names: str) -> list[Array]:
    """These tensors over all batches."""
    model.graph.output.extend(helper.make_tensor_value_info(n, 1, None) for n in names)
    parts = [run(model, feed)[1:] for feed in feeds]
    return [np.concatenate([p[k] for p in parts]).astype(np.float64) for k in range(len(names))]


def test_beta_rank_by_hand() -> None:
    """Window by window, over samples: 6 x 6 positions of the first layer, 4 x 4 of the second."""
    model, feeds = net(), [inputs(net(), 7, seed) for seed in (1, 2)]
    found, scores = scored(model, "beta-rank", feeds)
    x = np.concatenate([f["x"] for f in feeds]).astype(np.float64)
    a, b, c = every(net(), feeds, "a", "b", "c")
    for weight, taken, given in (("w0", x, a), ("w1", b, c)):
        windows = sliding_window_view(taken, (3, 3), (2, 3)).transpose(2, 3, 0, 1, 4, 5)  # positions first
        spread_in = windows.reshape(*windows.shape[:2], -1).std(2)
        ratio = (given.std(0) / spread_in).mean((1, 2))
        wanted = np.abs(array(model, weight)).mean((1, 2, 3)) * ratio
        assert of(found, scores, weight, 0) == pytest.approx(wanted / wanted.mean(), rel=1e-4)


def test_cfsp_by_hand() -> None:
    """Angles of the stream weigh the branches, shares of |W| and norms the units in them."""
    model, feeds = stream(), [inputs(stream(), 9, seed) for seed in (1, 2)]
    found, scores = scored(model, "cfsp", feeds)
    s0, b, s1, e, s2 = every(stream(), feeds, "s0", "b", "s1", "e", "s2")

    def angle(u: Array, v: Array) -> float:
        cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        return float(np.arccos(cosine).mean())

    turns = angle(s0, s1), angle(s1, s2)
    assert turns[1] > 1.5 * turns[0], "or the coarse part says nothing"
    for weight, taken, turn in (("w2", b, turns[0]), ("w4", e, turns[1])):
        size = np.abs(array(model, weight))
        fine = (size / size.sum(0)).mean(1) * np.sqrt(np.square(taken).mean(0))
        wanted = turn / np.mean(turns) * fine / fine.mean()
        assert of(found, scores, weight, 0) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("name", ["beta-rank", "cfsp"])
def test_a_unit_that_gives_nothing_is_the_least(name: str) -> None:
    model = net()
    silence(model, {"w1": (0, [2])})
    found, scores = scored(model, name, [inputs(model, 8, 1)])
    units = of(found, scores, "w1", 0)
    assert units[2] == pytest.approx(0, abs=1e-6)
    assert np.median(units) > 0.1
