"""What a run says of its own error, beside the error on inputs that it has never seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import run
from onnx import ModelProto, numpy_helper, parser

from onnxprune import api

MODELS = Path(__file__).parent.parent / "models"
IMAGES = np.load(MODELS / "fashion_test.npz")["image"].astype(np.float32)
FACTOR = 1.3
FRESH = 1000


def layers() -> ModelProto:
    """Three dense layers over the pixels."""
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 784] x) => (float[N, 10] y)
        { a = Gemm(x, wa, ba) b = Relu(a) c = Gemm(b, wc, bc) d = Relu(c) y = Gemm(d, wy, by) }""")
    rng = np.random.default_rng(0)
    for name, (read, given) in {"a": (784, 96), "c": (96, 64), "y": (64, 10)}.items():
        weight = (2 / read) ** 0.5 * rng.standard_normal((read, given), np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, f"w{name}"))
        proto.graph.initializer.append(
            numpy_helper.from_array(0.1 * rng.standard_normal(given, np.float32), f"b{name}")
        )
    return proto


def convolutions() -> ModelProto:
    return onnx.load(MODELS / "fashion_resnet.onnx")


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


@pytest.mark.parametrize("samples", [40, 128, 300])
@pytest.mark.parametrize("made", [layers, pytest.param(convolutions, marks=pytest.mark.slow)])
def test_the_error_that_is_told_is_that_on_fresh_inputs(made: Callable[[], ModelProto], samples: int) -> None:
    """Within a factor of 1.3, as the mean over three draws: of few samples one draw says little."""
    model = made()
    inputs = IMAGES if made is convolutions else IMAGES.reshape(len(IMAGES), -1)
    found = np.array([told_and_fresh(model, inputs, samples, seed) for seed in range(3)])
    told, fresh = found.mean(0)
    assert 1 / FACTOR < fresh / told < FACTOR
