"""Flags out of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.cli.commands import prune
from onnxprune.cli.flags import options
from onnxprune.errors import UsageError


def parsed(tmp_path: Path, text: str, *flags: str):  # type: ignore[no-untyped-def]
    (tmp_path / "p.toml").write_text(text)
    (tmp_path / "in.onnx").touch()
    return prune.parser().parse([str(tmp_path / "in.onnx"), "out.onnx", "--config", str(tmp_path / "p.toml"), *flags])


def test_every_kind_of_flag(tmp_path: Path) -> None:
    args = parsed(
        tmp_path,
        'ratio = 0.4\nallocation = "uniform"\nfast = true\nheads = false\nquiet = true\nsave_as_external_data = false\n'
        'nodes-to-exclude = ["a", "re:b.*"]\noverwrite-input-shape = ["x:1,3,8,8"]\nmean = "0.5,0.5"\nvalidate = "d.npz"\n',
    )
    found = options(args)
    assert (found.ratio, found.scope, found.fast, found.heads) == (0.4, "local", True, False)
    assert list(found.nodes_to_exclude) == ["a", "re:b.*"]
    assert found.input_shapes == {"x": (1, 3, 8, 8)}
    assert found.mean == (0.5, 0.5)
    assert (args.quiet, args.save_as_external_data, args.validate) == (True, False, "d.npz")


@pytest.mark.parametrize("flags", [["--ratio", "0.2"], ["--ratio=0.2"]])
def test_flags_win(tmp_path: Path, flags: list[str]) -> None:
    args = parsed(tmp_path, 'ratio = 0.4\nscope = "global"\nheads = false\nnodes-to-exclude = ["a"]', *flags,
                  "--allocation", "pq", "--heads", "--nodes-to-exclude", "b")  # fmt: skip
    assert (args.ratio, args.scope, args.heads, args.nodes_to_exclude) == (0.2, "pq", True, ["b"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ratoi = 0.3", "there is no flag --ratoi"), ("ratio = ", "not TOML"), ("ratio = 1.5", "'1.5' is not between 0 and 1"),
        ("ratio = true", "takes a value"), ("ratio = [0.1]", "takes one value"), ("fast = 3", "true or false"),
        ("[ratio]\nx = 1", "takes one value"), ('config = "x"', "there is no flag --config"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        parsed(tmp_path, text)
    assert says in refused.value.message


@pytest.mark.parametrize("name", ["no.toml", ""])
def test_no_such_file(name: str) -> None:
    with pytest.raises(UsageError, match="config"):
        prune.parser().parse(["in.onnx", "out.onnx", "--config", name])
