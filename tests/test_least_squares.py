"""Least squares with a ridge, a clip and a judge, against NumPy's and SciPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

from onnxprune.fit import Problem, Solution, factors, solve
from onnxprune.fit.least_squares import RIDGES, _lowest
from onnxprune.fit.normal import CHUNK, Moments, Normal

Array = NDArray[Any]
TINY = 1e-9


def problem(
    seed: int = 0,
    rows: int = 400,
    columns: int = 7,
    outputs: int = 3,
    noise: float = 0.1,
    affine: bool = False,
    **more: Any,
) -> tuple[Problem, Array, Array]:
    """Noisy targets of a teacher, which comes with it (weights and bias), behind a scale and an offset if asked for."""
    random = np.random.default_rng(seed)
    x = (random.standard_normal((rows, columns)) @ random.standard_normal((columns, columns)) + 2).astype(np.float32)
    matrix, bias = random.standard_normal((columns, outputs)), random.standard_normal(outputs)
    scale = random.uniform(0.5, 2, outputs) * random.choice([-1, 1], outputs) if affine else np.ones(outputs)
    offset = random.standard_normal((rows, outputs)) if affine else np.zeros(outputs)
    wanted = scale * (x @ matrix + bias) + offset + noise * random.standard_normal((rows, outputs))
    return Problem(x, wanted.astype(np.float32), scale, offset, **more), matrix, bias


def reference(p: Problem, bias: Array) -> tuple[Array, Array]:
    """Plain least squares for the layer's own output, by NumPy, on all rows."""
    own = (p.wanted - p.offset) / p.scale
    x = p.rows.astype(np.float64)
    if not p.intercept:
        return np.linalg.lstsq(x, own - bias, rcond=None)[0], bias
    found = np.linalg.lstsq(np.c_[x, np.ones(len(x))], own, rcond=None)[0]
    return found[:-1], found[-1]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
def test_without_a_ridge_it_is_plain_least_squares(intercept: bool, affine: bool) -> None:
    p, matrix, bias = problem(intercept=intercept, affine=affine)
    found = solve(p, np.zeros_like(matrix), bias, 80, [TINY])
    expected = reference(p, bias)
    np.testing.assert_allclose(found.matrix, expected[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.bias, expected[1], rtol=1e-3, atol=1e-3)
    assert found.error < found.before


@pytest.mark.parametrize("intercept", [True, False])
def test_a_ridge_minimises_what_it_says(intercept: bool) -> None:
    """|T - A W - 1 b|^2 + lam |W - W0|^2, lam = ridge * mean of the diagonal of the centred A'A, by a general solver."""
    p, matrix, bias = problem(1, rows=60, columns=3, outputs=2, intercept=intercept)
    start, ridge = matrix[::-1].copy(), 0.3
    x, t = p.rows.astype(np.float64), p.wanted.astype(np.float64)
    lam = ridge * np.square(x - x.mean(0)).sum() / 3

    def loss(flat: Array) -> float:
        w, b = flat[:6].reshape(3, 2), flat[6:] if intercept else bias
        return float(np.square(t - x @ w - b).sum() + lam * np.square(w - start).sum())

    best = minimize(loss, np.r_[start.ravel(), bias] if intercept else start.ravel(), tol=1e-12).x
    found = solve(p, start, bias, 10, [ridge])
    assert found.ridge == ridge
    np.testing.assert_allclose(found.matrix, best[:6].reshape(3, 2), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.bias, best[6:] if intercept else bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("clip", [{}, {"low": 0.0}, {"low": -1.0, "high": 2.0}])
def test_a_linear_teacher_is_found(intercept: bool, clip: dict[str, float]) -> None:
    p, matrix, bias = problem(2, rows=900, noise=0.0, affine=True, intercept=intercept, **clip)
    start = matrix + np.random.default_rng(0).standard_normal(matrix.shape)
    found = solve(p, start, bias if not intercept else bias + 1, 200, [1e-6, 1e-3])
    assert found.error <= 1e-8 * found.before
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-3)
    np.testing.assert_allclose(found.bias, bias, atol=3e-3)


def test_what_stands_already_stays() -> None:
    p, matrix, bias = problem(3, noise=0.0, affine=True)
    exact = Problem(p.rows, p.predicted(matrix, bias), p.scale, p.offset, 0.0)
    found = solve(exact, matrix, bias, 80)
    assert found.matrix is matrix
    assert found.bias is bias
    assert found.before == found.error == 0


def test_a_fit_that_does_not_carry_over_is_refused() -> None:
    """Few rows, many unknowns, targets of nothing but noise on the rows that are fitted: the old weights win."""
    p, matrix, bias = problem(4, rows=60, columns=20, noise=0.0)
    wanted = p.wanted.copy()
    wanted[:40] += 50 * np.random.default_rng(0).standard_normal((40, 3))
    noisy = Problem(p.rows, wanted, p.scale, p.offset)
    found = solve(noisy, matrix, bias, 20, [1e-6])
    assert found.matrix is matrix
    assert (found.ridge, found.error) == (np.inf, found.before)


def test_the_ridge_is_chosen_on_the_rows_that_are_held() -> None:
    p, matrix, bias = problem(5, rows=60, columns=30, noise=1.0)
    start = matrix + 0.3
    errors = [solve(p, start, bias, 20, [ridge]).error for ridge in (1e-6, 1e-2, 1.0)]
    found = solve(p, start, bias, 20, [1e-6, 1e-2, 1.0])
    assert found.error == min(errors)
    assert found.error == errors[(1e-6, 1e-2, 1.0).index(found.ridge)]
    assert len(set(errors)) == 3


@given(st.integers(0, 10_000), st.sampled_from([(0.0, np.inf), (-0.5, 1.0), (-np.inf, 0.5), (0.0, 6.0)]), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_clip_is_never_worse_than_none(seed: int, clip: tuple[float, float], intercept: bool) -> None:
    """On the held rows, by the error that is seen after the clip; and solving for the clip gains where it should."""
    low, high = clip
    p, matrix, bias = problem(seed, rows=200, columns=5, noise=0.5, intercept=intercept, low=low, high=high)
    start = matrix + np.random.default_rng(seed).standard_normal(matrix.shape)
    found = solve(p, start, bias, 50)
    test, fit = p.part(slice(150, None)), p.part(slice(0, 150))
    assert found.error <= found.before
    if np.isfinite(found.ridge):
        free = Problem(fit.rows, fit.wanted, p.scale, p.offset, intercept=intercept)
        plain = solve(free, start, bias, 1, [found.ridge])
        assert found.error <= test.error(plain.matrix, plain.bias) * (1 + 1e-3) + 1e-6


@pytest.mark.parametrize("sign", [1, -1])
def test_solving_for_the_clip_gains(sign: int) -> None:
    """Beyond the clip the targets are those of another teacher, which must not count."""
    p, matrix, bias = problem(6, rows=2000, noise=0.0)
    wanted = np.where(sign * p.wanted > 0, p.wanted, 3 * p.wanted)
    low, high = (0.0, np.inf) if sign > 0 else (-np.inf, 0.0)
    start = np.zeros_like(matrix)
    plain = solve(Problem(p.rows, wanted, p.scale, p.offset), start, bias, 400)
    clipped = Problem(p.rows, wanted, p.scale, p.offset, low, high)
    test = clipped.part(slice(1600, None))
    assert solve(clipped, start, bias, 400).error < 0.8 * test.error(plain.matrix, plain.bias)


def test_a_channel_that_is_switched_off_keeps_its_weights() -> None:
    p, matrix, bias = problem(7, noise=0.1)
    dead = Problem(p.rows, p.wanted, np.array([1.0, 0.0, 1.0]), p.offset)
    start = matrix + 1
    found = solve(dead, start, bias, 80, [1e-6])
    np.testing.assert_allclose(found.matrix[:, 1], start[:, 1], atol=1e-3)
    np.testing.assert_allclose(found.bias[1], bias[1], atol=1e-2)
    assert np.abs(found.matrix[:, 0] - matrix[:, 0]).max() < 0.1


def test_columns_that_were_never_seen_keep_their_weights() -> None:
    p, matrix, bias = problem(8, noise=0.1)
    x = p.rows.copy()
    x[:, 2] = 0
    x[:, 4] = x[:, 3]
    start = matrix + 1
    found = solve(Problem(x, p.wanted, p.scale, p.offset), start, bias, 80)
    assert np.isfinite(found.matrix).all()
    np.testing.assert_allclose(found.matrix[2], start[2], atol=1e-6)
    np.testing.assert_allclose(found.matrix[4] - found.matrix[3], start[4] - start[3], atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_hardly_any_rows(rows: int) -> None:
    p, matrix, bias = problem(9, rows=rows)
    found = solve(p, matrix + 1, bias, 1)
    assert np.isfinite(found.matrix).all()
    assert found.error <= found.before


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["rows", "wanted"])
def test_values_that_are_no_numbers_leave_the_weights_alone(where: str, bad: float) -> None:
    p, matrix, bias = problem(10)
    getattr(p, where)[5, 1] = bad
    with np.errstate(invalid="ignore"):
        found = solve(p, matrix + 1, bias, 80)
    assert np.isfinite(found.matrix).all()
    assert np.isfinite(found.bias).all()


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("intercept", [True, False])
def test_moments_in_parts_are_those_of_the_whole(kind: type, intercept: bool) -> None:
    random = np.random.default_rng(11)
    rows = (random.standard_normal((CHUNK + 700, 5)) * 8 + 30).astype(kind)
    targets = (rows @ random.standard_normal((5, 2)) - 100).astype(np.float32)
    first = Moments.of(rows[:900], targets[:900])
    first.add(rows[900:], targets[900:])
    x, t = rows.astype(np.float64), targets.astype(np.float64)
    np.testing.assert_allclose(first.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(first.target_mean, t.mean(0), rtol=1e-5)
    a, b = (x - x.mean(0), t - t.mean(0)) if intercept else (x, t)
    gram, cross = first.centred() if intercept else first.raw()
    np.testing.assert_allclose(gram, a.T @ a, rtol=1e-4, atol=1e-4 * np.abs(gram).max())
    np.testing.assert_allclose(cross, a.T @ b, rtol=1e-4, atol=1e-4 * np.abs(cross).max())
    other = targets[:, ::-1] * 3 + 7
    c = other - other.mean(0) if intercept else other
    found, mean = Normal(first, intercept).crossed(rows, other)
    np.testing.assert_allclose(found, a.T @ c, rtol=1e-4, atol=1e-4 * np.abs(found).max())
    np.testing.assert_allclose(mean, other.mean(0), rtol=1e-4)


@pytest.mark.parametrize("lowest", range(7))
def test_ridges_are_followed_downhill(lowest: int) -> None:
    """The best of all where the error falls on one side of it and grows on the other, from half of them on average."""
    tried: list[float] = []

    def at(ridge: float) -> Solution:
        tried.append(ridge)
        error = 1.0 + abs(RIDGES.index(ridge) - lowest)
        return Solution(np.zeros((1, 1)), np.zeros(1), ridge, error, 9.0)

    assert _lowest(at, RIDGES).ridge == RIDGES[lowest]
    assert len(tried) == len(set(tried)) <= 6
    tried.clear()
    assert _lowest(at, RIDGES[-1:]).ridge == np.inf
    assert _lowest(at, RIDGES[:1]).ridge == RIDGES[0]


@pytest.mark.parametrize(("size", "sides"), [(1, 1), (7, 3), (40, 9)])
def test_factors_by_blocks_solve(size: int, sides: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "BLOCK", 7)
    monkeypatch.setattr(factors, "SIDES", 4)
    random = np.random.default_rng(3)
    half, wanted = random.standard_normal((size, size)), random.standard_normal((size, sides))
    matrix = half @ half.T + np.eye(size)
    found = factors.Factor.of(matrix.copy()).solve(wanted)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, wanted), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [0, 20])
def test_what_is_not_positive_definite_has_no_factor(bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "BLOCK", 7)
    matrix = np.eye(30)
    matrix[bad, bad] = -1
    with pytest.raises(np.linalg.LinAlgError):
        factors.Factor.of(matrix)


def test_the_factor_of_the_best_ridge_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a worse one was tried after it."""
    made: list[int] = []
    of = factors.Factor.of
    monkeypatch.setattr("onnxprune.fit.normal.Factor.of", lambda matrix: made.append(1) or of(matrix))
    random = np.random.default_rng(2)
    normal = Normal(Moments.of(random.standard_normal((90, 6)), random.standard_normal((90, 2))), True)
    start = np.zeros((6, 2))
    first = normal.solve(start, 0.1)[0]
    for worse in (1.0, 10.0):
        normal.keep(0.1)
        normal.solve(start, worse)
    assert np.array_equal(normal.solve(start, 0.1)[0], first)
    assert (len(made), set(normal.factors)) == (3, {0.1, 10.0})
