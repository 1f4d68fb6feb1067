"""onnxprune inspect IN: the groups, and what is frozen with the reason.

Knows flags and what is printed; the work is done by `api`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxprune.cli import arguments, flags, logs, running
from onnxprune.cli.terminal import console, print_json, work
from onnxprune.files import check_distinct, check_outputs, write_texts
from onnxprune.options import Options

ABOUT = "Show the groups of coupled units, and what is frozen and why."


def parser() -> arguments.Parser:
    """The arguments of `onnxprune inspect`."""
    made = arguments.parser("onnxprune inspect", ABOUT)
    flags.model_argument(made)
    made.add_argument(
        "--graph",
        type=Path,
        default=None,
        metavar="FILE",
        help="write what couples what: FILE.dot, .json or .html (default: not)",
    )
    flags.stay_flags(made, decides=False)
    running.memory_flag(made)
    logs.flags(made)
    return made


def run(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; 0, or an error that bears its exit code."""
    args = parser().parse(argv)
    options = flags.options(args)

    from onnxprune import api
    from onnxprune.report import check_graph_file, graph_text, print_inspection, to_json

    if args.graph:
        check_graph_file(args.graph)
        check_distinct([args.IN], [args.graph])
        check_outputs([args.graph])

    fields = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    with work(args):
        inspection = api.inspect(args.IN, **fields)
        if args.graph:
            write_texts({args.graph: graph_text(args.graph, inspection.graph, Path(args.IN).name)})
    if args.json:
        print_json(to_json(inspection))
    elif not args.quiet:
        print_inspection(inspection, console(), args.verbose)
    return 0
