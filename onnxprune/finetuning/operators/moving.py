"""Operators that move, pick, join or repeat elements, and those that speak of sizes. Knows tensors, no graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.finetuning.operators.call import Call, Form

Tensor = Any


def _reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    asked = list(call("shape") if shape is None else shape.tolist())
    if not call("allowzero", 0):
        asked = [x.shape[k] if d == 0 else d for k, d in enumerate(asked)]
    return x.reshape(asked)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call("axis", 1)
    rows = 1
    for d in x.shape[: axis if axis >= 0 else axis + x.dim()]:
        rows *= d
    return x.reshape(rows, x.numel() // rows if rows else 0)


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call("perm") or tuple(reversed(range(x.dim()))))


def _axes(call: Call, axes: Tensor | None) -> list[int] | None:
    found = call("axes") if axes is None else axes.tolist()
    return None if found is None else list(found)


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = _axes(call, axes)
    return x.squeeze() if found is None else x.squeeze(tuple(found))


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = _axes(call, axes) or []
    for axis in sorted(a % (x.dim() + len(found)) for a in found):
        x = x.unsqueeze(axis)
    return x


def _slice(
    call: Call, x: Tensor, starts: Tensor | None = None, ends: Tensor | None = None, axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:  # fmt: skip
    if starts is None or ends is None:
        first, last = list(call("starts")), list(call("ends"))
    else:
        first, last = starts.tolist(), ends.tolist()
    along = _axes(call, axes) or list(range(len(first)))
    for axis, start, end, step in zip(along, first, last, steps.tolist() if steps is not None else [1] * len(first),
                                      strict=True):  # fmt: skip
        if step > 0:
            size = x.shape[axis]
            start, end, _ = slice(start, end).indices(size)
            x = x[(slice(None),) * (axis % x.dim()) + (slice(start, max(start, end), step),)]
        else:
            places = range(x.shape[axis])[start if start >= -x.shape[axis] else None : _end(end, x.shape[axis]) : step]
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _end(end: int, size: int) -> int | None:
    """Where a walk backwards ends, as Python says it."""
    return None if end < -size else end


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = call("axis", 0)
    asked = call("split") if sizes is None else sizes.tolist()
    if asked is None:
        asked = -(-x.shape[axis] // (call("num_outputs") or call.outputs))
    return tuple(torch.split(x, asked if isinstance(asked, int) else list(asked), axis))


def _gather(call: Call, x: Tensor, places: Tensor) -> Tensor:
    axis = call("axis", 0) % x.dim()
    flat = torch.where(places < 0, places + x.shape[axis], places).reshape(-1).long()
    picked = x.index_select(axis, flat)
    return picked.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def _gather_elements(call: Call, x: Tensor, places: Tensor) -> Tensor:
    axis = call("axis", 0)
    return x.gather(axis, torch.where(places < 0, places + x.shape[axis], places).long())


def _gather_nd(call: Call, x: Tensor, places: Tensor) -> Tensor:
    if call("batch_dims", 0):
        call.refuse("batch_dims")
    return x[tuple(places[..., k].long() for k in range(places.shape[-1]))]


def _scatter_elements(call: Call, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    axis, how = call("axis", 0), call("reduction", "none")
    if how not in ("none", "add"):
        call.refuse(f"reduction {how}")
    places = torch.where(places < 0, places + x.shape[axis], places).long()
    return x.scatter_add(axis, places, updates) if how == "add" else x.scatter(axis, places, updates)


def _scatter_nd(call: Call, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    how = call("reduction", "none")
    if how not in ("none", "add"):
        call.refuse(f"reduction {how}")
    at = tuple(places[..., k].long() for k in range(places.shape[-1]))
    return x.index_put(at, updates.to(x.dtype), accumulate=how == "add")


def _expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))


def _pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    asked = list(call("pads") if pads is None else pads.tolist())
    fill = call("value", 0.0) if value is None else value.reshape(-1)[0].item()
    along = [a % x.dim() for a in axes.tolist()] if axes is not None else list(range(x.dim()))
    ends = {axis: (asked[k], asked[k + len(along)]) for k, axis in enumerate(along)}
    mode = call("mode", "constant")
    if mode == "constant":
        return F.pad(x, [n for axis in reversed(range(x.dim())) for n in ends.get(axis, (0, 0))], "constant", fill)
    for axis, (before, after) in ends.items():
        if before or after:
            x = x.index_select(axis, _mirrored(call, mode, x.shape[axis], before, after).to(x.device))
    return x


def _mirrored(call: Call, mode: str, size: int, before: int, after: int) -> Tensor:
    """Which positions an axis has after it was padded with values of its own."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    if mode != "reflect":
        call.refuse(f"mode {mode}")
    turned = places.abs() % max(2 * (size - 1), 1)
    return torch.where(turned >= size, 2 * (size - 1) - turned, turned)


def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    b, (n, c, h, w) = call("blocksize"), x.shape
    if call("mode", "DCR") == "DCR":
        x = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    b, (n, c, h, w) = call("blocksize"), x.shape
    order = (0, 3, 5, 1, 2, 4) if call("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    x = x.reshape(n, c, h // b, b, w // b, b).permute(order)
    return x.reshape(n, c * b * b, h // b, w // b)


def _shape(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[call("start", 0) : call("end")], dtype=torch.int64)


def _range(call: Call, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype, device=start.device)


def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    by = 0 if k is None else int(k.reshape(-1)[0])
    return torch.triu(x, by) if call("upper", 1) else torch.tril(x, by)


def _reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = call("time_axis", 0), call("batch_axis", 1)
    steps, sizes = torch.arange(x.shape[time], device=x.device), lengths.to(x.device)
    places = torch.where(steps[:, None] < sizes[None], sizes[None] - 1 - steps[:, None], steps[:, None])
    shape = [1] * x.dim()
    shape[time], shape[batch] = x.shape[time], x.shape[batch]
    return x.gather(time, (places if time < batch else places.T).reshape(shape).expand(x.shape))


def _dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Any:
    """As in inference."""
    if training is not None and bool(training):
        call.refuse("training_mode")
    return (x, torch.ones_like(x, dtype=torch.bool))[: call.outputs]


FORMS: dict[str, Form] = {
    "Reshape": _reshape, "Flatten": _flatten, "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Slice": _slice, "Split": _split, "Concat": lambda call, *xs: torch.cat(xs, call("axis", 0)), "Gather": _gather,
    "GatherElements": _gather_elements, "GatherND": _gather_nd, "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements, "ScatterND": _scatter_nd, "Expand": _expand,
    "Tile": lambda call, x, times: x.repeat(tuple(times.tolist())), "Pad": _pad, "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth, "Shape": _shape, "Size": lambda call, x: torch.tensor(x.numel()),
    "Range": _range, "Trilu": _trilu, "ReverseSequence": _reverse_sequence,
    "Dropout": _dropout,
}  # fmt: skip
