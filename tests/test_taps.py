"""Which outputs are judged before the saturating operator that ends the graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune import api
from onnxprune.prove import Places

HEAD = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 1, 1] x, bool c) => (float[N, 4] y)
<float[4, 3, 1, 1] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2}, int64[2] a = {2, 3}, float[4] k = {1, 2, 3, 4}>
{ h = Conv(x, w) """


@pytest.mark.parametrize(
    ("body", "tapped"),
    [
        ("s = Sigmoid(h) y = Squeeze(s, a)", ["h"]),
        ("s = Sigmoid(h) y = ReduceMean<axes = [2, 3], keepdims = 0>(s)", ["h"]),
        ("q = Squeeze(h, a) s = Softmax<axis = 1>(q) y = If(c) <then_branch = t () => (float[N, 4] o) { o = Identity(s) }, "
         "else_branch = e () => (float[N, 4] o) { o = Transpose<perm = [0, 1]>(s) }>", ["q"]),
        ("s = Sigmoid(h) q = Squeeze(s, a) y = Mul(q, k)", []),
        ("s = Sigmoid(h) q = Squeeze(s, a) y = If(c) <then_branch = t () => (float[N, 4] o) { o = Identity(q) }, "
         "else_branch = e () => (float[N, 4] o) { o = Exp(q) }>", []),
        ("s = Relu(h) y = Squeeze(s, a)", []),
    ],
)  # fmt: skip
def test_saturation_is_seen_through_what_only_moves(body: str, tapped: list[str]) -> None:
    trace = api.trace(onnx.parser.parse_model(HEAD + body + " }"))
    places = Places(trace, np.ones(trace.labels.n, bool))
    assert places.taps == tapped
    assert set().union(*places.ends.values(), set()) == ({"y"} if tapped else set())
