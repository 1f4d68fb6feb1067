"""Operators that work position by position. Knows tensors, no graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.finetuning.operators.call import Call, Form

Tensor = Any

INTEGERS: dict[int, Any] = {
    2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool, 4: torch.int32,
    12: torch.int64, 13: torch.int64,
}  # fmt: skip
"""By the number of the element type (of `onnx.TensorProto`); everything else is float32 here."""


def _plain(function: Callable[..., Any]) -> Form:
    """An operator without attributes."""
    return lambda call, *xs: function(*xs)


def _of_many(function: Callable[[Any, Any], Any]) -> Form:
    return lambda call, *xs: reduce(function, xs)


def _div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if call("fmod", 0) else torch.remainder(a, b)


def _pow(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b.to(a.dtype) if a.is_floating_point() else b).to(a.dtype)


def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    low = call("min") if low is None else low
    high = call("max") if high is None else high
    if low is not None:
        x = torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))


def _gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call("approximate", "none"))


def _bias_gelu(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


def _fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call("alpha", 0.2) * x + call("beta", 0.5), 0, 1)


def _selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call("alpha", 1.67326319217681884765625), call("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def _elu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, call("alpha", 1.0) * torch.expm1(x.clamp(max=0)))


def _shrink(call: Call, x: Tensor) -> Tensor:
    bias, limit = call("bias", 0.0), call("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def _thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call("alpha", 1.0), x, torch.zeros_like(x))


def _swish(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call("alpha", 1.0) * x)


def cast(call: Call, x: Tensor, like: Tensor | None = None) -> Tensor:
    """To an integer type, a truth, or float32 for every type of floats."""
    return x.to(INTEGERS.get(call("to", 0), torch.float32) if like is None else like.dtype)


FORMS: dict[str, Form] = {
    "Abs": _plain(torch.abs), "Acos": _plain(torch.acos), "Acosh": _plain(torch.acosh), "Asin": _plain(torch.asin),
    "Asinh": _plain(torch.asinh), "Atan": _plain(torch.atan), "Atanh": _plain(torch.atanh), "Ceil": _plain(torch.ceil),
    "Cos": _plain(torch.cos), "Cosh": _plain(torch.cosh), "Erf": _plain(torch.erf), "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor), "HardSwish": _plain(F.hardswish), "Identity": _plain(lambda x: x),
    "IsNaN": _plain(torch.isnan), "Log": _plain(torch.log), "Mish": _plain(F.mish), "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not), "Reciprocal": _plain(torch.reciprocal), "Relu": _plain(torch.relu),
    "Round": _plain(torch.round), "Sigmoid": _plain(torch.sigmoid), "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin), "Sinh": _plain(torch.sinh), "Softplus": _plain(F.softplus),
    "Softsign": _plain(F.softsign), "Sqrt": _plain(torch.sqrt), "Tan": _plain(torch.tan), "Tanh": _plain(torch.tanh),
    "Add": _plain(torch.add), "And": _plain(torch.logical_and), "Equal": _plain(torch.eq), "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge), "Less": _plain(torch.lt), "LessOrEqual": _plain(torch.le),
    "Mul": _plain(torch.mul), "Or": _plain(torch.logical_or), "Sub": _plain(torch.sub),
    "Where": _plain(torch.where), "Xor": _plain(torch.logical_xor),
    "Max": _of_many(torch.maximum), "Min": _of_many(torch.minimum), "Sum": _of_many(torch.add),
    "Mean": lambda call, *xs: reduce(torch.add, xs) / len(xs),
    "Cast": cast, "CastLike": cast, "Celu": lambda call, x: F.celu(x, call("alpha", 1.0)), "Clip": _clip, "Div": _div,
    "Elu": _elu, "Gelu": _gelu, "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": lambda call, x: F.leaky_relu(x, call("alpha", 0.01)), "Mod": _mod, "PRelu": _prelu, "Pow": _pow,
    "Selu": _selu, "Shrink": _shrink, "Swish": _swish, "ThresholdedRelu": _thresholded_relu,
    "com.microsoft::BiasGelu": _bias_gelu, "com.microsoft::FastGelu": _fast_gelu,
    "com.microsoft::Gelu": lambda call, x: F.gelu(x),
    "com.microsoft::QuickGelu": lambda call, x: x * torch.sigmoid(call("alpha", 1.702) * x),
}  # fmt: skip
