"""Fine-tuning among the other stages, and by itself: who learns, on which inputs, and what comes after.

Knows the order of the stages; how a network learns is the affair of `finetuning`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from onnxprune import finetuning
from onnxprune.data import unread
from onnxprune.errors import UsageError
from onnxprune.finetuning import Finetuned, Parts
from onnxprune.measure import compared
from onnxprune.model import Model
from onnxprune.options import Gates, OptionKeywords, Options, Progress, given
from onnxprune.pipeline.stages import Clock, analysed, checked
from onnxprune.progress import now
from onnxprune.rehearsal import blame_model
from onnxprune.rewrite import Rewritten
from onnxprune.trace import Groups


def check(options: Options) -> None:
    """UsageError, before any work, where what trains is asked for and not installed."""
    if options.finetune:
        finetuning.check_torch()


def parted(groups: Groups, options: Options) -> tuple[Options, Parts | None]:
    """The inputs to fine-tune on where that is asked for, and options with which a cut is calibrated on none of those
    that judge. Raises what `finetuning.check_trainable` does, before any work."""
    if not options.finetune:
        return options, None
    now()("calibrate")
    parts = finetuning.parted(groups.trace.model, groups.trace.shapes, options)
    finetuning.check_trainable(groups.trace.model, parts.fit[0])
    return options if parts.made_up else replace(options, calib=finetuning.calib_of(parts)), parts


def trained(groups: Groups, after: Rewritten, parts: Parts, options: Options, clock: Clock) -> Mapping[str, Any]:
    """Train the rewritten graph in place; its part of the report."""
    clock("finetune")
    trace = groups.trace
    done = finetuning.finetuned(trace.model, after.model, trace.shapes, parts, options, clock.progress)
    after.model = done.model
    return _said(done).report


def _said(done: Finetuned) -> Finetuned:
    """Says so where nothing was trained."""
    if why := done.report.get("skipped"):
        now().warn(f"not fine-tuned: {why}")
    return done


@blame_model
def finetune(
    dense: Any, pruned: Any, data: Any = None, options: Options | None = None, *,
    checkpoint: str | os.PathLike[str] | None = None, validate: Any = None, metric: Any = "",
    gates: Gates | None = None, progress: Progress | None = None, **keywords: Unpack[OptionKeywords],
) -> Finetuned:  # fmt: skip
    """`pruned` trained on what `dense` says to `data` (what --calib takes, labels too where there are any; None makes
    inputs up), or as it is where the part that judges finds nothing better; the graph stays, values change.

    options.finetune: steps or a time. checkpoint: a file to go on from. Ctrl-C ends it with what it has. validate: data
    on which both models are measured by `metric`, into `report["validation"]`; `gates` must hold there. Raises
    UsageError (no torch, other inputs), NothingToPrune (an operator that cannot be trained), CheckFailed (a gate, too).
    """
    finetuning.check_torch()
    options = checked(given(options, keywords))
    if data is not None and options.calib is not None:
        raise UsageError("the inputs are given twice, as data and as calib")
    options = replace(options, calib=options.calib if data is None else data, finetune=options.finetune or True)
    if gates and validate is None:
        raise UsageError("`gates` need data: give it with `validate`")
    comparison = None if validate is None else compared(dense, validate, options, metric, gates=gates)
    source, small = Model.load(dense), Model.load(pruned)
    clock = Clock()
    trace = analysed(source, options, clock).trace
    clock("calibrate")
    parts = finetuning.parted(trace.model, trace.shapes, options)
    path = None if checkpoint is None else Path(checkpoint)
    done = _said(finetuning.finetuned(trace.model, small, trace.shapes, parts, options, clock.progress, path))
    told = {**done.report, "warnings": unread(options.calib, source)}
    if comparison is not None:
        told["validation"] = comparison.judged(done.model, gates, options.seed)
    return replace(done, report=told)
