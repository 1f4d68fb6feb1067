"""Between what a tensor's values lie whatever the inputs are, and which activations do nothing there.

Only what holds exactly in floating point is said: a mean of what is not negative is not negative, but it may be more
than the largest of them by its rounding. Nothing is said of weights, which a refit changes.
Knows nodes and the limits that weights hold, no ids and no importance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from onnx import NodeProto

from onnxprune.model import Model, attribute

Bounds = tuple[float, float]
"""The least and the largest value, or infinite."""
ANY: Bounds = (-inf, inf)
NOWHERE: Bounds = (inf, -inf)
STANDARD = ("", "ai.onnx")
DEEPEST = 64
"""Nodes that are looked back through at most."""
NOT_NEGATIVE = frozenset({
    "Abs", "Exp", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Softplus", "Sqrt",
})  # fmt: skip
IN_UNIT = frozenset({"HardSigmoid", "Sigmoid", "Softmax"})
"""Operators whose results lie in 0..1."""
CHOOSING = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min",
    "ReduceMax", "ReduceMin", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators whose results are values of the tensors that they choose from."""
OF_ALL = frozenset({"Concat", "Max", "Min"})
"""Those that choose from all of their inputs, and not from the first alone."""
COMBINING = frozenset({"Add", "Mean", "Mul", "Sum"})
"""Operators that give nothing negative where none of their inputs is."""
AVERAGING = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
"""Operators that give nothing negative where their first input is not."""
LINEAR_ABOVE_ZERO = frozenset({"Abs", "Celu", "Elu", "LeakyRelu", "PRelu", "Relu"})
"""Activations that give what is not negative as it is."""


@dataclass
class Ranges:
    """Of the tensors of a graph. makers: the node that makes a tensor; now: tensors that others stand for."""

    model: Model
    makers: Mapping[str, NodeProto]
    now: Mapping[str, str]
    _found: dict[str, Bounds] = field(default_factory=dict)

    def idle(self, node: NodeProto, name: str) -> bool:
        """Whether an activation gives this tensor as it is."""
        if node.domain not in STANDARD:
            return False
        self._found.clear()  # others may stand for tensors by now
        low, high = self._of(name, DEEPEST)
        if node.op_type in LINEAR_ABOVE_ZERO:
            return low >= 0
        least, most = self._clipped(node) if node.op_type == "Clip" else NOWHERE
        return least <= low and high <= most

    def _of(self, name: str, depth: int) -> Bounds:
        """Of a tensor, looking back through `depth` nodes."""
        name = self.now.get(name, name)
        if name not in self._found:
            node = self.makers.get(name)
            self._found[name] = ANY  # should a damaged graph come back here
            if node is not None and depth and node.domain in STANDARD:
                self._found[name] = self._made(node, depth - 1)
        return self._found[name]

    def _made(self, node: NodeProto, depth: int) -> Bounds:
        """Of what a node makes."""
        op, given = node.op_type, [self._of(name, depth) for name in node.input if name]
        if op in IN_UNIT:
            return 0.0, 1.0
        if op == "Clip":
            (low, high), (least, most) = given[0], self._clipped(node)
            return min(max(low, least), most), max(min(high, most), least)
        if op in NOT_NEGATIVE:
            return 0.0, max(0.0, given[0][1]) if op == "Relu" else inf
        if op in CHOOSING:
            chosen = given if op in OF_ALL else given[:1]
            return min(low for low, _ in chosen), max(high for _, high in chosen)
        terms = given if op in COMBINING else given[:1]
        return (0.0, inf) if op in COMBINING | AVERAGING and all(low >= 0 for low, _ in terms) else ANY

    def _clipped(self, node: NodeProto) -> Bounds:
        """What a Clip clips to; nowhere where that is computed."""
        ends = [float(attribute(node, "min", -inf)), float(attribute(node, "max", inf))]
        for k, name in enumerate(node.input[1:3]):
            if name:
                weight = self.model.weights.get(name)
                if weight is None or weight.size != 1:
                    return NOWHERE
                ends[k] = float(weight.array().item())
        return ends[0], ends[1]
