"""Small models that several tests use, and the skipping of what this machine cannot run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.cli import logs
from onnxprune.errors import RuntimeFailure
from onnxprune.model import Model
from onnxprune.run import onnx_runtime, open_session

TINY = """
<ir_version: 8, opset_import: ["" : 17]>
tiny (float[N, 3, 8, 8] image) => (float[N, 5] logits) {
    a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(image, conv1_weight, conv1_bias)
    b = Relu(a)
    c = Conv<kernel_shape = [3, 3]>(b, conv2_weight, conv2_bias)
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    logits = Gemm<transB = 1>(f, head_weight, head_bias)
}
"""
SHAPES = {
    "conv1_weight": (8, 3, 3, 3), "conv1_bias": (8,), "conv2_weight": (12, 8, 3, 3), "conv2_bias": (12,),
    "head_weight": (5, 12), "head_bias": (5,),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command says no stages unless it is asked to, so that a test sees warnings and errors only; what is said by
    default is looked at in test_words."""
    monkeypatch.setattr(logs, "DEFAULT", "warning")


@pytest.fixture
def tiny() -> ModelProto:
    """Two convolutions and a classifier, with random weights and biases; any batch size."""
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(TINY)
    for name, shape in SHAPES.items():
        weight = random.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]) or 1)
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
    return model


@pytest.fixture
def tiny_path(tiny: ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny, path)
    return path


def pytest_sessionstart() -> None:
    """The tests run models: without a runtime one line says so, not an import error in every file."""
    try:
        onnx_runtime()
    except RuntimeFailure as error:
        pytest.exit(error.message, returncode=error.exit_code)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_cuda() -> bool:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    try:
        open_session(Model.load(onnx.parser.parse_model(text)), ["cuda"])
    except RuntimeFailure:
        return False
    return True


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of two nodes, every weight is fed."""
    monkeypatch.setattr("onnxprune.run.chain.NODES", 2)
    monkeypatch.setattr("onnxprune.run.chain.BLOCK", 1)
    monkeypatch.setattr("onnxprune.run.runtime.LARGE", 1)
    monkeypatch.setattr("onnxprune.run.runtime.SMALL", 1)
