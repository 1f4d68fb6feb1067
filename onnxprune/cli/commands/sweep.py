"""onnxprune sweep IN OUT_FOLDER: a grid of ratios and criteria, and its Pareto fronts.

Knows flags and what is printed; the work is done by `sweep`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.cli import arguments, flags, logs, running
from onnxprune.cli.terminal import console, print_json, work
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.files import check_distinct, check_outputs
from onnxprune.options import Options

if TYPE_CHECKING:
    pass

RATIOS = (0.2, 0.4, 0.6)
COMMON = (
    "--ratios", "--criteria", "--fast", "--calib", "--validate", "--metric", "--benchmark", "--jobs", "--save-models",
    "--report",
)  # fmt: skip
"""The flags that --help explains."""
ABOUT = "Prune a model by many ratios and criteria; see which ways are best."


def parser() -> arguments.Parser:
    """The arguments of `onnxprune sweep`."""
    made = arguments.parser("onnxprune sweep", ABOUT)
    made.common = COMMON
    flags.model_argument(made)
    made.add_argument("OUT_FOLDER", type=Path, help="where every point goes; what is there already is not made again")
    grid = made.add_argument_group("the grid")
    default = " ".join(map(str, RATIOS))
    grid.add_argument(
        "--ratios",
        type=arguments.option("ratio", several=True),
        metavar="R",
        **running.MANY,
        help=f"what is tried (default {default})",
    )
    grid.add_argument(
        "--criteria",
        metavar="NAME",
        **running.MANY,
        help=f"how units are ranked: obs (default; l2 with --fast), {flags.CRITERIA}",
    )
    flags.spread_flags(made.add_argument_group("what goes"))
    flags.stay_flags(made)
    running.calibration_flags(made)
    running.proof_flags(made)
    quality = made.add_argument_group("quality")
    quality.add_argument(
        "--validate",
        default=None,
        metavar="DATA",
        help="what --calib takes, with labels (default: fidelity on other inputs)",
    )
    flags.metric_flag(quality)
    flags.samples_flag(quality)
    quality.add_argument("--benchmark", action="store_true", default=False, help="measure latency (use --jobs 1)")
    running.timing_flags(quality)
    where = made.add_argument_group("where it runs")
    where.add_argument(
        "--jobs", type=arguments.count, default=None, metavar="N", help="processes (default: one for every 4 points)"
    )
    where.add_argument(
        "--backend",
        choices=("loky", "dask", "ray"),
        default="loky",
        help="here (loky), or a cluster",
    )
    where.add_argument(
        "--address",
        default=None,
        metavar="A",
        help="of the cluster, such as tcp://host:8786 (default: one is started here)",
    )
    out = made.add_argument_group("output")
    out.add_argument("--save-models", action="store_true", default=False, help="keep every pruned model and its plan")
    flags.report_flag(out)
    logs.flags(out)
    return made


def _runs_inputs(args: argparse.Namespace, options: Options) -> bool:
    """Whether inputs are run beside those of --validate: for a plan of the grid, or for want of them to compare by."""
    from onnxprune.planning import uses_inputs

    ways = [replace(options, criterion=name).resolved() for name in _criteria(args) or [""]]
    return not args.validate or any(map(uses_inputs, ways))


def _criteria(args: argparse.Namespace) -> Sequence[str]:
    return getattr(args, "criteria", ())


def run(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; 0, or an error that bears its exit code."""
    args = parser().parse(argv)
    options = flags.options(args)
    flags.refuse_unread(args, options, inputs=_runs_inputs(args, options), data=True, times=args.benchmark)
    folder: Path = args.OUT_FOLDER
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; a sweep writes into a folder")
    check_outputs([folder / "point.json" if folder.exists() else folder])
    check_outputs([args.report] if args.report and args.report.parent != folder else [])
    flags.check_report(args)
    check_distinct([Path(path) for path in (args.IN, args.validate) if path], [args.report] if args.report else [])

    from onnxprune.report import print_sweep, to_json, write
    from onnxprune.sweeping import sweep

    with work(args):
        result = sweep(
            args.IN, folder, getattr(args, "ratios", RATIOS), _criteria(args), options, data=args.validate,
            metric=args.metric, samples=args.validate_samples, benchmark=args.benchmark, save_models=args.save_models,
            jobs=args.jobs, backend=args.backend, address=args.address,
        )  # fmt: skip
    if args.report:
        write(args.report, replace(result, **flags.origin(args, ["sweep", *argv])), args.IN.name)
    if args.json:
        print_json(to_json(result))
    elif not args.quiet:
        print_sweep(result, console())
    if all(point.error for point in result.points):
        raise RuntimeFailure(f"no point could be made: {result.points[0].error}")
    return 0
