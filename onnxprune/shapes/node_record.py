"""A node of the graph, read once: its protobuf is asked again and again otherwise, at every choice of sizes.

Knows one node and the versions of its operators, no sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto

from onnxprune.model import bodies, captured
from onnxprune.shapes.schemas import schema_of

STANDARD = ("", "ai.onnx")
"""Both names of ONNX's own domain."""


@dataclass(frozen=True)
class NodeRecord:
    """What inference asks of a node. signature: equal for nodes that do the same, whatever their tensors are called.
    captured: the outer tensors that its bodies read."""

    proto: NodeProto
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    standard: bool
    schema: Any
    signature: bytes
    captured: tuple[str, ...]


def recorded(node: NodeProto, versions: Mapping[str, int]) -> NodeRecord:
    """A node as a record; `versions` of the operators by domain, that of ONNX's own by ""."""
    standard, outputs = node.domain in STANDARD, tuple(node.output)
    domain = "" if standard else node.domain
    schema = schema_of(node.op_type, domain, versions[domain]) if domain in versions else None
    parts = [node.op_type.encode(), node.domain.encode(), bytes(map(bool, outputs))]
    parts += sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    outer = tuple(dict.fromkeys(name for _, body in bodies(node) for name in captured(body)))
    return NodeRecord(node, node.op_type, tuple(node.input), outputs, standard, schema, b"\0".join(parts), outer)
