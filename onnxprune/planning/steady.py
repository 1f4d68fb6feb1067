"""Arithmetic that gives the same bits with any number of threads, so that the same call always makes the same file.

A BLAS adds up in another order with another number of threads, and two of them wait for each other longer than they
work on the matrices of most layers. While a plan is made and weights are fitted it has one, and what can go on side by
side does so in threads of our own, whose results are put together in order. (The kernels of ONNX Runtime share out
outputs, not sums.) Knows threads and the libraries of numpy and scipy, no model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from typing import TypeVar

import numpy as np
import scipy.linalg

from onnxprune.measure import cores
from onnxprune.run import threads

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 4
"""Threads of our own, at most: each holds the matrices that it works on."""
NAMES = [f"{prefix}openblas_{{}}_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")]
"""How builds of OpenBLAS name what says and sets the number of threads."""


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
    other. What is going on here (see `progress.now`) goes on in each of them."""
    contexts = copy_context()

    def work(item: Item) -> Result:
        return contexts.copy().run(function, item)

    with ThreadPoolExecutor(min(threads() or cores(), most)) as pool:
        return list(pool.map(work, items))


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
