"""onnxprune finetune DENSE PRUNED OUT: train a pruned model on what the dense one says.

Knows flags and what is printed; the work is done by `tuning`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from onnxprune.cli import arguments, flags, gating, logs, running
from onnxprune.cli.terminal import console, print_json, work
from onnxprune.errors import INTERRUPTED
from onnxprune.files import check_distinct, check_outputs

EPILOG = """\
OUT is the graph of PRUNED with other values, or with the same ones where none are found that are better on the inputs
that judge; onnxprune verify DENSE OUT PLAN proves it. Ctrl-C writes what was found until then.
exit codes: 0 written, 1 a gate failed, or torch computes something else than ONNX Runtime, 2 wrong usage or no torch,
3 an operator cannot be trained, 4 the runtime or the disk failed, 130 written after Ctrl-C."""
ABOUT = "Train a pruned model on the dense model's answers."

COMMON = (
    "--data", "--calib-samples", "--memory", "--steps", "--checkpoint", "--seed", "--providers", "--validate",
    "--metric", "--max-drop",
)  # fmt: skip
"""The flags that --help explains."""


def parser() -> arguments.Parser:
    """The arguments of `onnxprune finetune`."""
    made = arguments.parser("onnxprune finetune", ABOUT, EPILOG)
    made.common = COMMON
    flags.model_argument(made, "DENSE")
    flags.model_argument(made, "PRUNED")
    made.add_argument("OUT", type=Path, help="the model to write")
    data = made.add_argument_group("inputs (made up where none are given); labels are used, too")
    data.add_argument("--data", dest="calib", metavar="DATA", help="what --calib takes (default: made up)")
    data.add_argument("--calib-samples", type=arguments.count, metavar="N", help="made-up samples")
    running.memory_flag(data)
    running.pixel_flags(data)
    running.text_flags(data)
    how = made.add_argument_group("training")
    how.add_argument(
        "--steps",
        dest="finetune",
        type=arguments.option("finetune"),
        metavar="STEPS|5m",
        help="steps, or a time (default 2000 steps)",
    )
    how.add_argument(
        "--checkpoint",
        type=Path,
        default=None,
        metavar="FILE",
        help="kept while it runs, to go on from (default: not kept)",
    )
    how.add_argument(
        "--seed", type=arguments.option("seed"), metavar="N", help="of the order of the inputs and of their copies"
    )
    running.provider_flag(how)
    quality = made.add_argument_group("quality, of OUT beside DENSE")
    quality.add_argument(
        "--validate", default=None, metavar="DATA", help="as for onnxprune IN OUT (default: nothing is measured)"
    )
    gating.quality_flags(quality)
    gating.keep_flag(quality)
    out = made.add_argument_group("output")
    out.add_argument("--save-as-external-data", action="store_true", default=False, help="weights in OUT.data")
    logs.flags(out, "what the training did")
    return made


def run(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; 0, 130 after Ctrl-C, or an error that bears its exit code."""
    args = parser().parse(argv)
    options = flags.options(args)
    flags.refuse_unread(args, options, inputs=True)
    _check_files(args)

    from onnxprune.pipeline import tuning
    from onnxprune.report import document, print_finetuning, print_quality

    tuning.check(replace(options, finetune=True))
    with work(args) as stages:
        comparison = gating.comparison(args, args.DENSE, options)
        done = tuning.finetune(args.DENSE, args.PRUNED, None, options, checkpoint=args.checkpoint)
        quality = None if comparison is None else comparison.measure(done.model, gating.gates(args), options.seed)
        failed = () if quality is None else quality.failed
        stages("write")
        if path := gating.path(args, failed):
            done.model.save(path, True if args.save_as_external_data else None)
    if args.json:
        told = done.report if quality is None else {**done.report, "validation": asdict(quality)}
        print_json(document("finetuned", {"finetune": told}))
    elif not args.quiet:
        out = console()
        if quality is not None:
            print_quality(asdict(quality), out)
        print_finetuning(done.report, out)
    gating.fail(args, failed)
    if not args.quiet and not args.json:
        kept = done.interrupted and args.checkpoint and args.checkpoint.exists()
        more = f"; the same command goes on from {args.checkpoint}" if kept else ""
        out.print(f"written: {args.OUT}{more}", soft_wrap=True)
    return INTERRUPTED if done.interrupted else 0


def _check_files(args: argparse.Namespace) -> None:
    """UsageError, before any work, where a file that is read would be written, or one cannot be."""
    outputs = [path for path in (args.OUT, args.checkpoint, gating.path_on_fail(args)) if path]
    check_outputs(outputs)
    given = [Path(path) for path in (getattr(args, "calib", None), args.validate) if path]
    check_distinct([args.DENSE, args.PRUNED, *given], outputs)
