"""Small classifiers of kinds that no package carries a trained one of, as `tools/train_small.py` writes them.

One image is given in four forms: normalised [C, H, W]; as Keras has it, pixels 0..255 and channels last; as a sequence
of rows; as 196 tokens, the mean brightness of 2 x 2 pixels in sixteen steps. Half of the nets are set aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from . import cifar, fashion
from .base import Feeds, Task, choose, generator, top1


@dataclass(frozen=True)
class Net:
    """data: "fashion" or "cifar". made: which network of `tools/train_small.py`. form: how it takes an image."""

    data: str
    made: str
    kind: str
    form: str = "normalised"
    aside: bool = False

    @property
    def name(self) -> str:
        return f"{self.data}_{self.made}"

    @property
    def channels(self) -> int:
        return 3 if self.data == "cifar" else 1


NETS = (
    Net("fashion", "option_a", "residual, option A"),
    Net("cifar", "option_a", "residual, option A", aside=True),
    Net("fashion", "mobile", "inverted residuals", aside=True),
    Net("fashion", "nhwc", "NHWC", "nhwc"),
    Net("cifar", "nhwc", "NHWC", "nhwc", aside=True),
    Net("fashion", "vit", "transformer, mixer"),
    Net("fashion", "mixer", "transformer, mixer", aside=True),
    Net("fashion", "lstm", "recurrent", "rows"),
    Net("fashion", "gru", "recurrent", "rows", aside=True),
    Net("fashion", "tokens", "embedding transformer", "tokens", aside=True),
)
READ = {"fashion": (fashion.read, fashion.MEAN, fashion.STD), "cifar": (cifar.read, cifar.MEAN, cifar.STD)}


@cache
def inputs_of(net: Net, folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(all images of a part as the net takes them, their labels [count]); float32, but for tokens."""
    read, mean, std = READ[net.data]
    images, labels = read(folder / "data" / net.data, part)
    wide = images.astype(np.float32)
    if net.form == "nhwc":
        return wide.transpose(0, 2, 3, 1).copy(), labels
    if net.form == "tokens":
        n, _, height, width = images.shape
        mean_of = wide.mean(1).reshape(n, height // 2, 2, width // 2, 2).mean((2, 4))
        return (mean_of / 16).astype(np.int64).reshape(n, -1), labels
    normalised = ((wide / 255 - mean) / std).astype(np.float32)
    return normalised[:, 0] if net.form == "rows" else normalised, labels


def sample(net: Net, folder: Path, part: str, n: int, seed: int) -> tuple[Feeds, np.ndarray]:
    every, labels = inputs_of(net, folder, part)
    rows = choose(len(every), n, generator(net.name, part, seed))
    return {"input": every[rows]}, labels[rows]


def fed(net: Net, folder: Path, part: str, n: int, seed: int) -> Feeds:
    return sample(net, folder, part, n, seed)[0]


def tasks(folder: Path) -> list[Task]:
    return [
        Task(
            name=net.name, model=folder / "models" / f"{net.name}.onnx", inputs=partial(fed, net, folder),
            labelled=partial(sample, net, folder, "test"), score=top1, items=5000, metric="top-1",
            data=(folder / "data" / net.data,), kind=net.kind, aside=net.aside,
        )
        for net in NETS
    ]  # fmt: skip
