"""The accuracy of a model on an .npz, and what can be wrong with that file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.model import Model
from onnxprune.runtime import open_session
from onnxprune.validate import Data, load_data, top1


def parsed(text: str) -> Model:
    return Model.load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}'))


def one_hot(labels: np.ndarray, wrong: int) -> np.ndarray:
    """Scores of a perfect classifier, but for the first `wrong` samples."""
    scores = np.eye(5, dtype=np.float16)[labels]
    scores[:wrong] = np.roll(scores[:wrong], 1, axis=1)
    return scores


@pytest.mark.parametrize("batch", ["N", "1", "7"])
def test_accuracy_at_any_batch_size_with_half_precision_data(batch: str) -> None:
    labels = np.arange(150) % 5
    model = parsed(f"(float[{batch}, 5] x) => (float[{batch}, 5] y) {{ y = Relu(x) }}")
    score = top1(model, Data({"x": one_hot(labels, 30)}, labels))
    assert (score.top1, score.samples) == (0.8, 150)
    assert score.providers == ("CPUExecutionProvider",)


def test_a_model_that_returns_labels() -> None:
    labels = np.arange(10) % 5
    model = parsed("(float[N, 5] x) => (int64[N] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }")
    assert top1(model, Data({"x": one_hot(labels, 5)}, labels)).top1 == 0.5


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"image": np.zeros((4, 3, 8, 8))}, "no array named 'labels'"),
        ({"image": np.zeros((4, 3, 8, 8)), "labels": np.zeros(4)}, "must be integers"),
        ({"image": np.zeros((4, 3, 8, 8)), "labels": np.zeros((4, 5), int)}, "must be integers"),
        ({"image": np.zeros((4, 3, 8, 8)), "labels": np.zeros(0, int)}, "must be integers"),
        ({"image": np.zeros((3, 3, 8, 8)), "labels": np.zeros(4, int)}, "there are 4 labels"),
        ({"x": np.zeros((4, 3, 8, 8)), "labels": np.zeros(4, int)}, "the model's inputs are image"),
        ({"image": np.zeros((4, 3, 9, 8)), "labels": np.zeros(4, int)}, "has shape"),
        ({"image": np.zeros((4, 3, 8, 8), complex), "labels": np.zeros(4, int)}, "validation data has complex128"),
        ({"image": np.array([None] * 4), "labels": np.zeros(4, int)}, "not an .npz of plain arrays"),
    ],
)
def test_wrong_data(tmp_path: Path, tiny: ModelProto, arrays: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(UsageError, match=says):
        top1(Model.load(tiny), load_data(tmp_path / "data.npz"))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken", b"\x93NUMPY"])
def test_not_an_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(UsageError, match="npz"):
        load_data(tmp_path / "data.npz")


def test_a_lone_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(UsageError, match="not an"):
        load_data(tmp_path / "data.npy")


def test_not_a_classifier() -> None:
    model = parsed("(float[N, 5] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }")
    with pytest.raises(UsageError, match="not a classifier"):
        top1(model, Data({"x": np.zeros((4, 5))}, np.zeros(4, int)))


def test_a_provider_that_is_not_there(tiny: ModelProto) -> None:
    data = Data({"image": np.zeros((1, 3, 8, 8))}, np.zeros(1, int))
    with pytest.raises(RuntimeFailure, match="NoSuchProvider"):
        top1(Model.load(tiny), data, ["NoSuchProvider"])


@pytest.mark.parametrize("provider", ["cuda", "NoSuchProvider"])
def test_only_our_own_line_is_printed(provider: str, capfd: pytest.CaptureFixture[str], tiny: ModelProto) -> None:
    with contextlib.suppress(RuntimeFailure):  # where there is a GPU, nothing is raised
        open_session(Model.load(tiny), [provider])
    assert capfd.readouterr() == ("", "")
