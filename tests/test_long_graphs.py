"""Graphs of thousands of small nodes: what is done for each of them does not grow with how many there are. Counted, as
seconds are the machine's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune import api
from onnxprune.fit import Walk
from onnxprune.model import Model, Topology
from onnxprune.options import Options
from onnxprune.planning import curves, trials
from onnxprune.run import open_session, opened
from onnxprune.shapes import infer
from tests.graphs import graph

WIDTH = 4


def chain(layers: int, sizes: str = ",") -> ModelProto:
    """Products and activations one behind the other, of open sizes, which have no names."""
    names = ["x", *(f"r{k}" for k in range(layers))]
    body = " ".join(f"m{k} = MatMul({names[k]}, w{k}) r{k} = Tanh(m{k})" for k in range(layers))
    weights = {f"w{k}": (WIDTH, WIDTH) for k in range(layers)}
    dims = f"{sizes}{WIDTH}"
    return graph(f"(float[{dims}] x) => (float[{dims}] y)", f"{body} y = MatMul(r{layers - 1}, v)", v=(WIDTH, WIDTH), **weights)


def test_no_session_of_ours_plans_which_buffer_takes_the_place_of_which() -> None:
    """Of sizes that are open and have no name every node would be compared with every buffer."""
    model = Model.load(chain(3, "N, M, ")).normalised()
    lean = opened(model, Options(), infer(model).dtype)
    for session in (open_session(model), lean._session):
        assert not session.get_session_options().enable_mem_reuse


def test_a_refit_looks_at_each_node_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the default, whose refit changes the weights of one layer after the other."""
    seen: Counter[int] = Counter()
    plain = Topology.followers

    def followers(self: Topology, *given: Any) -> set[int]:
        found = plain(self, *given)
        seen[len(self.nodes)] += len(found)
        return found

    monkeypatch.setattr(Topology, "followers", followers)
    monkeypatch.setattr(curves, "measure", lambda *_: None)  # trials have a test of their own
    for layers in (20, 80):
        seen.clear()
        result = api.prune(chain(layers, "N, M, "), ratio=0.5, calib_samples=8, min_channels=1)
        assert result.report.reconstruction["layers"]
        assert seen.total() <= 8 * len(result.model.graph.node), "a few refits, each of which visits each node once"


def test_what_follows_a_layer_is_forgotten_as_far_as_it_was_run() -> None:
    model = Model.load(chain(30, "N, M, ")).normalised()
    walk = Walk(model, [{"x": np.ones((1, 2, WIDTH), np.float32)}], infer(model).dtype)
    walk.value("m4")
    walk.value("m9")
    before = walk.value("m9")[0].copy()
    touched = walk.forget([6])  # m3
    assert touched == set(range(6, len(walk.nodes)))
    assert "m9" not in walk.values
    assert walk.done == set(range(6))
    assert walk.forget([8], touched) == set()
    model.weights["w3"] = type(model.weights["w3"]).of(2 * model.weights["w3"].array())
    assert not np.allclose(walk.value("m9")[0], before)


@pytest.mark.parametrize(("layers", "count"), [(6, 6), (40, 12)])
def test_of_many_sets_some_are_tried(layers: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly, with the first and the last; a set that was not tried is like those beside it."""
    counts: list[int] = []
    made, measure = trials.Trials.__init__, curves.measure
    factors: list[float | None] = []

    def counted(self: trials.Trials, groups: Any, sites: Any, inputs: Any, options: Options, count: int) -> None:
        counts.append(count)
        made(self, groups, sites, inputs, options, count)

    def measured(groups: Any, curve_set: Any, *given: Any) -> None:
        measure(groups, curve_set, *given)
        factors.extend(c.factor for c in curve_set.curves)

    monkeypatch.setattr(trials, "FEWEST", 12)
    monkeypatch.setattr(trials, "MOST_NODES", 1)
    monkeypatch.setattr(trials.Trials, "__init__", counted)
    monkeypatch.setattr(curves, "measure", measured)
    api.prune(chain(layers, "N, M, "), ratio=0.3, calib_samples=8, min_channels=1, effort="low")
    assert counts[:1] == [count]
    assert len(factors) == layers
    assert all(f is not None and np.isfinite(f) and f > 0 for f in factors)
