"""Weights that are stored as integers: which ones, so that what they make is nearest to what real ones would.

The rows of a matrix are rounded in turn, and what rounding one does to the outputs the later ones make up for (GPTQ:
Frantar et al. 2022, arXiv 2210.17323). Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.fit.expressions import Grid

Array = NDArray[np.float64]
DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it."""
BLOCK = 128
"""Rows after which all later ones are told."""
Nearest = Callable[[int, Array], Array]
"""Of row k [O] the nearest one that can be stored."""


def rounded(matrix: Array, grid: Grid, gram: Array) -> Array:
    """`matrix` [K, O] on a grid of the same size, by the second moments [K, K] of what is multiplied with it: each row
    rounded by itself, or with feedback, whichever changes the outputs less."""

    def by_row(k: int, row: Array) -> Array:
        return Grid(grid.step[k], grid.low[k], grid.high[k]).nearest(row)

    alone = grid.nearest(matrix)
    loaded = damped(gram)
    try:
        fed = fed_back(matrix, feedback(loaded), lambda _, __: by_row)
    except (np.linalg.LinAlgError, ValueError):
        return alone
    return min((alone, fed), key=lambda found: float(np.sum((found - matrix) * (loaded @ (found - matrix)))))


def damped(gram: Array) -> Array:
    """Second moments [K, K] with a share of their mean diagonal added to it, so that they have an inverse."""
    return np.asarray(gram + (DAMPING * np.trace(gram) / max(len(gram), 1) + 1e-30) * np.eye(len(gram)))


def feedback(loaded: Array) -> Array:
    """The upper Cholesky factor [K, K] of the inverse of damped second moments: row k says how later columns make up
    for column k. LinAlgError or ValueError where there is none."""
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(loaded, lower=True), np.eye(len(loaded)))
    return np.asarray(scipy.linalg.cholesky(inverse, lower=False))


def fed_back(matrix: Array, factor: Array, reached: Callable[[slice, Array], Nearest], block: int = BLOCK) -> Array:
    """`matrix` [K, O] rounded row by row, where later rows make up for what earlier ones lose, as `factor` [K, K]
    says (see `feedback`). reached: gives what rounds the rows of a block, once for each: it is told which rows these
    are, and what they are by then, [rows, O]."""
    left, out = matrix.astype(np.float64), np.empty(matrix.shape)
    for start in range(0, len(matrix), block):
        end = min(start + block, len(matrix))
        nearest = reached(slice(start, end), left[start:end])
        errors = np.empty((end - start, matrix.shape[1]))
        for k in range(start, end):
            out[k] = nearest(k, left[k])
            errors[k - start] = (left[k] - out[k]) / factor[k, k]
            left[k + 1 : end] -= np.outer(factor[k, k + 1 : end], errors[k - start])
        left[end:] -= factor[start:end, end:].T @ errors
    return out
