"""Losses on a model's outputs, and their derivatives: numpy over logits, nothing of the graph but where they are.

Knows outputs, no units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.model import FLOATS, Array, attribute, opset, traits
from onnxprune.shapes import Shapes
from onnxprune.trace import Trace

Seed = Literal["loss", "fisher", "logit"]
OTHERWISE = "use --criterion obs, which needs no gradients"


@dataclass(frozen=True)
class Head:
    """The tensor at which the loss is attached; `classes`: its last axis is one of logits, else it is any output."""

    name: str
    classes: bool


def head(trace: Trace, shapes: Shapes, samples: int) -> Head:
    """The first float output with samples first and classes last (of two or three axes), taken before the Softmax or
    LogSoftmax that ends it; where there is none, the first float output."""
    floats = []
    for out in trace.model.skeleton.graph.output:
        dims = shapes.probe[0].get(out.name) or ()
        if shapes.dtype(out.name) in FLOATS and dims and dims[0] and dims[0] % samples == 0:
            floats.append((out.name, dims))
    if not floats:
        raise UsageError(f"the model has no float output with one row per sample to measure a loss at; {OTHERWISE}")
    for name, dims in floats:
        if len(dims) in (2, 3) and (dims[-1] or 0) > 1:
            return Head(_before_softmax(trace, name, len(dims)), True)
    return Head(floats[0][0], False)


def _before_softmax(trace: Trace, name: str, rank: int) -> str:
    maker = next((n for n in trace.model.skeleton.graph.node if name in n.output), None)
    if maker is not None and maker.op_type == "Identity":
        return _before_softmax(trace, maker.input[0], rank)
    if maker is not None and maker.op_type in traits.SOFTMAXES:
        axis = attribute(maker, "axis", -1 if opset(trace.model) >= 13 else 1)
        return maker.input[0] if axis in (-1, rank - 1) else name
    return name


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """[..., C] -> [..., C], in double precision."""
    return np.asarray(scipy.special.log_softmax(logits.astype(np.float64), axis=-1))


def targets(logits: Array, labels: Array | None) -> NDArray[np.int64]:
    """[...]: the class that each row of logits [..., C] is measured against: the label, else the model's own choice."""
    if labels is None:
        return np.asarray(logits.argmax(-1), np.int64)
    if labels.size != logits[..., 0].size or labels.min() < 0 or labels.max() >= logits.shape[-1]:
        raise UsageError(
            f"labels of shape {list(labels.shape)} do not fit logits of shape {list(logits.shape)}: one class number "
            f"in 0..{logits.shape[-1] - 1} for each row is needed"
        )
    return labels.astype(np.int64).reshape(logits.shape[:-1])


def seeds(
    logits: Array, classes: bool, labels: Array | None, seed_with: Seed, random: np.random.Generator
) -> NDArray[np.float64]:
    """The derivative of the samples' losses by the logits, [..., C] like them; steps of one sample add up.

    loss: softmax - onehot(label), of the cross entropy. fisher: the same with labels drawn from the model's own
    distribution (Martens 2014, arXiv 1412.1193: the true Fisher). logit: the logit of the class predicted. Outputs
    that are no classes are a Gaussian's mean: half the squared norm, normal noise (its Fisher), the norm again."""
    if not classes:
        x = logits.astype(np.float64)
        return random.standard_normal(x.shape) if seed_with == "fisher" else x
    probability = np.exp(log_softmax(logits))
    if seed_with == "fisher":
        drawn = (probability.cumsum(-1) < random.random((*logits.shape[:-1], 1))).sum(-1)
        chosen = np.minimum(drawn, logits.shape[-1] - 1)
    else:
        chosen = targets(logits, labels if seed_with == "loss" else None)
    one = np.arange(logits.shape[-1]) == chosen[..., None]
    return np.asarray(one if seed_with == "logit" else probability - one, np.float64)


def cross_entropy(logits: Array, labels: Array | None, samples: int) -> NDArray[np.float64]:
    """[samples]: the loss whose derivative `seeds` gives; the steps of one sample add up."""
    chosen = targets(logits, labels)
    loss = -np.take_along_axis(log_softmax(logits), chosen[..., None], -1)
    return np.asarray(loss.reshape(samples, -1).sum(1))
