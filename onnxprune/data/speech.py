"""Human speech that comes with the package, heard anew every time: by a voice of another pitch, in a room, over noise.
Knows arrays only.

Some three quarters of a minute of several speakers at 16 kHz. Who spoke and the licences stand in `speech/SOURCES.md`.
"""

from __future__ import annotations

import math
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[Any]

RATE = 16_000
"""Samples a second; nearly every network for speech takes this."""
CODES, MU = 31, 255
"""The largest code of a sample, and the constant of the mu-law (ITU-T G.711) by which amplitudes became codes."""
FASTER = (0.85, 1.2)
"""How much faster, and so higher, someone speaks than was recorded."""
PAUSE = (0.05, 0.6)
"""Seconds between one recording and the next."""
ROOM, DECAY = 0.5, (0.1, 0.6)
"""So many are heard in a room, in which sound falls by 60 dB in so many seconds."""


@cache
def recordings() -> tuple[Array, ...]:
    """The recordings, float64 within -1 and 1, (samples,) each."""
    path = resources.files("onnxprune.data") / "speech" / "speech.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as codes:
        return tuple(np.sign(c) * np.expm1(np.abs(c) / CODES * math.log1p(MU)) / MU for c in codes.values())


def utterance(rng: np.random.Generator, length: int) -> Array:
    """`length` samples of someone's speech, (length,), from anywhere in it, at any loudness."""
    pace = math.exp(rng.uniform(*np.log(FASTER)))
    pieces, have = list[Array](), 0
    while have < length or len(pieces) < 3:
        spoken = recordings()[int(rng.integers(len(recordings())))]
        at = np.arange(0, len(spoken) - 1, pace)
        pieces += [np.interp(at, np.arange(len(spoken)), spoken), np.zeros(int(RATE * rng.uniform(*PAUSE)))]
        have = sum(map(len, pieces[2:]))
    whole = np.concatenate(pieces)
    start = int(rng.integers(min(len(pieces[0]), len(whole) - length) + 1))
    made = whole[start : start + length]
    return _in_a_room(rng, made) if rng.random() < ROOM else made


def _in_a_room(rng: np.random.Generator, sound: Array) -> Array:
    """With an echo of white noise that dies away exponentially (Moorer 1979), as loud as the sound itself at most."""
    count = int(RATE * math.exp(rng.uniform(*np.log(DECAY))))
    echo = rng.standard_normal(count) * np.exp(-math.log(1000) * np.arange(count) / count)
    echo *= rng.uniform(0.1, 1) / np.linalg.norm(echo)
    return np.asarray(sound + scipy.signal.fftconvolve(sound, echo)[: len(sound)])
