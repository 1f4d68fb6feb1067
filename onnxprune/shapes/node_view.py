"""One node as the inference of sizes sees it: attributes, shapes and values of its inputs, and what it needs of them.

Knows one node, not the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from onnx import NodeProto, TensorProto, TypeProto, helper

from onnxprune.shapes.symbolic_values import Value
from onnxprune.shapes.symbols import Dim, Size, evaluated
from onnxprune.shapes.values import attributes

SymbolicDims = tuple[Dim | None, ...]
"""Of a tensor: numbers, expressions, or None for what has no form."""
ValueType = tuple[int, SymbolicDims | None] | bytes
"""(element type, dims) of a tensor; the serialised TypeProto of a sequence, map or optional."""
ValueTypes = Sequence[ValueType | None]
"""Of the inputs or outputs of a node; None where nothing is known."""
OutputDims = Sequence[SymbolicDims | None]
"""Of the outputs of a node; None where the rank is not known."""
Relation = Literal["multiple", "same", "is", "fits", "holds"]
Need = tuple[Relation, Dim, Dim]
"""Of two sizes: the first is a multiple of the second, is the same, is this number and no other at any time, can be
broadcast against it, or is not smaller."""


@dataclass
class View:
    """What a rule sees of its node. needs: what has to hold for the node to run."""

    node: NodeProto
    types: ValueTypes
    values: Sequence[Value | None]
    opset: int
    needs: list[Need] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.attributes: dict[str, Any] = attributes(self.node)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as a Python value."""
        return self.attributes.get(name, default)

    def word(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def dims(self, i: int) -> SymbolicDims | None:
        """Those of input `i`; None where it is absent or its rank unknown."""
        value_type = self.types[i] if i < len(self.types) else None
        return value_type[1] if isinstance(value_type, tuple) else None

    def element(self, i: int) -> int:
        """The element type of input `i`; UNDEFINED where it is absent, unknown or no tensor."""
        value_type = self.types[i] if i < len(self.types) else None
        return value_type[0] if isinstance(value_type, tuple) else TensorProto.UNDEFINED

    def entries(self, i: int, name: str = "") -> list[Any] | None:
        """The entries of a vector, given as an attribute or as input `i`: numbers, expressions, None for unknown ones.
        None where not even their number is known."""
        if name and name in self.attributes:
            return list(np.atleast_1d(self.attributes[name]))
        value = self.values[i] if i < len(self.values) else None
        if value is not None:
            return [x.item() if isinstance(x, np.generic) else x for x in value.data.ravel()]
        dims = self.dims(i)
        known = dims is not None and len(dims) == 1 and isinstance(dims[0], int)
        return [None] * int(dims[0]) if known and dims and isinstance(dims[0], int) else None

    def need(self, relation: Relation, a: Dim | None, b: Dim | None) -> None:
        """Note that the node runs only where this holds; of a size without a form nothing can be said."""
        if a is not None and b is not None and a != b:
            self.needs.append((relation, a, b))

    def given(self, i: int) -> bool:
        """Whether the node has an input `i`."""
        return i < len(self.node.input) and self.node.input[i] != ""


def holds(need: Need, sizes: Mapping[str, int]) -> bool:
    """Whether it does at these sizes of the symbols, as far as that can be said."""
    relation, *pair = need
    p, q = (evaluated(x, sizes) for x in pair)
    if p is None or q is None:
        return True
    if relation == "multiple":
        return q != 0 and p % q == 0
    if relation == "holds":
        return p >= q
    return p == q or (relation == "fits" and 1 in (p, q))


def dims_of(value_type: ValueType | None) -> SymbolicDims | None:
    """The dims of a tensor; None for what is none, or of unknown rank."""
    return value_type[1] if isinstance(value_type, tuple) else None


def is_open(types: ValueTypes, values: Sequence[Value | None]) -> bool:
    """Whether a size or a value is no number."""
    if any(v is not None and not v.whole for v in values):
        return True
    return any(not isinstance(d, int) for k in types for d in dims_of(k) or ()) or None in types


def is_vague(types: ValueTypes | None) -> bool:
    """Whether ONNX's inference left something open."""
    return any(dims_of(k) is None or None in (dims_of(k) or ()) for k in types or () if not isinstance(k, bytes))


def merged(onnx_says: ValueTypes | None, rule_says: ValueTypes | None) -> ValueTypes | None:
    """Numbers as ONNX infers them; what it leaves open as the rule says."""
    if onnx_says is None or rule_says is None:
        return onnx_says if rule_says is None else rule_says
    paired = zip_longest(onnx_says[: len(rule_says)], rule_says)
    return [*(_completed(value_type, rule) for value_type, rule in paired), *onnx_says[len(rule_says) :]]


def _completed(value_type: ValueType | None, rule: ValueType | None) -> ValueType | None:
    """A type that ONNX inferred, with the sizes that a rule knows."""
    if not isinstance(value_type, tuple) or value_type[1] is None:
        return value_type if isinstance(value_type, bytes) else rule
    if not isinstance(rule, tuple) or rule[1] is None or len(rule[1]) != len(value_type[1]):
        return value_type
    dims = (a if isinstance(a, int) or b is None else b for a, b in zip(value_type[1], rule[1], strict=True))
    return value_type[0] or rule[0], tuple(dims)


def type_of(value_type: ValueType) -> TypeProto:
    """The protobuf for it, in which an expression is the name of a dimension."""
    if isinstance(value_type, bytes):
        proto = TypeProto()
        proto.ParseFromString(value_type)
        return proto
    element, dims = value_type
    named = None if dims is None else [d.text if isinstance(d, Size) else d for d in dims]
    return helper.make_tensor_type_proto(element, named)
