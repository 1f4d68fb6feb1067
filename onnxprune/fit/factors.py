"""Cholesky factors of large matrices, in blocks that threads share: the same bits however many there are.

Knows arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxprune.steady import each

Array = NDArray[np.float64]
BLOCK = 1024
"""Rows and columns that one thread works on at a time. What is added up in which order does not hang on how many
threads there are."""
SIDES = 128
"""Right-hand sides that one thread solves for at a time."""


def starts(count: int, size: int) -> list[slice]:
    """So many columns in blocks."""
    return [slice(k, min(k + size, count)) for k in range(0, count, size)]


@dataclass(frozen=True)
class Factor:
    """The lower Cholesky factor of a symmetric matrix; what stands above its diagonal says nothing."""

    lower: Array

    @classmethod
    def of(cls, matrix: Array) -> Factor:
        """Of a positive definite matrix [n, n], whose place it takes; LinAlgError where it is none."""
        blocks = starts(len(matrix), BLOCK)
        for k, at in enumerate(blocks):
            own, failed = scipy.linalg.lapack.dpotrf(matrix[at, at].T, lower=0, overwrite_a=1, clean=0)
            if failed:
                raise np.linalg.LinAlgError("the matrix is not positive definite")
            if len(blocks) > 1:  # else it is in its place
                matrix[at, at] = own.T
            below = blocks[k + 1 :]

            def solve(row: slice, at: slice = at, own: Array = own) -> None:
                matrix[row, at] = scipy.linalg.blas.dtrsm(1.0, own, matrix[row, at].T, lower=0, trans_a=1).T

            def take(pair: tuple[slice, slice], at: slice = at) -> None:
                row, column = pair
                matrix[row, column] -= matrix[row, at] @ matrix[column, at].T

            each(solve, below)
            each(take, [(row, column) for i, row in enumerate(below) for column in below[: i + 1]])
        return cls(matrix)

    def solve(self, sides: Array) -> Array:
        """What the matrix times it gives `sides` [n, k]."""
        found = np.empty(sides.shape)

        def some(at: slice) -> None:
            found[:, at] = scipy.linalg.lapack.dpotrs(self.lower.T, sides[:, at], lower=0)[0]

        each(some, starts(sides.shape[1], SIDES))
        return found


def inverse(gram: Array) -> Array:
    """Of a positive definite matrix, whose place it takes; half the work of one that knows nothing of it."""
    factor, failed = scipy.linalg.lapack.dpotrf(gram.T, lower=1, overwrite_a=1, clean=0)
    made, singular = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed or singular:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    for at in starts(len(made), BLOCK):
        inside = made[at, at]
        inside[:] = np.tril(inside) + np.tril(inside, -1).T
        made[at, at.stop :] = made[at.stop :, at].T
    return np.asarray(made.T, np.float64)
