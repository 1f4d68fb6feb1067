"""Reconstruct a proven graph and judge it: the result is never worse, on inputs it has not seen, than weights alone.

Knows what the stages gave; the solving is done by `reconstruction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.errors import RuntimeFailure
from onnxprune.fit import restore
from onnxprune.options import Options, Progress
from onnxprune.planning import Decision, OutputError, by_weights, calibrated, uses_inputs, working
from onnxprune.refit.reconstruction import Reconstruction
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
        inputs, held = calibrated(groups, options)
    except RuntimeFailure as error:
        merge = options.reconstruct == "ls"
        why = f"no inputs could be run ({error.message}), so weights were {'merged' if merge else 'only sliced'}"
        return Decision(removed, groups, merge=merge, notes=(why,), given=True)
    return Decision(removed, working(groups, inputs, options), inputs, held, given=True)


def refitted(
    weights: Groups, decision: Decision, after: Rewritten, options: Options, progress: Progress | None = None
) -> Refitted:
    """Refit the weights of `after` in place. All is judged on the batches that nothing was fitted to. `weights`: the
    groups with the moments that the network was trained with, by which weights alone decide."""
    inputs, groups, held = decision.inputs, decision.groups, decision.judge_batches
    assert inputs is not None
    kept = groups.kept_ids(decision.removed)
    judge = OutputError(groups, inputs.feeds[len(inputs.feeds) - held :] if held else inputs.feeds, options.providers)
    work = rewrite(groups.trace, kept)
    sliced = judge.error(work.model)
    try:
        walk = Reconstruction(groups.trace, kept, work, inputs.feeds, held, options.providers, options.seed)
        refits = walk.run(None if progress is None else lambda share: progress("reconstruct", share))
    except RuntimeFailure as failure:
        return Refitted({"inputs": inputs.source, "failed": failure.message})
    error = judge.error(work.model)
    plain = replace(options, criterion="l2", scope="local")
    fast = decision.removed if decision.given else by_weights(weights, plain, decision.costs)
    rival = judge.error(rewrite(groups.trace, groups.kept_ids(fast)).model) if fast.any() else np.inf
    worse = bool(fast.any()) and (rival < error or not np.isfinite(error))
    restore(work.model, after.model)
    after.model, after.aliases = work.model, work.aliases
    report = {
        "inputs": inputs.source, "samples": inputs.samples, "diversity": inputs.diversity, "held_out_batches": held,
        "output_error": {"sliced": sliced, "refitted": error, "fast": rival},
        "layers": [vars(r) for r in refits.solved], "skipped": refits.skipped, "fell_back": worse,
    }  # fmt: skip
    return Refitted(report, fast if worse else None)
