"""Files of a framework's weights: `.safetensors`, and torch's `.pt` and `.pth`, of which only weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.storage import created, disk_errors, replacing
from onnxprune.weight import Array

SUFFIXES = (".safetensors", ".pt", ".pth")
BITS_OF = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool"}
"""Types of safetensors that numpy knows by other names, or from ml_dtypes only; the others are a letter and bits."""
LETTERS = {"F": "float", "I": "int", "U": "uint", "C": "complex"}


@dataclass(frozen=True)
class Tensors:
    """Arrays by name, and what else a safetensors file says about itself."""

    arrays: dict[str, Array]
    metadata: Mapping[str, str] = field(default_factory=dict)


def check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: weights are read and written as {', '.join(SUFFIXES)}; save a state dict as one of them"
        )


def read(path: Path) -> Tensors:
    """Raises UsageError where the file is missing, is no such file, or its package is not installed."""
    check_suffix(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a state dict saved as {', '.join(SUFFIXES)}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def write(path: Path, tensors: Tensors) -> None:
    """All of it or nothing."""
    check_suffix(path)
    with disk_errors(path), replacing([path]) as (temporary,):
        if path.suffix == ".safetensors":
            with created(temporary) as put:
                put(_safetensors_bytes(tensors))
        else:
            torch = _torch()
            torch.save({name: _to_torch(array) for name, array in tensors.arrays.items()}, temporary)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError(".pt files need torch: pip install torch, or save the weights as .safetensors") from None
    return torch


def _safetensors() -> Any:
    try:
        import safetensors
    except ImportError:
        raise UsageError(".safetensors files need 'pip install onnxprune[frameworks]'") from None
    return safetensors


def _read_safetensors(path: Path) -> Tensors:
    package = _safetensors()
    try:
        with package.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        stored = package.deserialize(path.read_bytes())
    except package.SafetensorError as error:
        raise UsageError(f"{path} is not a complete safetensors file ({error}); save it again") from None
    return Tensors(
        {n: np.frombuffer(t["data"], _dtype(n, t["dtype"])).reshape(t["shape"]) for n, t in stored}, metadata
    )


def _dtype(name: str, kind: str) -> np.dtype[Any]:
    import ml_dtypes

    known = BITS_OF.get(kind) or f"{LETTERS.get(kind[:1], '?')}{kind[1:]}"
    try:
        return np.dtype(getattr(ml_dtypes, known, known))
    except TypeError:
        raise UsageError(f"'{name}' has the type {kind}, which numpy lacks; save it as another one") from None


def _safetensors_bytes(tensors: Tensors) -> bytes:
    flat = {
        name: {"dtype": array.dtype.name, "shape": list(array.shape), "data": np.ascontiguousarray(array).tobytes()}
        for name, array in tensors.arrays.items()
    }
    data: bytes = _safetensors().serialize(flat, metadata=dict(tensors.metadata) or None)
    return data


def _read_torch(path: Path) -> Tensors:
    torch = _torch()
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its reader met
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path} is no file of weights alone ({reason}); save module.state_dict()") from None
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not all(isinstance(x, torch.Tensor) for x in value.values()):
        raise UsageError(f"{path} does not hold tensors by name; save module.state_dict()")
    return Tensors({str(name): _from_torch(tensor) for name, tensor in value.items()})


def _from_torch(tensor: Any) -> Array:
    torch = _torch()
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has no such type of its own
        import ml_dtypes

        return np.asarray(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    try:
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError) as error:
        raise UsageError(f"a tensor of {tensor.dtype} cannot be read ({error}); save a plain state dict") from None


def _to_torch(array: Array) -> Any:
    torch = _torch()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
