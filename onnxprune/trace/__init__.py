"""Tracing: rules over the graph give label blocks, couplings, reductions and edits; groups are what they amount to.

Knows shapes and models, no importance.
"""

from __future__ import annotations

from onnxprune.trace.cells import Cells
from onnxprune.trace.classes import joined
from onnxprune.trace.dependencies import dependencies
from onnxprune.trace.editor import Editor
from onnxprune.trace.grouping import build
from onnxprune.trace.groups import Groups
from onnxprune.trace.kept import kept_shape, positions, take_kept
from onnxprune.trace.labels import KEPT, Block, Ids, Labels, Mask, Reason
from onnxprune.trace.layers import Layers
from onnxprune.trace.node_editor import new_dims
from onnxprune.trace.operands import Dims
from onnxprune.trace.residual import Branch, asked_instead, caches_of, enter_branches
from onnxprune.trace.resizing import left
from onnxprune.trace.steps import Steps, codes_of
from onnxprune.trace.tracing import LABELLED, Reduction, Slice, Trace

__all__ = [
    "KEPT", "LABELLED", "Block", "Branch", "Cells", "Dims", "Editor", "Groups", "Ids", "Labels", "Layers", "Mask",
    "Reason", "Reduction", "Slice", "Steps", "Trace", "asked_instead", "build", "caches_of", "codes_of", "dependencies",
    "enter_branches", "joined", "kept_shape", "left", "new_dims", "positions", "take_kept",
]  # fmt: skip
