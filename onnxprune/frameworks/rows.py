"""Rows and elements of many parameters found by their values: for tensors that an exporter took apart or reordered.

Knows arrays, no graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.model import Array
from onnxprune.trace import Mask

PARTS = (1, 2, 3, 4, 6, 8)
"""Into so many equal pieces a vector may have been cut: query, key and value, the gates of both biases."""

Source = tuple[Array, Sequence[Mask]]
"""A parameter and, for every use of it, which of its elements stay."""


class RowIndex:
    """Knows every row and column of the matrices among `sources`, and the vectors."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = list(sources.values())
        self._known: dict[tuple[int, str], dict[bytes, list[Mask]]] = {}

    def rows(self, array: Array) -> Mask | None:
        """Which elements of a matrix (axes of size one aside) stay, where each of its rows, or each of its columns, is
        in some parameter; None where one is not, or where uses differ."""
        matrix = np.squeeze(array)
        if matrix.ndim != 2:
            return None
        for turned in (False, True):
            found = self._each(np.ascontiguousarray(matrix.T if turned else matrix))
            if found is not None:
                return (found.T if turned else found).reshape(array.shape)
        return None

    def _each(self, matrix: Array) -> Mask | None:
        """Which elements stay, where every row is known and stays alike wherever it is; None otherwise."""
        for kind in {a.dtype for a, _ in self.sources}:
            known = self._of_length(matrix.shape[1], kind)
            masks = [known.get(row.tobytes(), []) for row in matrix.astype(kind)]
            if all(len({m.tobytes() for m in found}) == 1 for found in masks):
                return np.stack([found[0] for found in masks])
        return None

    def _of_length(self, n: int, kind: np.dtype[np.generic]) -> dict[bytes, list[Mask]]:
        """By the bytes of each row (or column) of `n` elements, which of these stay in every use."""
        key = (n, kind.str + kind.name)
        if key not in self._known:
            known: dict[bytes, list[Mask]] = defaultdict(list)
            for array, masks in self.sources:
                matrix = np.squeeze(array)
                if array.dtype != kind or matrix.ndim < 2:
                    continue
                for mask in masks:
                    squeezed = mask.reshape(matrix.shape)
                    views = [(matrix, squeezed), (matrix.T, squeezed.T)] if matrix.ndim == 2 else [(matrix, squeezed)]
                    for values, stay in views:
                        if values.shape[-1] == n:
                            for row, kept in zip(values.reshape(-1, n), stay.reshape(-1, n), strict=True):
                                known[np.ascontiguousarray(row).tobytes()].append(kept)
            self._known[key] = dict(known)
        return self._known[key]


def elements(vector: Array, index: RowIndex) -> Mask | None:
    """Which elements of a vector stay, where it, or each of a few equal pieces of it, is inside one parameter, in any
    order; None where it is not, or where uses differ."""
    for parts in (p for p in PARTS if vector.size % p == 0 and vector.size // p >= 4):
        masks = [_inside(piece, index) for piece in vector.reshape(parts, -1)]
        if all(mask is not None for mask in masks):
            return np.concatenate([mask for mask in masks if mask is not None])
    return None


def _inside(piece: Array, index: RowIndex) -> Mask | None:
    """Which elements of a piece stay, where one parameter has them all; None where none has, or uses differ. Few
    distinct values are inside anything, so that most must be distinct."""
    if np.unique(piece).size <= piece.size // 2:
        return None
    found: Mask | None = None
    for array, masks in index.sources:
        if array.size < piece.size or np.squeeze(array).ndim > 2 or array.size > 64 * piece.size:
            continue
        values, order = np.unique(array.ravel(), return_inverse=True)
        at = np.searchsorted(values, piece.astype(array.dtype)).clip(max=values.size - 1)
        if not (values[at] == piece.astype(array.dtype)).all():
            continue
        for mask in masks:
            count, kept = (np.bincount(order.ravel(), w, values.size)[at] for w in (None, mask.ravel()))
            stay = kept > 0
            if (stay & (kept < count)).any() or (found is not None and not np.array_equal(found, stay)):
                return None
            found = stay
    return found
