"""Block OBS: its errors, against least squares on the columns that are left (methods: joint = one by one = refitted)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxprune.fit import Site
from onnxprune.model import Held
from onnxprune.planning.obs import DAMP, Elimination, eliminate

Array = NDArray[Any]


def site(units: list[list[int]], taps: int = 1, outputs: int = 4, rows: int = 200, seed: int = 0) -> Site:
    """A site of random, correlated inputs; `units` [groups, channels]."""
    random = np.random.default_rng(seed)
    groups, columns = len(units), len(units[0]) * taps
    grams = []
    for _ in range(groups):
        x = random.standard_normal((rows, columns)) @ random.standard_normal((columns, columns))
        grams.append(x.T @ x / rows)
    gram, matrix = np.stack(grams), random.standard_normal((groups, columns, outputs))
    energy = float(np.einsum("gko,gkl,glo->", matrix, gram, matrix))
    return Site((), np.array(units), Held(gram), np.zeros((groups, columns)), Held(matrix), True, energy)


def lost(s: Site, gone: set[int]) -> float:
    """The least (W - V)' H (W - V) over all V that have no weights for what is gone, H damped as the scores are: by
    least squares on a root of H, with the kept columns only."""
    total = 0.0
    for g in range(len(s.units)):
        gram = s.gram[g] + DAMP * np.trace(s.gram[g]) / len(s.gram[g]) * np.eye(len(s.gram[g]))
        root = np.linalg.cholesky(gram).T
        kept = ~np.isin(np.repeat(s.units[g], len(gram) // s.units.shape[1]), list(gone))
        target = root @ s.matrix[g]
        found = np.linalg.lstsq(root[:, kept], target, rcond=None)[0] if kept.any() else np.zeros((0, target.shape[1]))
        total += float(np.square(target - root[:, kept] @ found).sum())
    return total / s.energy


def everything(n: int) -> NDArray[np.bool_]:
    return np.ones(n, bool)


LAYOUTS = {
    "columns": site([[0, 1, 2, 3, 4, 5]]),
    "kernels": site([[3, 1, 0, 2]], taps=9),
    "a unit twice": site([[0, 1, 2, 1, 3, 0, 4]], taps=2),
    "groups": site([[0, 1], [2, 3], [4, 5]], taps=4),
    "a unit in all groups": site([[0, 1, 2], [0, 1, 2]], taps=2),
    "more outputs than columns": site([[0, 1, 2, 3]], outputs=9),
}


@pytest.mark.parametrize("s", LAYOUTS.values(), ids=LAYOUTS)
def test_jointly_one_by_one_and_refitted_are_the_same(s: Site) -> None:
    n = int(s.units.max()) + 1
    for gone in ([0], [n - 1, 0], list(range(n - 1)), list(range(n - 2, -1, -1))):
        together = [Elimination(s, g, everything(n)) for g in range(len(s.units))]
        apart = [Elimination(s, g, everything(n)) for g in range(len(s.units))]
        for part in together:
            part.remove(gone)
        for u in gone:
            for part in apart:
                part.remove([u])
        expected = lost(s, set(gone))
        assert sum(p.error for p in together) == pytest.approx(expected, rel=2e-10)
        assert sum(p.error for p in apart) == pytest.approx(expected, rel=2e-9)
        for a, b in zip(together, apart, strict=True):
            np.testing.assert_allclose(a.matrix, b.matrix, atol=1e-8)


@pytest.mark.parametrize("s", LAYOUTS.values(), ids=LAYOUTS)
def test_scores_are_what_each_unit_would_cost_next(s: Site) -> None:
    n = int(s.units.max()) + 1
    parts = [Elimination(s, g, everything(n)) for g in range(len(s.units))]
    for gone in (set[int](), {1}, {1, 2}):
        for part in parts:
            part.remove([u for u in gone if u in part.columns])
        left = [u for u in range(n) if u not in gone]
        found = sum(part.scores(left) for part in parts)
        np.testing.assert_allclose(found, [lost(s, gone | {u}) - lost(s, gone) for u in left], rtol=1e-7, atol=1e-12)


def test_removing_everything_costs_everything() -> None:
    s = LAYOUTS["kernels"]
    part = Elimination(s, 0, everything(4))
    part.remove([2, 0, 3, 1])
    damped = s.gram[0] + DAMP * np.trace(s.gram[0]) / len(s.gram[0]) * np.eye(len(s.gram[0]))
    assert part.error == pytest.approx(np.einsum("ko,kl,lo->", s.matrix[0], damped, s.matrix[0]) / s.energy)
    assert not part.matrix.any()


@given(st.integers(0, 10_000), st.permutations(range(6)), st.integers(1, 5))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_final_error_does_not_depend_on_the_order(seed: int, order: list[int], many: int) -> None:
    s = site([[0, 1, 2, 3, 4, 5, 5, 2]], taps=2, seed=seed)
    part = Elimination(s, 0, everything(6))
    for u in order[:many]:
        part.remove([u])
    assert part.error == pytest.approx(lost(s, set(order[:many])), rel=1e-8)


def test_only_members_are_removed() -> None:
    s = LAYOUTS["columns"]
    members = everything(6)
    members[[1, 4]] = False
    part = Elimination(s, 0, members)
    assert set(part.columns) == {0, 2, 3, 5}
    np.testing.assert_array_equal(part.scores([1, 4]), 0)
    part.remove([1, 4])
    assert part.error == 0


CURVES = {
    "one bucket": ([[0, 1, 2, 3, 4, 5, 6, 7]], [site([list(range(8))], taps=3)]),
    "two buckets, one site": ([[0, 1, 2, 3], [4, 5, 6, 7]], [site([list(range(8))], taps=2)]),
    "two sites": ([[0, 1, 2, 3, 4, 5]], [site([[0, 1, 2, 3, 4, 5]]), site([[5, 4, 3, 2, 1, 0]], taps=4, seed=1)]),
    "two groups of one site": ([[0, 1, 2, 3], [4, 5, 6, 7]], [site([[0, 1, 2, 3], [4, 5, 6, 7]], taps=2)]),
}


@pytest.mark.parametrize(("buckets", "sites"), CURVES.values(), ids=CURVES)
def test_a_curve_is_the_least_squares_error_of_what_is_gone(buckets: list[list[int]], sites: list[Site]) -> None:
    n, levels = sum(map(len, buckets)), len(buckets[0])
    scores, curve = eliminate(buckets, levels, levels - 1, sites, np.ones(n))
    assert sorted(scores) == list(range(n))
    assert curve[0] == 0
    assert (np.diff(curve[:levels]) >= 0).all()
    assert np.isinf(curve[levels:]).all()
    for level in range(1, levels):
        gone = {u for u, s in scores.items() if s <= level}
        assert [len(gone & set(b)) for b in buckets] == [level * len(b) // levels for b in buckets]
        assert curve[level] == pytest.approx(sum(lost(s, gone) for s in sites), rel=1e-7)
    first = {u: sum(lost(s, {u}) for s in sites) for u in buckets[0]}
    assert scores[min(first, key=first.__getitem__)] == 1.0
    for b in buckets:
        assert len({scores[u] for u in b}) == len(b)  # who stays has an order, too


def test_the_greedy_order_beats_most_others() -> None:
    s = site([list(range(8))], taps=2, seed=3)
    _, curve = eliminate([list(range(8))], 8, 4, [s], np.ones(8))
    random = np.random.default_rng(0)
    others = [lost(s, set(random.permutation(8)[:4].tolist())) for _ in range(40)]
    assert curve[4] <= np.quantile(others, 0.1)


def test_given_scores_decide_the_order_and_the_error_is_measured() -> None:
    s = site([list(range(6))])
    given_scores = np.array([3.0, 0, 5, 1, 4, 2])
    scores, curve = eliminate([list(range(6))], 6, 5, [s], np.ones(6), given_scores)
    assert sorted(scores, key=scores.__getitem__) == [1, 3, 5, 0, 4, 2]
    for level, gone in ((1, {1}), (3, {1, 3, 5}), (5, {0, 1, 3, 4, 5})):
        assert curve[level] == pytest.approx(lost(s, gone), rel=1e-8)


def test_units_that_no_site_sums_over_are_ranked_by_their_weights() -> None:
    importance = np.array([0.3, 0.1, 0.4, 0.2])
    scores, curve = eliminate([[0, 1, 2, 3]], 4, 3, [], importance)
    assert sorted(scores, key=scores.__getitem__) == [1, 3, 0, 2]
    np.testing.assert_allclose(curve, [0, 0.1, 0.3, 0.6, np.inf])


def test_levels_coarser_and_finer_than_units() -> None:
    s = site([list(range(6))])
    for levels in (3, 4, 64):
        scores, curve = eliminate([list(range(6))], levels, levels // 2, [s], np.ones(6))
        for level in range(levels // 2 + 1):
            gone = {u for u, x in scores.items() if x <= level}
            assert len(gone) == level * 6 // levels
            assert curve[level] == pytest.approx(lost(s, gone), rel=1e-7, abs=1e-12)


def test_inputs_that_are_always_zero_cost_nothing() -> None:
    s = site([[0, 1, 2, 3]])
    s.gram[:, 1] = s.gram[:, :, 1] = 0
    scores, curve = eliminate([[0, 1, 2, 3]], 4, 3, [s], np.ones(4))
    assert np.isfinite(curve[:4]).all()
    assert scores[1] == 1.0


@pytest.mark.parametrize("s", LAYOUTS.values(), ids=LAYOUTS)
def test_moments_in_float32_cost_no_accuracy(s: Site) -> None:
    """What they lose is far below the damping: the order of the units is the same, and so are the errors."""
    rough = replace(s, moments=Held(s.gram.astype(np.float32)))
    n = int(s.units.max()) + 1
    curves = [eliminate([list(range(n))], n, n - 1, [x], np.ones(n)) for x in (s, rough)]
    assert curves[0][0] == curves[1][0]
    np.testing.assert_allclose(curves[0][1][:n], curves[1][1][:n], rtol=1e-5, atol=1e-9)
