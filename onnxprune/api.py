"""The public API: load, trace, group, score, select, rewrite, prove. Data flows one way."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from onnxprune import compress, criteria, notes, profile
from onnxprune.allocate import Costs
from onnxprune.decide import Decision, decide, planner, settled
from onnxprune.errors import CheckFailed, NothingToPrune, UsageError
from onnxprune.groups import Groups, build
from onnxprune.labels import Labels, Mask
from onnxprune.merge import merged
from onnxprune.model import Model
from onnxprune.options import Compared, FrozenInfo, GroupInfo, Inspection, Options, Progress, Proof, Report
from onnxprune.plan import Plan, Removal
from onnxprune.refit import refitted, replayed
from onnxprune.rewrite import Rewritten, rewrite
from onnxprune.rules import RULES
from onnxprune.shapes import infer
from onnxprune.trace import Trace
from onnxprune.verify import equivalence, retrace

STEPS = 6
"""Of the search for the largest cut: each halves what is open."""
ROUNDS = 6
"""Tracing is run again while it learns which axes of a parameter belong together; a handful of rounds settles it."""


@dataclass(frozen=True)
class Result:
    """A proven smaller model, the plan that made it, and the report of the run."""

    model: Model
    plan: Plan
    report: Report


@dataclass
class _Clock:
    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)
    at: float = field(default_factory=time.perf_counter)
    stage: str = ""

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        if self.stage:
            self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.at
        self.at, self.stage = now, stage
        if self.progress and stage:
            self.progress(stage, 0.0)


def prune(
    model: Any, options: Options | None = None, *, plan: Plan | None = None, progress: Progress | None = None, **kw: Any
) -> Result:  # fmt: skip
    """Prune `model` (a path, a ModelProto or a graphsurgeon Graph) and prove the result.

    Keyword arguments are the fields of `Options`. With `plan` that plan is applied instead of a new one.
    Raises UsageError (bad input), NothingToPrune, CheckFailed (a proof failed), RuntimeFailure (ONNX Runtime)."""
    options = _checked(replace(options or Options(), **kw))
    clock = _Clock(progress)
    groups = _groups(_loaded(model, clock), options, clock)
    clock("decide")
    options = settled(groups, options)
    decision = decide(groups, options, progress) if plan is None else replayed(groups, _removed(groups, plan), options)
    return _carried_out(groups, decision, options, clock, plan)


def largest(
    model: Any, holds: Callable[[Result], bool], options: Options | None = None, *, progress: Progress | None = None,
    **kw: Any,
) -> Result:  # fmt: skip
    """The largest cut for which `holds` says yes, by bisection of the ratio to about a sixtieth; what does not depend
    on the ratio (inputs, statistics, curves) is worked out once. CheckFailed where none is small enough. The smaller
    models are taken to be the worse ones."""
    options = _checked(replace(options or Options(), **kw))
    clock = _Clock(progress)
    groups = _groups(_loaded(model, clock), options, clock)
    clock("decide")
    options = settled(groups, options)
    plans = planner(groups, options, progress)
    low, high, best = 0.0, 1.0, None
    for step in range(STEPS):
        ratio = (low + high) / 2
        if progress:
            progress("search", step / STEPS)
        asked = replace(options, ratio=ratio)
        decision = plans(asked)
        if decision.removed.any():
            result = _carried_out(groups, decision, asked, clock, None)
            fine = holds(result)
            best = result if fine else best
        else:
            fine = True
        low, high = (ratio, high) if fine else (low, ratio)
    if best is None:
        raise CheckFailed(f"no cut is small enough to hold what was asked for: not even --ratio {high:.3f} does")
    return best


def _loaded(model: Any, clock: _Clock) -> Model:
    clock("load")
    return Model.load(model)


def _carried_out(groups: Groups, decision: Decision, options: Options, clock: _Clock, plan: Plan | None) -> Result:
    """Rewrite, prove, refit, report."""
    if not decision.removed.any():
        raise NothingToPrune(_nothing(groups, options))
    after, kept, proof, after_macs = _proven(groups, decision.removed, options, clock)
    story: Mapping[str, Any] | None = None
    if decision.inputs is not None and options.reconstruct == "ls":
        clock("reconstruct")
        refit = refitted(groups, decision, after, options, clock.progress)
        if refit.fallback is not None:
            after, kept, proof, after_macs = _proven(groups, refit.fallback, options, clock)
        else:
            _check(groups, kept, after, options, clock)
        story = refit.story
    elif options.reconstruct == "merge" or decision.merge:
        clock("reconstruct")
        story = merged(groups, decision.removed, after)
        _check(groups, kept, after, options, clock)
    clock("")
    report = Report(
        profile.cost(groups.trace.model, profile.macs(groups.trace)), profile.cost(after.model, after_macs),
        _infos(groups, kept), _frozen(groups), proof, replace(options, calib=None),
        (*notes.of(groups), *decision.notes), None, dict(clock.seconds), story,
        compress.told(groups, decision.evidence, kept) if decision.evidence else (),
        _predicted(decision.costs, groups.alive(kept)) if options.of == "latency" else None,
    )  # fmt: skip
    return Result(after.model, plan or _plan(groups, kept, options), report)


def inspect(model: Any, options: Options | None = None, **kw: Any) -> Inspection:
    """The groups of coupled channels of a model, what is frozen and why."""
    groups = _groups(Model.load(model), _checked(replace(options or Options(), **kw)), _Clock(None))
    kept = np.ones(groups.trace.labels.n, bool)
    cost = profile.cost(groups.trace.model, profile.macs(groups.trace))
    return Inspection(_infos(groups, kept), _frozen(groups), cost, notes.of(groups))


def compare(
    a: Any, b: Any, data: Any = None, options: Options | None = None, *, metric: str = "", gates: Any = None,
    samples: int | None = None, **kw: Any,
) -> Compared:  # fmt: skip
    """Costs of two models with the same inputs and outputs, and how good `b` is beside `a` on `data` (what --calib
    takes, with labels where there are any; None makes inputs up). Gates that do not hold are named, not raised."""
    from onnxprune.quality.measure import compared

    options = _checked(replace(options or Options(), **kw))
    quality = compared(a, data, options, metric, samples).measure(Model.load(b).normalised(), gates, options.seed)
    costs = [profile.cost(g.trace.model, profile.macs(g.trace)) for g in
             (_groups(Model.load(x), options, _Clock(None)) for x in (a, b))]  # fmt: skip
    return Compared(costs[0], costs[1], asdict(quality))


def plan(model: Any, options: Options | None = None, **kw: Any) -> Plan:
    """The plan that `prune` would apply."""
    options = _checked(replace(options or Options(), **kw))
    groups = _groups(Model.load(model), options, _Clock(None))
    options = settled(groups, options)
    return _plan(groups, groups.kept_ids(decide(groups, options).removed), options)


def apply(model: Any, plan: Plan, options: Options | None = None, **kw: Any) -> Model:
    """`model` without what `plan` removes. Unproven: `verify` proves it, `prune(plan=...)` does both."""
    groups = _groups(Model.load(model), _checked(replace(options or Options(), **kw)), _Clock(None))
    return rewrite(groups.trace, groups.kept_ids(_removed(groups, plan))).model


def completed(model: Any, plan: Plan, options: Options | None = None, **kw: Any) -> tuple[Model, Plan]:
    """The graph whose names a plan bears, and the plan with everything that is coupled to what an edited one removes.

    Raises UsageError where it is not a plan of `model`."""
    groups = _groups(Model.load(model), _checked(replace(options or Options(), **kw)), _Clock(None))
    found = _plan(groups, groups.kept_ids(_removed(groups, plan)), Options())
    return groups.trace.model, replace(plan, groups=found.groups)


def verify(model: Any, pruned: Any, plan: Plan, options: Options | None = None, **kw: Any) -> Proof:
    """Prove that `pruned` is `model` without what `plan` removes; CheckFailed where it is not."""
    options = _checked(replace(options or Options(), **kw))
    groups = _groups(Model.load(model), options, _Clock(None))
    kept = groups.kept_ids(_removed(groups, plan))
    expected = rewrite(groups.trace, kept)
    given = pruned if isinstance(pruned, Model) else Model.load(pruned)
    return _prove(groups, kept, Rewritten(given, expected.aliases), options, _Clock(None))[0]


def trace(model: Any, options: Options | None = None, **kw: Any) -> Trace:
    """Labels, couplings, reductions and edits of a model (see `onnxprune.trace`)."""
    return _groups(Model.load(model), _checked(replace(options or Options(), **kw)), _Clock(None)).trace


def _groups(source: Model, options: Options, clock: _Clock) -> Groups:
    working = source.normalised()
    clock("shapes")
    shapes = infer(working, options.input_shapes)
    clock("trace")
    structures: dict[Any, Any] = {}
    for _ in range(ROUNDS):
        traced = Trace(working, shapes, Labels(), structures, excluded=_excluded(options))
        traced.run(RULES)
        more = {
            k: [*structures.get(k, []), *(a for a in v if a not in structures.get(k, []))]
            for k, v in traced.demands.items()
        }
        if all(structures.get(k) == v for k, v in more.items()):
            break
        structures = structures | more
    clock("group")
    return build(traced)


def _proven(groups: Groups, removed: Mask, options: Options, clock: _Clock) -> tuple[Rewritten, Mask, Proof, float]:
    """The rewritten graph without `removed`, what is kept, the proof, and its MACs."""
    kept = groups.kept_ids(removed)
    clock("rewrite")
    after = rewrite(groups.trace, kept)
    return after, kept, *_prove(groups, kept, after, options, clock)


def _prove(groups: Groups, kept: Mask, after: Rewritten, options: Options, clock: _Clock) -> tuple[Proof, float]:
    couplings = _check(groups, kept, after, options, clock)
    clock("equivalence")
    proof = equivalence(groups.trace, kept, after.model, options)
    return replace(proof, couplings=couplings), profile.macs(groups.trace, kept)


def _check(groups: Groups, kept: Mask, after: Rewritten, options: Options, clock: _Clock) -> int:
    """Re-trace and onnx.checker: what can be shown of a graph whatever its weights are."""
    clock("re-trace")
    shapes = infer(after.model, options.input_shapes)
    couplings = retrace(groups.trace, groups, kept, after, shapes)
    clock("check")
    try:
        onnx.checker.check_model(_checkable(after.model))
    except onnx.checker.ValidationError as e:
        if _valid(groups.trace.model):
            raise CheckFailed(f"onnx.checker refuses the pruned model: {str(e).splitlines()[0]}") from e
    return couplings


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
    proto.CopyFrom(model.proto)
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


def _checked(options: Options) -> Options:
    if not 0 < options.ratio < 1:
        raise UsageError(
            f"ratio {options.ratio} is not between 0 and 1; it is the share of units to remove, such as 0.3"
        )
    if options.scope not in ("", "local", "global", "sensitivity", "pq"):
        raise UsageError(f"no scope '{options.scope}'; choose local, global, sensitivity or pq")
    if options.of not in ("units", "macs", "params", "latency"):
        raise UsageError(f"no '{options.of}' to take a share of; choose units, macs, params or latency")
    if options.reconstruct not in ("", "ls", "merge", "none"):
        raise UsageError("`reconstruct` is ls, merge or none")
    if options.calib_samples < 1 or options.calib_batch < 1 or options.memory < 1 << 20:
        raise UsageError("--calib-samples is at least 1, --memory at least 1 MiB")
    if options.round_to < 0 or options.min_channels < 1 or not 0 < options.max_ratio <= 1:
        raise UsageError("--round-to is auto (0) or from 1 on, --min-channels at least 1, --max-ratio in (0, 1]")
    if options.threads < 0 or options.batch < 1:
        raise UsageError("--threads is from 0 on (0: as many as the runtime likes), --batch from 1 on")
    if options.criterion:
        criteria.check(options.criterion)
    return options


def _excluded(options: Options) -> Callable[[onnx.NodeProto], bool]:
    names, types = list(options.nodes_to_exclude), set(options.op_types_to_exclude)

    def matches(node: onnx.NodeProto) -> bool:
        if node.op_type in types:
            return True
        return any(
            re.search(n[3:], node.name) is not None if n.startswith("re:") else fnmatch.fnmatchcase(node.name, n)
            for n in names
        )

    return matches


def _predicted(costs: Costs | None, alive: Mask) -> dict[str, Any] | None:
    """Milliseconds before and after, by what the plan was made with."""
    if costs is None:
        return None
    return {"predicted": {"unit": "ms", "before": 1e3 * costs.whole, "after": 1e3 * costs.total(alive)}}


def _nothing(groups: Groups, options: Options) -> str:
    if not groups.blocks:
        nodes = groups.trace.model.proto.graph.node
        bodies = sorted({n.op_type for n in nodes if any(a.HasField("g") for a in n.attribute)})
        where = f" outside the bodies of {', '.join(bodies)}, which stay as they are" if bodies else ""
        return f"the model has no weights that could be pruned{where}"
    if groups.prunable.any():
        return f"ratio {options.ratio} removes no unit inside the limits; raise it, or allow more (--residual, --heads)"
    reasons = [f for f in _frozen(groups) if f.reason]
    why = f": {reasons[0].reason} ({reasons[0].op_type} '{reasons[0].node}')" if reasons else ""
    return f"every channel is tied to an axis of fixed size{why}; see `onnxprune inspect`"


def _removed(groups: Groups, plan: Plan) -> Mask:
    removed = np.zeros(len(groups.prunable), bool)
    blocks = {(s.parameter, axes, ids.shape, _use(groups, s)): ids for s, axes, ids in groups.blocks}
    for name, removals in plan.groups.items():
        for r in removals:
            ids = blocks.get((r.parameter, r.axes, r.shape, r.use))
            if ids is None or max(r.remove, default=0) >= ids.size:
                raise UsageError(
                    f"the plan's {r.parameter} {list(r.axes)} of {name} is not in this model; "
                    "is it the plan of another one?"
                )
            classes = groups.classes[ids.ravel()[list(r.remove)]]
            removed[classes[~groups.derived[classes]]] = True
    if (removed & ~groups.prunable).any() or groups.faults(removed):
        raise UsageError(
            "the plan removes channels that must stay, or leaves a tensor that is no rectangle; edit it or make it anew"
        )
    return removed


def _use(groups: Groups, s: Any) -> str:
    nodes = groups.trace.model.proto.graph.node
    return ",".join(f"{nodes[n].name}:{i}" for n, i in s.uses)


def _plan(groups: Groups, kept: Mask, options: Options) -> Plan:
    out: dict[str, tuple[Removal, ...]] = {}
    for component in groups.components():
        removals = []
        for k in component:
            s, axes, ids = groups.blocks[k]
            gone = np.flatnonzero(~kept[ids.ravel()])
            if gone.size:
                removals.append(Removal(s.parameter, axes, ids.shape, tuple(gone.tolist()), _use(groups, s)))
        if removals:
            out[groups.blocks[component[0]][0].parameter] = tuple(removals)
    return Plan(out, options.scope, options.ratio, options.criterion)


def _infos(groups: Groups, kept: Mask) -> tuple[GroupInfo, ...]:
    alive = groups.alive(kept)
    sizes = profile.of_units(groups)
    work = np.zeros(len(groups.prunable))
    for count, blocks in groups.trace.macs.values():
        for ids in blocks:
            np.add.at(work, groups.classes[ids], count / ids.size)
    out = []
    for component in groups.components():
        units = np.unique(np.concatenate([groups.classes[groups.blocks[k][2]].ravel() for k in component]))
        units = units[~groups.derived[units] & (units != groups.classes[0])]
        live = units[groups.prunable[units]]
        if live.size:
            layers = tuple(dict.fromkeys(groups.blocks[k][0].parameter for k in component))
            heads = any(row <= set(live.tolist()) for row in groups.rows.values())
            out.append(GroupInfo(
                layers[0], layers, int(units.size), int(live.size), int(alive[units].sum()), int(sizes[units].sum()),
                int(work[units].sum()), "head" if heads else "channel", bool(groups.normed[live].any()),
            ))  # fmt: skip
    return tuple(out)


def _frozen(groups: Groups) -> tuple[FrozenInfo, ...]:
    out: dict[tuple[str, int], FrozenInfo] = {}
    for s, axes, ids in groups.blocks:
        classes = groups.classes[ids.ravel()]
        stuck = [c for c in np.unique(classes).tolist() if groups.reason[c] is not None]
        why = groups.reason[stuck[0]] if stuck else None
        if why is not None and why.text:
            n = int(np.isin(classes, stuck).sum())
            out.setdefault(
                (s.parameter, axes[-1]), FrozenInfo(s.parameter, axes[-1], n, why.op_type, why.node, why.text)
            )
    return tuple(out.values())


__all__: Sequence[str] = ["Result", "apply", "completed", "inspect", "plan", "prune", "trace", "verify"]
