"""A choice among many inputs in which a model's predicted classes are as even as can be, in bounded memory.

Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.synthetic import balanced

Array = NDArray[Any]
Shown = list[tuple[Mapping[str, Array], Callable[[], Array]]]
"""Batches, each with what gives, or waits for, the probabilities (rows, classes) of a model for its rows."""


class Pool:
    """Takes inputs batch by batch, all with a sample a row, and holds at most twice as many rows as are wanted. shown:
    those that it begins with."""

    def __init__(self, rng: np.random.Generator, want: int, shown: Shown) -> None:
        self.rng, self.want = rng, want
        self.batches: list[Mapping[str, Array]] = []
        self.waiting: list[Callable[[], Array]] = []
        for batch, scores in shown:
            self.add(batch, scores)

    def add(self, batch: Mapping[str, Array], scores: Callable[[], Array]) -> None:
        """`scores` gives, or waits for, the probabilities (rows, classes) that the model gives for the rows of the
        batch."""
        self.batches.append(batch)
        self.waiting.append(scores)
        if sum(len(next(iter(own.values()))) for own in self.batches) > 2 * self.want:
            rows, kept = self.chosen()
            self.batches, self.waiting = [rows], [lambda: kept]

    def chosen(self) -> tuple[dict[str, Array], Array]:
        """Rows, at most as many as are wanted, in random order, and their scores."""
        every = [scores() for scores in self.waiting]
        scores = np.concatenate(every)
        rows = balanced(self.rng, scores.argmax(1), min(self.want, len(scores)))
        of = np.repeat(np.arange(len(every)), [len(s) for s in every])
        at = np.concatenate([np.arange(len(s)) for s in every])
        # Row by row, since all of them joined would take as much memory again.
        joined = {name: np.stack([self.batches[of[k]][name][at[k]] for k in rows]) for name in self.batches[0]}
        return joined, scores[rows]
