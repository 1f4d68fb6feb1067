"""Derivatives by gates on units, without a training framework: onnx-ad differentiates, ONNX Runtime runs.

Knows the trace, no budget.
"""

from __future__ import annotations

from onnxprune.gradients.derivatives import gate_gradients
from onnxprune.gradients.leave_one_out import oracle
from onnxprune.gradients.sets import in_sets

__all__ = ["gate_gradients", "in_sets", "oracle"]
