"""The oracle: the loss with one unit masked against models without it, and as the yardstick of the gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import graph
from scipy.stats import spearmanr
from test_gradients import CASES, LABELS, OPTIONS, feed, groups_of, in_double, logits, needs_ad, residual, scaled, units

from onnxprune import api
from onnxprune.gradients import gate_gradients, in_sets, oracle
from onnxprune.gradients.leave_one_out import changes
from onnxprune.gradients.losses import cross_entropy
from onnxprune.planning.criteria.gradient import taylor, taylor_so
from onnxprune.rewrite import rewrite
from onnxprune.trace import build

MODELS = Path(__file__).parents[1] / "models"


@pytest.mark.parametrize("case", CASES)
def test_the_oracle_is_the_loss_with_the_unit_at_zero(case: str) -> None:
    make, (parameter, axis), places = CASES[case]
    model = make()
    groups, feeds = groups_of(model), feed(model)
    at = units(groups, parameter, axis)
    found = changes(groups, [feeds], LABELS, OPTIONS, at)
    base = cross_entropy(logits(in_double(model), feeds), LABELS, 3)
    for k, row in enumerate(found):
        expected = cross_entropy(logits(scaled(model, places(k), 0), feeds), LABELS, 3) - base
        assert row == pytest.approx(expected, abs=2e-6)
    scores = oracle(groups, [feeds], LABELS, OPTIONS, at[:2].tolist())
    assert scores[at[:2]] == pytest.approx(np.square(found[:2]).mean(1))
    assert not np.delete(scores, at[:2]).any()


def test_statistics_do_not_see_the_unit() -> None:
    model = graph("(float[N, 5] x) => (float[N, 4] y)",
                  "a = Gemm(x, w1, b1)  l = LayerNormalization(a, gain, beta)  r = Relu(l)  y = Gemm(r, w2, b2)",
                  w1=(5, 8), b1=(8,), gain=(8,), beta=(8,), w2=(8, 4), b2=(4,))  # fmt: skip
    groups, feeds = groups_of(model), feed(model)
    at = units(groups, "w1", 1)
    base = cross_entropy(logits(in_double(model), feeds), LABELS, 3)
    for unit, row in zip(at.tolist(), changes(groups, [feeds], LABELS, OPTIONS, at), strict=True):
        kept = groups.kept_ids(np.arange(len(groups.prunable)) == unit)
        without = in_double(rewrite(groups.trace, kept).model.to_proto())
        assert row == pytest.approx(cross_entropy(logits(without, feeds), LABELS, 3) - base, abs=2e-6)


def test_without_labels_it_is_the_relative_error_of_the_outputs() -> None:
    model = residual()
    groups, feeds = groups_of(model), feed(model)
    unit = int(units(groups, "w3", 0)[1])
    a, b = (logits(scaled(model, [("w4", (slice(None), 1))], z), feeds) for z in (1, 0))
    score = oracle(groups, [feeds], None, OPTIONS, [unit])[unit]
    assert score == pytest.approx(np.square(a - b).sum() / np.square(a).sum(), rel=1e-4)


@needs_ad
@pytest.mark.slow
def test_taylor_ranks_like_the_oracle() -> None:
    """Molchanov et al. 2019: a rank correlation above 0.93 over all channels of a residual net."""
    with np.load(MODELS / "fashion_test.npz") as data:
        images, labels = data["image"][:256], data["labels"][:256]
    groups = build(api.trace(str(MODELS / "fashion_resnet.onnx")))
    feeds = [{"image": images[k : k + 64]} for k in range(0, 256, 64)]
    chosen = np.flatnonzero(groups.prunable)
    gradients = gate_gradients(groups, feeds, labels, OPTIONS)[:, chosen]
    found = changes(groups, feeds, labels, OPTIONS, chosen).T
    for per in (1, 32):  # each sample on its own, and the minibatches of the paper
        exact = np.square(in_sets(found, per)).mean(0)
        assert spearmanr(taylor(gradients, per), exact).statistic > 0.93
        assert spearmanr(taylor_so(gradients, per), exact).statistic > 0.93
