"""One module for each job of the command line: `parser()` says what it takes, `run(argv)` does it and returns the exit
code.

They know flags and what is printed, not how the work is done.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

COMMANDS = ("apply-plan", "compare", "finetune", "help", "inspect", "prune", "sweep", "verify")
"""The first word of a command line; without one of these words the job is `prune`."""


def job(name: str) -> Any:
    """The module of a command, which is imported no sooner: the help of one needs no other."""
    return import_module(f"{__name__}.{name.replace('-', '_')}")
