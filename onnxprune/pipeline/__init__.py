"""The stages in their order: one model made ready, cut any number of times, proven, fine-tuned, audited.

Knows what the stages hand on to each other; how one does its work is its own affair.
"""

from __future__ import annotations

from onnxprune.pipeline.auditing import audited
from onnxprune.pipeline.pruner import Pruned, Pruner
from onnxprune.pipeline.searching import Search
from onnxprune.pipeline.stages import Clock, analysed, check, checked, prove, proven, ran
from onnxprune.pipeline.tuning import finetune

__all__ = [
    "Clock",
    "Pruned",
    "Pruner",
    "Search",
    "analysed",
    "audited",
    "check",
    "checked",
    "finetune",
    "prove",
    "proven",
    "ran",
]
