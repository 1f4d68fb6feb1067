"""Captchas of the PyPI package captcha, read by a residual and recurrent network with CTC.

The package draws from the operating system's randomness; a seeded generator takes its place.
"""

from __future__ import annotations

import importlib
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .base import Feeds, Task, ctc, generator, matches

CHARACTERS = "23456789ABCDEFGHJKLMNPRSTUVWXYZ"  # without 0, 1, I, O and Q, which the images hardly tell apart
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_"
BLANK = 36
LENGTH = 4


class Seeded:
    """The part of the module `secrets` that the package uses."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.choice = self.random.choice
        self.randbelow = self.random.randrange
        self.randbits = self.random.getrandbits


def drawing(folder: Path) -> Any:
    """The package's module that draws, imported from the folder that holds the package."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module("captcha.image")


def sample(folder: Path, part: str, n: int, seed: int) -> tuple[Feeds, list[str]]:
    """Images [n, 3, 60, 160], blue first, 0 to 255, and their texts."""
    rng = generator("captcha", part, seed)
    texts = ["".join(rng.choice(list(CHARACTERS), LENGTH)) for _ in range(n)]
    module = drawing(folder)
    module.secrets = Seeded(int(rng.integers(2**31)))
    images = [np.asarray(module.ImageCaptcha(160, 60).generate_image(text)) for text in texts]
    return {"image": np.stack(images)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)}, texts


def inputs(folder: Path, part: str, n: int, seed: int) -> Feeds:
    return sample(folder, part, n, seed)[0]


def score(outputs: list[np.ndarray], texts: list[str]) -> np.ndarray:
    """The logits are [n, 20, 37] once `run` has brought the samples, the model's second axis, to the front."""
    return matches(ctc(outputs[0], ALPHABET, BLANK), texts)


def tasks(cache: Path) -> list[Task]:
    folder = cache / "data" / "captcha"
    return [
        Task(
            name="captcha_crnn",
            model=cache / "models" / "captcha_crnn.onnx",
            inputs=partial(inputs, folder),
            labelled=partial(sample, folder, "test"),
            score=score,
            items=500,
            metric="exact match",
            kind="OCR",
            aside=True,
            axes={"logits": 1},
            data=(folder,),
        )
    ]
