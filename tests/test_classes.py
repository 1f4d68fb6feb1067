"""Which things are one: the same classes as scipy's components, in the same order."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.trace import joined


@pytest.mark.parametrize("pairs", [0, 1, 30, 200, 1000])
def test_classes_are_components_numbered_by_their_first_things(pairs: int) -> None:
    n, rng = 500, np.random.default_rng(pairs)
    a, b = rng.integers(0, n, (2, pairs))
    there = coo_array((np.ones(pairs), (a, b)), shape=(n, n))
    assert (joined(n, a, b) == connected_components(there, directed=False)[1]).all()


@pytest.mark.parametrize("turn", [1, -1])
def test_a_chain_is_one(turn: int) -> None:
    chain = np.arange(1000)[::turn]
    assert not joined(1000, chain[:-1], chain[1:]).any()


def test_a_comb_is_one() -> None:
    teeth = np.arange(0, 1000, 2)
    a, b = np.concatenate([teeth, teeth[:-1] + 1]), np.concatenate([teeth + 1, teeth[1:]])
    assert not joined(1000, a[::-1], b[::-1]).any()
