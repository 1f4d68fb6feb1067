"""Metrics. Each gives statistics for every sample, so that any number of samples can be resampled. Knows arrays only.

The value of a metric is a function of the sum of its statistics over the samples: a mean for most, a ratio of sums for
the mean IoU and the signal-to-noise ratio. What a sample is compared with is its label or what the dense model gave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.measure.intervals import Floats
from onnxprune.units import SHARE

Array = NDArray[Any]
Outputs = Sequence[Array]
Value = Callable[[Floats, Floats], Floats]
IGNORED = 255
"""The label of pixels that do not count, as in VOC and Cityscapes."""
CEILING = 200.0
"""Signal-to-noise ratio of equal outputs, in dB."""
UNDECIDED = np.iinfo(np.int64).min
"""In the place of a class where a score is not a number (NaN): no label, and like no other answer."""


def mean(total: Floats, count: Floats) -> Floats:
    """The mean over samples."""
    return np.asarray(total[..., 0] / count)


@dataclass(frozen=True)
class Metric:
    """`statistics(outputs, reference)` is (samples, k); `value(sums, counts)` takes (..., k) and (...).

    `against`: what the reference is, the labels of the samples, the tokens that a text goes on with, or the outputs of
    the dense model. unit: SHARE, dB, or nothing."""

    name: str
    against: Literal["labels", "tokens", "dense"]
    unit: str
    statistics: Callable[[Outputs, Any], Floats]
    value: Value = mean
    higher_is_better: bool = True

    @property
    def takes_classes(self) -> bool:
        """Whether labels are the numbers of classes."""
        return self.against == "labels" and self.unit == SHARE

    @property
    def hits(self) -> bool:
        """Whether it is the mean of numbers from 0 to 1, one a sample."""
        return self.unit == SHARE and self.value is mean


def scores(outputs: Outputs) -> Array:
    """The first output, classes last: (samples, ..., classes). Of four axes the classes are the second one."""
    found = np.asarray(outputs[0])
    return np.moveaxis(found, 1, -1) if found.ndim >= 4 else found


def undecided(values: Array) -> NDArray[np.bool_]:
    """Of numbers (..., k) where one of the k is not a number: argmax would take it for the largest."""
    return np.asarray(np.isnan(values).any(-1) if values.dtype.kind == "f" else np.zeros(values.shape[:-1], np.bool_))


def predicted(outputs: Outputs) -> Array:
    """The classes, (samples, ...): integers are classes already; UNDECIDED where scores are not numbers."""
    found = np.asarray(outputs[0])
    if found.dtype.kind in "iub":
        return found
    by_class = scores(outputs)
    return np.where(undecided(by_class), UNDECIDED, by_class.argmax(-1))


def _top(k: int) -> Callable[[Outputs, Array], Floats]:
    """Whether the label is among the k best classes, [samples, 1]."""

    def statistics(outputs: Outputs, labels: Array) -> Floats:
        found = np.asarray(outputs[0])
        if found.dtype.kind in "iub":
            if k > 1 or found.size != len(labels):
                raise UsageError(
                    f"top-{k} needs scores for every class; the model gives {found.dtype}{list(found.shape)}"
                )
            return np.asarray((found.reshape(-1) == labels.reshape(-1))[:, None], np.float64)
        flat = found.reshape(len(found), -1)
        if flat.shape[1] == 1:
            raise UsageError(
                f"top-{k} needs scores for two classes or more, and the model gives one number a sample; say what is "
                "right by --metric script.py:function, or use cosine"
            )
        if flat.size == 0 or labels.size != len(labels):
            raise UsageError(f"top-{k} takes one label a sample; the labels are {list(labels.shape)}")
        whole = labels == np.round(labels) if labels.dtype.kind in "iubf" else np.zeros(labels.shape, np.bool_)
        if not whole.all():
            raise UsageError(f"top-{k} takes the numbers of classes as labels, not {labels[~whole][0].item()!r}")
        best = np.argpartition(flat, -min(k, flat.shape[1]), 1)[:, -k:] if k > 1 else flat.argmax(1)[:, None]
        right = (best == labels.reshape(-1, 1)).any(1) & ~undecided(flat)
        return np.asarray(right[:, None], np.float64)

    return statistics


def _agreement(outputs: Outputs, dense: Outputs) -> Floats:
    """The share of the classes of a sample that are those of the dense model, [samples, 1]."""
    ours, theirs = predicted(outputs), predicted(dense)
    same = (ours == theirs) & (ours != UNDECIDED)
    return np.asarray(same.reshape(len(ours), -1).mean(1, keepdims=True), np.float64)


def _flat(outputs: Outputs) -> list[Floats]:
    """The numeric outputs, each [samples, numbers]."""
    return [np.asarray(x, np.float64).reshape(len(x), -1) for x in outputs if np.asarray(x).dtype.kind in "fiub"]


def _cosine(outputs: Outputs, dense: Outputs) -> Floats:
    """The mean over the outputs of the cosine of each sample."""
    found = []
    for a, b in zip(_flat(outputs), _flat(dense), strict=True):
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = (a == b).all(1)
        found.append(np.where(same, 1.0, (a * b).sum(1) / np.maximum(lengths, 1e-300)))
    return np.asarray(np.mean(found, axis=0)[:, None])


def _energies(outputs: Outputs, dense: Outputs) -> Floats:
    """Squares of what the dense model gives, and of the difference from it, over all outputs: [samples, 2]."""
    pairs = list(zip(_flat(outputs), _flat(dense), strict=True))
    signal, noise = sum((b**2).sum(1) for _, b in pairs), sum(((a - b) ** 2).sum(1) for a, b in pairs)
    return np.stack([np.asarray(signal), np.asarray(noise)], 1)


def _decibels(total: Floats, _: Floats) -> Floats:
    """The signal-to-noise ratio in dB, at most CEILING."""
    signal = np.maximum(total[..., 0], 1e-300)
    return np.asarray(10 * np.log10(signal / np.maximum(total[..., 1], signal * 10 ** (-CEILING / 10))))


def _energies_of_targets(outputs: Outputs, labels: Array) -> Floats:
    """The same of labels that are what the first output should be, and of how far it is from these."""
    first = np.asarray(outputs[0])
    return _energies([first], [labels.reshape(first.shape)])


def _overlaps(outputs: Outputs, labels: Array) -> Floats:
    """Of every class the pixels in common and those of either: (samples, 2 * classes)."""
    found = predicted(outputs)
    found = found.reshape(len(found), *[d for d in found.shape[1:] if d != 1])
    labels = labels.reshape(len(labels), *[d for d in labels.shape[1:] if d != 1])
    _alike("miou", found, labels)
    classes = scores(outputs).shape[-1] if np.asarray(outputs[0]).dtype.kind == "f" else IGNORED
    counted = (labels >= 0) & (labels != IGNORED)
    made = np.zeros((len(found), 2, classes))
    for sample, (ours, theirs, there) in enumerate(zip(found, labels, counted, strict=True)):
        both, a, b = (np.bincount(x[(x >= 0) & (x < classes)], minlength=classes) for x in
                      (ours[there & (ours == theirs)], ours[there], theirs[there]))  # fmt: skip
        made[sample] = both, a + b - both
    return made.reshape(len(found), -1)


def _mean_iou(total: Floats, _: Floats) -> Floats:
    """The mean over the classes that there are of intersection over union (PASCAL VOC; Everingham et al. 2010)."""
    both, either = np.split(total, 2, -1)
    return np.asarray(np.nanmean(np.where(either > 0, both / np.maximum(either, 1), np.nan), -1))


def _exact(outputs: Outputs, labels: Array) -> Floats:
    """Whether all classes of a sample are right, [samples, 1]."""
    found = predicted(outputs)
    _alike("exact", found, labels)
    return np.asarray((found == labels).reshape(len(found), -1).all(1, keepdims=True), np.float64)


def _alike(name: str, found: Array, labels: Array) -> None:
    if found.shape != labels.shape:
        raise UsageError(
            f"{name} compares the classes that the model names, {list(found.shape)}, with as many labels; these are "
            f"{list(labels.shape)}: give the number of a class for each (of one-hot labels the argmax), or say what is "
            "right by --metric script.py:function"
        )


def _surprise(outputs: Outputs, tokens: Array) -> Floats:
    """Of each text the nats by which every token but the first surprises a model that has seen those before it, and how
    many such tokens there are, [samples, 2]. The first output holds scores [samples, length, vocabulary]; tokens
    [samples, length] below 0 do not count."""
    found, tokens = np.asarray(outputs[0]), np.asarray(tokens)
    if found.ndim != 3 or found.dtype.kind != "f" or tokens.ndim != 2 or found.shape[:2] != tokens.shape:
        raise UsageError(
            "perplexity needs scores [samples, length, vocabulary] as the first output, and tokens [samples, length]; "
            f"the model gives {found.dtype}{list(found.shape)}, the tokens are {list(tokens.shape)}"
        )
    if tokens.dtype.kind not in "iu" or tokens.max(initial=0) >= found.shape[2]:
        raise UsageError(
            f"perplexity needs tokens from 0 to {found.shape[2] - 1}, as the model has scores; they go up to "
            f"{tokens.max()}"
        )
    made = np.zeros((len(found), 2))
    for sample, (scores, text) in enumerate(zip(found[:, :-1], tokens[:, 1:], strict=True)):
        counted = text >= 0
        logs = scores[counted].astype(np.float64)
        logs -= logs.max(-1, keepdims=True)
        own = np.take_along_axis(logs, text[counted, None].astype(np.int64), 1)[:, 0]
        made[sample] = (np.log(np.exp(logs).sum(-1)) - own).sum(), counted.sum()
    return made


def _perplexity(total: Floats, _: Floats) -> Floats:
    """How many tokens a model wavers between, on (geometric) average."""
    return np.asarray(np.exp(total[..., 0] / np.maximum(total[..., 1], 1)))


METRICS = {
    m.name: m
    for m in (
        Metric("top-1", "labels", SHARE, _top(1)),
        Metric("top-5", "labels", SHARE, _top(5)),
        Metric("miou", "labels", SHARE, _overlaps, _mean_iou),
        Metric("exact", "labels", SHARE, _exact),
        Metric("perplexity", "tokens", "", _surprise, _perplexity, higher_is_better=False),
        Metric("agreement", "dense", SHARE, _agreement),
        Metric("cosine", "dense", "", _cosine),
        Metric("snr", "dense", "dB", _energies, _decibels),
    )
}
TARGETS = Metric("snr", "labels", "dB", _energies_of_targets, _decibels)
"""Where labels are numbers that the first output should be."""
