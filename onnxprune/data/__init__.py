"""What a network is run on: inputs read from files, or made up to fit the model. Knows inputs, nothing of pruning."""

from __future__ import annotations

from onnxprune.data.inputs import describe, sizes
from onnxprune.data.random import RANGES, random_inputs
from onnxprune.data.samples import Feed, batched, checked, read
from onnxprune.data.sources import Calibration, calibration, decoder

__all__ = [
    "RANGES",
    "Calibration",
    "Feed",
    "batched",
    "calibration",
    "checked",
    "decoder",
    "describe",
    "random_inputs",
    "read",
    "sizes",
]  # fmt: skip
