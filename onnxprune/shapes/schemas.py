"""Does a node have what its operator asks for? So that no rule need ask again.

Knows one node and ONNX's definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import onnx
from onnx import NodeProto
from onnx.defs import OpSchema

Kinds = Sequence[tuple[str, int]]
"""Names and types of the attributes of a node."""


def misfit(node: NodeProto, opset: int) -> str:
    """What a node lacks of that which ONNX says of its operator, or ""; an operator that ONNX does not know fits."""
    asked = _asked(node.op_type, "" if node.domain == "ai.onnx" else node.domain, opset)
    if asked is None:
        return ""
    kinds = [(a.name, a.type) for a in node.attribute]
    found = _miscounted(node, asked) or _missing(node, asked, kinds) or _mistyped(asked, kinds)
    return f"does not fit its operator: {found}" if found else ""


class _Asked(NamedTuple):
    """What a definition asks of a node, read once: every look at a schema copies it.

    inputs, outputs: the least and the most. names: of the inputs, "" for those that may be left out. required:
    attributes that have to be there; types: of all attributes."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    names: tuple[str, ...]
    required: tuple[str, ...]
    types: dict[str, int]


@cache
def _asked(op_type: str, domain: str, opset: int) -> _Asked | None:
    schema = schema_of(op_type, domain, opset)
    if schema is None:
        return None
    single, attributes = OpSchema.FormalParameterOption.Single, schema.attributes
    return _Asked(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        tuple(formal.name if formal.option == single else "" for formal in schema.inputs),
        tuple(name for name, a in attributes.items() if a.required),
        {name: int(a.type) for name, a in attributes.items()},
    )


def _miscounted(node: NodeProto, asked: _Asked) -> str:
    for kind, names, (least, most) in (
        ("inputs", node.input, asked.inputs), ("outputs", node.output, asked.outputs),
    ):  # fmt: skip
        if not least <= len(names) <= most:
            return f"it has {len(names)} {kind}, not {least} to {most}"
    return ""


def _missing(node: NodeProto, asked: _Asked, kinds: Kinds) -> str:
    """Inputs and attributes that have to be there and are not."""
    missing = [formal for name, formal in zip(node.input, asked.names, strict=False) if formal and not name]
    if asked.required:
        given = {name for name, _ in kinds}
        missing += [name for name in asked.required if name not in given]
    return f"it lacks {', '.join(missing)}" if missing else ""


def _mistyped(asked: _Asked, kinds: Kinds) -> str:
    """Attributes that are of another type than the operator's."""
    wrong = [n for n, has in kinds if has not in (0, asked.types.get(n, has))]  # 0: files older than the field
    return f"{', '.join(wrong)} is of another type" if wrong else ""


@cache
def schema_of(op_type: str, domain: str, opset: int) -> Any:
    """ONNX's definition of an operator at this version of its domain; None where it has none."""
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
