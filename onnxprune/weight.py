"""One tensor of a model: where its values are and how they go into a file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from .errors import UsageError

Array = npt.NDArray[Any]

_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
BITS = {int(kind): _PACKED[name] for name, kind in TensorProto.DataType.items() if name in _PACKED}
"""Bits of an element of the types that share bytes."""


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
        return dtype_of(self.onnx_type)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in a file, packed."""
        if isinstance(self._data, TensorProto) and self.onnx_type == TensorProto.STRING:
            return sum(map(len, self._data.string_data))
        return nbytes_of(self.onnx_type, self.shape)

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
        elif data and isinstance(self._data, np.ndarray):
            tensor.raw_data = self._data.tobytes()
        tensor.data_type = self.onnx_type
        tensor.dims.extend(self.shape)

    def __repr__(self) -> str:
        return f"Weight({TensorProto.DataType.Name(self.onnx_type)}, {list(self.shape)})"


def dtype_of(onnx_type: int) -> np.dtype[Any]:
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(onnx_type))
    except KeyError as e:
        raise UsageError(f"a weight has the data type {onnx_type}, unknown to this onnx package; update onnx") from e


def nbytes_of(onnx_type: int, shape: Iterable[int]) -> int:
    return -(-math.prod(shape) * BITS.get(onnx_type, 8 * dtype_of(onnx_type).itemsize) // 8)


def described(tensor: TensorProto, weight: Weight) -> TensorProto:
    """Name, type, shape and notes of an initializer without its bytes."""
    bare = TensorProto(name=tensor.name, metadata_props=tensor.metadata_props)
    if tensor.HasField("doc_string"):
        bare.doc_string = tensor.doc_string
    weight.fill(bare, data=False)
    return bare
