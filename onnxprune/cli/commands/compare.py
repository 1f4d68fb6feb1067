"""onnxprune compare A B: what two models cost and how far the second is from the first.

Knows flags and what is printed; the work is done by `api`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxprune.cli import arguments, flags, gating, logs, running
from onnxprune.cli.terminal import console, print_json, work
from onnxprune.errors import CheckFailed
from onnxprune.files import check_distinct, check_outputs

ABOUT = "Compare any two models of the same inputs and outputs: size, MACs, the metric, fidelity of B to A."


def parser() -> arguments.Parser:
    """The arguments of `onnxprune compare`."""
    made = arguments.parser(
        "onnxprune compare",
        ABOUT,
        "exit codes: 0 done, 1 a gate failed, 2 wrong usage, 4 the runtime failed, 130 interrupted.",
    )
    flags.model_argument(made, "A")
    flags.model_argument(made, "B")
    made.add_argument("--data", default=None, metavar="DATA", help="as for --validate (default: made-up inputs)")
    gating.quality_flags(made)
    running.pixel_flags(made)
    running.text_flags(made)
    made.add_argument("--benchmark", action="store_true", default=False, help="measure the latency of both, in turns")
    running.timing_flags(made)
    flags.report_flag(made)
    running.provider_flag(made)
    running.memory_flag(made)
    made.add_argument("--overwrite-input-shape", dest="input_shapes", metavar="NAME:1,3,224,224", type=arguments.shape,
                      **running.MANY, help="fix the shape of an input (default: as in the file)")  # fmt: skip
    made.add_argument(
        "--seed", type=arguments.option("seed"), metavar="N", help="of made-up inputs and of the interval"
    )
    logs.flags(made)
    return made


def run(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; 0, or an error that bears its exit code."""
    args = parser().parse(argv)
    options = flags.options(args)
    flags.refuse_unread(args, options, inputs=not args.data, data=True, times=args.benchmark)
    if args.report:
        check_outputs([args.report])
        check_distinct([Path(path) for path in (args.A, args.B, args.data) if path], [args.report])
        flags.check_report(args)

    from onnxprune import api
    from onnxprune.report import print_comparison, to_json, write

    with work(args):
        found = api.compare(
            args.A, args.B, args.data, options, metric=args.metric, gates=gating.gates(args),
            samples=args.validate_samples, benchmark=args.benchmark,
        )  # fmt: skip
    if args.report:
        write(args.report, found, f"{args.B.name} beside {args.A.name}")
    if args.json:
        print_json(to_json(found))
    elif not args.quiet:
        print_comparison(found, console())
    if found.quality["failed"]:
        raise CheckFailed("; ".join(found.quality["failed"]))
    return 0
