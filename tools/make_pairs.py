"""Write tiny networks to `tests/data/`, each as several tools write it: both of PyTorch's exporters, and what onnxsim
and onnxslim make of their files. Random weights from a fixed seed, nothing trained.

    python tools/make_pairs.py tests/data/

Needs torch, onnxscript, onnxsim and onnxslim, which the project itself does not depend on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import onnxsim
import onnxslim
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = tuple[nn.Module, tuple[int, ...]]
LARGEST = 60_000


def conv_bn(ins: int, outs: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(ins, outs, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outs)
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = conv_bn(3, 8), conv_bn(8, 12), conv_bn(12, 8)
        self.down, self.shortcut, self.head = conv_bn(8, 16), conv_bn(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        x = F.relu(self.down(x) + self.shortcut(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class SqueezeExcite(nn.Module):
    """An inverted bottleneck with a depthwise convolution and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.depthwise = conv_bn(3, 8), conv_bn(8, 16, 1), conv_bn(16, 16, 3, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.head = conv_bn(16, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.hardswish(self.depthwise(F.hardswish(self.expand(x))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head(x + self.project(y)).mean((2, 3))


class Shuffle(nn.Module):
    """One ShuffleNetV2 unit after a stem: half of the channels pass, the others are worked on, then both are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.depthwise = conv_bn(3, 16), conv_bn(8, 8, 1), conv_bn(8, 8, 3, groups=8)
        self.second, self.last, self.head = conv_bn(8, 8, 1), conv_bn(16, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = F.relu(self.stem(x)).chunk(2, 1)
        worked = F.relu(self.second(self.depthwise(F.relu(self.first(worked)))))
        x = torch.cat([kept, worked], 1)
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Transformer(nn.Module):
    """An embedding and one pre-norm block with a fused query-key-value product."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.norm1, self.norm2, self.norm3 = nn.Linear(6, width), *(nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.head = nn.Linear(width, 24), nn.Linear(24, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.softmax(q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5, -1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(n, length, width))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


class Recurrent(nn.Module):
    """Two recurrent layers, one on the other."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.first, self.second = kind(6, 12, batch_first=True), kind(12, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)[0])[0][:, -1])


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.below, self.up = conv_bn(3, 8), conv_bn(8, 12), nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.leave, self.head = conv_bn(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        y = F.relu(self.below(F.max_pool2d(x, 2)))
        return self.head(F.relu(self.leave(torch.cat([x, self.up(y)], 1))))


class GroupNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.inner, self.norm2 = nn.Conv2d(16, 12, 3, padding=1), nn.GroupNorm(2, 12)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.enter(x)))
        return self.head(F.silu(self.norm2(self.inner(x)))).mean((2, 3))


def networks() -> dict[str, Network]:
    image, sequence = (2, 3, 8, 8), (2, 7, 6)
    return {
        "residual": (Residual(), image), "squeeze_excite": (SqueezeExcite(), image), "shuffle": (Shuffle(), image),
        "transformer": (Transformer(), sequence), "lstm": (Recurrent(nn.LSTM), sequence),
        "gru": (Recurrent(nn.GRU), sequence), "unet": (UNet(), image), "group_norm": (GroupNormed(), image),
    }  # fmt: skip


def randomise(network: nn.Module) -> nn.Module:
    """Statistics, gains and biases as training leaves them; their defaults hide mistakes."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def export(network: nn.Module, shape: tuple[int, ...], path: Path, dynamo: bool) -> onnx.ModelProto:
    """The network as a file that takes any batch size."""
    example = (torch.randn(shape),)
    batch: dict[str, object] = (
        {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1)},)}
        if dynamo
        else {"dynamic_axes": {"x": {0: "batch"}, "y": {0: "batch"}}}
    )
    torch.onnx.export(network, example, str(path), input_names=["x"], output_names=["y"], opset_version=18,
                      dynamo=dynamo, external_data=False, **batch)  # fmt: skip
    model = onnx.load(path)
    for node in model.graph.node:  # where in the exporting script it came from
        node.ClearField("metadata_props")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
    return model


def write(model: onnx.ModelProto, path: Path) -> None:
    model.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    assert path.stat().st_size < LARGEST, path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name, (network, shape) in networks().items():
        randomise(network)
        for exporter, dynamo in (("script", False), ("dynamo", True)):
            path = out / f"{name}.{exporter}.onnx"
            model = export(network, shape, path, dynamo)
            write(model, path)
            simplified, fine = onnxsim.simplify(model)
            assert fine, path
            write(simplified, out / f"{name}.{exporter}.sim.onnx")
            write(onnxslim.slim(onnx.load(path)), out / f"{name}.{exporter}.slim.onnx")


if __name__ == "__main__":
    main()
