"""The proofs that a rewriting is right: re-trace, slices, and equivalence with the masked original in ONNX Runtime,
of the real weights and of weights drawn anew.

Knows the trace and what was kept, not how that was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np
from onnx import TensorProto

from onnxprune.errors import CheckFailed, NothingToPrune, RuntimeFailure
from onnxprune.model import Model, Weight
from onnxprune.options import Options, Proof
from onnxprune.prove.branches import Decided, forced, ways
from onnxprune.prove.finiteness import finite, made_up
from onnxprune.prove.original import Original, Run
from onnxprune.prove.pair import FAR, NEAR, Findings, Pair
from onnxprune.prove.places import Places
from onnxprune.prove.redraw import redrawn
from onnxprune.prove.relabel import Kept
from onnxprune.prove.rounding import ROUNDING
from onnxprune.prove.slices import Compared, compared
from onnxprune.prove.unrounded import Unrounded
from onnxprune.prove.unrounded import rounding as rounds
from onnxprune.rewrite import Rewritten
from onnxprune.shapes import Shapes
from onnxprune.trace import Groups, Mask, Trace
from onnxprune.trace.rules import RULES

TOLERANCE = {TensorProto.FLOAT16: 1e-2, TensorProto.BFLOAT16: 5e-2}
STEPS = 4
"""By which the outputs of a graph that rounds may differ, unless it is shown that rounding alone makes more."""
GAINS = (1.0, 0.3, 0.05)
"""Spreads of the weights that are drawn, until what they make is finite."""


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
    """Everything that can be shown without the ids of the rewritten graph: its parameters are slices of the original's,
    and it computes what the masked original does, with these and with other weights, at all sizes. CheckFailed where it
    does not; RuntimeFailure where not even the original runs."""
    account = compared(trace, kept, after)
    for name in (*account.differing, *account.added):
        source = account.sources.get(name)
        of = f"what is kept of '{source.parameter}'" if source else "the original, which has none there"
        raise CheckFailed(f"the pruned model differs from the original: its parameter '{name}' from {of}")
    ks = _assignments(trace)
    places = Places(trace, kept)
    draw = partial(redrawn, trace, kept, account.sources, after, options.seed)
    plain, real = _pairs(places, after, options, draw(), ks[0])
    pair, found, note = _at_all_sizes(plain, real, ks)
    run = found[0].run
    assert run is not None, "it ran at one size at least"
    feeds = made_up(trace.model, {n: x.shape for n, x in run.feeds.items()}, options.seed)
    finite(plain.pruned, after, trace.model, feeds, options, plain.types)
    return _proof(places, account, Part(found, note), _on_drawn(pair, draw, run))


def _at_all_sizes(plain: Pair, real: Pair | None, ks: list[int]) -> tuple[Pair, list[Findings], str]:
    """What was found with the real weights at all sizes, and with which pair: of a quantised graph in real numbers, and
    at one size as it rounds; in words how far apart it is then."""
    if real is None:
        return plain, [plain.compared(ks, deep=True)], ""
    try:
        main = real.compared(ks, deep=True)
    except RuntimeFailure as why:
        return plain, [plain.compared(ks, deep=True)], f"compared with its rounding: {why.message}"
    assert main.run is not None, "it ran at one size at least"
    rounded = plain.again(main.run)
    return real, [main, rounded], f"as it rounds, the outputs are equal within {rounded.error:.1e}"


def structure(trace: Trace, kept: Mask, after: Model, options: Options) -> Proof:
    """As `equivalence`, of a graph whose weights may have been refitted: only on weights that are drawn anew."""
    account = compared(trace, kept, after)
    first = a_run(trace, kept, options, _assignments(trace)[0])
    found = on_drawn(trace, kept, after, account, options, first)
    return _proof(Places(trace, kept), account, Part([], ""), found)


def a_run(trace: Trace, kept: Mask, options: Options, k: int) -> Run:
    """A run of the masked original at the k-th assignment of sizes, or near it."""
    original = Original(trace, kept, (), options, lambda model: model, trace.shapes.dtype)
    return next(original.runs([k]))[0]


def on_drawn(trace: Trace, kept: Mask, after: Model, account: Compared, options: Options, run: Run) -> Part:
    """The equivalence on weights that are drawn anew alone, on the inputs of one run."""
    draw = partial(redrawn, trace, kept, account.sources, after, options.seed)
    plain, real = _pairs(Places(trace, kept), after, options, draw(), _assignments(trace)[0])
    return _on_drawn(real or plain, draw, run)


@dataclass(frozen=True)
class Part:
    """Findings on one kind of weights, and what could not be shown."""

    found: list[Findings]
    note: str


def _pairs(
    places: Places, after: Model, options: Options, drawn: tuple[Model, Model], k: int
) -> tuple[Pair, Pair | None]:
    """Both models as they are, and, of quantised ones, in real numbers, which is where the tensors inside are compared.
    drawn: those with other weights, which the sessions are ready for; k: the assignment of sizes that comes first."""
    trace = places.trace
    names = [*dict.fromkeys((*places.taps, *places.interior(after, trace.shapes.probe[k])))]
    free = _others(drawn[0], trace.model), _others(drawn[1], after)
    exact = options.check_rtol if options.check_rtol is not None else tolerance_of(trace)
    plain = Pair(trace, places, after, names, options, exact, lambda model: model, trace.shapes.dtype, free=free)
    if not rounds(trace.nodes):
        return plain, None
    form = Unrounded(trace.shapes.dtype, trace.rank)
    form(trace.model)  # which says what is left
    if options.check_rtol is None:
        exact = max(exact, min(len(form.left), STEPS) / 127)
    real = replace(plain, tolerance=exact, form=form, types=form.types, far=FAR, extra=[])
    plain = replace(plain, taps=places.taps, free=({}, {}))
    if exact < STEPS / 127:
        plain = replace(plain, tolerance=STEPS / 127, far=1, rounds=ROUNDING, exact=NEAR * exact)
    return plain, real


def _others(new: Model, old: Model) -> dict[str, Weight]:
    """The weights of a model that are other ones in another."""
    return {name: weight for name, weight in new.weights.items() if weight is not old.weights.get(name)}


def _on_drawn(pair: Pair, draw: Callable[..., tuple[Model, Model]], run: Run) -> Part:
    """The pair with weights that are drawn anew, on the inputs of one run; where there are none that run, why."""
    left = pair.form.left.values() if isinstance(pair.form, Unrounded) else ()
    note = f"compared with the rounding of {', '.join(left)}" if left else ""
    why = "there is none that can be drawn"
    for gain in GAINS if pair.free[0] else ():
        original, new = draw(gain)
        trace = replace(pair.trace, model=original)
        drawn = replace(pair, trace=trace, after=new, far=FAR, lender=pair, drawn=True, extra=[])
        if gain == GAINS[-1]:
            drawn = replace(drawn, finite=None)
        found, failed = _both_ways(drawn, run)
        if any(f.seen or f.tensors for f in found):
            return Part(found, "; ".join(filter(None, (note, *failed))))
        why = next(iter(failed), "nothing that they make is finite")
    return Part([], f"weights that are drawn anew show nothing: {why}")


def _both_ways(pair: Pair, run: Run) -> tuple[list[Findings], list[str]]:
    """What was found with every If going each way, and which way does not run."""
    found, failed = [], []
    decided: Decided = lambda condition: pair.trace.shapes.value(condition) is not None  # noqa: E731
    every = ways(pair.trace.model, decided)
    for way in every or [()]:
        form = partial(_told_the_way, form=pair.form, way=way, decided=decided)
        try:
            found.append(replace(pair, form=form, lender=None if way else pair.lender).again(run))
        except RuntimeFailure as failure:
            told = " in ".join("then" if truth else "else" for truth in reversed(way))
            failed.append(f"branches that do not run on drawn weights: {told}" if way else failure.message)
    return found, failed


def _told_the_way(model: Model, form: Callable[[Model], Model], way: tuple[bool, ...], decided: Decided) -> Model:
    return form(forced(model, way, decided) if way else model)


def _proof(places: Places, account: Compared, real: Part, drawn: Part) -> Proof:
    """The findings in one; CheckFailed where nothing was compared, NothingToPrune where nothing could be: what went is
    seen by no output."""
    found = [*real.found, *drawn.found]
    notes = tuple(dict.fromkeys(text for text in (real.note, drawn.note) if text))
    affected = places.reached
    seen = set().union(*(f.seen for f in found)) & affected
    tensors = set().union(*(f.tensors for f in found))
    hollow = {name: text for f in found for name, text in f.hollow.items()}
    outputs = dict.fromkeys(o.name for o in places.trace.model.proto.graph.output)
    missing = tuple(
        f"{name}: {hollow.get(name, 'not run') if name in affected else 'nothing that was removed reaches it'}"
        for name in outputs
        if name not in seen
    )
    if not affected.intersection(outputs) and not tensors:
        raise NothingToPrune("nothing that may go reaches an output of the model: its weights are not used")
    if not seen and not tensors:
        raise CheckFailed(
            "nothing of the pruned model could be compared with the original ("
            f"{'; '.join((*missing, *notes)) or 'it has no outputs'})"
        )
    main = found[0]
    return Proof(
        couplings=0,
        error=main.error,
        tolerance=main.allowed,
        batches=tuple(main.batches),
        providers=main.providers,
        blocks=max(f.blocks for f in found),
        sizes=tuple(text for text in main.sizes if text),
        uncompared=missing,
        redrawn=max((max(f.error, f.inner) for f in drawn.found), default=None),
        slices=account.same,
        tensors=len(tensors),
        notes=notes,
    )


def _assignments(trace: Trace) -> list[int]:
    """The assignments of sizes, each once; first the smallest of those in which no open dimension is one."""
    inputs = trace.shapes.inputs
    ks = [k for k in range(len(inputs)) if inputs[k] not in [inputs[j] for j in range(k)]]

    def cost(k: int) -> tuple[int, int]:
        varied = [n for name, shape in inputs[k].items() for a, n in enumerate(shape)
                  if any(inputs[j][name][a] != n for j in ks)]  # fmt: skip
        return sum(n == 1 for n in varied), sum(prod(shape) for shape in inputs[k].values())

    best = min(ks, key=cost)
    return [best, *(k for k in ks if k != best)]


def tolerance_of(trace: Trace) -> float:
    """By the coarsest number format in the graph."""
    kinds = {w.onnx_type for w in trace.model.weights.values()} | {trace.shapes.dtype(n) for n in trace.blocks}
    return max((t for k, t in TOLERANCE.items() if k in kinds), default=1e-5)
