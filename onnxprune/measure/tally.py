"""What a metric is worked out from, sample by sample, and how much two models differ by it. Knows arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.measure.custom import Custom
from onnxprune.measure.intervals import Floats, Interval, interval
from onnxprune.measure.metrics import Metric, Outputs

Figures = tuple[float, float, float, Interval | None]
"""A metric of two models, how much worse the second is, and the interval of that where there is one."""
LOST_AND_WON = np.array([[1.0, 0.0], [0.0, 1.0]])
"""A sample that only the first model gets right, and one that only the second does."""
RIGHT_AND_WRONG = np.array([[1.0], [1.0], [0.0], [0.0]])


class Tally:
    """One model's statistics by a metric, batch after batch. A function of the user's is called once, with all."""

    def __init__(self, metric: Metric | Custom) -> None:
        self.metric = metric
        self.parts: list[Floats] = []
        self.outputs: list[Outputs] = []
        self.references: list[Any] = []

    def add(self, outputs: Outputs, reference: Any) -> None:
        """One batch, and what it is compared with."""
        if isinstance(self.metric, Metric):
            self.parts.append(self.metric.statistics(outputs, reference))
        else:
            self.outputs.append(outputs)
            self.references.append(reference)

    def statistics(self) -> Floats:
        """[samples, k]; () where the user's function gives one number for all."""
        if isinstance(self.metric, Metric):
            return np.concatenate(self.parts)
        lists = isinstance(self.references[0], list)
        reference = _joined(self.references) if lists else np.concatenate(self.references)
        found = self.metric(_joined(self.outputs), reference)
        return found[:, None] if found.ndim else found


def _joined(batches: list[Outputs]) -> list[Any]:
    """Each output over all batches."""
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def figures(metric: Metric | Custom, before: Floats, after: Floats, seed: int) -> Figures:
    """By the statistics of two models, which are paired: the same samples are drawn again of both.

    To shares one sample that was lost and one that was won are added, as few samples that do not differ say little of
    those that were not drawn (Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37)."""
    sign = 1 if metric.higher_is_better else -1
    if before.ndim == 0:
        a, b = float(before), float(after)
        return a, b, sign * (a - b), None
    k = before.shape[1]
    pairs = np.concatenate([before, after], 1)
    within = interval(
        np.concatenate([pairs, LOST_AND_WON]) if metric.hits else pairs,
        lambda sums, count: sign * (metric.value(sums[:k], count) - metric.value(sums[k:], count)), seed,
    )  # fmt: skip
    a, b = total(metric, before), total(metric, after)
    return a, b, sign * (a - b), within


def likely(metric: Metric, statistics: Floats, seed: int) -> Interval | None:
    """The interval of a metric of one model. To shares two hits and two misses are added (Agresti and Coull 1998, The
    American Statistician 52)."""
    more = RIGHT_AND_WRONG if metric.hits else np.empty((0, statistics.shape[1]))
    return interval(np.concatenate([statistics, more]), metric.value, seed)


def total(metric: Metric | Custom, statistics: Floats) -> float:
    """A metric over all samples, of their statistics [samples, k]."""
    return float(metric.value(statistics.sum(0), np.asarray(float(len(statistics)))))
