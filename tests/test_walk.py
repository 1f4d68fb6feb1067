"""A walk through a graph: what it holds, and for how long."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.fit import Walk
from onnxprune.model import Model
from onnxprune.shapes import infer
from tests.graphs import graph

WIDTH = 4
NET = """a = MatMul(x, w0) n = Shape(a) m = Gather(n, i) b = Relu(a) c = MatMul(b, w1) s = Shape(c)
t = ConstantOfShape(s) y = Add(c, t)"""


def walk() -> Walk:
    """Nobody reads `m`, a size that once was asked for; `s` leads to the output."""
    weights = {"w0": (WIDTH, WIDTH), "w1": (WIDTH, WIDTH), "i": np.array(0)}
    model = Model.load(graph(f"(float[N, {WIDTH}] x) => (float[N, {WIDTH}] y)", NET, **weights))
    return Walk(model, [{"x": np.ones((2, WIDTH), np.float32)}], infer(model).dtype)


@pytest.mark.parametrize(
    ("asked", "left"), [("a", {"a"}), ("b", {"b"}), ("c", {"c"}), ("y", set())], ids=["a", "b", "c", "y"]
)
def test_a_node_that_leads_to_no_output_is_not_waited_for(asked: str, left: set[str]) -> None:
    found = walk()
    found.value(asked)
    found.release()
    assert found.values.keys() - {"x"} == left


def test_what_leads_to_no_output_is_there_for_whoever_asks() -> None:
    found = walk()
    expected = found.value("y")[0]
    found.release()
    assert found.value("m")[0] == 2
    np.testing.assert_array_equal(found.value("y")[0], expected)
