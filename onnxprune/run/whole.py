"""All of a model at once: a session where that fits, or a chain of pieces that is called in the same way.

Knows models and their size, no ids and no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from onnx import TensorProto

from onnxprune.model import Array, Model
from onnxprune.run import repeatable
from onnxprune.run.chain import BLOCK, Chain
from onnxprune.run.runtime import open_session

WHOLE = 1 << 30
"""Bytes of weights up to which a model is opened in one: a runtime copies and packs them. The memory that is allowed
has no say here, for kernels that were fused otherwise give other last bits."""
Feeds = Mapping[str, Array]


class Declared(NamedTuple):
    """An output, as a session describes it."""

    name: str
    type: str
    shape: list[int | str]


class Pieces:
    """A model that is too large for one session."""

    def __init__(self, model: Model, providers: Sequence[str], types: Callable[[str], int | None]) -> None:
        self.chain = Chain(repeatable.settled(model, types), providers, types, BLOCK)

    def run(self, names: Sequence[str] | None, feed: Feeds) -> list[Any]:
        """As a session does."""
        return self.chain.run(feed, names)

    def get_outputs(self) -> list[Declared]:
        """As a session does."""
        found = []
        for out in self.chain.model.skeleton.graph.output:
            kind = out.type.tensor_type
            dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
            element = TensorProto.DataType.Name(kind.elem_type).lower()
            found.append(Declared(out.name, f"tensor({element})", dims))
        return found


def in_one(model: Model) -> bool:
    """Whether one session is to hold a model."""
    return sum(w.nbytes for w in model.weights.values()) <= WHOLE


def entire(model: Model, providers: Sequence[str], types: Callable[[str], int | None]) -> Any:
    """A session of a model, or what stands in for one; RuntimeFailure where it cannot be opened. `types`: see
    `Chain`."""
    return open_session(model, providers) if in_one(model) else Pieces(model, providers, types)
