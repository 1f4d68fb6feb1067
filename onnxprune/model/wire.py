"""ONNX files as protobuf lays them out: read without, and written around, the bytes of the initializers.

A protobuf message is a row of fields: a number that says which field it is and how long, then its value. So the bytes
of a weight can be left out of what is parsed, and a file can be written without ever being whole in memory. Knows
bytes, no operator.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, TensorProto

from onnxprune.model.weight import Weight

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Numbers of the fields ModelProto.graph, GraphProto.initializer and TensorProto.raw_data."""
SMALL = 4096
"""Tensors of fewer bytes stay where they are."""
_BYTES = 2
"""The wire type of what has a length."""


class UnsupportedEncoding(Exception):
    """Not what a serialiser of today writes; protobuf itself has to say what it is."""


@dataclass
class Skeleton:
    """A model without the raw data of large initializers; `held`: (begin, end) of it by index of the initializer."""

    data: bytes = b""
    held: dict[int, tuple[int, int]] = field(default_factory=dict)


def skeleton(file: mmap.mmap) -> Skeleton:
    """The model in a file without the raw data of its large initializers; UnsupportedEncoding where it is not written
    as a serialiser of today writes it."""
    found = Skeleton()
    seen = 0

    def graph(begin: int, end: int) -> bytes:
        """The bytes of ModelProto.graph, of which there may be several to be merged: initializers are counted on."""
        nonlocal seen
        parts, copied = [], begin
        for number, start, inner, stop in _fields(file, begin, end):
            if number == INITIALIZER:
                if stop - start > SMALL:
                    parts += [file[copied:start], _framed(INITIALIZER, _bare(file, inner, stop, found.held, seen))]
                    copied = stop
                seen += 1
        return b"".join((*parts, file[copied:end]))

    parts, copied = [], 0
    for number, start, inner, stop in _fields(file, 0, len(file)):
        if number == GRAPH:
            parts += [file[copied:start], _framed(GRAPH, graph(inner, stop))]
            copied = stop
    found.data = b"".join((*parts, file[copied:]))
    return found


def _bare(file: mmap.mmap, begin: int, end: int, held: dict[int, tuple[int, int]], index: int) -> bytes:
    """The bytes of an initializer without its raw data, of which `held` learns where it is."""
    parts, copied = [], begin
    for number, start, inner, stop in _fields(file, begin, end):
        if number == RAW_DATA:
            parts.append(file[copied:start])
            copied = stop
            held[index] = inner, stop
    return b"".join((*parts, file[copied:end]))


def _fields(file: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, where the field starts, where its value starts, where it ends) of every field that has a length."""
    while at < end:
        start = at
        key, at = _varint(file, at, end)
        number, wire = key >> 3, key & 7
        if wire == _BYTES:
            length, at = _varint(file, at, end)
            if at + length > end:
                raise UnsupportedEncoding
            yield number, start, at, at + length
            at += length
        elif wire == 0:
            _, at = _varint(file, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise UnsupportedEncoding
        if at > end or not number:
            raise UnsupportedEncoding


def _varint(file: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """(a number in base 128, lowest digits first, the high bit says that more follow; where it ends)."""
    value = shift = 0
    while at < end and shift < 64:
        byte = file[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise UnsupportedEncoding


def _number(value: int) -> bytes:
    """A number as `_varint` reads it."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _number(value >> 7)


def _head(number: int, length: int) -> bytes:
    """What stands before a value of `length` bytes."""
    return _number(number << 3 | _BYTES) + _number(length)


def _framed(number: int, value: bytes) -> bytes:
    return _head(number, len(value)) + value


def stream(proto: ModelProto, weights: Mapping[str, Weight], write: Callable[[bytes | memoryview], object]) -> None:
    """Write `proto`, whose initializers hold no bytes, with those of `weights`: one tensor at a time."""
    outer, inner = ModelProto(), GraphProto()
    outer.CopyFrom(proto)
    outer.ClearField("graph")
    inner.CopyFrom(proto.graph)
    inner.ClearField("initializer")
    rest = inner.SerializeToString()
    heads = [_initializer(tensor, weights[tensor.name]) for tensor in proto.graph.initializer]
    whole = len(rest) + sum(len(head) + length for head, length in heads)
    write(outer.SerializeToString() + _head(GRAPH, whole) + rest)
    for tensor, (head, length) in zip(proto.graph.initializer, heads, strict=True):
        write(head)
        if length:
            weight = weights[tensor.name]
            write(weight.raw() or b"")
            weight.release()


def _initializer(tensor: TensorProto, weight: Weight) -> tuple[bytes, int]:
    """An initializer up to its raw data, and the length of what has to follow."""
    if weight.nbytes < SMALL or not weight.plain:
        whole = TensorProto()
        whole.CopyFrom(tensor)
        weight.fill(whole)
        return _framed(INITIALIZER, whole.SerializeToString()), 0
    bare = tensor.SerializeToString()
    bare += _head(RAW_DATA, weight.nbytes)
    return _head(INITIALIZER, len(bare) + weight.nbytes) + bare, weight.nbytes
