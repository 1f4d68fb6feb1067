"""Parameters behind expressions (Transpose, Cast, DequantizeLinear of a weight): read and write their value.

A refitted layer must go back into the file as the file keeps it: in half precision, transposed, or in quantisation
steps with the scales it has. Knows parameters and what stands between them and a layer, no units.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from onnx import NodeProto

from onnxprune.model import Array, Model, Weight, attribute, traits

CODED = "coded"
"""The name of a DequantizeLinear that no graph has: an operator that reads integers does as much."""


@dataclass(frozen=True)
class Grid:
    """The values that integers can hold: multiples of `step` from `low` to `high`, all broadcastable to a weight."""

    step: Array
    low: Array
    high: Array

    def map(self, change: Callable[[Array], Array]) -> Grid:
        """With each of the three changed by a linear map; a negative factor turns low and high round."""
        step, low, high = (change(x) for x in (self.step, self.low, self.high))
        return Grid(np.abs(step), np.minimum(low, high), np.maximum(low, high))

    def nearest(self, value: Array) -> Array:
        """The values of the grid nearest to these."""
        steps = np.rint(np.divide(value, self.step, out=np.zeros(value.shape), where=self.step != 0))
        return np.asarray(np.clip(steps * self.step, self.low, self.high))


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

    @property
    def key(self) -> Hashable:
        """Equal for the same initializer."""
        return self.root

    def read(self, model: Model) -> Array:
        """Its value, float64."""
        value = _float(model.weights[self.root].array()) if not self.path else model.weights[self.root].array()
        for node in self.path:
            value = _forward(node, value, model)
        return np.asarray(value, np.float64)

    def grid(self, model: Model) -> Grid | None:
        """The values that can be stored, by the scales with which an operator reads the integers; None where it reads
        floats."""
        if not self.path or self.path[-1].name != CODED:
            return None
        codes = model.weights[self.root].array()
        for node in self.path[:-1]:
            codes = _forward(node, codes, model)
        scale, zero = _scales(self.path[-1], codes, model)
        least, most = _reach(codes, zero)
        parts = (np.broadcast_to(x, codes.shape) for x in (scale, (least - zero) * scale, (most - zero) * scale))
        return Grid(*parts)

    def rescaled(self, model: Model, value: Array) -> tuple[str, Weight] | None:
        """The parameter that holds the scales and what it has to hold, so that every channel of `value` just fits;
        None where there are none, or one is for all."""
        grid = self.grid(model)
        if grid is None:
            return None
        step = self.path[-1]
        scale = model.weights[step.input[1]]
        if scale.size == 1 or len(scale.shape) > 1:
            return None
        axis = int(attribute(step, "axis", 0))
        parts = [np.divide(value, x, out=np.zeros(value.shape), where=x != 0) for x in (grid.low, grid.high)]
        rest = tuple(k for k in range(value.ndim) if k != axis)
        factor = np.maximum(*parts).max(axis=rest)
        new = np.where(factor > 0, factor, 1.0) * _float(scale.array())
        return step.input[1], Weight.of(new.astype(scale.dtype), scale.onnx_type)

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
        model.put(root or self.root, stored(value, model.weights[self.root].dtype), kind)


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


def _reach(codes: Array, zero: Array) -> tuple[float, float]:
    """The least and the largest code to be used: those of the type; seven bits, and no -128, where it is so already (a
    quantiser that keeps to these has a runtime in mind whose sums overflow)."""
    info = _whole(codes.dtype)
    wide = codes.astype(np.int64) - zero.astype(np.int64)
    half = (int(info.max) - int(info.min) + 1) // 4
    if zero.size == 1 and codes.size and np.abs(wide).max() <= half:
        return float(zero.ravel()[0] - half), float(zero.ravel()[0] + half)
    least = int(info.min)
    return float(least + (least < 0 and int(codes.min(initial=0)) > least)), float(info.max)


def _float(value: Array) -> Array:
    return value.astype(np.float64)


def stored(value: Array, dtype: np.dtype[Any]) -> Array:
    """The nearest values of a type, of four bits or half precision as of any other, as they lie in a file."""
    info = _whole(dtype)
    value, info = (value, ml_dtypes.finfo(dtype)) if info is None else (np.rint(value), info)  # type: ignore
    return np.ascontiguousarray(np.clip(value, float(info.min), float(info.max)).astype(dtype))


def _whole(dtype: np.dtype[Any]) -> Any:
    """The limits of a type of integers, of four bits as of any other; None for floats."""
    try:
        return ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    except ValueError:
        return None


def _perm(node: NodeProto, rank: int) -> list[int]:
    return list(attribute(node, "perm", range(rank)[::-1]))


def _scales(node: NodeProto, value: Array, model: Model) -> tuple[Array, Array]:
    """Scale and zero point, broadcastable to the value. Further inputs are scales that all of it has in common."""
    names = [*node.input[1:], ""]
    scale, zero = (_float(model.weights[n].array()) if n else np.zeros(()) for n in names[:2])
    for name in node.input[3:]:
        scale = scale * _float(model.weights[name].array()).reshape(())
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
