"""What ends the process when ONNX Runtime runs it, instead of raising an error: refused before it gets there."""

from __future__ import annotations

import numpy as np

from onnxprune.errors import RuntimeFailure
from onnxprune.inference import Pass
from onnxprune.model import Model
from onnxprune.shapes import Shapes


def check(model: Model, shapes: Shapes) -> None:
    """RuntimeFailure at a node whose known shapes or values are such ones."""
    for state in shapes.passes:
        for node in model.proto.graph.node:
            why = ""
            if node.op_type == "Einsum" and any(0 in (state.dims(name) or ()) for name in node.input):
                why = "reads a tensor without elements"
            elif node.op_type in ("Div", "Mod") and len(node.input) == 2 and _by_zero(shapes, state, node.input[1]):
                why = "divides integers by zero"
            if why:
                raise RuntimeFailure(f"{node.op_type} '{node.name}' {why}, which ONNX Runtime does not survive; "
                                     "export the model again, or give other sizes with --overwrite-input-shape")  # fmt: skip


def _by_zero(shapes: Shapes, state: Pass, name: str) -> bool:
    value = state.values.get(name) or shapes.constant(name)
    if value is None or value.data.dtype.kind not in "iu":
        return False
    return bool((np.asarray(value.data) == 0)[value.mask].any())
