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
from onnxprune.files import function_of
from onnxprune.validation import near

Array = NDArray[Any]
Floats = NDArray[np.float64]
Outputs = Sequence[Array]
Value = Callable[[Floats, Floats], Floats]
IGNORED = 255
"""The label of pixels that do not count, as in VOC and Cityscapes."""
CEILING = 200.0
"""Signal-to-noise ratio of equal outputs, in dB."""


def _mean(total: Floats, count: Floats) -> Floats:
    """The mean over samples."""
    return np.asarray(total[..., 0] / count)


@dataclass(frozen=True)
class Metric:
    """`statistics(outputs, reference)` is (samples, k); `value(sums, counts)` takes (..., k) and (...).

    `against`: what the reference is, the labels of the samples or the outputs of the dense model."""

    name: str
    against: Literal["labels", "dense"]
    statistics: Callable[[Outputs, Any], Floats]
    value: Value = _mean


@dataclass(frozen=True)
class Custom:
    """The user's function: called once with all outputs (samples first) and the labels, or the outputs of the dense
    model where there are no labels; gives one number, or one for each sample."""

    name: str
    function: Callable[[list[Array], Any], Any]

    def __call__(self, outputs: list[Array], reference: Any) -> Floats:
        """(samples,) or (); a function that fails is a UsageError."""
        try:
            found = np.asarray(self.function(outputs, reference), np.float64)
        except Exception as error:  # whatever the user's code raises
            raise UsageError(f"the metric {self.name}: {type(error).__name__}: {error}") from error
        if found.ndim > 1 or (found.ndim and len(found) != len(outputs[0])) or not np.isfinite(found).all():
            raise UsageError(f"the metric {self.name} must give a number, or one for each sample, not {found.shape}")
        return found


def custom(text: str) -> Custom:
    """The metric that `script.py:function` names; what is wrong with it is a UsageError."""
    path, _, function = text.rpartition(":")
    wanted = f"--metric takes one of {', '.join(METRICS)} or script.py:function"
    if not path.endswith(".py"):
        raise UsageError(f"{wanted}, not {text!r}{near(text, METRICS)}")
    return Custom(text, function_of(path, function, wanted))


def scores(outputs: Outputs) -> Array:
    """The first output, classes last: (samples, ..., classes). Of four axes the classes are the second one."""
    found = np.asarray(outputs[0])
    return np.moveaxis(found, 1, -1) if found.ndim >= 4 else found


def predicted(outputs: Outputs) -> Array:
    """The classes, (samples, ...): integers are classes already."""
    found = np.asarray(outputs[0])
    return found if found.dtype.kind in "iub" else scores(outputs).argmax(-1)


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
        if flat.size == 0 or labels.size != len(labels):
            raise UsageError(f"top-{k} takes one label a sample; the labels are {list(labels.shape)}")
        best = np.argpartition(flat, -min(k, flat.shape[1]), 1)[:, -k:] if k > 1 else flat.argmax(1)[:, None]
        return np.asarray((best == labels.reshape(-1, 1)).any(1)[:, None], np.float64)

    return statistics


def _agreement(outputs: Outputs, dense: Outputs) -> Floats:
    """The share of the classes of a sample that are those of the dense model, [samples, 1]."""
    ours, theirs = predicted(outputs), predicted(dense)
    return np.asarray((ours == theirs).reshape(len(ours), -1).mean(1, keepdims=True), np.float64)


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
        both, a, b = (np.bincount(x[x < classes], minlength=classes) for x in
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
        raise UsageError(f"{name}: the model gives classes of {list(found.shape)}, the labels are {list(labels.shape)}")


METRICS = {
    m.name: m
    for m in (
        Metric("top-1", "labels", _top(1)),
        Metric("top-5", "labels", _top(5)),
        Metric("miou", "labels", _overlaps, _mean_iou),
        Metric("exact", "labels", _exact),
        Metric("agreement", "dense", _agreement),
        Metric("cosine", "dense", _cosine),
        Metric("snr", "dense", _energies, _decibels),
    )
}


def chosen(
    name: str | Callable[[list[Array], Any], Any], outputs: Outputs, labels: Array | None
) -> Metric | Custom:  # fmt: skip
    """The metric of this name, or a function as one; without one, what fits the labels, or fidelity to the dense model.
    UsageError where it is none, or needs labels that are not there."""
    if not isinstance(name, str):
        return Custom(str(getattr(name, "__name__", "metric")), name)
    if name and name not in METRICS:
        return custom(name)
    if not name:
        if labels is None:
            name = "agreement" if _is_classes(outputs) else "cosine"
        else:
            name = "top-1" if labels.size == len(labels) else "miou" if labels.ndim >= 3 else "exact"
    found = METRICS[name]
    if found.against == "labels" and labels is None:
        raise UsageError(f"--metric {name} needs labels; give the data an array named 'labels'")
    return found


def _is_classes(outputs: Outputs) -> bool:
    """Integers, or two scores or more for each sample."""
    found = np.asarray(outputs[0])
    return found.dtype.kind in "iub" or (found.ndim >= 2 and scores(outputs).shape[-1] >= 2)
