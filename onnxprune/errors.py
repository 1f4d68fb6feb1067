"""Errors a caller can act on: one line that says what is wrong and how to mend it, and the exit code of the CLI.

Knows nothing else of the package.
"""

from __future__ import annotations

import errno
import re

FLAG = re.compile(
    r"(?<![\w-])--(?!save-plan|verbose|report|graph|config)([a-z][a-z-]*)(?: (?=['\d-])('[^']*'|-?[\d.]+(?!\w)))?"
)
"""A flag that has a keyword beside it in Python, with a value where one follows."""
KEYWORDS = {
    "fast": "fast=True", "residual": "residual='all'", "no-residual": "residual='none'", "no-heads": "heads=False",
    "overwrite-input-shape": "input_shapes", "force-plan": "force_plan=True", "refitted": "refitted=True",
}  # fmt: skip
"""What flags are in Python that are not simply the keyword of their name."""


def in_python(text: str) -> str:
    """A message that names flags, for whoever has typed keywords: `--calib-samples 0` is `calib_samples=0`."""

    def keyword(found: re.Match[str]) -> str:
        name = KEYWORDS.get(found[1], found[1].replace("-", "_"))
        return f"{name}={found[2]}" if found[2] else name

    return FLAG.sub(keyword, text)


PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of the system that another path mends."""
INTERRUPTED = 130
"""Exit code of what Ctrl-C ended."""


class OnnxPruneError(Exception):
    """Base of every error raised on purpose; ``message`` is one line, ``exit_code`` is what the CLI returns.

    The message names flags, as the command line has them; as text the error names keywords, as Python has them."""

    exit_code: int = 1

    def __init__(self, message: object = "") -> None:
        self.message: str = " ".join(str(message).split())
        super().__init__(self.message)

    def __str__(self) -> str:
        return in_python(self.message)


class UsageError(OnnxPruneError):
    """A bad input, flag or file: nothing was written."""

    exit_code = 2


class CheckFailed(OnnxPruneError):
    """A proof or a gate failed: the result must not be trusted, so it is not handed out."""

    exit_code = 1


class NothingToPrune(OnnxPruneError):
    """The model has nothing that may be removed under the given options."""

    exit_code = 3


class RuntimeFailure(OnnxPruneError):
    """The machine failed: the runtime, a provider, memory or the disk."""

    exit_code = 4


class RuleFailed(RuntimeWarning):
    """The rule of an operator failed at a node, and all that meets the node stays: nothing is wrong, less is pruned.

    Tests make an error of it."""


def explain(error: Exception) -> tuple[str, int]:
    """One line and the exit code."""
    if isinstance(error, OnnxPruneError):
        return error.message, error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or use a machine with more", RuntimeFailure.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'output'}: no space left on the disk; free some and run again", 4
    if isinstance(error, OSError) and error.errno in PATHS and error.filename:
        return f"{error.filename}: {error.strerror}; give another path", UsageError.exit_code
    if isinstance(error, OSError):
        return " ".join(str(error).split()), RuntimeFailure.exit_code
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what} (please report it with the traceback that --verbose shows)", 4
