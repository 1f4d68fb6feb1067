"""The dependency graph: what it says of a small model, that groups are its components, and the files it goes into."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest
from browser import opened
from graphs import graph
from hypothesis import HealthCheck, given, settings
from onnx import ModelProto
from random_graph import models

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import UsageError
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.report import graph_text
from onnxprune.trace import dependencies

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.onnx"))
EVIL = "</script><img src=x onerror=alert('ran')>\"\\ \n"


def residual() -> ModelProto:
    body = """a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) b = Relu(a) c = Conv(b, w2) d = Add(c, a) e = GlobalAveragePool(d)
              f = Flatten(e) y = Gemm<transB = 1>(f, w3)"""
    return graph("(float[N, 3, 8, 8] x) => (float[N, 5] y)", body, w1=(4, 3, 3, 3), b1=(4,), w2=(4, 4, 1, 1), w3=(5, 4))


def test_a_residual_block() -> None:
    found = onnxprune.inspect(residual()).graph
    names = {
        n: f"{a['parameter']}{a['axes']}" if a["kind"] == "axis" else a["op_type"] for n, a in found.nodes(data=True)
    }
    edges = {frozenset((names[a], names[b])) for a, b in found.edges}
    wanted = [("w1[0]", "Conv"), ("b1[0]", "Conv"), ("w2[1]", "Conv"), ("w2[0]", "Add"), ("w1[0]", "Add"), ("w3[1]", "Gemm")]
    assert edges >= {frozenset(edge) for edge in wanted}
    axes = {names[n]: a for n, a in found.nodes(data=True) if a["kind"] == "axis"}
    assert {n: (a["units"], a["free"]) for n, a in axes.items() if a["group"] == axes["w1[0]"]["group"]} == dict.fromkeys(
        ("w1[0]", "b1[0]", "w2[0]", "w2[1]", "w3[1]"), (4, 4)
    )
    assert axes["w1[1]"]["frozen"]["op_type"] == "Conv"
    assert axes["w3[0]"]["frozen"] == {
        "op_type": "output", "node": "y", "reason": "an output of the model keeps its shape",
    }  # fmt: skip


def components_are_groups(model: ModelProto | Path) -> None:
    groups = analysed(Model.load(model), Options().resolved(), Clock())
    found = dependencies(groups)
    axes = {n for n, kind in found.nodes(data="kind") if kind == "axis"}
    assert axes == set(range(len(groups.blocks)))
    parts = sorted(sorted(axes & part) for part in nx.connected_components(found))
    assert parts == sorted(groups.components())
    for part in nx.connected_components(found):
        assert len({found.nodes[n]["group"] for n in part}) == 1
    assert all(found.degree(n) > 1 for n in set(found) - axes)


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_groups_are_its_components(path: Path) -> None:
    components_are_groups(path)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(models())
def test_groups_are_its_components_in_random_graphs(model: ModelProto) -> None:
    try:
        components_are_groups(model)
    except UsageError:
        return  # nothing was traced


def test_dot_escapes_names() -> None:
    text = graph_text(Path("deps.dot"), onnxprune.inspect(residual()).graph, EVIL)
    assert text.startswith('graph "</script><img src=x onerror=alert(\'ran\')>\\"\\\\ \\n" {\n')
    assert text.count(" -- ") == onnxprune.inspect(residual()).graph.number_of_edges()
    assert text.rstrip().endswith("}")


def test_json_is_read_by_networkx() -> None:
    graph = onnxprune.inspect(residual()).graph
    again = nx.node_link_graph(json.loads(graph_text(Path("deps.json"), graph, "model")), edges="edges")
    assert nx.utils.graphs_equal(graph, again)


def test_the_page_draws_a_group_and_runs_no_name(tmp_path: Path) -> None:
    page = tmp_path / "deps.html"
    page.write_text(graph_text(page, onnxprune.inspect(residual()).graph, EVIL), "utf-8")
    with opened(page) as shown:
        assert shown.locator("svg circle").count() == 5
        assert shown.locator("tbody tr").count() == 5
        search = shown.get_by_placeholder("Group or parameter")
        search.fill("w3[1]")
        assert shown.locator("option").count() == 1
        assert "w3[1]" in shown.locator("tbody").inner_text()
        search.fill("w1[1]")  # alone and frozen: no group to draw
        assert shown.locator("option").count() == 0


def test_the_command_writes_what_the_name_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(MODELS[-1])
    for name in ("deps.dot", "deps.json", "deps.html"):
        assert main(["inspect", source, "--graph", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 100
    capsys.readouterr()
    assert main(["inspect", source, "--graph", str(tmp_path / "deps.png")]) == 2
    assert "ends in .dot, .json or .html" in capsys.readouterr().err
    assert main(["inspect", source, "--graph", str(tmp_path / "no" / "deps.dot")]) != 0
    assert len(list(tmp_path.iterdir())) == 3


def test_the_report_of_an_inspection_has_no_graph(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(MODELS[-1]), "--json"]) == 0
    assert "graph" not in json.loads(capsys.readouterr().out)
