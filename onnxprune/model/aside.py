"""Arrays put aside in a file while others are worked on, so that memory holds a few of many at a time.

The file has no name that anybody could find: the system takes its space back when nobody can read it any more, however
the process ends. Reading is by copies, not by a map, whose pages would count as memory. Knows arrays and a folder, no
ONNX.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LEAST = 1 << 16
"""Arrays of fewer bytes stay in memory."""
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def aside_in(folder: Path) -> Iterator[None]:
    """What is put aside inside goes to `folder`, else to that for temporary files, which may be kept in memory."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def _place() -> Path:
    return _folder.get() or Path(tempfile.gettempdir())


def space_aside() -> tuple[Path, int]:
    """The folder that arrays are put aside in, and the bytes that are free there."""
    return _place(), shutil.disk_usage(_place()).free


@dataclass(frozen=True)
class Put:
    """An array that is in a file."""

    aside: Aside
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def load(self) -> Array:
        """A copy of the array, read-only."""
        array = np.empty(self.shape, self.dtype)
        self.aside.read(self.offset, array)
        array.flags.writeable = False
        return array

    def release(self) -> None:
        """What was loaded goes with its last user."""


@dataclass(frozen=True)
class Held:
    """An array in memory, for who can take either."""

    array: Array

    def load(self) -> Array:
        """The array itself."""
        return self.array

    def release(self) -> None:
        """It stays."""


class Aside:
    """Arrays in a file of their own, which ends with the last that may read one. OSError where the disk is full."""

    def __init__(self) -> None:
        self.folder = _place()
        self._lock = Lock()
        self._file: IO[bytes] | None = None
        self._end = 0

    def put(self, array: Array) -> Put | Held:
        """The array, to be had back at any time and from any thread."""
        if array.nbytes < LEAST:
            return Held(array)
        with self._lock:
            here = Put(self, self._end, array.dtype, array.shape)
            self._end += array.nbytes
            self._moved(here.offset, np.ascontiguousarray(array), "write")
        return here

    def read(self, offset: int, array: Array) -> None:
        """Fill a contiguous `array` with what stands at `offset`."""
        with self._lock:
            self._moved(offset, array, "readinto")

    def _moved(self, offset: int, array: Array, way: str) -> None:
        """All bytes of an array from or to the file, of which a system moves a part at a time."""
        data = array.reshape(-1).view(np.uint8).data
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0, dir=self.folder)  # noqa: SIM115 (it lives on)
            self._file.seek(offset)
            done = 0
            while done < len(data):
                moved = getattr(self._file, way)(data[done:])
                if not moved:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                done += moved
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder)) from None
