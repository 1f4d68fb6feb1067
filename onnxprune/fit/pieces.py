"""Parameters that a graph cuts out of others and joins: exporters put the gates of an LSTM into another order that way.

Where every number goes is found by running the expression once on the places of the numbers instead of the numbers;
then it can be read without running anything, and written back. Knows parameters and what moves them, no units.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune.fit.expressions import Parameter, parameter, stored
from onnxprune.model import Array, Model, Topology, Weight, traits
from onnxprune.run import open_session


@dataclass(frozen=True)
class Pieces:
    """The tensor `name`, every number of which is another one of the initializers `roots`. places, in the shape of the
    tensor: where it stands among those of all of them, one after another."""

    name: str
    roots: tuple[str, ...]
    places: NDArray[np.int64]

    @property
    def key(self) -> Hashable:
        """Equal for the same numbers in the same places."""
        return self.roots, self.places.shape, self.places.tobytes()

    def shape(self, model: Model) -> tuple[int, ...]:
        """Of its value."""
        return self.places.shape

    def read(self, model: Model) -> Array:
        """Its value, float64."""
        return np.asarray(self._all(model)[self.places])

    def write(self, model: Model, value: Array) -> None:
        """Store the nearest value that the types of the initializers can hold; numbers of theirs that are not in here
        stay as they are."""
        every = self._all(model)
        every[self.places] = value
        start = 0
        for root in self.roots:
            weight = model.weights[root]
            own = every[start : start + weight.size].reshape(weight.shape)
            model.put(root, stored(own, weight.dtype), weight.onnx_type)
            start += weight.size

    def _all(self, model: Model) -> Array:
        """[numbers of all roots], float64"""
        return np.concatenate([model.weights[root].array().astype(np.float64).ravel() for root in self.roots])


def moved(name: str, graph: Topology) -> Parameter | Pieces | None:
    """What a tensor is as `parameter` has it, or the pieces that it is made of; None where it depends on an input or on
    an operator that does more than move numbers, or where it has one of them twice."""
    own = parameter(name, graph.model, graph.makers)
    roots = None if own is not None else _roots(name, graph)
    if not roots:
        return own
    piece = graph.piece(
        sorted(graph.ancestors([name])), (), [helper.make_tensor_value_info(name, TensorProto.INT64, None)]
    )
    start = 0
    for root in roots:
        weight = graph.model.weights[root]
        piece.weights[root] = Weight.of(np.arange(start, start + weight.size).reshape(weight.shape))
        start += weight.size
    places = open_session(piece, ("cpu",)).run([name], {})[0]
    return Pieces(name, roots, places) if np.unique(places).size == places.size else None


def _roots(name: str, graph: Topology) -> tuple[str, ...]:
    """The initializers whose numbers are moved into a tensor, in the order of their names; none where anything else
    goes into it."""
    weights, found, todo = graph.model.weights, set[str](), [name]
    while todo:
        tensor = todo.pop()
        if tensor in weights:
            found.add(tensor)
            continue
        node = graph.makers.get(tensor)
        if node is None or node.op_type not in traits.PIECING_PARAMETERS:
            return ()
        data = len(node.input) if node.op_type == "Concat" else 1
        if any(n and n not in weights for n in node.input[data:]):
            return ()
        todo += node.input[:data]
    return tuple(sorted(found)) if all(weights[root].dtype.kind in "fV" for root in found) else ()
