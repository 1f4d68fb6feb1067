"""Memory that Python freed, given back to the system, and how often Python looks for what it can free.

The C library keeps it: each thread has a heap of its own there, and where what lies behind an array is still held, the
gap that it leaves stays. In a refit of ResNet-50 that was as much as all that was held. Knows the C library, no arrays.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

M_ARENA_MAX = -8
"""Of glibc's malloc.h: how many heaps there are at most."""
M_MMAP_THRESHOLD = -3
"""From how many bytes on a block has pages of its own, which go when it does. Left alone it follows the largest block
that was freed, up to 32 MB: batches of activations then lie in the heap, and what is copied of them one after the other
is held twice until all are gone."""
LARGE = 4 << 20
"""So many here: pages that are given anew cost little beside what is done with an array of this size."""
M_TRIM_THRESHOLD = -1
"""How much may be free at the end of the heap, which otherwise goes whenever it is 128 kB once a size is said above."""
SPARE = 64 << 20
"""So much here."""
MUCH = 256 << 20
"""Bytes that are free in the heaps, from which on they are given back: what is wanted again has to be given anew."""


class _Counts(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")),
        *((name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


def one_for_all() -> None:
    """Let all threads of this process have one heap, for blocks that are not large: for a process that does nothing
    else. Only glibc has several."""
    with suppress(OSError, AttributeError, TypeError):
        for what, number in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, SPARE)):
            ctypes.CDLL(None).mallopt(what, number)


def give_back() -> None:
    """Give back what is free, where that is much, and where the C library knows how."""
    libc = _glibc()
    if libc is not None and libc.mallinfo2().fordblks > MUCH:
        libc.malloc_trim(0)


_put_off = False


def put_off() -> None:
    """No cycles are looked for until the first job begins (see `settled`): modules hold a hundred thousand objects when
    they are imported, and free none. For a process that does nothing else."""
    global _put_off
    _put_off = gc.isenabled()
    gc.disable()


@contextmanager
def settled() -> Iterator[None]:
    """While a job lasts, cycles are looked for among what it makes, not again and again in what was there before. Where
    somebody has frozen that already, or a job around this one, it is left to them."""
    global _put_off
    if _put_off:
        _put_off = False
        gc.enable()
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@cache
def _glibc() -> Any:
    """The C library; None where it is another one, or older than 2.33."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Counts
        return libc if libc.malloc_trim else None
    except (OSError, AttributeError, TypeError):
        return None
