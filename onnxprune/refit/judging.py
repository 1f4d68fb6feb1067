"""Reconstruct a proven graph and judge it: the result is never worse, on inputs it has not seen, than weights alone.

Knows what the stages gave; the solving is done by `reconstruction`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.errors import RuntimeFailure
from onnxprune.fit import Reconstruction, Refits, restore
from onnxprune.options import Options, Progress
from onnxprune.planning import (
    FEW,
    Decision,
    OutputError,
    Parts,
    by_weights,
    calibrated,
    everything,
    folds,
    parted,
    steady,
    uses_inputs,
    with_mirrors,
    working,
)
from onnxprune.progress import now
from onnxprune.rewrite import Rewritten, rewrite
from onnxprune.trace import Groups, Mask

log = logging.getLogger(__name__)


@dataclass
class Refitted:
    """reconstruction_report: its part of the report. fallback: the units that weights alone would remove, where that
    is better."""

    reconstruction_report: Mapping[str, Any]
    fallback: Mask | None = None


def replayed(groups: Groups, removed: Mask, options: Options) -> Decision:
    """A decision that was made before: only inputs are missing."""
    if not uses_inputs(options):
        return Decision(removed, groups, given=True)
    try:
        inputs = calibrated(groups, options, now())
    except RuntimeFailure as error:
        merge = options.reconstruct == "ls"
        why = f"no inputs could be run ({error.message}), so weights were {'merged' if merge else 'only sliced'}"
        return Decision(removed, groups, merge=merge, notes=(why,), given=True)
    return Decision(removed, working(groups, inputs, options), inputs, given=True)


@dataclass
class Refit:
    """What a decision leaves, solved for on some of the inputs: `work` is the graph with its new weights."""

    work: Rewritten
    refits: Refits

    @staticmethod
    def on(decision: Decision, parts: Parts, options: Options, done: Callable[[float], None] | None = None) -> Refit:
        """Nothing of what judges is looked at. done: told the share that is done. RuntimeFailure where inputs cannot be
        run."""
        trace, kept = decision.groups.trace, decision.groups.kept_ids(decision.removed)
        if options.effort != "low":
            parts = with_mirrors(decision.groups, parts, options)
        work = rewrite(trace, kept)
        walk = Reconstruction(trace, kept, work, parts.solved, len(parts.choose), options.providers, options.seed)
        return Refit(work, walk.run(done))


@steady()
def refitted(
    weights: Groups, decision: Decision, after: Rewritten, options: Options, progress: Progress | None = None
) -> Refitted:
    """Refit the weights of `after` in place. All is judged on inputs that nothing was fitted to or chosen by; where
    there are few, by cross-validation. `weights`: the groups with the moments that the network was trained with, by
    which weights alone decide."""
    inputs = decision.inputs
    assert inputs is not None
    parts = parted(inputs.feeds)
    turns = folds(inputs.feeds) if inputs.samples < FEW and parts.judge else []
    try:
        *tried, final = _solved(decision, [*turns, everything(parts) if turns else parts], options, progress or now())
    except RuntimeFailure as failure:
        now().warn(f"not refitted: {failure.message}")
        return Refitted({"inputs": inputs.source, "failed": failure.message})
    plain = replace(options, criterion="l2", scope="local")
    fast = decision.removed if decision.given else by_weights(weights, plain, decision.costs)
    sliced, refit, rival = _verdict(decision, fast, turns or [parts], tried or [final], options)
    worse = bool(fast.any()) and (rival < refit or not np.isfinite(refit))
    if worse:
        now().warn(f"the refit is worse than weights alone (output error {refit:.3f} and {rival:.3f}), which are taken")
    restore(final.work.model, after.model)
    after.model, after.aliases = final.work.model, final.work.aliases
    report = {
        "inputs": inputs.source, "samples": inputs.samples, "diversity": inputs.diversity,
        "held_out_batches": len(parts.judge), "turns": len(turns),
        "output_error": {"sliced": sliced, "refitted": refit, "fast": rival},
        "layers": [vars(r) for r in final.refits.solved], "skipped": final.refits.skipped, "fell_back": worse,
    }  # fmt: skip
    return Refitted(report, fast if worse else None)


def _solved(decision: Decision, turns: Sequence[Parts], options: Options, say: Progress) -> list[Refit]:
    """A refit on each of `turns`, the last of which is the one to be written."""

    def part(k: int) -> Callable[[float], None]:
        """Tells the share of all turns that is done, of the share of the k-th."""
        return lambda share: say("reconstruct", (k + share) / len(turns))

    found = [Refit.on(decision, turn, options, part(k)) for k, turn in enumerate(turns)]
    for name, why in found[-1].refits.skipped.items():
        log.debug("not refitted: %s: %s", name, why)
    return found


def _verdict(
    decision: Decision, fast: Mask, turns: Sequence[Parts], tried: Sequence[Refit], options: Options
) -> list[float]:
    """Output errors without refit, with it, and of weights alone (infinite where these remove nothing), each the mean
    over the turns."""
    groups = decision.groups
    plans = (decision.removed, fast)
    sliced, rival = (rewrite(groups.trace, groups.kept_ids(p)).model if p.any() else None for p in plans)
    errors = []
    for turn, refit in zip(turns, tried, strict=True):
        judge = OutputError(groups, turn.judge or turn.fit, options.providers)
        errors.append([np.inf if m is None else judge.error(m) for m in (sliced, refit.work.model, rival)])
    return [float(x) for x in np.mean(errors, axis=0)]
