"""Every parameter of a rewritten graph beside the slice of the original's that it has to be: an account of its own.

It goes by uses (this input of that node) and by masks over whole tensors, where `rewrite` and `slicing` go by
parameters and indices: what one of them gets wrong the other does not. Knows a trace and what was kept, no importance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxprune.errors import CheckFailed
from onnxprune.model import Model, Weight, every_node, scopes
from onnxprune.trace import Block, Cells, Mask, Trace, kept_shape

SLAB = 1 << 20
"""Bytes of rows that are compared at a time."""
SIZES = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
"""What an edit writes: sizes, positions and masks."""
DIFFERS = "the pruned model differs from the original"


@dataclass(frozen=True)
class Source:
    """What a parameter of a rewritten graph has to be: what is kept of `blocks` in `parameter` of the original. cells:
    what the blocks count, where it is not elements."""

    parameter: str
    blocks: tuple[Block, ...]
    cells: Cells | None = None

    def dims(self, shape: Sequence[int], kept: Mask) -> list[int]:
        """How much is kept along each axis of a parameter of this shape, or of its cells."""
        shape = shape if self.cells is None else self.cells.shape
        expected = list(shape)
        vectors, _ = _masks(self.blocks, shape, kept)
        for b in self.blocks:
            sizes = kept_shape(b.ids, kept) or ()
            for k, (axis, size) in enumerate(zip(b.axes, sizes, strict=False)):
                if not (b.coarse and k == 0):
                    expected[axis] = size
        return [int(vectors[k].sum()) if k in vectors else n for k, n in enumerate(expected)]

    def of(self, array: NDArray[Any], kept: Mask) -> NDArray[Any]:
        """What is kept of the values of the parameter, as a file has it."""
        dims = self.dims(array.shape, kept)
        found = kept_of(cells_of(array, self.cells), self.blocks, kept).reshape(dims)
        return found if self.cells is None else self.cells.stored(found)


@dataclass(frozen=True)
class Compared:
    """sources: of each parameter, by name. same: how many are the slices that they have to be. differing: whose shapes
    fit, and whose values are others: refitted, or wrong. added: what no use in the original has, such as the biases
    of a refit."""

    sources: Mapping[str, Source]
    same: int
    differing: tuple[str, ...]
    added: tuple[str, ...]


def compared(trace: Trace, kept: Mask, model: Model) -> Compared:
    """Every parameter of `model`, compared with its slice a few rows at a time.

    CheckFailed where one has not the shape or type of its slice, stands for uses that need different positions, or is
    nobody's."""
    reads = _Reads.of(trace, kept, model)
    found = reads.sources
    same, differing = 0, []
    for name, weight in model.weights.items():
        source = found.get(name)
        if source is None:
            if reads.expected(name):
                continue
            if name not in trace.model.weights:
                raise CheckFailed(f"{DIFFERS}: its parameter '{name}' is none of it")
            source = found[name] = Source(name, ())
        own = trace.model.weights[source.parameter]
        if weight is not own or source.blocks:
            _check_shape(name, weight, own, source, kept)
            if not _equal(weight, own, source, kept):
                differing.append(name)
                continue
        same += 1
    return Compared(found, same, tuple(differing), tuple(sorted(reads.added)))


@dataclass
class _Reads:
    """Where each parameter of a rewritten graph is read, beside what the original reads there. sources: of every
    parameter that a node reads where the original reads one. edited: names of the constants that edits wrote. added:
    those of float parameters that nodes read where they read nothing in the original."""

    trace: Trace
    kept: Mask
    model: Model
    sources: dict[str, Source] = field(default_factory=dict)
    edited: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, trace: Trace, kept: Mask, model: Model) -> _Reads:
        """Those of every node, and of what is an output as it is."""
        found = cls(trace, kept, model)
        uses, everywhere = _blocks(trace)
        originals = {node.name: (index, node) for index, node in enumerate(trace.nodes)}
        for node in every_node(model.skeleton.graph):
            index, before = originals.get(node.name, (-1, None))
            for i, name in enumerate(node.input):
                if name in model.weights:
                    was = before.input[i] if before is not None and i < len(before.input) else ""
                    blocks, cells = uses.get((index, i), (everywhere.get(was, ()), None))
                    cut = tuple(b for b in blocks if not kept[b.ids].all())
                    own = (
                        Source(was, cut) if cells is None or not cut else Source(was, *cells.together(cut, kept)[::-1])
                    )
                    found._read(node, name, own, before is None)
        for scope in scopes(model.skeleton.graph):
            for out in scope.graph.output:
                if out.name in model.weights and out.name in trace.model.weights:
                    found._note(out.name, Source(out.name, ()))
        return found

    def _read(self, node: NodeProto, name: str, source: Source, new: bool) -> None:
        """`node` reads parameter `name` where the original reads `source`, "" for nothing; new: the original has no
        such node."""
        held = self.trace.model.weights
        if self._written(name) and not source.blocks:
            self.edited.add(name)
        elif source.parameter in held:
            self._note(name, source)
        elif not new and not source.parameter:
            self.added.add(name)
        elif name not in held:
            raise CheckFailed(f"{DIFFERS}: its node '{node.name}' reads '{name}', which is none of its parameters")

    def _written(self, name: str) -> bool:
        return name not in self.trace.model.weights and self.model.weights[name].onnx_type in SIZES

    def _note(self, name: str, source: Source) -> None:
        """One parameter may be read in many places, which all have to need the same of it."""
        known = self.sources.setdefault(name, source)
        shape = self.trace.model.weights[source.parameter].shape if source.cells is None else source.cells.shape
        same = (known.parameter, known.cells) == (source.parameter, source.cells)
        if not same or not _keep_the_same(known.blocks, source.blocks, shape, self.kept):
            raise CheckFailed(f"{DIFFERS}: its parameter '{name}' is read where other positions are needed, too")

    def expected(self, name: str) -> bool:
        """Whether a parameter without a source may be there."""
        return name in self.edited or name in self.added or self._written(name)


def _blocks(
    trace: Trace,
) -> tuple[dict[tuple[int, int], tuple[tuple[Block, ...], Cells | None]], dict[str, tuple[Block, ...]]]:
    """The blocks of parameters by use, with what they count, and of those that are alike in all uses by name."""
    uses: dict[tuple[int, int], tuple[tuple[Block, ...], Cells | None]] = {}
    everywhere: dict[str, tuple[Block, ...]] = {}
    for s in trace.slices.values():
        if not s.uses:
            everywhere[s.parameter] = s.blocks
        uses |= dict.fromkeys(s.uses, (s.blocks, s.cells))  # of two, the later one is what its operator knows better
    return uses, everywhere


def _keep_the_same(one: Sequence[Block], two: Sequence[Block], shape: Sequence[int], kept: Mask) -> bool:
    """Whether two sets of blocks keep the same positions; most are the same blocks."""
    if len(one) == len(two) and all(a.axes == b.axes and a.ids is b.ids for a, b in zip(one, two, strict=True)):
        return True
    vectors, others = zip(*(_masks(blocks, shape, kept) for blocks in (one, two)), strict=True)
    full = [{k: v.get(k, np.ones(n, bool)) for k, n in enumerate(shape)} for v in vectors]
    if not any(others):
        return all(np.array_equal(full[0][k], full[1][k]) for k in full[0])
    masks = []
    for rest, lines in zip(others, full, strict=True):
        mask = np.ones(shape, bool)
        for part in (*rest, *(v.reshape([-1 if j == k else 1 for j in range(len(shape))]) for k, v in lines.items())):
            mask &= part
        masks.append(mask)
    return np.array_equal(masks[0], masks[1])


def _check_shape(name: str, weight: Weight, own: Weight, source: Source, kept: Mask) -> None:
    expected = source.dims(own.shape, kept)
    if source.cells is not None:
        expected = list(source.cells.stored_shape(expected))
    if weight.onnx_type != own.onnx_type or list(weight.shape) != expected:
        raise CheckFailed(
            f"{DIFFERS}: its parameter '{name}' has shape {list(weight.shape)}, where {expected} of "
            f"'{source.parameter}' {list(own.shape)} are kept"
        )


def _equal(weight: Weight, own: Weight, source: Source, kept: Mask) -> bool:
    """Byte by byte, and a few rows at a time; what was read of files is let go of."""
    cells = None if source.cells is None else source.cells.sized(source.dims(own.shape, kept))
    ours, theirs = cells_of(weight.array(), cells).reshape(-1), cells_of(own.array(), source.cells)
    at, equal = 0, True
    for part in kept_slabs(theirs, source.blocks, kept):
        mine = ours[at : at + part.size]
        if mine.size != part.size or not _same_bytes(mine, part):
            equal = False
            break
        at += part.size
    del theirs
    own.release()
    weight.release()
    return equal and at == ours.size


def cells_of(array: NDArray[Any], cells: Cells | None) -> NDArray[Any]:
    """The elements of a parameter, or its cells, which are read bit by bit here."""
    if cells is None:
        return array
    rows, places = array.reshape(*cells.shape[:-1], -1), np.arange(cells.shape[-1]) // cells.run
    if not cells.bits:
        return rows.take(places, -1)
    single = np.unpackbits(rows, axis=-1, bitorder="little")
    each = single.reshape(*single.shape[:-1], -1, cells.bits).take(places, -2)
    return np.packbits(each, axis=-1, bitorder="little")[..., 0]


def _same_bytes(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.dtype == object or b.dtype == object:
        return list(a) == list(b)
    return a.dtype == b.dtype and bool((a.view(np.uint8) == np.ascontiguousarray(b).view(np.uint8)).all())


def kept_slabs(array: NDArray[Any], blocks: Sequence[Block], kept: Mask) -> Iterator[NDArray[Any]]:
    """What is kept of `blocks` in `array`, in order and flat, a few rows at a time."""
    vectors, others = _masks(blocks, array.shape, kept)
    rows = max(1, SLAB // max(1, array[:1].nbytes)) if array.ndim else 1
    for k in range(0, len(array) if array.ndim else 1, rows):
        part = array[k : k + rows] if array.ndim else array
        masks = [m[k : k + rows] if m.shape[0] > 1 else m for m in others]
        for axis, mask in vectors.items():
            own = mask[k : k + rows] if axis == 0 else mask
            part = part.compress(own, axis)
            masks = [m.compress(own, axis) if m.shape[axis] > 1 else m for m in masks]
        if masks:
            whole = np.broadcast_to(np.logical_and.reduce(np.broadcast_arrays(*masks)), part.shape)
            part = part[whole]
        yield part.reshape(-1)


def kept_of(array: NDArray[Any], blocks: Sequence[Block], kept: Mask) -> NDArray[Any]:
    """As `kept_slabs`, all of it."""
    return np.concatenate([np.zeros(0, array.dtype), *kept_slabs(array, blocks, kept)])


def _masks(blocks: Sequence[Block], shape: Sequence[int], kept: Mask) -> tuple[dict[int, Mask], list[Mask]]:
    """What blocks over one axis keep of it, by axis, and the masks of the others, broadcastable to `shape`."""
    vectors: dict[int, Mask] = {}
    others = []
    for b in blocks:
        if b.ids.ndim == 1:
            axis = b.axes[0]
            mask = np.repeat(kept[b.ids], shape[axis] // b.ids.size)
            vectors[axis] = vectors[axis] & mask if axis in vectors else mask
        else:
            others.append(kept[b.spread(shape)])
    return vectors, others
