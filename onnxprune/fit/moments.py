"""BatchNorm under made-up inputs: give it their moments while layers are solved for, and its own back at the end.

Synthetic images drive a network away from the moments it was trained with, layer by layer. Where BatchNorm survives in
the graph, normalising by the moments of the synthetic activations keeps every layer in its working range; weights that
are refitted there still fit when the trained moments return (methods: data-free quantisation, Nagel et al. 2019). Knows
the statistics of normalisations, no units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit.walk import Walk
from onnxprune.model import Model, Weight, attribute
from onnxprune.trace import Trace

Feeds = Sequence[Mapping[str, NDArray[Any]]]


def normalisations(model: Model) -> list[tuple[int, str, str, str]]:
    """(node index, input, mean, variance) of every BatchNormalization whose moments are its own."""
    walk = Walk(model, (), lambda name: None)
    found = []
    for k, node in enumerate(walk.nodes):
        if node.op_type == "BatchNormalization" and not attribute(node, "training_mode", 0):
            data, _, _, mean, var = (str(n) for n in node.input[:5])
            once = all(list(node.input).count(n) == 1 and walk.readers[n] == {k} for n in (mean, var))
            if once and mean in model.weights and var in model.weights:
                found.append((k, data, mean, var))
    return found


def re_estimated(trace: Trace, feeds: Feeds, providers: Sequence[str]) -> Trace:
    """`trace` with the moments of BatchNorm taken over `feeds`, each layer's after those before it."""
    model = trace.model.copy()
    walk = Walk(model, feeds, trace.shapes.dtype, providers)
    for _, data, mean, var in normalisations(model):
        count, total, squares = 0, 0.0, 0.0
        for x in walk.value(data):
            flat = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).astype(np.float64)
            count += flat.shape[1]
            total = total + flat.sum(1)
            squares = squares + np.square(flat).sum(1)
        center = total / count
        spread = np.maximum(squares / count - np.square(center), 0)
        for name, value in ((mean, center), (var, spread)):
            model.weights[name] = Weight.of(np.asarray(value), model.weights[name].onnx_type)
        walk.release()
    return replace(trace, model=model)


def restore(model: Model, trained: Model) -> None:
    """Give the moments of `trained`, which has the same parameters, back to `model`."""
    for _, _, mean, var in normalisations(trained):
        for name in (mean, var):
            model.weights[name] = trained.weights[name]
