"""`script.py:function` as the user writes it. Knows a path and a name; nothing is run that the user did not name."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError


def function_of(path: str, name: str, hint: str) -> Callable[..., Any]:
    """The function of a script, which is run; what is wrong with it is a UsageError. `hint` ends the line where there
    is no such file."""
    if not Path(path).is_file():
        raise UsageError(f"{path} does not exist; {hint}")
    try:
        names = runpy.run_path(path)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from error
    if not callable(names.get(name)):
        raise UsageError(f"{path} has no function {name!r}")
    found: Callable[..., Any] = names[name]
    return found
