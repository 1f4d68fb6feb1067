"""How far the outputs of a model are from the dense ones. Knows outputs and inputs, no curve and no budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

Feeds = Sequence[Mapping[str, NDArray[Any]]]


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
        self.dense = self._outputs(trace.model)

    def error(self, model: Model, known: Mapping[str, list[NDArray[Any]]] | None = None) -> float:
        """Mean over the outputs of squared error by variance. known: of every batch, tensors from which on the model is
        to be run, if not from its inputs."""
        errors = []
        for name, theirs in self._outputs(model, known).items():
            ours = [taken_from(model.taken, name, a) for a in self.dense[name]]
            lost = sum(float(np.square(_wide(a) - _wide(b)).sum()) for a, b in zip(ours, theirs, strict=True))
            mean = sum(_wide(a).sum() for a in ours) / max(sum(a.size for a in ours), 1)
            energy = sum(float(np.square(_wide(a) - mean).sum()) for a in ours)
            errors.append(lost / energy if energy else 0.0)
        return float(np.mean(errors)) if errors else 0.0

    def _outputs(
        self, model: Model, known: Mapping[str, list[NDArray[Any]]] | None = None
    ) -> dict[str, list[NDArray[Any]]]:  # fmt: skip
        types = self.groups.trace.shapes.dtype
        names = [name for name in self.names if not gone(model.taken, name)]
        if known is not None and in_one(model):
            walk = Walk(model, self.feeds, types, self.providers)
            walk.values |= known
            found = walk.at(names)
        else:
            found = self._whole(model, names)
        return {
            name: [np.asarray(y) for y in ys]
            for name, ys in zip(names, found, strict=True)
            if isinstance(ys[0], np.ndarray) and ys[0].dtype.kind == "f"
        }

    def _whole(self, model: Model, names: Sequence[str]) -> list[list[Any]]:
        """What these outputs are in every batch."""
        types = self.groups.trace.shapes.dtype
        session = entire(with_outputs(types, model, self.taps), self.providers, types)
        try:
            runs = [session.run(names, dict(feed)) for feed in self.feeds]
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise RuntimeFailure(f"ONNX Runtime failed on calibration inputs: {first_line(error)}") from error
        return [list(ys) for ys in zip(*runs, strict=True)]


def _wide(array: NDArray[Any]) -> NDArray[np.float64]:
    """One batch in float64: all of a language model's scores would take much memory."""
    return np.asarray(array, np.float64)
