"""Gates: one factor (or mask) for every unit, as inputs of the graph, wherever the unit is summed away.

The same places at which `masking.masked` puts zeros get a tensor that is fed from outside: the derivative by it says
what a unit is worth, and one session serves the masks of all units. Knows reductions and units, no loss.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.errors import UsageError
from onnxprune.model import FLOATS, Model, Weight
from onnxprune.shapes import Shapes
from onnxprune.trace import Block, Dims, Ids, Mask, Trace


@dataclass(frozen=True, eq=False)
class Gate:
    """One input of the gated graph. `ids` and `sample`: of every position, the id and the sample that it belongs to,
    both broadcastable to `shape`, which is broadcastable to the operand. `sample` is None where the operand has no
    axis of samples (a parameter)."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    ids: Ids
    sample: Ids | None

    def ones(self) -> NDArray[Any]:
        """What leaves everything as it is, [*shape]."""
        return np.ones(self.shape, self.dtype)

    def mask(self, kept: Mask) -> Mask:
        """False where the id is not kept, [*shape]."""
        return np.ascontiguousarray(np.broadcast_to(kept[self.ids], self.shape))

    def gathered(self, gradient: NDArray[Any], classes: Ids, samples: int, count: int) -> NDArray[np.float64]:
        """[samples, count]: what the positions of every sample and class add up to; without an axis of samples, all
        of it belongs to sample 0. gradient: [*shape]."""
        row = np.zeros(1, np.int64) if self.sample is None else self.sample
        at = np.broadcast_to(row * count + classes[self.ids], self.shape)
        sums = np.bincount(at.ravel(), gradient.ravel().astype(np.float64), samples * count)
        return np.asarray(sums.reshape(samples, count))


def insert(trace: Trace, model: Model, shapes: Shapes, wanted: Mask, axes: Mapping[str, int], samples: int, *,
           masks: bool = False) -> list[Gate]:  # fmt: skip
    """Put gates into `model`, whose nodes are those of the trace, at every reduction of kind 'sum' that holds an id of
    `wanted`; where several nodes read the same positions of a tensor, they share one.

    axes: the axis of samples of a tensor, if it has one. With `masks` the gates are boolean and select the operand or
    the value that stands for zero. Reductions of kind 'gather' (statistics over a labelled axis) get none: a factor
    there would leave the count of positions as it is, which is not what removing a unit does."""
    nodes = list(model.skeleton.graph.node)
    before: dict[int, list[NodeProto]] = defaultdict(list)
    made: dict[Hashable, str] = {}
    seen: set[Hashable] = set()
    gates: list[Gate] = []
    for r in trace.reductions:
        if r.kind != "sum" or r.block is None or not wanted[r.block.ids].any():
            continue
        place = (r.node, r.operand, r.block.axes, r.block.ids.shape, r.block.ids.tobytes())
        if place in seen:  # the same sum stated twice must not count twice
            continue
        seen.add(place)
        name = trace.model.skeleton.graph.node[r.node].input[r.operand]
        source = nodes[r.node].input[r.operand]
        key = (source, r.fill, *place[2:])
        if key not in made:
            out = model.fresh_name(name + "_gated")
            gate = _gate(trace, shapes, name, out + "_gate", r.block, None if masks else axes.get(name), samples, masks)
            gates.append(gate)
            made[key] = out
            if masks:
                fill = r.fill or _zero(model, out + "_zero", shapes.dtype(name) or TensorProto.FLOAT)
                before[r.node].append(helper.make_node("Where", [gate.name, source, fill], [out], name=out))
            else:
                before[r.node].append(helper.make_node("Mul", [source, gate.name], [out], name=out))
        nodes[r.node].input[r.operand] = made[key]
    ordered = [NodeProto.FromString(n.SerializeToString()) for k, node in enumerate(nodes) for n in (*before[k], node)]
    del model.skeleton.graph.node[:]
    model.skeleton.graph.node.extend(ordered)
    kinds = [(g, helper.np_dtype_to_tensor_dtype(g.dtype)) for g in gates]
    model.skeleton.graph.input.extend(helper.make_tensor_value_info(g.name, kind, g.shape) for g, kind in kinds)
    return gates


def _gate(
    trace: Trace, shapes: Shapes, name: str, gate: str, block: Block, axis: int | None, samples: int, masks: bool
) -> Gate:
    """The gate of one block of the tensor `name`, whose samples lie along `axis`."""
    kind = shapes.dtype(name)
    if not masks and kind not in FLOATS:
        raise UsageError(f"there is no derivative by the integers of {name!r}; use --criterion obs")
    dtype = np.dtype(bool) if masks else helper.tensor_dtype_to_np_dtype(kind or TensorProto.FLOAT)
    dims, ids = _spread(trace, shapes, name, block)
    if axis is None or samples < 2:
        return Gate(gate, ids.shape, dtype, ids, None)
    size = int(dims[axis] or samples)
    shape = tuple(size if k == axis else n for k, n in enumerate(ids.shape))
    sample = np.arange(size, dtype=np.int64) // (size // samples)
    return Gate(gate, shape, dtype, ids, sample.reshape([size if k == axis else 1 for k in range(ids.ndim)]))


def _spread(trace: Trace, shapes: Shapes, name: str, block: Block) -> tuple[Dims, Ids]:
    """The sizes of a tensor in the run, and the block's ids along all of its axes."""
    weight = trace.model.weights.get(name)
    if weight is not None:
        return weight.shape, block.spread(weight.shape)
    dims = shapes.probe[0].get(name) or ()
    static = trace.shapes.static(name) or ()
    # Periodic axes are written out to the sizes of the run.
    block = block.at([n if k is None else None for k, n in zip(static, dims, strict=True)])
    return dims, block.spread(dims)


def _zero(model: Model, name: str, kind: int) -> str:
    model.weights[name] = Weight.of(np.zeros((), helper.tensor_dtype_to_np_dtype(kind)), kind)
    return name


def sample_axes(shapes: Shapes, other: Shapes | None, samples: int, more: int) -> dict[str, int]:
    """The axis of every tensor that holds the samples: its size goes with their number (`shapes` is of a run with
    `samples`, `other` with `more` of them). Where only one number runs, the first axis that is a multiple of it: a
    guess, which whoever uses it has to check. Samples may be merged with other axes inside them (windows, heads)."""
    found: dict[str, int] = {}
    for name, dims in shapes.probe[0].items():
        if other is None:
            fits = [k for k, n in enumerate(dims) if n and n % samples == 0]
        else:
            second = other.probe[0].get(name)
            if second is None or len(second) != len(dims):
                continue
            fits = [k for k, (a, b) in enumerate(zip(dims, second, strict=True))
                    if a and b and a % samples == 0 and b * samples == a * more]  # fmt: skip
        if fits:
            found[name] = fits[0]
    return found
