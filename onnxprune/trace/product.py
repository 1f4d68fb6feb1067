"""Two blocks that meet on one axis: what is inside every head, and which heads there are. Knows arrays only."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Set
from itertools import takewhile
from math import prod

from onnxprune.trace.labels import Ids, Labels, Reason
from onnxprune.trace.operands import Lettered


def common_front(a: Sequence[object], b: Sequence[object]) -> int:
    """How many axes two blocks have in common, from the outermost one on."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def product(labels: Labels, key: Hashable, rows: Ids, columns: Ids, shared: int, why: Reason) -> Ids:
    """Ids [shared axes, own axes of `rows`, own axes of `columns`], born as `key`: each position goes with its row or
    with its column, and with nothing else. `shared`: axes in front that both have (the groups of grouped queries)."""
    outer, inner = rows.shape[shared:], columns.shape[shared:]
    ids = labels.fresh(key, (*rows.shape[:shared], *outer, *inner))
    m, n = prod(outer), prod(inner)
    for table, row, column in zip(ids.reshape(-1, m, n), rows.reshape(-1, m), columns.reshape(-1, n), strict=True):
        labels.couple(labels.derive(table), row, why)
        labels.couple(labels.column_ids(table, why, loose=True), column, why)
    return ids


def beside(block: Lettered, taken: Set[int], axis: Mapping[str, int]) -> bool:
    """Whether rows of a block are on axes that others take, and what is inside is not (an outer product inside rows):
    whole columns go. axis: of every letter."""
    return len(block.letters) == 2 and axis[block.letters[0]] in taken and axis[block.letters[1]] not in taken
