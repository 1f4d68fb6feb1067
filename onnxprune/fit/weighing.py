"""What walks hold at each layer, worked out before they are made: the same walks over tensors that take no memory.

Knows layers and shapes, no values; nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import helper

from onnxprune.fit.finding import layers
from onnxprune.fit.linear import DimsOf, Extent, Linear
from onnxprune.fit.tails import tail
from onnxprune.fit.walk import Walk
from onnxprune.model import Array
from onnxprune.trace import Trace


@dataclass(frozen=True)
class Held:
    """At one layer: bytes of the activations that both walks hold, and how large the layer is."""

    walked: int
    extent: Extent


class _Weighed(Walk):
    """A walk of one batch in which a tensor takes no memory, whatever its shape."""

    def __init__(self, trace: Trace, dims: DimsOf) -> None:
        super().__init__(trace.model, (), trace.shapes.dtype)
        self.dims = dims
        self.batches, self.inputs = 1, {i.name for i in trace.model.skeleton.graph.input} - trace.model.weights.keys()
        self.values = self._computed((), (), sorted(self.inputs))

    def _computed(self, nodes: Sequence[int], ins: Sequence[str], outs: Sequence[str]) -> dict[str, list[Array]]:
        return {name: [self._nothing(name)] for name in outs}

    def _nothing(self, name: str) -> Array:
        kind, shape = self.types(name), [n or 1 for n in self.dims(name) or (0,)]
        dtype = helper.tensor_dtype_to_np_dtype(kind) if kind else np.dtype(np.float32)
        return np.broadcast_to(np.zeros((), np.float32 if dtype.hasobject else dtype), shape)

    def reached(self, names: Iterable[str]) -> int:
        """Bytes of what is at hand when these tensors are."""
        for name in filter(None, names):
            self.value(name)
        return self.held

    @property
    def held(self) -> int:
        """Bytes of what is at hand."""
        return sum(v[0].nbytes for v in self.values.values())


def _read(layer: Linear, walk: Walk) -> list[str]:
    """What a layer's `inputs` asks for: with what it gave before, where that comes back."""
    return [layer.data, walk.tap(layer.index)] if layer.feeds_back else [layer.data]


def weigh(trace: Trace, dims: DimsOf, refit: bool) -> Iterator[Held]:
    """Every layer in order, where the tensors of one batch have these `dims`.

    `refit`: not only what the layers read is looked at, but also the network that was cut, beside what the layers of
    the dense one gave. It is taken to be as wide as that."""
    dense, cut = _Weighed(trace, dims), _Weighed(trace, dims)
    found = layers(trace.model, trace.rank)
    for k, layer in enumerate(found):
        extent = layer.extent(dims)
        if extent is None:
            continue
        if refit:
            its = tail(layer, dense, extent.groups * extent.outputs, trace.rank(layer.out))
            most = dense.reached(dense.behind(its.compared) if its.compared else _read(layer, dense)) + cut.held
            if not layer.feeds_back:
                dense.release([its.compared])
            most = max(most, dense.held + cut.reached([*_read(layer, cut), its.other]))
        else:
            most = dense.reached(_read(layer, dense))
        yield Held(most, extent)
        if k + 1 == len(found) or found[k + 1].index != layer.index:
            dense.release()
            cut.release()
