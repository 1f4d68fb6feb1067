"""What ends the process when ONNX Runtime runs it, instead of raising an error: refused before it gets there.

Knows single operators and shapes that were seen to do so, no ids.
"""

from __future__ import annotations

from onnxprune.errors import RuntimeFailure
from onnxprune.model import Model, every_node
from onnxprune.shapes.known import Pass

READS = {"Einsum": None, "Loop": 2, "If": 1}
"""How many of an operator's inputs it reads even without elements: all, or what says how often and whether."""


def check(model: Model, state: Pass) -> None:
    """RuntimeFailure at a node whose shapes are such ones."""
    for node in every_node(model.skeleton.graph):
        if node.op_type in READS and any(0 in (state.dims(n) or ()) for n in node.input[: READS[node.op_type]] if n):
            raise RuntimeFailure(
                f"{node.op_type} '{node.name}' reads a tensor without elements, which ONNX Runtime does not survive; "
                "give other sizes with --overwrite-input-shape"
            )
