"""Fashion-MNIST: the two classifiers that `models/` carries, on the data set's own split."""

from __future__ import annotations

import gzip
from functools import cache, partial
from pathlib import Path

import numpy as np

from .base import MODELS, Feeds, Task, choose, generator, top1

MEAN, STD = 0.2860, 0.3530
FILES = {"calib": "train", "test": "t10k"}
NAMES = {"fashion_folded": "fashion_resnet.onnx", "fashion_bn": "fashion_resnet_bn.onnx"}


@cache
def read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 1, 28, 28] as bytes and labels [count]; the training images are for calibration."""

    def load(name: str, offset: int) -> np.ndarray:
        data = gzip.decompress((folder / f"{FILES[part]}-{name}-ubyte.gz").read_bytes())
        return np.frombuffer(data, np.uint8, offset=offset)

    return load("images-idx3", 16).reshape(-1, 1, 28, 28), load("labels-idx1", 8).astype(np.int64)


def sample(folder: Path, part: str, n: int, seed: int) -> tuple[Feeds, np.ndarray]:
    images, labels = read(folder, part)
    rows = choose(len(images), n, generator("fashion", part, seed))
    return {"image": (images[rows].astype(np.float32) / 255 - MEAN) / STD}, labels[rows]


def inputs(folder: Path, part: str, n: int, seed: int) -> Feeds:
    return sample(folder, part, n, seed)[0]


def tasks(cache: Path) -> list[Task]:
    folder = cache / "data" / "fashion"
    return [
        Task(
            name=name,
            model=MODELS / file,
            inputs=partial(inputs, folder),
            labelled=partial(sample, folder, "test"),
            score=top1,
            items=5000,
            metric="top-1",
            data=(folder,),
        )
        for name, file in NAMES.items()
    ]
