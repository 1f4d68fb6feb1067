"""Criteria: a saliency for every weight. The mechanism sums it over the coupled slices of a unit (SPA, section 3.2).

A criterion is a function (weight, rng) -> array of the weight's shape, larger = more important. It sees neither
operators nor names. Others join through `register` or the entry point group `onnxprune.criteria`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError

Criterion = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]


def l1(weight: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """|w| (Li et al. 2016, Pruning Filters for Efficient ConvNets)."""
    return np.asarray(np.abs(weight))


def l2(weight: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """w^2."""
    return np.asarray(np.square(weight))


def random(weight: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Seeded uniform: the sanity floor of every comparison."""
    return rng.random(weight.shape, np.float32)


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "random": random}
ELEMENTWISE: set[Criterion] = {l1, l2, random}
"""Criteria that look at each weight alone: they may be shown a parameter a few rows at a time."""


def register(name: str, criterion: Criterion) -> None:
    """Make `criterion` available under `name`."""
    CRITERIA[name] = criterion


def find(name: str) -> Criterion:
    """The criterion of that name; UsageError with the known names if there is none."""
    if name not in CRITERIA:
        for point in entry_points(group="onnxprune.criteria"):
            if point.name == name:
                register(name, point.load())
    if name not in CRITERIA:
        raise UsageError(f"no criterion '{name}'; choose one of {', '.join(sorted(CRITERIA))}")
    return CRITERIA[name]
