"""The dependency graph in files: DOT for Graphviz, JSON for programs (networkx's node-link form), a page for people.

Knows the graph as data and computes none of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import UsageError
from onnxprune.files import json_text
from onnxprune.report.page import GRAPH, render

if TYPE_CHECKING:
    import networkx as nx

FORMS = (".dot", ".gv", ".json", ".html", ".htm")


def check_graph_file(path: Path) -> None:
    """UsageError where the name of a file does not say a form that is written."""
    if path.suffix.lower() not in FORMS:
        raise UsageError(f"--graph {path}: the name of the file ends in .dot, .json or .html")


def graph_text(path: Path, graph: nx.Graph, title: str) -> str:
    """The dependency graph (see `onnxprune.trace.dependencies`) in the form that the ending of `path` asks for."""
    import networkx as nx

    data = {**nx.node_link_data(graph, edges="edges"), "title": title}
    match path.suffix.lower():
        case ".json":
            return json_text(data)
        case ".html" | ".htm":
            return render(data, title, GRAPH)
    return _dot(graph, title)


def _dot(graph: nx.Graph, title: str) -> str:
    """Axes as ellipses, frozen ones grey, with how many units may go of how many; operators as boxes."""
    lines = [f"graph {_quoted(title)} {{", "  rankdir=LR; node [fontname=sans-serif fontsize=10];"]
    for n, a in graph.nodes(data=True):
        said = _operator(a) if a["kind"] == "coupling" else _axis(a)
        lines.append(f"  {n} [{' '.join(f'{k}={_quoted(v)}' for k, v in said.items())}];")
    lines += [f"  {a} -- {b};" for a, b in graph.edges]
    return "\n".join([*lines, "}", ""])


def _operator(coupling: dict[str, Any]) -> dict[str, str]:
    look = {"shape": "box", "style": "filled", "fillcolor": "lightsteelblue"}
    return {"label": coupling["op_type"], "tooltip": coupling["node"], **look}


def _axis(axis: dict[str, Any]) -> dict[str, str]:
    where = f" of {axis['use']}" if axis["use"] else ""
    name = f"{axis['parameter']}[{','.join(map(str, axis['axes']))}]{where}"
    why = axis["frozen"]
    tip = f"{why['reason']} ({why['op_type']} {why['node']})" if why else axis["group"]
    look = {} if axis["free"] else {"style": "filled", "fillcolor": "lightgrey"}
    return {"label": f"{name}\n{axis['free']} of {axis['units']} may go", "tooltip": tip, **look}


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
