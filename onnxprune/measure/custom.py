"""Metrics of the user's own, and which metric is meant where none is said. Knows arrays only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.files import function_of
from onnxprune.measure.intervals import Floats
from onnxprune.measure.metrics import METRICS, TARGETS, Array, Metric, Outputs, mean, scores
from onnxprune.options import near
from onnxprune.units import SHARE

Function = Callable[[list[Array], Any], Any]


@dataclass(frozen=True)
class Custom:
    """The user's function: called with all outputs of a model (samples first) and the labels, or the outputs of the
    dense model where there are no labels; gives one number, or one for each sample.

    unit: SHARE for numbers from 0 to 1, or any word. directed: whether the function says which way is better."""

    name: str
    function: Function
    unit: str = ""
    higher_is_better: bool = True
    directed: bool = False

    @staticmethod
    def of(function: Function, name: str) -> Custom:
        """With what the function says of itself by its attributes `name`, `unit` and `higher_is_better`; UsageError
        where one of them is of another kind."""
        said: dict[str, Any] = {}
        for attribute, kind in (("name", str), ("unit", str), ("higher_is_better", bool)):
            value = getattr(function, attribute, None)
            if value is not None and not isinstance(value, kind):
                word = "True or False" if kind is bool else "a text"
                raise UsageError(f"the metric {name}: its attribute {attribute} is {value!r}, not {word}")
            said |= {} if value is None else {attribute: value}
        return Custom(**{"name": name, "function": function, "directed": "higher_is_better" in said, **said})

    @property
    def hits(self) -> bool:
        """Whether it is the mean of numbers from 0 to 1, where it gives one a sample."""
        return self.unit == SHARE

    def __call__(self, outputs: list[Array], reference: Any) -> Floats:
        """(samples,) or (); UsageError for a function that fails, or that gives no such thing."""
        try:
            found = np.asarray(self.function(outputs, reference), np.float64)
        except Exception as error:  # whatever the user's code raises
            raise UsageError(f"the metric {self.name}: {type(error).__name__}: {error}") from error
        if found.ndim > 1 or (found.ndim and len(found) != len(outputs[0])) or not np.isfinite(found).all():
            raise UsageError(f"the metric {self.name} must give a number, or one for each sample, not {_told(found)}")
        if self.unit == SHARE and not ((found >= 0) & (found <= 1)).all():
            raise UsageError(
                f"the metric {self.name} says that its unit is a share, which lies between 0 and 1, but it gave "
                f"{found.min():.4g} to {found.max():.4g}"
            )
        return found

    value = staticmethod(mean)


def _told(found: Floats) -> str:
    """What is wrong with numbers: their shape, or that some are none."""
    return f"an array of shape {list(found.shape)}" if found.ndim and np.isfinite(found).all() else "NaN or infinity"


def chosen(
    name: str | Function, outputs: Outputs, labels: Array | None, tokens: Array | None = None, is_text: bool = False
) -> Metric | Custom:
    """The metric of this name, or a function as one; without one, what fits the labels, or fidelity to the dense model,
    or of texts, where the model has scores for every token of them, perplexity. tokens: what inputs were, where one
    takes texts. UsageError where it is none, or needs labels that are not there."""
    if not isinstance(name, str):
        return Custom.of(name, str(getattr(name, "__name__", "metric")))
    if name and name not in METRICS:
        return _scripted(name)
    if name in ("", "snr") and labels is not None and _are_targets(outputs, labels):
        return TARGETS
    found = METRICS[name or _fitting(outputs, labels, tokens if is_text else None)]
    if labels is None and found.against == "labels":
        raise UsageError(f"--metric {name} needs labels; give the data an array named 'labels'")
    if labels is None and tokens is None and found.against == "tokens":
        raise UsageError(
            f"--metric {name} needs the tokens of texts, and no single input of the model takes them; give the data an "
            "array named 'labels' with them, [samples, length]"
        )
    return found


def _fitting(outputs: Outputs, labels: Array | None, text: Array | None) -> str:
    """The name of the metric that fits labels, or the tokens of a text, or neither."""
    if labels is not None:
        return "top-1" if labels.size == len(labels) else "miou" if labels.ndim >= 3 else "exact"
    if text is not None and _are_next(outputs, text):
        return "perplexity"
    return "agreement" if _is_classes(outputs) else "cosine"


def _scripted(text: str) -> Custom:
    """The metric that `script.py:function` names; what is wrong with it is a UsageError."""
    path, _, function = text.rpartition(":")
    wanted = f"--metric takes one of {', '.join(METRICS)} or script.py:function"
    if not path.endswith(".py"):
        raise UsageError(f"{wanted}, not {text!r}{near(text, METRICS)}")
    return Custom.of(function_of(path, function, wanted), text)


def _are_targets(outputs: Outputs, labels: Array) -> bool:
    """Whether labels are what the first output should be: as many numbers, and not all of them whole."""
    found = np.asarray(outputs[0])
    return found.size == labels.size and labels.dtype.kind == "f" and bool((labels != np.round(labels)).any())


def _are_next(outputs: Outputs, tokens: Array) -> bool:
    """Whether the first output can be scores for the tokens that texts go on with."""
    found = np.asarray(outputs[0])
    return (
        found.dtype.kind == "f"
        and found.ndim == 3
        and found.shape[:2] == tokens.shape
        and tokens.max() < found.shape[2]
    )


def _is_classes(outputs: Outputs) -> bool:
    """Integers, or two scores or more for each sample."""
    found = np.asarray(outputs[0])
    return found.dtype.kind in "iub" or (found.ndim >= 2 and scores(outputs).shape[-1] >= 2)
