"""Which range of values an image input takes, where neither its type nor the first operators say it: every usual one
is tried on photographs.

Three things give the range away. A BatchNormalization behind the first convolution holds the mean and deviation that
its input had in training. A bias cancels the mean that a layer's non-negative inputs give its outputs, so that under
another range than in training much of that mean is left. And the answers of a classifier are spread over its classes
under the right range and differ from picture to picture; under a wrong one, where the first layers are dead or
saturated, they crowd in few classes, or are the same for all.

Knows the first layers of a graph and runs it, no units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.data import photographs
from onnxprune.data.calibration_sizes import sizes
from onnxprune.data.inputs import Input, consumers
from onnxprune.data.pixels import Pixels, between, normalised, stated
from onnxprune.data.synthetic import entropy, softmax
from onnxprune.model import Array, Model, needs
from onnxprune.options import Options
from onnxprune.run import open_session
from onnxprune.shapes import Shapes

SAMPLES, LAYERS = 64, 48
"""Photographs on which layers are looked at, and at most how many layers."""
ELEMENTS = 3e6
"""At most so many numbers are the photographs, where they are large."""
USUAL = 0.92
"""Where only one thing speaks, what is most usual, normalised, wins unless another range is so much better."""


def pixels(model: Model, shapes: Shapes, spec: Input, options: Options) -> Pixels:
    """What the user says; else what the type and the first operators show; else the range under which layers and
    answers look as they must have in training, whose text names the runner-up."""
    return stated(model, shapes, spec, options) or _likeliest(model, shapes, spec, options)


def _likeliest(model: Model, shapes: Shapes, spec: Input, options: Options) -> Pixels:
    channels = spec.axes[spec.channel] or 3
    names = ("normalised", "pixels 0..1", "pixels 0..255", "pixels -1..1")
    ranges = [normalised(""), between(0, 1, channels, ""), between(0, 255, channels, ""), between(-1, 1, channels, "")]
    evidence = _evidence(model, shapes, spec, options, ranges)
    if not evidence:
        return normalised("assumed normalised")
    scores = np.prod(list(evidence.values()), axis=0)
    scores[1:] *= USUAL if len(evidence) == 1 else 1
    best, second = (int(k) for k in np.argsort(-scores, kind="stable")[:2])
    return replace(ranges[best], text=f"{names[best]}, by {' and '.join(evidence)} (next: {names[second]})")


def _evidence(
    model: Model, shapes: Shapes, spec: Input, options: Options, ranges: Sequence[Pixels]
) -> dict[str, NDArray[np.float64]]:
    """What speaks for the ranges: by its name a score for each, above 0, the larger the better."""
    pictures = _pictures(model, shapes, spec, options)
    inputs = [[scale.of_pixels(batch, spec.channel, spec.dtype) for batch in pictures] for scale in ranges]
    norm = _first_norm(model)
    found: dict[str, list[float]] = {}
    if norm is not None:
        costs = _from_statistics(model, norm, _moments(model, spec, [norm.input[0]], inputs))
        found["the statistics stored in the model"] = [1 / (cost + 1e-9) for cost in costs]
    else:
        layers = [n.output[0] for n in model.graph.node
                  if n.op_type == "Conv" and len(n.input) > 2 and n.input[1] in model.weights]  # fmt: skip
        costs = _from_biases(_moments(model, spec, layers[:LAYERS], inputs) if len(layers) > 3 else [])
        found["the biases"] = [1 / (cost + 1e-9) for cost in costs]
    found["the spread of its answers"] = _spreads(model, spec, inputs)
    return {name: np.array(scores) for name, scores in found.items() if scores and np.isfinite(scores).all()}


def _pictures(model: Model, shapes: Shapes, spec: Input, options: Options) -> list[Array]:
    """Batches of photographs as pixels in 0..1, as the input lays them out; none where it is not the only one."""
    shape = next(sizes(model, shapes, min(SAMPLES, options.calib_batch), options.input_shapes))[spec.name]
    inner = shape[1:] if spec.channel == 1 else (shape[-1], *shape[1:-1])
    if len(inner) != 3 or [i.name for i in model.graph.input if i.name not in model.weights] != [spec.name]:
        return []
    count = max(1, int(min(SAMPLES, ELEMENTS // np.prod(inner))) // shape[0])
    made = photographs.images(np.random.default_rng(options.seed), count * shape[0], *inner)
    return np.split(made if spec.channel == 1 else np.moveaxis(made, 1, -1), count)


def _spreads(model: Model, spec: Input, inputs: Sequence[Sequence[Array]]) -> list[float]:
    """For each range, how well the answers tell pictures apart; nothing where the model has no classes."""
    try:
        session = open_session(model)
        name = session.get_outputs()[0].name
        found = []
        for batches in filter(None, inputs):
            answers = [np.asarray(session.run([name], {spec.name: batch})[0], float) for batch in batches]
            if any(a.ndim < 2 or a.shape[1] < 2 or a.size != len(b) * a.shape[1]
                   for a, b in zip(answers, batches, strict=True)):  # fmt: skip
                return []
            found.append(_spread(softmax(np.concatenate([a.reshape(len(a), -1) for a in answers]))))
    except Exception:  # what does not run says nothing about the range
        return []
    return found


def _spread(answers: Array) -> float:
    """The geometric mean, 0..1, of how evenly probabilities [pictures, classes] cover the classes and of what the
    pictures decide of that (the mutual information of picture and class). Alone, the first is large where the model is
    unsure of everything alike, the second where it is sure of what it has never seen."""
    whole = entropy(answers)
    decided = whole - float(np.mean([entropy(answer[None]) for answer in answers]))
    return float(np.sqrt(max(whole, 0) * max(decided, 0)))


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
    model: Model, spec: Input, tensors: Sequence[str], inputs: Sequence[Sequence[Array]]
) -> list[list[tuple[Array, Array]]]:
    """For each range, (means, deviations) of the channels of each of the `tensors`; nothing where that part of the
    model does not run alone."""
    part, outputs = _with_moments(model, tensors)
    found = []
    try:
        session = open_session(part)
        for batches in filter(None, inputs):
            runs = [session.run(outputs, {spec.name: batch}) for batch in batches]
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
    """How large the channels' means are beside their deviations, behind the first layer, averaged over the layers."""
    return [float(np.mean([np.median(np.abs(m) / s) for m, s in layers[1:]])) for layers in moments]
