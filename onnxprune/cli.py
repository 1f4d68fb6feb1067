"""Arguments -> API, errors -> exit codes. Heavy modules are imported where they are used, so that --help is quick."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .errors import OnnxPruneError, RuntimeFailure, UsageError
from .options import Options, Progress

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
EPILOG = """\
exit codes: 0 done, 1 a check failed (OUT is not written), 2 wrong usage, 3 nothing can be pruned as asked,
4 the runtime, a provider or the disk failed.
'onnxprune inspect IN' shows what can be pruned, and what cannot with the reason."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _inspect(args[1:]) if args[:1] == ["inspect"] else _prune(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `onnxprune inspect IN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--verbose" in args:
            traceback.print_exc()
        return _fail(*_explain(error))


def _explain(error: Exception) -> tuple[str, int]:
    """One line and the exit code."""
    if isinstance(error, OnnxPruneError):
        return error.message, error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or use a machine with more", RuntimeFailure.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'output'}: no space left on the disk; free some and run again", 4
    if isinstance(error, OSError):
        return " ".join(str(error).split()), RuntimeFailure.exit_code
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what} (please report it with the traceback that --verbose shows)", 4


def _fail(message: str, code: int) -> int:
    print(f"onnxprune: error: {message}", file=sys.stderr)
    return code


def _prune(argv: Sequence[str]) -> int:
    args = _prune_parser().parse_args(argv)
    options = _options(args)
    _check_paths(args)

    from . import api, validate
    from .model import Model
    from .plan import Plan

    data = validate.load_data(args.validate) if args.validate else None
    plan = Plan.from_json(_read_json(args.plan)) if args.plan else None
    model = Model.load(args.IN)
    before = validate.top1(model, data, options.providers) if data else None
    with _progress(args.quiet) as progress:
        result = api.prune(model, options, plan=plan, progress=progress)
    report = result.report
    if data and before:
        after = validate.top1(result.model, data, options.providers)
        scores: dict[str, Any] = {"metric": "top-1", "before": before.top1, "after": after.top1}
        scores |= {"samples": after.samples, "providers": after.providers, "data": str(args.validate)}
        report = replace(report, validation=scores)
    result.model.save(args.OUT, external=True if args.save_as_external_data else None)
    if args.save_plan:
        _write_json(args.save_plan, result.plan.to_json())
    if args.report or not args.quiet:
        from .report import print_report, to_json

        if args.report:
            _write_json(args.report, to_json(report))
        if not args.quiet:
            console = _console()
            print_report(report, console, args.verbose)
            console.print(f"written: {args.OUT}", soft_wrap=True)
    return 0


def _inspect(argv: Sequence[str]) -> int:
    args = _inspect_parser().parse_args(argv)
    options = _options(args)

    from . import api
    from .report import print_inspection, to_json

    fields = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    inspection = api.inspect(args.IN, **fields)
    if args.json:
        print(json.dumps(to_json(inspection), indent=2))
    else:
        print_inspection(inspection, _console(), args.verbose)
    return 0


def _options(args: argparse.Namespace) -> Options:
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


def _check_paths(args: argparse.Namespace) -> None:
    """Refuses, before any work, to write where it cannot or over something that is read."""
    from .model import same_file

    inputs = [path for path in (args.IN, args.plan, args.validate) if path]
    for path in (args.OUT, args.report, args.save_plan):
        if not path:
            continue
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; give the name of a file to write")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist; make it first")
        if not os.access(path.parent, os.W_OK):
            raise UsageError(f"{path}: the folder {path.parent} is not writable")
        if any(same_file(path, other) for other in inputs):
            raise UsageError(f"{path}: would be read and written; give another name to write to")
        inputs.append(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; --plan takes a file made by --save-plan") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: not a plan; --plan takes a file made by --save-plan")
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _console() -> Console:
    """Names are shown as they are; a file or a pipe gets lines wide enough for them."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(markup=False, highlight=False, emoji=False, width=width)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:<10}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("load", total=1.0)
        yield lambda stage, share: bar.update(task, description=stage, completed=share)


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


def _prune_parser() -> _Parser:
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


def _inspect_parser() -> _Parser:
    parser = _parser("onnxprune inspect", "Show the groups of coupled units, and what is frozen with the reason.")
    parser.add_argument("--json", action="store_true", default=False, help="print JSON")
    _exclusion_flags(parser)
    _common_flags(parser)
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
