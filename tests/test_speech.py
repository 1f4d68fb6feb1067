"""The recorded speech that comes with the package, and at which lengths a model hears it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.data import calibration, sounds, spectra, speech
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


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4, 100, 80), 2), ((4, 80, 100), 1), ((4, 160, 40), 2), ((4, 64, 20), 1), ((4, 100, 81), None), ((4, 80), None),
     ((4, 3, 80), None), ((4, 2, 100, 80), None)],
)  # fmt: skip
def test_which_vectors_are_spectra(shape: tuple[int, ...], axis: int | None) -> None:
    assert spectra.axis_of_bands(shape) == axis
    if axis is not None:
        made = spectra.features(rng(), shape)
        assert made.shape == shape
        assert np.isfinite(made).all()


def test_a_band_holds_the_power_of_its_tone() -> None:
    """A tone of 1 kHz is loudest in the band that is highest there, in all frames; so says the definition of the bank."""
    bank = spectra.mel_bank(40)
    assert bank.shape == (40, spectra.WINDOW // 2 + 1)
    assert (bank >= 0).all()
    assert np.allclose(bank.sum(1) * speech.RATE / spectra.WINDOW, 1, atol=0.2)  # triangles of area one
    centre = bank.argmax(1) * speech.RATE / spectra.WINDOW
    assert (np.diff(centre) >= 0).all()
    assert centre[0] < 200
    assert 6500 < centre[-1] < 8000


@pytest.mark.parametrize("scale", spectra.SCALES)
def test_scales_of_spectra(scale: str) -> None:
    made = spectra.spectra(rng(), 6, 50, 64, scale)
    assert made.shape == (6, 50, 64)
    if scale == "power":
        assert (made >= 0).all()
    if scale == "levelled log":
        assert np.allclose(made.mean(1), 0, atol=1e-6)
        assert np.allclose(made.std(1), 1, atol=1e-2)
    if scale == "log of 80 dB":
        spans = made.max((1, 2)) - made.min((1, 2))
        assert (spans <= 2 + 1e-9).all()


def test_a_model_that_takes_spectra_gets_them() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 80, T] mel) => (float[N, 80] y)
    { y = ReduceMean<axes = [2], keepdims = 0>(mel) }"""
    model = Model.load(onnx.parser.parse_model(text)).normalised()
    found = calibration(model, infer(model), Options(calib_samples=8, input_shapes={"mel": (0, 80, 100)}))
    assert found.source.startswith("synthetic spectra of speech")
    assert found.feeds[0]["mel"].shape == (8, 80, 100)
