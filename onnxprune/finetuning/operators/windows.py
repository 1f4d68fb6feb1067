"""Convolutions, pools, and what resizes: operators over spatial axes, of any number. Knows tensors, no graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.finetuning.operators.call import Call, Form

Tensor = Any
Pads = list[tuple[int, int]]

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish,
}  # fmt: skip
"""What com.microsoft::FusedConv has inside."""


def _of_rank(functions: dict[int, Any], call: Call, rank: int) -> Any:
    if rank not in functions:
        call.refuse(f"{rank} spatial axes")
    return functions[rank]


def _pads(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Pads:
    """(before, after) of every spatial axis."""
    n, how = len(sizes), call("auto_pad", "NOTSET")
    if how == "NOTSET":
        flat = call("pads") or [0] * (2 * n)
        return list(zip(flat[:n], flat[n:], strict=True))
    if how == "VALID":
        return [(0, 0)] * n
    found = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if how == "SAME_UPPER" else (more, less))
    return found


def _padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    return F.pad(x, [n for pair in reversed(pads) for n in pair], "constant", value)


def _even(pads: Pads) -> bool:
    return all(before == after for before, after in pads)


def _window(call: Call, n: int) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    return list(call("strides") or [1] * n), list(call("dilations") or [1] * n)


def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Any group, stride, dilation and padding; x [n, c, ...]."""
    n = x.dim() - 2
    strides, dilations = _window(call, n)
    pads = _pads(call, x.shape[2:], weight.shape[2:], strides, dilations)
    function = _of_rank(CONV, call, n)
    if n == 2 and x.device.type == "cpu":  # oneDNN takes up to 1.7 times as long where few channels come first
        x = x.contiguous(memory_format=torch.channels_last)
    if _even(pads):
        return function(x, weight, bias, strides, [p for p, _ in pads], dilations, call("group", 1))
    return function(_padded(x, pads), weight, bias, strides, 0, dilations, call("group", 1))


def _fused_conv(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, added: Tensor | None = None
) -> Tensor:
    y = conv(call, x, weight, bias)
    y = y if added is None else y + added
    kind = call("activation", "")
    if kind and kind not in ACTIVATIONS:
        call.refuse(f"activation {kind}")
    return ACTIVATIONS[kind](y) if kind else y


def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    n = x.dim() - 2
    strides, dilations = _window(call, n)
    more = list(call("output_padding") or [0] * n)
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    full = [(s - 1) * t + r + m for s, t, r, m in zip(x.shape[2:], strides, reach, more, strict=True)]
    how, wanted = call("auto_pad", "NOTSET"), call("output_shape")
    if wanted is None and how in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [s * t for s, t in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        total = [f - w for f, w in zip(full, list(wanted)[-n:], strict=True)]
        pads = [(t // 2, t - t // 2) if how == "SAME_UPPER" else (t - t // 2, t // 2) for t in total]
    else:
        pads = _pads(call, x.shape[2:], weight.shape[2:], strides, dilations)
    y = _of_rank(CONV_TRANSPOSE, call, n)(x, weight, bias, strides, 0, 0, call("group", 1), dilations)
    ends = [(-before, f - size - after) for (before, after), f, size in zip(pads, full, y.shape[2:], strict=True)]
    return _padded(y, ends)


def _max_pool(call: Call, x: Tensor) -> Any:
    n, kernel = x.dim() - 2, list(call("kernel_shape"))
    strides, dilations = _window(call, n)
    pads = _pads(call, x.shape[2:], kernel, strides, dilations)
    ceil = bool(call("ceil_mode", 0))
    function = _of_rank(MAX_POOL, call, n)
    if _even(pads) and all(2 * p <= k for (p, _), k in zip(pads, kernel, strict=True)):
        y = function(x, kernel, strides, [p for p, _ in pads], dilations, ceil, return_indices=call.outputs > 1)
    elif call.outputs > 1:
        call.refuse("indices of uneven padding")
    else:
        y = function(_padded(x, pads, float("-inf")), kernel, strides, 0, dilations, ceil)
    if call.outputs == 1:
        return y
    if call("storage_order", 0):
        call.refuse("storage_order 1")
    rows = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * n)
    return y[0], y[1] + rows * x[0, 0].numel()


def _unpool(call: Call, x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
    strides, kernel = list(call("strides") or [1] * (x.dim() - 2)), call("kernel_shape")
    flat = call("pads") or [0] * 2 * len(kernel)
    sizes = [
        (s - 1) * t + k - before - after
        for s, t, k, before, after in zip(x.shape[2:], strides, kernel, flat, flat[len(kernel) :], strict=False)
    ]
    size = torch.Size([*x.shape[:2], *sizes])
    if shape is not None and list(size) != shape.tolist():
        call.refuse("an output of another size than its input's")
    return (
        torch.zeros(size.numel(), dtype=x.dtype, device=x.device)
        .index_put((places.reshape(-1),), x.reshape(-1))
        .reshape(size)
    )


def _average_pool(call: Call, x: Tensor) -> Tensor:
    n, kernel = x.dim() - 2, list(call("kernel_shape"))
    strides, dilations = _window(call, n)
    if any(d != 1 for d in dilations):
        call.refuse("dilations")
    pads = _pads(call, x.shape[2:], kernel, strides, dilations)
    ceil, all_counted = bool(call("ceil_mode", 0)), bool(call("count_include_pad", 0))
    function = _of_rank(AVG_POOL, call, n)
    if _even(pads) and all(2 * p <= k for (p, _), k in zip(pads, kernel, strict=True)):
        return function(x, kernel, strides, [p for p, _ in pads], ceil, all_counted)
    total = function(_padded(x, pads), kernel, strides, 0, ceil)
    if all_counted:
        return total
    return total / function(_padded(torch.ones_like(x), pads), kernel, strides, 0, ceil)


def _lp_pool(call: Call, x: Tensor) -> Tensor:
    p, kernel = call("p", 2), list(call("kernel_shape"))
    strides, dilations = _window(call, x.dim() - 2)
    if call("ceil_mode", 0) or any(d != 1 for d in dilations):
        call.refuse("ceil_mode or dilations")
    x = _padded(x.abs() ** p, _pads(call, x.shape[2:], kernel, strides, dilations))
    mean = _of_rank(AVG_POOL, call, len(kernel))(x, kernel, strides)
    return (mean * torch.Size(kernel).numel()) ** (1 / p)


def _over_space(function: Callable[[Tensor, list[int]], Tensor]) -> Form:
    return lambda call, x: function(x, list(range(2, x.dim())))


def _grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(call("mode", "linear"), call("mode", "linear"))
    return F.grid_sample(x, grid, mode, call("padding_mode", "zeros"), bool(call("align_corners", 0)))


FORMS: dict[str, Form] = {
    "Conv": conv, "ConvTranspose": _conv_transpose, "com.microsoft::FusedConv": _fused_conv, "MaxPool": _max_pool,
    "MaxUnpool": _unpool, "AveragePool": _average_pool, "LpPool": _lp_pool, "GridSample": _grid_sample,
    "GlobalAveragePool": _over_space(lambda x, axes: x.mean(axes, True)),
    "GlobalMaxPool": _over_space(lambda x, axes: x.amax(axes, True)),
    "GlobalLpPool": lambda call, x: torch.linalg.vector_norm(x, call("p", 2), list(range(2, x.dim())), True),
}  # fmt: skip
