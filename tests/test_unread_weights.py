"""What a rewriting no longer reads is not written: a runtime warns of weights that no node reads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import graph
from onnx import ModelProto

from onnxprune import prune
from onnxprune.model import every_node, needs

SHAPES = {
    "sizes of a Split": (
        "a, b = Split<axis = 1>(h, sizes) c = Mul(a, b) y = MatMul(c, w2)",
        {"w1": (6, 32), "sizes": np.array([16, 16]), "w2": (16, 3)},
    ),
    "the shape of a Reshape": (
        "r = Reshape(h, shape) t = Transpose<perm = [0, 2, 1]>(r) f = Reshape(t, flat) y = MatMul(f, w2)",
        {"w1": (6, 32), "shape": np.array([-1, 4, 8]), "flat": np.array([-1, 32]), "w2": (32, 3)},
    ),
    "what an Expand expands to": (
        "e = Expand(g, like) s = Add(h, e) y = MatMul(s, w2)",
        {"w1": (6, 32), "g": (1, 32), "like": np.array([1, 32]), "w2": (32, 3)},
    ),
}  # fmt: skip


def unread(model: ModelProto) -> set[str]:
    read = {name for node in every_node(model.graph) for name in needs(node)}
    return {t.name for t in model.graph.initializer} - read


@pytest.mark.parametrize("kind", SHAPES)
def test_every_weight_that_is_written_is_read(kind: str) -> None:
    body, weights = SHAPES[kind]
    model = graph("(float[N, 6] x) => (float[N, 3] y)", f"h = MatMul(x, w1) {body}", **weights)
    result = prune(model, ratio=0.5, fast=True)
    assert result.report.after.parameters < result.report.before.parameters
    assert unread(result.model.to_proto()) == set()


def test_what_is_listed_as_an_input_is_so_no_more() -> None:
    body, weights = SHAPES["sizes of a Split"]
    model = graph("(float[N, 6] x) => (float[N, 3] y)", f"h = MatMul(x, w1) {body}", **weights)
    for t in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    small = prune(model, ratio=0.5, fast=True).model.to_proto()
    assert {i.name for i in small.graph.input} <= {"x", *(t.name for t in small.graph.initializer)}
    assert unread(small) == set()


def test_what_the_original_never_read_stays() -> None:
    model = graph("(float[N, 6] x) => (float[N, 3] y)", "h = MatMul(x, w1) y = MatMul(h, w2)", w1=(6, 32), w2=(32, 3), more=(5,))
    assert unread(prune(model, ratio=0.5, fast=True).model.to_proto()) == {"more"}


def test_what_computed_sizes_that_an_edit_wrote_anew_goes() -> None:
    """As torch's exporter writes a view whose sizes are those of a tensor before it: they are known, if computed."""
    body = (
        "h = MatMul(x, w1) h1 = Relu(h) like = Shape<start = 1>(h1) sizes = Concat<axis = 0>(whatever, like) r = Reshape(h, sizes) "
        "y = MatMul(r, w2)"
    )
    model = graph("(float[N, 5, 6] x) => (float[N, 5, 3] y)", body, w1=(6, 16), whatever=np.array([-1]), w2=(16, 3))
    small = prune(model, ratio=0.5, fast=True).model.to_proto()
    assert [n.op_type for n in small.graph.node] == ["MatMul", "Reshape", "MatMul"]
    assert unread(small) == set()
