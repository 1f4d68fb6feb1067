"""What is known of every tensor before anything runs: types, sizes, small values. Knows models, no ids."""

from __future__ import annotations

from onnxprune.shapes.body_inference import scan_parts
from onnxprune.shapes.quotients import content, mod, quotient
from onnxprune.shapes.schemas import misfit
from onnxprune.shapes.shapes import Inputs, Shapes, infer
from onnxprune.shapes.sizes import declare, plan, symbol
from onnxprune.shapes.symbols import Dim, Lost, Size, lower

__all__ = [
    "Dim", "Inputs", "Lost", "Shapes", "Size", "content", "declare", "infer", "lower", "misfit", "mod", "plan",
    "quotient", "scan_parts", "symbol",
]  # fmt: skip
