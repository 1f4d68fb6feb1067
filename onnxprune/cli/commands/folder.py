"""onnxprune FOLDER OUT_FOLDER: the whole job for every model in a folder of Hugging Face.

Knows flags and what is printed; the work is done by `integrations`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.cli import flags, gating
from onnxprune.cli.commands import prune
from onnxprune.cli.terminal import console, print_json, work
from onnxprune.errors import INTERRUPTED, CheckFailed, UsageError
from onnxprune.files import check_outputs, json_text
from onnxprune.options import Options

if TYPE_CHECKING:
    from onnxprune.api import Result

OF_ONE_MODEL = ("plan", "validate")
"""Flags about files that fit one model only."""


def run(args: argparse.Namespace, options: Options, argv: Sequence[str]) -> int:
    """Do what the arguments of `onnxprune IN OUT` ask for where IN is a folder; 0, or an error with its exit code."""
    from onnxprune.integrations import check_output, models_in, prune_folder

    names = models_in(args.IN)
    _refuse(args, names)
    check_output(args.IN, args.OUT)
    places = {(asked, name): _beside(asked, name) for asked in (args.report, args.save_plan) if asked for name in names}
    check_outputs([*places.values()])
    flags.check_report(args)
    with work(args) as stages:
        result = prune_folder(args.IN, options, prune=partial(_pruned, args, argv))
        stages("write")
        result.save(args.OUT, True if args.save_as_external_data else None, _texts(args, result.results, places))
    _print(args, result.results, [*result.lines()])
    return INTERRUPTED if any((r.report.finetune or {}).get("interrupted") for r in result.results.values()) else 0


def _refuse(args: argparse.Namespace, names: Sequence[str]) -> None:
    """UsageError for flags that fit one file, or one model of several."""
    if args.keep_on_fail:
        raise UsageError("--keep-on-fail keeps a file; of a folder nothing is written where a gate fails")
    for flag in OF_ONE_MODEL:
        if getattr(args, flag) and len(names) > 1:
            some = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            raise UsageError(
                f"--{flag} is about one model, and {args.IN} has {len(names)} ({some}); leave it out, or prune one of "
                "these files by itself"
            )


def _beside(asked: Path, name: str) -> Path:
    """Where the report or the plan of a model goes: `report.onnx-model.html` for `onnx/model.onnx`."""
    model = "-".join(Path(name).with_suffix("").parts)
    return asked.with_name(f"{asked.stem}.{model}{asked.suffix}")


def _pruned(args: argparse.Namespace, argv: Sequence[str], path: Path, options: Options) -> Result:
    """One model, with all that is measured; CheckFailed where a gate does not hold."""
    one = argparse.Namespace(**{**vars(args), "IN": path})
    result, quality = prune.pruned(one, options, gating.comparison(one, path, options))
    if quality is not None and quality.failed:
        raise CheckFailed(f"{'; '.join(quality.failed)}; {args.OUT} was not written")
    report = replace(prune.report_of(one, options, result, quality), **flags.origin(one, argv, args.OUT))
    return replace(result, report=report)


def _texts(
    args: argparse.Namespace, results: Mapping[str, Result], places: Mapping[tuple[Path, str], Path]
) -> dict[Path, str]:
    """The reports and plans of the models, by where they go."""
    texts: dict[Path, str] = {}
    for name, one in results.items():
        if args.report:
            from onnxprune.report import text

            path = places[args.report, name]
            texts[path] = text(path, one.report, Path(name).name)
        if args.save_plan:
            texts[places[args.save_plan, name]] = json_text(one.plan.to_json())
    return texts


def _print(args: argparse.Namespace, results: Mapping[str, Result], lines: Sequence[str]) -> None:
    """The reports on stdout, as one object of JSON by the paths of the models, or as tables."""
    from onnxprune.report import print_report, to_json

    if args.json:
        return print_json({name: to_json(result.report) for name, result in results.items()})
    if args.quiet:
        return
    out = console()
    for name, result in results.items():
        out.print(name, style="bold")
        print_report(result.report, out, args.verbose)
    for line in (*lines, f"written: {args.OUT}"):
        out.print(line, soft_wrap=True)
