"""What is known of one node before any label: its attributes, and the sizes and values of its tensors.

Knows shapes and parameters, no blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto

from onnxprune.model import opset, value_of
from onnxprune.shapes import Dim
from onnxprune.trace.operands import Dims
from onnxprune.trace.tracing import Trace


@dataclass
class NodeFacts:
    """One node: inputs and outputs are asked for by their index in the operator's definition."""

    trace: Trace
    index: int
    node: NodeProto

    def __post_init__(self) -> None:
        self.inputs, self.outputs = tuple(self.node.input), tuple(self.node.output)
        kind, domain = self.node.op_type, self.node.domain
        self.type = kind if domain in ("", "ai.onnx") else f"{domain}::{kind}"

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of an attribute; `default` where the node has none of that name."""
        found = self._attributes.get(name)
        return default if found is None else value_of(found)

    @cached_property
    def _attributes(self) -> dict[str, AttributeProto]:
        return {a.name: a for a in reversed(self.node.attribute)}  # of a name that is there twice the first

    @property
    def opset(self) -> int:
        """The version of the operator set that the node is of."""
        return opset(self.trace.model, self.node.domain)

    def has(self, i: int) -> bool:
        """Whether input `i` is given."""
        return i < len(self.inputs) and self.inputs[i] != ""

    def has_output(self, i: int) -> bool:
        """Whether output `i` is asked for."""
        return i < len(self.outputs) and self.outputs[i] != ""

    def is_parameter(self, i: int) -> bool:
        """Whether input `i` is a parameter, and not computed."""
        return self.inputs[i] in self.trace.model.weights

    def rank(self, i: int) -> int | None:
        """Axes of input `i`; None where that is not known."""
        return self.trace.rank(self.inputs[i])

    def out_rank(self, i: int = 0) -> int | None:
        """Axes of output `i`; None where that is not known."""
        return self.trace.rank(self.outputs[i])

    def dims(self, i: int) -> Dims:
        """The static dims of input `i`, None for one that is open; () where it is not given, or its rank not known."""
        return (self.trace.shapes.static(self.inputs[i]) or ()) if self.has(i) else ()

    def out_dims(self, i: int = 0) -> Dims:
        """The static dims of output `i`, None for one that is open; () where its rank is not known."""
        return self.trace.shapes.static(self.outputs[i]) or ()

    def sizes(self, i: int) -> tuple[Dim, ...] | None:
        """The dims of an input, open ones as expressions; None where its rank is not known."""
        return self.trace.shapes.sizes(self.inputs[i])

    def out_sizes(self, i: int = 0) -> tuple[Dim, ...] | None:
        """The dims of an output, open ones as expressions; None where its rank is not known."""
        return self.trace.shapes.sizes(self.outputs[i])

    def elements(self, i: int) -> tuple[str, ...] | None:
        """The names of the tensors that input `i`, a sequence, holds; None where they are not known."""
        return self.trace.shapes.elements(self.inputs[i])

    def out_elements(self) -> tuple[str, ...] | None:
        """The names of the tensors that the output, a sequence, holds; None where they are not known."""
        return self.trace.shapes.elements(self.outputs[0])

    def value(self, i: int) -> np.ndarray | None:
        """The value of input `i` where it is known and small; None where it is not, or not given."""
        return self.trace.shapes.value(self.inputs[i]) if self.has(i) else None

    def table(self, i: int) -> np.ndarray | None:
        """The value of an input, be it a parameter of many elements."""
        value, weight = self.value(i), self.trace.model.weights.get(self.inputs[i])
        return weight.array() if value is None and weight is not None else value

    def partial(self, i: int) -> list[int | None] | None:
        """The entries of an integer vector, None where one is known at run time only."""
        value = self.value(i)
        if value is not None:
            return [int(v) for v in np.asarray(value).ravel()]
        found = self.trace.shapes.partial(self.inputs[i]) if self.has(i) else None
        if found is None:
            return None
        entries, known = (x.ravel() for x in found)
        return [int(v) if k else None for v, k in zip(entries, known, strict=True)]

    def first_dims(self, i: int) -> Dims:
        """The dims of input `i` in the first run for shapes; () where it did not run."""
        return self.trace.shapes.probe[0].get(self.inputs[i]) or ()

    def readers(self, i: int) -> set[str]:
        """The types of the operators that read an output; "" where the model hands it out."""
        nodes = self.trace.nodes
        return {nodes[k].op_type if k < len(nodes) else "" for k in self.trace.readers.get(self.outputs[i], ())}
