"""Load, hold, normalise and save an ONNX model: the only file that touches storage.

A ``Model`` is a skeleton proto, whose initializers hold no bytes, and ``weights``, which hold them: copies are cheap,
external data stays memory-mapped, and a tensor nobody slices reaches the disk as it came.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from .errors import OnnxPruneError, RuntimeFailure, UsageError

Array = npt.NDArray[Any]

PROTOBUF_LIMIT = (1 << 31) - (1 << 20)
"""A protobuf file ends at 2 GiB; the margin covers what an estimate misses."""
SESSION_LIMIT = 1_500_000_000
INLINE_LIMIT = 1024
"""Tensors smaller than this stay in the model file: runtimes need shape constants before they open external data."""
MAPPED_FILES = 128
"""At most this many external files are kept open as memory maps; the others are read."""

_BITS = {
    TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4, TensorProto.INT2: 2, TensorProto.UINT2: 2,
    TensorProto.FLOAT6E2M3: 6, TensorProto.FLOAT6E3M2: 6,
}  # fmt: skip
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


class Weight:
    """One tensor, without its name: an array (possibly a memory map), or the TensorProto it came in where an array
    would not be faithful (strings, packed sub-byte types, typed fields)."""

    __slots__ = ("_data", "onnx_type", "shape")

    def __init__(self, onnx_type: int, shape: Iterable[int], data: Array | TensorProto) -> None:
        self.onnx_type = onnx_type
        self.shape: tuple[int, ...] = tuple(int(d) for d in shape)
        self._data = data

    @classmethod
    def of(cls, array: npt.ArrayLike, onnx_type: int | None = None) -> Self:
        """Wrap an array; with `onnx_type`, cast to that type first."""
        values = np.asarray(array)
        if onnx_type is None:
            text = values.dtype.kind in "OUS"
            onnx_type = TensorProto.STRING if text else int(helper.np_dtype_to_tensor_dtype(values.dtype))
        values = values.astype(_dtype(onnx_type), copy=False)
        if onnx_type == TensorProto.STRING or onnx_type in _BITS:
            return cls(onnx_type, values.shape, numpy_helper.from_array(values))
        values = (values if values.flags.c_contiguous else values.copy(order="C")).view()
        values.flags.writeable = False
        return cls(onnx_type, values.shape, values)

    @property
    def dtype(self) -> np.dtype[Any]:
        return _dtype(self.onnx_type)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in a file, packed."""
        if isinstance(self._data, TensorProto) and self.onnx_type == TensorProto.STRING:
            return sum(map(len, self._data.string_data))
        return _nbytes(self.onnx_type, self.shape)

    def array(self) -> Array:
        """The values, read-only where they are the weight's own storage."""
        if not isinstance(self._data, TensorProto):
            return self._data
        try:
            return np.asarray(numpy_helper.to_array(self._data)).reshape(self.shape)
        except (ValueError, TypeError, UnicodeDecodeError) as e:
            raise UsageError(f"a weight of shape {list(self.shape)} is damaged ({e}); export the model again") from e

    def raw(self) -> bytes | memoryview | None:
        """The bytes for an external file; None for strings, which cannot leave the model file."""
        if self.onnx_type == TensorProto.STRING:
            return None
        if isinstance(self._data, TensorProto) and self._data.HasField("raw_data"):
            return self._data.raw_data
        if self.onnx_type in _BITS:
            return numpy_helper.from_array(self.array()).raw_data
        return memoryview(np.ascontiguousarray(self.array()).reshape(-1).view(np.uint8))

    def fill(self, tensor: TensorProto, *, data: bool = True) -> None:
        """Describe this weight in `tensor`, whose name, doc string and metadata stay; with its bytes unless told."""
        for name in ("dims", "data_type", "raw_data", "external_data", "data_location"):
            tensor.ClearField(name)  # type: ignore[arg-type]
        if data and isinstance(self._data, TensorProto):
            bare = TensorProto()
            bare.CopyFrom(self._data)
            for name in ("name", "doc_string", "metadata_props", "dims"):
                bare.ClearField(name)  # type: ignore[arg-type]
            tensor.MergeFrom(bare)
        elif data and isinstance(self._data, np.ndarray):
            tensor.raw_data = self._data.tobytes()
        tensor.data_type = self.onnx_type
        tensor.dims.extend(self.shape)

    def __repr__(self) -> str:
        return f"Weight({TensorProto.DataType.Name(self.onnx_type)}, {list(self.shape)})"


@dataclass
class Model:
    """`proto` without weight bytes, `weights` by initializer name; edit either, `sync` brings them together."""

    proto: ModelProto
    weights: dict[str, Weight]
    path: Path | None = None
    data_files: tuple[Path, ...] = ()
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @property
    def graph(self) -> GraphProto:
        return self.proto.graph

    @classmethod
    def load(cls, source: str | os.PathLike[str] | ModelProto | Any) -> Model:
        """Load a path, a ModelProto or an onnx_graphsurgeon Graph; the source is never modified."""
        path = None
        if isinstance(source, (str, os.PathLike)):
            path = Path(source)
            proto = _parse(path)
        elif isinstance(source, ModelProto):
            proto = ModelProto()
            proto.CopyFrom(source)
        elif type(source).__module__.startswith("onnx_graphsurgeon"):
            import onnx_graphsurgeon as gs

            proto = gs.export_onnx(source)
        else:
            raise UsageError(f"cannot load a {type(source).__name__}; give a path, a ModelProto or a graphsurgeon Graph")
        name = str(path) if path else "the model"
        if not proto.HasField("graph") or not proto.opset_import:
            raise UsageError(f"{name} is not a complete ONNX model (no graph or no opset); export or download it again")
        if not proto.graph.node:
            raise UsageError(f"{name} has no nodes, so there is nothing to prune; give a model with layers")
        store = _ExternalData(path)
        weights = {t.name: store.weight(t) for t in proto.graph.initializer}
        for tensor in _inner_tensors(proto):
            if tensor.data_location == TensorProto.EXTERNAL:
                store.weight(tensor).fill(tensor)
        described = {t.name: t for t in proto.graph.initializer}
        bare = [_described(described[n], w) for n, w in weights.items()]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(bare)
        # A second, small parse lets go of the memory that held the weights.
        return cls(ModelProto.FromString(proto.SerializeToString()), weights, path, tuple(store.files))

    def copy(self) -> Model:
        """An independent model that shares the weights, which nobody changes in place."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        return Model(proto, dict(self.weights), self.path, self.data_files)

    def sync(self) -> None:
        """Make the initializers of `proto`, and what declares their shapes, follow `weights`."""
        graph, seen = self.graph, {t.name for t in self.graph.initializer}
        kept = [_described(t, self.weights[t.name]) for t in graph.initializer if t.name in self.weights]
        kept += [_described(TensorProto(name=n), w) for n, w in self.weights.items() if n not in seen]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        for info in (*graph.input, *graph.value_info):
            weight, declared = self.weights.get(info.name), info.type.tensor_type
            if weight and declared.HasField("shape"):
                if tuple(d.dim_value for d in declared.shape.dim) != weight.shape:
                    info.type.CopyFrom(helper.make_tensor_type_proto(weight.onnx_type, weight.shape))

    def size(self) -> int:
        """Bytes that the saved model takes, to within a few per tensor."""
        return self.proto.ByteSize() + sum(w.nbytes + 4 for w in self.weights.values())

    def to_proto(self) -> ModelProto:
        """The whole model in one ModelProto."""
        if self.size() > PROTOBUF_LIMIT:
            raise UsageError("the model is over 2 GB, too large for one protobuf; save it as external data")
        self.sync()
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in proto.graph.initializer:
            self.weights[tensor.name].fill(tensor)
        return proto

    def save(self, path: str | os.PathLike[str], external: bool | None = None) -> None:
        """Write atomically; `external` puts the weights into `<name>.data`, by default where the source had such a
        file or the model is over 2 GB. Whatever was at `path` survives a failure."""
        target = Path(path)
        data = target.with_name(f"{target.name}.data")
        if external is None:
            external = bool(self.data_files) or self.size() > PROTOBUF_LIMIT
        outputs = [data, target] if external else [target]
        _check_outputs(outputs)
        in_place = self.path is not None and same_file(self.path, target)
        if not in_place and any(same_file(o, d) for o in outputs for d in self.data_files):
            raise UsageError(f"saving {target} would overwrite the weights of {self.path}; choose another name")
        with _disk_errors(target), _replacing(outputs) as temporary:
            proto = self._write_data(temporary[0], data.name) if external else self.to_proto()
            with _created(temporary[-1]) as write:
                write(proto.SerializeToString())

    def _write_data(self, path: Path, location: str) -> ModelProto:
        """Stream the weights to `path`, one tensor at a time; the returned proto refers to them at `location`."""
        self.sync()
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        offset = 0
        with _created(path) as write:
            for tensor in proto.graph.initializer:
                weight = self.weights[tensor.name]
                raw = weight.raw() if weight.nbytes >= INLINE_LIMIT else None
                if raw is None:
                    weight.fill(tensor)
                    continue
                padding = -offset % (4096 if len(raw) >= 65536 else 64)
                write(bytes(padding))
                write(raw)
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", location), ("offset", offset + padding), ("length", len(raw))):
                    tensor.external_data.add(key=key, value=str(value))
                offset += padding + len(raw)
        return proto

    def session_source(self, folder: str | os.PathLike[str] | None = None) -> bytes | str:
        """What an ONNX Runtime session takes: bytes, or above 1.5 GB a file in `folder` (by default in a temporary one
        that lives as long as this model)."""
        if self.size() < SESSION_LIMIT:
            return self.to_proto().SerializeToString()
        if folder is None:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="onnxprune-")
            folder = self._folder.name
        path = Path(folder) / f"{uuid.uuid4().hex}.onnx"
        self.save(path, external=True)
        return str(path)

    def normalised(self) -> Model:
        """A working copy: functions inlined, constants as initializers, nodes named and in topological order."""
        model = self.copy()
        if model.proto.functions:
            model.proto = inline_local_functions(model.proto)
        graph = model.graph
        fixed = {o.name for o in graph.output}
        for sparse in graph.sparse_initializer:
            model._add(sparse.values.name, Weight.of(_dense(sparse), sparse.values.data_type))
        del graph.sparse_initializer[:]
        for constant in (_constant, model._filled):
            nodes = []
            for node in graph.node:
                weight = None if fixed.intersection(node.output) else constant(node)
                if weight is None:
                    nodes.append(node)
                else:
                    model._add(node.output[0], weight)
            if len(nodes) < len(graph.node):
                _set_nodes(graph, nodes)
        _set_nodes(graph, _sorted(graph.node))
        _name(graph.node)
        return model

    def _add(self, name: str, weight: Weight) -> None:
        self.weights[name] = weight
        self.graph.initializer.append(_described(TensorProto(name=name), weight))
        if self.proto.ir_version < 4 and all(i.name != name for i in self.graph.input):
            self.graph.input.append(helper.make_tensor_value_info(name, weight.onnx_type, weight.shape))

    def _filled(self, node: NodeProto) -> Weight | None:
        """A large float ConstantOfShape of known shape: a weight that an exporter wrote in short."""
        if node.op_type != "ConstantOfShape" or node.domain not in ("", "ai.onnx") or node.input[0] not in self.weights:
            return None
        shape = tuple(int(d) for d in self.weights[node.input[0]].array())
        if not 64 <= math.prod(shape) <= 1 << 26:
            return None
        value = next((a.t for a in node.attribute if a.name == "value"), TensorProto(data_type=TensorProto.FLOAT))
        if value.data_type not in _FLOATS:
            return None
        fill = numpy_helper.to_array(value).reshape(-1) if value.dims else np.zeros(1, _dtype(value.data_type))
        return Weight.of(np.broadcast_to(fill, shape).copy(), value.data_type)


def same_file(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Do both paths name one file, through links or not? A file that does not exist yet is compared by its path."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def _dtype(onnx_type: int) -> np.dtype[Any]:
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(onnx_type))
    except KeyError as e:
        raise UsageError(f"a weight has the data type {onnx_type}, unknown to this onnx package; update onnx") from e


def _nbytes(onnx_type: int, shape: Iterable[int]) -> int:
    return -(-math.prod(shape) * _BITS.get(onnx_type, 8 * _dtype(onnx_type).itemsize) // 8)


def _described(tensor: TensorProto, weight: Weight) -> TensorProto:
    """Name, type, shape and notes of an initializer without its bytes."""
    bare = TensorProto(name=tensor.name, metadata_props=tensor.metadata_props)
    if tensor.HasField("doc_string"):
        bare.doc_string = tensor.doc_string
    weight.fill(bare, data=False)
    return bare


def _parse(path: Path) -> ModelProto:
    try:
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise UsageError(f"{path} does not exist; check the path") from e
    except IsADirectoryError as e:
        raise UsageError(f"{path} is a folder; give the .onnx file inside it") from e
    except OSError as e:
        raise UsageError(f"{path} cannot be read ({e.strerror}); check the path and its permissions") from e
    if not data:
        raise UsageError(f"{path} is empty; export or download the model again")
    if data.startswith(b"version https://git-lfs"):
        raise UsageError(f"{path} is a Git LFS pointer, not the model; fetch it with `git lfs pull`")
    if data.startswith((b"PK\x03\x04", b"\x89HDF")) or data[4:8] in (b"ORTM", b"TFL3"):
        raise UsageError(f"{path} is a model of another format; export it to ONNX first")
    if not set(data[:4096]) & {*range(8), *range(14, 27)} and all(b != 8 for b in data[:1]):
        raise UsageError(f"{path} is a text file; give a binary ONNX model")
    try:
        return ModelProto.FromString(data)
    except DecodeError as e:
        reason = "is truncated or damaged; export or download it again" if data[0] == 8 else "is not an ONNX model"
        raise UsageError(f"{path} {reason}") from e


class _ExternalData:
    """Reads the tensors of one model, and the external files in its folder."""

    def __init__(self, model: Path | None) -> None:
        self.model = model
        self.files: dict[Path, mmap.mmap | bytes] = {}

    def weight(self, tensor: TensorProto) -> Weight:
        kind, shape = tensor.data_type, tuple(tensor.dims)
        if any(d < 0 for d in shape):
            raise UsageError(f"weight '{tensor.name}' has the shape {list(shape)}; export the model again")
        if tensor.data_location == TensorProto.EXTERNAL:
            buffer, offset = self._open(tensor)
        elif tensor.HasField("raw_data"):
            buffer, offset = tensor.raw_data, 0
            if len(buffer) != _nbytes(kind, shape):
                raise UsageError(f"weight '{tensor.name}' does not hold what its shape {list(shape)} needs; "
                                 "the file is damaged, export it again")  # fmt: skip
        else:
            bare = TensorProto()
            bare.CopyFrom(tensor)
            return Weight(kind, shape, bare)
        if kind in _BITS:
            raw = bytes(buffer[offset : offset + _nbytes(kind, shape)])
            return Weight(kind, shape, TensorProto(data_type=kind, dims=shape, raw_data=raw))
        if not math.prod(shape):
            return Weight(kind, shape, np.empty(shape, _dtype(kind)))
        return Weight(kind, shape, np.frombuffer(buffer, _dtype(kind), math.prod(shape), offset).reshape(shape))

    def _open(self, tensor: TensorProto) -> tuple[mmap.mmap | bytes, int]:
        """The file that holds an external tensor, and where in it."""
        info = {e.key: e.value for e in tensor.external_data}
        location, name = info.get("location", ""), f"weight '{tensor.name}'"
        if self.model is None:
            raise UsageError(f"{name} is external data in '{location}'; load the model from its path instead")
        parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
        path = (self.model.parent / location).resolve()
        # Download caches keep links to the model and to its data side by side in a third folder.
        homes = (self.model.parent.resolve(), self.model.resolve().parent)
        if not location or absolute or ".." in parts or not any(path.is_relative_to(h) for h in homes):
            raise UsageError(f"{name} refers to '{location}', outside the model's folder; put the data next to the model")
        if not path.is_file():
            raise UsageError(f"{name} is in '{location}', which is missing; put that file next to {self.model}")
        if path not in self.files:
            try:
                with path.open("rb") as file:
                    mapped = len(self.files) < MAPPED_FILES and path.stat().st_size > 0
                    self.files[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else file.read()
            except OSError as e:
                raise UsageError(f"{path} cannot be read ({e.strerror}); check its permissions") from e
        need = _nbytes(tensor.data_type, tensor.dims)
        try:
            offset = int(info.get("offset") or 0)
            length = int(info.get("length") or need)
        except ValueError:
            offset = length = -1
        if offset < 0 or length != need or offset + length > len(self.files[path]):
            raise UsageError(f"{name} does not fit into '{location}'; that file is truncated or of another model")
        return self.files[path], offset


def _inner_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that is not an initializer of the main graph: attributes, sub-graphs, functions, training."""

    def of_sparse(sparse: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
        for s in sparse:
            yield from (s.values, s.indices)

    def of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
        yield from of_attributes(a for n in nodes for a in n.attribute)

    def of_attributes(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
        for a in attributes:
            yield from ([a.t] if a.HasField("t") else ())
            yield from a.tensors
            yield from of_sparse([a.sparse_tensor] if a.HasField("sparse_tensor") else ())
            yield from of_sparse(a.sparse_tensors)
            for graph in ([a.g] if a.HasField("g") else []) + list(a.graphs):
                yield from of_graph(graph)

    def of_graph(graph: GraphProto) -> Iterator[TensorProto]:
        yield from graph.initializer
        yield from of_sparse(graph.sparse_initializer)
        yield from of_nodes(graph.node)

    yield from of_sparse(proto.graph.sparse_initializer)
    yield from of_nodes(proto.graph.node)
    for function in proto.functions:
        yield from of_nodes(function.node)
        yield from of_attributes(function.attribute_proto)
    for training in proto.training_info:
        yield from of_graph(training.initialization)
        yield from of_graph(training.algorithm)


def _check_outputs(outputs: Iterable[Path]) -> None:
    for path in outputs:
        if not path.parent.is_dir():
            raise UsageError(f"the folder {path.parent} does not exist; create it first")
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give the name of a file")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a regular file; give another name")


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Turn what the disk says into one line."""
    try:
        yield
    except OnnxPruneError:
        raise
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RuntimeFailure(f"no space left to write {target}; free some, or write elsewhere") from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(f"{target} cannot be written ({e.strerror}); choose another folder") from e
        raise RuntimeFailure(f"{target} cannot be written ({e.strerror or e}); check the disk") from e


@contextmanager
def _created(path: Path) -> Iterator[Callable[[bytes | memoryview], Any]]:
    """Write a new file; it is on the disk when the block ends."""
    with path.open("xb") as file:
        yield file.write
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _replacing(outputs: list[Path]) -> Iterator[list[Path]]:
    """Temporary files beside `outputs` that take their places together if the block succeeds, or not at all."""
    tag = uuid.uuid4().hex[:12]
    temporary = [o.with_name(f".{o.name}.{tag}.tmp") for o in outputs]
    backups = [o.with_name(f".{o.name}.{tag}.old") for o in outputs]
    moved: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        yield temporary
        for new, output, backup in zip(temporary, outputs, backups, strict=True):
            if output is not outputs[-1] and output.exists():
                moved.append((backup, output))
                os.replace(output, backup)
            if output is not outputs[-1]:
                placed.append(output)
            os.replace(new, output)
    except BaseException:
        for output in placed:
            output.unlink(missing_ok=True)
        for backup, output in moved:
            if backup.exists():
                os.replace(backup, output)
        raise
    finally:
        for path in (*temporary, *backups):
            path.unlink(missing_ok=True)


def _constant(node: NodeProto) -> Weight | None:
    """The value of a Constant node, in any of its forms."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    a = node.attribute[0]
    match a.name:
        case "value":
            return _ExternalData(None).weight(a.t)
        case "sparse_value":
            return Weight.of(_dense(a.sparse_tensor), a.sparse_tensor.values.data_type)
        case "value_float" | "value_floats":
            return Weight.of(np.array(a.f if a.name == "value_float" else a.floats, np.float32))
        case "value_int" | "value_ints":
            return Weight.of(np.array(a.i if a.name == "value_int" else a.ints, np.int64))
        case "value_string" | "value_strings":
            dims = () if a.name == "value_string" else (len(a.strings),)
            text = [a.s] if a.name == "value_string" else a.strings
            return Weight(TensorProto.STRING, dims, TensorProto(data_type=TensorProto.STRING, dims=dims, string_data=text))
    return None


def _dense(sparse: SparseTensorProto) -> Array:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return dense


def _set_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    if len(nodes) == len(graph.node) and all(a is b for a, b in zip(nodes, graph.node, strict=True)):
        return
    del graph.node[:]
    graph.node.extend(nodes)


def _needs(node: NodeProto) -> Iterator[str]:
    """Names a node reads, those that its sub-graphs take from outside included."""
    yield from filter(None, node.input)
    for a in node.attribute:
        for graph in ([a.g] if a.HasField("g") else []) + list(a.graphs):
            inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            inner |= {o for n in graph.node for o in n.output}
            for name in (*(i for n in graph.node for i in _needs(n)), *(o.name for o in graph.output)):
                if name not in inner:
                    yield name


def _sorted(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Topological order, as close to the given one as can be: a depth-first walk that emits producers first."""
    nodes = list(nodes)
    producer = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    needs = [[producer[name] for name in _needs(n) if name in producer] for n in nodes]
    order: list[int] = []
    state = [0] * len(nodes)  # 1: its producers are being placed, 2: placed
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            i = stack[-1]
            waiting = [j for j in needs[i] if state[j] != 2] if state[i] != 2 else []
            if any(state[j] == 1 for j in waiting):
                raise UsageError(f"the graph has a cycle through node '{nodes[i].name}'; export the model again")
            if waiting:
                state[i] = 1
                stack.extend(reversed(waiting))
                continue
            if state[i] != 2:
                state[i] = 2
                order.append(i)
            stack.pop()
    return [nodes[i] for i in order]


def _name(nodes: Iterable[NodeProto]) -> None:
    """Give a name to every node that has none or a name already taken."""
    nodes = list(nodes)
    taken, used = Counter(n.name for n in nodes), set[str]()
    for i, node in enumerate(nodes):
        if not node.name or node.name in used:
            name = f"{node.op_type}_{i}"
            while taken[name] or name in used:
                name += "_"
            node.name = name
        used.add(node.name)
