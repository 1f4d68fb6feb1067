"""What is learned: the dense model's scores of classes before a last Softmax, or its outputs as they are.

Knows graphs and tensors by name, no torch; what is said of losses is in `losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.data import Feed
from onnxprune.errors import NothingToPrune, RuntimeFailure
from onnxprune.model import Array, Model, attribute, opset, taken_from, traits
from onnxprune.prove import with_outputs
from onnxprune.run import first_line, open_session

DECIDED = 0.85
"""Scores of classes leave less than this share of the entropy that there is before an input is seen; in other vectors
the entries stand for nothing that one could decide for."""
ENDS = traits.SOFTMAXES | {"ArgMax", "Hardmax"}


@dataclass(frozen=True)
class Target:
    """A tensor of both graphs. axis: that of the classes, or None where the numbers themselves count. spread: their
    variance."""

    name: str
    axis: int | None
    spread: float = 1.0


class Teacher:
    """The dense model's answers."""

    def __init__(self, dense: Model, pruned: Model, providers: Sequence[str]) -> None:
        """Both are normalised. NothingToPrune where no output says anything that could be learned."""
        self.providers = providers
        self.found = _ends(dense)
        there = {o for node in pruned.graph.node for o in node.output}
        self.found = {name: axis for name, axis in self.found.items() if name in there}
        self.session, self.taken = self.opened(dense), pruned.taken

    def opened(self, model: Model) -> Any:
        """A session of a model that gives the tensors of the targets, too."""
        return open_session(with_outputs(lambda name: None, model, list(self.found)), self.providers)

    def targets(self, feeds: Sequence[Feed]) -> list[Target]:
        """What can be learned, by what the dense model says to these feeds."""
        answers = [self.answers(self.session, feed, list(self.found)) for feed in feeds]
        made = []
        for k, (name, axis) in enumerate(self.found.items()):
            parts = [a[k] for a in answers]
            if parts[0].dtype.kind != "f" or not all(np.isfinite(p).all() for p in parts):
                continue
            flat = np.concatenate([p.ravel() for p in parts]).astype(np.float64)
            spread = float(flat.var()) if flat.size else 0.0
            if spread > 0:
                made.append(Target(name, _classes(parts) if axis is None else axis, spread))
        if not made:
            raise NothingToPrune(
                "the model cannot be fine-tuned: no output is a float that differs from sample to sample"
            )
        return made

    def answers(self, session: Any, feed: Feed, names: Sequence[str]) -> list[Array]:
        """The tensors of these names; of the dense model, what the pruned one has of them."""
        try:
            made = [np.asarray(x) for x in session.run(list(names), feed)]
            if session is self.session:
                made = [taken_from(self.taken, name, x) for name, x in zip(names, made, strict=True)]
            return made
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise RuntimeFailure(f"ONNX Runtime failed on the inputs to fine-tune on: {first_line(error)}") from error


def _ends(model: Model) -> dict[str, int | None]:
    """The tensor to learn of each output: what goes into a last Softmax with the axis of its classes, or the output."""
    makers: dict[str, NodeProto] = {o: node for node in model.graph.node for o in node.output}
    found: dict[str, int | None] = {}
    for output in model.graph.output:
        name, node = output.name, makers.get(output.name)
        while node is not None and node.op_type in traits.REARRANGING | {"Cast"} and node.input[0] in makers:
            node = makers[node.input[0]]
        if node is not None and node.op_type in ENDS and node.input[0] in makers:
            default = 0 if node.op_type == "ArgMax" else -1 if opset(model) >= 13 else 1
            found[node.input[0]] = attribute(node, "axis", default)
        elif node is not None:
            found.setdefault(name, None)
    return found


def _classes(parts: Sequence[Array]) -> int | None:
    """The last axis, where [samples, classes] look like scores that decide."""
    if any(p.ndim != 2 or p.shape[1] < 2 for p in parts):
        return None
    scores = np.concatenate(parts).astype(np.float64)
    shifted = scores - scores.max(1, keepdims=True)
    p = np.exp(shifted)
    p /= p.sum(1, keepdims=True)
    return 1 if _entropy(p).mean() < DECIDED * _entropy(p.mean(0)) else None


def _entropy(p: Array) -> Array:
    return np.asarray(-(p * np.log(np.maximum(p, 1e-300))).sum(-1))


def errors(targets: Sequence[Target], ours: Sequence[Sequence[Array]], theirs: Sequence[Sequence[Array]]) -> float:
    """Mean over the targets of squared error by variance; ours, theirs: of each feed, by target."""
    found: list[float] = []
    for k in range(len(targets)):
        a, b = (np.concatenate([x[k].ravel() for x in both]).astype(np.float64) for both in (ours, theirs))
        found.append(float(np.square(a - b).sum() / max(np.square(b - b.mean()).sum(), 1e-30)))
    return float(np.mean(found))
