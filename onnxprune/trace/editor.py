"""What an operator's edit may do to its own node in the rewritten graph: sizes, bounds, indices, attributes.

Knows that node and the kept ids of its tensors, no importance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import Model, Weight, opset
from onnxprune.trace.labels import Block, Ids, Mask, kept_shape, positions
from onnxprune.trace.tracing import Trace


def new_dims(dims: Sequence[int | None], blocks: Sequence[Block], kept: Mask) -> list[int | None]:
    """The static dims of a tensor after pruning."""
    out = list(dims)
    for b in blocks:
        shape = kept_shape(b.ids, kept)
        for axis, n, m in zip(b.axes, b.ids.shape, shape or b.ids.shape, strict=True):
            if out[axis] == n or dims[axis] == n:
                out[axis] = m
    return out


@dataclass
class Editor:
    """What an operator's edit may do to its own node: sizes of its tensors after pruning, and small changes."""

    trace: Trace
    mask: Mask
    model: Model
    index: int
    node: NodeProto
    before: list[NodeProto]
    after: list[NodeProto]
    gone: set[int] = field(default_factory=set)

    def kept(self, ids: Ids) -> Mask:
        return self.mask[ids]

    def _original(self) -> NodeProto:
        return self.trace.nodes[self.index]

    def in_shape(self, i: int) -> list[int | None]:
        name = self._original().input[i]
        return new_dims(self.trace.shapes.static(name) or (), self.trace.of(name, (self.index, i)), self.mask)

    def out_shape(self, i: int) -> list[int | None]:
        name = self._original().output[i]
        return new_dims(self.trace.shapes.static(name) or (), self.trace.blocks.get(name, ()), self.mask)

    def in_size(self, i: int, axis: int) -> int:
        size = self.in_shape(i)[axis]
        assert size is not None, "a labelled axis is static"
        return size

    def attr(self, name: str, value: Any) -> None:
        for k, a in enumerate(self.node.attribute):
            if a.name == name:
                if helper.get_attribute_value(a) == value:
                    return
                del self.node.attribute[k]
                break
        self.node.attribute.append(helper.make_attribute(name, value))

    def const(self, i: int, array: NDArray[Any], onnx_type: int | None = None) -> None:
        """Input `i` becomes a constant of this node's own."""
        name = self.model.fresh_name(f"{self.node.name}_{i}_pruned")
        self.model.weights[name] = Weight.of(array, onnx_type)
        while len(self.node.input) <= i:
            self.node.input.append("")
        self.node.input[i] = name

    def where(self, i: int, mask: NDArray[np.bool_], new: NDArray[np.int64]) -> None:
        """Input `i`, computed at run time, is overridden where `mask` is set."""
        base = self.model.fresh_name(f"{self.node.name}_{i}_pruned")
        for suffix, array in (("_mask", mask), ("_new", new)):
            self.model.weights[base + suffix] = Weight.of(array)
        self.before.append(
            helper.make_node("Where", [base + "_mask", base + "_new", self.node.input[i]], [base], name=base)
        )
        self.node.input[i] = base

    def sizes(self, i: int, out: int, axes: Sequence[int] | None = None, one_fits: bool = False) -> None:
        """Input `i` lists the sizes of output `out` (of its `axes`): write the new ones."""
        name = self._original().output[out]
        old = list(self.trace.shapes.static(name) or ())
        new = self.out_shape(out)
        scale = self._scale(name, old)
        if old == new and not scale:
            return
        source = self._original().input[i]
        value = self.trace.shapes.value(source)
        dims = self.trace.shapes.static(source) or (None,)
        many = value.size if value is not None else dims[0] if dims[0] is not None else len(old)
        shift = len(old) - many if axes is None else 0
        where = list(axes) if axes is not None else [k + shift for k in range(many)]
        mask = np.array([old[a] != new[a] for a in where], bool)
        if value is not None:
            fits = one_fits & (np.asarray(value).ravel() == 1)
            sizes = np.array(
                [new[a] or 0 if m and not f else v for a, m, f, v in zip(where, mask, fits, value.ravel(), strict=True)]
            )
            self.const(i, sizes.astype(np.int64))
            return
        known = self.trace.shapes.partial(source)
        inferred = [known is not None and bool(known[1][k]) and known[0][k] <= 0 for k in range(many)]
        factors = [(1, 1) if skip else scale.get(a, (1, 1)) for a, skip in zip(where, inferred, strict=True)]
        if any(f != (1, 1) for f in factors):
            self.times(i, factors)
        if mask.any():
            self.where(i, mask, np.array([new[a] or 0 for a in where], np.int64))

    def _scale(self, name: str, dims: Sequence[int | None]) -> dict[int, tuple[int, int]]:
        """Of a tensor's axes of run-time size: by what a periodic block shrinks them, as (new, old)."""
        out: dict[int, tuple[int, int]] = {}
        for b in self.trace.of(name):
            shape = kept_shape(b.ids, self.mask) or b.ids.shape
            out |= {a: (m, n) for a, n, m in zip(b.axes, b.ids.shape, shape, strict=True) if dims[a] is None and m != n}
        return out

    def times(self, i: int, factors: Sequence[tuple[int, int]]) -> None:
        """Input `i`, computed at run time, is multiplied by the fractions (numerator, denominator)."""
        self.node.input[i] = self._fraction(self.node.input[i], f"{self.node.name}_{i}_scaled", factors, self.before)

    def reindex(self, i: int, axis: int, kept: Ids, places: Ids, period: int) -> None:
        """Of input `i`, indices into an axis that repeats `places.size` positions, those that are `kept` along `axis`;
        a position moves to that in `places`, and `period` of them repeat from now on."""
        base = self.model.fresh_name(f"{self.node.name}_{i}_reindexed")
        values = {"_kept": kept, "_old": np.int64(places.size), "_new": np.int64(period), "_places": places}
        for suffix, array in values.items():
            self.model.weights[base + suffix] = Weight.of(np.asarray(array, np.int64))
        steps: Sequence[tuple[str, list[str], str, dict[str, Any]]] = (
            ("Gather", [self.node.input[i], base + "_kept"], "_picked", {"axis": axis}),
            ("Cast", [base + "_picked"], "_long", {"to": TensorProto.INT64}),
            ("Mod", [base + "_long", base + "_old"], "_place", {}),
            ("Gather", [base + "_places", base + "_place"], "_moved", {}),
            ("Div", [base + "_long", base + "_old"], "_turn", {}),
            ("Mul", [base + "_turn", base + "_new"], "_start", {}),
            ("Add", [base + "_start", base + "_moved"], "", {}),
        )
        for op_type, inputs, suffix, attributes in steps:
            self.before.append(
                helper.make_node(op_type, inputs, [base + suffix], name=base + (suffix or "_sum"), **attributes)
            )
        self.node.input[i] = base

    def _fraction(self, source: str, base: str, factors: Sequence[tuple[int, int]], nodes: list[NodeProto]) -> str:
        base = self.model.fresh_name(base)
        for suffix, part in (("_by", 0), ("_over", 1)):
            self.model.weights[base + suffix] = Weight.of(np.array([f[part] for f in factors], np.int64))
        nodes.append(helper.make_node("Mul", [source, base + "_by"], [base + "_wide"], name=base + "_wide"))
        nodes.append(helper.make_node("Div", [base + "_wide", base + "_over"], [base], name=base))
        return base

    def pin(self, out: int, mask: Mask, sizes: NDArray[np.int64]) -> None:
        """Output `out` (of Shape) keeps telling the original's sizes where `mask` is set."""
        source = self._original().input[0]
        old = list(self.trace.shapes.static(source) or ())
        start = next((a.i for a in self.node.attribute if a.name == "start"), 0)
        end = next((a.i for a in self.node.attribute if a.name == "end"), len(old))
        axes = range(len(old))[start:end]
        scale = {a: (n, m) for a, (m, n) in self._scale(source, old).items() if a in axes}
        if old == self.in_shape(0) and not scale:
            return
        name = self.node.output[out]
        base = self.model.fresh_name(f"{name}_pinned")
        self.node.output[out] = base
        told = base
        if scale:
            told = self._fraction(base, base + "_scaled", [scale.get(a, (1, 1)) for a in axes], self.after)
        for suffix, array in (("_mask", mask), ("_old", sizes)):
            self.model.weights[base + suffix] = Weight.of(array)
        self.after.append(
            helper.make_node("Where", [base + "_mask", base + "_old", told], [name], name=base + "_where")
        )

    def squeeze_axes(self, axes: Sequence[int]) -> None:
        """Axes that were implied by their size one are spelled out: after pruning others may have that size."""
        if self.in_shape(0) != list(self.trace.shapes.static(self._original().input[0]) or ()):
            if opset(self.model) >= 13:
                self.const(1, np.array(axes, np.int64))
            else:
                self.attr("axes", list(axes))

    def split(self, axis: int) -> None:
        old = [(self.trace.shapes.static(n) or ())[axis] for n in self._original().output]
        new = [self.out_shape(k)[axis] if n else 0 for k, n in enumerate(self._original().output)]
        if old == new:
            return
        sizes = [int(n or 0) for n in new]
        if opset(self.model) >= 13:
            self._drop("num_outputs")
            self.const(1, np.array(sizes, np.int64))
        else:
            self.attr("split", sizes)

    def replace(self, nodes: Sequence[int], op_type: str, source: str, array: NDArray[np.int64], **attrs: Any) -> None:
        """`op_type` of `source` and a constant takes the place of `nodes`, of which this is the last: name, output and
        documentation are its own."""
        self.gone.update(nodes)
        node = NodeProto()
        node.CopyFrom(self.node)
        self.node = node
        self.after.append(node)
        node.op_type = op_type
        del node.attribute[:], node.input[1:]
        for name, value in attrs.items():
            self.attr(name, value)
        node.input[0] = source
        self.const(1, array)

    def _drop(self, name: str) -> None:
        for k, a in enumerate(self.node.attribute):
            if a.name == name:
                del self.node.attribute[k]
                return

    def along(self, block: Block, axis: int) -> NDArray[np.int64]:
        """Kept positions of a block along one axis (of the first kept row, where it is an inner one)."""
        k = block.axes.index(axis)
        where = positions(block.ids, self.mask)[k]
        return np.asarray(where.reshape(-1, where.shape[-1])[0], np.int64)

    def slice(self, axis: int, block: Block, at: Ids) -> None:
        """The Slice picked positions `at` of a labelled axis: new bounds, or a Gather where they are not regular."""
        alive = self.along(block, axis)
        if alive.size == block.ids.shape[block.axes.index(axis)]:
            return
        picked = np.flatnonzero(np.isin(alive, at)).astype(np.int64)
        if at.size > 1 and at[0] > at[-1]:
            picked = picked[::-1]
        gaps = np.diff(picked)
        if picked.size and (gaps == gaps[:1]).all() if gaps.size else picked.size:
            step = int(gaps[0]) if gaps.size else 1
            end = int(picked[-1]) + (1 if step > 0 else -1)
            self._bounds(axis, int(picked[0]), end if end >= 0 else -(1 << 31), step)
        else:
            self._bounds(axis, 0, (1 << 31) - 1, 1)
            name = self.node.output[0]
            base = self.model.fresh_name(f"{self.node.name}_picked")
            self.model.weights[base + "_at"] = Weight.of(picked)
            self.node.output[0] = base
            for later in self.after:
                later.input[:] = [base if x == name else x for x in later.input]
            self.after.insert(0, helper.make_node("Gather", [base, base + "_at"], [name], name=base, axis=axis))

    def _bounds(self, axis: int, start: int, end: int, step: int) -> None:
        node = self._original()
        if len(node.input) < 2:
            bounds = {a.name: list(helper.get_attribute_value(a)) for a in self.node.attribute}
            axes = [a % len(self.in_shape(0)) for a in bounds.get("axes", range(len(bounds["starts"])))]
            k = axes.index(axis)
            bounds["starts"][k], bounds["ends"][k] = start, end
            self.attr("starts", bounds["starts"])
            self.attr("ends", bounds["ends"])
            return
        axes_value = self.trace.shapes.value(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        rank = len(self.in_shape(0))
        dims = self.trace.shapes.static(node.input[1]) or (rank,)
        axes = [int(a) % rank for a in axes_value.ravel()] if axes_value is not None else list(range(dims[0] or rank))
        mask = np.array([a == axis for a in axes])
        for i, new in ((1, start), (2, end), (4, step)):
            if i == 4 and (len(node.input) <= 4 or not node.input[4]) and step == 1 and len(self.node.input) <= 4:
                continue
            if i == 4 and len(self.node.input) <= 4:
                if axes_value is None:
                    self.const(3, np.array(axes, np.int64))
                self.const(4, np.ones(len(axes), np.int64))
            source = self.node.input[i]
            held = self.model.weights.get(source)
            known = held.array() if held is not None else self.trace.shapes.value(source)
            if known is not None:
                kind = TensorProto.INT32 if known.dtype == np.int32 else TensorProto.INT64
                self.const(i, np.where(mask, new, known.ravel()).astype(known.dtype), kind)
            else:
                self.where(i, mask, np.where(mask, new, 0).astype(np.int64))

    def gather(self, axis: int, block: Block, index: NDArray[Any]) -> None:
        """Constant indices along a labelled axis become positions among what is kept."""
        alive = self.along(block, axis)
        n = block.ids.shape[block.axes.index(axis)]
        if alive.size == n:
            return
        to = np.full(n, -1, np.int64)
        to[alive] = np.arange(alive.size)
        new = to[np.asarray(index, np.int64) % n]
        shape = self.out_shape(0)[axis : axis + new.ndim]
        self.const(1, new[new >= 0].reshape([k or 1 for k in shape]).astype(index.dtype) if new.ndim else new)

    def pads(self, axes: Sequence[int], axis: int, lo: int, hi: int) -> None:
        k, n = list(axes).index(axis), len(axes)
        if len(self._original().input) < 2:
            name = "pads" if any(a.name == "pads" for a in self.node.attribute) else "paddings"
            pads = [int(p) for a in self.node.attribute if a.name == name for p in a.ints]
            pads[k], pads[k + n] = lo, hi
            self.attr(name, pads)
            return
        mask = np.zeros(2 * n, bool)
        mask[[k, k + n]] = True
        new = np.zeros(2 * n, np.int64)
        new[k], new[k + n] = lo, hi
        held = self.model.weights.get(self.node.input[1])
        known = held.array() if held is not None else self.trace.shapes.value(self._original().input[1])
        if known is not None:
            self.const(1, np.where(mask, new, known.ravel()).astype(np.int64))
        else:
            self.where(1, mask, new)
