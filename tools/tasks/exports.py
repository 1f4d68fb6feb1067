"""Networks whose weights come as PyTorch state dictionaries, and their export. Needs torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Crepe(nn.Module):
    """CREPE tiny (Kim et al. 2018) with the parameter names of torchcrepe: frames [n, 1024] to scores [n, 360]."""

    WIDTHS = (1, 128, 16, 16, 16, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        for i, (ins, outs) in enumerate(zip(self.WIDTHS, self.WIDTHS[1:], strict=False), 1):
            kernel, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{i}", nn.Conv2d(ins, outs, kernel, stride))
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(outs, eps=0.0010000000474974513))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for i in range(1, len(self.WIDTHS)):
            x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = F.relu(self.get_submodule(f"conv{i}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{i}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))


class Bidirectional(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, width, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x)[0])


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def conv(ins: int, outs: int) -> list[nn.Module]:
            return [nn.Conv2d(ins, outs, 3, 1, 1), nn.ReLU()]

        def normed(ins: int) -> list[nn.Module]:
            return [nn.Conv2d(ins, 256, 3, 1, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU()]

        self.ConvNet = nn.Sequential(
            *conv(1, 32), nn.MaxPool2d(2, 2), *conv(32, 64), nn.MaxPool2d(2, 2), *conv(64, 128), *conv(128, 128),
            nn.MaxPool2d((2, 1), (2, 1)), *normed(128), *normed(256), nn.MaxPool2d((2, 1), (2, 1)),
            nn.Conv2d(256, 256, 2, 1, 0), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.ConvNet(x)


class EnglishG2(nn.Module):
    """EasyOCR's second generation recogniser: lines [n, 1, 64, width] to CTC scores [n, width / 4 - 1, 97].

    The adaptive pool over the height is written as a mean, which has an ONNX form for any width.
    """

    def __init__(self) -> None:
        super().__init__()
        self.FeatureExtraction = Features()
        self.SequenceModeling = nn.Sequential(Bidirectional(256), Bidirectional(256))
        self.Prediction = nn.Linear(256, 97)

    def forward(self, x: Tensor) -> Tensor:
        x = self.FeatureExtraction(x).mean(2).permute(0, 2, 1)
        return self.Prediction(self.SequenceModeling(x))


class Attention(nn.Module):
    """Of BERT, with the sum and the norm behind it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.self = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, 1e-12)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (layer(x).view(n, length, self.heads, -1).transpose(1, 2) for layer in self.self.values())
        weights = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + mask, -1)
        y = (weights @ v).transpose(1, 2).reshape(n, length, width)
        return self.output["LayerNorm"](self.output["dense"](y) + x)


class EncoderLayer(nn.Module):
    """Of BERT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.output = nn.ModuleDict({"dense": nn.Linear(4 * width, width), "LayerNorm": nn.LayerNorm(width, 1e-12)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        y = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](self.output["dense"](y) + x)


class MiniLM(nn.Module):
    """all-MiniLM-L6-v2 (Wang et al. 2020) with the parameter names of transformers' BertModel: ids and mask [n, tokens]
    to the mean of the last layer over the tokens, [n, 384]."""

    def __init__(self) -> None:
        super().__init__()
        width, sizes = 384, {"word_embeddings": 30522, "position_embeddings": 512, "token_type_embeddings": 2}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(size, width) for name, size in sizes.items()})
        self.embeddings["LayerNorm"] = nn.LayerNorm(width, 1e-12)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(EncoderLayer(width, 12) for _ in range(6))})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        e, kept = self.embeddings, mask.float()
        x = e["word_embeddings"](ids) + e["token_type_embeddings"].weight[0]
        x = e["LayerNorm"](x + e["position_embeddings"].weight[: ids.shape[1]])
        for layer in self.encoder["layer"]:
            x = layer(x, (1 - kept)[:, None, None] * -1e4)
        return (x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)


class Speaker(nn.Module):
    """Resemblyzer's speaker encoder (Wan et al. 2018): mel power [n, 160, 40] to embeddings [n, 256] of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        embedding = F.relu(self.linear(self.lstm(x)[1][0][-1]))
        return embedding / embedding.norm(dim=1, keepdim=True)


def _state(weights: Path) -> dict[str, Tensor]:
    if weights.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(weights)
        return {key: x for key, x in state.items() if not key.startswith("pooler.") and "position_ids" not in key}
    state = torch.load(weights, map_location="cpu", weights_only=True)
    if "model_state" in state:
        return {key: x for key, x in state["model_state"].items() if key.startswith(("lstm.", "linear."))}
    return {key.removeprefix("module."): value for key, value in state.items()}


def export(name: str, weights: Path, target: Path) -> None:
    """Write the network `crepe_tiny`, `english_g2`, `speaker_lstm` or `minilm_l6` with these weights as ONNX; batch,
    line width and number of tokens stay free."""
    if name == "crepe_tiny":
        model, example, names = Crepe(), (torch.zeros(2, 1024),), ("frames", "scores")
        axes = {"frames": {0: "N"}, "scores": {0: "N"}}
    elif name == "english_g2":
        model, example, names = EnglishG2(), (torch.zeros(2, 1, 64, 256),), ("image", "scores")
        axes = {"image": {0: "N", 3: "W"}, "scores": {0: "N", 1: "T"}}
    elif name == "speaker_lstm":
        model, example, names = Speaker(), (torch.zeros(2, 160, 40),), ("mels", "embedding")
        axes = {"mels": {0: "N"}, "embedding": {0: "N"}}
    else:
        ids = torch.ones(2, 48, dtype=torch.int64)
        model, example, names = MiniLM(), (ids, ids), ("input_ids", "attention_mask", "embedding")
        axes = {"input_ids": {0: "N", 1: "T"}, "attention_mask": {0: "N", 1: "T"}, "embedding": {0: "N"}}
    model.load_state_dict(_state(weights))
    part = target.with_suffix(".part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a batch size is traced, which these networks do not depend on
        torch.onnx.export(
            model.eval(), example, str(part), input_names=names[:-1], output_names=names[-1:], dynamic_axes=axes,
            opset_version=17, dynamo=False,
        )  # fmt: skip
    part.replace(target)
