"""Reconstruct a proven graph and judge it: the result is never worse, on inputs it has not seen, than weights alone.

Knows what the stages gave; the solving is done by `reconstruction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.errors import RuntimeFailure
from onnxprune.fit import Reconstruction, Refits, restore
from onnxprune.model import Model
from onnxprune.options import Options, Progress
from onnxprune.planning import (
    FEW,
    Decision,
    Feeds,
    OutputError,
    Parts,
    by_weights,
    calibrated,
    folds,
    parted,
    uses_inputs,
    with_mirrors,
    working,
)
from onnxprune.rewrite import Rewritten, rewrite
from onnxprune.trace import Groups, Mask


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
        inputs = calibrated(groups, options)
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
    def on(decision: Decision, parts: Parts, options: Options, progress: Progress | None = None) -> Refit:
        """Nothing of what judges is looked at. RuntimeFailure where inputs cannot be run."""
        trace, kept = decision.groups.trace, decision.groups.kept_ids(decision.removed)
        if options.effort != "low":
            parts = with_mirrors(decision.groups, parts, options)
        work = rewrite(trace, kept)
        walk = Reconstruction(trace, kept, work, parts.solved, len(parts.choose), options.providers, options.seed)
        return Refit(work, walk.run(None if progress is None else lambda share: progress("reconstruct", share)))


def refitted(
    weights: Groups, decision: Decision, after: Rewritten, options: Options, progress: Progress | None = None
) -> Refitted:
    """Refit the weights of `after` in place. All is judged on inputs that nothing was fitted to or chosen by; where
    there are few, by cross-validation. `weights`: the groups with the moments that the network was trained with, by
    which weights alone decide."""
    inputs = decision.inputs
    assert inputs is not None
    parts = parted(inputs.feeds)
    try:
        turns = folds(inputs.feeds) if inputs.samples < FEW and len(inputs.feeds) > 1 else []
        done = [(turn, Refit.on(decision, turn, options, progress)) for turn in turns]
        if turns:  # every input has judged, so that all of them may be fitted to
            own = len(parts.choose)
            parts = Parts(inputs.feeds[: len(inputs.feeds) - own], inputs.feeds[len(inputs.feeds) - own :], ())
        final = Refit.on(decision, parts, options, progress)
    except RuntimeFailure as failure:
        return Refitted({"inputs": inputs.source, "failed": failure.message})
    plain = replace(options, criterion="l2", scope="local")
    fast = decision.removed if decision.given else by_weights(weights, plain, decision.costs)
    rival = rewrite(decision.groups.trace, decision.groups.kept_ids(fast)).model if fast.any() else None
    sliced = rewrite(decision.groups.trace, decision.groups.kept_ids(decision.removed)).model
    errors = [
        _errors(decision.groups, turn.judge or turn.fit, (sliced, refit.work.model, rival), options)
        for turn, refit in done or [(parts, final)]
    ]
    before, error, other = np.mean(errors, axis=0).tolist()
    worse = bool(fast.any()) and (other < error or not np.isfinite(error))
    restore(final.work.model, after.model)
    after.model, after.aliases = final.work.model, final.work.aliases
    report = {
        "inputs": inputs.source, "samples": inputs.samples, "diversity": inputs.diversity,
        "held_out_batches": len(parts.judge), "turns": len(done),
        "output_error": {"sliced": before, "refitted": error, "fast": other},
        "layers": [vars(r) for r in final.refits.solved], "skipped": final.refits.skipped, "fell_back": worse,
    }  # fmt: skip
    return Refitted(report, fast if worse else None)


def _errors(groups: Groups, feeds: Feeds, models: Sequence[Model | None], options: Options) -> list[float]:
    """Output error of each model; of one that is missing it is infinite."""
    judge = OutputError(groups, feeds, options.providers)
    return [np.inf if model is None else judge.error(model) for model in models]
