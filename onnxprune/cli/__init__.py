"""Arguments -> API, errors -> exit codes. Heavy modules are imported where they are used, so that --help is quick.

Knows no stage and no model.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence

from onnxprune.cli import logs
from onnxprune.cli.commands import COMMANDS, job
from onnxprune.errors import INTERRUPTED, RuleFailed, UsageError, explain
from onnxprune.guard import supervised
from onnxprune.options import near


def command() -> int:
    """The command line in a process of its own (see `guard`); returns the exit code."""
    _open_streams()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of helpers and workers, which would write between the lines
    return supervised(main, logs.last_words)


def _open_streams() -> None:
    """What the caller has closed goes nowhere; the next file that is opened would take its place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names of nodes may be in letters that the terminal lacks
    with logs.shown(args):
        if "--verbose" not in args:
            warnings.simplefilter("ignore", RuleFailed)  # the table of what is frozen says it
        return _done(args)


def _done(args: list[str]) -> int:
    """The exit code of the job that the arguments ask for."""
    try:
        name, rest = _command(args)
        code: int = job(name).run(rest)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `onnxprune inspect IN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if _interrupted(error):
            return _fail("interrupted", INTERRUPTED)
        return _fail(*explain(error), error if "--verbose" in args else None)


def _command(args: list[str]) -> tuple[str, list[str]]:
    """The command and what it gets: the first word, or one that flags stand before. UsageError where the first word is
    neither a file nor a flag, but much like a command."""
    for at, word in enumerate(args):
        if word in COMMANDS and (at == 0 or not (os.path.exists(word) or _takes_value(args[at - 1]))):
            return word, args[:at] + args[at + 1 :]
        if at == 0 and not word.startswith("-"):
            meant = "" if os.path.exists(word) else near(word, COMMANDS)
            if meant:
                raise UsageError(f"there is no file and no command '{word}'{meant}")
            break
        if word == "--" or word.endswith(".onnx"):
            break
    return "prune", args


def _takes_value(word: str) -> bool:
    """Whether a word is a flag that the next one belongs to."""
    action = job("prune").parser()._option_string_actions.get(word)
    return action is not None and action.nargs != 0


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: a module that is interrupted while it is imported raises an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    logs.error(message, error)
    return code
