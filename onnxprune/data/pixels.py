"""The range of values that an image input takes: normalised, 0..1, 0..255 or -1..1. A graph does not say it, but most
give it away: by operators in front of the first layer, by the statistics that a BatchNormalization behind it holds,
or by its biases. Where nothing does, the usual normalisation is assumed and the report says so.

Knows the first layers of a graph, no units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike
from onnx import NodeProto, helper

from onnxprune.data.calibration_sizes import sizes
from onnxprune.data.inputs import Input, consumers
from onnxprune.data.synthetic import images
from onnxprune.errors import UsageError
from onnxprune.model import Array, Model, needs, traits
from onnxprune.options import Options
from onnxprune.run import open_session
from onnxprune.shapes import Shapes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels of photographs, as a share of white: the normalisation that most image networks are trained with."""
SAMPLES, LAYERS = 12, 48
"""Synthetic images on which layers are looked at, and at most how many layers."""
CLEARLY, FAINT = 0.92, 0.1


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


def pixels(model: Model, shapes: Shapes, spec: Input, options: Options) -> Pixels:
    """What the user says; else what the type and the first operators show; else the usual normalisation."""
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
        return _likeliest(model, shapes, spec, channels, options)
    why = "as the first operators show"
    if abs(zero) > 8 or one >= 32:
        return between(0, 255, channels, f"pixels 0..255, {why}")
    if 0.2 < zero < 0.8 or one < 0.02:
        return between(0, 1, channels, f"pixels 0..1, {why}")
    if -1.2 < zero < -0.8:
        return between(-1, 1, channels, f"pixels -1..1, {why}")
    return Pixels(-offset / gain, 1 / np.abs(gain), False, f"scaled {why}")


def _likeliest(model: Model, shapes: Shapes, spec: Input, channels: int, options: Options) -> Pixels:
    """The range under which the layers' outputs on synthetic images look as they must have in training."""
    ranges = [normalised(""), between(0, 1, channels, ""), between(0, 255, channels, ""), between(-1, 1, channels, "")]
    names = ("normalised", "pixels 0..1", "pixels 0..255", "pixels -1..1")
    norm = _first_norm(model)
    if norm is not None:
        moments = _moments(model, shapes, spec, [norm.input[0]], ranges, options)
        costs, why = _from_statistics(model, norm, moments), "as the statistics stored in the model show"
    else:
        layers = [n.output[0] for n in model.graph.node
                  if n.op_type == "Conv" and len(n.input) > 2 and n.input[1] in model.weights]  # fmt: skip
        moments = _moments(model, shapes, spec, layers[:LAYERS], ranges[:3], options) if len(layers) > 3 else []
        costs, why = _from_biases(moments), "as the biases suggest"
    if not costs or not np.isfinite(costs).all():
        return normalised("assumed normalised")
    best = int(np.argmin(costs))
    return replace(ranges[best], text=f"{names[best]}, {why}")


def _first_norm(model: Model) -> NodeProto | None:
    """The BatchNormalization that soon follows the first convolution, if any."""
    users = consumers(model)
    name = next((n.output[0] for n in model.graph.node if n.op_type == "Conv"), "")
    for _ in range(3):
        if len(users[name]) != 1 or users[name][0].op_type in ("Conv", "MaxPool", "GlobalAveragePool"):
            return None
        node = users[name][0]
        if node.op_type == "BatchNormalization":
            return node if node.input[0] == name and all(n in model.weights for n in node.input[3:5]) else None
        name = node.output[0]
    return None


def _moments(
    model: Model, shapes: Shapes, spec: Input, tensors: Sequence[str], ranges: Sequence[Pixels], options: Options
) -> list[list[tuple[Array, Array]]]:
    """For each range, (means, deviations) of the channels of each of the `tensors` on synthetic images; nothing where
    that part of the model does not run alone."""
    part, outputs = _with_moments(model, tensors)
    shape = next(sizes(model, shapes, SAMPLES, options.input_shapes))[spec.name]
    inner = shape[1:] if spec.channel == 1 else (shape[-1], *shape[1:-1])
    if [i.name for i in part.graph.input] != [spec.name] or len(inner) != 3:
        return []
    made = images(np.random.default_rng(options.seed), max(SAMPLES, shape[0]), *inner)
    made = made if spec.channel == 1 else np.moveaxis(made, 1, -1)
    found = []
    try:
        session = open_session(part)
        for scale in ranges:
            values = scale.of_normalised(made, spec.channel, spec.dtype)
            starts = range(0, len(values) - shape[0] + 1, shape[0])
            runs = [session.run(outputs, {spec.name: values[k : k + shape[0]]}) for k in starts]
            means = [np.concatenate(each).astype(float).mean((0, *range(2, each[0].ndim)))
                     for each in zip(*runs, strict=True)]  # fmt: skip
            found.append([(mean, np.sqrt(np.maximum(square - mean**2, 0)) + 1e-12)
                          for mean, square in zip(means[::2], means[1::2], strict=True)])  # fmt: skip
    except Exception:  # a part that does not run says nothing about the range; the whole model may yet run
        return []
    return found


def _with_moments(model: Model, tensors: Sequence[str]) -> tuple[Model, list[str]]:
    """The part of the graph that computes the mean, per channel and sample, of each tensor and of its square."""
    part = model.copy()
    needed, nodes = set(tensors), []
    for node in reversed(model.graph.node):  # in topological order
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(needs(node))
    nodes.reverse()
    outputs = []
    for k, name in enumerate(tensors):
        mean, power, square = (f"{name}/{k}/{what}" for what in ("mean", "power", "square"))
        nodes += [helper.make_node("GlobalAveragePool", [name], [mean]), helper.make_node("Mul", [name, name], [power]),
                  helper.make_node("GlobalAveragePool", [power], [square])]  # fmt: skip
        outputs += [mean, square]
    inputs = [i for i in model.graph.input if i.name in needed and i.name not in model.weights]
    part.weights = {name: weight for name, weight in model.weights.items() if name in needed}
    for field in (part.graph.node, part.graph.input, part.graph.output):
        del field[:]
    part.graph.node.extend(nodes)
    part.graph.input.extend(inputs)
    part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
    return part, outputs


def _from_statistics(model: Model, norm: NodeProto, moments: Sequence[Sequence[tuple[Array, Array]]]) -> list[float]:
    """How far the channels' means and deviations are from those that training left in a BatchNormalization."""
    mean, variance = (model.weights[n].array().astype(float) for n in norm.input[3:5])
    std = np.sqrt(variance) + 1e-9
    return [float(np.median(np.abs(m - mean) / std) + np.median(np.abs(np.log(s / std)))) for ((m, s),) in moments]


def _from_biases(moments: Sequence[Sequence[tuple[Array, Array]]]) -> list[float]:
    """How large the channels' means are beside their deviations, behind the first layer, averaged over the layers.

    A bias (above all one with a BatchNormalization folded into it) cancels the mean that a layer's non-negative inputs
    give its outputs; inputs of another scale than in training are cancelled too little or too much. The statistic is a
    weak one, so what is usual wins unless another range is clearly better; and filters for 0..255 are so small that
    normalised images leave next to nothing behind them, without which that range is out of the question.
    """
    costs = [float(np.mean([np.median(np.abs(m) / s) for m, s in layers[1:]])) for layers in moments]
    if costs:
        costs[1:] = [cost / CLEARLY for cost in costs[1:]]
        costs[2] += 0 if np.median(moments[0][0][1]) < FAINT else 1e6
    return costs


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
