"""Sizes as expressions: what they come to is what numbers come to, and equal forms are equal for all sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.shapes import Dim, Size, mod, quotient, symbols
from onnxprune.shapes.quotients import ceil_div, floor_div, trunc_div
from onnxprune.shapes.symbols import evaluated, symbol

A, B = symbol("a"), symbol("b")
SIZES = [{"a": a, "b": b} for a in (1, 2, 3, 8, 13) for b in (1, 4, 7)]
BOTH: dict[str, tuple[Callable[[Any, Any], Any], Callable[[int, int], int]]] = {
    "+": (lambda p, q: p + q, lambda p, q: p + q),
    "-": (lambda p, q: p - q, lambda p, q: p - q),
    "*": (lambda p, q: p * q, lambda p, q: p * q),
    "floor": (floor_div, lambda p, q: p // q),
    "ceil": (ceil_div, lambda p, q: -(-p // q)),
    "trunc": (trunc_div, lambda p, q: abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)),
    "mod": (mod, lambda p, q: p % q),
    "min": (symbols.minimum, min),
    "max": (symbols.maximum, max),
}
TREES = st.recursive(
    st.sampled_from(["a", "b", -3, -1, 0, 1, 2, 3, 7, 64]),
    lambda inner: st.tuples(st.sampled_from([*BOTH]), inner, inner),
    max_leaves=7,
)


def expression(tree: Any) -> Dim:
    if isinstance(tree, tuple):
        return BOTH[tree[0]][0](expression(tree[1]), expression(tree[2]))
    return symbol(tree) if isinstance(tree, str) else tree


def number(tree: Any, sizes: dict[str, int]) -> int:
    if isinstance(tree, tuple):
        return BOTH[tree[0]][1](number(tree[1], sizes), number(tree[2], sizes))
    return sizes[tree] if isinstance(tree, str) else tree


@settings(max_examples=400, deadline=None)
@given(TREES)
def test_an_expression_comes_to_what_numbers_come_to(tree: Any) -> None:
    try:
        found = expression(tree)
    except ArithmeticError:  # divided by zero, or too long
        return
    for sizes in SIZES:
        try:
            expected = number(tree, sizes)
        except ZeroDivisionError:
            continue
        assert evaluated(found, sizes) == expected, (found, sizes)
        assert symbols.lower(found) <= expected


@settings(max_examples=200, deadline=None)
@given(TREES, TREES)
def test_a_quotient_times_its_divisor_is_what_was_divided(one: Any, two: Any) -> None:
    try:
        p, q = expression(one), expression(two)
        whole = p * q
    except ArithmeticError:
        return
    if q != 0:
        assert quotient(whole, q) in (p, None)  # None: the order of terms did not show it
    found = quotient(p, q)
    if found is not None:
        assert found * q == p


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (floor_div(A * 64 * B, A), 64 * B),
        (floor_div(floor_div(A - 1, 2), 2), floor_div(A - 1, 4)),
        (floor_div(A - 1, 2) + 1, ceil_div(A, 2)),
        (floor_div(A + mod(-A, 7), 7) * 7, A + mod(-A, 7)),  # padded to windows of seven, and cut into them
        (symbols.minimum(A, A + 1), A),
        (symbols.maximum(A - 1, 0), A - 1),
        (floor_div(6 * A + 4, 4), floor_div(3 * A + 2, 2)),
        (A * B - B * A, 0),
    ],
)
def test_equal_sizes_are_written_the_same(one: Dim, two: Dim) -> None:
    assert one == two


@pytest.mark.parametrize("x", [symbols.minimum(A, 8), floor_div(9 * A, B), symbols.maximum(A - 2, 0), A * B - A])
def test_what_is_not_one_number_for_all_sizes_is_none(x: Dim) -> None:
    assert isinstance(x, Size)


def test_names_that_look_like_expressions_are_symbols_of_their_own() -> None:
    assert symbol("2*a") != 2 * A
    assert symbol("unknown('x', 0)") != symbols.unknown("x", 0)


def test_what_grows_without_end_is_lost() -> None:
    def grown() -> Dim:
        x: Dim = A
        for _ in range(100):
            x = symbols.minimum(x * B, B * 3) + symbols.maximum(x, 5)
        return x

    with pytest.raises(symbols.Lost):
        grown()


def test_a_size_that_data_decides_equals_itself_only() -> None:
    one, two = symbols.unknown("x", 0), symbols.unknown("x", 1)
    assert one == symbols.unknown("x", 0) != two
    assert one - one == 0
    assert quotient(12 * one, one) == 12
    assert evaluated(one + 1, {}) is None
