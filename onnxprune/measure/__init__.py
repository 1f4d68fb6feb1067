"""How good and how fast models are: metrics, gates, latency. Knows models and data, nothing of pruning."""

from __future__ import annotations

from onnxprune.measure.gates import Quality, refuse
from onnxprune.measure.latency import Benchmark, benchmark, bound, check_timed, clock_of, runnable, timed, turn
from onnxprune.measure.quality import Comparison, compared
from onnxprune.options import Gates

__all__ = [
    "Benchmark", "Comparison", "Gates", "Quality", "benchmark", "bound", "check_timed", "clock_of", "compared",
    "refuse", "runnable", "timed", "turn",
]  # fmt: skip
