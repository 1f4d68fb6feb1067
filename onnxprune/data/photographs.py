"""Photographs that come with the package, cut, mixed and coloured anew for every input, for models whose data nobody
gave. Knows pictures and arrays, no models.

Photographs of anything bring a trained network closer to the states of its own data than made-up images do. There are
few of them, so each is used at every scale: crops from all of a picture down to a quarter of its side, mirrored, with
pieces of others laid over them as in CutMix (Yun et al. 2019, arXiv 1905.04899). Brightness, contrast and tint stay as
they are: changed at random, they brought nothing or, the stronger, the worse. What each picture is, who took it and its
licence stand in `photographs/SOURCES.md`.
"""

from __future__ import annotations

import math
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

LEAST = 0.25
"""The side of the smallest crop, as a share of the largest one that fits."""
STRETCH = 4 / 3
"""At most so many times wider or higher than the model's input, before the crop is resized."""
MIXED, PIECE = 0.5, (0.3, 0.7)
"""So many of the images have a piece of another laid over them, whose sides are such a share of theirs."""


@cache
def pictures() -> tuple[Image.Image, ...]:
    """All photographs, in colour, in order of their names."""
    folder = resources.files("onnxprune.data") / "photographs"
    found = []
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".jpg")), key=lambda f: f.name):
        with file.open("rb") as stream, Image.open(stream) as picture:
            found.append(picture.convert("RGB"))
    return tuple(found)


def images(rng: np.random.Generator, count: int, channels: int, height: int, width: int) -> Floats:
    """`count` images (count, channels, height, width) as pixels in 0..1: of one channel grey, of four opaque."""
    made = np.empty((count, height, width, 3), np.float32)
    for image in made:
        image[:] = _crop(rng, height, width)
        if rng.random() < MIXED:
            rows, columns = (max(1, round(side * rng.uniform(*PIECE))) for side in (height, width))
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            image[top : top + rows, left : left + columns] = _crop(rng, rows, columns)
    if channels == 1:
        made = made @ np.array([[0.299], [0.587], [0.114]], np.float32)
    elif channels != 3:
        made = np.concatenate([made, np.ones((count, height, width, channels - 3), np.float32)], axis=-1)
    return made.transpose(0, 3, 1, 2)


def _crop(rng: np.random.Generator, height: int, width: int) -> NDArray[Any]:
    """A piece of a photograph, (height, width, 3), resized."""
    picture = pictures()[int(rng.integers(len(pictures())))]
    shape = width / height * math.exp(rng.uniform(-1, 1) * math.log(STRETCH))
    high = min(picture.height, picture.width / shape) * math.exp(rng.uniform(math.log(LEAST), 0))
    wide = high * shape
    left, top = rng.uniform(0, picture.width - wide), rng.uniform(0, picture.height - high)
    box = (left, top, min(left + wide, picture.width), min(top + high, picture.height))
    piece = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box), np.float32) / 255
    return piece[:, ::-1] if rng.random() < 0.5 else piece
