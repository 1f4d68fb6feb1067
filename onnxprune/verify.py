"""Two proofs that a rewriting is right: re-trace, and equivalence with the masked original in ONNX Runtime."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune import footprint, rounding
from onnxprune.chain import Chain, opened
from onnxprune.difference import difference, largest, worst
from onnxprune.equation import Dims
from onnxprune.errors import CheckFailed, RuntimeFailure
from onnxprune.groups import Groups
from onnxprune.kept import Kept
from onnxprune.labels import Mask
from onnxprune.masking import FLOATS, masked
from onnxprune.model import Model
from onnxprune.options import Options, Proof
from onnxprune.rewrite import Rewritten
from onnxprune.rules import RULES
from onnxprune.runtime import Session, first_line
from onnxprune.shapes import Shapes, infer
from onnxprune.sizes import symbol
from onnxprune.taps import last, taps, with_outputs
from onnxprune.trace import Trace

TRIAL_LIMIT = 1 << 29
"""Bytes of activations at sizes that are only tried because the likely ones do not run."""
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


def random_inputs(
    model: Model, shapes: Mapping[str, tuple[int, ...]], seed: int, high: int = 2
) -> dict[str, NDArray[Any]]:
    """Normal floats, integers in [0, high), true booleans: one array for each real input."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, NDArray[Any]] = {}
    for info in model.proto.graph.input:
        if info.name in model.weights:
            continue
        kind = info.type.tensor_type.elem_type
        shape = shapes.get(info.name, ())
        if kind in FLOATS:
            dtype = ml_dtypes.bfloat16 if kind == TensorProto.BFLOAT16 else helper.tensor_dtype_to_np_dtype(kind)
            made = np.float32 if dtype == np.float32 else np.float64
            feeds[info.name] = rng.standard_normal(shape, made).astype(dtype, copy=False)
        elif kind == TensorProto.BOOL:
            feeds[info.name] = np.ones(shape, bool)
        elif kind == TensorProto.STRING:
            feeds[info.name] = np.full(shape, "a", dtype=object)
        else:
            feeds[info.name] = rng.integers(0, high, shape).astype(helper.tensor_dtype_to_np_dtype(kind))
    return feeds


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
    allowed = options.check_rtol or tolerance_of(trace)
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
        found = (_run_masked(self.trace, self.kept, self.tapped, self.options, k) for k in probes)
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

    def _error(self, run: _Run, got: Sequence[Any], tolerance: float) -> tuple[float, float]:
        """The error, and what is allowed: more than `tolerance` where rounding alone makes as much."""
        trace, kept, after, options, floors = self.trace, self.kept, self.after, self.options, self.floors
        error, allowed = worst(run.outputs, got, floors), tolerance
        if tolerance < error < 10 * tolerance and options.check_rtol is None:
            # how far rounding alone moves the outputs of the same model
            again = with_outputs(trace, masked(trace, kept, run.sizes), self.tapped)
            again, moved = rounding.nudged(again, run.feeds, options.seed)
            noise = worst(run.outputs, opened(again, options, trace.shapes.dtype).run(moved), floors)
            allowed = max(tolerance, min(10 * tolerance, 4 * noise))
        if error > allowed:
            error = min(error, _in_two_parts(trace, kept, after, run, floors, options))
        if error > allowed and not error * largest(run.outputs) <= options.check_atol:  # infinite times 0 is no number
            where = _parting(trace, kept, after, run, allowed, options)
            raise CheckFailed(
                f"the pruned model differs from the masked original by {error:.1e} (allowed {allowed:.0e}){where}"
            )
        return error, allowed


def _together(trace: Trace, options: Options) -> list[list[int]]:
    """The probes, those in one list that are run at once: a large model is read once then, but all that each of them
    makes is in memory."""
    probes = [0, 1] if trace.shapes.inputs[0] != trace.shapes.inputs[1] else [0]
    size = sum(footprint.peak(trace.model, trace.shapes.passes[k])[0] for k in probes)
    return [probes] if 2 * size <= options.memory else [[k] for k in probes]


def _in_two_parts(
    trace: Trace, kept: Mask, after: Model, run: _Run, floors: Sequence[float], options: Options
) -> float:
    """The error of what decisions are made from, and of all outputs once the pruned model is told what the original
    decides from; infinite where nothing is decided."""
    names = rounding.deciding(trace, kept, after)
    if not names:
        return np.inf
    outputs = [o.name for o in after.proto.graph.output]
    both = with_outputs(trace, masked(trace, kept, run.sizes), [*outputs, *names])
    whole = opened(both, options, trace.shapes.dtype)
    expected = dict(zip(whole.outputs, whole.run(run.feeds), strict=True))
    own = opened(with_outputs(trace, rounding.told(trace, after, names), names), options, trace.shapes.dtype)
    got = dict(zip(own.outputs, own.run(run.feeds | {f"{n}_told": expected[n] for n in names}), strict=True))
    all_floors = dict.fromkeys(names, 1e-06) | dict(zip(outputs, floors, strict=True))
    return max(difference(expected[n], got[n], floor) for n, floor in all_floors.items())


@dataclass(frozen=True)
class _Run:
    """One run of the masked original: what went in, what came out, and the sizes of all tensors."""

    feeds: dict[str, NDArray[Any]]
    outputs: list[Any]
    sizes: Mapping[str, Dims]
    blocks: int

    @property
    def batch(self) -> int:
        return next((int(x.shape[0]) for x in self.feeds.values() if x.ndim), 1)


def _session(
    trace: Trace, kept: Mask, taps: Sequence[str], sizes: Mapping[str, Dims], options: Options
) -> Session | Chain:
    return opened(with_outputs(trace, masked(trace, kept, sizes), taps), options, trace.shapes.dtype)


def _run_masked(trace: Trace, kept: Mask, taps: Sequence[str], options: Options, k: int) -> _Run | None:
    """At the k-th probe's sizes, or near them; None where not even the original runs at a second size."""
    shapes: Mapping[str, tuple[int, ...]] = trace.shapes.inputs[k]
    sizes: Mapping[str, Dims] = trace.shapes.probe[k]
    try:
        return _run(trace, kept, taps, sizes, shapes, options, k)
    except RuntimeFailure:
        found = _runnable(trace, shapes, options)
        if found is None and k:
            return None
        if found is None:
            raise
        sizes = infer(trace.model, found).probe[0]
        return _run(trace, kept, taps, sizes, found, options, k)


def _run(
    trace: Trace, kept: Mask, taps: Sequence[str], sizes: Mapping[str, Dims], shapes: Mapping[str, tuple[int, ...]],
    options: Options, k: int,
) -> _Run:  # fmt: skip
    session = _session(trace, kept, taps, sizes, options)
    return _Run(*_run_original(session, shapes, options, k), sizes, session.blocks)


def _run_original(
    session: Session | Chain, shapes: Mapping[str, tuple[int, ...]], options: Options, k: int
) -> tuple[dict[str, Any], list[Any]]:
    """Inputs on which a model runs, small integers or else zeros, and its outputs."""
    last: Exception | None = None
    for high in (2, 1):
        feeds = random_inputs(session.model, shapes, options.seed + k, high)
        try:
            return feeds, session.run(feeds)
        except Exception as e:
            last = e
    raise RuntimeFailure(
        f"ONNX Runtime cannot run the model on random inputs of shapes {dict(shapes)}: "
        f"{first_line(last or Exception())}; give shapes that fit with --overwrite-input-shape"
    )


def _runnable(
    trace: Trace, shapes: Mapping[str, tuple[int, ...]], options: Options
) -> dict[str, tuple[int, ...]] | None:
    """Input shapes near `shapes` at which the original runs: relations between symbols are known to the graph only."""
    model = trace.model
    symbols: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for info in model.proto.graph.input:
        if info.name in shapes:
            for axis, dim in enumerate(info.type.tensor_type.shape.dim):
                if not dim.dim_value:
                    symbols[symbol(dim) or f"{info.name}.{axis}"].append((info.name, axis))
    session = opened(model, options, trace.shapes.dtype)
    for factor, offset in ((1, 1), (1, -1), (2, 0), (4, 0), (16, 0), (64, 0), (0, 1), (0, 512), (0, 16000)):
        for places in symbols.values():
            trial = {name: list(shape) for name, shape in shapes.items()}
            for name, axis in places:
                trial[name][axis] = trial[name][axis] * factor + offset
            sizes = {name: tuple(shape) for name, shape in trial.items()}
            try:
                footprint.check(model, infer(model, sizes).passes[0], min(options.memory, TRIAL_LIMIT))
                session.run(random_inputs(model, sizes, options.seed, 1))
                return sizes
            except Exception:  # any error only says that these sizes do not fit
                continue
    return None


def tolerance_of(trace: Trace) -> float:
    """By the coarsest number format in the graph; a quantised model may differ by a few of its steps."""
    kinds = {w.onnx_type for w in trace.model.weights.values()} | {trace.shapes.dtype(n) for n in trace.blocks}
    if any(n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm")
           for n in trace.nodes):  # fmt: skip
        return 4 / 127
    return max((t for k, t in TOLERANCE.items() if k in kinds), default=1e-5)


def _parting(trace: Trace, kept: Mask, after: Model, run: _Run, tolerance: float, options: Options) -> str:
    """The first node, in order, at whose output the two models part."""
    ours = {o for n in after.proto.graph.node for o in n.output}
    names = [o for n in trace.model.proto.graph.node for o in n.output
             if o in ours and (trace.shapes.dtype(o) in FLOATS)]  # fmt: skip
    try:
        a, b = (with_outputs(trace, m, names) for m in (masked(trace, kept, run.sizes), after))
        x, y = (opened(m, options, trace.shapes.dtype) for m in (a, b))
        left = dict(zip(x.outputs, x.run(run.feeds), strict=True))
        right = dict(zip(y.outputs, y.run(run.feeds), strict=True))
    except Exception:
        return ""
    producer = {o: n for n in trace.model.proto.graph.node for o in n.output}
    for name in names:
        if name in left and name in right:
            value = left[name]
            for block in trace.blocks.get(name, ()):
                if block.ids.ndim == 1 and value.shape[block.axes[0]] == block.ids.size:
                    value = np.take(value, np.flatnonzero(kept[block.ids]), axis=block.axes[0])
            if value.shape == right[name].shape and difference(value, right[name]) > tolerance:
                return f"; they part at {producer[name].op_type} '{producer[name].name}'"
    return ""
