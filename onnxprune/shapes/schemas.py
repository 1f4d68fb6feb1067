"""Does a node have what its operator asks for? So that no rule need ask again.

Knows one node and ONNX's definitions.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
from onnx import NodeProto
from onnx.defs import OpSchema


def misfit(node: NodeProto, opset: int) -> str:
    """What a node lacks of that which ONNX says of its operator, or ""; an operator that ONNX does not know fits."""
    schema = schema_of(node.op_type, "" if node.domain == "ai.onnx" else node.domain, opset)
    found = "" if schema is None else _miscounted(node, schema) or _missing(node, schema) or _mistyped(node, schema)
    return f"does not fit its operator: {found}" if found else ""


def _miscounted(node: NodeProto, schema: Any) -> str:
    for kind, names, least, most in (
        ("inputs", node.input, schema.min_input, schema.max_input),
        ("outputs", node.output, schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            return f"it has {len(names)} {kind}, not {least} to {most}"
    return ""


def _missing(node: NodeProto, schema: Any) -> str:
    """Inputs and attributes that have to be there and are not."""
    single = OpSchema.FormalParameterOption.Single
    needed = zip(node.input, schema.inputs, strict=False)
    missing = [formal.name for name, formal in needed if not name and formal.option == single]
    given = {a.name for a in node.attribute}
    missing += [name for name, a in schema.attributes.items() if a.required and name not in given]
    return f"it lacks {', '.join(missing)}" if missing else ""


def _mistyped(node: NodeProto, schema: Any) -> str:
    """Attributes that are of another type than the operator's."""
    kinds = {a.name: (a.type, int(schema.attributes[a.name].type)) for a in node.attribute
             if a.name in schema.attributes}  # fmt: skip
    wrong = [n for n, (has, wants) in kinds.items() if has not in (0, wants)]  # 0: files older than the field
    return f"{', '.join(wrong)} is of another type" if wrong else ""


@cache
def schema_of(op_type: str, domain: str, opset: int) -> Any:
    """ONNX's definition of an operator at this version of its domain; None where it has none."""
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
