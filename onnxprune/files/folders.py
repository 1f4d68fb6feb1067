"""A folder that takes its place whole or not at all, whatever ends the process that fills it. Knows paths, nothing of
models."""

from __future__ import annotations

import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnxprune.errors import UsageError
from onnxprune.files.atomic import disk_errors

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
"""A file in a folder that is being filled, which its process has locked."""


def check_new_folder(target: Path) -> None:
    """Refuses (UsageError), before any work, a folder that holds something, or that cannot be made."""
    if target.is_dir():
        if any(target.iterdir()):
            raise UsageError(f"{target} is a folder that is not empty; remove it, or give the name of a new one")
    elif os.path.lexists(target):
        raise UsageError(f"{target} is a file; give the name of a new folder")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: the folder {target.parent} does not exist; create it first")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place if the block succeeds; after an error nothing is left.
    What killed runs had left beside it is removed."""
    check_new_folder(target)
    temporary = target.absolute().with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    with disk_errors(target):
        _sweep(temporary.parent, target.name)
        temporary.mkdir()
        try:
            with _owned(temporary / LOCK):
                yield temporary
                if target.is_dir():
                    target.rmdir()
                temporary.rename(target)
            (target / LOCK).unlink(missing_ok=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def _owned(path: Path) -> Iterator[None]:
    """A new file, locked meanwhile: the system lets go of it when the process ends, however it does."""
    if sys.platform == "win32":
        yield
        return
    with path.open("wb") as file:
        with suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _sweep(parent: Path, name: str) -> None:
    """Removes folders of this name that were being filled by processes that have ended."""
    if sys.platform == "win32":
        return
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{12}}\.tmp")
    for path in [p for p in parent.iterdir() if pattern.fullmatch(p.name) and p.is_dir()]:
        with suppress(OSError), (path / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError where somebody fills it
            shutil.rmtree(path, ignore_errors=True)
