"""Files that take their places together, whole or not at all, whatever ends the process that writes them.

An ONNX model and its external data are two files, and no system renames two at once. So where a pair is written over,
a copy of the data gets a name of its own (`OUT.<tag>.data`), the model that reads it there takes the place of the old
one in one step, then the data takes the place of the old data and the model that reads that one its own. Whenever this
is ended, OUT is wholly the old model or wholly the new one, and its data is there. A second link in place of the copy
would be cheaper, but onnx refuses external data that has several.

Knows paths and bytes, no ONNX.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.errors import OnnxPruneError, RuntimeFailure, UsageError

if sys.platform != "win32":
    import fcntl

PATIENCE = 10.0
"""Seconds to wait for another run that is putting files into the same folder."""


def followed(path: Path) -> Path:
    """The file that is written where `path` is a link: the one that it leads to, so that the link stays. UsageError for
    a link to itself, and for one into /proc, as /dev/stdout is."""
    if not path.is_symlink():
        return path
    for place in (path, path.parent / os.readlink(path)):
        if Path(os.path.realpath(place.parent)).parts[:2] == ("/", "proc"):
            raise UsageError(f"{path} is not a regular file; give another name")
    try:
        found = path.resolve()
    except (OSError, RuntimeError):  # before Python 3.13
        found = path
    if found.is_symlink():
        raise UsageError(f"{path} is a link that leads to itself; give another name")
    return found


def check_outputs(outputs: Iterable[Path]) -> None:
    """Refuses, before any work, to write where it cannot (UsageError). That a folder can be written to shows only by
    doing so."""
    folders = set[Path]()
    for path in map(followed, outputs):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give the name of a file to write")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist; create it first")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a regular file; give another name")
        folders.add(path.parent)
    for folder in sorted(folders):
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # that is said of what is written
                raise UsageError(f"the folder {folder} is not writable ({error.strerror}); give another one") from None


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn what the disk says (OSError) into one line: a UsageError that a better path mends, else a RuntimeFailure."""
    try:
        yield
    except OnnxPruneError:
        raise
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RuntimeFailure(f"no space left to write {target}; free some, or write elsewhere") from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(f"{target} cannot be written ({e.strerror}); choose another folder") from e
        raise RuntimeFailure(f"{target} cannot be written ({e.strerror or e}); check the disk") from e


@contextmanager
def created(path: Path) -> Iterator[Callable[[bytes | memoryview], Any]]:
    """Write a file of `replacing`: gives the function that writes bytes; they are on the disk when the block ends."""
    with path.open("wb") as file:
        yield file.write
        file.flush()
        os.fsync(file.fileno())


@dataclass
class Files:
    """`temporary`: where to write each output. Of a pair, `bridge` is to be the model that reads its data at `tagged`.
    `removed`: what killed runs had left of these outputs, and is gone now. `spent`: what nobody needs in the end."""

    temporary: dict[Path, Path]
    bridge: Path
    tagged: Path
    removed: list[Path] = field(default_factory=list)
    spent: list[Path] = field(default_factory=list)


@contextmanager
def replacing(outputs: Sequence[Path], pair: bool = False) -> Iterator[Files]:
    """Temporary files beside `outputs` that take their places if the block succeeds; after an error everything is as it
    was. A link stays: what it leads to is replaced. With `pair` the last two outputs are external data and the model
    that reads it, and neither is a link."""
    given, outputs = outputs, [followed(o) for o in outputs]
    tag, target = uuid.uuid4().hex[:12], outputs[-1]
    temporary = {g: _hidden(o, tag, "tmp") for g, o in zip(given, outputs, strict=True)}
    files = Files(
        temporary, _hidden(target, uuid.uuid4().hex[:12], "tmp"), target.with_name(f"{target.name}.{tag}.data")
    )
    claimed = [*temporary.values(), *([files.bridge] if pair else ())]
    files.spent += claimed
    with ExitStack() as held:
        for _ in range(2):  # Ctrl-C may end the one
            held.callback(_unlink, files.spent)
        with _locked(outputs) as alone:
            if alone:
                files.removed += _swept(outputs, ("tmp", "old"))
            for path in claimed:
                _claim(path, held)
        yield files
        with _locked(outputs) as alone:
            _Placing(outputs, [*temporary.values()], files, tag, pair).run()
            _unlink(files.spent)
            if alone:
                files.removed += _swept(outputs, ("data",))


def _hidden(output: Path, tag: str, what: str) -> Path:
    return output.with_name(f".{output.name}.{tag}.{what}")


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # what is left over is no reason to fail, and is swept the next time
            path.unlink(missing_ok=True)


class _Placing:
    """Outputs on their way to their places, the last two of a `pair` data and the model that reads it. What was there
    is kept as `backups` until all of them are there. placed: names that may hold something new by now."""

    def __init__(self, outputs: Sequence[Path], made: Sequence[Path], files: Files, tag: str, pair: bool) -> None:
        self.outputs, self.files, self.target = outputs, files, outputs[-1]
        self.made = dict(zip(outputs, made, strict=True))
        self.data = outputs[-2] if pair else None
        self.backups = {o: _hidden(o, tag, "old") for o in outputs if os.path.lexists(o)}
        self.placed: list[Path] = []

    def run(self) -> None:
        """Put everything in its place; after an error everything is as it was."""
        try:
            for output in self.backups.keys() - {self.data}:
                _link(output, self.backups[output])
            if self.data is not None and {self.data, self.target} <= self.backups.keys():
                self._bridge(self.data)
            for output in self.outputs:
                self._put(output)
        except BaseException:
            for output in self.outputs:  # data before the model that reads it
                self._undo(output)
            self._spend()
            raise
        self._spend()

    def _spend(self) -> None:
        """The backups may go: not before everything new, or everything old, is in its place."""
        self.files.spent += [self.files.tagged, *self.backups.values()]

    def _bridge(self, data: Path) -> None:
        """The model of the new pair is in its place and reads a copy of its data, so that the old data can go."""
        shutil.copyfile(self.made[data], self.files.tagged)
        self.placed.append(self.target)
        os.replace(self.files.bridge, self.target)

    def _put(self, output: Path) -> None:
        if output == self.data and output in self.backups:
            # nobody reads it now, and had it a second link onnx would refuse to read it
            os.replace(output, self.backups[output])
        self.placed.append(output)
        os.replace(self.made[output], output)

    def _undo(self, output: Path) -> None:
        """What was there, if anything was, is there again."""
        backup = self.backups.get(output)
        if backup is not None and (output == self.data or output in self.placed):
            if backup.exists() and not _same(output, backup):
                os.replace(backup, output)
        elif output in self.placed:
            output.unlink(missing_ok=True)


def _same(a: Path, b: Path) -> bool:
    """Two names of one file, or of one link: nothing has been put there yet."""
    return os.path.lexists(a) and os.path.samestat(a.lstat(), b.lstat())


def _link(source: Path, name: Path) -> None:
    """A second name for the same file; a copy where the disk knows no links."""
    try:
        os.link(source, name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.copy2(source, name, follow_symlinks=False)


def _claim(path: Path, held: ExitStack) -> None:
    """A new file, locked as long as `held` is: the system lets go of it when the process ends, however it does."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    if sys.platform == "win32":
        os.close(file)  # what is open cannot be renamed there
    else:
        held.callback(os.close, file)
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _locked(outputs: Sequence[Path]) -> Iterator[bool]:
    """Nobody else puts files into these folders meanwhile; False where that could not be had (a disk without locks, a
    lock that somebody keeps)."""
    if sys.platform == "win32":
        yield False
        return
    with ExitStack() as held:
        alone, deadline = True, time.monotonic() + PATIENCE
        for folder in sorted({o.parent.resolve() for o in outputs}):
            try:
                file = os.open(folder, os.O_RDONLY)
                held.callback(os.close, file)
                while not _taken(file) and time.monotonic() < deadline:
                    time.sleep(0.02)
                alone &= _taken(file)
            except OSError:
                alone = False
        yield alone


def _taken(file: int) -> bool:
    """Whether this process has the lock of an open file now."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _swept(outputs: Sequence[Path], kinds: Sequence[str]) -> list[Path]:
    """Removes what runs that were killed have left of `outputs`; a temporary file that is locked has a live writer."""
    removed = []
    for output in outputs:
        names = re.compile(rf"\.?{re.escape(output.name)}\.[0-9a-f]{{12}}\.({'|'.join(kinds)})")
        for path in sorted(p for p in output.parent.iterdir() if names.fullmatch(p.name)):
            if path.name.startswith(".") != path.name.endswith(".data"):
                with suppress(OSError):
                    if not path.name.endswith(".tmp") or _ownerless(path):
                        path.unlink()
                        removed.append(path)
    return removed


def _ownerless(path: Path) -> bool:
    """Whether the process that wrote a temporary file has ended: the system has let go of its lock."""
    file = os.open(path, os.O_RDWR)
    try:
        return _taken(file)
    finally:
        os.close(file)
