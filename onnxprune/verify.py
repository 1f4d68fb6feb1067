"""Two proofs that a rewriting is right: re-trace, and equivalence with the masked original in ONNX Runtime.

Knows the trace and what was kept, not how that was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune import footprint, rounding
from onnxprune.chain import Chain, opened
from onnxprune.difference import difference, largest, worst
from onnxprune.errors import CheckFailed, RuntimeFailure
from onnxprune.groups import Groups
from onnxprune.labels import Mask
from onnxprune.masking import FLOATS, masked
from onnxprune.model import Model
from onnxprune.options import Options, Proof
from onnxprune.relabel import Kept
from onnxprune.rewrite import Rewritten
from onnxprune.rules import RULES
from onnxprune.runtime import Session, first_line
from onnxprune.shapes import Shapes
from onnxprune.taps import last, taps, with_outputs
from onnxprune.trace import Trace
from onnxprune.trials import Run, run_masked

TOLERANCE = {TensorProto.FLOAT16: 1e-2, TensorProto.BFLOAT16: 5e-2}


def retrace(trace: Trace, groups: Groups, kept: Mask, after: Rewritten, shapes: Shapes) -> int:
    """Trace the rewritten graph with the original's ids; returns how many couplings agree, or raises CheckFailed."""
    frozen = np.array([r is not None for r in groups.reason], bool)
    labels = Kept(trace.labels, groups.classes, kept, frozen)
    again = Trace(after.model, shapes, labels, trace.structures, after.aliases, True, trace.slices)
    again.run(RULES)
    if labels.faults:
        why, text = labels.faults[0]
        raise CheckFailed(f"the re-trace differs at {why.op_type} '{why.node}': {text}; please report this model")
    return labels.couplings


def equivalence(trace: Trace, kept: Mask, after: Model, options: Options) -> Proof:
    """Run the masked original and the rewritten model on the same random inputs, at both probes' sizes."""
    tapped = taps(trace, kept)
    after = with_outputs(trace, after, tapped)
    try:
        pruned = opened(after, options, trace.shapes.dtype)
    except RuntimeFailure as e:
        opened(
            trace.model, options, trace.shapes.dtype
        )  # if it does not load either, that is what the user should hear
        raise CheckFailed(f"the pruned model does not load: {e}") from e
    saturated = set[str]().union(*last(trace).values()) - set(tapped)
    floors = [1e-2 if o.name in saturated else 1e-6 for o in after.proto.graph.output]
    allowed = tolerance_of(trace) if options.check_rtol is None else options.check_rtol
    both = _Both(trace, kept, after, pruned, tapped, floors, options)
    seen: list[_Seen] = []
    for probes in _together(trace, options):
        seen += both.compared(probes, allowed)
        allowed = max(allowed, *(s.allowed for s in seen))
    error, blocks = max(s.error for s in seen), max(pruned.blocks, *(s.blocks for s in seen))
    return Proof(0, error, allowed, tuple(s.batch for s in seen), pruned.used, blocks)


@dataclass(frozen=True)
class _Seen:
    """One comparison that held: what is left of it once the tensors are gone."""

    error: float
    allowed: float
    batch: int
    blocks: int


@dataclass(frozen=True)
class _Both:
    """The original and the rewritten model, to be run on the same inputs."""

    trace: Trace
    kept: Mask
    after: Model
    pruned: Session | Chain
    tapped: Sequence[str]
    floors: Sequence[float]
    options: Options

    def compared(self, probes: Sequence[int], tolerance: float) -> list[_Seen]:
        """Run both at the sizes of the probes; CheckFailed where they differ."""
        found = (run_masked(self.trace, self.kept, self.tapped, self.options, k) for k in probes)
        runs = [run for run in found if run is not None]  # at some second batch sizes not even the original runs
        try:
            results = self.pruned.run_all([run.feeds for run in runs]) if runs else []
        except Exception as e:
            raise CheckFailed(f"the pruned model does not run: {first_line(e)}") from e
        out: list[_Seen] = []
        for run, got in zip(runs, results, strict=True):
            error, tolerance = self._error(run, got, tolerance)
            out.append(_Seen(error, tolerance, run.batch, run.blocks))
        return out

    def _error(self, run: Run, got: Sequence[Any], tolerance: float) -> tuple[float, float]:
        """The error, and what is allowed: more than `tolerance` where rounding alone makes as much."""
        error = worst(run.outputs, got, self.floors)
        allowed = self._allowed(error, tolerance, lambda: self._noise(run))
        if error > allowed:
            error, allowed = min((error, allowed), self._in_two_parts(run, tolerance))
        small = error * largest(run.outputs) <= self.options.check_atol  # infinite times 0 is no number
        if error > allowed and not small:
            raise CheckFailed(
                f"the pruned model differs from the masked original by {error:.1e} (allowed {allowed:.0e})"
                f"{self._parting(run, allowed)}"
            )
        return error, allowed

    def _allowed(self, error: float, tolerance: float, noise: Callable[[], float]) -> float:
        """The tolerance; where the error is not far beyond it, what rounding moves the outputs of the same model."""
        if not tolerance < error < 10 * tolerance or self.options.check_rtol is not None:
            return tolerance
        return max(tolerance, min(10 * tolerance, 4 * noise()))

    def _noise(self, run: Run) -> float:
        again, moved = rounding.nudged(self._original(run, self.tapped), run.feeds, self.options.seed)
        return worst(run.outputs, self._opened(again).run(moved), self.floors)

    def _in_two_parts(self, run: Run, tolerance: float) -> tuple[float, float]:
        """The error of what decisions are made from, and of all outputs once the pruned model is told what the original
        decides from, infinite where nothing is decided; and what is allowed."""
        names = rounding.deciding(self.trace, self.kept, self.after)
        if not names:
            return np.inf, tolerance
        outputs = [o.name for o in self.after.proto.graph.output]
        both = self._original(run, [*outputs, *names])
        expected = self._values(both, run.feeds)
        decided = {n: expected[n] for n in names}
        answers = {f"{n}_told": x for n, x in decided.items()}
        floors = dict.fromkeys(names, 1e-06) | dict(zip(outputs, self.floors, strict=True))

        def error(model: Model, feeds: Mapping[str, NDArray[Any]]) -> float:
            try:
                got = self._values(rounding.told(self.trace, model, decided), {**feeds, **answers})
            except Exception:  # decisions that it was not told do not fit these: a runtime has many ways to say so
                return np.inf
            return max(difference(expected[n], got[n], floor) for n, floor in floors.items())

        found = error(with_outputs(self.trace, self.after, names), run.feeds)
        noise = lambda: error(*rounding.nudged(both, run.feeds, self.options.seed))  # noqa: E731
        return found, self._allowed(found, tolerance, noise)

    def _parting(self, run: Run, tolerance: float) -> str:
        """The first node, in order, at whose output the two models part."""
        trace, kept = self.trace, self.kept
        ours = {o for n in self.after.proto.graph.node for o in n.output}
        producer = {o: n for n in trace.model.proto.graph.node for o in n.output}
        names = [o for o in producer if o in ours and trace.shapes.dtype(o) in FLOATS]
        try:
            left = self._values(self._original(run, names), run.feeds)
            right = self._values(with_outputs(trace, self.after, names), run.feeds)
        except Exception:  # an error message must not fail for want of more to say
            return ""
        for name in names:
            value = left[name]
            for block in trace.blocks.get(name, ()):
                if block.ids.ndim == 1 and value.shape[block.axes[0]] == block.ids.size:
                    value = np.take(value, np.flatnonzero(kept[block.ids]), axis=block.axes[0])
            if value.shape == right[name].shape and difference(value, right[name]) > tolerance:
                return f"; they part at {producer[name].op_type} '{producer[name].name}'"
        return ""

    def _original(self, run: Run, names: Sequence[str]) -> Model:
        return with_outputs(self.trace, masked(self.trace, self.kept, run.sizes), names)

    def _opened(self, model: Model) -> Session | Chain:
        return opened(model, self.options, self.trace.shapes.dtype)

    def _values(self, model: Model, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        session = self._opened(model)
        return dict(zip(session.outputs, session.run(feeds), strict=True))


def _together(trace: Trace, options: Options) -> list[list[int]]:
    """The probes, those in one list that are run at once: a large model is read once then, but all that each of them
    makes is in memory."""
    probes = list(range(len(trace.shapes.inputs)))
    size = sum(footprint.peak(trace.model, trace.shapes.passes[k])[0] for k in probes)
    return [probes] if size <= options.memory else [[k] for k in probes]


def tolerance_of(trace: Trace) -> float:
    """By the coarsest number format in the graph; a quantised model may differ by a few of its steps."""
    kinds = {w.onnx_type for w in trace.model.weights.values()} | {trace.shapes.dtype(n) for n in trace.blocks}
    if any(n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm")
           for n in trace.nodes):  # fmt: skip
        return 4 / 127
    return max((t for k, t in TOLERANCE.items() if k in kinds), default=1e-5)
