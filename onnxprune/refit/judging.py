"""Reconstruct a proven graph and judge it: the result is never worse, on inputs it has not seen, than weights alone.

Knows what the stages gave; the solving is done by `reconstruction`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import RuntimeFailure
from onnxprune.fit import Reconstruction, Refits, restore, turned
from onnxprune.model import Aside
from onnxprune.options import Options, Progress
from onnxprune.planning import (
    Decision,
    OutputError,
    Parts,
    calibrated,
    checked,
    everything,
    folds,
    needs,
    parted,
    rival,
    uses_inputs,
    with_mirrors,
    working,
)
from onnxprune.progress import now
from onnxprune.rewrite import Rewritten, rewrite
from onnxprune.steady import steady
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
    checked(groups, options)
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
    def on(decision: Decision, parts: Parts, options: Options, done: Callable[[float], None] | None = None,
           aside: bool = False) -> Refit:  # fmt: skip
        """Nothing of what judges is looked at. done: told the share that is done. aside: new weights wait on the disk.
        RuntimeFailure where inputs cannot be run."""
        kept = decision.groups.kept_ids(decision.removed)
        if options.effort != "low":
            parts = with_mirrors(decision.groups, parts, options)
        held = len(parts.choose)
        trace = turned(decision.groups, kept, parts.solved, held, options.providers, options.seed, aside)
        work = rewrite(trace, kept)
        work.model.aside = Aside() if aside else None
        walk = Reconstruction(trace, kept, work, parts.solved, held, options.providers, options.seed)
        return Refit(work, walk.run(done))


@steady()
def refitted(
    weights: Groups, decision: Decision, after: Rewritten, options: Options, progress: Progress | None = None
) -> Refitted:
    """Refit the weights of `after` in place. All is judged on inputs that nothing was fitted to or chosen by; where
    there are few, by cross-validation; of a single batch, on itself (then `held_out_batches` is 0). `weights`: the
    groups with the moments that the network was trained with, by which weights alone decide."""
    inputs = decision.inputs
    assert inputs is not None
    parts = parted(inputs.feeds)
    turns = folds(decision.groups, inputs)
    fast = decision.removed if decision.given else rival(weights, decision, options)
    try:
        judge = _Judge(decision, fast, options)
        final, (sliced, refit, alone) = _solved(decision, parts, turns, judge, options, progress or now())
    except RuntimeFailure as failure:
        now().warn(f"not refitted: {failure.message}")
        return Refitted({"inputs": inputs.source, "failed": failure.message})
    worse = bool(fast.any()) and (alone < refit or not np.isfinite(refit))
    if np.isnan(alone):
        now().warn(f"the dense model's answers to {inputs.source} are not finite: nothing can be judged by them")
    elif worse:
        now().warn(f"the refit is worse than weights alone (output error {refit:.3f} and {alone:.3f}), which are taken")
    restore(final.work.model, after.model)
    after.model, after.aliases = final.work.model, final.work.aliases
    report = {
        "inputs": inputs.source, "samples": inputs.samples, "diversity": inputs.diversity,
        "held_out_batches": len(parts.judge), "turns": len(turns),
        "output_error": {"sliced": sliced, "refitted": refit, "fast": alone},
        "layers": [vars(r) for r in final.refits.solved], "skipped": final.refits.skipped, "fell_back": worse,
    }  # fmt: skip
    return Refitted(report, fast if worse else None)


def _solved(
    decision: Decision, parts: Parts, turns: Sequence[Parts], judge: _Judge, options: Options, say: Progress
) -> tuple[Refit, Sequence[float]]:
    """The refit that is to be written, and what `judge` says of it or of those on `turns`, where there are any: the
    mean. One at a time is held."""
    aside, errors = needs(decision.groups, options).aside > 0, []

    def solved(k: int, turn: Parts) -> Refit:
        """Tells the share of all turns that is done."""
        return Refit.on(
            decision, turn, options, lambda share: say("reconstruct", (k + share) / (len(turns) + 1)), aside
        )

    for k, turn in enumerate(turns):
        errors.append(judge(turn, solved(k, turn)))
    final = solved(len(turns), everything(parts) if turns else parts)
    for name, why in final.refits.skipped.items():
        log.debug("not refitted: %s: %s", name, why)
    return final, [float(x) for x in np.mean(errors or [judge(parts, final)], axis=0)]


class _Judge:
    """Of a refit on some of the inputs: output errors without it, with it, and of weights alone, which remove `fast`
    (infinite where these remove nothing)."""

    def __init__(self, decision: Decision, fast: Mask, options: Options) -> None:
        self.groups, self.providers = decision.groups, options.providers
        self.sliced, self.rival = (
            rewrite(self.groups.trace, self.groups.kept_ids(p)).model if p.any() else None
            for p in (decision.removed, fast)
        )

    def __call__(self, turn: Parts, refit: Refit) -> list[float]:
        judge = OutputError(self.groups, turn.judge or turn.fit, self.providers)
        return [np.inf if m is None else judge.error(m) for m in (self.sliced, refit.work.model, self.rival)]
