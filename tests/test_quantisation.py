"""ONNX Runtime's quantiser: our data as its reader, its readers as our data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import UsageError
from onnxprune.integrations import CalibrationReader

TINY = Path(__file__).parents[1] / "models" / "tiny_conv.onnx"
IMAGES = np.random.default_rng(0).standard_normal((72, 3, 16, 16)).astype(np.float32)


class Theirs(CalibrationDataReader):
    """A reader as ONNX Runtime's examples have it."""

    def __init__(self) -> None:
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)

    def rewind(self) -> None:
        self.left = iter([{"image": IMAGES[k : k + 8]} for k in range(0, 72, 8)])


class Once:
    """One that can be read once, and is a reader by its `get_next` alone."""

    def __init__(self) -> None:
        self.left = iter([{"image": IMAGES[k : k + 8]} for k in range(0, 72, 8)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


def feeds() -> Iterator[dict[str, Any]]:
    yield {"image": IMAGES}


def read(reader: CalibrationReader) -> list[int]:
    return [len(feed["image"]) for feed in iter(reader.get_next, None)]


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", image=IMAGES)
    return tmp_path / "data.npz"


@pytest.mark.parametrize("data", ["npz", {"image": IMAGES}, [{"image": x} for x in IMAGES], Theirs(), Once(), feeds], ids=str)
def test_any_form_is_read_as_batches(data: Any, npz: Path) -> None:
    reader = CalibrationReader(TINY, npz if data == "npz" else data)
    assert isinstance(reader, CalibrationDataReader)
    assert read(reader) == [32, 32, 8]
    assert reader.get_next() is None
    reader.rewind()
    assert read(reader) == [32, 32, 8]
    assert (len(reader), reader.samples) == (3, 72)


def test_without_data_inputs_are_made_up() -> None:
    reader = CalibrationReader(TINY, calib_samples=40, calib_batch=8)
    assert sum(read(reader)) == 40
    assert "class-balanced" in reader.source


def test_a_range_of_batches() -> None:
    reader = CalibrationReader(TINY, {"image": IMAGES}, calib_batch=8)
    reader.set_range(2, 5)
    assert [len(feed["image"]) for feed in reader] == [8, 8, 8]
    assert len(reader) == 9
    with pytest.raises(UsageError, match="begins at 3 and ends before 2"):
        reader.set_range(3, 2)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [({"ratio": 0.5}, "ratio says nothing about inputs"), ({"calib_samples": 0}, "not at least 1"), ({"calib": 3}, "not a int"),
     ({"calib": {"wrong": IMAGES[:, :2]}}, "has shape")],
)  # fmt: skip
def test_what_does_not_fit(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        CalibrationReader(TINY, **keywords)


@pytest.mark.parametrize("stride", [None, 1])
def test_prune_quantise_compare(stride: int | None, tmp_path: Path) -> None:
    """The recipe of the guide: one reader serves both tools, one after the other."""
    pruned, small = tmp_path / "pruned.onnx", tmp_path / "small.onnx"
    reader = CalibrationReader(TINY, {"image": IMAGES}, calib_batch=8)
    onnxprune.prune(TINY, ratio=0.3, calib=reader).save(pruned)
    quantize_static(
        pruned, small, reader, per_channel=True, op_types_to_quantize=["Conv", "Gemm"], calibrate_method=CalibrationMethod.MinMax,
        extra_options={"CalibStridedMinMax": stride},
    )  # fmt: skip
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    found = onnxprune.compare(pruned, small, {"image": IMAGES})
    assert found.quality["fidelity"]["cosine"] > 0.99
    assert found.after.bytes < found.before.bytes


@pytest.mark.parametrize("reader", [Theirs, Once])
def test_their_readers_are_ours(reader: Any) -> None:
    ours = onnxprune.plan(TINY, ratio=0.3, calib=[{"image": x} for x in np.split(IMAGES, 9)])
    assert onnxprune.plan(TINY, ratio=0.3, calib=reader()) == ours


def test_a_reader_that_can_be_rewound_serves_twice() -> None:
    theirs = Theirs()
    once = onnxprune.plan(TINY, ratio=0.3, calib=theirs)
    assert theirs.get_next() is not None
    assert onnxprune.plan(TINY, ratio=0.3, calib=theirs) == once


def test_one_that_was_read_to_its_end_is_told() -> None:
    used = Once()
    onnxprune.plan(TINY, ratio=0.3, calib=used)
    with pytest.raises(UsageError, match="read to its end"):
        onnxprune.plan(TINY, ratio=0.3, calib=used)


def test_a_script_may_give_a_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script.py").write_text(
        "import numpy as np\n"
        "class Reader:\n"
        "    left = 3\n"
        "    def get_next(self):\n"
        "        self.left -= 1\n"
        "        return {'image': np.full((8, 3, 16, 16), self.left, np.float32)} if self.left >= 0 else None\n"
    )
    out = str(tmp_path / "out.onnx")
    assert main([str(TINY), out, "--calib", f"{tmp_path}/script.py:Reader"]) == 0
    assert "script.py:Reader: 24 samples" in capsys.readouterr().out
