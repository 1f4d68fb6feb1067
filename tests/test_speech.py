"""The recorded speech that comes with the package, and at which lengths a model hears it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.data import calibration, sounds, speech
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.shapes import infer

FOLDER = Path(speech.__file__).parent / "speech"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_every_recording_has_an_author_and_a_free_licence() -> None:
    lines = (FOLDER / "SOURCES.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "test/data" in line]
    assert [row[0] for row in rows] == list(np.load(FOLDER / "speech.npz"))
    assert {row[3].split(",")[0] for row in rows} == {"public domain", "BSD-2-Clause"}
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 0.5e6


def test_recordings_are_speech() -> None:
    """Most of the power lies below 4 kHz, and pauses are far quieter than syllables."""
    found = speech.recordings()
    assert 40 < sum(map(len, found)) / speech.RATE < 70
    shares = []
    for wave in found:
        assert 0.9 < np.abs(wave).max() <= 1
        power = np.abs(np.fft.rfft(wave)) ** 2
        shares.append(power[: len(power) // 2].sum() / power.sum())
    assert np.median(shares) > 0.9
    loud = [
        piece.std() / wave.std()
        for wave in found
        for piece in np.split(wave[: len(wave) // 800 * 800], len(wave) // 800)
    ]
    assert np.percentile(loud, 5) < 0.1


@pytest.mark.parametrize("length", [256, 16_000, 200_000])
def test_utterances_of_every_length_differ(length: int) -> None:
    one, other, again = (speech.utterance(rng(seed), length) for seed in (0, 1, 0))
    assert one.shape == other.shape == (length,)
    assert np.isfinite(one).all()
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert np.abs(sounds.spoken(rng(), length)).max() > 0


def test_pieces_have_the_length_that_a_model_hears_something_in() -> None:
    """One that takes any length up to 640, as Gather has no later position, and looks beyond the first 520 only."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, T] wave) => (float[N, 1] y)
    { last = Slice(wave, start, end, axis)  some = ReduceSumSquare<axes = [1]>(last)
      length = Shape<start = 1>(wave)  table = Gather(limits, length)  y = Mul(some, table) }"""
    model = onnx.parser.parse_model(text)
    values = {
        "start": np.array([520]),
        "end": np.array([10_000]),
        "axis": np.array([1]),
        "limits": np.ones(641, np.float32),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items())
    loaded = Model.load(model).normalised()
    found = calibration(loaded, infer(loaded), Options(calib_samples=16, calib_batch=8))
    assert found.feeds[0]["wave"].shape in ((8, 576), (8, 640))
