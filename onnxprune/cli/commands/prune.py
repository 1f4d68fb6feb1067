"""onnxprune IN OUT: the whole job. Knows flags and what is printed; the work is done by `api`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.cli import arguments, flags, gating, logs, running
from onnxprune.cli.commands import COMMANDS, job
from onnxprune.cli.helping import Answer
from onnxprune.cli.terminal import console, print_json, work
from onnxprune.errors import INTERRUPTED
from onnxprune.files import check_distinct, check_outputs, followed, json_text, write_texts
from onnxprune.options import Options

if TYPE_CHECKING:
    from onnxprune.api import Result
    from onnxprune.measure import Comparison, Quality
    from onnxprune.report import Report

COMMON = (
    "--ratio", "--of", "--fast", "--calib", "--validate", "--max-drop", "--nodes-to-exclude", "--finetune",
    "--benchmark", "--report",
)  # fmt: skip
"""The flags that --help explains."""
ABOUT = "Remove whole channels, heads and hidden units of an ONNX model."
CODES = """\
exit codes: 0 done, 1 a check or a gate failed (OUT is not written), 2 wrong usage, 3 nothing can be pruned as
asked, 4 the runtime, a provider or the disk failed, 130 interrupted."""


def parser() -> arguments.Parser:
    """The arguments of the whole job."""
    made = arguments.parser("onnxprune", ABOUT, _epilog())
    made.common = COMMON
    flags.model_argument(made)
    made.add_argument(
        "OUT",
        type=arguments.model_to_write,
        help="the model to write; where IN is a folder of Hugging Face, a new folder",
    )
    flags.plan_flags(made)
    flags.stay_flags(made)
    running.calibration_flags(made)
    running.finetune_flag(made.add_argument_group("training"))
    running.proof_flags(made)
    quality = made.add_argument_group("quality, before and after")
    quality.add_argument(
        "--validate",
        default=None,
        metavar="DATA",
        help="what --calib takes, with 'labels' where there are any; pictures may lie in a folder for each class "
        "(default: not measured)",
    )
    gating.quality_flags(quality)
    gating.keep_flag(quality)
    time = made.add_argument_group("time (--benchmark, --max-latency and --of latency)")
    running.latency_flag(time)
    time.add_argument("--benchmark", action="store_true", default=False, help="measure the latency before and after")
    running.timing_flags(time)
    out = made.add_argument_group("output")
    out.add_argument("--save-as-external-data", action="store_true", default=False, help="weights in OUT.data")
    flags.report_flag(out)
    out.add_argument(
        "--save-plan",
        type=Path,
        default=None,
        metavar="FILE",
        help="write what was removed, as JSON (default: not written)",
    )
    made.add_argument(
        "--print-completion",
        action=Answer,
        answer=lambda _, shell: _completion(shell),
        nargs=None,
        choices=("bash", "zsh", "fish"),
        help='a script that completes flags, words and files, as in eval "$(onnxprune --print-completion bash)"',
    )
    logs.flags(out)
    return made


def _completion(shell: str) -> str:
    from onnxprune.cli.completion import script

    return script(shell)


def _epilog() -> str:
    """The other commands and the exit codes."""
    others = [name for name in COMMANDS if name != "prune"]
    lines = [f"  onnxprune {name:<13}{job(name).ABOUT}" for name in others]
    return "\n".join(["other commands, each with --help:", *lines, "", CODES])


def run(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; 0, or an error that bears its exit code."""
    return carried_out(parser().parse(argv), argv)


def carried_out(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """The same, of arguments that were read; `argv` is how they were typed."""
    options = flags.options(args)
    from onnxprune.planning import uses_inputs

    inputs = uses_inputs(options.resolved()) or bool(options.finetune)
    flags.refuse_unread(args, options, inputs=inputs, times=args.benchmark)
    if args.IN.is_dir():
        from onnxprune.cli.commands import folder

        return folder.run(args, options, argv)
    outputs = _checked_outputs(args)
    from onnxprune.model import aside_in

    with work(args) as stages, aside_in(args.OUT.parent):
        if args.benchmark:
            _check_timed(args, options)
        comparison = gating.comparison(args, args.IN, options)
        result, quality = pruned(args, options, comparison)
        check_distinct(result.model.data_files, outputs)
        failed = quality.failed if quality is not None else ()
        path = gating.path(args, failed)
        report = _searched(report_of(args, options, result, quality), argv)
        report = replace(report, **flags.origin(args, argv, path))
        stages("write")
        leftovers = _write(args, result, report, path)
    _print(args, report, leftovers)
    gating.fail(args, failed)
    if not args.quiet and not args.json:
        console().print(f"written: {args.OUT}", soft_wrap=True)
    return INTERRUPTED if (report.finetune or {}).get("interrupted") else 0


def _checked_outputs(args: argparse.Namespace) -> list[Path]:
    """All files that may be written, none of which is one that is read. UsageError before any work is done."""
    check_outputs([args.OUT])
    outputs = [path for path in (args.OUT, args.report, args.save_plan, gating.path_on_fail(args)) if path]
    check_outputs(outputs)
    out = followed(args.OUT)
    outputs.append(out.with_name(f"{out.name}.data"))
    check_distinct([Path(path) for path in (args.IN, args.plan, args.validate) if path], outputs)
    flags.check_report(args)
    return outputs


def pruned(args: argparse.Namespace, options: Options, comparison: Comparison | None) -> tuple[Result, Quality | None]:
    """The result, and what it is worth. With a gate and no ratio it is the largest cut that holds the gates."""
    from onnxprune import api
    from onnxprune.planning import read_plan

    gates = gating.gates(args)
    if comparison is None or not gates or hasattr(args, "ratio") or args.plan or options.max_latency is not None:
        plan = read_plan(args.plan) if args.plan else None
        result = api.prune(args.IN, options, plan=plan, force_plan=args.force_plan)
        return result, None if comparison is None else comparison.measure(result.model, gates, options.seed)

    def holds(result: Result) -> bool:
        return not comparison.measure(result.model, gates, options.seed).failed

    result = api.largest(args.IN, holds, options)
    return result, comparison.measure(result.model, gates, options.seed)


def report_of(args: argparse.Namespace, options: Options, result: Result, quality: Quality | None) -> Report:
    """The report of the run, with what was measured besides."""
    report = result.report if quality is None else replace(result.report, validation=asdict(quality))
    if args.benchmark and "measured" not in (report.latency or {}):
        report = replace(report, latency={**(report.latency or {}), "measured": _measured(args, options, result)})
    return report


def _searched(report: Report, argv: Sequence[str]) -> Report:
    """The report with the command that makes the same model without a search, where there was one."""
    if not report.search:
        return report
    words, found = [*argv], ["--ratio", str(report.search["ratio"])]
    if "max_latency" in report.search:
        words = _without(words, "--max-latency")
        found += ["--of", report.options.of] if "--of" not in words else []
    command = shlex.join(["onnxprune", *found, *words])
    return replace(report, search={**report.search, "command": command})


def _without(words: Sequence[str], flag: str) -> list[str]:
    """The words without a flag and its value."""
    at = next((k for k, word in enumerate(words) if word.partition("=")[0] == flag), len(words))
    return [*words[:at], *words[at + (1 if "=" in "".join(words[at : at + 1]) else 2) :]]


def _write(args: argparse.Namespace, result: Result, report: Report, path: Path | None) -> list[Path]:
    """The plan and the report, where they are asked for, together with the model if it is to go to a `path`. The files
    that a killed run had left, which are gone now."""
    texts = {args.save_plan: json_text(result.plan.to_json())} if args.save_plan else {}
    if args.report:
        from onnxprune.report import text

        texts[args.report] = text(args.report, report, args.IN.name)
    if path is not None:
        return result.model.save(path, True if args.save_as_external_data else None, texts)
    write_texts(texts)
    return []


def _print(args: argparse.Namespace, report: Report, leftovers: Sequence[Path]) -> None:
    """The report on stdout, as JSON or as tables, unless nothing is wanted there."""
    from onnxprune.report import print_report, to_json

    if args.json:
        return print_json(to_json(report))
    if args.quiet:
        return
    out = console()
    print_report(report, out, args.verbose)
    if leftovers:
        out.print(f"removed what a killed run had left: {', '.join(map(str, leftovers))}", soft_wrap=True)


def _check_timed(args: argparse.Namespace, options: Options) -> None:
    """Say that the model cannot be timed before it is pruned."""
    from onnxprune.measure import check_timed

    check_timed(args.IN, options)


def _measured(args: argparse.Namespace, options: Options, result: Result) -> dict[str, Any]:
    """The latency of both models."""
    from onnxprune.measure import timed
    from onnxprune.model import Model

    return timed(Model.load(args.IN), result.model, options).to_json()
