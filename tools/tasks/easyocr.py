"""EasyOCR's English recogniser (convolutions, two bidirectional LSTMs, CTC) on noisy rendered lines."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from . import lines
from .base import Feeds, Task, ctc, generator, matches

HEIGHT, WIDTH = 64, 400
SIGMA = 50.0
SYMBOLS = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €"
ALPHABET = ["", *SYMBOLS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"]


def sample(fonts: Path, part: str, n: int, seed: int) -> tuple[Feeds, list[str]]:
    """Grey lines [n, 1, 64, 400] in -1 to 1, the last column repeated on the right, and their texts."""
    rng = generator("english_g2", part, seed)
    drawn = [lines.fitting(fonts, HEIGHT, WIDTH, rng, 3, SIGMA) for _ in range(n)]
    grey = [image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) for image, _ in drawn]
    wide = [np.pad(image, ((0, 0), (0, WIDTH - image.shape[1])), "edge") for image in grey]
    return {"image": np.stack(wide)[:, None] / 127.5 - 1}, [text for _, text in drawn]


def inputs(fonts: Path, part: str, n: int, seed: int) -> Feeds:
    return sample(fonts, part, n, seed)[0]


def score(outputs: list[np.ndarray], texts: list[str]) -> np.ndarray:
    """Spaces before and behind a line do not count: the model sees them in the margins."""
    return matches([line.strip() for line in ctc(outputs[0], ALPHABET)], texts)


def tasks(cache: Path) -> list[Task]:
    fonts = cache / "data" / "fonts"
    return [
        Task(
            name="english_g2",
            model=cache / "models" / "english_g2.onnx",
            inputs=partial(inputs, fonts),
            labelled=partial(sample, fonts, "test"),
            score=score,
            items=300,
            metric="exact match",
            kind="OCR",
            aside=True,
            data=lines.data(cache),
        )
    ]
