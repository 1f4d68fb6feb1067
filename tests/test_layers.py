"""What a module may know, as a table: data flows one way, and whoever scores sees no operator."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).parents[1] / "onnxprune"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
STAGES = {"api", "stages", "decide", "refit", "planning", "summary", "cli", "sweep", "report", "commands"}
CHOICE = {"select", "allocate", "compress", "criteria", "obs", "sensitivity", "decide"}

# modules, what they may import of the package (None: anything), what they may not, packages they may not
TABLE = [
    ("labels", set(), set(), {"onnx", "onnxruntime"}),
    ("grids", {"quotients", "symbols", "symbolic_values"}, set(), {"onnxruntime"}),
    ("symbols", set(), set(), {"onnx", "onnxruntime", "numpy"}),
    ("quotients", {"symbols"}, set(), {"onnx", "onnxruntime", "numpy"}),
    ("equation", {"labels"}, set(), {"onnx", "onnxruntime"}),
    ("relabel", {"labels"}, set(), {"onnx", "onnxruntime"}),
    ("slicing", {"labels", "weight"}, set(), {"onnx", "onnxruntime"}),
    ("groups", {"labels", "trace"}, set(), {"onnx", "onnxruntime"}),
    ("select", {"labels", "groups", "options"}, set(), {"onnx", "onnxruntime"}),
    ("allocate", None, {"rules", "op", "editor", "rewrite", "model"}, {"onnx", "onnxruntime"}),
    ("obs", {"labels", "fit"}, set(), {"onnx", "onnxruntime"}),
    ("compress", None, {"rules", "op", "editor", "rewrite", "model"}, {"onnx", "onnxruntime"}),
    ("criteria", None, {"rules", "op", "editor", "rewrite", "model"}, {"onnx", "onnxruntime"}),
    ("criteria.units", {"criteria", "errors", "fit", "obs"}, set(), set()),
    ("criteria.gradient", set(), set(), set()),
    ("profile", None, {"rules", "op", "editor", "rewrite"}, {"onnx", "onnxruntime"}),
    ("fit.normal", set(), set(), {"onnx", "onnxruntime"}),
    ("fit.least_squares", {"fit"}, set(), {"onnx", "onnxruntime"}),
    ("quality.metrics", {"errors", "script"}, set(), {"onnx", "onnxruntime"}),
    ("calibration.synthetic", {"calibration"}, set(), {"onnx", "onnxruntime"}),
    ("calibration.sounds", {"calibration"}, set(), {"onnx", "onnxruntime"}),
    ("calibration.lettering", set(), set(), {"onnx", "onnxruntime"}),
    ("options", set(), set(), {"onnx", "onnxruntime", "numpy"}),
    ("plan", {"errors"}, set(), {"onnx", "onnxruntime", "numpy"}),
    ("fingerprint", {"model"}, set(), {"onnxruntime", "numpy"}),
    ("audit", None, {"select", "allocate", "criteria", "obs", "planning", "refit", "api"}, {"onnxruntime"}),
    ("steady", {"latency", "runtime"}, set(), {"onnx", "onnxruntime"}),
    ("errors", set(), set(), {"onnx", "onnxruntime", "numpy"}),
    ("page", set(), set(), {"onnx", "onnxruntime", "numpy"}),
    (
        "rules",
        {"rules", "op", "labels", "editor", "equation", "trace", "body_inference", "quotients", "symbols"},
        set(),
        {"onnxruntime"},
    ),
    ("op", {"equation", "labels", "symbols", "trace"}, set(), {"onnxruntime"}),
    ("trace", None, {"rules", "groups", *CHOICE, *STAGES}, {"onnxruntime"}),
    ("inference", None, {"labels", "trace", "groups", *CHOICE, *STAGES}, {"onnxruntime"}),
    ("rewrite", None, {"rules", "groups", *CHOICE, *STAGES}, {"onnxruntime"}),
    ("masking", None, {"rules", "rewrite", "groups", *CHOICE, *STAGES}, {"onnxruntime"}),
    ("verify", None, {*CHOICE, "planning", "refit", "reconstruct", "api", "stages"}, set()),
    ("slices", {"bodies", "errors", "labels", "model", "trace", "weight"}, set(), {"onnxruntime"}),
    ("redraw", None, {"rules", "rewrite", "slicing", "groups", *CHOICE, *STAGES}, {"onnxruntime"}),
    ("reals", {"model", "trace"}, set(), {"onnxruntime"}),
    ("unrounded", {"bodies", "model", "normalise", "reals"}, set(), {"onnxruntime"}),
    ("branches", {"normalise", "bodies", "model", "weight"}, set(), {"onnxruntime"}),
    ("difference", set(), set(), {"onnx", "onnxruntime"}),
    ("pair", None, {"rules", "rewrite", "slicing", "groups", "redraw", *CHOICE, *STAGES}, {"onnxruntime"}),
    ("finite", None, {"rules", "rewrite", "trace", "labels", "groups", *CHOICE, *STAGES}, {"onnxruntime"}),
    ("fit", None, {*CHOICE, *STAGES, "verify"}, {"onnxruntime"}),
    ("reconstruct", None, {*CHOICE, *STAGES, "verify"}, {"onnxruntime"}),
    ("model", {"atomic", "bodies", "errors", "normalise", "storage", "weight", "wire"}, set(), {"onnxruntime"}),
]


def imports(module: str, *, inside: bool) -> tuple[set[str], set[str]]:
    """(modules of the package, other packages) that a module imports; `inside`: in its functions and for types, too."""
    text = MODULES[module].read_text("utf-8")
    own: set[str] = set()
    others: set[str] = set()
    tree = ast.parse(text)
    here = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            others |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) + 1 - node.level]] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if not node.level and name.split(".")[0] != "onnxprune":
                others.add(name.split(".")[0])
                continue
            name = name.removeprefix("onnxprune").strip(".")
            for alias in node.names:
                full = f"{name}.{alias.name}".strip(".")
                own.add(full if full in MODULES else name)
    return own - {"", module}, others


@pytest.mark.parametrize(("module", "may", "not_these", "nor"), TABLE, ids=[row[0] for row in TABLE])
def test_a_module_knows_what_it_may(module: str, may: set[str] | None, not_these: set[str], nor: set[str]) -> None:
    parts = [m for m in MODULES if m == module or m.startswith(f"{module}.")]
    assert parts
    for part in parts:
        own, others = imports(part, inside=True)
        for name in own:
            names = {name, name.split(".")[0]}
            assert not names & not_these, (part, name)
            assert may is None or names & may, (part, name)
        assert not others & nor, (part, others & nor)


def test_nobody_imports_in_a_circle() -> None:
    edges = [(module, name) for module in MODULES for name in imports(module, inside=False)[0]]
    circles = list(nx.simple_cycles(nx.DiGraph(edges)))
    assert not circles


def test_only_those_who_trace_know_the_registry() -> None:
    who = {m for m in MODULES if "rules" in imports(m, inside=True)[0] and not m.startswith("rules")}
    assert who == {"stages", "verify", "fit.likeness"}


def test_every_module_says_what_it_knows() -> None:
    for module, path in MODULES.items():
        said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        words = {"know", "knows", "only", "no"}
        assert module in ("__init__", "__main__") or words & set(
            said.lower().replace(",", " ").replace(".", " ").split()
        ), module


def test_who_says_that_it_knows_no_operator_compares_none() -> None:
    compared = re.compile(r"op_type\s*(==|!=|in\b|not\b|\.)|\b(in|==|!=)\s[^\n]*\.op_type")
    for module, path in MODULES.items():
        text = path.read_text("utf-8")
        said = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
        assert "no operator" not in said or not compared.search(text), module
