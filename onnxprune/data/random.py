"""Plain random inputs, for runs in which only sizes and sameness count. Knows the inputs of a graph, no stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune.data.lengths import told_lengths
from onnxprune.model import FLOATS, Model

RANGES = ((0, 2), (0, 1), (1, 2), (-1, 0), (2, 3), (-2, -1))
"""Of the integers that are tried: random ones, zeros, ones, as in a mask that hides nothing, and what may be an axis or
a size to be inferred."""


def random_inputs(
    model: Model, shapes: Mapping[str, tuple[int, ...]], seed: int, high: int = 2, low: int = 0
) -> dict[str, NDArray[Any]]:
    """Normal floats, integers in [low, high), true booleans: one array for each real input. Integers in the range that
    is tried first are lengths where an operator takes them for such."""
    rng = np.random.default_rng(seed)
    lengths = told_lengths(model, shapes) if (low, high) == RANGES[0] else {}
    feeds: dict[str, NDArray[Any]] = {}
    for info in model.skeleton.graph.input:
        if info.name in model.weights:
            continue
        kind = info.type.tensor_type.elem_type
        shape = shapes.get(info.name, ())
        if kind in FLOATS:
            dtype = ml_dtypes.bfloat16 if kind == TensorProto.BFLOAT16 else helper.tensor_dtype_to_np_dtype(kind)
            made = np.float32 if dtype == np.float32 else np.float64
            feeds[info.name] = rng.standard_normal(shape, made).astype(dtype, copy=False)
        elif kind == TensorProto.BOOL:
            feeds[info.name] = np.ones(shape, bool)
        elif kind == TensorProto.STRING:
            feeds[info.name] = np.full(shape, "a", dtype=object)
        else:
            drawn = rng.integers(low, high, shape)
            told = np.full(shape, lengths[info.name]) if info.name in lengths else drawn
            feeds[info.name] = told.astype(helper.tensor_dtype_to_np_dtype(kind))
    return feeds
