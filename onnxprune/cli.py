"""Arguments -> API, errors -> exit codes. Heavy modules are imported where they are used, so that --help is quick."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import flags
from .errors import OnnxPruneError, RuntimeFailure, UsageError
from .options import Options, Progress

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names of nodes may be in letters that the terminal lacks
    try:
        code = _inspect(args[1:]) if args[:1] == ["inspect"] else _prune(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
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
    args = flags.prune_parser().parse_args(argv)
    options = flags.options(args)
    outputs = [path for path in (args.OUT, args.report, args.save_plan) if path]
    _check_outputs(outputs)
    outputs.append(args.OUT.with_name(f"{args.OUT.name}.data"))
    _check_distinct([path for path in (args.IN, args.plan, args.validate) if path], outputs)

    from . import api, validate
    from .model import Model
    from .plan import Plan

    data = validate.load_data(args.validate) if args.validate else None
    plan = Plan.from_json(_read_json(args.plan)) if args.plan else None
    before = validate.top1(Model.load(args.IN), data, options.providers) if data else None
    with _progress(args.quiet) as progress:
        result = api.prune(args.IN, options, plan=plan, progress=progress)
    _check_distinct(result.model.data_files, outputs)
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
    args = flags.inspect_parser().parse_args(argv)
    options = flags.options(args)

    from . import api
    from .report import print_inspection, to_json

    fields = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    inspection = api.inspect(args.IN, **fields)
    if args.json:
        print(json.dumps(to_json(inspection), indent=2))
    else:
        print_inspection(inspection, _console(), args.verbose)
    return 0


def _check_outputs(outputs: Sequence[Path]) -> None:
    """Refuses, before any work, to write where it cannot."""
    for path in outputs:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give the name of a file to write")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist; create it first")
        if not os.access(path.parent, os.W_OK):
            raise UsageError(f"{path}: the folder {path.parent} is not writable; give another one")


def _check_distinct(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Refuses to write over what is read, or twice to one file."""
    from .model import same_file

    for i, path in enumerate(outputs):
        if any(same_file(path, other) for other in inputs):
            raise UsageError(f"{path} would be both read and written; give another name to write to")
        if any(same_file(path, other) for other in outputs[:i]):
            raise UsageError(f"{path} would be written twice; give every output its own name")


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
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:<11}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("load", total=1.0)
        now = "load"

        def show(stage: str, share: float) -> None:
            """Every stage is a bar of its own, so that what is left of it can be estimated."""
            nonlocal now
            if stage != now:
                now = stage
                bar.reset(task, total=1.0, description=stage)
            bar.update(task, description=stage, completed=share)

        yield show
