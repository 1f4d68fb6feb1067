"""The oracle: what the loss does when one unit alone is masked. One forward a unit: what every criterion estimates.

Knows gates and losses, no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxprune.errors import RuntimeFailure
from onnxprune.gradients.derivatives import only, rows, samples_of, static_batch
from onnxprune.gradients.gates import insert
from onnxprune.gradients.losses import cross_entropy, head
from onnxprune.gradients.sets import in_sets
from onnxprune.model import Array
from onnxprune.options import Options
from onnxprune.prove import masked
from onnxprune.run import first_line, open_session
from onnxprune.shapes import infer
from onnxprune.trace import Groups, Mask, kept_shape


def oracle(
    groups: Groups, feeds: Sequence[Mapping[str, Array]], labels: Array | None, options: Options,
    units: Sequence[int] | None = None, per: int = 1,
) -> NDArray[np.float64]:  # fmt: skip
    """[classes]: the score of every prunable unit, or of `units`; zero elsewhere.

    With labels: mean (E - E without the unit)^2, E the cross entropy over a set of `per` samples, the mean over all
    sets (Molchanov et al. 2019, eq. 3, averaged over minibatches as there). The change is squared set by set because a
    unit that helps some samples and harms others is not superfluous; over one large set such changes cancel.
    Without labels, or for outputs that are no classes: the squared error of the outputs relative to their square."""
    chosen = np.flatnonzero(groups.prunable) if units is None else np.asarray(units, np.int64)
    scores = np.zeros(len(groups.prunable))
    if chosen.size:
        found = changes(groups, feeds, labels, options, chosen)
        scores[chosen] = found.mean(1) if labels is None else np.square(in_sets(found.T, per)).mean(0)
    return scores


def changes(
    groups: Groups, feeds: Sequence[Mapping[str, Array]], labels: Array | None, options: Options, units: Array
) -> NDArray[np.float64]:
    """[units, samples]: how much the loss of each sample grows when one unit alone is masked; without labels, the
    squared error of its outputs over the batch's mean square."""
    total = sum(map(samples_of, feeds))
    out = np.zeros((len(units), total))
    fixed = static_batch(groups.trace)
    ready: dict[tuple[object, ...], _Masked] = {}
    offset = 0
    for feed in feeds:
        count = samples_of(feed)
        size = fixed or count
        for start in range(0, count, size):
            chunk = rows(feed, start, size)
            key = tuple((n, a.shape) for n, a in chunk.items())
            if key not in ready:
                ready[key] = _Masked(groups, {n: a.shape for n, a in chunk.items()}, size, options)
            real = min(size, count - start)
            which = np.minimum(np.arange(start, start + size), count - 1) + offset
            chosen = None if labels is None else labels[which]
            for k, change in enumerate(ready[key].changes(chunk, chosen, units)):
                out[k, offset + start : offset + start + real] = change[:real]
        offset += count
    return out


class _Masked:
    """The original with every mask as an input, for inputs of fixed shapes: one session serves all units."""

    def __init__(self, groups: Groups, given: Mapping[str, tuple[int, ...]], samples: int, options: Options) -> None:
        self.groups, self.samples, self.options = groups, samples, options
        trace = groups.trace
        self.shapes = infer(trace.model, given)
        self.head = head(trace, self.shapes, samples)
        model = trace.model.copy()
        self.gates = insert(trace, model, self.shapes, ~groups.kept_ids(groups.prunable), {}, samples, masks=True)
        only(model, self.head.name, self.shapes)
        used = {i for n in model.skeleton.graph.node for i in n.input}
        self.gates = [g for g in self.gates if g.name in used]
        self.kinds = {i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
                      for i in trace.model.skeleton.graph.input if i.name not in trace.model.weights}  # fmt: skip
        self.session = open_session(model, options.providers)
        self.ones = {g.name: g.ones() for g in self.gates}
        self.statistics = [b.ids for r in trace.reductions if r.kind == "gather" for _, b in (*r.ins, *r.outs)]

    def changes(self, feed: Mapping[str, Array], labels: Array | None, units: Array) -> Iterator[NDArray[np.float64]]:
        inputs = {name: feed[name].astype(kind, copy=False) for name, kind in self.kinds.items()}
        whole = self._run(self.session, inputs | self.ones)
        for unit in units.tolist():
            removed = np.zeros(len(self.groups.prunable), bool)
            removed[unit] = True
            kept = self.groups.kept_ids(removed)
            yield self._change(whole, self._without(inputs, kept), labels)

    def _without(self, inputs: Mapping[str, Array], kept: Mask) -> Array:
        """The logits without what is not kept. Statistics must not see what is masked: they take the masked original
        and a session of its own, unless the unit alone leaves no rectangle to take them over."""
        touched = [ids for ids in self.statistics if not kept[ids].all()]
        if touched and all(kept_shape(ids, kept) is not None for ids in touched):
            model = masked(self.groups.trace, kept, self.shapes.probe[0])
            only(model, self.head.name, self.shapes)
            return self._run(open_session(model, self.options.providers), inputs)
        masks = {g.name: g.mask(kept) for g in self.gates if not kept[g.ids].all()}
        return self._run(self.session, {**inputs, **self.ones, **masks})

    def _run(self, session: Any, inputs: Mapping[str, Array]) -> Array:
        try:
            return np.asarray(session.run([self.head.name], dict(inputs))[0])
        except Exception as error:
            raise RuntimeFailure(f"ONNX Runtime failed on the masked model: {first_line(error)}") from error

    def _change(self, whole: Array, without: Array, labels: Array | None) -> NDArray[np.float64]:
        if labels is not None:
            return cross_entropy(without, labels, self.samples) - cross_entropy(whole, labels, self.samples)
        a, b = (x.astype(np.float64).reshape(self.samples, -1) for x in (whole, without))
        return np.asarray(np.square(a - b).sum(1) / max(float(np.square(a).sum(1).mean()), 1e-30))
