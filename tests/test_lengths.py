"""What attention is told of lengths: inputs that say them, and masks by whose sums they are computed."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph

from onnxprune import prune
from onnxprune.data import random_inputs
from onnxprune.model import Model

CACHE = """(float[N, S, 12] x, float[N, 2, P, 16] pk, float[N, 2, P, 16] pv, int64[N, T] mask)
=> (float[N, S, 5] y, float[N, 2, T, 16] K, float[N, 2, T, 16] V)"""
LENGTHS = {
    "summed": "ms = ReduceSum<keepdims = 0>(mask, last) ml = Sub(ms, one) sl = Cast<to = 6>(ml)",
    "cast first": "mc = Cast<to = 6>(mask) ms = ReduceSum<keepdims = 1>(mc, last) ml = Sub(ms, one32) sl = Squeeze(ml, last)",
}
TOTAL = " m0 = Shape(mask) m1 = Gather<axis = 0>(m0, at) ts = Cast<to = 6>(m1) "
ATTENTION = """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
o, K, V = com.microsoft.GroupQueryAttention<num_heads = 8, kv_num_heads = 2, do_rotary = 1>(q, k, v, pk, pv, sl, ts, cosines, sines)
y = MatMul(o, wo)"""


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_mask_whose_sums_are_lengths_hides_nothing(lengths: str) -> None:
    """As ONNX Runtime GenAI's models compute them: a random mask may hide a whole row, which ends in a length of -1."""
    weights = {"wq": (12, 128), "wk": (12, 32), "wv": (12, 32), "wo": (128, 5), "cosines": (512, 8), "sines": (512, 8),
               "last": np.array([1]), "at": np.array(1), "one": np.array(1), "one32": np.array(1, np.int32)}  # fmt: skip
    text = LENGTHS[lengths] + TOTAL + ATTENTION
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = graph(CACHE, text, 17, 0, **{name: value for name, value in weights.items() if name in words})
    shapes = {"x": (3, 1, 12), "pk": (3, 2, 3, 16), "pv": (3, 2, 3, 16), "mask": (3, 4)}
    for seed in range(8):
        assert random_inputs(Model.load(model).normalised(), shapes, seed)["mask"].all()
    report = prune(model, ratio=0.5, fast=True).report
    assert report.after.parameters < report.before.parameters


def test_a_mask_that_only_attention_reads_is_random() -> None:
    text = "m = Cast<to = 1>(mask) s = ReduceSum<keepdims = 1>(m, last) h = MatMul(x, w) r = Relu(h) p = Mul(r, s) y = MatMul(p, v)"
    model = graph("(float[N, 12] x, int64[N, T] mask) => (float[N, 5] y)", text, 17, 0, w=(12, 8), v=(8, 5), last=np.array([1]))
    feeds = random_inputs(Model.load(model).normalised(), {"x": (3, 12), "mask": (3, 64)}, 0)
    assert not feeds["mask"].all()
