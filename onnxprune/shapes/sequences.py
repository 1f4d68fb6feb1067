"""Sequences of tensors: which tensors are in each, where that is known before anything runs, and what is taken out.

A sequence holds names: of the tensors that were put in, or, of parts that a node cuts and of weights, names that no
tensor of the graph has ("s[0]"), under which their types stand. An optional is a sequence of what is in it. Knows
names, types and small values, no ids.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import numpy as np
from onnx import TensorProto

from onnxprune.model import attribute
from onnxprune.shapes.known import Pass
from onnxprune.shapes.node_record import NodeRecord
from onnxprune.shapes.node_view import SymbolicDims
from onnxprune.shapes.symbolic_values import Value
from onnxprune.shapes.symbols import Dim

Names = tuple[str, ...]
Get = Callable[[str], Value | None]
MOST_PARTS = 1 << 12
"""Tensors that a sequence is followed with."""
FOLLOWED = frozenset([
    "SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceAt",
    "SequenceLength", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
])  # fmt: skip


def follow(node: NodeRecord, state: Pass, value: Get, weights: Container[str]) -> None:
    """Add to `state` what a node puts into a sequence, or what it takes out of one; nothing where that is not known."""
    out = node.outputs[0] if node.outputs else ""
    given = state.sequences.get(node.inputs[0]) if node.inputs else None
    state.sequences.pop(out, None)  # of a body that was gone through before
    if node.op in ("SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase"):
        names = _made(node, given, state, value)
        if names is not None and len(names) <= MOST_PARTS:
            state.sequences[out] = tuple(_own(out, k, n, state, weights) for k, n in enumerate(names))
    elif node.op == "Optional" and node.inputs:
        whole = given if isinstance(state.types.get(node.inputs[0]), bytes) else node.inputs[:1]
        if whole is not None:
            state.sequences[out] = tuple(_own(out, k, n, state, weights) for k, n in enumerate(whole))
    elif given is not None:
        _taken(node, out, given, state, value)


def position(at: Value | None, count: int) -> int | None:
    """A position in a sequence of `count`, from the front; None where it is not known, or none of its positions."""
    k = _number(at)
    return None if k is None or not -count <= k < count else k % count


def _number(value: Value | None) -> int | None:
    return int(value.data.ravel()[0]) if value is not None and value.whole and value.data.size == 1 else None


def _own(sequence: str, k: int, name: str, state: Pass, weights: Container[str]) -> str:
    """The name under which a tensor is in a sequence: a weight that is put there is a copy."""
    if name not in weights:
        return name
    copy = f"{sequence}[{k}]"
    state.types[copy] = state.types[name]
    return copy


def _made(node: NodeRecord, given: Names | None, state: Pass, value: Get) -> Sequence[str] | None:
    """What the sequence that a node makes holds; `given`: the sequence that it is made from, where there is one."""
    if node.op == "SplitToSequence":
        return _parts(node, state, value)
    if node.op in ("SequenceConstruct", "SequenceEmpty"):
        return node.inputs
    return None if given is None else _changed(node, given, value)


def _changed(node: NodeRecord, given: Names, value: Get) -> Sequence[str] | None:
    """SequenceInsert, SequenceErase: a tensor more or less, at the end where no position is told."""
    inserts = node.op == "SequenceInsert"
    told = node.inputs[2:] if inserts else node.inputs[1:]
    k: int | None = len(given) - (not inserts)
    if any(told):
        k = position(value(told[0]), len(given))
        if inserts and k is None and _number(value(told[0])) == len(given):
            k = len(given)
    if k is None or k < 0:
        return None
    return [*given[:k], *node.inputs[1:2], *given[k:]] if inserts else [*given[:k], *given[k + 1 :]]


def _parts(node: NodeRecord, state: Pass, value: Get) -> Sequence[str] | None:
    dims, kind = state.sizes(node.inputs[0]), state.types.get(node.inputs[0])
    axis = int(attribute(node.proto, "axis", 0))
    if dims is None or not isinstance(kind, tuple) or not -len(dims) <= axis < len(dims):
        return None
    axis %= len(dims)
    n = dims[axis]
    lengths = _lengths(node, n, value)
    if not isinstance(n, int) or lengths is None or sum(lengths) != n or len(lengths) > MOST_PARTS:
        return None
    gone = not attribute(node.proto, "keepdims", 1) and not _sizes_listed(node, value)
    if gone and set(lengths) != {1}:
        return None
    for k, length in enumerate(lengths):
        rest = dims[:axis] + (() if gone else (length,)) + dims[axis + 1 :]
        state.give(f"{node.outputs[0]}[{k}]", (kind[0], rest))
    return [f"{node.outputs[0]}[{k}]" for k in range(len(lengths))]


def _sizes_listed(node: NodeRecord, value: Get) -> bool:
    """Whether the parts have a list of sizes: only then ONNX Runtime does not ask for `keepdims`."""
    split = value(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    return split is not None and split.data.ndim > 0


def _lengths(node: NodeRecord, n: Dim | None, value: Get) -> list[int] | None:
    """How many positions go into each part; None where that is not known."""
    if not isinstance(n, int):
        return None
    if len(node.inputs) < 2 or not node.inputs[1]:
        return [1] * n
    split = value(node.inputs[1])
    if split is None or not split.whole:
        return None
    if split.data.ndim:
        return [int(x) for x in split.data]
    each = int(split.data)
    return [min(each, n - k) for k in range(0, n, each)] if each > 0 else None


def _taken(node: NodeRecord, out: str, given: Names, state: Pass, value: Get) -> None:
    if node.op in ("SequenceLength", "OptionalHasElement"):
        counted = node.op == "SequenceLength"
        state.values[out] = Value.of(np.array(len(given)) if counted else np.array(bool(given)))
        state.types[out] = (TensorProto.INT64 if counted else TensorProto.BOOL, ())
    elif node.op == "ConcatFromSequence":
        dims, kind = _joined(node, [state.sizes(name) for name in given]), state.types.get(given[0]) if given else None
        if dims is not None and isinstance(kind, tuple):
            state.give(out, (kind[0], dims))
    elif node.op == "OptionalGetElement" and isinstance(state.types.get(out), bytes):
        state.sequences[out] = given
    else:
        k = position(value(node.inputs[1]), len(given)) if node.op == "SequenceAt" else len(given) - 1
        kind = state.types.get(given[k]) if k is not None and 0 <= k < len(given) else None
        if kind is not None:
            state.types[out] = kind


def _joined(node: NodeRecord, parts: Sequence[SymbolicDims | None]) -> SymbolicDims | None:
    """The dims of parts that are put side by side, on an axis of theirs or on a new one."""
    known = [d for d in parts if d is not None]
    if len(known) < len(parts) or not known or len({len(d) for d in known}) > 1:
        return None
    new = bool(attribute(node.proto, "new_axis", 0))
    first, axis = known[0], int(attribute(node.proto, "axis", 0)) % (len(known[0]) + new)
    if new:
        return (*first[:axis], len(known), *first[axis:])
    total: Dim | None = 0
    for dims in known:
        n = dims[axis]
        total = None if total is None or n is None else total + n
    rest = [next((d[k] for d in known if isinstance(d[k], int)), first[k]) for k in range(len(first))]
    return (*rest[:axis], total, *rest[axis + 1 :])
