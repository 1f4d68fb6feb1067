"""Gradients without a training framework: onnx-ad turns the gated graph into one that computes derivatives, and ONNX
Runtime runs it. The loss stays outside: its derivative by the logits is a few lines of numpy, and it is what is fed.

Knows graphs and losses, no criterion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper

from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.gradients.explicit import freeze_sizes, smoothed
from onnxprune.gradients.gates import insert, sample_axes
from onnxprune.gradients.losses import OTHERWISE, Seed, head, seeds
from onnxprune.model import Array, Model, Weight, needs
from onnxprune.options import Options
from onnxprune.run import SMALL, first_line, open_session
from onnxprune.shapes import Shapes, infer
from onnxprune.trace import Groups, Trace

PREFIX = "onnxprune_adjoint_"
MISSING = "the taylor criteria need onnx-ad; pip install 'onnxprune[gradients]'"


Mode = Literal["together", "alone", "seeded"]
"""How samples are told apart: by their axis; each in a run of its own; all in a run in which one has a seed."""


def gate_gradients(
    groups: Groups, feeds: Sequence[Mapping[str, Array]], labels: Array | None, options: Options,
    seed_with: Seed = "loss",
) -> NDArray[np.float64]:  # fmt: skip
    """[samples, classes]: the derivative of every sample's loss by the gate of every unit (z = 1, so that it is the
    gradient times the activation, summed over all places where the unit is summed away). Zero for what is no unit.

    feeds: batches of inputs, samples on the first axis. A dynamic batch is frozen to the largest of them, smaller ones
    are padded. Whether a seed for one sample reaches that sample's gates alone is tried once; where it does not (gated
    parameters, time as the outer axis, nodes of one graph as samples), the samples are seeded one by one."""
    random = np.random.default_rng(options.seed)
    out = np.zeros((sum(map(samples_of, feeds)), len(groups.prunable)))
    fixed = static_batch(groups.trace)
    batch = fixed or max(map(samples_of, feeds), default=1)
    ready: dict[tuple[object, ...], _Differentiated] = {}
    mode: Mode = "together"
    offset = 0
    for feed in feeds:
        total, start = samples_of(feed), 0
        while start < total:
            size = 1 if mode == "alone" else total if mode == "seeded" and not fixed else batch
            chunk = rows(feed, start, size)
            given = {n: a.shape for n, a in chunk.items()}
            key = (mode, *given.items())
            if key not in ready:
                ready[key] = _Differentiated(groups, given, size, options, mode)
                if mode == "together" and size > 1 and not ready[key].separate(chunk, random):
                    mode = "seeded" if fixed or not ready[key].independent(chunk) else "alone"
                    ready.clear()
                    continue
            real, at = min(size, total - start), offset + start
            mine = None if labels is None else labels[np.minimum(np.arange(at, at + size), offset + total - 1)]
            out[at : at + real] = ready[key].gradients(chunk, mine, seed_with, random, real)[:real]
            start += real
        offset += total
    out[:, ~groups.prunable] = 0
    return out


def samples_of(feed: Mapping[str, Array]) -> int:
    """How many samples a feed has: the length of its first array with an axis."""
    return next((len(a) for a in feed.values() if a.ndim), 1)


def static_batch(trace: Trace) -> int | None:
    """The number of samples that the model takes in one run, where it is fixed."""
    for info in trace.model.skeleton.graph.input:
        if info.name not in trace.model.weights and info.type.tensor_type.shape.dim:
            return info.type.tensor_type.shape.dim[0].dim_value or None
    return None


def rows(feed: Mapping[str, Array], start: int, size: int) -> dict[str, Array]:
    """`size` samples from `start` on; the last one repeated as often as it takes."""
    total = samples_of(feed)
    at = np.minimum(np.arange(start, start + size), total - 1)
    return {n: a[at] if a.ndim and len(a) == total else a for n, a in feed.items()}


class _Differentiated:
    """The gated graph and its derivative for inputs of fixed shapes."""

    def __init__(
        self, groups: Groups, given: Mapping[str, tuple[int, ...]], samples: int, options: Options, mode: Mode
    ) -> None:
        self.groups, self.samples, self.mode = groups, samples, mode
        trace = groups.trace
        model = smoothed(trace.model)
        shapes = infer(model, given)
        self.head = head(trace, shapes, samples)
        axes = _axes(model, shapes, given, samples) if mode == "together" else {}
        plain = model.copy()
        self.gates = insert(trace, model, shapes, groups.prunable[groups.classes], axes, samples)
        freeze_sizes(model, shapes)
        only(plain, self.head.name, shapes)
        only(model, self.head.name, shapes)
        self.kinds = {i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
                      for i in plain.skeleton.graph.input if i.name not in model.weights}  # fmt: skip
        adjoint = reverse(model, [g.name for g in self.gates], self.head.name)
        self.forward, self.backward = (open_session(m, options.providers) for m in (plain, adjoint))
        self.fixed = {g.name: g.ones() for g in self.gates}
        self.names = [PREFIX + g.name for g in self.gates]
        self.kind = helper.tensor_dtype_to_np_dtype(shapes.dtype(self.head.name) or 1)

    def separate(self, feed: Mapping[str, Array], random: np.random.Generator) -> bool:
        """Whether a seed for one sample reaches only the gates of that sample."""
        if any(g.sample is None for g in self.gates):
            return False
        logits = self._logits(feed)
        seed = random.standard_normal(logits.shape).reshape(self.samples, -1)
        seed[np.arange(self.samples) != 1] = 0
        found = self._run(feed, seed.reshape(logits.shape))
        return bool((np.delete(found, 1, axis=0) == 0).all())

    def independent(self, feed: Mapping[str, Array]) -> bool:
        """Whether the first sample has the same logits among copies of itself."""
        crowd = self._logits({n: a[[0] * len(a)] if a.ndim and len(a) == self.samples else a for n, a in feed.items()})
        here, there = (x.reshape(self.samples, -1)[0] for x in (self._logits(feed), crowd))
        return bool(np.allclose(here, there, rtol=1e-3, atol=1e-3 * float(np.abs(here).max())))

    def gradients(
        self, feed: Mapping[str, Array], labels: Array | None, seed_with: Seed, random: np.random.Generator, real: int
    ) -> NDArray[np.float64]:
        """[samples, classes]; only the first `real` samples get a seed."""
        logits = self._logits(feed)
        seed = seeds(logits, self.head.classes, labels, seed_with, random).reshape(self.samples, -1)
        seed[real:] = 0
        if self.mode != "seeded":
            return self._run(feed, seed.reshape(logits.shape))
        out = np.zeros((self.samples, len(self.groups.prunable)))
        for k in range(real):
            one = np.where(np.arange(self.samples)[:, None] == k, seed, 0)
            out[k] = self._run(feed, one.reshape(logits.shape))[0]
        return out

    def _logits(self, feed: Mapping[str, Array]) -> Array:
        return np.asarray(_call(self.forward, [self.head.name], self._inputs(feed))[0])

    def _inputs(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return {name: feed[name].astype(kind, copy=False) for name, kind in self.kinds.items()}

    def _run(self, feed: Mapping[str, Array], seed: Array) -> NDArray[np.float64]:
        inputs = self._inputs(feed) | self.fixed | {PREFIX + self.head.name: seed[..., None].astype(self.kind)}
        count = len(self.groups.prunable)
        out = np.zeros((self.samples, count))
        for gate, gradient in zip(self.gates, _call(self.backward, self.names, inputs), strict=True):
            out += gate.gathered(gradient[..., 0], self.groups.classes, self.samples, count)
        return out


def _call(session: Any, names: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
    try:
        return list(session.run(list(names), dict(inputs)))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise RuntimeFailure(f"ONNX Runtime failed on the gradients: {first_line(error)}") from error


def _axes(model: Model, shapes: Shapes, given: Mapping[str, tuple[int, ...]], samples: int) -> dict[str, int]:
    """The axis of samples of every tensor; a model with a fixed number of them can be asked at that number only."""
    more = {n: (samples + 1, *s[1:]) if s and s[0] == samples else s for n, s in given.items()}
    try:
        return sample_axes(shapes, infer(model, more), samples, samples + 1)
    except UsageError:
        return sample_axes(shapes, None, samples, samples)


def only(model: Model, name: str, shapes: Shapes) -> None:
    """Make `name` the one output, and drop what it does not need. Changes `model`."""
    graph = model.skeleton.graph
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, shapes.dtype(name) or 1, shapes.probe[0].get(name)))
    alive = _drop_dead(graph)
    for unused in model.weights.keys() - alive:
        del model.weights[unused]


def _drop_dead(graph: GraphProto) -> set[str]:
    """Drop the nodes that no output needs; returns the tensors that are left."""
    alive, kept = {o.name for o in graph.output}, []
    for node in reversed(graph.node):
        if alive & set(node.output):
            alive.update(needs(node))
            kept.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return alive


def reverse(model: Model, inputs: Sequence[str], output: str) -> Model:
    """`model` with an input for the derivative of something by `output`, and with outputs for its derivatives by
    `inputs` (one trailing axis of size one more): the vector-Jacobian product, differentiated by onnx-ad.

    Large weights go in as inputs without values, so that their bytes are neither copied nor looked at."""
    onnx_ad = _onnx_ad()
    _standard(model, inputs)
    large = {n: w for n, w in model.weights.items() if w.nbytes >= SMALL and w.dtype.kind == "f"}
    proto = _without_values(model, large)
    try:
        found = onnx_ad.reverse(proto, list(inputs), [output], prefix=PREFIX, dim=PREFIX + "seeds", layout="onnx")
    except Exception as error:  # what it does not support, it says in several ways
        raise UsageError(f"onnx-ad cannot differentiate this model: {first_line(error)}; {OTHERWISE}") from error
    found.graph.output.remove(next(o for o in found.graph.output if o.name == output))
    alive = _drop_dead(found.graph)  # the derivatives by weights, above all, which nobody asked for
    rest = [i for i in found.graph.input if i.name not in large]
    for node in found.graph.node:  # what it replaces may bear the name of what it replaces it with
        node.name = ""
    del found.graph.input[:]
    found.graph.input.extend(rest)
    out = Model.load(found)
    out.weights = {n: w for n, w in (out.weights | large).items() if n in alive}
    return out


def _onnx_ad() -> Any:
    try:
        import onnx_ad  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError(MISSING) from None
    return onnx_ad


def _without_values(model: Model, large: Mapping[str, Weight]) -> ModelProto:
    """A copy whose `large` weights are inputs, all others initializers with their values."""
    model.sync()
    proto = ModelProto()
    proto.CopyFrom(model.skeleton)
    proto.ir_version = max(proto.ir_version, 8)
    del proto.graph.initializer[:], proto.graph.input[:]
    for tensor in model.skeleton.graph.initializer:
        if tensor.name not in large:
            model.weights[tensor.name].fill(proto.graph.initializer.add(name=tensor.name))
    proto.graph.input.extend(i for i in model.skeleton.graph.input if i.name not in model.weights)
    for name, weight in large.items():
        proto.graph.input.append(helper.make_tensor_value_info(name, weight.onnx_type, weight.shape))
    return proto


def _standard(model: Model, inputs: Sequence[str]) -> None:
    """onnx-ad goes by the operators' names alone: another domain's operator of the same name is not the same one."""
    live = set(inputs)
    for node in model.skeleton.graph.node:
        if live.intersection(needs(node)):
            live.update(node.output)
            if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) != ("com.microsoft", "Gelu"):
                kind = f"{node.domain}::{node.op_type} '{node.name}'"
                raise UsageError(f"onnx-ad has no derivative of {kind}; {OTHERWISE}")
