"""What a model is given as, turned into protobuf: a path, bytes, a ModelProto, a graph of onnx_graphsurgeon.

What is none, or cannot be a whole model, is refused here in one line. Knows files and protobuf, no stage.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import ModelProto

from onnxprune.errors import UsageError
from onnxprune.files import check_finite
from onnxprune.model.storage import Inside
from onnxprune.model.wire import UnsupportedEncoding, skeleton

_CONTROL = {*range(9), *range(14, 27)}
"""Bytes that no text holds, and every protobuf of a model does."""


@dataclass(frozen=True)
class Source:
    """A model as it came. path: of its file, if it has one; inside: what was left there."""

    proto: ModelProto
    path: Path | None = None
    inside: Inside | None = None


def source_of(given: str | os.PathLike[str] | bytes | ModelProto | Any) -> Source:
    """The model at a path, or a copy of the one in memory; UsageError where it is none."""
    if isinstance(given, (str, os.PathLike)):
        source = parse(Path(given))
    elif isinstance(given, ModelProto):
        source = Source(ModelProto())
        source.proto.CopyFrom(given)
    elif isinstance(given, bytes | bytearray | memoryview):
        source = Source(_decoded(bytes(given), "the model"))
    elif type(given).__module__.startswith("onnx_graphsurgeon"):
        import onnx_graphsurgeon as gs

        source = Source(gs.export_onnx(given))
    else:
        raise UsageError(f"cannot load a {type(given).__name__}; give a path, bytes, a ModelProto or a gs.Graph")
    _refuse_incomplete(source.proto, str(source.path) if source.path else "the model")
    return source


def _refuse_incomplete(proto: ModelProto, name: str) -> None:
    if not proto.HasField("graph") or not proto.opset_import:
        raise UsageError(f"{name} is not a complete ONNX model (no graph or no opset); export or download it again")
    if not proto.graph.node:
        raise UsageError(f"{name} has no nodes, so there is nothing to prune; give a model with layers")
    versions = (proto.ir_version, *(o.version for o in proto.opset_import))
    if not all(0 <= v < 1 << 31 for v in versions):
        raise UsageError(f"{name} says it is of version {max(versions, key=abs)} of ONNX; export or download it again")


def parse(path: Path) -> Source:
    """The model in a file; what is large stays there. UsageError where it cannot be read or is none."""
    data = _contents(path)
    if isinstance(data, mmap.mmap):
        _refuse_other_formats(str(path), data[:4096])
        try:
            found = skeleton(data)
            return Source(ModelProto.FromString(found.data), path, Inside(data, found.held))
        except (UnsupportedEncoding, DecodeError):  # protobuf itself is to say what is wrong, if anything is
            data = data[:]
    return Source(_decoded(data, str(path)), path)


def _decoded(data: bytes, name: str) -> ModelProto:
    """The model that these bytes are; UsageError, which calls them `name`, where they are none."""
    _refuse_other_formats(name, data[:4096])
    try:
        proto: ModelProto = ModelProto.FromString(data)
    except DecodeError as e:
        if "MaxDepth" in str(e):
            raise UsageError(
                f"{name} nests its graphs deeper than protobuf can read; export it with fewer levels"
            ) from e
        reason = (
            "is truncated or damaged; export or download it again"
            if data[0] == 8
            else "is not an ONNX model; give what an exporter wrote"
        )
        raise UsageError(f"{name} {reason}") from e
    return proto


def _contents(path: Path) -> mmap.mmap | bytes:
    """The bytes of a file, mapped where it can be: a pipe cannot, nor can nothing."""
    check_finite(path)
    try:
        with path.open("rb") as file:
            mapped = path.is_file() and os.fstat(file.fileno()).st_size > 0
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else file.read()
    except FileNotFoundError as e:
        raise UsageError(f"{path} does not exist; check the path") from e
    except IsADirectoryError as e:
        raise UsageError(f"{path} is a folder; give the .onnx file inside it") from e
    except OSError as e:
        raise UsageError(f"{path} cannot be read ({e.strerror}); check the path and its permissions") from e


def _refuse_other_formats(name: str, head: bytes) -> None:
    """By how the file begins: a pointer of Git LFS, a zip (PyTorch, Keras), HDF5, a model of ONNX Runtime or TFLite."""
    if not head:
        raise UsageError(f"{name} is empty; export or download the model again")
    if head.startswith(b"version https://git-lfs"):
        raise UsageError(f"{name} is a Git LFS pointer, not the model; fetch it with `git lfs pull`")
    if head.startswith((b"PK\x03\x04", b"\x89HDF")) or head[4:8] in (b"ORTM", b"TFL3"):
        raise UsageError(f"{name} is a model of another format; export it to ONNX first")
    if not _CONTROL.intersection(head):
        raise UsageError(f"{name} is a text file; give a binary ONNX model")
