"""PaddleOCR on rendered lines: which way up a line is, and what a noisy line says."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from . import lines
from .base import Feeds, Task, ctc, generator, matches, top1

SIGMA = 50.0


def upright(fonts: Path, part: str, n: int, seed: int) -> tuple[Feeds, np.ndarray]:
    """Lines [n, 3, 48, 192] and labels [n]: 0 upright, 1 turned by 180 degrees.

    Lines shorter than 120 pixels are left out: the model is unsure of single short words."""
    rng = generator("ppocr_v2_cls", part, seed)
    labels = rng.integers(0, 2, n)
    images = [lines.fitting(fonts, 48, 192, rng, 2, numbers=False, least=120)[0] for _ in range(n)]
    turned = [image[::-1, ::-1] if label else image for image, label in zip(images, labels, strict=True)]
    return {"x": np.stack([lines.padded(image, 192) for image in turned])}, labels


def noisy(fonts: Path, part: str, n: int, seed: int) -> tuple[Feeds, list[str]]:
    """Lines [n, 3, 48, 320] with noise, and their texts."""
    rng = generator("ppocrv4_rec", part, seed)
    drawn = [lines.fitting(fonts, 48, 320, rng, 3, SIGMA) for _ in range(n)]
    return {"x": np.stack([lines.padded(image, 320) for image, _ in drawn])}, [text for _, text in drawn]


def first(labelled: Any, part: str, n: int, seed: int) -> Feeds:
    feeds: Feeds = labelled(part, n, seed)[0]
    return feeds


@cache
def alphabet(model: Path) -> list[str]:
    """The characters in the metadata of the file, with the blank before and the space behind them."""
    metadata = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    return ["", *metadata["character"].splitlines(), " "]


def read(model: Path, outputs: list[np.ndarray], texts: list[str]) -> np.ndarray:
    """Spaces before and behind a line do not count: the model sees them in the margins."""
    return matches([line.strip() for line in ctc(outputs[0], alphabet(model))], texts)


def tasks(cache: Path) -> list[Task]:
    fonts, folder = cache / "data" / "fonts", cache / "models"
    rec = folder / "ppocrv4_rec.onnx"
    return [
        Task(
            name="ppocr_v2_cls",
            model=folder / "ppocr_v2_cls.onnx",
            inputs=partial(first, partial(upright, fonts)),
            labelled=partial(upright, fonts, "test"),
            score=top1,
            items=1000,
            metric="upright or turned",
            kind="OCR",
            data=lines.data(cache),
        ),
        Task(
            name="ppocrv4_rec",
            model=rec,
            inputs=partial(first, partial(noisy, fonts)),
            labelled=partial(noisy, fonts, "test"),
            score=partial(read, rec),
            items=300,
            metric="exact match",
            kind="OCR",
            data=lines.data(cache),
        ),
    ]
