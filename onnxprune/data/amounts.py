"""How many inputs are made where the user gives none: what memory and time allow. Knows a graph's sizes, no values."""

from __future__ import annotations

import math

from onnx import NodeProto

from onnxprune.model import Model
from onnxprune.shapes import Inputs, Shapes

POOL, POOL_LIMIT = 5, 2500
"""To choose from by the predicted classes, as many times the samples wanted are made, and never more than these ..."""
POOL_MACS = 5e11
"""... unless that takes more than about ten seconds to run on one core."""
ELEMENTS, MACS, LEAST = 80e6, 6e12, 32
"""Fewer samples than wanted are made where they would take more numbers, or operations to run once, but no fewer than
these."""


def amounts(model: Model, shapes: Shapes, dims: Inputs, rows: int, want: int) -> tuple[int, int]:
    """How many samples to take, at most `want`, and from how many to choose them, where a batch of `rows` has inputs of
    these sizes."""
    elements = max(1, sum(math.prod(shape) for shape in dims.values()))
    growth = elements / max(1, sum(math.prod(shape) for shape in shapes.inputs[0].values()))
    macs = max(1.0, growth * sum(_macs(model, shapes, node) for node in model.graph.node))
    want = min(want, max(LEAST, int(rows * min(ELEMENTS / elements, MACS / macs))))
    return want, max(want, int(min(POOL * want, POOL_LIMIT, POOL_MACS * rows / macs)))


def _macs(model: Model, shapes: Shapes, node: NodeProto) -> float:
    """Roughly, for the batch at the first probe's sizes."""
    weight = next((model.weights[n] for n in node.input[1:2] if n in model.weights), None)
    out = shapes.probe[0].get(node.output[0]) if node.output else None
    if weight is None or out is None or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return 0.0
    width = out[1] if node.op_type == "Conv" else out[-1]
    return math.prod(d or 1 for d in out) * weight.size / max(width or 1, 1)
