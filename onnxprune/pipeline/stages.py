"""The stages of a run that need no decision: check the options, load into groups, rewrite, prove. What goes is decided
elsewhere. Knows the order of the stages, no budget.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from onnxprune import guard, rehearsal
from onnxprune.data import unread
from onnxprune.errors import CheckFailed, NothingToPrune
from onnxprune.model import Model, gone
from onnxprune.options import Options, validated
from onnxprune.planning import Plan, asked, criteria, excluded, profile
from onnxprune.progress import Stages, now
from onnxprune.prove import check_finite, equivalence, retrace
from onnxprune.report import frozen
from onnxprune.results import Proof
from onnxprune.rewrite import Rewritten, rewrite
from onnxprune.run import check_kernels, opened, usable
from onnxprune.shapes import Shapes, declare, footprint, hazards, infer
from onnxprune.trace import Groups, Labels, Mask, Trace, build, enter_branches
from onnxprune.trace.rules import RULES

log = logging.getLogger(__name__)
ROUNDS = 6
"""Tracing is run again while it learns which axes of a parameter belong together; a handful of rounds settles it."""


@dataclass
class Clock:
    """Seconds of every stage; a call begins the next one. progress: who is told."""

    progress: Stages = field(default_factory=now)
    seconds: dict[str, float] = field(default_factory=dict)
    at: float = field(default_factory=time.perf_counter)
    stage: str = ""

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        if self.stage:
            self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.at
        self.at, self.stage = now, stage
        if stage:
            self.progress(stage, 0.0)


def checked(options: Options) -> Options:
    """The options with every value checked, the criterion too; UsageError where one cannot be what it is."""
    options = validated(options)
    if options.criterion:
        criteria.check(options.criterion)
    return options


def _check_inputs(model: Model) -> None:
    """Nothing can be proven where no inputs can be made."""
    for info in model.skeleton.graph.input:
        kind = str(info.type.WhichOneof("value") or "tensor_type").removesuffix("_type").replace("_", " ")
        if kind != "tensor":
            raise NothingToPrune(
                f"input '{info.name}' is {'an' if kind[0] == 'o' else 'a'} {kind}, and models are proven on tensors "
                "only, so nothing of it can go; export it with tensors as inputs"
            )


def analysed(source: Model, options: Options, clock: Clock, runs: bool = True, plan: Plan | None = None) -> Groups:
    """The groups of a model, which has been tried by a helper before anything here looks into it by native code. runs:
    whether what comes of them is run; then a runtime or a provider that is missing is said before any work. plan: what
    goes, if that is known; it says whether weights that share a scale go together, as they do without one where none
    are solved for. Data to calibrate on is looked at before, whether or not it will be used."""
    unread(options.calib, source)
    _check_inputs(source)
    if runs:
        usable(options.providers)
    with rehearsal.begun(source, options) as tried:
        working = source.normalised()
        alone = excluded(source, working, options)
        clock("shapes")
        tried.wait_until_inferred(len(working.graph.node))
        shapes = infer(working, options.input_shapes, options.memory_limit)
        declare(working, shapes.plan)
        footprint.check(working, shapes.passes[0], options.memory_limit)
        hazards.check(working, shapes.passes[0])
        if runs:
            check_kernels(working, options.providers)
        clock("trace")
        whole = options.resolved().reconstruct != "ls" if plan is None else plan.whole_blocks
        traced = _traced(working, shapes, alone, options.kv_heads, whole)
        enter_branches(traced)
        guard.wait_for(profile.macs(traced), sum(w.nbytes for w in working.weights.values()))
        clock("group")
        groups = build(traced, options.heads)
        asked(groups, options)  # says which name is of nothing, before any work
        if tried.helper is not None:
            clock("rehearse")
        tried.wait_until_run()
    _log_frozen(groups)
    return groups


def _log_frozen(groups: Groups) -> None:
    """What stays and why, for whoever follows the log at DEBUG."""
    if log.isEnabledFor(logging.DEBUG):
        for info in frozen(groups):
            where = f"{info.parameter}[{info.axis}]"
            log.debug("%s: %d units stay: %s (%s '%s')", where, info.units, info.reason, info.op_type, info.node)


def _traced(
    working: Model, shapes: Shapes, alone: Callable[[onnx.NodeProto], bool], kv_heads: bool, whole: bool
) -> Trace:
    structures: dict[Any, Any] = {}
    for _ in range(ROUNDS):
        traced = Trace(working, shapes, Labels(), structures, excluded=alone, kv_heads=kv_heads, whole_blocks=whole)
        traced.run(RULES)
        more = {
            k: [*structures.get(k, []), *(a for a in v if a not in structures.get(k, []))]
            for k, v in traced.demands.items()
        }
        if all(structures.get(k) == v for k, v in more.items()):
            break
        structures = structures | more
    return traced


def proven(groups: Groups, removed: Mask, options: Options, clock: Clock) -> tuple[Rewritten, Mask, Proof, float]:
    """The rewritten graph without `removed`, what is kept, the proof, and its MACs."""
    kept = groups.kept_ids(removed)
    clock("rewrite")
    after = rewrite(groups.trace, kept)
    return after, kept, *prove(groups, kept, after, options, clock)


def prove(groups: Groups, kept: Mask, after: Rewritten, options: Options, clock: Clock) -> tuple[Proof, float]:
    """Both proofs of a rewritten graph, and its MACs; CheckFailed where one fails."""
    couplings = check(groups, kept, after, options, clock)
    clock("equivalence")
    proof = equivalence(groups.trace, kept, after.model, options)
    return replace(proof, couplings=couplings), profile.macs(groups.trace, kept)


def check(groups: Groups, kept: Mask, after: Rewritten, options: Options, clock: Clock) -> int:
    """Re-trace and onnx.checker: what can be shown of a graph whatever its weights are."""
    clock("re-trace")
    taken = after.model.taken
    given = {
        name: [len((taken.get(name) or {}).get(axis, range(n))) for axis, n in enumerate(sizes)]
        for name, sizes in options.input_shapes.items()
        if not gone(taken, name)
    }
    shapes = infer(after.model, given)
    couplings = retrace(groups.trace, groups, kept, after, shapes)
    clock("check")
    try:
        onnx.checker.check_model(_checkable(after.model))
    except onnx.checker.ValidationError as e:
        if _valid(groups.trace.model):
            raise CheckFailed(f"onnx.checker refuses the pruned model: {str(e).splitlines()[0]}") from e
    return couplings


def ran(groups: Groups, after: Model, feeds: Sequence[Mapping[str, Any]], options: Options, clock: Clock) -> None:
    """Run the finished model on the inputs that it was fitted to: CheckFailed where only the dense model gives
    numbers."""
    clock("run")
    trace = groups.trace
    check_finite(opened(after, options, trace.shapes.dtype), after, trace.model, feeds, options, trace.shapes.dtype)


def _valid(model: Model) -> bool:
    """Whether onnx.checker accepts the original: it refuses some files that run everywhere."""
    try:
        onnx.checker.check_model(_checkable(model))
    except onnx.checker.ValidationError:
        return False
    return True


def _checkable(model: Model) -> onnx.ModelProto:
    """The graph with its large weights declared as inputs: what the checker looks at, without a copy of the bytes."""
    model.sync()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.skeleton)
    small = []
    listed = {i.name for i in proto.graph.input}
    for tensor in proto.graph.initializer:
        weight = model.weights[tensor.name]
        if weight.nbytes < 1024:
            weight.fill(tensor)
            small.append(tensor)
        elif tensor.name not in listed:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, weight.onnx_type, weight.shape))
    filled = [onnx.TensorProto.FromString(t.SerializeToString()) for t in small]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(filled)
    return proto
