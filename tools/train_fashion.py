"""Train the residual Fashion-MNIST classifier that `models/` carries.

    python tools/train_fashion.py DATA models/

DATA is the folder with the four `*-ubyte.gz` files (Debian: `dataset-fashion-mnist`). Needs torch, which the
package itself does not. Writes `fashion_resnet.onnx` (BatchNorm folded), `fashion_resnet_bn.onnx` (BatchNorm
kept) and `fashion_test.npz` (the first 2,000 test images). About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MEAN, STD = 0.2860, 0.3530


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:
            self.short = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.short(x))


class FashionResNet(nn.Module):
    """Twenty layers in three stages (He et al. 2015, section 4.2) with projection shortcuts."""

    def __init__(self, width: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages: list[nn.Module] = []
        cin = width
        for stage in range(3):
            for i in range(blocks):
                cout = width * 2**stage
                stages.append(Block(cin, cout, 2 if stage and i == 0 else 1))
                cin = cout
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(cin, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    def load(name: str, offset: int) -> np.ndarray:
        data = gzip.decompress((folder / f"{split}-{name}-ubyte.gz").read_bytes())
        return np.frombuffer(data, np.uint8, offset=offset)

    images = load("images-idx3", 16).reshape(-1, 1, 28, 28).astype(np.float32)
    return (images / 255 - MEAN) / STD, load("labels-idx1", 8).astype(np.int64)


def augment(x: torch.Tensor) -> torch.Tensor:
    flip = torch.rand(len(x)) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    padded = F.pad(x, (2, 2, 2, 2), value=-MEAN / STD)
    dx, dy = (int(v) for v in torch.randint(0, 5, (2,)))
    return padded[:, :, dy : dy + 28, dx : dx + 28]


def export(model: nn.Module, path: Path, keep_bn: bool) -> None:
    mode = torch.onnx.TrainingMode.PRESERVE if keep_bn else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(
        model.eval(),
        torch.zeros(1, 1, 28, 28),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        opset_version=17,
        dynamo=False,
        training=mode,
        do_constant_folding=not keep_bn,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    (xs, ys), (xt, yt) = (tuple(map(torch.from_numpy, read(args.data, s))) for s in ("train", "t10k"))
    model = FashionResNet().to(memory_format=torch.channels_last)
    batch = 128
    steps = args.epochs * (len(xs) // batch)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, total_steps=steps, pct_start=0.2)
    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(len(xs))[: len(xs) // batch * batch].view(-1, batch)
        for rows in order:
            loss = F.cross_entropy(model(augment(xs[rows])), ys[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(xt.split(500), yt.split(500), strict=True))
        print(f"epoch {epoch + 1}: top-1 {hits / len(xt):.4f}", flush=True)
    export(model, args.out / "fashion_resnet.onnx", keep_bn=False)
    export(model, args.out / "fashion_resnet_bn.onnx", keep_bn=True)
    np.savez_compressed(
        args.out / "fashion_test.npz", image=xt[:2000].numpy().astype(np.float16), labels=yt[:2000].numpy()
    )


if __name__ == "__main__":
    main()
