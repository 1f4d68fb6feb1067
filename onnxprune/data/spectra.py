"""Spectra of sound as networks for speech take them: power in mel bands, and what is usually made of it. Knows arrays
only."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.data import sounds
from onnxprune.data.speech import RATE

Array = NDArray[Any]

BANDS = (40, 64, 80)
"""How many bands networks for speech take."""
WINDOW, STEP = RATE // 40, RATE // 100
"""25 ms every 10 ms, as nearly all of them do."""
RECORDED = 0.25
"""So many of the voices are recorded ones."""
LEAST = 16
"""Frames that make a spectrum in time."""
SCALES = ("power", "log", "levelled log", "log of 80 dB")
"""Power itself; its natural logarithm, as Kaldi has it; the same with mean 0 and deviation 1 in every band; and log10,
at most 8 below the loudest, between about -1 and 1 (Radford et al. 2022, arXiv 2212.04356)."""


def axis_of_bands(shape: tuple[int, ...]) -> int | None:
    """Which axis of (samples, frames, bands) or (samples, bands, frames) counts the bands; None for other vectors."""
    if len(shape) != 3 or min(shape[1:]) < LEAST:
        return None
    return next((k for k in (2, 1) if shape[k] in BANDS), None)


def features(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Spectra of this shape (`axis_of_bands` is not None), every sample on a scale of its own: nothing in a model says
    which it takes, and one that was trained on power alone lost hardly more on all of them than on power."""
    axis = axis_of_bands(shape)
    frames, bands = (shape[1], shape[2]) if axis == 2 else (shape[2], shape[1])
    made = np.empty((shape[0], frames, bands))
    kinds = rng.integers(len(SCALES), size=shape[0])
    for k, scale in enumerate(SCALES):
        of_kind = kinds == k
        if of_kind.any():
            made[of_kind] = spectra(rng, int(of_kind.sum()), frames, bands, scale)
    return made if axis == 2 else made.transpose(0, 2, 1)


@cache
def mel_bank(bands: int) -> Array:
    """Triangles of equal area from 0 Hz to half the rate, (bands, WINDOW / 2 + 1), on Slaney's scale: linear below
    1 kHz and logarithmic above (Slaney 1998, Auditory Toolbox)."""
    octave = math.log(6.4) / 27
    top = 15 + math.log(RATE / 2 / 1000) / octave
    mels = np.linspace(0, top, bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(octave * (mels - 15)))
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
    low, centre, high = (edges[k : bands + k, None] for k in range(3))
    rise, fall = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    return np.asarray(np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low))


def in_bands(waves: Array, frames: int, bands: int) -> Array:
    """The power in mel bands of waves (count, samples) at `RATE`, (count, frames, bands)."""
    padded = np.pad(waves, ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    pieces = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, ::STEP][:, :frames]
    window = scipy.signal.get_window("hann", WINDOW)
    return np.asarray(np.abs(np.fft.rfft(pieces * window)) ** 2 @ mel_bank(bands).T)


def spectra(rng: np.random.Generator, count: int, frames: int, bands: int, scale: str) -> Array:
    """Voices, tones and noise as (count, frames, bands), on one of `SCALES`."""
    power = in_bands(sounds.sounds(rng, (count, frames * STEP), RECORDED).astype(np.float64), frames, bands)
    if scale == "power":
        return power
    if scale == "log of 80 dB":
        decades = np.log10(np.maximum(power, 1e-10))
        return np.asarray((np.maximum(decades, decades.max((1, 2), keepdims=True) - 8) + 4) / 4)
    log: Array = np.log(power + 1e-6)
    if scale == "log":
        return log
    return np.asarray((log - log.mean(1, keepdims=True)) / (log.std(1, keepdims=True) + 1e-6))
