"""onnxprune sweep IN OUT_FOLDER: a grid of ratios and criteria, and its Pareto fronts.

Knows flags and what is printed; the work is done by `sweep`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.cli import arguments, flags
from onnxprune.cli.terminal import console, progress
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.files import check_distinct, check_outputs
from onnxprune.options import Options

if TYPE_CHECKING:
    from onnxprune.results import SweepPoint

RATIOS = (0.2, 0.4, 0.6)


def parser() -> arguments.Parser:
    """The arguments of `onnxprune sweep`."""
    made = arguments.parser("onnxprune sweep", "Prune a model by many ratios and criteria; see which ways are best.")
    flags.model_argument(made)
    made.add_argument("OUT_FOLDER", type=Path, help="where every point goes; what is there already is not made again")
    grid = made.add_argument_group("the grid")
    default = " ".join(map(str, RATIOS))
    grid.add_argument(
        "--ratios", type=arguments.option("ratio"), metavar="R", nargs="+", default=RATIOS, help=f"default {default}"
    )
    grid.add_argument(
        "--criteria", metavar="NAME", nargs="+", default=(), help=f"obs (default; l2 with --fast), {flags.CRITERIA}"
    )
    flags.spread_flags(made.add_argument_group("what goes"))
    flags.stay_flags(made)
    flags.calibration_flags(made)
    flags.proof_flags(made)
    quality = made.add_argument_group("quality")
    quality.add_argument("--validate", default=None, metavar="DATA", help="as for onnxprune IN OUT")
    flags.metric_flag(quality)
    quality.add_argument("--benchmark", action="store_true", default=False, help="measure latency (use --jobs 1)")
    flags.timing_flags(quality)
    where = made.add_argument_group("where it runs")
    where.add_argument(
        "--jobs", type=arguments.count, default=None, metavar="N", help="processes (default: one for every 4 points)"
    )
    where.add_argument("--backend", choices=("loky", "dask", "ray"), default="loky", help="here (loky), or a cluster")
    where.add_argument("--address", default=None, help="of the cluster, such as tcp://host:8786 or ray://host:10001")
    out = made.add_argument_group("output")
    out.add_argument("--save-models", action="store_true", default=False, help="keep every pruned model and its plan")
    flags.report_flag(out)
    out.add_argument("-q", "--quiet", action="store_true", default=False, help="print errors only")
    return made


def _runs_inputs(args: argparse.Namespace, options: Options) -> bool:
    """Whether inputs are run beside those of --validate: for a plan of the grid, or for want of them to compare by."""
    from onnxprune.planning import uses_inputs

    ways = [replace(options, criterion=name).resolved() for name in args.criteria or [""]]
    return not args.validate or any(map(uses_inputs, ways))


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
    check_distinct([Path(path) for path in (args.IN, args.validate) if path], [args.report] if args.report else [])

    from onnxprune.report import print_sweep, sweep_line, write
    from onnxprune.sweeping import sweep

    def told(metric: str, dense: SweepPoint, point: SweepPoint) -> None:
        """A line for every point, above the bar where there is one."""
        if not args.quiet:
            print(sweep_line(metric, dense, point), file=sys.stderr, flush=True)

    with progress(args.quiet) as show:
        result = sweep(
            args.IN, folder, args.ratios, args.criteria, options, data=args.validate, metric=args.metric,
            benchmark=args.benchmark, save_models=args.save_models, jobs=args.jobs, backend=args.backend,
            address=args.address, progress=show, told=told,
        )  # fmt: skip
    if args.report:
        write(args.report, result, args.IN.name)
    if not args.quiet:
        print_sweep(result, console())
    if all(point.error for point in result.points):
        raise RuntimeFailure(f"no point could be made: {result.points[0].error}")
    return 0
