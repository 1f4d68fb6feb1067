"""onnxprune IN OUT: the whole job."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune import arguments, flags
from onnxprune.files import check_distinct, check_outputs, read_json, write_json
from onnxprune.terminal import console, progress

EPILOG = """\
exit codes: 0 done, 1 a check failed (OUT is not written), 2 wrong usage, 3 nothing can be pruned as asked,
4 the runtime, a provider or the disk failed.
'onnxprune inspect IN' shows what can be pruned, and what cannot with the reason."""


def parser() -> argparse.ArgumentParser:
    made = arguments.parser("onnxprune", "Remove whole channels, heads and hidden units of an ONNX model.", EPILOG)
    flags.model_argument(made)
    made.add_argument("OUT", type=Path, help="the model to write")
    flags.plan_flags(made)
    made.add_argument("--plan", type=Path, default=None, metavar="FILE", help="replay a plan made by --save-plan")
    flags.stay_flags(made)
    flags.calibration_flags(made)
    flags.proof_flags(made)
    quality = made.add_argument_group("quality")
    quality.add_argument(
        "--validate",
        type=Path,
        default=None,
        metavar="NPZ",
        help="top-1 before and after; keys are the input names plus 'labels'",
    )
    out = made.add_argument_group("output")
    out.add_argument("--save-as-external-data", action="store_true", default=False, help="weights in OUT.data")
    flags.report_flag(out)
    out.add_argument("--save-plan", type=Path, default=None, metavar="FILE", help="write what was removed, as JSON")
    out.add_argument("-q", "--quiet", action="store_true", default=False, help="print errors only")
    return made


def run(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    flags.refuse_with_plan(args)
    options = flags.options(args)
    outputs = [path for path in (args.OUT, args.report, args.save_plan) if path]
    check_outputs(outputs)
    outputs.append(args.OUT.with_name(f"{args.OUT.name}.data"))
    check_distinct([path for path in (args.IN, args.plan, args.validate) if path], outputs)

    from onnxprune import api, validate
    from onnxprune.model import Model
    from onnxprune.plan import Plan

    data = validate.load_data(args.validate) if args.validate else None
    plan = Plan.from_json(read_json(args.plan)) if args.plan else None
    before = validate.top1(Model.load(args.IN), data, options.providers) if data else None
    with progress(args.quiet) as show:
        result = api.prune(args.IN, options, plan=plan, progress=show)
    check_distinct(result.model.data_files, outputs)
    report = result.report
    if data and before:
        after = validate.top1(result.model, data, options.providers)
        scores: dict[str, Any] = {"metric": "top-1", "before": before.top1, "after": after.top1}
        scores |= {"samples": after.samples, "providers": after.providers, "data": str(args.validate)}
        report = replace(report, validation=scores)
    result.model.save(args.OUT, external=True if args.save_as_external_data else None)
    if args.save_plan:
        write_json(args.save_plan, result.plan.to_json())
    if args.report or not args.quiet:
        from onnxprune.report import print_report, write

        if args.report:
            write(args.report, report, args.IN.name)
        if not args.quiet:
            out = console()
            print_report(report, out, args.verbose)
            out.print(f"written: {args.OUT}", soft_wrap=True)
    return 0
