"""Tensors where sessions have them, on an accelerator or here, until Python reads them: one door for what crosses.

Knows values of ONNX Runtime, no model and no stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import c_uint16
from dataclasses import dataclass
from functools import cached_property
from math import prod
from threading import Lock
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.run.installed import onnx_runtime

DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
"""Where the tensors of a provider are, as ONNX Runtime calls it; of any other they are in the memory of Python."""
HOST = "cpu"
BFLOAT16 = int(TensorProto.BFLOAT16)
FLOATS = {"tensor(float)", "tensor(float16)", "tensor(double)"}
"""As ONNX Runtime calls what activations are made of, where numpy has it, too."""


@dataclass
class Crossings:
    """Tensors, and their bytes, that Python read of sessions, and that it gave them. On a processor they are not
    copied, as both sides have the same memory; on an accelerator each is a copy."""

    read: int = 0
    read_bytes: int = 0
    given: int = 0
    given_bytes: int = 0


_COUNTED: ContextVar[tuple[Crossings, ...]] = ContextVar("counted", default=())
_LOCK = Lock()


@contextmanager
def crossings() -> Iterator[Crossings]:
    """What crosses within it, in the threads that start there, too."""
    found = Crossings()
    token = _COUNTED.set((*_COUNTED.get(), found))
    try:
        yield found
    finally:
        _COUNTED.reset(token)


def were_read(values: Iterable[Any]) -> None:
    """Note what came to Python."""
    for found in _COUNTED.get():
        sizes = [getattr(value, "nbytes", 0) for value in values]
        with _LOCK:
            found.read, found.read_bytes = found.read + len(sizes), found.read_bytes + sum(sizes)


def were_given(values: Iterable[Any]) -> None:
    """Note what Python gave."""
    for found in _COUNTED.get():
        sizes = [getattr(value, "nbytes", 0) for value in values]
        with _LOCK:
            found.given, found.given_bytes = found.given + len(sizes), found.given_bytes + sum(sizes)


class Tensor:
    """A tensor where a session has it, as `value`, which ONNX Runtime knows. own: the array in whose memory it lies, if
    there is one: a view that ONNX Runtime gives does not keep that."""

    def __init__(self, value: Any, own: NDArray[Any] | None = None) -> None:
        self.value, self.own = value, own

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, which are known without its numbers."""
        return tuple(self.value.shape())

    @cached_property
    def array(self) -> NDArray[Any]:
        """Its numbers in the memory of Python: they cross once."""
        found = self.own
        if found is None:
            found = _bfloats(self.value) if self.value.element_type() == BFLOAT16 else self.value.numpy()
        were_read([found])
        return found


def placed(value: Any, device: str = HOST) -> Any:
    """An array as a `Tensor` on a device; what is none, or has no numbers, as it is."""
    if isinstance(value, np.ndarray) and value.dtype == ml_dtypes.bfloat16:
        were_given([value])
        bits = np.ascontiguousarray(value).view(np.uint16)
        return Tensor(onnx_runtime().OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16))
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return value
    were_given([value])
    return _of_array(value, device)


def _of_array(array: NDArray[Any], device: str = HOST) -> Tensor:
    """On a processor in the memory of the array, elsewhere a copy of it."""
    value = onnx_runtime().OrtValue.ortvalue_from_numpy(array, device)
    return Tensor(value, array if device == HOST else None)


def _bfloats(value: Any) -> NDArray[Any]:
    """Numbers of a format that numpy has not, of which ONNX Runtime therefore gives no array: copied from where they
    are, in the memory of Python."""
    shape = tuple(value.shape())
    bits = (c_uint16 * prod(shape)).from_address(value.data_ptr())
    return np.frombuffer(bits, ml_dtypes.bfloat16).reshape(shape).copy()


def copied(tensor: Tensor, device: str = HOST) -> Tensor:
    """The same numbers on a device in memory of their own, which a session may write into."""
    value = onnx_runtime().OrtValue.ortvalue_from_shape_and_type(tensor.array.shape, tensor.array.dtype, device)
    value.update_inplace(tensor.array)
    return Tensor(value)


def apart(value: Any) -> Tensor:
    """A tensor that a session made on a processor, in memory of its own: what stays in an arena keeps all of the block
    that it lies in, which may have been made for something larger, and what a session without one made keeps the
    weights that were packed there. Only those are moved that can be large."""
    if value.data_type() not in FLOATS:
        return Tensor(value)
    return _of_array(value.numpy().copy())


def on_host(value: Any) -> Any:
    """A value as Python has it: the numbers of a `Tensor`, and all else as it is."""
    return value.array if isinstance(value, Tensor) else value


def largest_first(given: Sequence[Iterable[Any]]) -> list[int]:
    """In which order to run a graph on tensors of several sizes, by their number: what a larger run took of an arena
    has room for a smaller one, and not the other way round."""
    sizes = [sum(prod(getattr(value, "shape", ())) for value in values) for values in given]
    return sorted(range(len(sizes)), key=lambda k: -sizes[k])
