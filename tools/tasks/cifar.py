"""CIFAR-10: two classifiers that `models/` carries, a residual net of 20 layers and one of inverted residuals.

The package has the images as rows of five pictures, 1,024 pixels each, and the labels as JSON.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from .base import Task, classifiers

MEAN, STD = (np.array(v, np.float32).reshape(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)))
PICTURES = {"calib": [f"data_batch_{k}.png" for k in range(1, 6)], "test": ["test_batch.png"]}
LABELS = {"calib": "train_lables.json", "test": "test_lables.json"}  # spelled so
NAMES = {
    "cifar_resnet": ("cifar_resnet.onnx", "residual, projection", False),
    "cifar_mobile": ("cifar_mobile.onnx", "inverted residuals", False),
}


@cache
def read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 3, 32, 32] as bytes and labels [count]; the training images are for calibration."""
    from PIL import Image

    rows = []
    for name in PICTURES[part]:
        with Image.open(folder / name) as picture:
            rows.append(np.asarray(picture.convert("RGB")).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))
    return np.concatenate(rows), np.array(json.loads((folder / LABELS[part]).read_text()), np.int64)


def tasks(cache: Path) -> list[Task]:
    return classifiers("cifar", cache / "data" / "cifar", NAMES, read, lambda x: (x - MEAN) / STD)
