"""Where the values of a model's tensors are: in its own file, in external files, or in the protobuf as lists.

Knows paths and protobuf, no stage.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from onnx import TensorProto

from onnxprune.errors import UsageError
from onnxprune.model.weight import BITS, Mapped, Weight, dtype_of, nbytes_of

MAPPED_FILES = 128
"""At most this many external files are kept open as memory maps; the others are read."""

_FIELDS: dict[int, str] = {
    TensorProto.STRING: "string_data", TensorProto.FLOAT: "float_data", TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data", TensorProto.COMPLEX128: "double_data", TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data", TensorProto.UINT64: "uint64_data",
}  # fmt: skip
"""Where the values of a type are that has a list of its own; those of the others are in int32_data."""


@dataclass(frozen=True)
class Inside:
    """What was left in a model's own file: (begin, end) of the bytes of initializers, by their place in the graph."""

    file: mmap.mmap
    at: Mapping[int, tuple[int, int]]


class ExternalData:
    """Reads the tensors of one model, and the external files in its folder: `files` are those that were opened."""

    def __init__(self, model: Path | None, inside: Inside | None = None) -> None:
        self.model, self.inside = model, inside
        self.files: dict[Path, mmap.mmap | bytes] = {}
        self.located: dict[str, mmap.mmap | bytes] = {}

    def weight(self, tensor: TensorProto, place: int = -1) -> Weight:
        """The values of a tensor, left where they are if that can be. `place`: among the initializers of the main
        graph. UsageError where they are not what the shape needs, or not to be found."""
        kind, shape = tensor.data_type, tuple(tensor.dims)
        if any(d < 0 for d in shape):
            raise UsageError(f"weight '{tensor.name}' has the shape {list(shape)}; export the model again")
        if tensor.data_location == TensorProto.EXTERNAL:
            buffer, offset = self._open(tensor)
        elif self.inside is not None and place in self.inside.at:
            buffer, (offset, end) = self.inside.file, self.inside.at[place]
            _check_length(tensor, end - offset, nbytes_of(kind, shape))
        elif tensor.HasField("raw_data"):
            buffer, offset = tensor.raw_data, 0
            _check_length(tensor, len(buffer), nbytes_of(kind, shape))
        else:
            _check_length(tensor, _listed(tensor), _needed(kind, shape))
            bare = TensorProto()
            bare.CopyFrom(tensor)
            return Weight(kind, shape, bare)
        if kind in BITS:
            raw = bytes(buffer[offset : offset + nbytes_of(kind, shape)])
            return Weight(kind, shape, TensorProto(data_type=kind, dims=shape, raw_data=raw))
        if not math.prod(shape):
            return Weight(kind, shape, np.empty(shape, dtype_of(kind)))
        if isinstance(buffer, mmap.mmap):
            return Weight(kind, shape, Mapped(buffer, offset, dtype_of(kind), shape))
        return Weight(kind, shape, np.frombuffer(buffer, dtype_of(kind), math.prod(shape), offset).reshape(shape))

    def _open(self, tensor: TensorProto) -> tuple[mmap.mmap | bytes, int]:
        """The file that holds an external tensor, and where in it."""
        info = {e.key: e.value for e in tensor.external_data}
        location, name = info.get("location", ""), f"weight '{tensor.name}'"
        if location not in self.located:
            self.located[location] = self._file(location, name)
        file, need = self.located[location], nbytes_of(tensor.data_type, tensor.dims)
        try:
            offset = int(info.get("offset") or 0)
            length = int(info.get("length") or need)
        except ValueError:
            offset = length = -1
        if offset < 0 or length != need or offset + length > len(file):
            raise UsageError(f"{name} does not fit into '{location}'; that file is truncated or of another model")
        return file, offset

    def _file(self, location: str, name: str) -> mmap.mmap | bytes:
        """An external file, which has to be in the folder of the model; `name`: of the weight, for errors."""
        if self.model is None:
            raise UsageError(f"{name} is external data in '{location}'; load the model from its path instead")
        parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
        try:
            path = (self.model.parent / location).resolve()
            found = path.is_file()
        except (OSError, RuntimeError, ValueError) as e:  # a link to itself, a name too long, a byte of zero
            raise UsageError(
                f"{name} is in '{location[:80]}', which is no path of a file; export the model again"
            ) from e
        # Download caches keep links to the model and to its data side by side in a third folder.
        homes = (self.model.parent.resolve(), self.model.resolve().parent)
        if not location or absolute or ".." in parts or not any(path.is_relative_to(h) for h in homes):
            raise UsageError(f"{name} refers to '{location}', outside the model's folder; move that file there")
        if not found:
            raise UsageError(f"{name} is in '{location}', which is missing; put that file next to {self.model}")
        if path not in self.files:
            try:
                with path.open("rb") as file:
                    mapped = len(self.files) < MAPPED_FILES and path.stat().st_size > 0
                    self.files[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else file.read()
            except OSError as e:
                raise UsageError(f"{path} cannot be read ({e.strerror}); check its permissions") from e
        return self.files[path]


def _check_length(tensor: TensorProto, found: int, needed: int) -> None:
    if found != needed:
        raise UsageError(f"weight '{tensor.name}' does not hold what its shape {list(tensor.dims)} needs; "
                         "the file is damaged, export it again")  # fmt: skip


def _listed(tensor: TensorProto) -> int:
    """How many values the typed field of a tensor holds."""
    return len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))


def _needed(kind: int, shape: tuple[int, ...]) -> int:
    """How many values a tensor of this type and shape has in a typed field: packed ones share, complex take two."""
    values = math.prod(shape)
    if kind in BITS:
        return nbytes_of(kind, shape)
    return 2 * values if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else values
