"""Arguments -> API, errors -> exit codes. Heavy modules are imported where they are used, so that --help is quick."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from .errors import OnnxPruneError, RuntimeFailure

COMMANDS = ("apply-plan", "inspect")
"""Modules of `commands` by the first word; without one of these words the job is `prune`."""
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names of nodes may be in letters that the terminal lacks
    try:
        name, rest = (args[0], args[1:]) if args[:1] and args[0] in COMMANDS else ("prune", args)
        code: int = import_module(f"onnxprune.commands.{name.replace('-', '_')}").run(rest)
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
