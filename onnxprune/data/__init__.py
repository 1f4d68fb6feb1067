"""What a network is run on: inputs read from files, or made up to fit the model. Knows inputs, nothing of pruning."""

from __future__ import annotations

from onnxprune.data.batches import Batches, Feed, batched, checked
from onnxprune.data.calibration_sizes import sizes
from onnxprune.data.decoding import decoder
from onnxprune.data.inputs import Input, cache_outputs, describe
from onnxprune.data.mirroring import mirrored
from onnxprune.data.random import RANGES, random_inputs
from onnxprune.data.samples import read, unread
from onnxprune.data.sources import Calibration, calibration
from onnxprune.data.text_files import text_length, tokens_of

__all__ = [
    "RANGES",
    "Batches",
    "Calibration",
    "Feed",
    "Input",
    "batched",
    "cache_outputs",
    "calibration",
    "checked",
    "decoder",
    "describe",
    "mirrored",
    "random_inputs",
    "read",
    "sizes",
    "text_length",
    "tokens_of",
    "unread",
]  # fmt: skip
