"""What ends the process when ONNX Runtime runs it, instead of raising an error: refused before it gets there.

Knows single operators and shapes that were seen to do so, no ids.
"""

from __future__ import annotations

from onnxprune.errors import RuntimeFailure
from onnxprune.inference import Pass
from onnxprune.model import Model


def check(model: Model, state: Pass) -> None:
    """RuntimeFailure at a node whose shapes are such ones."""
    for node in model.proto.graph.node:
        if node.op_type == "Einsum" and any(0 in (state.dims(name) or ()) for name in node.input):
            raise RuntimeFailure(f"Einsum '{node.name}' reads a tensor without elements, which ONNX Runtime does not "
                                 "survive; give other sizes with --overwrite-input-shape")  # fmt: skip
