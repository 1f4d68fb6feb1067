"""Files of a framework's weights: `.safetensors`, and torch's `.pt` and `.pth`, of which only weights are read.

Knows files and arrays, no graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from onnxprune.errors import UsageError
from onnxprune.files import created, disk_errors, replacing
from onnxprune.model import Array

SUFFIXES = (".safetensors", ".pt", ".pth")
TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
"""The names of safetensors' types in numpy and ml_dtypes."""


@dataclass(frozen=True)
class Tensors:
    """Arrays by name, and what else a safetensors file says about itself."""

    arrays: dict[str, Array]
    metadata: Mapping[str, str] = field(default_factory=dict)


def check_suffix(path: Path) -> None:
    """UsageError where the name of a file of weights does not say of which kind it is."""
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: weights are read and written as {', '.join(SUFFIXES)}; save a state dict as one of them"
        )


def read(path: Path) -> Tensors:
    """Raises UsageError where the file is missing, is no such file, or its package is not installed."""
    check_suffix(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give a state dict saved as {', '.join(SUFFIXES)}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def write(path: Path, tensors: Tensors) -> None:
    """The file, all of it or nothing. UsageError where its format lacks a type."""
    check_suffix(path)
    with disk_errors(path), replacing([path]) as files:
        temporary = files.temporary[path]
        if path.suffix == ".safetensors":
            with created(temporary) as put:
                for part in _safetensors_bytes(tensors):
                    put(part)
        else:
            torch = _torch()
            torch.save({name: _to_torch(array) for name, array in tensors.arrays.items()}, temporary)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError(".pt files need torch: pip install torch, or save the weights as .safetensors") from None
    return torch


def _read_safetensors(path: Path) -> Tensors:
    """The length of a JSON header, the header, the bytes of the tensors: few enough rules to need no package, and
    numpy's reader of it knows no bfloat16."""
    try:
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        metadata = header.pop("__metadata__", {})
        arrays = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= len(data) - start:
                raise ValueError("it is truncated")
            arrays[name] = np.frombuffer(data[start + begin : start + end], _dtype(name, entry["dtype"])).reshape(
                entry["shape"]
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a complete safetensors file ({error}); save it again") from None
    return Tensors(arrays, metadata)


def _dtype(name: str, kind: str) -> np.dtype[Any]:
    if kind not in TYPES:
        raise UsageError(f"'{name}' has the type {kind}, which numpy lacks; save it as another one")
    return np.dtype(getattr(ml_dtypes, TYPES[kind], TYPES[kind]))


def _safetensors_bytes(tensors: Tensors) -> Iterator[bytes]:
    kinds = {np.dtype(getattr(ml_dtypes, name, name)): kind for kind, name in TYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(tensors.metadata)} if tensors.metadata else {}
    ordered = sorted(tensors.arrays.items(), key=lambda item: -item[1].itemsize)  # so that all of them are aligned
    offset = 0
    for name, array in ordered:
        if array.dtype not in kinds:
            raise UsageError(f"'{name}' has the type {array.dtype}, which safetensors lacks; write a .pt file")
        ends = [offset, offset := offset + array.nbytes]
        header[name] = {"dtype": kinds[array.dtype], "shape": list(array.shape), "data_offsets": ends}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, array in ordered:
        yield np.ascontiguousarray(array).tobytes()


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
