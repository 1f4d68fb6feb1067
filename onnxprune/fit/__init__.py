"""Layers as least squares sees them, statistics of what they read, and new weights for them.

Knows the trace, no importance and no budget.
"""

from __future__ import annotations

from onnxprune.fit.bases import turned
from onnxprune.fit.compared import changed
from onnxprune.fit.equations import Light, Refits
from onnxprune.fit.factors import Factor, inverse
from onnxprune.fit.finding import layers, shared
from onnxprune.fit.fitted import Fitted
from onnxprune.fit.flows import Flow, flows, turns
from onnxprune.fit.least_squares import Problem, Solution, solve
from onnxprune.fit.likeness import Likeness, Likenesses
from onnxprune.fit.linear import Extent, Linear, Unsolvable
from onnxprune.fit.moments import normalisations, re_estimated, restore
from onnxprune.fit.products import Layer
from onnxprune.fit.reconstruction import Reconstruction
from onnxprune.fit.remembered import Front, SharedDense
from onnxprune.fit.sites import Site, collect, sample_size, sums_by_node, units_made, units_of
from onnxprune.fit.tails import Tail, tail
from onnxprune.fit.walk import Walk
from onnxprune.fit.weighing import Held, weigh
from onnxprune.fit.weight_values import WeightValues

__all__ = [
    "Extent", "Factor", "Fitted", "Flow", "Front", "Held", "Layer", "Light", "Likeness", "Likenesses", "Linear",
    "Problem", "Reconstruction", "Refits", "SharedDense", "Site", "Solution", "Tail", "Unsolvable", "Walk",
    "WeightValues", "changed", "collect", "flows", "inverse", "layers", "normalisations", "re_estimated", "restore",
    "sample_size", "shared", "solve", "sums_by_node", "tail", "turned", "turns", "units_made", "units_of", "weigh",
]  # fmt: skip
