"""What keeps the house in order: no function that branches more than fifteen times, no module of over three hundred
lines, a docstring for everything public."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from radon.complexity import cc_visit

PACKAGE = Path(__file__).parents[1] / "onnxprune"
MODULES = sorted(PACKAGE.rglob("*.py"))
BRANCHES, LINES = 15, 300
named = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).with_suffix("").as_posix())


@named
def test_functions_branch_little(path: Path) -> None:
    """As radon counts cyclomatic complexity."""
    found = {f"{block.name} line {block.lineno}": block.complexity for block in cc_visit(path.read_text("utf-8"))
             if block.letter in "FM"}  # fmt: skip
    assert {name: n for name, n in found.items() if n > BRANCHES} == {}


@named
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LINES


def undocumented(body: Sequence[ast.stmt], owner: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None and not any(_name(d) == "overload" for d in node.decorator_list):
                yield f"{owner}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{node.name}.")


def _name(decorator: ast.expr) -> str:
    return getattr(decorator, "id", "")


@named
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree)
    assert [*undocumented(tree.body)] == []
