"""What is wrong with labels, as the dense model sees them: off by one, in another order, no better than chance.

Whatever is pruned, the metric can hardly fall on such labels, and a gate would let everything through. All tests are
of bounds that hold with 99 %, so that few samples raise no doubt. Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.measure.intervals import Floats, at_least, at_most
from onnxprune.measure.metrics import IGNORED, Array, Outputs, predicted, scores

Ints = NDArray[np.int64]
POSITIONS = 256
"""Pixels or steps of a sample that are looked at."""
CELLS = 4_000_000
"""Of a table of labels and answers; where there would be more, their order is not looked at."""
CLEAR = 0.25
"""Of the way from chance to all right: a model that has come this far is not said to be near chance, though few samples
may not tell it from that."""
TWICE = 2
"""As many samples are right under another numbering of the labels, or more, where that is said to be meant."""


@dataclass
class Answers:
    """Labels and what the dense model says instead, one or several a sample, all in one row with their samples and
    weights, which sum up to 1 for each sample. classes: how many the model has, None where it does not say.
    folders: names of the folders whose numbers the labels are, if they are."""

    folders: Sequence[str] = ()
    classes: int | None = None
    labels: list[Ints] = field(default_factory=list)
    answers: list[Ints] = field(default_factory=list)
    samples: list[Ints] = field(default_factory=list)
    count: int = 0

    def add(self, outputs: Outputs, labels: Array) -> None:
        """One batch; labels that do not count (see `IGNORED`) are left out where a sample has several."""
        flat = np.asarray(outputs[0]).reshape(len(labels), -1)
        single = labels.size == len(labels)
        whole = flat.dtype.kind in "iub"
        found = (flat if whole else flat.argmax(1)) if single else predicted(outputs)
        self.classes = None if whole else flat.shape[1] if single else scores(outputs).shape[-1]
        ours, theirs = (x.reshape(len(labels), -1).astype(np.int64) for x in (found, labels))
        some = np.random.default_rng(0).permutation(theirs.shape[1])[:POSITIONS]
        numbers = np.broadcast_to(np.arange(self.count, self.count + len(labels))[:, None], (len(labels), len(some)))
        counted = np.full(numbers.shape, True) if single else (theirs[:, some] != IGNORED) & (theirs[:, some] >= 0)
        self.labels.append(theirs[:, some][counted])
        self.answers.append(ours[:, some][counted])
        self.samples.append(numbers[counted])
        self.count += len(labels)

    def doubt(self) -> str:
        """The first that is wrong with the labels, in words; "" where nothing is."""
        labels, answers, samples = (np.concatenate(x) for x in (self.labels, self.answers, self.samples))
        if not len(labels):
            return "no label counts: all are 255 or below 0"
        weights = 1 / np.bincount(samples, minlength=self.count)[samples]
        classes, where = np.unique(answers, return_inverse=True)
        shares = np.bincount(where, weights) / weights.sum()
        case = _Case(labels, answers, samples, weights, (classes, shares))
        return case.off_by_one() or self._outside(labels) or case.reordered(self.folders) or case.by_chance()

    def _outside(self, labels: Ints) -> str:
        """Labels that no answer of the model can be."""
        if self.classes is None or (labels.min() >= 0 and labels.max() < self.classes):
            return ""
        return f"the labels are {labels.min()} to {labels.max()}, but the model has the classes 0 to {self.classes - 1}"


@dataclass
class _Case:
    """Labels [m] of a set of samples beside the answers of a model. shares: how often each class is answered over all
    samples, be they of this set or not."""

    labels: Ints
    answers: Ints
    samples: Ints
    weights: Floats
    shares: tuple[Ints, Floats]

    @property
    def trials(self) -> float:
        """How many samples."""
        return float(self.weights.sum())

    def hits(self, labels: Ints) -> float:
        """How many samples are answered by these labels."""
        return float(self.weights[self.answers == labels].sum())

    def chance(self, labels: Ints) -> float:
        """The share of hits if all answers were dealt out anew."""
        classes, shares = self.shares
        at = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
        return float(self.weights @ np.where(classes[at] == labels, shares[at], 0.0)) / self.trials

    def meant(self, labels: Ints) -> bool:
        """Whether far more samples are right by other `labels` than by those that were given, and not by chance."""
        sure = at_least(self.hits(labels), self.trials)
        return sure > TWICE * at_most(self.hits(self.labels), self.trials) and sure > self.chance(labels)

    def off_by_one(self) -> str:
        """Whether one more, or one less, is meant."""
        for step, word in ((1, "added to"), (-1, "subtracted from")):
            if self.meant(self.labels + step):
                return (
                    f"the labels look off by one: the dense model is right on {self._share(self.labels)} of the "
                    f"samples, and on {self._share(self.labels + step)} with 1 {word} every label"
                )
        return ""

    def reordered(self, folders: Sequence[str]) -> str:
        """Whether the labels are the model's classes in another order: the best assignment of one to the other that is
        found on one half of the samples is tried on the other half, and only on what it moves."""
        names, classes = np.unique(self.labels), np.unique(np.concatenate([self.labels, self.answers]))
        if len(names) < 2 or len(names) * len(classes) > CELLS:
            return ""
        half = (np.random.default_rng(0).permutation(int(self.samples.max()) + 1) % 2)[self.samples]
        mapped = np.concatenate([self._assigned(half == k, half != k, names, classes) for k in (0, 1)])
        order = np.concatenate([np.flatnonzero(half != k) for k in (0, 1)])
        moved = mapped != self.labels[order]
        case = self._of(order[moved])
        if not moved.any() or not case.meant(mapped[moved]):
            return ""
        everything = np.full(len(self.labels), True)
        best = self._assigned(everything, everything, names, classes)
        return self._told(best, folders)

    def _assigned(self, seen: Array, wanted: Array, names: Ints, classes: Ints) -> Ints:
        """The labels of the positions `wanted` as the classes that most answers at the positions `seen` assign to
        them, each label to a class of its own; what is as good as it is stays."""
        rows, columns = np.searchsorted(names, self.labels), np.searchsorted(classes, self.answers)
        table = np.zeros((len(names), len(classes)))
        np.add.at(table, (rows[seen], columns[seen]), self.weights[seen])
        table[np.arange(len(names)), np.searchsorted(classes, names)] += 0.5 * self.weights.min()
        _, best = scipy.optimize.linear_sum_assignment(table, maximize=True)
        found: Ints = classes[best][rows[wanted]]
        return found

    def _of(self, places: Ints) -> _Case:
        return _Case(self.labels[places], self.answers[places], self.samples[places], self.weights[places], self.shares)

    def _told(self, best: Ints, folders: Sequence[str]) -> str:
        moved = dict(sorted(zip(self.labels[best != self.labels], best[best != self.labels], strict=True)))
        some = ", ".join(f"{_name(a, folders)} is class {b}" for a, b in list(moved.items())[:3])
        more = " and so on" if len(moved) > 3 else ""
        what = "the folders of the classes, in order of their names, are" if folders else "the labels are"
        mend = "; name the folders so that they sort as the model's classes do, or give an .npz" if folders else ""
        return (
            f"{what} numbered in another order than the model's classes: it is right on {self._share(self.labels)} of "
            f"the samples, and on {self._share(best)} where {some}{more}{mend}"
        )

    def by_chance(self) -> str:
        """Whether the answers have nothing to do with the labels, as far as these are enough to tell."""
        hits, chance = self.hits(self.labels), self.chance(self.labels)
        near = at_most(hits, self.trials) < chance + CLEAR * (1 - chance)
        if len(np.unique(self.labels)) < 2 or not near or at_least(hits, self.trials) > chance:
            return ""
        return (
            f"the dense model is right on {self._share(self.labels)} of {round(self.trials):,} samples, no more than "
            f"by chance ({chance:.1%}): are these its labels, and are its inputs scaled as in training?"
        )

    def _share(self, labels: Ints) -> str:
        return f"{self.hits(labels) / self.trials:.1%}"


def _name(label: int, folders: Sequence[str]) -> str:
    return f"'{folders[label]}'" if label < len(folders) else f"label {label}"
