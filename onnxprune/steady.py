"""Arithmetic that gives the same bits with any number of threads, so that the same call always makes the same file.

A BLAS adds up in another order with another number of threads, and two of them wait for each other longer than they
work on the matrices of most layers. While a plan is made and weights are fitted it has one, and what can go on side by
side does so in threads of our own, whose results are put together in order. (The kernels of ONNX Runtime share out
outputs, not sums.) Knows threads and the libraries of numpy and scipy, no model.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache
from operator import length_hint
from typing import TypeVar

import numpy as np
import scipy.linalg

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 4
"""Threads of our own, at most: each holds the matrices that it works on."""
_BUSY: ContextVar[bool] = ContextVar("busy", default=False)
"""Whether this is one of those threads."""
NAMES = [f"{prefix}openblas_{{}}_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")]
"""How builds of OpenBLAS name what says and sets the number of threads."""


def threads() -> int:
    """What OMP_NUM_THREADS asks for (numpy heeds it, joblib sets it for its processes); 0: one for every core. One of
    several threads of ours has itself alone."""
    if _BUSY.get():
        return 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if asked.isdigit() else 0


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def steady() -> Iterator[None]:
    """Within it no matrix product depends on how many threads there are. A BLAS that is no OpenBLAS stays as it is."""
    libraries = _libraries()
    before = [get() for get, _ in libraries]
    for _, put in libraries:
        put(1)
    try:
        yield
    finally:
        for (_, put), count in zip(libraries, before, strict=True):
            put(count)


def each(function: Callable[[Item], Result], items: Iterable[Item], most: int = MOST) -> list[Result]:
    """`function` of every item, in order. Several, at most so many, are worked on at a time and must not depend on each
    other; what `items` does to give the next one is done here, one after the other. What is going on here (see
    `progress.now`) goes on in each of them. What one of several starts itself goes on one by one."""
    return list(in_turn(function, items, most))


def in_turn(function: Callable[[Item], Result], items: Iterable[Item], most: int = MOST) -> Iterator[Result]:
    """As `each`, one result after the other, so that few of them are held: for sums."""
    count = min(threads() or cores(), most, length_hint(items, most))
    if count < 2:
        yield from map(function, items)
        return
    contexts = copy_context()
    contexts.run(_BUSY.set, True)

    def work(item: Item) -> Result:
        return contexts.copy().run(function, item)

    going = deque[Future[Result]]()
    with steady(), ThreadPoolExecutor(count) as pool:  # threads of a BLAS beside ours wait for each other
        for item in items:
            going.append(pool.submit(work, item))
            if len(going) > count:  # one waits, for whoever is ready first
                yield going.popleft().result()
        while going:
            yield going.popleft().result()


@contextmanager
def alongside() -> Iterator[Callable[[Callable[[], Result]], Callable[[], Result]]]:
    """Gives what begins some work in one thread beside this one, piece after piece, and gives what waits for the result
    of a piece. Where there is but one thread to be had, the work is done at once."""
    if (threads() or cores()) < 2:
        yield _at_once
        return
    with ThreadPoolExecutor(1) as pool:
        yield lambda work: pool.submit(copy_context().run, work).result


def _at_once(work: Callable[[], Result]) -> Callable[[], Result]:
    made = work()
    return lambda: made


@cache
def _libraries() -> list[tuple[Callable[[], int], Callable[[int], None]]]:
    """Of every OpenBLAS that numpy and scipy have loaded, what says and what sets its number of threads."""
    found = []
    for module in (np.linalg._umath_linalg, scipy.linalg.lapack._flapack):  # type: ignore[attr-defined]
        try:
            library = ctypes.CDLL(module.__file__)  # which finds the names of what it is linked with, too
        except OSError:
            continue
        for name in NAMES:
            get, put = (getattr(library, name.format(verb), None) for verb in ("get", "set"))
            if get and put:
                found.append((get, put))
    return found
