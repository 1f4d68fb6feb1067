"""Which parameters are trained, and in which form: floats as they are, integers behind a DequantizeLinear by the real
numbers that they stand for. Knows parameters and who reads them, no torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.model import FLOATS, Model, captured, every_node, traits

LARGEST = 1e4
"""No weight that was learned is larger; what is masks something out, and stays."""
EXACT = 1 << 24
"""Whole numbers up to this are exact in float32."""
STATISTICS = {"BatchNormalization": (3, 4)}
"""Inputs that hold moments of the training data: they stay as they are."""
CODES = {getattr(TensorProto, name) for name in ("INT8", "UINT8", "INT16", "UINT16", "INT32", "INT4", "UINT4")}


@dataclass(frozen=True)
class Trained:
    """floats: names. codes: the DequantizeLinear of each integer parameter, by its name. left: integer parameters that
    rounding inside an operator keeps from being trained."""

    floats: tuple[str, ...]
    codes: dict[str, NodeProto]
    left: tuple[str, ...] = ()


def trained(model: Model, names: Collection[str]) -> Trained:
    """Of the parameters in `names`: floats of more than one element but for moments, scales, settings and masks, and
    codes with constant scales. `model` is normalised."""
    readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in every_node(model.graph):
        for k, name in enumerate(node.input):
            readers[name].append((node, k))
    inside = {n for node in every_node(model.graph) for a in node.attribute if a.HasField("g") for n in captured(a.g)}
    floats, codes, left = [], {}, []
    for name, weight in model.weights.items():
        reading = readers.get(name, [])
        if name not in names or weight.size < 2 or not (reading or name in inside):
            continue
        if weight.onnx_type in FLOATS:
            settings = any(_is_setting(node, k) for node, k in reading)
            values = weight.array()
            if not settings and np.isfinite(values).all() and np.abs(values).max() < LARGEST:
                floats.append(name)
        elif weight.onnx_type in CODES and any(k == 0 and node.op_type == "DequantizeLinear" for node, k in reading):
            node = reading[0][0]
            if len(reading) == 1 and set(node.input[1:]) <= model.weights.keys() | {""} and _exact(model, name):
                codes[name] = node
            else:
                left.append(name)
    return Trained(tuple(floats), codes, tuple(left))


def _is_setting(node: NodeProto, k: int) -> bool:
    """Whether input k says how a node works."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.op_type in traits.CONFIGURED:
        return k > 0
    return k in STATISTICS.get(node.op_type, ())


def _exact(model: Model, name: str) -> bool:
    return bool(np.abs(model.weights[name].array().astype(np.int64)).max() < EXACT)
