"""A choice among many inputs in which a model's predicted classes are as even as can be, in bounded memory.

Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.synthetic import balanced

Array = NDArray[Any]


class Pool:
    """Takes inputs batch by batch, all with a sample a row, and holds at most twice as many rows as are wanted."""

    def __init__(self, rng: np.random.Generator, want: int) -> None:
        self.rng, self.want = rng, want
        self.batches: list[Mapping[str, Array]] = []
        self.scores: list[Array] = []

    def add(self, batch: Mapping[str, Array], scores: Array) -> None:
        """`scores` (rows, classes): the probabilities that the model gives for each row of the batch."""
        self.batches.append(batch)
        self.scores.append(scores)
        if sum(map(len, self.scores)) > 2 * self.want:
            rows, kept = self.chosen()
            self.batches, self.scores = [rows], [kept]

    def chosen(self) -> tuple[dict[str, Array], Array]:
        """Rows, at most as many as are wanted, in random order, and their scores."""
        scores = np.concatenate(self.scores)
        rows = balanced(self.rng, scores.argmax(1), min(self.want, len(scores)))
        of = np.repeat(np.arange(len(self.scores)), [len(s) for s in self.scores])
        at = np.concatenate([np.arange(len(s)) for s in self.scores])
        # Row by row, since all of them joined would take as much memory again.
        joined = {name: np.stack([self.batches[of[k]][name][at[k]] for k in rows]) for name in self.batches[0]}
        return joined, scores[rows]
