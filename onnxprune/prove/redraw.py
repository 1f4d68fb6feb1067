"""The same graph with other weights: what holds for random ones holds for all.

Trained weights hide mistakes: a layer scale of 1e-6 or a BatchNorm that begins at zero multiplies a whole branch by
nothing, zero biases are alike wherever they stand. The parameters of the original are drawn anew, those of the
rewritten graph are the slices of these that they have to be. Knows operators by how many terms they sum, no importance.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import FLOATS, LazySlice, Model, Weight, every_node
from onnxprune.prove.rounding import POOL
from onnxprune.prove.slices import Source, kept_of
from onnxprune.trace import Block, Mask, Trace

LARGEST = 64 << 20
"""Bytes: weights of more keep their values, which are read from their file a few rows at a time."""
FIXED = {"Resize", "Upsample", "Pad", "Clip", "OneHot", "RoiAlign", "MaxRoiPool", "NonMaxSuppression", "Range", "Pow",
         "Mod", "Trilu", "ConstantOfShape", "GridSample"}  # fmt: skip
"""What these read beside their first input says how they work."""
INTEGERS = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT4,
            TensorProto.UINT4}  # fmt: skip
SIGNS = (-1, 1, 1, 1)
"""Of biases: a unit that a rectifier silences for every input shows nothing."""
SUMS = {"QLinearConv", "QGemm", "DequantizeLinear"}
"""What reads a bias of 32 bits."""
LEAST_BIAS = 512
"""Steps over which a bias of 32 bits is drawn at least: many are all zeros."""


@dataclass(frozen=True)
class Drawn:
    """How the values of a weight are drawn, the same ones each time. kind: normal, positive, signed, around (`low` to
    `high`, times what is there) or integers from `low` to `high`."""

    kind: str
    seed: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    low: float = 0.5
    high: float = 1.5
    times: float = 1.0

    def instead(self, values: NDArray[Any]) -> NDArray[Any]:
        rng, size = np.random.default_rng(self.seed), prod(self.shape)
        count = min(size, POOL)
        drawn: NDArray[Any]
        if self.kind == "normal":
            drawn = rng.standard_normal(count, np.float32) * np.float32(self.times)
        elif self.kind == "integers":
            drawn = rng.integers(int(self.low), int(self.high), count, endpoint=True)
        else:
            drawn = rng.uniform(self.low, self.high, count) * self.times
            drawn = drawn * rng.choice(SIGNS, count) if self.kind == "signed" else drawn
        out = np.resize(drawn, self.shape)
        if self.kind == "around":
            out = out * values.astype(np.float64)
        return out.astype(self.dtype, copy=False)


def redrawn(
    trace: Trace, kept: Mask, sources: Mapping[str, Source], after: Model, seed: int, gain: float = 1.0
) -> tuple[Model, Model]:
    """The original and the rewritten graph with new weights. Parameters of `after` without a source, such as biases
    that a refit added, are zero. gain: factor on the spread of all that is drawn; with less of it, deep graphs stay
    finite."""
    original, new = trace.model.copy(), after.copy()
    drawn: dict[str, Weight] = {}
    uses = _uses(trace)
    quantised = any(n.op_type.endswith("QuantizeLinear") or n.op_type.startswith("QLinear") for n in trace.nodes)
    for name in {s.parameter for s in trace.slices.values() if s.blocks}:
        weight = trace.model.weights[name]
        made = _drawn(weight, uses[name], zlib.crc32(name.encode(), seed), gain, quantised)
        if made is not None:
            drawn[name] = original.weights[name] = Weight(
                weight.onnx_type, weight.shape, LazySlice(weight, made.instead)
            )
    for name, weight in after.weights.items():
        source = sources.get(name)
        if source is not None and source.parameter in drawn:
            new.weights[name] = _slice(drawn[source.parameter], source.blocks, kept, weight)
        elif source is None and weight.onnx_type in FLOATS:
            new.weights[name] = Weight.of(np.zeros(weight.shape), weight.onnx_type)
        elif source is not None and weight is not trace.model.weights[source.parameter]:
            own = trace.model.weights[source.parameter]  # a refit may have changed the values
            new.weights[name] = _slice(own, source.blocks, kept, weight)
    return original, new


def _slice(own: Weight, blocks: tuple[Block, ...], kept: Mask, like: Weight) -> Weight:
    if not blocks:
        return own
    return Weight(
        like.onnx_type, like.shape, LazySlice(own, lambda array: kept_of(array, blocks, kept).reshape(like.shape))
    )


def _uses(trace: Trace) -> Mapping[str, list[tuple[NodeProto, int]]]:
    uses: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in every_node(trace.model.proto.graph):
        for i, name in enumerate(node.input):
            if name in trace.model.weights:
                uses[name].append((node, i))
    return uses


def _drawn(
    weight: Weight, uses: Iterable[tuple[NodeProto, int]], seed: int, gain: float, quantised: bool
) -> Drawn | None:
    """How a weight is drawn; None where it is to stay."""
    uses = list(uses)
    kind, shape, dtype = weight.onnx_type, weight.shape, weight.dtype
    if weight.nbytes > LARGEST or not weight.size or any(n.op_type in FIXED and i for n, i in uses):
        return None
    vector = sum(n > 1 for n in shape) <= 1
    if kind in FLOATS:
        values = weight.array()
        least, most = float(values.min()), float(values.max())
        weight.release()
        if not np.isfinite([least, most]).all():
            return None
        alike = least >= 0 or most <= 0  # of one sign: a gain, a variance, a scale, or zeros
        sign = -1.0 if most <= 0 and least < 0 else 1.0
        fan = max((_terms(node, i, shape) for node, i in uses), default=1)
        spread = 0.5 * min(gain, 1.0)
        if not vector and fan > 1:
            times = gain / np.sqrt(fan)
            return Drawn("positive", seed, shape, dtype, times=sign / fan) if alike and least < most else Drawn(
                "normal", seed, shape, dtype, times=times
            )  # fmt: skip
        if (alike and quantised and least < most) or _is_scale(uses):
            return Drawn("around", seed, shape, dtype, 1 - spread, 1 + spread)
        if alike:
            return Drawn("positive", seed, shape, dtype, 1 - spread, 1 + spread, sign)
        return Drawn("signed", seed, shape, dtype, 0.05, 0.5, gain)
    if kind in INTEGERS and (not vector or all(n.op_type == "DequantizeLinear" for n, _ in uses)):
        values = weight.array().astype(np.int64)
        least, most = int(values.min()), int(values.max())
        if vector:  # zero points
            limits = np.iinfo(dtype) if dtype.kind in "iu" else None
            least, most = (max(least - 4, limits.min), min(most + 4, limits.max)) if limits else (least, most)
        return Drawn("integers", seed, shape, dtype, least, most)
    if kind == TensorProto.INT32 and all(n.op_type in SUMS and i != 2 for n, i in uses):
        most = max(LEAST_BIAS, int(np.abs(weight.array().astype(np.int64)).max()))
        return Drawn("integers", seed, shape, dtype, -most, most)
    return None


def _is_scale(uses: Iterable[tuple[NodeProto, int]]) -> bool:
    return any((n.op_type in ("QuantizeLinear", "DequantizeLinear") and i == 1) or "QLinear" in n.op_type
               or n.op_type in ("QGemm", "MatMulIntegerToFloat") for n, i in uses)  # fmt: skip


def _terms(node: NodeProto, i: int, shape: tuple[int, ...]) -> int:
    """How many terms an operator sums for one output when it is given a parameter of this shape as input `i`."""
    kind = node.op_type
    if kind in ("Conv", "FusedConv", "LSTM", "GRU", "RNN", "DeformConv"):
        return prod(shape[1:]) if "Conv" in kind else shape[-1]
    if kind == "ConvTranspose":
        return shape[0]
    if kind in ("Gemm", "FusedGemm"):
        turned = any(a.name == ("transB" if i else "transA") and helper.get_attribute_value(a) for a in node.attribute)
        return shape[0] if turned != bool(i) else shape[-1]
    if kind in ("MatMul", "FusedMatMul"):
        return shape[-2] if i and len(shape) > 1 else shape[-1]
    if kind in ("Transpose", "Reshape", "Cast", "Identity", "Einsum", "Attention", "Unsqueeze", "Squeeze", "Concat"):
        return max(shape)
    return 1
