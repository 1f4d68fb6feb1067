"""What ONNX Runtime does not survive, or leaves undone without a word: refused before anything is run.

Knows single operators and shapes that were seen to do so, no ids.
"""

from __future__ import annotations

from onnxprune.errors import NothingToPrune, RuntimeFailure
from onnxprune.model import Model, every_node
from onnxprune.shapes.known import Pass

READS = {"Einsum": None, "Loop": 2, "If": 1}
"""How many of an operator's inputs it reads even without elements: all, or what says how often and whether."""
UNSET = ("Conv", "FusedConv")
"""They leave their output as they find it where there are no channels to sum over."""


def check(model: Model, state: Pass) -> None:
    """RuntimeFailure at a node whose shapes end the process, NothingToPrune at one whose output nobody sets."""
    for node in every_node(model.skeleton.graph):
        if node.op_type in READS and any(0 in (state.dims(n) or ()) for n in node.input[: READS[node.op_type]] if n):
            raise RuntimeFailure(
                f"{node.op_type} '{node.name}' reads a tensor without elements, which ONNX Runtime does not survive; "
                "give other sizes with --overwrite-input-shape"
            )
        if node.op_type in UNSET and (state.dims(node.input[0]) or (1, 1))[1:2] == (0,):
            raise NothingToPrune(
                f"{node.op_type} '{node.name}' has no channels to sum over, and ONNX Runtime leaves its output unset: "
                "nothing can be proven of this model"
            )
