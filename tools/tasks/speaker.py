"""Who speaks, by the speaker encoder of Resemblyzer: is the nearest other window one of the same voice?

Five voices read the prompts of a telephone exchange, each in a language of its own, so that the figure says how well
voices (and languages) stay apart, not how well speakers of one language do. A window is 1.6 s of a recording at
-30 dBFS, as power in 40 mel bands every 10 ms (the scale that the encoder was trained on, no logarithm).
"""

from __future__ import annotations

import math
from functools import cache, partial
from pathlib import Path

import numpy as np

from onnxprune.data.spectra import STEP, in_bands

from .base import Feeds, Task, choose, generator
from .silero import RATE, prompts, recording

VOICES = ("speech", "voices/es", "voices/fr", "voices/it", "voices/ru")
BANDS, FRAMES = 40, 160
LEVEL = 10 ** (-30 / 20)
EACH = 400
"""Windows of each voice in each part."""


@cache
def windows(folder: Path, part: str) -> np.ndarray:
    """Of one voice, [windows, frames, bands], in the order of its recordings."""
    found: list[np.ndarray] = []
    paths = prompts(folder, part)
    for k in np.random.default_rng(0).permutation(len(paths)):
        sound = recording(paths[k])[RATE // 2 : -RATE // 2]
        if len(sound) < FRAMES * STEP:
            continue
        level = LEVEL / max(math.sqrt(float(np.mean(sound**2))), 1e-6)
        [bands] = in_bands(sound[None].astype(np.float64) * level, len(sound) // STEP + 1, BANDS).astype(np.float32)
        found += [bands[i : i + FRAMES] for i in range(0, len(bands) - FRAMES + 1, FRAMES)]
        if len(found) >= EACH:
            break
    return np.stack(found[:EACH])


def sample(data: Path, part: str, n: int, seed: int) -> tuple[Feeds, np.ndarray]:
    """Windows [n, 160, 40] of all voices, and whose each is."""
    every = [windows(data / voice, part) for voice in VOICES]
    labels = np.repeat(np.arange(len(every)), [len(x) for x in every])
    rows = choose(len(labels), n, generator("speaker_lstm", part, seed))
    return {"mels": np.concatenate(every)[rows]}, labels[rows]


def score(outputs: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """1 where the nearest other embedding, [n, 256] of length 1, is of the same voice."""
    alike = outputs[0] @ outputs[0].T
    np.fill_diagonal(alike, -np.inf)
    return (labels[alike.argmax(1)] == labels).astype(np.float64)


def tasks(cache: Path) -> list[Task]:
    data = cache / "data"
    return [
        Task(
            name="speaker_lstm", model=cache / "models" / "speaker_lstm.onnx",
            inputs=lambda part, n, seed: sample(data, part, n, seed)[0], labelled=partial(sample, data, "test"),
            score=score, items=1000, metric="nearest voice", kind="sound, recurrent",
            data=tuple(data / voice for voice in VOICES),
        )
    ]  # fmt: skip
