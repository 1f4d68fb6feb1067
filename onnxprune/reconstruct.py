"""Refit what is left to what was there: sequential, asymmetric least squares over the rewritten graph.

Layer by layer, in order: the input comes from the pruned network as it is by now, the target from the dense one (where
the layer feeds a sum, the dense sum less the current shortcut). Every layer behind the first cut is solved again, not
only those that lost inputs: each takes back part of what the earlier ones could not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit.fitted import Fitted
from onnxprune.fit.layers import Layer, layers
from onnxprune.fit.least_squares import Problem, Solution, solve
from onnxprune.fit.sites import sample_size
from onnxprune.fit.tails import Tail, tail
from onnxprune.fit.walk import Walk
from onnxprune.labels import Mask
from onnxprune.model import Weight
from onnxprune.rewrite import Rewritten
from onnxprune.slicing import take
from onnxprune.trace import Trace

Array = NDArray[Any]
Gathered = list[tuple[Array, ...]]
HELD = 0.2
"""Share of the rows that judge where no batch is left to do so."""


@dataclass
class Refit:
    """What happened to one layer: squared errors on held-out rows, relative to the target's energy."""

    layer: str
    before: float
    after: float
    ridge: float


@dataclass
class Refits:
    """All layers that were solved for, and those that were not with the reason."""

    solved: list[Refit] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def restricted(trace: Trace, kept: Mask, name: str, value: Array) -> Array:
    """A dense activation at the kept positions of its labelled axes."""
    blocks = [b.at(value.shape) for b in trace.of(name)]
    if all(kept[b.ids].all() for b in blocks):
        return value
    return take(Weight.of(value), blocks, kept).array()


class Reconstruction:
    """Both networks on the way through the same batches. The last `held` batches, if any, only judge."""

    def __init__(
        self, trace: Trace, kept: Mask, after: Rewritten, feeds: Sequence[Mapping[str, Array]], held: int,
        providers: Sequence[str] = ("cpu",), seed: int = 0,
    ) -> None:  # fmt: skip
        self.trace, self.kept, self.after, self.held, self.seed = trace, kept, after, held, seed
        self.dense = Walk(trace.model, feeds, trace.shapes.dtype, providers)
        self.current = Walk(after.model, feeds, trace.shapes.dtype, providers)
        self.open: set[int] = set()
        self.fitted = Fitted(self.current, trace.shapes.dtype, after.aliases)
        self.refits = Refits()

    def run(self, progress: Callable[[float], None] | None = None) -> Refits:
        found = layers(self.after.model, self.trace.rank)
        shared: dict[str, list[Layer]] = defaultdict(list)
        for layer in found:
            shared[layer.weight.root].append(layer)
        self.open = {layer.index for layer in found}
        for k, layer in enumerate(found):
            if progress:
                progress(k / len(found))
            members = shared[layer.weight.root]
            if members[0] is layer and len(members) > 1:
                self._refit(members, 1)  # the others must not read what nothing was done about
            if members[-1] is layer:
                why = self._refit(members, len(members))
                if why:
                    self.refits.skipped[layer.weight.root] = why
                self.open -= {m.index for m in members}
                self.current.release()
                self.dense.release()
        return self.refits

    def _refit(self, members: list[Layer], seen: int) -> str:
        """Solve for one weight by the first `seen` of the layers that use it; why not, where it cannot be done."""
        layer, model = members[0], self.after.model
        if self.fitted.readers(layer.weight.root, {m.index for m in members}) != {m.index for m in members}:
            return "the weight has uses that are no layers"
        weight = layer.weight.read(model)
        start = layer.matrix(weight)
        groups, outputs = start.shape[0], start.shape[0] * start.shape[2]
        tails = [self._tail(m, outputs) for m in members]
        biases = [self.fitted.bias(m, outputs) for m in members]
        alike = all(np.allclose(t.scale, tails[0].scale) for t in tails)
        if any(b is None for b in biases) or not alike or not all(np.allclose(b, biases[0]) for b in biases):  # type: ignore[arg-type]
            return "its bias or scale differs from use to use"
        bias = np.asarray(biases[0]).reshape(groups, -1)
        gathered = self._gather(members[:seen], tails[:seen], start)
        if isinstance(gathered, str):
            return gathered
        movable = all(self.fitted.movable(t.shift) for t in tails)
        low, high = min(t.low for t in tails), max(t.high for t in tails)
        solved, energy = [], 0.0
        for g, (rows, wanted, offset) in enumerate(gathered):
            scale = tails[0].scale.reshape(groups, -1)[g]
            p = Problem(rows, wanted, scale, offset, low, high, movable)
            held = max(1, round(len(rows) * (self.held / self.dense.batches or HELD)))
            test = p.part(slice(len(rows) - held, None))
            exact = test.error(start[g], bias[g]) <= 1e-10 * test.energy()
            solved.append(Solution(start[g], bias[g], 0, 0, 0) if exact else solve(p, start[g], bias[g], held))
            energy += test.energy() + 1e-30
        if all(s.before == 0 for s in solved):
            return "nothing that it reads or gives was cut"
        if seen == len(members):
            self.refits.solved.append(Refit(
                layer.node.name, sum(s.before for s in solved) / energy, sum(s.error for s in solved) / energy,
                max(s.ridge for s in solved),
            ))  # fmt: skip
        layer.weight.write(model, layer.restore(np.stack([s.matrix for s in solved]), weight.shape))
        moved = np.concatenate([s.bias for s in solved]) - bias.ravel()
        self.fitted.move(tails, moved if movable else np.zeros_like(moved))
        if len(members) > 1:
            self.current.forget(m.index for m in members)
        return ""

    def _tail(self, layer: Layer, outputs: int) -> Tail:
        """What follows the layer; without the sum it goes into where that cannot be the target yet, or is larger."""
        its = tail(layer, self.current, outputs, self.trace.rank(layer.out))
        shapes = self.trace.shapes.probe[0]
        early = its.other and self.current.ancestors([its.other]) & self.open - {layer.index}
        if early or (its.total and shapes.get(its.total) != shapes.get(its.end)):
            return replace(its, total="", other="", low=-np.inf, high=np.inf)
        return its

    def _gather(self, members: list[Layer], tails: list[Tail], start: Array) -> Gathered | str:
        """Of every group (rows, wanted, offset), held-out batches last."""
        groups, columns = start.shape[:2]
        total = sample_size(groups, columns) // len(members)
        parts: list[list[tuple[Array, Array, Array]]] = [[] for _ in range(self.dense.batches)]
        for layer, its in zip(members, tails, strict=True):
            name, other = its.compared, its.other
            if self.trace.shapes.static(name) is None:
                return "its output is new in the pruned graph"
            xs, dense = self.current.value(layer.data), self.dense.value(name)
            others = self.current.value(other) if other else [None] * len(xs)
            rng = np.random.default_rng((self.seed, layer.index))
            for batch, (x, y, z) in enumerate(zip(xs, dense, others, strict=True)):
                y = restricted(self.trace, self.kept, name, y)
                if layer.window is None and y.shape[layer.y_axis] != start.shape[2]:
                    return "its output has another shape in the pruned graph"
                if layer.window is not None and y.shape[1] != groups * start.shape[2]:
                    return "its output has another shape in the pruned graph"
                there = layer.places(x)
                many = -(-total // (len(xs) * (len(x) if layer.window else 1)))
                at = np.sort(rng.choice(there, min(there, max(many, 1)), replace=False))
                rows, wanted = layer.rows(x, at), layer.targets(y, at)
                offset = np.broadcast_to(its.offset.reshape(groups, 1, -1), wanted.shape)
                if z is not None:
                    offset = offset + layer.targets(np.broadcast_to(z, y.shape), at)
                parts[batch].append((rows, wanted, offset))
        flat = [p for batch in parts for p in batch]
        return [
            (*(np.concatenate([p[k][g] for p in flat]).astype(np.float32, copy=False) for k in range(3)),)
            for g in range(groups)
        ]
