"""Mistakes made on purpose: each ends in one line on stderr that says what is wrong and what to do, with the right exit
code, and neither makes a file nor changes one.

The rows are in `mistakes_*.py`, each of which gives `ROWS`: by subject, what is wrong, the command as it is typed, its
exit code, and words that must be in the line. Its commands run in a folder with the files that its `make(folder, tiny)`
writes, and those of its `FILES` (what gives the content of each). The subject `NOT_AS_ROOT` is about permissions."""

from __future__ import annotations

import os
import shlex
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from onnx import ModelProto

from onnxprune.cli import main

TABLES = [import_module(path.stem) for path in sorted(Path(__file__).parent.glob("mistakes_*.py"))]


class Mistake(NamedTuple):
    """See the module."""

    table: ModuleType
    subject: str
    what: str
    command: str
    code: int
    says: str


ROWS = [Mistake(table, subject, *row) for table in TABLES for subject, rows in table.ROWS.items() for row in rows]
MADE: dict[str, Path] = {}
"""The folders that are there already, by the name of the table: no command changes them."""


def folder_of(table: ModuleType, new: pytest.TempPathFactory, tiny: ModelProto) -> Path:
    if table.__name__ not in MADE:
        MADE[table.__name__] = folder = new.mktemp(table.__name__)
        for name, content in getattr(table, "FILES", {}).items():
            text = content()
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        if make := getattr(table, "make", None):
            make(folder, tiny)
    return MADE[table.__name__]


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What shows that a file was written: its time, length and place on the disk."""
    stats = {str(entry.relative_to(folder)): entry.lstat() for entry in folder.rglob("*")}
    return {name: (s.st_mtime_ns, s.st_size, s.st_ino) for name, s in stats.items()}


@pytest.mark.parametrize("mistake", [pytest.param(row, id=f"{row.subject}: {row.what}") for row in ROWS])
def test_a_mistake(
    mistake: Mistake, tmp_path_factory: pytest.TempPathFactory, tiny: ModelProto, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if mistake.subject == getattr(mistake.table, "NOT_AS_ROOT", "") and hasattr(os, "geteuid") and os.geteuid() == 0:
        pytest.skip("root may do that")
    folder = folder_of(mistake.table, tmp_path_factory, tiny)
    monkeypatch.chdir(folder)
    before = state(folder)
    code = main(shlex.split(mistake.command))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("onnxprune: error: "), err
    assert err.count("\n") == 1, err
    assert mistake.says in err
    assert "internal error" not in err
    assert code == mistake.code, err
    assert state(folder) == before


def test_there_are_many_and_none_stands_twice() -> None:
    for table in TABLES:
        commands = [row.command for row in ROWS if row.table is table]
        assert len({*commands}) == len(commands)
    assert len(ROWS) >= 130
