"""What criteria take a parameter for: the value that it stands for, however the file holds it; and what is no weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import array, graph, replace
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import criteria, curves
from onnxprune.planning.criteria.inputs import CriterionInputs

Array = NDArray[Any]
RANDOM = np.random.default_rng(0)
CODES = {name: RANDOM.integers(0, 256, shape).astype(np.uint8) for name, shape in {"w0": (12, 8), "w1": (8, 6)}.items()}
SCALES = {"w0": RANDOM.uniform(0.001, 0.1, 8).astype(np.float32), "w1": RANDOM.uniform(0.01, 0.1, 6).astype(np.float32)}
ZEROS = {name: RANDOM.integers(100, 200, len(s)).astype(np.uint8) for name, s in SCALES.items()}
STAND_FOR = {name: (CODES[name] - ZEROS[name].astype(np.float32)) * SCALES[name] for name in CODES}
HELD = {f"{n}s": s for n, s in SCALES.items()} | {f"{n}z": z for n, z in ZEROS.items()}
SIGNATURE = "(float[N,12] x) => (float[N,6] y)"


def plain(weights: dict[str, Array] = STAND_FOR) -> ModelProto:
    return graph(SIGNATURE, "a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1)", **weights)


def dequantised() -> ModelProto:
    body = """
        v0 = DequantizeLinear<axis=1>(w0, w0s, w0z) a = MatMul(x, v0) b = Relu(a)
        v1 = DequantizeLinear<axis=1>(w1, w1s, w1z) y = MatMul(b, v1)
    """
    return graph(SIGNATURE, body, **CODES, **HELD)


def transposed() -> ModelProto:
    """The codes lie the other way round, and are turned before they are read."""
    body = """
        t0 = Transpose<perm=[1,0]>(w0) v0 = DequantizeLinear<axis=1>(t0, w0s, w0z) a = MatMul(x, v0) b = Relu(a)
        v1 = DequantizeLinear<axis=0>(w1, w1s, w1z) t1 = Transpose<perm=[1,0]>(v1) y = MatMul(b, t1)
    """
    return graph(SIGNATURE, body, **{n: np.ascontiguousarray(c.T) for n, c in CODES.items()}, **HELD)


def integers() -> ModelProto:
    """Everything is in integers; scales of activations are one for all."""
    body = """
        q = QuantizeLinear(x, s, z) a = QLinearMatMul(q, s, z, w0, w0s, w0z, s, z)
        y8 = QLinearMatMul(a, s, z, w1, w1s, w1z, s, z) y = DequantizeLinear(y8, s, z)
    """
    return graph(SIGNATURE, body, s=np.float32(0.1), z=np.uint8(128), **CODES, **HELD)


def inputs_of(model: ModelProto) -> CriterionInputs:
    return CriterionInputs(analysed(Model.load(model), Options(), Clock()), Options().resolved())


def hidden(model: ModelProto, criterion: str, axis: int = 1) -> Array:
    """Scores of the hidden units, in their order in the file."""
    found = inputs_of(model)
    scores = criteria.scores(criterion, found)
    ids = next(ids for s, axes, ids in found.groups.blocks if s.parameter == "w0" and axes == (axis,))
    return scores[found.groups.classes[ids]]


@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "fpgm"])
@pytest.mark.parametrize("held", [dequantised, transposed, integers], ids=lambda f: f.__name__)
def test_codes_count_for_what_they_stand_for(held: Any, criterion: str) -> None:
    found = hidden(held(), criterion, 0 if held is transposed else 1)
    assert found == pytest.approx(hidden(plain(), criterion), rel=1e-5)
    raw = hidden(plain({n: c.astype(np.float32) for n, c in CODES.items()}), criterion)
    assert np.argsort(found).tolist() != np.argsort(raw).tolist(), "or the codes would do"


def test_the_index_is_of_what_codes_stand_for() -> None:
    """Of two groups, one of which has codes on both sides."""

    def index(body: str, weights: dict[str, Array]) -> list[float]:
        tail = "d = Relu(c) y = MatMul(d, w2)"
        found = inputs_of(graph("(float[N,12] x) => (float[N,5] y)", body + tail, **weights, w2=(6, 5)))
        return list(curves.pq(found.groups, criteria.scores("l2", found), Options().resolved()).values())

    codes = """
        v0 = DequantizeLinear<axis=1>(w0, w0s, w0z) a = MatMul(x, v0) b = Relu(a)
        v1 = DequantizeLinear<axis=1>(w1, w1s, w1z) c = MatMul(b, v1)
    """
    floats = index("a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1)", STAND_FOR)
    assert sorted(index(codes, CODES | HELD)) == pytest.approx(sorted(floats), rel=1e-5)
    assert 0 < min(floats) < max(floats) == 1


def normalised() -> ModelProto:
    return graph(
        "(float[N,3,6,6] x) => (float[N,4,4,4] y)",
        "a = Conv(x, w0) n = BatchNormalization(a, gain, beta, mean, var) b = Relu(n) y = Conv(b, w1)",
        w0=(8, 3, 3, 3), w1=(4, 8, 1, 1), gain=(8,), beta=(8,), mean=(8,), var=(8,),
    )  # fmt: skip


@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp"])
def test_moments_are_no_weights(criterion: str) -> None:
    model, before = normalised(), hidden(normalised(), criterion, 0)
    replace(model, "mean", array(model, "mean")[::-1] * 100)
    replace(model, "var", array(model, "var")[::-1] * 100)
    assert hidden(model, criterion, 0) == pytest.approx(before)
    replace(model, "gain", array(model, "gain")[::-1] * 100)
    assert hidden(model, criterion, 0) != pytest.approx(before)
