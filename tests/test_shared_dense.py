"""Many light refits that share the dense network find what each of them finds alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from graphs import graph, inputs
from onnx import ModelProto

from onnxprune.fit import Front, Light, Reconstruction, SharedDense, Walk, collect
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import OutputError, parted
from onnxprune.planning.trials import Trials
from onnxprune.rewrite import rewrite
from onnxprune.trace import Groups

LIGHT = Light(4)
PADS = "pads=[1,1,1,1]"
CONVOLUTIONS = graph(
    "(float[N,3,8,8] x) => (float[N,5] y)",
    f"""
    a = Conv<{PADS}>(x, wa, ba) r = Relu(a)
    d = Conv<{PADS}, group=12>(r, wd, bd) t = Relu(d)
    c = Conv<{PADS}>(t, wc, bc) s0 = Add(r, c) s = Relu(s0)
    e = Conv<strides=[2,2]>(s, we, be) u = Relu(e)
    p = GlobalAveragePool(u) f = Flatten(p) y = Gemm<transB=1>(f, wo, bo)
    """,
    wa=(12, 3, 3, 3), ba=(12,), wd=(12, 1, 3, 3), bd=(12,), wc=(12, 12, 3, 3), bc=(12,), we=(8, 12, 1, 1), be=(8,),
    wo=(5, 8), bo=(5,),
)  # fmt: skip
SEQUENCES = graph(
    "(float[N,6,10] x) => (float[N,6,4] y)",
    """
    a = MatMul(x, wa) b = Add(a, ba) r = Relu(b)
    k = Transpose<perm=[1,0,2]>(r) h = LSTM<hidden_size=8>(k, w, rw) z = Squeeze(h, one) q = Transpose<perm=[1,0,2]>(z)
    c = MatMul(q, wc) y = Add(c, bc)
    """,
    wa=(10, 12), ba=(12,), w=(1, 32, 12), rw=(1, 32, 8), wc=(8, 4), bc=(4,), one=np.array([1]),
)  # fmt: skip


def refitted(
    groups: Groups, removed: np.ndarray[Any, Any], feeds: list[dict[str, Any]], shared: SharedDense | None
) -> Mapping[str, Any]:
    """The weights after a light refit."""
    kept = groups.kept_ids(removed)
    after = rewrite(groups.trace, kept)
    Reconstruction(groups.trace, kept, after, feeds, 1, light=LIGHT, dense=shared and shared.trial()).run()
    return {name: weight.array() for name, weight in after.model.weights.items()}


@pytest.mark.parametrize("model", [CONVOLUTIONS, SEQUENCES], ids=["convolutions", "sequences"])
def test_the_same_as_alone(model: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = analysed(Model.load(model), Options(residual="all"), Clock())
    feeds = [inputs(model, 16, seed) for seed in range(4)]
    units = np.flatnonzero(groups.prunable)
    dense = SharedDense(groups.trace, feeds, ("cpu",), light=LIGHT)
    computed = []
    run = Walk._computed
    monkeypatch.setattr(Walk, "_computed", lambda walk, nodes, *a: computed.append(len(nodes)) or run(walk, nodes, *a))
    for some in (units[:3], units[-3:], units[:3]):
        removed = np.zeros(len(groups.prunable), bool)
        removed[some] = True
        computed.clear()
        alone = refitted(groups, removed, feeds, None)
        nodes_alone = sum(computed)
        computed.clear()
        shared = refitted(groups, removed, feeds, dense)
        nodes_shared = sum(computed)
        assert alone.keys() == shared.keys()
        for name, weight in alone.items():
            np.testing.assert_allclose(shared[name], weight, rtol=1e-3, atol=1e-4, err_msg=name)
    assert nodes_shared < nodes_alone  # the last time what it is compared with is remembered


def test_depthwise_layers_stay_in_a_light_refit() -> None:
    groups = analysed(Model.load(CONVOLUTIONS), Options(residual="all"), Clock())
    removed = np.zeros(len(groups.prunable), bool)
    removed[np.flatnonzero(groups.prunable)[:3]] = True
    kept = groups.kept_ids(removed)
    after = rewrite(groups.trace, kept)
    before = {name: weight.array().copy() for name, weight in after.model.weights.items()}
    feeds = [inputs(CONVOLUTIONS, 16, seed) for seed in range(4)]
    Reconstruction(groups.trace, kept, after, feeds, 1, light=LIGHT).run()
    changed = {name for name, value in before.items() if not np.array_equal(value, after.model.weights[name].array())}
    assert {"wc", "we"} <= changed
    assert "wd" not in changed


SHORTCUTS = graph(
    "(float[N,3,8,8] x) => (float[N,5] y)",
    f"""
    a = Conv<{PADS}>(x, wa, ba) r = Relu(a)
    c = Conv<{PADS}, strides=[2,2]>(r, wc, bc) t = Relu(c) d = Conv<{PADS}>(t, wd, bd)
    k = Conv<strides=[2,2]>(r, wk, bk) s0 = Add(d, k) s = Relu(s0)
    p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, wo, bo)
    """,
    wa=(12, 3, 3, 3), ba=(12,), wc=(10, 12, 3, 3), bc=(10,), wd=(14, 10, 3, 3), bd=(14,), wk=(14, 12, 1, 1), bk=(14,),
    wo=(5, 14), bo=(5,),
)  # fmt: skip


@pytest.mark.parametrize("effort", ["low", "normal"])
@pytest.mark.parametrize("model", [CONVOLUTIONS, SEQUENCES, SHORTCUTS], ids=["convolutions", "sequences", "shortcuts"])
def test_a_cut_is_judged_from_where_it_begins(model: ModelProto, effort: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before it is as in the dense network, unless it was solved for beside the cut, as a shortcut is."""
    options = Options(residual="all", effort=effort)
    groups = analysed(Model.load(model), options, Clock())
    parts = parted([inputs(model, 16, seed) for seed in range(8)])
    sites = collect(groups, parts.fit, ("cpu",), 0)
    cuts = []
    for units in np.array_split(np.flatnonzero(groups.prunable), 4):
        cuts.append(np.zeros(len(groups.prunable), bool))
        cuts[-1][units[: len(units) // 2]] = True
    trials = Trials(groups, sites, parts, options, len(cuts))
    assert trials.by_refit == (effort == "normal")
    known = list[int]()
    before = Front.before
    monkeypatch.setattr(Front, "before", lambda *given: known.append(len(found := before(*given))) or found)
    found = trials.lost(cuts)
    assert sum(known)
    monkeypatch.setattr(OutputError, "_runs", lambda self, model, known=None, run=OutputError._runs: run(self, model))
    expected = Trials(groups, sites, parts, options, len(cuts)).lost(cuts)
    assert None not in found
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


def test_what_lies_before_cuts_in_order_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after one that lies far behind them."""
    trace = analysed(Model.load(CONVOLUTIONS), Options(), Clock()).trace
    front, nodes = Front(trace, [inputs(CONVOLUTIONS, 4, 0)], ("cpu",)), len(trace.nodes)
    current, ran, computed = front.walk(), list[int](), Walk._computed
    monkeypatch.setattr(Walk, "_computed", lambda walk, piece, *ends: ran.extend(piece) or computed(walk, piece, *ends))
    front.before(current, {nodes - 1})
    ran.clear()
    for first in range(nodes):
        front.before(current, set(range(first, nodes)))
    assert len(ran) == len(set(ran)) > nodes // 2
