"""Parameters behind expressions (Transpose, Cast, DequantizeLinear of a weight): read and write their value.

A refitted layer must go back into the file as the file keeps it: in half precision, transposed, or in quantisation
steps with the scales it has. Knows parameters and what stands between them and a layer, no units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from onnx import NodeProto

from onnxprune.model import Array, Model, Weight, attribute, traits


@dataclass(frozen=True)
class Parameter:
    """The tensor `name` as the value of `path` (outermost operator last) applied to the initializer `root`."""

    name: str
    root: str
    path: tuple[NodeProto, ...] = ()

    @property
    def roots(self) -> tuple[str, ...]:
        """The initializer."""
        return (self.root,)

    def read(self, model: Model) -> Array:
        """Its value, float64."""
        value = _float(model.weights[self.root].array()) if not self.path else model.weights[self.root].array()
        for node in self.path:
            value = _forward(node, value, model)
        return np.asarray(value, np.float64)

    def shape(self, model: Model) -> tuple[int, ...]:
        """Of its value, without reading it: only a transposition changes that of the initializer."""
        dims = model.weights[self.root].shape
        for node in self.path:
            dims = tuple(dims[k] for k in _perm(node, len(dims))) if node.op_type == "Transpose" else dims
        return tuple(dims)

    def write(self, model: Model, value: Array, root: str | None = None) -> None:
        """Store the nearest value that the initializer's type (and its scales) can hold, under `root` if given."""
        kind = model.weights[self.root].onnx_type
        for node in reversed(self.path):
            value = _backward(node, value, model)
        held = _held(value, model.weights[self.root].dtype)
        model.weights[root or self.root] = Weight.of(np.ascontiguousarray(held), kind)


def parameter(name: str, model: Model, made_by: Mapping[str, NodeProto]) -> Parameter | None:
    """The parameter that a tensor is, or None where it depends on an input or on an operator not known here."""
    path: list[NodeProto] = []
    tensor = name
    while tensor not in model.weights:
        node = made_by.get(tensor)
        if node is None or node.op_type not in traits.CARRYING_PARAMETERS:
            return None
        if node.op_type == "DequantizeLinear" and any(n and n not in model.weights for n in node.input[1:]):
            return None
        path.append(node)
        tensor = node.input[0]
    if model.weights[tensor].dtype.kind not in "fiuV":
        return None
    return Parameter(name, tensor, tuple(reversed(path)))


def transposed_back(path: Iterable[NodeProto], value: Array) -> Array:
    """A value behind a path in the layout of what the path begins with."""
    for node in reversed(list(path)):
        value = value.transpose(np.argsort(_perm(node, value.ndim))) if node.op_type == "Transpose" else value
    return value


def _float(value: Array) -> Array:
    return value.astype(np.float64)


def _held(value: Array, dtype: np.dtype[Any]) -> Array:
    """The nearest values of a type, of four bits or half precision as of any other."""
    info: Any
    try:
        info, value = ml_dtypes.iinfo(dtype), np.rint(value)  # type: ignore[no-untyped-call]
    except ValueError:
        info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return np.clip(value, float(info.min), float(info.max)).astype(dtype)


def _perm(node: NodeProto, rank: int) -> list[int]:
    return list(attribute(node, "perm", range(rank)[::-1]))


def _scales(node: NodeProto, value: Array, model: Model) -> tuple[Array, Array]:
    """Scale and zero point, broadcastable to the value."""
    parts = [_float(model.weights[n].array()) for n in node.input[1:] if n]
    scale, zero = parts[0], parts[1] if len(parts) > 1 else np.zeros(())
    if block := int(attribute(node, "block_size", 0)):
        axis = int(attribute(node, "axis", 1))
        places = np.arange(value.shape[axis]) // block
        return scale.take(places, axis), np.broadcast_to(zero, scale.shape).take(places, axis)
    if scale.ndim != 1 or scale.size == 1:
        return scale.reshape(()) if scale.size == 1 else scale, zero.reshape(()) if zero.size == 1 else zero
    shape = [1] * value.ndim
    shape[int(attribute(node, "axis", 1))] = -1
    return scale.reshape(shape), zero.reshape(shape) if zero.ndim else zero


def _forward(node: NodeProto, value: Array, model: Model) -> Array:
    if node.op_type == "Transpose":
        return value.transpose(_perm(node, value.ndim))
    if node.op_type == "DequantizeLinear":
        scale, zero = _scales(node, value, model)
        return (_float(value) - zero) * scale
    return _float(value)


def _backward(node: NodeProto, value: Array, model: Model) -> Array:
    if node.op_type == "Transpose":
        return value.transpose(np.argsort(_perm(node, value.ndim)))
    if node.op_type == "DequantizeLinear":
        scale, zero = _scales(node, value, model)
        return np.divide(value, scale, out=np.zeros(value.shape), where=scale != 0) + zero
    return value
