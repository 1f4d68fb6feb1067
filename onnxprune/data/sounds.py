"""Sound made from a random generator and a little recorded speech. Knows arrays only.

Most networks for sound listen to speech, and one that tells speech from other things answers anything else the same
way. So most of the sounds are voices by the source-filter model (Fant 1960): pulses of the glottis or noise, through
the resonances of a vocal tract, in syllables of random vowels, hisses and pauses. A trained voice detector takes nine
tenths of these for speech, and one hundredth of the others: gliding tones with harmonics over 1/f noise.

Recorded voices are for spectra only: the more of the waves were recorded, by the few speakers that there are, the more
Silero VAD lost with 23 % of its parameters removed (five seeds, of 99 % right: none recorded 94, a quarter 90, half 91,
all 83).
"""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.data import speech
from onnxprune.data.speech import RATE
from onnxprune.data.synthetic import textures

Floats = NDArray[np.float32]
Array = NDArray[np.float64]

LOUDNESS = (0.07, 0.15)
"""Standard deviations of single sounds, as recordings within -1 and 1 have them. A wider range lets the loudest decide
what layers are fitted to."""
SOUNDS = ("vowel", "hiss", "voiced hiss", "pause")
OFTEN = (0.62, 0.2, 0.1, 0.08)
VOWEL = ((250, 850, 60), (800, 2400, 90), (2200, 3200, 150), (3200, 4200, 200))
"""Ranges of the centres of the first formants and their bandwidths, in Hz (Peterson and Barney 1952)."""


def sounds(rng: np.random.Generator, shape: tuple[int, ...], recorded: float = 0.0) -> Floats:
    """Wave forms along the longest axis but the first, three voices to a tone, each with a loudness of its own.
    `recorded`: this share of the voices, 0..1, is recorded speech."""
    axis = 1 + int(np.argmax(shape[1:]))
    length = shape[axis]
    others = tuple(d for k, d in enumerate(shape) if k != axis)
    made = np.empty((math.prod(others), length))
    made[:] = [spoken(rng, length) if rng.random() < recorded else voice(rng, length) for _ in made]
    made[3::4] = tones(rng, len(made[3::4]), length)
    loud = np.exp(rng.uniform(math.log(LOUDNESS[0]), math.log(LOUDNESS[1]), (len(made), 1)))
    made *= loud / (made.std(1, keepdims=True) + 1e-6)
    return np.asarray(np.moveaxis(made.reshape(*others, length), -1, axis), np.float32)


def spoken(rng: np.random.Generator, length: int) -> Array:
    """A stretch of recorded speech, with noise of any colour and loudness behind it."""
    return over_noise(rng, speech.utterance(rng, length))


def voice(rng: np.random.Generator, length: int) -> Array:
    """A stretch out of someone's speech, with noise of any colour and loudness behind it."""
    whole = np.zeros(length + RATE // 4)
    pitch, size = math.exp(rng.uniform(math.log(85), math.log(260))), rng.uniform(0.85, 1.2)
    at = 0
    while at < len(whole):
        count = min(int(RATE * rng.uniform(0.05, 0.25)), len(whole) - at)
        kind = str(rng.choice(SOUNDS, p=OFTEN))
        if kind != "pause":
            whole[at : at + count] = _syllable(rng, kind, count, pitch, size)
        at += count
    return over_noise(rng, whole[len(whole) - length :])


def over_noise(rng: np.random.Generator, made: Array) -> Array:
    """With noise of any colour and loudness behind it."""
    length = len(made)
    noise = np.fft.irfft(
        np.fft.rfft(rng.standard_normal(length)) * _frequencies(length) ** -rng.uniform(0, 1), n=length
    )
    return np.asarray(made / (made.std() + 1e-6) + noise / noise.std() * 10 ** (-rng.uniform(-5, 30) / 20))


def _frequencies(length: int) -> Array:
    """Of a real spectrum, none of them zero."""
    return np.asarray(np.fft.rfftfreq(length) + 1 / length, np.float64)


def _syllable(rng: np.random.Generator, kind: str, count: int, pitch: float, size: float) -> Array:
    """`pitch` in Hz; `size` scales the resonances as the length of a vocal tract does."""
    if kind == "hiss":
        source = rng.standard_normal(count)
        formants = [(float(rng.uniform(1500, 6500)), float(rng.uniform(500, 2000)))]
    else:
        glide = np.linspace(0, rng.uniform(-0.25, 0.25), count) + rng.uniform(-0.25, 0.25)
        phase = np.cumsum(pitch / RATE * np.exp(glide)) + rng.random()
        pulses = np.diff(np.floor(phase), prepend=math.floor(phase[0]))
        source = scipy.signal.lfilter([1], [1, -0.95], pulses) + 0.02 * rng.standard_normal(count)
        formants = [(float(rng.uniform(low, high)), float(width)) for low, high, width in VOWEL]
    for centre, width in formants:
        radius = math.exp(-math.pi * width / RATE)
        angle = 2 * math.pi * min(centre * size / RATE, 0.45)
        source = scipy.signal.lfilter([1 - radius], [1, -2 * radius * math.cos(angle), radius * radius], source)
    swell = np.sin(np.pi * (np.arange(count) + 0.5) / count) ** rng.uniform(0.3, 1)
    loud = rng.uniform(0.3, 1) * (0.35 if kind == "hiss" else 1)
    made = np.asarray(source) * swell
    return np.asarray(loud * made / (made.std() + 1e-9))


def tones(rng: np.random.Generator, count: int, length: int) -> Array:
    """Harmonics of gliding tones over 1/f noise, loud and quiet in turn, (count, length)."""
    noise = textures(rng, count, 1, 1, length).reshape(count, length)
    time = np.linspace(0, 1, length)
    tone = np.exp(rng.uniform(math.log(4), math.log(max(length / 16, 5)), (count, 1)))  # cycles in the whole
    glide = tone * (time + rng.uniform(-0.2, 0.2, (count, 1)) * time**2)
    waves = np.zeros((count, length))
    for harmonic in range(1, 9):
        phase = rng.uniform(0, 2 * math.pi, (count, 1))
        loud = rng.exponential(1 / harmonic, (count, 1)) * (tone * harmonic < length / 2.5)
        waves += loud * np.sin(2 * math.pi * harmonic * glide + phase)
    waves /= waves.std(-1, keepdims=True) + 1e-6
    share = rng.uniform(0, 1, (count, 1))
    swell = 1 + 0.9 * np.sin(2 * math.pi * (rng.uniform(0.5, 4, (count, 1)) * time + rng.random((count, 1))))
    return np.asarray(swell * (np.sqrt(share) * waves + np.sqrt(1 - share) * noise))
