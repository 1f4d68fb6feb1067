"""Operators that take sums, extremes or orders along axes. Knows tensors, no graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.finetuning.operators.call import Call, Form

Tensor = Any


def _reduce(function: Callable[[Any, list[int], bool], Any]) -> Form:
    def form(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        found = call("axes") if axes is None else axes.tolist()
        if not found and call("noop_with_empty_axes", 0):
            return x
        return function(x, list(found or range(x.dim())), bool(call("keepdims", 1)))

    return form


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.log(x.sum(axes, keep))


def _along(function: Callable[..., Any]) -> Form:
    """Softmax and its like: along one axis, before opset 13 along all axes from one on."""

    def form(call: Call, x: Tensor) -> Tensor:
        if call.opset >= 13:
            return function(x, call("axis", -1))
        axis = call("axis", 1) % max(x.dim(), 1)
        return function(x.flatten(axis), axis).reshape(x.shape)

    return form


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _arg(function: Callable[..., Any]) -> Form:
    def form(call: Call, x: Tensor) -> Tensor:
        if call("select_last_index", 0):
            call.refuse("select_last_index")
        return function(x, call("axis", 0), keepdim=bool(call("keepdims", 1)))

    return form


def _top_k(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    count = int(call("k") if k is None else k.reshape(-1)[0])
    axis = call("axis", -1)
    values, places = torch.sort(x, stable=True, dim=axis, descending=bool(call("largest", 1)))
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def _cumulated(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    at, turned = int(axis.reshape(-1)[0]), bool(call("reverse", 0))
    x = x.flip(at) if turned else x
    total = x.cumsum(at) - (x if call("exclusive", 0) else 0)
    return total.flip(at) if turned else total


FORMS: dict[str, Form] = {
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSum": _reduce(_log_sum),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: (x * x).sum(axes, keep)),
    "Softmax": _along(torch.softmax), "LogSoftmax": _along(F.log_softmax), "Hardmax": _along(_hardmax),
    "ArgMax": _arg(torch.argmax), "ArgMin": _arg(torch.argmin), "TopK": _top_k, "CumSum": _cumulated,
}  # fmt: skip
