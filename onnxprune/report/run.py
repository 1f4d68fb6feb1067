"""The report of one run. Knows results as data and computes none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.options import Options
from onnxprune.results import BranchInfo, CacheInfo, Cost, CurveInfo, FrozenInfo, GroupInfo, PicturedLayer, Proof


@dataclass(frozen=True)
class Report:
    """The result of one run, as written by `--report out.json` (see `report.to_json`) and shown by
    `out.html`.

    branches: the residual branches, those that went and those that stayed.
    layers: what a picture of the graph draws. command: the command line that made it, None in Python. files: the names
    that were given for "model", "pruned", "plan", "calib" and "validate", as far as they are files. latency: in
    milliseconds, "predicted" (before, after) where the plan was made for it, "measured" (see
    `measure.latency.Benchmark`) where a benchmark was asked for. finetune: see `finetuning.finetuned`. search: where
    the largest cut that holds a gate, or the smallest that is fast enough ("max_latency", milliseconds), was looked
    for, its "ratio", the ratios "tried" and, from the command line, the "command" that makes it without a search.
    warnings: what is wrong with the inputs that were given; those of the data
    that quality is measured on are in `validation`."""

    before: Cost
    after: Cost
    groups: tuple[GroupInfo, ...]
    frozen: tuple[FrozenInfo, ...]
    proof: Proof
    options: Options
    notes: tuple[str, ...] = ()
    validation: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    reconstruction: Mapping[str, Any] | None = None
    curves: tuple[CurveInfo, ...] = ()
    latency: Mapping[str, Any] | None = None
    finetune: Mapping[str, Any] | None = None
    search: Mapping[str, Any] | None = None
    layers: tuple[PicturedLayer, ...] = ()
    command: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    branches: tuple[BranchInfo, ...] = ()
    caches: tuple[CacheInfo, ...] = ()

    def save(self, path: str | os.PathLike[str], title: str = "") -> Path:
        """A page where the name ends in .html, JSON where it ends in .json, whole or not at all; `title` heads the
        page ("": the name of the model's file). UsageError for another ending; UsageError or RuntimeFailure where it
        cannot be written."""
        from onnxprune.report.documents import write

        write(Path(path), self, title or Path(self.files.get("model", Path(path).stem)).name)
        return Path(path)
