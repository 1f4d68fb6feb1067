"""Which parameters are trained, and in which form: floats as they are, integers behind a DequantizeLinear by the real
numbers that they stand for. Knows parameters and who reads them, no torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.model import FLOATS, Model, every_node, traits

LARGEST = 1e4
"""No weight that was learned is larger; what is masks something out, and stays."""
EXACT = 1 << 24
"""Whole numbers up to this are exact in float32."""
STATISTICS = {"BatchNormalization": (3, 4)}
"""Inputs that hold moments of the training data: they stay as they are."""
CODES = {getattr(TensorProto, name) for name in ("INT8", "UINT8", "INT16", "UINT16", "INT32", "INT4", "UINT4")}
HOLDING = {"DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm"}
"""Operators whose integer parameters were learned."""


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
    several = [name for name, w in model.weights.items() if name in names and w.size > 1 and readers[name]]
    codes = {name: readers[name][0][0] for name in several if _has_codes(model, name, readers[name])}
    return Trained(
        tuple(name for name in several if _is_learned(model, name, readers[name])),
        codes,
        tuple(name for name in several if name not in codes and _is_held(model, name, readers[name])),
    )


def _is_learned(model: Model, name: str, reading: list[tuple[NodeProto, int]]) -> bool:
    """Whether a float parameter is one that training would have found."""
    weight = model.weights[name]
    if weight.onnx_type not in FLOATS or any(_is_setting(node, k) for node, k in reading):
        return False
    values = weight.array().astype(np.float32, copy=False)
    return bool(np.isfinite(values).all() and np.abs(values).max() < LARGEST)


def _has_codes(model: Model, name: str, reading: list[tuple[NodeProto, int]]) -> bool:
    """Whether an integer parameter stands for real numbers by constant scales, in one place, and exactly in float32."""
    node, k = reading[0]
    if model.weights[name].onnx_type not in CODES or len(reading) > 1 or k or node.op_type != "DequantizeLinear":
        return False
    constant = set(node.input[1:]) <= model.weights.keys() | {""}
    return constant and bool(np.abs(model.weights[name].array().astype(np.int64)).max() < EXACT)


def _is_held(model: Model, name: str, reading: list[tuple[NodeProto, int]]) -> bool:
    """Whether an integer parameter was learned, and is used in a way that it cannot be trained in."""
    return model.weights[name].onnx_type in CODES and any(node.op_type in HOLDING for node, _ in reading)


def _is_setting(node: NodeProto, k: int) -> bool:
    """Whether input k says how a node works."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.op_type in traits.CONFIGURED:
        return k > 0
    return k in STATISTICS.get(node.op_type, ())
