"""What is known of every tensor before anything runs: types, sizes, small values. Knows models, no ids."""

from __future__ import annotations

from onnxprune.shapes.body_inference import scan_parts
from onnxprune.shapes.declared import declare, plan_sizes, symbol_name
from onnxprune.shapes.quotients import content, mod, quotient
from onnxprune.shapes.schemas import misfit
from onnxprune.shapes.shapes import Inputs, Shapes, infer
from onnxprune.shapes.symbols import Dim, Lost, Size, lower

__all__ = [
    "Dim", "Inputs", "Lost", "Shapes", "Size", "content", "declare", "infer", "lower", "misfit", "mod", "plan_sizes",
    "quotient", "scan_parts", "symbol_name",
]  # fmt: skip
