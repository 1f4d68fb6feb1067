"""A pruned model learns from its dense one, on unlabelled inputs. Knows models and inputs, no units."""

from __future__ import annotations

from onnxprune.finetuning.distilling import Finetuned, check_torch, check_trainable, finetuned
from onnxprune.finetuning.inputs import Parts, calib_of, parted

__all__ = ["Finetuned", "Parts", "calib_of", "check_torch", "check_trainable", "finetuned", "parted"]
