"""The range of values that an image input takes: normalised, 0..1, 0..255 or -1..1. A graph does not say it, but most
give it away by operators in front of the first layer. Where none do, `ranges` tries what is usual.

Knows the first operators of a graph, no units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike
from onnx import NodeProto

from onnxprune.data.inputs import Input, consumers
from onnxprune.errors import UsageError
from onnxprune.model import Array, Model, traits
from onnxprune.options import Options
from onnxprune.shapes import Shapes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels of photographs, as a share of white: the normalisation that most image networks are trained with."""


@dataclass(frozen=True)
class Pixels:
    """The map from pixels to an input's values, x = centre + spread * (pixel - MEAN) / STD with pixels in 0..1; one
    number each, or one for each channel. `bounded`: no value lies beyond those of black and white."""

    centre: Array
    spread: Array
    bounded: bool
    text: str

    def of_normalised(self, images: Array, channel: int, dtype: DTypeLike = np.float32) -> Array:
        """From images in the normalised space, whose axis `channel` (1 or -1) counts the channels."""
        mean, std = (self._along(a, images, channel) for a in _statistics(images.shape[channel]))
        pixels = images * std + mean
        return self.of_pixels(np.clip(pixels, 0, 1) if self.bounded else pixels, channel, dtype)

    def of_pixels(self, pixels: Array, channel: int, dtype: DTypeLike = np.float32) -> Array:
        """From pixels in 0..1."""
        mean, std = (self._along(a, pixels, channel) for a in _statistics(pixels.shape[channel]))
        centre, spread = (self._along(a, pixels, channel) for a in (self.centre, self.spread))
        values = centre + spread * ((pixels - mean) / std)
        if np.dtype(dtype).kind in "iu":
            limits = np.iinfo(dtype)
            values = np.rint(values).clip(limits.min, limits.max)
        return np.asarray(values, dtype)

    @staticmethod
    def _along(values: Array, images: Array, channel: int) -> Array:
        shape = [1] * images.ndim
        shape[channel] = values.size
        return values.reshape(shape).astype(np.float32)


def _statistics(channels: int) -> tuple[Array, Array]:
    """(mean, standard deviation) of pixels in 0..1."""
    mean, std = np.array(MEAN), np.array(STD)
    return (mean, std) if channels == 3 else (mean.mean(keepdims=True), std.mean(keepdims=True))


def between(low: float, high: float, channels: int, text: str) -> Pixels:
    """Black is `low` and white is `high`."""
    mean, std = _statistics(channels)
    return Pixels(low + (high - low) * mean, (high - low) * std, True, text)


def normalised(text: str) -> Pixels:
    """The usual normalisation: mean 0 and deviation 1."""
    return Pixels(np.zeros(1), np.ones(1), False, text)


def stated(model: Model, shapes: Shapes, spec: Input, options: Options) -> Pixels | None:
    """What the user says, else what the type and the first operators show; None where they show nothing."""
    channels = spec.axes[spec.channel] or 3
    given = _given(options, channels)
    if given is not None:
        return given
    if spec.dtype.kind in "iu":
        return between(0, 255, channels, f"pixels 0..255, as the input is {spec.dtype}")
    gain, offset, moments = _first_operators(model, shapes, spec, channels)
    if moments is not None:  # BatchNormalization at the input holds the mean and variance of the training data
        centre, spread = (moments[0] - offset) / gain, moments[1] / np.abs(gain)
        return Pixels(centre, spread, False, "scaled by the statistics of the BatchNormalization at the input")
    # What becomes zero, and how far one is from it.
    zero, one = float(np.mean(-offset / gain)), float(np.mean(1 / np.abs(gain)))
    if abs(zero) < 1e-3 and abs(one - 1) < 1e-3:
        return None
    why = "as the first operators show"
    if abs(zero) > 8 or one >= 32:
        return between(0, 255, channels, f"pixels 0..255, {why}")
    if 0.2 < zero < 0.8 or one < 0.02:
        return between(0, 1, channels, f"pixels 0..1, {why}")
    if -1.2 < zero < -0.8:
        return between(-1, 1, channels, f"pixels -1..1, {why}")
    return Pixels(-offset / gain, 1 / np.abs(gain), False, f"scaled {why}")


def _given(options: Options, channels: int) -> Pixels | None:
    """x = (pixel * scale - mean) / std of pixels in 0..255. Without a scale, a mean or deviation that only pixels up
    to 255 can have means a scale of 1, else it is 1/255."""
    mean, std, scale = options.mean, options.std, options.scale
    if mean is None and std is None and scale is None:
        return None
    lists = [np.atleast_1d(np.asarray(v, float)) for v in (0.0 if mean is None else mean, 1.0 if std is None else std)]
    for name, values in zip(("mean", "std"), lists, strict=True):
        if values.size not in (1, channels):
            raise UsageError(f"--{name} has {values.size} numbers but the image has {channels} channels")
    if not (lists[1] > 0).all():
        raise UsageError("--std must be above 0")
    if scale is None:
        scale = 1.0 if max(np.abs(lists[0]).max(), lists[1].max()) > 2 else 1 / 255
    low, high = -lists[0] / lists[1], (255 * scale - lists[0]) / lists[1]
    share, width = _statistics(channels)
    return Pixels(low + (high - low) * share, (high - low) * width, True, "scaled by --mean, --std and --scale")


def _first_operators(
    model: Model, shapes: Shapes, spec: Input, channels: int
) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """(gain, offset, moments) of the affine operators between the input and the first layer, one for each channel:
    the layer sees gain * x + offset. A BatchNormalization on the way gives the (mean, deviation) that it expects."""
    users = consumers(model)
    gain, offset = np.ones(channels), np.zeros(channels)
    name = spec.name
    while len(users[name]) == 1:
        node = users[name][0]
        if node.op_type == "BatchNormalization" and node.input[0] == name:
            mean, variance = (_constant(model, shapes, n, channels) for n in node.input[3:5])
            if mean is None or variance is None:
                break
            return gain, offset, (mean, np.sqrt(variance) + 1e-6)
        step = _affine(model, shapes, node, name, channels)
        if step is None:
            break
        gain, offset = gain * step[0], offset * step[0] + step[1]
        name = node.output[0]
    return gain, offset, None


def _affine(
    model: Model, shapes: Shapes, node: NodeProto, name: str, channels: int
) -> tuple[Array | float, Array | float] | None:
    """(factor, constant) by which an operator changes `name`, channel by channel; None for what is not affine."""
    first = node.input[0] == name
    if node.op_type in traits.CARRYING_PIXELS:
        return (1.0, 0.0) if first else None
    other = _constant(model, shapes, _other(node, name), channels) if node.op_type in traits.ARITHMETIC else None
    if other is None:
        return None
    match node.op_type:
        case "Add":
            return 1.0, other
        case "Sub":
            return (1.0, -other) if first else (-1.0, other)
        case "Mul" if other.all():
            return other, 0.0
        case "Div" if first and other.all() and not np.isinf(other).any():
            return 1 / other, 0.0
    return None


def _other(node: NodeProto, name: str) -> str:
    others: Sequence[str] = [n for n in node.input if n != name]
    return others[0] if others else ""


def _constant(model: Model, shapes: Shapes, name: str, channels: int) -> Array | None:
    """A constant of one number, or of one for each channel."""
    value = model.weights[name].array() if name in model.weights else shapes.value(name)
    if value is None or value.size not in (1, channels) or value.dtype.kind not in "fiu":
        return None
    return np.broadcast_to(value.astype(float).reshape(-1), (channels,))
