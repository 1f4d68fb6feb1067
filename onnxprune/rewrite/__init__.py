"""From kept ids to a smaller graph: slices of parameters, and nodes patched. Knows the trace, no importance."""

from __future__ import annotations

from onnxprune.rewrite.rewriting import Rewritten, rewrite
from onnxprune.rewrite.slicing import take

__all__ = ["Rewritten", "rewrite", "take"]
