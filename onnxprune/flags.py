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
    what.add_argument("--of", choices=("units", "macs", "params"), help="what the ratio is of (default units)")
    what.add_argument("--fast", action="store_true", help="weights only: l2, the same share everywhere, no refitting")
    what.add_argument(
        "--criterion",
        metavar="NAME",
        help="how units are ranked: obs (default; l2 with --fast), l1, l2, random, bn-scale, fpgm, lamp, "
        "wanda, flap, taylor, taylor-so, lrp, oracle",
    )
    what.add_argument(
        "--scope",
        choices=("local", "global", "sensitivity", "pq"),
        help="how the ratio is spread: the same share everywhere, one ranking of all, where it was "
        "measured to hurt least (default; local with --fast), or by how compressible weights are",
    )
    what.add_argument(
        "--allocation",
        dest="scope",
        type=_allocation,
        metavar="NAME",
        help="another name of --scope, with 'uniform' for local",
    )
    what.add_argument(
        "--reconstruct",
        choices=("ls", "merge", "none"),
        help="refit what is left by least squares (default), in weight space, or not (as --fast)",
    )
    what.add_argument("--min-channels", type=_count, metavar="N", help="keep at least N units of every group")
    what.add_argument("--round-to", type=_count, metavar="N", help="keep a multiple of N units")
    what.add_argument("--max-ratio", type=_limit, metavar="R", help="remove at most this share of any group")
    what.add_argument("--seed", type=_seed, help="seed of the random criterion and of the proof's inputs")
    what.add_argument("--plan", type=Path, default=None, metavar="FILE", help="replay a plan made by --save-plan")
    _exclusion_flags(parser)
    inputs = parser.add_argument_group("inputs to calibrate on (made up where none are given)")
    inputs.add_argument(
        "--calib",
        metavar="DATA",
        help="an .npz, a folder of .npy, .npz, images or test_data_set_*, or script.py:function",
    )
    inputs.add_argument(
        "--calib-samples", type=_count, metavar="N", help=f"at most so many samples (default {default.calib_samples})"
    )
    inputs.add_argument("--mean", type=_numbers, metavar="M,..", help="of image files: (pixel * scale - mean) / std")
    inputs.add_argument("--std", type=_numbers, metavar="S,..", help="see --mean")
    inputs.add_argument("--scale", type=float, metavar="X", help="see --mean (1/255 brings pixels into 0..1)")
    inputs.add_argument("--memory", type=_bytes, metavar="SIZE", help="of activations, such as 4G (default) or 512M")
    proof = parser.add_argument_group("proof and data")
    proof.add_argument(
        "--validate",
        type=Path,
        default=None,
        metavar="NPZ",
        help="top-1 before and after; keys are the input names plus 'labels'",
    )
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
        prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
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
    keep.add_argument(
        "--residual",
        action=argparse.BooleanOptionalAction,
        help="remove residual channels: all, none, or (neither flag) all but those that cross a norm",
    )
    keep.add_argument(
        "--overwrite-input-shape",
        dest="input_shapes",
        metavar="NAME:1,3,224,224",
        type=_shape,
        **many,
        help="fix the shape of an input",
    )


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


def _allocation(text: str) -> str:
    names = {"uniform": "local", "local": "local", "global": "global", "sensitivity": "sensitivity", "pq": "pq"}
    if text not in names:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of uniform, global, sensitivity, pq")
    return names[text]


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas, such as 0.485,0.456,0.406") from None


def _bytes(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    factor = units.get(text[-1:].upper(), 1)
    number = text[:-1] if text[-1:].upper() in units else text
    if not number.isdigit() or int(number) * factor < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 1M on, such as 4G or 512M")
    return int(number) * factor


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
