"""What is seen of a command: tables on stdout, and on stderr how far it is, as a bar or as lines.

Knows rich and the names of the stages.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from onnxprune.cli import logs
from onnxprune.options import Progress
from onnxprune.progress import Stages, telling

if TYPE_CHECKING:
    from rich.console import Console

PERIOD = 600.0
"""Seconds by which it is estimated what is left of a stage: steps of a search may take a minute each."""


def console() -> Console:
    """Names are shown as they are; a file or a pipe gets lines wide enough for them. BrokenPipeError where nobody reads
    them any more."""
    from rich.console import Console

    class Shown(Console):
        def on_broken_pipe(self) -> None:
            """Rich would end the process with exit code 1, which says here that a gate failed."""
            raise BrokenPipeError

    width = None if sys.stdout.isatty() else 160
    return Shown(markup=False, highlight=False, emoji=False, width=width)


def print_json(document: Mapping[str, Any]) -> None:
    """A result for machines, on stdout."""
    print(json.dumps(document, indent=2))


@contextmanager
def work(args: argparse.Namespace) -> Iterator[Stages]:
    """The stages of a command, and the log at the level that the flags ask for. Without a terminal a stage is a line
    when it has ended; on one it is a bar, and a line as well where --log-level asks for it. What anybody prints
    meanwhile, a script of the user's or a library, is no result and goes to stderr."""
    asked = args.log_level or ("error" if args.quiet else logs.DEFAULT)
    bar = asked in ("debug", "info") and logs.LINES.form == "text" and _can_show_a_bar()
    logs.set_level(logs.LEVELS["warning" if bar and not args.log_level else asked])
    with ExitStack() as stack:
        stack.enter_context(_stdout_apart())
        show = stack.enter_context(_bar()) if bar else None
        logs.LINES.stages = stages = stack.enter_context(telling(show))
        stages("load")
        yield stages


def _can_show_a_bar() -> bool:
    """Whether stderr is a terminal on which the cursor can be moved."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


@contextmanager
def _stdout_apart() -> Iterator[None]:
    """What is written to stdout while it is open goes to stderr, by native code, too."""
    sys.stdout.flush()
    kept = _file_apart()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).fflush(None)  # C has a buffer of its own
            os.dup2(kept, 1)
            os.close(kept)


def _file_apart() -> int | None:
    """A copy of the file that is stdout, whose place that of stderr takes; None where sys.stdout is something else."""
    try:
        if sys.stdout.fileno() != 1:
            return None
        kept = os.dup(1)
        os.dup2(2, 1)
    except (OSError, AttributeError):  # captured, or closed
        return None
    return kept


@contextmanager
def _bar() -> Iterator[Progress]:
    """A bar of the present stage while it is open, with what is left of it where that is known."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    said = TextColumn("{task.description:<11.34}")  # which leaves room for the rest in 80 columns
    columns = (said, BarColumn(22), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=PERIOD) as bar:
        task, now = bar.add_task("load", total=None), "load"
        (shown,) = bar.tasks

        def show(stage: str, share: float) -> None:
            """Every stage is a bar of its own, so that what is left of it can be estimated; what is said of it after a
            colon changes on the way."""
            nonlocal now
            name = stage.partition(":")[0]
            if name != now:
                now = name
                shown.total = None
                bar.reset(task, description=stage)
            shown.total = 1.0 if share else None
            bar.update(task, description=stage, completed=share)

        yield show
