"""The proofs that a rewriting is right: re-trace, slices, and equivalence with the masked original in ONNX Runtime,
of the real weights and of weights drawn anew.

Knows the trace and what was kept, not how that was chosen.
"""

from __future__ import annotations

import numpy as np

from onnxprune.errors import CheckFailed, NothingToPrune
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.prove.comparison import Comparison, Shown
from onnxprune.prove.findings import Findings
from onnxprune.prove.finiteness import check_finite, ordinary_inputs
from onnxprune.prove.places import Places
from onnxprune.prove.regrouped import alike, told
from onnxprune.prove.relabel import Kept
from onnxprune.prove.slices import Compared, compared
from onnxprune.results import Proof
from onnxprune.rewrite import Rewritten
from onnxprune.run import without_kernel
from onnxprune.shapes import Shapes
from onnxprune.trace import Groups, Mask, Trace
from onnxprune.trace.rules import RULES


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
    trace, after = alike(trace, kept, after)
    account = compared(trace, kept, after)
    for name in (*account.differing, *account.added):
        source = account.sources.get(name)
        of = f"what is kept of '{source.parameter}'" if source else "the original, which has none there"
        raise CheckFailed(f"the pruned model differs from the original: its parameter '{name}' from {of}")
    comparison = Comparison(Places(trace, kept), account.sources, after, options)
    pair, real = comparison.on_real_weights()
    run = real.found[0].run
    assert run is not None, "it ran at one size at least"
    plain = comparison.as_it_rounds
    feeds = ordinary_inputs(trace.model, {n: x.shape for n, x in run.feeds.items()}, options.seed)
    check_finite(plain.pruned, after, trace.model, feeds, options, plain.types)
    return _proof(comparison.places, account, real, comparison.on_drawn_weights(pair, run), options)


def _stood_in(trace: Trace, options: Options) -> str:
    """Which operators were run as functions of others, in words; "" for none."""
    found = sorted(without_kernel(options.providers) & {node.op_type for node in trace.nodes})
    return f"no kernel for {', '.join(found)} here: functions of other operators ran in their place" if found else ""


def _proof(places: Places, account: Compared, real: Shown, drawn: Shown, options: Options) -> Proof:
    """The findings in one; CheckFailed where nothing was compared, NothingToPrune where nothing could be: what went is
    seen by no output."""
    found = [*real.found, *drawn.found]
    said = real.note, drawn.note, told(places.trace, places.kept), _stood_in(places.trace, options)
    notes = tuple(dict.fromkeys(text for text in said if text))
    seen = set().union(*(f.seen for f in found)) & places.reached
    tensors = set().union(*(f.tensors for f in found))
    missing = _uncompared(places, found, seen)
    if not seen and not tensors:
        raise _nothing_compared(places, missing + notes)
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


def _uncompared(places: Places, found: list[Findings], seen: set[str]) -> tuple[str, ...]:
    """Why each output of which nothing was `seen` could not be compared."""
    reasons = {name: text for f in found for name, text in f.incomparable.items()}

    def why(name: str) -> str:
        return reasons.get(name, "not run") if name in places.reached else "nothing that was removed reaches it"

    outputs = dict.fromkeys(o.name for o in places.trace.model.skeleton.graph.output)
    known = seen | places.trace.caches_dropped(places.kept)
    return tuple(f"{name}: {why(name)}" for name in outputs if name not in known)


def _nothing_compared(places: Places, why: tuple[str, ...]) -> CheckFailed | NothingToPrune:
    if places.reached.isdisjoint(o.name for o in places.trace.model.skeleton.graph.output):
        return NothingToPrune("nothing that may go reaches an output of the model: its weights are not used")
    return CheckFailed(
        f"nothing of the pruned model could be compared with the original ({'; '.join(why) or 'it has no outputs'})"
    )
