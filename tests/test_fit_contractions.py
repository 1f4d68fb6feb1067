"""Einsum, products with stacks of matrices and the packed weight of a fused attention as layers: against ONNX Runtime,
and end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graph, inputs, run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from test_reconstruct import without

import onnxprune
from onnxprune.fit import layers
from onnxprune.fit.contractions import Contraction
from onnxprune.model import Model

Array = NDArray[Any]
SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6, "f": 2, "g": 3}
EQUATIONS = [
    "bd,de->be", "de,bd->be", "bad,de->bae", "bd,adf->baf", "baf,afd->bad", "abd,ade->abe", "abc,cfe->abfe",
    "abcd,cde->abe", "bcd,dce->eb", "cba,ced->bade", "ab d, d e -> a b e",
]  # fmt: skip


def made(text: str, x: tuple[int, ...], w: tuple[int, ...], first: bool = False) -> ModelProto:
    """A node `text` of an activation x and a weight w."""
    dims = ",".join(map(str, x))
    return graph(f"(float[{dims}] x) => (float[] y)", text, w=w)


def check(model: ModelProto) -> Any:
    """The only layer gives what ONNX Runtime gives, and its weight is what it was when it is written back."""
    feeds = inputs(model, 1, 3)
    (y,) = run(model, feeds)
    loaded = Model.load(model).normalised()
    (layer,) = layers(loaded, lambda name: {"x": feeds["x"].ndim, "y": y.ndim}.get(name))
    at = layer.sample(feeds["x"], 10**6, np.random.default_rng(0))
    for where in (at, at[::2]):
        rows, targets = layer.rows(feeds["x"], where), layer.targets(y, where)
        assert rows.shape[:2] == targets.shape[:2]
        np.testing.assert_allclose(rows @ layer.read(loaded), targets, rtol=1e-4, atol=1e-4)
    before = loaded.weights["w"].array().copy()
    layer.write(loaded, layer.read(loaded))
    np.testing.assert_array_equal(loaded.weights["w"].array(), before)
    extent = layer.extent(lambda name: {"x": feeds["x"].shape, "y": y.shape}[name])
    assert (extent.groups, extent.columns, extent.outputs) == layer.read(loaded).shape
    assert extent.rows == len(at)
    return layer


@pytest.mark.parametrize("equation", EQUATIONS)
def test_an_einsum(equation: str) -> None:
    one, two = equation.replace(" ", "").split("->")[0].split(",")
    first = equation == "de,bd->be"
    x, w = ((tuple(SIZES[c] for c in s)) for s in ((two, one) if first else (one, two)))
    order = "w, x" if first else "x, w"
    check(made(f'y = Einsum<equation="{equation}">({order})', x, w))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_einsum(data: Any) -> None:
    roles = {c: data.draw(st.sampled_from(["groups", "columns", "outputs", "rows"])) for c in "abcdefg"}
    letters = {r: [c for c in roles if roles[c] == r] for r in ("groups", "columns", "outputs", "rows")}
    if not letters["columns"]:
        return
    x, w, y = (
        "".join(data.draw(st.permutations([c for r in rs for c in letters[r]])))
        for rs in (("groups", "columns", "rows"), ("groups", "columns", "outputs"), ("groups", "rows", "outputs"))
    )
    check(made(f'y = Einsum<equation="{x},{w}->{y}">(x, w)', *(tuple(SIZES[c] for c in s) for s in (x, w))))


@pytest.mark.parametrize(
    ("text", "x", "w"),
    [
        ("y = MatMul(x, w)", (2, 3, 5, 6), (3, 6, 4)),
        ("y = MatMul(x, w)", (2, 3, 5, 6), (2, 3, 6, 4)),
        ("y = MatMul(x, w)", (5, 6), (3, 6, 4)),
        ("y = MatMul(w, x)", (3, 6, 5), (3, 4, 6)),
        ("y = MatMul(w, x)", (2, 3, 6, 5), (3, 4, 6)),
        ('y = Einsum<equation="...d,de->...e">(x, w)', (2, 3, 5), (5, 6)),
        ("y = com.microsoft.FusedMatMul<alpha=0.3>(x, w)", (2, 3, 5), (5, 6)),
        ("y = com.microsoft.FusedMatMul<transB=1, alpha=2.0>(x, w)", (2, 3, 5), (6, 5)),
    ],
)
def test_other_products(text: str, x: tuple[int, ...], w: tuple[int, ...]) -> None:
    check(made(text, x, w))


@pytest.mark.parametrize(
    ("text", "x", "w"),
    [
        ('y = Einsum<equation="bd,de->b">(x, w)', (3, 5), (5, 6)),
        ('y = Einsum<equation="bd,bd->bd">(x, w)', (3, 5), (3, 5)),
        ('y = Einsum<equation="bbd,de->be">(x, w)', (3, 3, 5), (5, 6)),
        ('y = Einsum<equation="bd,...de->b...e">(x, w)', (3, 5), (2, 5, 6)),
        ('y = Einsum<equation="bd,de">(x, w)', (3, 5), (5, 6)),
    ],
)
def test_what_is_no_product_by_a_matrix(text: str, x: tuple[int, ...], w: tuple[int, ...]) -> None:
    loaded = Model.load(made(text, x, w)).normalised()
    assert layers(loaded, lambda name: len(x)) == []


ENDS: list[tuple[str, str, dict[str, tuple[int, ...]], set[str]]] = [
    (
        "heads by einsum",
        """q = Einsum<equation="bsc,hcd->bhsd">(x, wq) k = Einsum<equation="bsc,hcd->bhsd">(x, wk)
           v = Einsum<equation="bsc,hcd->bhsd">(x, wv) s = Einsum<equation="bhsd,bhtd->bhst">(q, k) p = Softmax(s)
           t = Einsum<equation="bhst,bhtd->bhsd">(p, v) y = Einsum<equation="bhsd,hdc->bsc">(t, wo)""",
        {"wq": (4, 12, 8), "wk": (4, 12, 8), "wv": (4, 12, 8), "wo": (4, 8, 12)},
        {"wo"},
    ),
    (
        "experts by a stack of matrices",
        """e = Einsum<equation="bsc,ecf->besf">(x, w1) r = Relu(e) o = MatMul(r, w2) y = ReduceSum<keepdims=0>(o, one)""",
        {"w1": (3, 12, 16), "w2": (3, 16, 12)},
        {"w2"},
    ),
    (
        "a fused attention",
        """h = MatMul(x, w0) g = Tanh(h) m = MatMul(g, w1)
           t = com.microsoft.Attention<num_heads=4>(m, wqkv, bqkv) y = MatMul(t, wo)""",
        {"w0": (12, 24), "w1": (24, 32), "wqkv": (32, 96), "bqkv": (96,), "wo": (32, 12)},
        {"wqkv", "wo"},
    ),
    (
        "a bias of query, key and value",
        """h = MatMul(x, w0) g = Tanh(h) m = MatMul(g, w1) q = MatMul(m, wq) k = MatMul(m, wk) v = MatMul(m, wv)
           t = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, bqkv) y = MatMul(t, wo)""",
        {"w0": (12, 24), "w1": (24, 32), "wq": (32, 32), "wk": (32, 32), "wv": (32, 16), "bqkv": (80,), "wo": (16, 12)},
        {"wq", "wv", "bqkv", "wo"},
    ),
    (
        "a scaled product",
        """h = MatMul(x, w0) r = Relu(h) y = com.microsoft.FusedMatMul<alpha=0.5, transB=1>(r, w1)""",
        {"w0": (12, 24), "w1": (12, 24)},
        {"w1"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "changed"), [e[1:] for e in ENDS], ids=[e[0] for e in ENDS])
def test_it_makes_up_for_what_went(body: str, weights: dict[str, tuple[int, ...]], changed: set[str]) -> None:
    constants = "one = Constant<value_ints=[1]>() " if "one" in body else ""
    dense = graph("(float[N,5,12] x) => (float[N,5,12] y)", constants + body, **weights)
    result = onnxprune.prune(dense, ratio=0.4, calib=[inputs(dense, 64, 7)], residual="all", scope="local", criterion="l2")
    onnx.checker.check_model(result.model.to_proto())
    error, sliced = without(dense, result)
    assert error < 0.8 * sliced
    plain = onnxprune.prune(dense, plan=result.plan, fast=True).model.weights
    now = result.model.weights
    assert changed <= {n for n in plain if n in now and not np.array_equal(now[n].array(), plain[n].array())}


def test_columns_are_units_of_all_axes_that_are_summed() -> None:
    """Heads and head sizes: of all heads the same positions go, and statistics see every column's unit."""
    dense = graph("(float[N,5,12] x) => (float[N,5,12] y)", ENDS[0][1], **ENDS[0][2])
    from onnxprune.fit import collect
    from onnxprune.trace import build

    groups = build(onnxprune.api.trace(dense))
    site = next(s for s in collect(groups, [inputs(dense, 8, 1)], ("cpu",), 0) if s.members[0].roots == ("wo",))
    assert isinstance(site.members[0], Contraction)
    assert site.units.shape == (1, 32)
    assert np.array_equal(site.units.reshape(4, 8), np.tile(site.units[0, :8], (4, 1)))
    assert len(np.unique(site.units)) == 8
