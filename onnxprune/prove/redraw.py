"""The same graph with other weights: what holds for random ones holds for all.

Trained weights hide mistakes: a layer scale of 1e-6 or a BatchNorm that begins at zero multiplies a whole branch by
nothing, zero biases are alike wherever they stand. The parameters of the original are drawn anew, those of the
rewritten graph are the slices of these that they have to be. Knows operators by how many terms they sum, no importance.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxprune.model import FLOATS, Derived, Model, Weight, attribute, every_node, traits
from onnxprune.prove.regrouped import evening
from onnxprune.prove.rounding import POOL
from onnxprune.prove.slices import Source
from onnxprune.trace import Mask, Trace

Shape = tuple[int, ...]
MAX_REDRAWN = 64 << 20
"""Bytes: weights of more keep their values, which are read from their file a few rows at a time."""
INTEGERS = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT4,
            TensorProto.UINT4}  # fmt: skip
SIGNS = (-1, 1, 1, 1)
"""Of biases: a unit that a rectifier silences for every input shows nothing."""
CODES: Mapping[str, frozenset[int]] = {
    "MatMulNBits": frozenset({1, 3}), "GatherBlockQuantized": frozenset({0, 3}),
    "QMoE": frozenset({2, 5, 8, 11, 12, 13}),
}  # fmt: skip
"""By operator: operands whose bytes hold codes or zero points of a few bits."""
STEPS: Mapping[str, Mapping[int, int]] = {
    "MatMulNBits": {2: 1}, "GatherBlockQuantized": {2: 0}, "QMoE": {3: 2, 6: 5, 9: 8}
}  # fmt: skip
"""By operator: operands that are the scales of such codes, and the operand that holds these."""
SUMMED: Mapping[str, Callable[[Shape], int]] = {
    "MatMulNBits": lambda shape: prod(shape[1:]),
    "QMoE": lambda shape: shape[-1],
}
"""By operator: how many bytes of codes make one output."""
EVEN = 12**-0.5
"""The deviation of what lies evenly between 0 and 1."""
SCALES: Mapping[str, Sequence[int]] = {
    "QuantizeLinear": (1,), "DequantizeLinear": (1,), "QGemm": (1, 4, 7), "MatMulIntegerToFloat": (2, 3),
    "QAttention": (3, 4), "DynamicQuantizeMatMul": (2,), "MatMulNBits": (3,),
}  # fmt: skip
"""Where operators that read floats beside them are given scales; of QLinear ones all floats are."""
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
        """The new values, in place of these."""
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
        if self.kind == "around":
            return (np.resize(drawn, self.shape) * values.astype(np.float64)).astype(self.dtype, copy=False)
        return np.resize(drawn.astype(self.dtype, copy=False), self.shape)  # eight bytes each would be much


def redrawn(
    trace: Trace, kept: Mask, sources: Mapping[str, Source], after: Model, seed: int, gain: float = 1.0
) -> tuple[Model, Model]:
    """The original and the rewritten graph with new weights, those of the latter as their sources have it. gain: factor
    on the spread of all that is drawn; with less of it, deep graphs stay finite."""
    original, new = trace.model.copy(), after.copy()
    uses = _uses(trace)
    quantised = any(n.op_type.endswith("QuantizeLinear") or n.op_type.startswith("QLinear") for n in trace.nodes)

    def shape_of(name: str) -> Shape:
        return trace.model.weights[name].shape if name in trace.model.weights else ()

    even = evening(trace, kept)
    for name in {s.parameter for s in trace.slices.values() if s.blocks}:
        weight = trace.model.weights[name]
        how = Drawing(weight, uses[name], zlib.crc32(name.encode(), seed), gain, quantised, shape_of).drawn()
        if how is not None:
            fresh = Weight(weight.onnx_type, weight.shape, Derived(weight, how.instead))
            same = name in even
            original.weights[name] = (
                Weight(weight.onnx_type, weight.shape, Derived(fresh, even[name])) if same else fresh
            )
    for name, weight in after.weights.items():
        source = sources.get(name)
        if source is None:  # sizes or positions, which an edit wrote
            continue
        own = original.weights[source.parameter]
        if weight is not own:
            new.weights[name] = _slice(own, source, kept, weight)
    return original, new


def _slice(own: Weight, source: Source, kept: Mask, like: Weight) -> Weight:
    if not source.blocks:
        return own
    return Weight(like.onnx_type, like.shape, Derived(own, lambda array: source.of(array, kept).reshape(like.shape)))


def _uses(trace: Trace) -> Mapping[str, list[tuple[NodeProto, int]]]:
    uses: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in every_node(trace.model.skeleton.graph):
        for i, name in enumerate(node.input):
            if name in trace.model.weights:
                uses[name].append((node, i))
    return uses


@dataclass(frozen=True)
class Drawing:
    """How a weight is to be drawn, by its values and by its `uses` (this input of that node). quantised: whether the
    graph rounds anywhere. shape_of: the shape of a parameter, () of what is none."""

    weight: Weight
    uses: Sequence[tuple[NodeProto, int]]
    seed: int
    gain: float
    quantised: bool
    shape_of: Callable[[str], Shape]

    def drawn(self) -> Drawn | None:
        """How; None where the weight is to stay."""
        weight, kind = self.weight, self.weight.onnx_type
        configures = any(n.op_type in traits.CONFIGURED and i for n, i in self.uses)
        if configures or weight.nbytes > MAX_REDRAWN or not weight.size:
            return None
        if kind in FLOATS:
            return self._scale_of_codes() or self._floats()
        return self._integers(kind)

    def _integers(self, kind: int) -> Drawn | None:
        if kind == TensorProto.UINT8 and self._is(CODES):
            return self._as("integers", 0, 255)  # several in a byte: any is one
        if kind in INTEGERS and (not self._vector or all(n.op_type == "DequantizeLinear" for n, _ in self.uses)):
            return self._stored()
        if kind == TensorProto.INT32 and all(n.op_type in traits.INTEGER_BIASED and i != 2 for n, i in self.uses):
            return self._long_bias()
        return None

    def _as(self, kind: str, low: float = 0.5, high: float = 1.5, times: float = 1.0) -> Drawn:
        return Drawn(kind, self.seed, self.weight.shape, self.weight.dtype, low, high, times)

    def _floats(self) -> Drawn | None:
        values = self.weight.array()
        least, most = float(values.min()), float(values.max())
        self.weight.release()
        if not np.isfinite([least, most]).all():
            return None
        one_sign = least >= 0 or most <= 0  # a gain, a variance, a scale, or zeros
        sign = -1.0 if most <= 0 and least < 0 else 1.0
        fan = max((_terms(node, i, self.weight.shape) for node, i in self.uses), default=1)
        if not self._vector and fan > 1:
            if one_sign and least < most:
                return self._as("positive", times=sign / fan)
            return self._as("normal", times=self.gain / np.sqrt(fan))
        spread = 0.5 * min(self.gain, 1.0)
        if (one_sign and self.quantised and least < most) or self._scale:
            return self._as("around", 1 - spread, 1 + spread)
        if one_sign:
            return self._as("positive", 1 - spread, 1 + spread, sign)
        return self._as("signed", 0.05, 0.5, self.gain)

    def _is(self, operands: Mapping[str, frozenset[int]]) -> bool:
        """Whether any operator reads it as one of these."""
        return any(i in operands.get(n.op_type, ()) for n, i in self.uses)

    def _scale_of_codes(self) -> Drawn | None:
        """Scales of weights of a few bits, whose codes are drawn evenly; None where it is something else."""
        for node, i in self.uses:
            if i in STEPS.get(node.op_type, {}):
                bits = int(attribute(node, "expert_weight_bits", attribute(node, "bits", 4)))
                codes, held = self.shape_of(node.input[STEPS[node.op_type][i]]), SUMMED.get(node.op_type)
                terms = held(codes) * 8 // bits if held and codes else 1
                return self._as("positive", times=self.gain / (EVEN * (1 << bits) * np.sqrt(terms)))
        return None

    def _stored(self) -> Drawn:
        """Integers of a quantised graph: any between the least and the most that are there; of zero points, which may
        be all alike, of some around these."""
        values = self.weight.array().astype(np.int64)
        least, most = int(values.min()), int(values.max())
        if self._vector and self.weight.dtype.kind in "iu":
            limits = np.iinfo(self.weight.dtype)
            least, most = max(least - 4, limits.min), min(most + 4, limits.max)
        return self._as("integers", least, most)

    def _long_bias(self) -> Drawn:
        most = max(LEAST_BIAS, int(np.abs(self.weight.array().astype(np.int64)).max()))
        return self._as("integers", -most, most)

    @property
    def _vector(self) -> bool:
        return sum(n > 1 for n in self.weight.shape) <= 1

    @property
    def _scale(self) -> bool:
        """Whether it says how large a step of a quantised tensor is."""
        return any(i in SCALES[n.op_type] if n.op_type in SCALES else "QLinear" in n.op_type for n, i in self.uses)


def _gemm_terms(node: NodeProto, i: int, shape: Shape) -> int:
    turned = bool(attribute(node, "transB" if i else "transA", 0))
    return shape[0] if turned != bool(i) else shape[-1]


TERMS: Mapping[str, Callable[[NodeProto, int, Shape], int]] = {
    **dict.fromkeys(("Conv", "FusedConv", "DeformConv"), lambda node, i, shape: prod(shape[1:])),
    "ConvTranspose": lambda node, i, shape: shape[0],
    **dict.fromkeys(traits.GATES, lambda node, i, shape: shape[-1]),
    **dict.fromkeys(("Gemm", "FusedGemm"), _gemm_terms),
    **dict.fromkeys(("MatMul", "FusedMatMul"), lambda node, i, shape: shape[-2] if i and len(shape) > 1 else shape[-1]),
    "MoE": lambda node, i, shape: shape[-1] if len(shape) > 2 else 1,
    **dict.fromkeys(traits.MOVING_PARAMETERS, lambda node, i, shape: max(shape)),
}
"""How many terms an operator sums for one output when it is given a parameter of this shape as this input."""


def _terms(node: NodeProto, i: int, shape: Shape) -> int:
    return TERMS[node.op_type](node, i, shape) if node.op_type in TERMS else 1
