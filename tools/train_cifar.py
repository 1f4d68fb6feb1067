"""Train the two CIFAR-10 classifiers that `models/` carries: residual blocks, and inverted residuals.

    python tools/get_models.py CACHE --only cifar
    python tools/train_cifar.py CACHE/data/cifar models/

Needs torch. Writes `cifar_resnet.onnx` and `cifar_mobile.onnx`, BatchNorm folded. About 20 minutes each on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.tasks.cifar import MEAN, STD, read
from tools.train_fashion import FashionResNet

WIDE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 3, 2), (6, 96, 2, 1), (6, 128, 1, 1))
"""Expansion, channels, blocks and stride of each stage (Sandler et al. 2018, table 2, narrower)."""


class Inverted(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = cin * expand
        self.short = stride == 1 and cin == cout
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(cin, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)]
        layers += [nn.ReLU6(), nn.Conv2d(hidden, cout, 1, bias=False), nn.BatchNorm2d(cout)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.short else self.layers(x)


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
        cin = 16
        for expand, cout, blocks, stride in WIDE:
            for k in range(blocks):
                layers.append(Inverted(cin, cout, 1 if k else stride, expand))
                cin = cout
        layers += [nn.Conv2d(cin, 512, 1, bias=False), nn.BatchNorm2d(512), nn.ReLU6()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def resnet() -> nn.Module:
    model = FashionResNet()
    model.stem[0] = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    return model


def data(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = read(folder, part)
    return torch.from_numpy((images / 255 - MEAN) / STD).float(), torch.from_numpy(labels)


def augment(x: torch.Tensor) -> torch.Tensor:
    flip = torch.rand(len(x)) < 0.5
    x = F.pad(torch.where(flip[:, None, None, None], x.flip(3), x), (4, 4, 4, 4))
    dx, dy = (int(v) for v in torch.randint(0, 9, (2,)))
    return x[:, :, dy : dy + 32, dx : dx + 32].contiguous(memory_format=torch.channels_last)


def train(model: nn.Module, rate: float, epochs: int, folder: Path) -> None:
    (xs, ys), (xt, yt) = data(folder, "calib"), data(folder, "test")
    batch = 128
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=epochs * (len(xs) // batch), pct_start=0.2
    )
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(xs))[: len(xs) // batch * batch].view(-1, batch):
            loss = F.cross_entropy(model(augment(xs[rows])), ys[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(xt.split(500), yt.split(500), strict=True))
        print(f"epoch {epoch + 1}: top-1 {hits / len(xt):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    for name, made, rate in (("cifar_resnet", resnet, 0.2), ("cifar_mobile", Mobile, 0.15)):
        torch.manual_seed(0)
        model = made().to(memory_format=torch.channels_last)
        train(model, rate, args.epochs, args.data)
        torch.onnx.export(
            model.to(memory_format=torch.contiguous_format), torch.zeros(1, 3, 32, 32), str(args.out / f"{name}.onnx"),
            input_names=["image"], output_names=["logits"], opset_version=17, dynamo=False,
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        )  # fmt: skip


if __name__ == "__main__":
    main()
