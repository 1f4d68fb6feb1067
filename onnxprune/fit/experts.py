"""A mixture of experts as layers: what each expert gives to the tokens that are routed to it is share * hidden @ W.

That is no tensor of the graph, in neither network, so it is worked out here from what the node reads, and only believed
where the sum of it is what the node gives. Knows two operators and their weights, no units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.fit.expressions import Parameter
from onnxprune.fit.few_bits import Stack, coded
from onnxprune.fit.linear import RESHAPED, DimsOf, Extent, Unsolvable
from onnxprune.fit.products import Layer
from onnxprune.fit.walk import Walk
from onnxprune.model import Array, Model, Weight, attribute
from onnxprune.rewrite import take
from onnxprune.trace import Ids, Mask, Reduction, Trace

X, ROUTER = range(2)
UP, DOWN, GATE = range(3)
OPERANDS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "MoE": ((2, 3), (4, 5), (6, 7)),
    "QMoE": ((2, 4), (5, 7), (8, 10)),
}
"""(weight, bias) of the layer up to the hidden units, of the one down from them, and of the gates beside."""
NEAR = 2e-2
"""How far the sum may be from what the node gives, relative to that."""


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -80, 80))))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0), "silu": lambda x: x * _sigmoid(x), "identity": lambda x: x,
}  # fmt: skip


@dataclass(frozen=True)
class Mixture:
    """What a node computes. up, gate [experts, rows, width], down [experts, outputs, hidden], and the biases, as far as
    there are any; experts: those that are routed to, of those that the router tells apart."""

    node: NodeProto
    weights: tuple[Array | None, ...]
    biases: tuple[Array | None, ...]
    experts: NDArray[np.int64]

    @staticmethod
    def of(node: NodeProto, model: Model) -> Mixture:
        """Unsolvable where a part of it is computed."""
        weights, biases = [], []
        for weight, bias in OPERANDS[node.op_type]:
            found = _parameter(node, weight, model) if len(node.input) > weight and node.input[weight] else None
            weights.append(None if found is None else found.read(model).astype(np.float32))
            name = node.input[bias] if len(node.input) > bias else ""
            if name and name not in model.weights:
                raise Unsolvable("a bias is computed")
            biases.append(model.weights[name].array().astype(np.float32) if name else None)
        count = 0 if (up := weights[UP]) is None else len(up)
        return Mixture(node, tuple(weights), tuple(biases), np.arange(count))

    def shares(self, logits: Array) -> Array:
        """[tokens, experts]: how much of each a token takes."""
        own = logits[:, self.experts].astype(np.float64)
        count, odds = int(attribute(self.node, "k", 1)), np.exp(own - own.max(1, keepdims=True))
        odds /= odds.sum(1, keepdims=True)
        chosen = np.zeros(odds.shape, bool)
        np.put_along_axis(chosen, np.argsort(-own, 1, "stable")[:, :count], True, 1)
        odds = odds * chosen
        shared = odds.sum(1, keepdims=True) if attribute(self.node, "normalize_routing_weights", 0) else 1.0
        return np.asarray(odds / shared)

    def hidden(self, x: Array, expert: int) -> Array:
        """[tokens, hidden]: what one expert makes of tokens [tokens, width]."""
        up, gate = (self._layer(which, x, expert) for which in (UP, GATE))
        assert up is not None
        kind = str(attribute(self.node, "activation_type", "relu"))
        fusion = int(attribute(self.node, "swiglu_fusion", 0))
        if kind == "swiglu":
            parts = (up[:, ::2], up[:, 1::2]) if fusion == 1 else np.split(up, 2, 1) if fusion else (up, gate)
            left, right = parts
            if left is None or right is None:
                raise Unsolvable("a gate that is not there")
            limit = float(attribute(self.node, "swiglu_limit", np.inf))
            alpha, beta = (float(attribute(self.node, f"activation_{n}", d)) for n, d in (("alpha", 1), ("beta", 0)))
            left = np.minimum(left, limit)
            return np.asarray(left * _sigmoid(alpha * left) * (np.clip(right, -limit, limit) + beta))
        if kind not in ACTIVATIONS:
            raise Unsolvable(f"its activation {kind} is not known here")
        made = ACTIVATIONS[kind](up)
        return made if gate is None else made * gate

    def _layer(self, which: int, x: Array, expert: int) -> Array | None:
        weight, bias = self.weights[which], self.biases[which]
        if weight is None:
            return None
        return np.asarray(x @ weight[expert].T + (0 if bias is None else bias[expert]))

    def given(self, x: Array, expert: int) -> Array:
        """[tokens, outputs]: what one expert gives, but for its bias."""
        down = self.weights[DOWN]
        assert down is not None
        return np.asarray(self.hidden(x, expert) @ down[expert].T)


@dataclass(frozen=True)
class Tokens:
    """What a mixture is given in one batch: x [tokens, width] and the scores of all experts [tokens, experts]."""

    mixture: Mixture
    x: Array
    logits: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what goes in."""
        return self.x.shape

    def of(self, at: NDArray[np.int64], what: Callable[[Array, int], Array]) -> Array:
        """[experts, rows, ..]: `what` every expert makes of some of the tokens, times its share of them."""
        shares, x = self.mixture.shares(self.logits[at]), self.x[at]
        found = []
        for expert in range(shares.shape[1]):
            mine = np.flatnonzero(shares[:, expert])
            made = what(x[mine], expert)
            out = np.zeros((len(at), made.shape[1]), np.float32)
            out[mine] = made * shares[mine, expert, None]
            found.append(out)
        return np.stack(found)

    def whole(self) -> Array:
        """[tokens, outputs]: what the node gives."""
        biases = self.mixture.biases[DOWN]
        found = self.of(np.arange(len(self.x)), self.mixture.given).sum(0)
        return np.asarray(found if biases is None else found + self.mixture.shares(self.logits) @ biases)


@dataclass(frozen=True)
class Experts(Layer):
    """The layer down from the hidden units, a group an expert. sizes: experts, hidden units, outputs."""

    sizes: tuple[int, int, int] = (1, 1, 1)

    @property
    def out(self) -> str:
        """None that the graph knows."""
        return ""

    def units(self, reductions: Sequence[Reduction], rank: Any) -> Ids | None:
        """What the node sums over itself are other channels: those of the tokens."""
        return None

    def inputs(self, walk: Walk) -> Any:
        """What it is given in every batch, with the weights that it has by now."""
        return _tokens(self.node, walk)

    def sample(self, x: Any, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Tokens, of which each expert sees a few."""
        there, every = len(x.x), most * self.groups // int(attribute(self.node, "k", 1))
        return np.sort(rng.choice(there, min(there, max(every, 1)), replace=False))

    def rows(self, x: Any, at: NDArray[np.int64]) -> Array:
        """[experts, rows, hidden]"""
        return np.asarray(x.of(at, x.mixture.hidden))

    def targets(self, y: Any, at: NDArray[np.int64]) -> Array:
        """[experts, rows, outputs]"""
        return np.asarray(y.of(at, y.mixture.given))

    def dense(self, trace: Trace, kept: Mask, walk: Walk, name: str, outputs: int) -> Iterable[Any]:
        """What the experts that were kept are given in the network that was not cut; Unsolvable where what they give is
        not understood."""
        known = next((o for o in self.node.output if o), "")
        if known not in walk.made_by:
            raise Unsolvable("its output is new in the pruned graph")
        k = walk.made_by[known]
        tokens, made = _tokens(walk.nodes[k], walk), walk.value(known)[0]
        if np.linalg.norm(tokens[0].whole() - made.reshape(len(tokens[0].x), -1)) > NEAR * np.linalg.norm(made):
            raise Unsolvable("what its experts give is not what it gives")
        left = _kept(trace, kept, (walk.first + k, OPERANDS[self.node.op_type][DOWN][0]), tokens[0].mixture)
        if (len(left.experts), outputs) != (self.groups, _outputs(left)):
            raise Unsolvable(RESHAPED)
        return (replace(each, mixture=left) for each in tokens)

    def extent(self, dims: DimsOf) -> Extent | None:
        """See `linear.Linear`."""
        x = dims(self.data)
        return None if x is None else Extent(int(np.prod([n or 1 for n in x[:-1]])), *self.sizes)

    def on(self, node: NodeProto) -> Experts:
        """The same of a copy of the graph."""
        return replace(self, node=node)


def experts(index: int, node: NodeProto, model: Model) -> Experts | None:
    """The layer in a MoE or QMoE; None where its weight is computed, or experts are weighed in a way of their own."""
    weight = _parameter(node, OPERANDS[node.op_type][DOWN][0], model)
    if weight is None or attribute(node, "use_sparse_mixer", 0) or any(node.input[14:]):
        return None
    count, outputs, hidden = weight.shape(model)
    sizes, turned = (count, hidden, outputs), (0, 2, 1)
    return Experts(
        index, node, node.input[X], weight,
        lambda w: w.transpose(turned), lambda m, to: m.transpose(turned), groups=count, sizes=sizes,
    )  # fmt: skip


def _parameter(node: NodeProto, i: int, model: Model) -> Parameter | Stack | None:
    table = coded(node, i)
    if table is not None:
        return Stack(table) if table.known(model) else None
    return Parameter(node.input[i], node.input[i]) if node.input[i] in model.weights else None


def _tokens(node: NodeProto, walk: Walk) -> list[Tokens]:
    mixture = Mixture.of(node, walk.model)
    pairs = zip(walk.value(node.input[X]), walk.value(node.input[ROUTER]), strict=True)
    return [Tokens(mixture, x.reshape(-1, x.shape[-1]).astype(np.float32), r.astype(np.float32)) for x, r in pairs]


def _kept(trace: Trace, kept: Mask, use: tuple[int, int], whole: Mixture) -> Mixture:
    """A mixture with the experts and the outputs that were kept, by where its layer down has them."""
    down, biases = whole.weights[DOWN], whole.biases
    s = next((s for s in trace.slices.values() if use in s.uses), None)
    if s is None or down is None:
        raise Unsolvable("its weight has no slices")
    stored = trace.model.weights[s.parameter].shape if s.cells is None else s.cells.shape
    places = np.indices(stored[:2])[..., None]
    at = [
        take(Weight.of(np.ascontiguousarray(np.broadcast_to(p, stored))), s.blocks, kept).array()[..., 0]
        for p in places
    ]
    alive, outputs = at[0][:, 0], at[1][0]
    layers = tuple(None if w is None else w[alive] for w in whole.weights)
    narrow = replace(whole, experts=alive, weights=(layers[UP], down[np.ix_(alive, outputs)], layers[GATE]))
    return replace(narrow, biases=tuple(None if b is None else b[alive] for b in biases))


def _outputs(mixture: Mixture) -> int:
    down = mixture.weights[DOWN]
    assert down is not None
    return int(down.shape[1])
