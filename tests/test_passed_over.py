"""What is passed over, or worked out once, says what it would have said: the same trace, values and groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from graphs import graph, run

from onnxprune import api
from onnxprune.model import Model, traits
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed, checked
from onnxprune.shapes.symbolic_values import Value
from onnxprune.shapes.values import propagate
from onnxprune.trace import Trace

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.onnx"))[:4]
SIZES = graph(
    "(float[N, 6] x) => (float[N, 4] y)",
    "h = MatMul(x, w) s = Shape(x) n = Gather<axis = 0>(s, zero) k = Mul(n, one) t = Concat<axis = 0>(k, rest) "
    "e = Cast<to = 7>(t) r = Reshape(h, e) q = Relu(r) f = Reshape(q, flat) y = MatMul(f, v)",
    w=(6, 8), v=(8, 4), zero=np.array([0]), one=np.array([1]), rest=np.array([2, 4]), flat=np.array([-1, 8]),
)  # fmt: skip


def told(trace: Trace) -> list[Any]:
    """All that a trace has found out, comparable."""
    labels = trace.labels
    return [
        labels.n, [*labels.births], [(a.tolist(), b.tolist(), why) for a, b, why in labels.pairs],
        [(ids.tolist(), why) for ids, why in labels.frozen], [*labels.rectangles], trace.fixed, [*trace.slices],
        {n: [(b.axes, b.ids.tolist()) for b in own] for n, own in trace.blocks.items() if own},
        {k: [count for count, _ in products] for k, products in trace.macs.items()}, len(trace.reductions),
    ]  # fmt: skip


@pytest.mark.parametrize("model", [SIZES, *MODELS], ids=["sizes", *(path.stem for path in MODELS)])
def test_nodes_that_are_passed_over_have_nothing_to_say(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = told(api.trace(model))
    monkeypatch.setattr(traits, "OF_WHAT_COMES_IN", frozenset())
    assert told(api.trace(model)) == quick


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gathered_elements_are_those_of_the_runtime(axis: int) -> None:
    x, index = np.arange(12, dtype=np.int64).reshape(3, 4), np.array([[0, -1], [2, 1]], np.int64)
    model = graph("(int64[3, 4] x, int64[2, 2] i) => (int64[2, 2] y)", f"y = GatherElements<axis = {axis}>(x, i)")
    found = propagate(model.graph.node[0], [Value.of(x), Value.of(index)], 17)
    assert found is not None
    np.testing.assert_array_equal(found[0].data, run(model, {"x": x, "i": index})[0])


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_groups_are_the_components_of_blocks_that_share_units(path: Path) -> None:
    groups = analysed(Model.load(path), checked(Options()), Clock(), runs=False)
    wanted: nx.Graph = nx.Graph()
    wanted.add_nodes_from(range(len(groups.blocks)))
    kept = groups.classes[0]
    for k, (_, _, ids) in enumerate(groups.blocks):
        wanted.add_edges_from((k, ("unit", c)) for c in set(groups.classes[ids].ravel().tolist()) - {kept})
    parts = [{k for k in part if isinstance(k, int)} for part in nx.connected_components(wanted)]
    found = [set(component) for component in groups.components()]
    assert all(any(part <= component for component in found) for part in parts)  # operators may tie more
    assert sorted(k for component in found for k in component) == list(range(len(groups.blocks)))

