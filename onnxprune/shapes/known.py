"""What one pass over the nodes finds out: types, shapes and small values of tensors. Knows sizes and values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxprune.shapes.grids import Grid
from onnxprune.shapes.node_view import Need, SymbolicDims, ValueType, dims_of
from onnxprune.shapes.symbolic_values import Value
from onnxprune.shapes.symbols import Size, unknown
from onnxprune.shapes.values import Dims


@dataclass
class Pass:
    """What is known at one choice of input sizes. failures: how many nodes cannot run at these sizes. needs: what
    has to hold, in expressions, for all nodes to run. sequences: what each holds, see `shapes.sequences`."""

    types: dict[str, ValueType]
    values: dict[str, Value] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    failures: int = 0
    needs: list[Need] = field(default_factory=list)
    sequences: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def sizes(self, name: str) -> SymbolicDims | None:
        """The dims of a tensor: numbers and expressions."""
        return dims_of(self.types.get(name))

    def dims(self, name: str) -> Dims | None:
        """The dims that are numbers, None for the others; None where not even the rank is known."""
        sizes = self.sizes(name)
        return None if sizes is None else tuple([None if isinstance(d, Size) else d for d in sizes])

    def give(self, name: str, value_type: ValueType) -> None:
        """What is not known of a tensor gets a name, so that it can be compared with itself."""
        if isinstance(value_type, tuple) and value_type[1] is not None and None in value_type[1]:
            dims = (unknown(name, k) if d is None else d for k, d in enumerate(value_type[1]))
            value_type = (value_type[0], tuple(dims))
        self.types[name] = value_type
