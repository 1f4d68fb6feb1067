"""The flags of the command line; those that decide a plan bear the names of the fields of Options."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import UsageError
from .options import Options

EPILOG = """\
exit codes: 0 done, 1 a check failed (OUT is not written), 2 wrong usage, 3 nothing can be pruned as asked,
4 the runtime, a provider or the disk failed.
'onnxprune inspect IN' shows what can be pruned, and what cannot with the reason."""


def prune_parser() -> _Parser:
    parser = _parser("onnxprune", "Remove whole channels, heads and hidden units of an ONNX model.", EPILOG)
    parser.add_argument("OUT", type=Path, help="the model to write")
    default = Options()
    what = parser.add_argument_group("what goes")
    what.add_argument("--ratio", type=_share, help=f"share of the prunable units to remove (default {default.ratio})")
    what.add_argument("--criterion", metavar="l1|l2|random", help=f"score of a unit (default {default.criterion})")
    what.add_argument("--scope", choices=("local", "global"), help="take the share of every group, or of all together")
    what.add_argument("--min-channels", type=_count, metavar="N", help="keep at least N units of every group")
    what.add_argument("--round-to", type=_count, metavar="N", help="keep a multiple of N units")
    what.add_argument("--max-ratio", type=_limit, metavar="R", help="remove at most this share of any group")
    what.add_argument("--seed", type=_seed, help="seed of the random criterion and of the proof's inputs")
    what.add_argument("--plan", type=Path, default=None, metavar="FILE", help="replay a plan made by --save-plan")
    _exclusion_flags(parser)
    proof = parser.add_argument_group("proof and data")
    proof.add_argument("--validate", type=Path, default=None, metavar="NPZ",
                       help="top-1 before and after; keys are the input names plus 'labels'")
    proof.add_argument("--providers", nargs="+", metavar="P", help="cpu, cuda or full names (default cpu)")
    proof.add_argument("--check-rtol", type=_tolerance, metavar="X", help="allowed error, as a share of the output")
    proof.add_argument("--check-atol", type=_tolerance, metavar="X", help="allowed absolute error on top of that")
    out = parser.add_argument_group("output")
    out.add_argument("--save-as-external-data", action="store_true", default=False, help="weights in OUT.data")
    out.add_argument("--report", type=Path, default=None, metavar="JSON", help="write everything about the run")
    out.add_argument("--save-plan", type=Path, default=None, metavar="FILE", help="write what was removed, as JSON")
    out.add_argument("-q", "--quiet", action="store_true", default=False, help="print errors only")
    _common_flags(parser)
    return parser


def inspect_parser() -> _Parser:
    parser = _parser("onnxprune inspect", "Show the groups of coupled units, and what is frozen with the reason.")
    parser.add_argument("--json", action="store_true", default=False, help="print JSON")
    _exclusion_flags(parser)
    _common_flags(parser)
    return parser


def options(args: argparse.Namespace) -> Options:
    """The flags that were given; the rest keeps the defaults of Options."""
    given = {name: value for name, value in vars(args).items() if name in Options.__dataclass_fields__}
    if "residual" in given:
        given["conv_residual"] = given["residual"]
    if "input_shapes" in given:
        given["input_shapes"] = dict(given["input_shapes"])
    chosen = [name for name in ("ratio", "scope", "criterion", "seed") if name in given]
    if getattr(args, "plan", None) and chosen:
        raise UsageError(f"--plan already says what goes; leave out --{chosen[0]}")
    return Options(**given)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser(prog: str, description: str, epilog: str | None = None) -> _Parser:
    parser = _Parser(
        prog, description=description, epilog=epilog, allow_abbrev=False, argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("IN", type=Path, help="the model to read; never changed")
    return parser


def _exclusion_flags(parser: _Parser) -> None:
    keep = parser.add_argument_group("what stays")
    many: dict[str, Any] = {"nargs": "+", "action": "extend"}
    keep.add_argument("--nodes-to-exclude", metavar="NODE", **many, help="names, globs, or re:REGULAR-EXPRESSION")
    keep.add_argument("--op-types-to-exclude", metavar="OP", **many, help="operator types such as Gemm")
    keep.add_argument("--heads", action=argparse.BooleanOptionalAction, help="remove whole attention heads (default)")
    keep.add_argument("--residual", action=argparse.BooleanOptionalAction,
                      help="remove residual channels: all, none, or (neither flag) all but those that cross a norm")
    keep.add_argument("--overwrite-input-shape", dest="input_shapes", metavar="NAME:1,3,224,224", type=_shape, **many,
                      help="fix the shape of an input")


def _common_flags(parser: _Parser) -> None:
    parser.add_argument("--verbose", action="store_true", default=False, help="print everything, and tracebacks")
    parser.add_argument("-v", "--version", action="version", version=f"onnxprune {__version__}")


def _number(kind: Callable[[str], float], wanted: str, fits: Callable[[float], bool]) -> Callable[[str], Any]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return convert


_share = _number(float, "a share between 0 and 1, such as 0.3", lambda value: 0 < value < 1)
_limit = _number(float, "a share above 0 and up to 1", lambda value: 0 < value <= 1)
_count = _number(int, "a whole number from 1 on", lambda value: value >= 1)
_seed = _number(int, "a whole number from 0 on", lambda value: value >= 0)
_tolerance = _number(float, "a number from 0 on", lambda value: 0 <= value < math.inf)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition(":")
    parts = sizes.split(",")
    if not name or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:SIZES, such as image:1,3,224,224")
    return name, tuple(map(int, parts))
