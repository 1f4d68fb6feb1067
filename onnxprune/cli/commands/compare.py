"""onnxprune compare A B: what two models cost and how far the second is from the first.

Knows flags and what is printed; the work is done by `api`.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.cli import arguments, flags, logs
from onnxprune.cli.terminal import console, print_json, work
from onnxprune.errors import CheckFailed


def parser() -> arguments.Parser:
    """The arguments of `onnxprune compare`."""
    made = arguments.parser(
        "onnxprune compare",
        "Compare any two models of the same inputs and outputs: size, MACs, the metric, fidelity of B to A.",
        "exit codes: 0 done, 1 a gate failed, 2 wrong usage, 4 the runtime failed, 130 interrupted.",
    )
    flags.model_argument(made, "A")
    flags.model_argument(made, "B")
    made.add_argument("--data", default=None, metavar="DATA", help="as for --validate (default: made-up inputs)")
    flags.quality_flags(made)
    flags.pixel_flags(made)
    flags.provider_flag(made)
    flags.memory_flag(made)
    made.add_argument("--overwrite-input-shape", dest="input_shapes", metavar="NAME:1,3,224,224", type=arguments.shape,
                      **flags.MANY, help="fix the shape of an input")  # fmt: skip
    made.add_argument("--seed", type=arguments.option("seed"), help="of made-up inputs and of the interval")
    logs.flags(made)
    return made


def run(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; 0, or an error that bears its exit code."""
    args = parser().parse(argv)
    options = flags.options(args)

    from onnxprune import api
    from onnxprune.measure import Gates
    from onnxprune.report import print_comparison, to_json

    gates = Gates(args.max_drop, args.min_agreement, args.min_cosine)
    with work(args):
        found = api.compare(
            args.A, args.B, args.data, options, metric=args.metric, gates=gates, samples=args.validate_samples
        )
    if args.json:
        print_json(to_json(found))
    elif not args.quiet:
        print_comparison(found, console())
    if found.quality["failed"]:
        raise CheckFailed("; ".join(found.quality["failed"]))
    return 0
