"""The table of operators' traits: every name is an operator's, and what excludes each other does."""

from __future__ import annotations

from collections.abc import Set
from itertools import combinations

import onnx.defs
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from onnxprune.model import traits
from onnxprune.shapes import values

TRAITS: dict[str, Set[str]] = {
    name: frozenset(op.removeprefix("com.microsoft::") for op in trait) for name, trait in vars(traits).items() if name.isupper() and not name.startswith("_")
}
KNOWN = {s.name for s in onnx.defs.get_all_schemas_with_history()} | {
    s.name for s in get_all_operator_schema() if s.domain == "com.microsoft"
}
APART = ("MOVING", "ARITHMETIC", "COMPARING", "LOGICAL", "POOLS", "SATURATING", "GATES", "CONTROL", "JUMPING", "SAMPLING",
         "DRAWING", "ROUNDING", "ROUNDING_INSIDE", "INTEGER_BIASED", "SIZES")  # fmt: skip
"""What an operator is one of at most."""


@pytest.mark.parametrize("name", TRAITS)
def test_every_name_is_an_operator(name: str) -> None:
    assert TRAITS[name]
    assert TRAITS[name] <= KNOWN


@pytest.mark.parametrize(("one", "two"), list(combinations(APART, 2)))
def test_what_excludes_each_other(one: str, two: str) -> None:
    assert TRAITS[one].isdisjoint(TRAITS[two])


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("SAME_ORDER", "REARRANGING"), ("REARRANGING", "MOVING"), ("SAME_ORDER", "HOMOGENEOUS"),
        ("SOFTMAXES", "SATURATING"), ("SAMPLING", "CONFIGURED"), ("ADDING", "BROADCASTING"),
        ("ARITHMETIC", "BROADCASTING"), ("COMPARING", "BROADCASTING"), ("DRAWING_LIKE", "DRAWING"),
    ],
)  # fmt: skip
def test_what_is_part_of_another(part: str, whole: str) -> None:
    assert TRAITS[part] < TRAITS[whole]


@pytest.mark.parametrize("name", ["SATURATING", "JUMPING", "SAMPLING", "COMPARING", "LOGICAL", "GATES", "DRAWING"])
def test_what_is_no_straight_line_is_not_homogeneous(name: str) -> None:
    assert TRAITS[name].isdisjoint(TRAITS["HOMOGENEOUS"])


def test_what_moves_values_moves_those_of_shapes() -> None:
    assert values.MOVEMENT.keys() == traits.MOVING
