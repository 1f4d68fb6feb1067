"""How good and how fast models are: metrics, gates, latency. Knows models and data, nothing of pruning."""

from __future__ import annotations

from onnxprune.measure.latency import benchmark, bound, cores, runnable, timed, turn
from onnxprune.measure.quality import Comparison, Gates, Quality, compared

__all__ = ["Comparison", "Gates", "Quality", "benchmark", "bound", "compared", "cores", "runnable", "timed", "turn"]
