"""Plans applied to the weights and modules of a training framework. Knows plans and arrays, no stage."""

from __future__ import annotations

from onnxprune.frameworks.modules import shrink
from onnxprune.frameworks.transfer import Heads, Sliced, apply_plan, renamed, sliced

__all__ = ["Heads", "Sliced", "apply_plan", "renamed", "shrink", "sliced"]
