"""onnxprune verify DENSE PRUNED PLAN: prove a pruned file that was there already.

Knows flags and what is printed; the work is done by `api`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxprune.cli import arguments, flags, logs, running
from onnxprune.cli.terminal import console, print_json, work

EPILOG = """\
PRUNED must be DENSE without what PLAN removes, for every value of the weights. Where the plan's run refitted weights,
their shapes and places are proven, and the error of the outputs is measured on --calib or made-up inputs.
exit codes: 0 proven, 1 it is not what the plan leaves, 2 wrong usage, 4 the runtime failed,
130 interrupted."""
ABOUT = "Prove that a file is a model without what a plan removes."


def parser() -> arguments.Parser:
    """The arguments of `onnxprune verify`."""
    made = arguments.parser("onnxprune verify", ABOUT, EPILOG)
    flags.model_argument(made, "DENSE")
    flags.model_argument(made, "PRUNED")
    made.add_argument("PLAN", type=Path, help="what went: a file made by --save-plan")
    flags.force_flag(made)
    made.add_argument(
        "--refitted",
        action="store_true",
        default=None,
        help="weights may have other values than DENSE's (default: as the plan says)",
    )
    flags.stay_flags(made, decides=False, planned=True)
    running.calibration_flags(made)
    running.proof_flags(made)
    made.add_argument("--seed", type=arguments.option("seed"), metavar="N", help="of the proof's and of made-up inputs")
    logs.flags(made, "the proof")
    return made


def run(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; 0, or an error that bears its exit code."""
    args = parser().parse(argv)
    options = flags.options(args)
    from onnxprune.planning import read_plan

    plan = read_plan(args.PLAN)
    flags.refuse_unread(args, options, inputs=bool(args.refitted) or plan.refits)

    from onnxprune import api
    from onnxprune.report import print_verified, to_json

    with work(args):
        found = api.verify(args.DENSE, args.PRUNED, plan, options, force_plan=args.force_plan, refitted=args.refitted)
    if args.json:
        print_json(to_json(found))
    elif not args.quiet:
        out = console()
        print_verified(found, out, args.verbose)
        out.print(f"verified: {args.PRUNED}", soft_wrap=True)
    return 0
