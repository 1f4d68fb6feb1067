"""Pitch of synthetic harmonic tones, read by CREPE tiny."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from .base import Feeds, Task, generator

RATE, WINDOW = 16_000, 1024
LOWEST, HIGHEST = 70.0, 1000.0  # Hz
CENTS_PER_BIN, FIRST_BIN = 20.0, 1997.3794084376191  # the centre of bin 0, in cents above 10 Hz


def tones(pitch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames [n, 1024] of tones with up to 8 harmonics below 7 kHz and white noise at 5 to 20 dB."""
    time = np.arange(WINDOW) / RATE
    order = np.arange(1, 9)
    shape = (len(pitch), len(order))
    level = rng.uniform(0.3, 1.0, shape) * order ** -rng.uniform(0.5, 1.5, (len(pitch), 1))
    level *= order * pitch[:, None] < 7000
    angle = 2 * np.pi * pitch[:, None, None] * order[:, None] * time + rng.uniform(0, 2 * np.pi, shape)[..., None]
    clean = (level[..., None] * np.sin(angle)).sum(1)
    power = (clean**2).mean(1, keepdims=True)
    ratio = 10 ** (rng.uniform(5, 20, (len(pitch), 1)) / 10)
    return clean + rng.normal(0, 1, clean.shape) * np.sqrt(power / ratio)


def sample(part: str, n: int, seed: int) -> tuple[Feeds, np.ndarray]:
    """Frames [n, 1024], each of mean 0 and deviation 1 as CREPE wants them, and pitches [n] in Hz."""
    rng = generator("crepe_tiny", part, seed)
    pitch = np.exp(rng.uniform(np.log(LOWEST), np.log(HIGHEST), n))
    frames = tones(pitch, rng)
    frames -= frames.mean(1, keepdims=True)
    frames /= frames.std(1, keepdims=True)
    return {"frames": frames.astype(np.float32)}, pitch


def inputs(part: str, n: int, seed: int) -> Feeds:
    return sample(part, n, seed)[0]


def cents(scores: np.ndarray) -> np.ndarray:
    """[n, 360] to cents above 10 Hz [n]: the mean of the nine bins around the highest, weighted by their scores."""
    peak = scores.argmax(1)[:, None]
    bins = np.arange(scores.shape[1])
    near = scores * (np.abs(bins - peak) <= 4)
    total = np.maximum(near.sum(1), np.finfo(np.float32).tiny)
    return FIRST_BIN + CENTS_PER_BIN * (near * bins).sum(1) / total


def score(outputs: list[np.ndarray], pitch: np.ndarray) -> np.ndarray:
    wanted = 1200 * np.log2(pitch / 10)
    return (np.abs(cents(outputs[0]) - wanted) <= 50).astype(np.float64)


def tasks(cache: Path) -> list[Task]:
    return [
        Task(
            name="crepe_tiny",
            model=cache / "models" / "crepe_tiny.onnx",
            inputs=inputs,
            labelled=partial(sample, "test"),
            score=score,
            items=1000,
            metric="pitch within 50 cents",
            kind="sound",
        )
    ]
