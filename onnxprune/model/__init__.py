"""The model: its weights and files, the protobuf in a normal form, walks over its graph.

Knows files and protobuf, no sizes and no stage.
"""

from __future__ import annotations

from onnxprune.model.aside import Aside, Held, aside_in, space_aside
from onnxprune.model.graph import (
    Scope,
    attribute,
    attributes,
    bodies,
    captured,
    defined,
    every_node,
    forget_shapes,
    needs,
    nested,
    rearranged,
    renamed,
    retain,
    scopes,
    value_of,
)
from onnxprune.model.model import SESSION_LIMIT, Model, opset
from onnxprune.model.normalise import set_nodes, sorted_nodes
from onnxprune.model.taken import Taken, fitted, gone, taken_from
from onnxprune.model.topology import Topology
from onnxprune.model.unneeded import unneeded
from onnxprune.model.weight import FLOATS, HALVES, Array, Derived, Stored, Weight, dtype_of, nbytes_of

__all__ = [
    "FLOATS",
    "HALVES",
    "SESSION_LIMIT",
    "Array",
    "Aside",
    "Derived",
    "Held",
    "Model",
    "Scope",
    "Stored",
    "Taken",
    "Topology",
    "Weight",
    "aside_in",
    "attribute", "attributes", "bodies",
    "captured",
    "defined",
    "dtype_of",
    "every_node",
    "fitted",
    "forget_shapes",
    "gone",
    "nbytes_of",
    "needs",
    "nested",
    "opset",
    "rearranged",
    "renamed",
    "retain",
    "scopes",
    "set_nodes",
    "sorted_nodes",
    "space_aside",
    "taken_from",
    "unneeded",
    "value_of",
]  # fmt: skip
