"""New weights for what is left, judged on inputs that they have not seen. Knows plans and rewritten graphs, no rule."""

from __future__ import annotations

from onnxprune.refit.folding import folded
from onnxprune.refit.judging import refitted, replayed
from onnxprune.refit.merging import merged

__all__ = ["folded", "merged", "refitted", "replayed"]
