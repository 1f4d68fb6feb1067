"""Fashion-MNIST: the two classifiers that `models/` carries, on the data set's own split."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import numpy as np

from .base import Task, classifiers

MEAN, STD = 0.2860, 0.3530
FILES = {"calib": "train", "test": "t10k"}
NAMES = {
    "fashion_folded": ("fashion_resnet.onnx", "residual, projection", False),
    "fashion_bn": ("fashion_resnet_bn.onnx", "residual, projection", True),
}


@cache
def read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 1, 28, 28] as bytes and labels [count]; the training images are for calibration."""

    def load(name: str, offset: int) -> np.ndarray:
        data = gzip.decompress((folder / f"{FILES[part]}-{name}-ubyte.gz").read_bytes())
        return np.frombuffer(data, np.uint8, offset=offset)

    return load("images-idx3", 16).reshape(-1, 1, 28, 28), load("labels-idx1", 8).astype(np.int64)


def tasks(cache: Path) -> list[Task]:
    return classifiers("fashion", cache / "data" / "fashion", NAMES, read, lambda x: (x - MEAN) / STD)
