"""What ONNX's own shape inference does not check: whether a node can run at its shapes.

Knows one node, not the graph.
"""

from __future__ import annotations

import math

from onnx import NodeProto

from onnxprune.model import attribute, traits
from onnxprune.shapes.node_view import SymbolicDims, ValueTypes, dims_of
from onnxprune.shapes.symbolic_values import Array, Value
from onnxprune.shapes.symbols import Dim

_SPATIAL = traits.POOLS | {"Conv", "ConvInteger", "ConvTranspose", "QLinearConv"}
LIKE_FIRST = frozenset([
    "GroupNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization", "ImageScaler", "Affine", "Scale",
    "ScaledTanh", "ParametricSoftplus", "ai.onnx.ml::Binarizer", "ai.onnx.ml::Imputer", "ai.onnx.ml::Normalizer",
    "ai.onnx.ml::Scaler",
])  # fmt: skip
"""Operators, by the keys of their rules, whose first output has the shape of the first input although ONNX's inference
may not say so."""
_TARGETED = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}
"""Operators with a target shape, and at which input."""
MOST_AXES = 64
"""Of any tensor; numpy ends there."""


def _element_count(dims: SymbolicDims | None) -> int | None:
    known = [d for d in dims or () if isinstance(d, int)]
    return math.prod(known) if dims is not None and len(known) == len(dims) else None


def plausible(node: NodeProto, types: ValueTypes, out: ValueTypes) -> bool:
    """Whether the node can run at these shapes, as far as ONNX's inference does not check it."""
    dims = [dims_of(k) for k in out]
    if any(isinstance(d, int) and d < (node.op_type in _SPATIAL) for ds in dims if ds for d in ds):
        return False
    if node.op_type == "Reshape":
        before, after = _element_count(dims_of(types[0])), _element_count(dims[0])
        return before is None or after is None or before == after
    return True


def possible(node: NodeProto, types: ValueTypes, index: Value | None) -> bool:
    """Whether a node may be shown to ONNX's inference at all: a target shape of a million axes is written out there, an
    equation may keep it busy for ever."""
    at = _TARGETED.get(node.op_type)
    target = dims_of(types[at]) if at is not None and at < len(types) else None
    if target and isinstance(target[0], int) and target[0] > MOST_AXES:
        return False
    if node.op_type == "Einsum" and _circular(node):
        return False
    return in_range(node, dims_of(types[0]) if types else None, index)


def _circular(node: NodeProto) -> bool:
    """A term with two ellipses is no equation, and ONNX's inference never comes to its end."""
    equation = str(attribute(node, "equation", ""))
    return any(term.count("...") > 1 for term in equation.split("->")[0].split(","))


def in_range(node: NodeProto, dims: SymbolicDims | None, index: Value | None) -> bool:
    """Whether a Gather finds its known indices: a table of positions, a mask over the past are only so long."""
    if (
        node.op_type not in ("Gather", "GatherND")
        or not dims
        or index is None
        or not index.whole
        or not index.data.size
    ):
        return True
    if node.op_type == "GatherND":
        skipped = attribute(node, "batch_dims", 0)
        lists = index.data.reshape(-1, index.data.shape[-1]).T
        return all(_within(x, n) for x, n in zip(lists, dims[skipped:], strict=False))
    return _within(index.data, dims[attribute(node, "axis", 0)])


def _within(index: Array, size: Dim | None) -> bool:
    return not isinstance(size, int) or -size <= int(index.min()) <= int(index.max()) < size
