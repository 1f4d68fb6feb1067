"""The proofs that a rewriting is right: re-trace, slices, and equivalence with the masked original in ONNX Runtime, of the
real weights and of weights drawn anew.

Knows the trace and what was kept, not how that was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from onnx import TensorProto

from onnxprune.errors import CheckFailed, RuntimeFailure
from onnxprune.groups import Groups
from onnxprune.labels import Mask
from onnxprune.model import Model
from onnxprune.options import Options, Proof
from onnxprune.pair import FAR, Findings, Pair
from onnxprune.redraw import redrawn
from onnxprune.relabel import Kept
from onnxprune.rewrite import Rewritten
from onnxprune.rules import RULES
from onnxprune.shapes import Shapes
from onnxprune.slices import Compared, compared
from onnxprune.taps import interior, reached, taps
from onnxprune.trace import Trace

TOLERANCE = {TensorProto.FLOAT16: 1e-2, TensorProto.BFLOAT16: 5e-2}
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
        raise CheckFailed(f"parameter '{name}' of the pruned model differs from {of}")
    return _proof(trace, kept, account, _on_real(trace, kept, after, options), _on_drawn(trace, kept, after, account, options))


def structure(trace: Trace, kept: Mask, after: Model, options: Options) -> Proof:
    """As `equivalence`, of a graph whose weights may have been refitted: only on weights that are drawn anew."""
    account = compared(trace, kept, after)
    return _proof(trace, kept, account, None, _on_drawn(trace, kept, after, account, options))


def _on_real(trace: Trace, kept: Mask, after: Model, options: Options) -> Findings:
    """All sizes, and what is inside at one of them."""
    ks, deep = _assignments(trace)
    names = [*dict.fromkeys((*taps(trace, kept), *interior(trace, kept, after, trace.shapes.probe[deep])))]
    return _pair(trace, kept, after, names, options).compared(ks, {deep})


def _on_drawn(trace: Trace, kept: Mask, after: Model, account: Compared, options: Options) -> tuple[Findings | None, str]:
    """What was found on weights that are drawn anew, at one size; where there are none that run, why."""
    _, deep = _assignments(trace)
    names = [*dict.fromkeys((*taps(trace, kept), *interior(trace, kept, after, trace.shapes.probe[deep])))]
    why = "no parameter can be drawn"
    for gain in GAINS:
        original, new, count = redrawn(trace, kept, account.sources, after, options.seed, gain)
        if not count:
            break
        pair = _pair(replace(trace, model=original), kept, new, names, options)
        try:
            found = replace(pair, far=FAR).compared([deep], {deep})
        except RuntimeFailure as failure:
            why = failure.message
            continue
        if found.seen or found.tensors:
            return found, ""
        why = "nothing that they make is finite"
    return None, f"drawn anew, the weights show nothing: {why}"


def _pair(trace: Trace, kept: Mask, after: Model, names: Sequence[str], options: Options) -> Pair:
    as_it_is: Callable[[Model], Model] = lambda model: model  # noqa: E731
    tolerance = options.check_rtol if options.check_rtol is not None else tolerance_of(trace)
    return Pair(trace, kept, after, names, options, tolerance, as_it_is, trace.shapes.dtype)


def _proof(
    trace: Trace, kept: Mask, account: Compared, real: Findings | None, drawn: tuple[Findings | None, str]
) -> Proof:
    """The findings in one; CheckFailed where nothing was compared."""
    redraw, why = drawn
    found = [f for f in (real, redraw) if f is not None]
    affected = reached(trace, kept)
    seen = set().union(*(f.seen for f in found)) & affected
    tensors = set().union(*(f.tensors for f in found))
    hollow = {name: text for f in found for name, text in f.hollow.items()}
    outputs = dict.fromkeys(o.name for o in trace.model.proto.graph.output)
    missing = tuple(
        f"{name}: {hollow.get(name, 'not run') if name in affected else 'nothing that was removed reaches it'}"
        for name in outputs if name not in seen
    )
    if not seen and not tensors:
        raise CheckFailed(
            f"nothing of the pruned model could be compared with the original ({'; '.join(missing) or 'it has no outputs'}"
            f"{'; ' + why if why else ''})"
        )
    main = real or redraw
    assert main is not None, "something was compared"
    return Proof(
        0, main.error, main.allowed, tuple(main.batches), main.providers, max(f.blocks for f in found),
        sizes=tuple(s for s in main.sizes if s), uncompared=missing,
        redrawn=max(redraw.error, redraw.inner) if redraw else None, slices=account.same, tensors=len(tensors),
        notes=(why,) if why else (),
    )  # fmt: skip


def _assignments(trace: Trace) -> tuple[list[int], int]:
    """The assignments of sizes, each once, and which one is the smallest without a size of one, where there is such."""
    inputs = trace.shapes.inputs
    ks = [k for k in range(len(inputs)) if inputs[k] not in [inputs[j] for j in range(k)]]

    def cost(k: int) -> tuple[int, int]:
        varied = [n for name, shape in inputs[k].items() for a, n in enumerate(shape)
                  if any(a < len(inputs[j][name]) and inputs[j][name][a] != n for j in ks)]  # fmt: skip
        return sum(n == 1 for n in varied), sum(prod(shape) for shape in inputs[k].values())

    return ks, min(ks, key=cost)


def tolerance_of(trace: Trace) -> float:
    """By the coarsest number format in the graph; a quantised model may differ by a few of its steps."""
    kinds = {w.onnx_type for w in trace.model.weights.values()} | {trace.shapes.dtype(n) for n in trace.blocks}
    if any(n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm")
           for n in trace.nodes):  # fmt: skip
        return 4 / 127
    return max((t for k, t in TOLERANCE.items() if k in kinds), default=1e-5)
