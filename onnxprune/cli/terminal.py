"""What the terminal shows while a command runs. Knows rich and the names of the stages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onnxprune.options import Progress

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Names are shown as they are; a file or a pipe gets lines wide enough for them."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(markup=False, highlight=False, emoji=False, width=width)


@contextmanager
def progress(quiet: bool) -> Iterator[Progress | None]:
    """A bar of the stages while it is open; None where there is no terminal to show it."""
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
            """Every stage is a bar of its own, so that what is left of it can be estimated; what is said of it after a
            colon changes on the way."""
            nonlocal now
            name = stage.partition(":")[0]
            if name != now:
                now = name
                bar.reset(task, total=1.0, description=stage)
            bar.update(task, description=stage, completed=share)

        yield show
