"""How far the outputs of a model are from the dense ones. Knows outputs and inputs, no curve and no budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import cache_outputs, describe
from onnxprune.errors import RuntimeFailure
from onnxprune.fit import Walk
from onnxprune.model import Model, gone, taken_from
from onnxprune.prove import Places, with_outputs
from onnxprune.run import entire, first_line, in_one
from onnxprune.trace import Groups

Array = NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
HELD = 1 << 28
"""Bytes of the dense model's outputs that are kept from one model to the next; where there are more of them (the scores
of a language model) it is run again beside each, batch by batch."""


class OutputError:
    """How far a model's outputs are from the dense ones over `feeds`, as a share of their variance.

    Caches are given out beside what a model is for, and left out where there is anything else. A saturating operator
    that ends the graph (softmax) is judged by what goes into it."""

    def __init__(self, groups: Groups, feeds: Feeds, providers: Sequence[str]) -> None:
        self.groups, self.feeds, self.providers = groups, feeds, providers
        trace = groups.trace
        places = Places(trace, np.ones(trace.labels.n, bool))
        self.taps, ends = places.taps, places.ends
        covered = {o for n in trace.model.skeleton.graph.node if set(self.taps) & set(n.input) and n.output[0] in ends
                   for o in ends[n.output[0]]}  # fmt: skip
        caches = cache_outputs(trace.model, describe(trace.model, trace.shapes))
        others = [o.name for o in trace.model.skeleton.graph.output if o.name not in covered]
        told = [*self.taps, *others]
        self.names = [name for name in told if name not in caches] or told
        self.dense = self._held()

    def error(self, model: Model, known: Mapping[str, list[Any]] | None = None) -> float:
        """Mean over the outputs of squared error by variance. known: of every batch, tensors from which on the model is
        to be run, if not from its inputs. What one batch makes is let go of before the next, where it is large."""
        sums: dict[str, _Sums] = {}
        dense = self.dense or self._runs(self.groups.trace.model)
        for ours, theirs in zip(dense, self._runs(model, known), strict=True):
            for name, other in theirs.items():
                sums.setdefault(name, _Sums()).add(taken_from(model.taken, name, ours[name]), other)
        return float(np.mean([found.error for found in sums.values()])) if sums else 0.0

    def _held(self) -> list[dict[str, Array]]:
        """What the dense model gives, by batch; nothing where that is too much to keep."""
        found, held = [], 0
        for outputs in self._runs(self.groups.trace.model):
            held += sum(array.nbytes for array in outputs.values())
            if held > HELD:
                return []
            found.append(outputs)
        return found

    def _runs(self, model: Model, known: Mapping[str, list[Any]] | None = None) -> Iterator[dict[str, Array]]:
        """The floats that a model gives, batch by batch."""
        names = [name for name in self.names if not gone(model.taken, name)]
        goes_on = known is not None and in_one(model)
        runs = self._continued(model, names, known or {}) if goes_on else self._whole(model, names)
        for got in runs:
            floats = ((n, y) for n, y in zip(names, got, strict=True) if isinstance(y, np.ndarray))
            yield {name: y for name, y in floats if y.dtype.kind == "f"}

    def _continued(self, model: Model, names: Sequence[str], known: Mapping[str, list[Any]]) -> Iterable[Sequence[Any]]:
        """What these outputs are in every batch, run for from what is known: at once, where that is not much."""
        walk = Walk(model, self.feeds, self.groups.trace.shapes.dtype, self.providers)
        walk.values |= known
        if self.dense:
            return zip(*walk.at(names), strict=True)
        walk.at(sorted({n for name in names for n in walk.behind(name)} - {""}))
        return zip(*(walk.once(name) for name in names), strict=True)

    def _whole(self, model: Model, names: Sequence[str]) -> Iterator[Sequence[Any]]:
        """What these outputs are in every batch, from the inputs on."""
        types = self.groups.trace.shapes.dtype
        session = entire(with_outputs(types, model, self.taps), self.providers, types)
        for feed in self.feeds:
            try:
                yield session.run(names, dict(feed))
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                raise RuntimeFailure(f"ONNX Runtime failed on calibration inputs: {first_line(error)}") from error


@dataclass
class _Sums:
    """Over all batches of one output: squared errors, and what the variance of the dense one is made of. Numbers are
    counted from the first one, so that what never changes has a variance of exactly zero."""

    lost: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    count: int = 0
    origin: float | None = None

    def add(self, dense: Array, other: Array) -> None:
        """One more batch."""
        ours = np.asarray(dense, np.float64)  # one batch of it: all of a language model's scores would take much memory
        self.lost += float(np.square(ours - np.asarray(other, np.float64)).sum())
        if self.origin is None and ours.size:
            self.origin = float(ours.flat[0])
        ours = ours - (self.origin or 0.0)
        self.total += float(ours.sum())
        self.squares += float(np.square(ours).sum())
        self.count += ours.size

    @property
    def error(self) -> float:
        """Squared errors by variance; nothing is lost of what never changes."""
        energy = self.squares - self.total**2 / max(self.count, 1)
        return self.lost / energy if energy > 0 or np.isnan(energy) else 0.0
