"""What a run says of its own error, beside the error on inputs that it has never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import run
from onnx import ModelProto, numpy_helper, parser

from onnxprune import api
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import OutputError, parting, sensitivity
from onnxprune.run import open_session

MODELS = Path(__file__).parent.parent / "models"
IMAGES = np.load(MODELS / "fashion_test.npz")["image"].astype(np.float32)
FACTOR = 1.3
FRESH = 1000


def net(text: str, **shapes: tuple[int, ...]) -> ModelProto:
    """With weights that keep the power of what they read; biases beside them."""
    proto = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]> g {text}""")
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        weight = (2 / np.prod(shape[1:])) ** 0.5 * rng.standard_normal(shape, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
        bias = 0.1 * rng.standard_normal(shape[0], np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), f"{name}b"))
    return proto


LAYERS = net(
    """(float[N, 784] x) => (float[N, 10] y) { a = Gemm<transB=1>(x, u, ub) b = Relu(a)
       c = Gemm<transB=1>(b, v, vb) d = Relu(c) y = Gemm<transB=1>(d, w, wb) }""",
    u=(96, 784), v=(64, 96), w=(10, 64),
)  # fmt: skip
CONVOLUTIONS = net(
    """(float[N, 1, 28, 28] x) => (float[N, 10] y) { a = Conv<strides=[2, 2]>(x, t, tb) b = Relu(a)
       c = Conv<strides=[2, 2]>(b, u, ub) d = Relu(c) e = Conv(d, v, vb) f = Relu(e)
       p = GlobalAveragePool(f) q = Flatten(p) y = Gemm<transB=1>(q, w, wb) }""",
    t=(12, 1, 3, 3), u=(24, 12, 3, 3), v=(32, 24, 3, 3), w=(10, 32),
)  # fmt: skip


def told_and_fresh(model: ModelProto, inputs: Any, samples: int, seed: int) -> tuple[float, float]:
    """The output error that the report tells, and that on inputs which the run was not given."""
    order = np.random.default_rng(seed).permutation(len(inputs))
    given, fresh = inputs[order[:samples]], inputs[order[samples : samples + FRESH]]
    name = model.graph.input[0].name
    result = api.prune(model, ratio=0.5, of="macs", calib=[{name: given}], seed=seed)
    dense, pruned = (run(m, {name: fresh})[0].astype(np.float64) for m in (model, result.model.to_proto()))
    story = result.report.reconstruction
    assert story is not None
    return story["output_error"]["refitted"], np.square(pruned - dense).mean() / dense.var()


@pytest.mark.parametrize("samples", [40, 128, 512])
@pytest.mark.parametrize("model", [LAYERS, CONVOLUTIONS], ids=["layers", "convolutions"])
def test_the_error_that_is_told_is_that_on_fresh_inputs(model: ModelProto, samples: int) -> None:
    """Within a factor of 1.3, as the mean over three draws: of few samples one draw says little."""
    inputs = IMAGES if model is CONVOLUTIONS else IMAGES.reshape(len(IMAGES), -1)
    found = np.array([told_and_fresh(model, inputs, samples, seed) for seed in range(3)])
    told, fresh = found.mean(0)
    assert 1 / FACTOR < fresh / told < FACTOR


@pytest.mark.parametrize("held", [1 << 28, 0])
def test_outputs_are_judged_batch_by_batch(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same whether the dense outputs are kept or made again beside each model: squared errors by the variance."""
    monkeypatch.setattr(sensitivity, "HELD", held)
    groups = analysed(Model.load(LAYERS), Options().resolved(), Clock())
    feeds = [{"x": IMAGES[k : k + 50].reshape(50, 784)} for k in range(0, 200, 50)]
    judge = OutputError(groups, feeds, ("cpu",))
    assert bool(judge.dense) == bool(held)
    other = api.prune(LAYERS, ratio=0.3, fast=True).model
    dense, made = (
        np.concatenate([open_session(m).run(None, f)[0] for f in feeds]).astype(np.float64) for m in (Model.load(LAYERS), other)
    )
    wanted = np.square(dense - made).sum() / np.square(dense - dense.mean()).sum()
    assert judge.error(other) == pytest.approx(wanted, rel=1e-9)
    assert judge.error(groups.trace.model) == 0


@pytest.mark.parametrize(("samples", "macs", "turns"), [(40, 2e12, 4), (64, 2e12, 0), (40, 1e6, 0)])
def test_few_samples_judge_in_turns_where_that_takes_no_long_time(
    samples: int, macs: float, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LAYERS take 82,048 multiply-adds a sample."""
    monkeypatch.setattr(parting, "TURNED_MACS", macs)
    inputs = [{"x": IMAGES.reshape(len(IMAGES), -1)[:samples]}]
    story = api.prune(LAYERS, ratio=0.5, calib=inputs).report.reconstruction
    assert story is not None
    assert story["turns"] == turns
    assert story["held_out_batches"] == 1
