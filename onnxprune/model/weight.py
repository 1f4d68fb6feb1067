"""One tensor of a model: where its values are and how they go into a file. Knows one tensor, no graph."""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import UsageError

Array = npt.NDArray[Any]

_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
BITS = {int(kind): _PACKED[name] for name, kind in TensorProto.DataType.items() if name in _PACKED}
"""Bits of an element of the types that share bytes."""
HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, *HALVES}


class Stored(Protocol):
    """Values that are somewhere else: in a file, or a part of another weight."""

    def load(self) -> Array:
        """The values, read-only."""

    def release(self) -> None:
        """Let go of the memory that holds what was read; it may be read again."""


@dataclass(frozen=True)
class Mapped:
    """Values in a memory-mapped file. They need not be aligned there: within a protobuf file they rarely are."""

    buffer: mmap.mmap
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def load(self) -> Array:
        """A view of the file."""
        count = math.prod(self.shape)
        return np.frombuffer(self.buffer, self.dtype, count, self.offset).reshape(self.shape)

    def release(self) -> None:
        """Pages of a file that were read count as memory of the process until they are given back."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = self.offset - self.offset % mmap.PAGESIZE
            end = self.offset + math.prod(self.shape) * self.dtype.itemsize
            self.buffer.madvise(mmap.MADV_DONTNEED, start, end - start)


class Derived:
    """What `cut` makes of another weight, made anew whenever nobody holds it any more."""

    def __init__(self, source: Weight, cut: Callable[[Array], Array]) -> None:
        self.source, self.cut = source, cut
        self._known: weakref.ref[Array] | None = None

    def load(self) -> Array:
        """The values, made anew unless somebody still has those of the last time."""
        array = self._known() if self._known is not None else None
        if array is None:
            array = np.ascontiguousarray(self.cut(self.source.array()))
            array.flags.writeable = False
            self.source.release()
            self._known = weakref.ref(array)
        return array

    def release(self) -> None:
        """What was made goes with its last user; the source may be let go of."""
        self.source.release()


class Weight:
    """One tensor, without its name: an array, values that are read when they are asked for, or the TensorProto it came
    in where an array would not be faithful (strings, packed sub-byte types, typed fields)."""

    __slots__ = ("_data", "onnx_type", "shape")

    def __init__(self, onnx_type: int, shape: Iterable[int], data: Array | TensorProto | Stored) -> None:
        self.onnx_type = onnx_type
        self.shape: tuple[int, ...] = tuple(int(d) for d in shape)
        self._data = data

    @classmethod
    def of(cls, array: npt.ArrayLike, onnx_type: int | None = None) -> Self:
        """Wrap an array; with `onnx_type`, cast to that type first."""
        values = np.asarray(array)
        if onnx_type is None:
            text = values.dtype.kind in "OUST"
            onnx_type = TensorProto.STRING if text else int(helper.np_dtype_to_tensor_dtype(values.dtype))
        values = values.astype(dtype_of(onnx_type), copy=False)
        if onnx_type == TensorProto.STRING or onnx_type in BITS:
            return cls(onnx_type, values.shape, numpy_helper.from_array(values))
        values = (values if values.flags.c_contiguous else values.copy(order="C")).view()
        values.flags.writeable = False
        return cls(onnx_type, values.shape, values)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of an element."""
        return dtype_of(self.onnx_type)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in a file, packed."""
        if isinstance(self._data, TensorProto) and self.onnx_type == TensorProto.STRING:
            return sum(map(len, self._data.string_data))
        return nbytes_of(self.onnx_type, self.shape)

    @property
    def plain(self) -> bool:
        """Whether `raw` gives the values as they are, and not only a form of them."""
        return not isinstance(self._data, TensorProto) or self._data.HasField("raw_data")

    def array(self) -> Array:
        """The values, read-only where they are the weight's own storage. Of large weights they may be made for the
        caller, so that who needs them twice keeps them."""
        if isinstance(self._data, np.ndarray):
            return self._data
        if not isinstance(self._data, TensorProto):
            return self._data.load()
        try:
            return np.asarray(numpy_helper.to_array(self._data)).reshape(self.shape)
        except (ValueError, TypeError, UnicodeDecodeError) as e:
            raise UsageError(f"a weight of shape {list(self.shape)} is damaged ({e}); export the model again") from e

    def release(self) -> None:
        """Give back the memory that holds values of a file; whoever still uses them reads them again."""
        if not isinstance(self._data, (np.ndarray, TensorProto)):
            self._data.release()

    def raw(self) -> bytes | memoryview | None:
        """The bytes for an external file; None for strings, which cannot leave the model file."""
        if self.onnx_type == TensorProto.STRING:
            return None
        if isinstance(self._data, TensorProto) and self._data.HasField("raw_data"):
            return self._data.raw_data
        if self.onnx_type in BITS:
            return numpy_helper.from_array(self.array()).raw_data
        return np.ascontiguousarray(self.array()).reshape(-1).view(np.uint8).data

    def fill(self, tensor: TensorProto, *, data: bool = True) -> None:
        """Describe this weight in `tensor`, whose name, doc string and metadata stay; with its bytes unless told."""
        for name in ("dims", "data_type", "raw_data", "external_data", "data_location"):
            tensor.ClearField(name)
        if data and isinstance(self._data, TensorProto):
            bare = TensorProto()
            bare.CopyFrom(self._data)
            for name in ("name", "doc_string", "metadata_props", "dims"):
                bare.ClearField(name)
            tensor.MergeFrom(bare)
        elif data:
            tensor.raw_data = self.array().tobytes()
        tensor.data_type = self.onnx_type
        tensor.dims.extend(self.shape)

    def __repr__(self) -> str:
        return f"Weight({TensorProto.DataType.Name(self.onnx_type)}, {list(self.shape)})"


@cache
def dtype_of(onnx_type: int) -> np.dtype[Any]:
    """The numpy type of an element type (TensorProto.DataType); UsageError for one that onnx does not know."""
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(onnx_type))
    except KeyError as e:
        raise UsageError(f"a weight has the data type {onnx_type}, unknown to this onnx package; update onnx") from e


def nbytes_of(onnx_type: int, shape: Iterable[int]) -> int:
    """Bytes of a tensor in a file, packed."""
    return -(-math.prod(shape) * bits_of(onnx_type) // 8)


@cache
def bits_of(onnx_type: int) -> int:
    """Bits of one element in a file."""
    return BITS.get(onnx_type) or 8 * dtype_of(onnx_type).itemsize


def described(tensor: TensorProto, weight: Weight) -> TensorProto:
    """Name, type, shape and notes of an initializer without its bytes."""
    bare = TensorProto(name=tensor.name, metadata_props=tensor.metadata_props)
    if tensor.HasField("doc_string"):
        bare.doc_string = tensor.doc_string
    weight.fill(bare, data=False)
    return bare
