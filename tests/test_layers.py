"""What a package may know, one row each: data flows one way, and whoever scores sees no operator."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).parents[1] / "onnxprune"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
HEAVY = {"onnx", "onnxruntime", "numpy"}

# A package or a module of the top, from the street down: what it imports of the package, and which libraries never.
HOUSE = [
    ("cli", "api errors files frameworks guard integrations measure model options pipeline planning progress report sweeping", HEAVY),
    (
        "integrations", "api data errors files model options pipeline planning results rewrite shapes trace",
        {"onnxruntime"},
    ),
    ("sweeping", "errors files measure model options pipeline planning progress rehearsal report results", HEAVY),
    ("frameworks", "api data errors files model planning rewrite run shapes trace", {"onnx", "onnxruntime"}),
    ("api", "errors files measure model options pipeline planning progress refit rehearsal report results rewrite trace", {"onnx", "onnxruntime"}),
    (
        "pipeline", "data errors finetuning fit guard measure model options planning progress prove refit rehearsal report results rewrite run shapes trace units",
        {"onnxruntime"},
    ),
    ("rehearsal", "data errors guard heap model options progress run shapes", {"onnxruntime", "numpy"}),
    ("report", "errors files model options planning results run trace units", {"onnx", "onnxruntime"}),
    ("finetuning", "data errors files model options prove run shapes", {"onnxruntime"}),
    ("refit", "errors fit model options planning progress rewrite steady trace", {"onnx", "onnxruntime"}),
    ("planning", "data errors files fit gradients measure model options progress prove results rewrite run shapes steady trace", {"onnxruntime"}),
    ("measure", "data errors files model options progress run shapes steady units", {"onnx", "onnxruntime"}),
    ("gradients", "errors model options prove run shapes trace", {"onnxruntime"}),
    ("prove", "data errors model options results rewrite run shapes trace", {"onnxruntime"}),
    ("data", "errors files model options progress run shapes steady", {"onnxruntime"}),
    ("fit", "errors heap model rewrite run steady trace", {"onnxruntime"}),
    ("rewrite", "model trace", {"onnxruntime"}),
    ("trace", "errors model shapes", {"onnxruntime"}),
    ("shapes", "errors guard model run", {"onnxruntime"}),
    ("run", "errors guard heap model options steady", set()),
    ("model", "errors files", {"onnxruntime"}),
    ("files", "errors", HEAVY),
    ("results", "options", HEAVY),
    ("progress", "errors options", HEAVY),
    ("guard", "heap", HEAVY),
    ("heap", "", HEAVY),
    ("steady", "", {"onnx", "onnxruntime"}),
    ("units", "", HEAVY),
    ("options", "errors", HEAVY),
    ("errors", "", HEAVY),
]  # fmt: skip
ROWS = {name: (set(may.split()), never) for name, may, never in HOUSE}

# What the first lines of a module may say that it does not know, and what it then must not import.
SCORES = {
    "planning.criteria",
    "planning.curves",
    "planning.selection",
    "planning.allocation",
    "planning.obs",
    "gradients",
}
CLAIMS: dict[str, tuple[set[str], set[str]]] = {
    "knows? arrays only": ({"model", "trace.tracing", "trace.op", "shapes", "run", "pipeline"}, {"onnx", "onnxruntime"}),
    "no ONNX": (set(), {"onnx", "onnxruntime"}),
    "no stage": ({"pipeline", "api", "sweeping"}, set()),
    "no importance": (SCORES, set()),
    "no scores": ({"planning.criteria", "planning.selection", "gradients"}, set()),
    "no criterion": ({"planning.criteria"}, set()),
    "no budget": ({"planning.allocation", "planning.selection", "planning.curves"}, set()),
    "no ids": ({"trace"}, set()),
    "no units": ({"trace.groups", "planning"}, set()),
    "no groups": ({"trace.groups", "planning"}, set()),
    "no graph": ({"model.graph", "model.topology", "model.model", "trace.tracing"}, set()),
    "no model": ({"model"}, set()),
    "nothing of models": ({"model", "shapes", "trace"}, HEAVY - {"numpy"}),
    "no tensors": ({"model.weight"}, {"numpy"}),
    "no torch": (set(), {"torch"}),
    "nothing is run": ({"run"}, {"onnxruntime"}),
    "no rule": ({"trace.rules"}, set()),
    "no rule and no edit": ({"trace.rules", "trace.op"}, set()),
}  # fmt: skip


@cache
def imports(module: str, *, inside: bool) -> tuple[frozenset[str], frozenset[str]]:
    """(modules of the package, other packages) that a module imports, public names of a package as the modules that
    they come from; `inside`: in its functions and for types, too."""
    own: set[str] = set()
    others: set[str] = set()
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            others |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            name = node.module or ""
            if name.split(".")[0] != "onnxprune":
                others.add(name.split(".")[0])
                continue
            own |= {_home(name.removeprefix("onnxprune").strip("."), alias.name) for alias in node.names}
    return frozenset(own - {"", module}), frozenset(others)


def _home(module: str, name: str) -> str:
    """The module that a public name comes from."""
    full = f"{module}.{name}".strip(".")
    if full in MODULES:
        return full
    path = MODULES.get(module, PACKAGE / "__init__.py")
    if module and path.name == "__init__.py":
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and any(name in (a.name, a.asname) for a in node.names):
                return _home((node.module or "").removeprefix("onnxprune").strip("."), name)
    return module


def said(module: str) -> str:
    return " ".join((ast.get_docstring(ast.parse(MODULES[module].read_text("utf-8"))) or "").split())


def within(names: set[str], packages: set[str]) -> set[str]:
    return {n for n in names for p in packages if n == p or n.startswith(f"{p}.")}


def test_every_room_has_a_row() -> None:
    assert {m.split(".")[0] for m in MODULES} - {"__init__", "__main__"} == ROWS.keys()


@pytest.mark.parametrize("package", ROWS)
def test_a_package_knows_what_it_may(package: str) -> None:
    """No more, and no less: a row that allows what nobody needs is taken back."""
    may, never = ROWS[package]
    parts = [m for m in MODULES if m.split(".")[0] == package]
    own, others = (set[str]().union(*found) for found in zip(*(imports(m, inside=True) for m in parts), strict=True))
    assert {name.split(".")[0] for name in own} - {package} == may
    assert not others & never


def test_every_arrow_points_down() -> None:
    floors = [name for name, _, _ in HOUSE]
    for name, (may, _) in ROWS.items():
        assert all(floors.index(other) > floors.index(name) for other in may), name


def test_nobody_imports_in_a_circle() -> None:
    edges = [(module, name) for module in MODULES for name in imports(module, inside=False)[0]]
    assert nx.is_directed_acyclic_graph(nx.DiGraph(edges))


def test_nobody_reaches_past_the_public_names() -> None:
    """From another package a name is imported from the package that gives it, or the module itself is."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxprune."):
                name = (node.module or "").removeprefix("onnxprune.")
                inside = name.split(".")[0] == module.split(".")[0] or "." not in name
                assert inside or MODULES[name].name == "__init__.py", (module, name)
                assert inside or not any(a.name.startswith("_") for a in node.names), (module, name)


def test_only_those_who_trace_know_the_registry() -> None:
    who = {m for m in MODULES if "trace.rules" in imports(m, inside=True)[0] and not m.startswith("trace.rules")}
    assert who == {"pipeline.stages", "prove.proofs", "fit.likeness"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"__init__", "__main__"}))
def test_a_module_says_what_it_knows_and_keeps_to_it(module: str) -> None:
    text = said(module)
    assert re.search(r"\b[Kk]nows? (\S+ ){0,60}?\S+[.;,:]", text), "no sentence says what it knows"
    own, others = (set(found) for found in imports(module, inside=True))
    for claim, (names, libraries) in CLAIMS.items():
        if re.search(rf"\b{claim}\b", text, re.IGNORECASE):
            assert not within(own, names), (claim, within(own, names))
            assert not others & libraries, (claim, others & libraries)


def test_every_claim_is_made_by_somebody() -> None:
    for claim in CLAIMS:
        assert any(re.search(rf"\b{claim}\b", said(m), re.IGNORECASE) for m in MODULES), claim


def test_who_says_that_it_knows_no_operator_compares_none() -> None:
    compared = re.compile(r"op_type\s*(==|!=|in\b|not\b|\.)|\b(in|==|!=)\s[^\n]*\.op_type")
    for module, path in MODULES.items():
        assert "no operator" not in said(module) or not compared.search(path.read_text("utf-8")), module
