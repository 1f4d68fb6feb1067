"""Train the small networks of `tools/tasks/small.py`, of kinds that no package carries a trained one of: minutes each.

    python tools/get_models.py CACHE --only fashion cifar
    python tools/train_small.py CACHE [--only NAME...] [--epochs 3]

Needs torch. Writes CACHE/models/NAME.onnx; what is there already is not trained again. Nothing is tuned: they are to be
cut, and half of them are looked at only when everything is done.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.tasks.small import NETS, Net, inputs_of
from tools.train_cifar import Inverted


class OptionA(nn.Module):
    """A residual block whose shortcut takes every second pixel and fills up with zero channels (He et al. 2015)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.more, self.stride = cout - cin, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        if self.more:
            short = F.pad(short, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return F.relu(y + short)


class Pooled(nn.Module):
    """Layers over images, their mean over all places, and a classifier."""

    def __init__(self, width: int, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def stem(channels: int, width: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def option_a(channels: int) -> nn.Module:
    blocks = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    return Pooled(64, *stem(channels, 16), *(OptionA(*b) for b in blocks))


def mobile(channels: int) -> nn.Module:
    blocks = [(16, 16, 1, 1), (16, 24, 2, 4), (24, 24, 1, 4), (24, 40, 2, 4), (40, 40, 1, 4), (40, 40, 1, 4)]
    return Pooled(40, *stem(channels, 16), *(Inverted(*b) for b in blocks))


class Nhwc(nn.Module):
    """As a Keras model in TensorFlow's layout: pixels 0..255 and channels last, a dense layer over all of the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, 24, 32, 48)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 1, 1) for a, b in pairwise(widths))
        self.hidden, self.head = nn.LazyLinear(96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return self.head(F.relu(self.hidden(x.permute(0, 2, 3, 1).flatten(1))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(2, 3) * (c // self.heads) ** -0.5, 3) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, t, c))


class Turned(nn.Module):
    """The MLP of a mixer over places instead of channels."""

    def __init__(self, places: int, hidden: int) -> None:
        super().__init__()
        self.mlp = mlp(places, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


def mlp(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Stack(nn.Module):
    """Pre-norm residual branches over embedded places, the mean, a classifier."""

    def __init__(self, embed: nn.Module, places: int, width: int, branches: list[nn.Module]) -> None:
        super().__init__()
        self.embed, self.place = embed, nn.Parameter(torch.randn(places, width) * 0.02)
        self.branches = nn.ModuleList(branches)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(len(branches) + 1))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        for norm, branch in zip(self.norms, self.branches, strict=False):
            x = x + branch(norm(x))
        return self.head(self.norms[-1](x).mean(1))


class Patches(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2)


def vit(channels: int) -> nn.Module:
    return Stack(Patches(channels, 64), 49, 64, [b for _ in range(3) for b in (Attention(64), mlp(64, 192))])


def mixer(channels: int) -> nn.Module:
    return Stack(Patches(channels, 64), 49, 64, [b for _ in range(3) for b in (Turned(49, 48), mlp(64, 192))])


def tokens(channels: int) -> nn.Module:
    return Stack(nn.Embedding(16, 48), 196, 48, [b for _ in range(2) for b in (Attention(48), mlp(48, 144))])


class Rows(nn.Module):
    """A recurrent network that reads an image row by row."""

    def __init__(self, cell: nn.Module, width: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


MADE: dict[str, Callable[[int], nn.Module]] = {
    "option_a": option_a, "mobile": mobile, "nhwc": Nhwc, "vit": vit, "mixer": mixer, "tokens": tokens,
    "lstm": lambda channels: Rows(nn.LSTM(28, 96, batch_first=True), 96),
    "gru": lambda channels: Rows(nn.GRU(28, 64, 2, batch_first=True), 64),
}  # fmt: skip


def train(net: Net, cache: Path, epochs: int, images: int) -> nn.Module:
    """By AdamW with one cycle of the rate; images are flipped, but for those that come as tokens."""
    torch.manual_seed(0)
    (xs, ys), (xt, yt) = (inputs_of(net, cache, part) for part in ("calib", "test"))
    xs, ys = xs[:images], ys[:images]
    model = MADE[net.made](net.channels)
    scale = 1 / 255 if net.form == "nhwc" else 1.0
    model(torch.from_numpy(xs[:2]).float() * scale if xs.dtype != np.int64 else torch.from_numpy(xs[:2]))
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    batch = 128
    steps = epochs * (len(xs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.2)

    def fed(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x) if x.dtype == np.int64 else torch.from_numpy(x).float() * scale

    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        for rows in torch.randperm(len(xs))[: len(xs) // batch * batch].view(-1, batch).numpy():
            x = fed(xs[rows])
            if net.form != "tokens" and torch.rand(()) < 0.5:
                x = x.flip(2 if net.form in ("nhwc", "rows") else 3)
            loss = F.cross_entropy(model(x), torch.from_numpy(ys[rows]))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            hits = sum(int((model(fed(xt[k : k + 500])).argmax(1).numpy() == yt[k : k + 500]).sum())
                       for k in range(0, len(xt), 500))  # fmt: skip
        seconds = time.perf_counter() - start
        print(f"{net.name}: epoch {epoch + 1}: top-1 {hits / len(xt):.4f}, {seconds:.0f} s", flush=True)
    if net.form == "nhwc":
        with torch.no_grad():
            model.convs[0].weight *= scale  # so that it takes the pixels as they are
    return model


def export(model: nn.Module, net: Net, cache: Path, path: Path) -> None:
    example = torch.from_numpy(inputs_of(net, cache, "test")[0][:2])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.onnx.export(
        model.eval(), (example,), str(part), input_names=["input"], output_names=["logits"], opset_version=17,
        dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}}, dynamo=False,
    )  # fmt: skip
    part.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--only", nargs="+", choices=[n.name for n in NETS], metavar="NAME")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=60000, help="to train on, at most (default: all of them)")
    args = parser.parse_args()
    for net in NETS:
        path = args.cache / "models" / f"{net.name}.onnx"
        if (args.only is None or net.name in args.only) and not path.exists():
            export(train(net, args.cache, args.epochs, args.images), net, args.cache, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
