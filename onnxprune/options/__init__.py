"""What may be asked for: options and gates, what each may be, who reads it, and what a typed name stands for.

Knows words and numbers, no ONNX.
"""

from __future__ import annotations

from onnxprune.options.naming import SHOWN, matching, nearest, without_axes
from onnxprune.options.options import Gates, OptionKeywords, Options, Progress
from onnxprune.options.unread import differing
from onnxprune.options.validation import (
    NUMBERS,
    WORDS,
    bytes_of,
    check_gates,
    flag,
    given,
    listed,
    near,
    objection,
    share_meant,
    training_length,
    validated,
)

__all__ = [
    "NUMBERS", "SHOWN", "WORDS", "Gates", "OptionKeywords", "Options", "Progress", "bytes_of", "check_gates",
    "differing", "flag", "given", "listed", "matching", "near", "nearest", "objection", "share_meant",
    "training_length", "validated", "without_axes",
]  # fmt: skip
