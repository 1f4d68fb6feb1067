"""Quantisation as training sees it: codes are whole numbers held as floats, and gradients go straight through the
rounding (Bengio, Leonard, Courville 2013, arXiv 1308.3432; inside the limits only). Knows tensors, no graph.
"""

from __future__ import annotations

from typing import Any

import torch

from onnxprune.finetuning.operators.call import Call, Form
from onnxprune.finetuning.operators.windows import conv

Tensor = Any
LIMITS = {
    2: (0, 255),
    3: (-128, 127),
    4: (0, 65535),
    5: (-32768, 32767),
    6: (-(2**31), 2**31 - 1),
    21: (0, 15),
    22: (-8, 7),
}
"""By the number of the element type (of `onnx.TensorProto`)."""


def spread(call: Call, x: Tensor, values: Tensor) -> Tensor:
    """Scales or zero points in the shape that meets x: one for all, one a channel, or one a block."""
    if values.numel() == 1:
        return values.reshape(())
    axis = call("axis", 1) % x.dim()
    if values.dim() == 1:
        return values.reshape([-1 if k == axis else 1 for k in range(x.dim())])
    return values.repeat_interleave(call("block_size", 0), axis).narrow(axis, 0, x.shape[axis])


def rounded(x: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """The nearest whole number within limits (half to even), with the gradient of the clamp."""
    inside = torch.clamp(x, low, high)
    return inside + (inside.round() - inside).detach()


def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None, kind: int = 2) -> Tensor:
    """Codes of `kind` for real values."""
    low, high = LIMITS[kind]
    steps = x / spread(call, x, scale)
    if zero is None:
        return rounded(steps, low, high)
    zero = spread(call, x, zero)
    return rounded(steps, low - zero, high - zero) + zero


def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Real values of codes."""
    x = x.float()
    return (x if zero is None else x - spread(call, x, zero.float())) * spread(call, x, scale)


def _quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    kinds = {torch.uint8: 2, torch.int8: 3, torch.int16: 5, torch.int32: 4}
    kind = call("output_dtype", 0) or (2 if zero is None else kinds.get(zero.dtype, 0))
    if kind not in LIMITS:
        call.refuse("codes that are no integers")
    return quantize(call, x, scale, None if zero is None else zero.float(), kind)


def _dynamic(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, and the scale and zero point that the values of this batch call for."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / scale).clamp(0, 255).round()
    return rounded(x / scale, -zero, 255 - zero) + zero, scale, zero


def _shifted(x: Tensor, zero: Tensor | None) -> Tensor:
    return x.float() if zero is None else x.float() - zero.float()


def _matmul_integer(
    call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    if a_zero is not None and a_zero.dim() == 1 and a_zero.numel() > 1:
        a_zero = a_zero[:, None]
    return _shifted(a, a_zero) @ _shifted(b, b_zero)


def _conv_integer(
    call: Call, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    if w_zero is not None and w_zero.numel() > 1:
        w_zero = w_zero.reshape(-1, *[1] * (w.dim() - 1))
    return conv(call, _shifted(x, x_zero), _shifted(w, w_zero))


FORMS: dict[str, Form] = {"QuantizeLinear": _quantize, "DequantizeLinear": dequantize}
FORMS |= {f"com.microsoft::{name}": form for name, form in FORMS.items()}
FORMS |= {"DynamicQuantizeLinear": _dynamic, "MatMulInteger": _matmul_integer, "ConvInteger": _conv_integer}
