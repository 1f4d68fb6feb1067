"""Speech or not, by Silero VAD at 16 kHz, on telephone prompts with noise.

An item is a stretch of 25 chunks of 512 samples, each with the 64 before it as context, and the label says whether the
last one is speech. `labelled` gives whole stretches, which `run` steps through from a state of zeros with the state of
the model under test; so an error may add up as it does in use. `inputs`, for calibration, gives the last chunks with
the states [2, n, 128] that the dense model has reached there: plain feeds, every item independent of the others.
"""

from __future__ import annotations

import wave
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from .base import PARTS, Feeds, Task, generator, run

RATE, CHUNK, CONTEXT, WARM = 16_000, 512, 64, 24
LENGTH = CONTEXT + (WARM + 1) * CHUNK
NOT_SPEECH = ("silence", "beep", "tt-", "ascending-", "descending-", "confbridge-join.", "confbridge-leave.")
LOUD, QUIET = 0.25, 0.005  # of the level of the prompt: a chunk above is speech, one below is not


@cache
def prompts(folder: Path, part: str) -> list[Path]:
    """The recordings of one part: every third is for calibration, the others are for the test."""
    every = sorted(p for p in folder.rglob("*.wav") if not p.relative_to(folder).as_posix().startswith(NOT_SPEECH))
    return [path for i, path in enumerate(every) if PARTS[i % 3 != 0] == part]


@lru_cache(64)
def recording(path: Path) -> np.ndarray:
    """The recording at 16 kHz, between half a second of silence on both sides."""
    with wave.open(str(path)) as file:
        rate, data = file.getframerate(), file.readframes(file.getnframes())
    sound = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    return np.pad(resample_poly(sound, RATE // rate, 1), RATE // 2).astype(np.float32)


def level(sound: np.ndarray) -> np.ndarray:
    """Root mean square of each whole chunk, [chunks]."""
    return np.sqrt((sound[: len(sound) // CHUNK * CHUNK].reshape(-1, CHUNK) ** 2).mean(1))


def stretch(paths: list[Path], speech: bool, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A clean stretch [12864] whose last chunk is speech, or whose last four are not; the level of its recording."""
    while True:
        clean = recording(paths[int(rng.integers(len(paths)))])
        if len(clean) < LENGTH:
            continue
        start = int(rng.integers(len(clean) - LENGTH + 1))
        piece, loudest = clean[start : start + LENGTH], float(np.percentile(level(clean), 95))
        last = level(piece[CONTEXT:])[-4:] / max(loudest, 1e-6)
        if (last[-1] > LOUD) if speech else (last.max() < QUIET):
            return piece, loudest


def noisy(piece: np.ndarray, loudest: float, rng: np.random.Generator) -> np.ndarray:
    """With white noise 0 to 15 dB below the level of the recording, and at 0.3 to 1 times its volume."""
    ratio = 10 ** (rng.uniform(0, 15) / 20)
    return (piece + rng.normal(0, loudest / ratio, len(piece))) * rng.uniform(0.3, 1.0)


def sample(folder: Path, part: str, n: int, seed: int) -> tuple[Feeds, np.ndarray]:
    """Chunks [n, 25, 576], states of zeros [2, n, 128] and the rate in Hz; labels [n]: 1 speech, 0 not."""
    rng = generator("silero_vad", part, seed)
    labels = rng.integers(0, 2, n)
    paths = prompts(folder, part)
    sounds = np.stack([noisy(*stretch(paths, bool(label), rng), rng) for label in labels]).astype(np.float32)
    chunks = np.lib.stride_tricks.sliding_window_view(sounds, CONTEXT + CHUNK, 1)[:, ::CHUNK]
    return {"input": chunks, "state": np.zeros((2, n, 128), np.float32), "sr": np.array(RATE, np.int64)}, labels


def inputs(folder: Path, model: Path, part: str, n: int, seed: int) -> Feeds:
    """The last chunks [n, 576] and the dense model's states before them."""
    feeds, _ = sample(folder, part, n, seed)
    before = feeds | {"input": feeds["input"][:, :-1]}
    _, state = run(task(folder, model), model, before, 256)
    return feeds | {"input": feeds["input"][:, -1].copy(), "state": np.moveaxis(state, 0, 1).copy()}


def score(outputs: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    return ((outputs[0][:, 0] > 0.5) == labels).astype(np.float64)


def task(folder: Path, model: Path) -> Task:
    return Task(
        name="silero_vad",
        model=model,
        inputs=partial(inputs, folder, model),
        labelled=partial(sample, folder, "test"),
        score=score,
        items=500,
        metric="speech or not",
        kind="sound",
        aside=True,
        axes={"state": 1, "stateN": 1, "sr": None},
        states={"state": "stateN"},
        data=(folder,),
    )


def tasks(cache: Path) -> list[Task]:
    return [task(cache / "data" / "speech", cache / "models" / "silero_vad_16k.onnx")]
