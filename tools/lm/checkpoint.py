"""The trained weights as one small file: 8 bits a weight, a scale a row. What is read back is the model henceforth."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.lm.network import LanguageModel

LEVELS = 127


def save(model: LanguageModel, path: Path) -> None:
    """Matrices as int8 [rows, columns] with float32 scales [rows, 1] (the largest of a row is 127), vectors as they
    are."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        weight = weight.detach()
        if weight.dim() < 2:
            tensors[name] = weight.clone()
            continue
        scale = weight.abs().amax(1, keepdim=True) / LEVELS
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[f"{name}.scale"] = scale
    save_file(tensors, str(path))


def load(path: Path) -> LanguageModel:
    """The model in the file `path`, in float32."""
    model, tensors = LanguageModel(), load_file(str(path))
    state = {
        name: tensors[name].float() * tensors[f"{name}.scale"] if f"{name}.scale" in tensors else tensors[name]
        for name, _ in model.named_parameters()
    }
    model.load_state_dict(state, strict=False)  # the head's weight is the embedding's
    return model.eval()
