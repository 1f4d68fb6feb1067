"""What a command says on stderr: the records of the log, one a line, as text or as JSON.

Knows logging and the flags about it; no stage and no model.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, TextIO

from onnxprune import guard
from onnxprune.progress import Stages

LEVELS = {name: logging.getLevelName(name.upper()) for name in ("debug", "info", "warning", "error")}
DEFAULT = "info"
"""What is said where neither --log-level nor -q is given."""
FORMATS = ("text", "json")
PREFIXES = {logging.INFO: "", logging.DEBUG: "debug: "}
"""Before a line of text, by its level; others bear the name of the command."""


class Lines(logging.Handler):
    """Writes every record to the stderr of the moment. stages: of the command at work, which say where it happened."""

    def __init__(self) -> None:
        super().__init__()
        self.form = "text"
        self.stages: Stages | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """One line; a stderr that nobody reads any more stops nothing."""
        try:
            line = self.format(record)
        except Exception:  # a record of somebody else's whose arguments do not fit its message
            return self.handleError(record)
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)

    def format(self, record: logging.LogRecord) -> str:
        """The record as text, below its traceback where it has one, or as an object of JSON."""
        flags = getattr(record, "flags", "") if _is_ours(record) else ""
        message = " ".join((flags or record.getMessage()).split())
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        level = record.levelname.lower()
        if self.form == "text":
            return f"{trace}\n" * bool(trace) + PREFIXES.get(record.levelno, f"onnxprune: {level}: ") + message
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"), "level": level,
            **self._where(record), "message": message,
        }  # fmt: skip
        return json.dumps(told | {"traceback": trace} if trace else told)

    def _where(self, record: logging.LogRecord) -> dict[str, Any]:
        """The stage, its seconds and the share of it that is done: the record's own, or when the record was made."""
        at: Any = record if _is_ours(record) and hasattr(record, "stage") else self.stages
        if at is None or not at.stage:
            return {"stage": None, "seconds": None, "share": None}
        return {"stage": at.stage, "seconds": round(at.seconds, 3), "share": round(at.share, 4)}


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == "onnxprune"


LINES = Lines()
"""The handler of the command line, which has one stderr."""


class Form(argparse.Action):
    """--log-format, which holds for errors about the arguments behind it, too."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Take the form at once."""
        setattr(namespace, self.dest, values)
        _write_as(values)


def flags(parser: argparse._ActionsContainer, result: str = "the report") -> None:
    """What is said, and where: the result on stdout, all else on stderr."""
    parser.add_argument("--json", action="store_true", default=False, help=f"print {result} as JSON, and nothing else")
    parser.add_argument(
        "-q", "--quiet", action="store_true", default=False, help="print errors only, and with --json the JSON"
    )
    parser.add_argument(
        "--log-level",
        choices=tuple(LEVELS),
        default=None,
        help="what is told on stderr while it works (default info, which a terminal shows as a bar; error with -q)",
    )
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        action=Form,
        default="text",
        help="lines on stderr as text (default), or each an object of JSON",
    )


def _write_as(form: str) -> None:
    LINES.form = form
    guard.complain_as(form)


@contextmanager
def shown(argv: Sequence[str]) -> Iterator[None]:
    """While it is open records are written, in the form that the arguments ask for; errors only, until `set_level`."""
    _write_as("json" if "--log-format=json" in argv or ("--log-format", "json") in pairwise(argv) else "text")
    everybody, ours = logging.getLogger(), logging.getLogger("onnxprune")
    levels = everybody.level, ours.level
    with warnings.catch_warnings():
        warnings.showwarning = _warned
        everybody.addHandler(LINES)
        set_level(logging.ERROR)
        try:
            yield
        finally:
            LINES.stages = None
            everybody.removeHandler(LINES)
            everybody.setLevel(levels[0])
            ours.setLevel(levels[1])


def _warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: TextIO | None = None, line: str | None = None,
) -> None:  # fmt: skip
    """What `logging.captureWarnings` does, in one line."""
    logging.getLogger("py.warnings").warning("%s: %s (%s:%d)", category.__name__, message, filename, lineno)


def set_level(level: int) -> None:
    """Show our records of this level and above; those of others, such as numpy's warnings, from WARNING on."""
    logging.getLogger("onnxprune").setLevel(level)
    logging.getLogger().setLevel(max(level, logging.WARNING))


def error(message: str, trace: BaseException | None = None) -> None:
    """The line of an error, whatever level is shown and whatever somebody has done to the loggers."""
    LINES.emit(_record(message, trace))


def last_words(message: str, form: str) -> None:
    """The same by the process that guards the command, once that has ended: in the form that it had asked for."""
    LINES.form = form or "text"
    error(message)


def _record(message: str, trace: BaseException | None) -> logging.LogRecord:
    raised = None if trace is None else (type(trace), trace, trace.__traceback__)
    return logging.LogRecord("onnxprune", logging.ERROR, "", 0, message, None, raised)
