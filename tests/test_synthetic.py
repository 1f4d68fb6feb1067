"""The generators: statistics, determinism, speed."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from onnxprune.data import calibration, leaves, lettering, sounds, synthetic
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.shapes import infer


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (4, 16, 40), (3, 64, 16), (3, 1, 5)])
def test_images_are_normalised_and_bounded(shape: tuple[int, int, int]) -> None:
    made = synthetic.images(rng(), 60, *shape)
    assert made.shape == (60, *shape)
    assert made.dtype == np.float32
    low, high = synthetic.SPAN
    assert low <= made.min()
    assert made.max() <= high
    assert abs(made.mean()) < 0.25
    assert 0.5 < made.std() < 1.1


def test_images_follow_the_seed() -> None:
    assert np.array_equal(synthetic.images(rng(3), 4, 3, 16, 16), synthetic.images(rng(3), 4, 3, 16, 16))
    assert not np.array_equal(synthetic.images(rng(3), 4, 3, 16, 16), synthetic.images(rng(4), 4, 3, 16, 16))


def test_images_have_edges_and_a_spectrum_as_photographs_have() -> None:
    """Heavy-tailed gradients (noise has a kurtosis of 3), and power that falls roughly as 1/f^2."""
    grey = synthetic.images(rng(), 100, 3, 64, 64).mean(1)
    steps = np.diff(grey, axis=2)
    assert ((steps - steps.mean()) ** 4).mean() / steps.var() ** 2 > 6
    power = (np.abs(np.fft.rfft(grey - grey.mean((1, 2), keepdims=True), axis=2)) ** 2).mean((0, 1))
    slope = np.polyfit(np.log(np.arange(2, 20)), np.log(power[2:20]), 1)[0]
    assert -2.6 < slope < -1.0


def test_channels_share_most_of_their_brightness() -> None:
    red, green, _ = synthetic.images(rng(), 50, 3, 32, 32).transpose(1, 0, 2, 3).reshape(3, -1)
    assert 0.6 < np.corrcoef(red, green)[0, 1] < 0.95


def test_half_of_the_grey_images_have_a_plain_background() -> None:
    plain = [np.unique(image[[0, 0, -1, -1], [0, -1, 0, -1]]).size < 4 for image in
             synthetic.images(rng(), 200, 1, 28, 28)[:, 0]]  # fmt: skip
    assert 0.3 < np.mean(plain) < 0.6
    coloured = synthetic.images(rng(), 50, 3, 28, 28)[:, 0]
    assert not any(np.unique(image[[0, 0, -1, -1], [0, -1, 0, -1]]).size < 3 for image in coloured)


def test_texture_exponents_differ() -> None:
    fields = synthetic.textures(rng(), 20, 3, 32, 48)
    assert fields.shape == (20, 3, 32, 48)
    assert np.allclose(fields.std((1, 2, 3)), 1, atol=1e-3)
    roughness = np.diff(fields, axis=3).std((1, 2, 3))
    assert roughness.max() > 2 * roughness.min()


@pytest.mark.parametrize(("count", "side", "limit"), [(250, 32, 10), (16, 224, 30)])
def test_images_are_quick(count: int, side: int, limit: float) -> None:
    """A tenth of a pool; the limits, of CPU time, leave room for a machine that is five times slower."""
    start = time.process_time()
    synthetic.images(rng(), count, 3, side, side)
    assert time.process_time() - start < limit


@pytest.mark.parametrize("shape", [(4, 16000), (3, 1, 512), (3, 400, 2), (1, 256)])
def test_sound(shape: tuple[int, ...]) -> None:
    made = sounds.sounds(rng(), shape)
    assert made.shape == shape
    assert made.dtype == np.float32
    assert abs(made.mean()) < 0.2
    axis = 1 + int(np.argmax(shape[1:]))
    low, high = sounds.LOUDNESS
    assert (0.99 * low < made.std(axis)).all()
    assert (made.std(axis) < 1.01 * high).all()


def test_voices_repeat_at_the_pitch_of_a_person_and_pause() -> None:
    """Within a syllable the wave form comes again after 1/300 to 1/60 s; between syllables it is quieter."""
    voices = [sounds.voice(rng(k), 16000) for k in range(12)]
    lags = range(sounds.RATE // 300, sounds.RATE // 60)
    periodic, loud = [], []
    for wave in voices:
        for piece in np.split(wave[: 16000 // 800 * 800], 20):
            loud.append(piece.std() / wave.std())
            periodic.append(max(np.corrcoef(piece[:-lag], piece[lag:])[0, 1] for lag in lags))
    assert np.median(periodic) > 0.5
    assert np.percentile(loud, 5) < 0.3


def test_sounds_go_on_where_a_model_has_a_state() -> None:
    """Tested through a model that only hands its input on, beside a state."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 512] wave, float[2, N, 4] state) => (float[N, 512] y, float[2, N, 4] stateN)
    { y = Identity(wave) stateN = Identity(state) }"""
    model = Model.load(onnx.parser.parse_model(text)).normalised()
    found = calibration(model, infer(model), Options(calib_samples=32, calib_batch=8))
    first, second = (feed["wave"] for feed in found.feeds[:2])
    jump = np.abs(second[:, 0] - first[:, -1]) / np.abs(np.diff(first, axis=1)).max(1)
    assert (jump < 1.5).all()


@pytest.mark.parametrize("shape", [(300, 20), (100, 12, 16), (10, 2, 3, 5), (50, 1)])
def test_features(shape: tuple[int, ...]) -> None:
    made = synthetic.features(rng(), shape)
    assert made.shape == shape
    assert 0.6 < made.std() < 1.5


def test_features_have_structure() -> None:
    """Few directions hold most of the variance, which is what calibration is about."""
    values = np.linalg.eigvalsh(np.cov(synthetic.features(rng(), (2000, 40)).T))
    assert values[-15:].sum() > 0.6 * values.sum()
    steps = synthetic.features(rng(), (50, 30, 16))
    assert np.corrcoef(steps[:, 1:].ravel(), steps[:, :-1].ravel())[0, 1] > 0.4


def test_tokens_come_from_the_values_and_differ_from_sample_to_sample() -> None:
    values = np.array([3, 5, 7, 11, 13, 17])
    made = synthetic.tokens(rng(), values, (40, 64))
    assert made.shape == (40, 64)
    assert set(made.ravel()) == set(values)
    commonest = {int(np.bincount(row).argmax()) for row in made}
    assert len(commonest) > 3
    assert synthetic.tokens(rng(), np.arange(2), ()).shape == ()


def test_balanced_takes_equal_numbers_as_far_as_they_go() -> None:
    classes = np.repeat([0, 1, 2, 3], [1000, 100, 5, 0])
    taken = synthetic.balanced(rng(), classes, 105)
    assert len(set(taken)) == 105
    assert np.bincount(classes[taken]).tolist() == [50, 50, 5]
    assert not np.array_equal(classes[taken], np.sort(classes[taken]))


def test_balanced_with_more_classes_than_samples() -> None:
    classes = np.concatenate([np.arange(80), np.zeros(500, int)])
    assert len(set(classes[synthetic.balanced(rng(), classes, 60)])) == 60


def test_softmax_and_entropy() -> None:
    assert np.allclose(synthetic.softmax(np.array([[1e4, 0.0], [0.0, 0.0]])), [[1, 0], [0.5, 0.5]])
    shares = np.array([[0.25, 0.75]])
    assert synthetic.softmax(shares) is shares
    assert synthetic.entropy(np.eye(8)) == pytest.approx(1)
    assert synthetic.entropy(np.eye(8)[:1]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 21, 22, 40])
def test_texts_of_any_length(length: int) -> None:
    made = synthetic.tokens(rng(), np.arange(5, 30), (200, length))
    assert made.shape == (200, length)
    assert np.isin(made, np.arange(5, 30)).all()


def test_letters_are_drawn_as_they_were() -> None:
    """Corners of some capitals, and every letter within its lines."""
    found = dict(zip(map(chr, range(33, 127)), lettering.GLYPHS, strict=True))
    assert [s.tolist() for s in found["A"]] == [[[0, -12], [-8, 9]], [[0, -12], [8, 9]], [[-5, 2], [5, 2]]]
    assert [s.tolist() for s in found["L"]] == [[[-6, -12], [-6, 9]], [[-6, 9], [6, 9]]]
    for letter in "ABCDEFGHIJKLMNOPRSTUVWXYZ0123456789":
        y = np.concatenate(found[letter])[:, 1]
        assert (y.min(), y.max()) == (-12, 9), letter


def test_lines_of_writing_lie_in_their_box_and_follow_the_seed() -> None:
    for seed in range(30):
        ends, pen = lettering.segments(rng(seed), 48, 320)
        assert len(ends) > 4
        assert 1 <= pen < 12
        assert (ends[..., 0] > -8).all()
        assert (ends[..., 0] < 56).all()
        assert (ends[..., 1] > -20).all()
        assert (ends[..., 1] < 340).all()
    assert np.array_equal(lettering.segments(rng(1), 48, 320)[0], lettering.segments(rng(1), 48, 320)[0])


def test_wide_images_are_mostly_written_on() -> None:
    """A plain background beside strokes: few images have texture everywhere."""
    made = synthetic.images(rng(), 60, 3, 32, 200)
    plain = [np.abs(np.diff(image, axis=2)).max(0).mean(0).__lt__(0.05).mean() > 0.02 for image in made]
    assert 0.6 < np.mean(plain) < 0.95


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 40, 40), (1, 16, 96)])
def test_leaves_that_are_painted_together_are_those_that_are_painted_alone(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = synthetic.images(rng(5), 20, *shape)
    monkeypatch.setattr(leaves, "PIXELS", 1)
    assert np.array_equal(together, synthetic.images(rng(5), 20, *shape))
