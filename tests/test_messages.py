"""What a new user gets wrong: one line that says what and how to mend it, the right exit code, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from graphs import graph
from onnx import ModelProto
from test_cli import contents, fails, unexpected

from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import UsageError, explain
from onnxprune.frameworks import transfer
from onnxprune.planning import Plan, Removal

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tiny: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where these commands run: a model m.onnx, and files that are wrong for what they are given for."""
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny, "m.onnx")
    Path("folder").mkdir()
    Path("script.py").write_text("def fails():\n    raise ValueError('no data')\n")
    Path("empty.json").write_text("{}")
    Path("nothing.json").write_text(json.dumps(Plan().to_json()))
    Path("unknown.toml").write_text("ration = 0.3")
    np.savez("wrong.npz", image=np.zeros((4, 3, 9, 8), np.float32))
    np.savez("unlabelled.npz", image=np.zeros((4, 3, 8, 8), np.float32))
    return tmp_path


WRONG: list[tuple[int, str, str]] = [
    # where to write
    (2, "m.onnx .", "folder"),
    (2, "m.onnx ..", "folder"),
    (2, "m.onnx folder", "folder"),
    (2, "m.onnx no/out.onnx", "does not exist"),
    (2, f"m.onnx {os.devnull}", "regular file"),
    (2, "m.onnx out.onnx --report folder", "folder"),
    (2, "m.onnx out.onnx --save-plan no/p.json", "does not exist"),
    (2, "m.onnx m.onnx", "read and written"),
    (2, "m.onnx out.onnx --report out.onnx", "written twice"),
    (2, "sweep m.onnx m.onnx", "folder"),
    # what to read
    (2, ". out.onnx", "folder"),
    (2, "no.onnx out.onnx", "does not exist"),
    (2, "m.onnx out.onnx --plan no.json", "no.json does not exist"),
    (2, "m.onnx out.onnx --config no.toml", "no.toml does not exist"),
    (2, "m.onnx out.onnx --plan folder", "--save-plan"),
    (2, "m.onnx out.onnx --plan empty.json", "not a plan"),
    (2, "m.onnx out.onnx --plan m.onnx", "not a plan"),
    (3, "m.onnx out.onnx --plan nothing.json --fast", "plan removes nothing"),
    (2, "m.onnx out.onnx --calib no.npz", "no.npz does not exist"),
    (2, "m.onnx out.onnx --calib wrong.npz", "[4, 3, 9, 8]"),
    (2, "m.onnx out.onnx --calib folder", "nothing to read"),
    (2, "m.onnx out.onnx --calib script.py", "script.py:"),
    (2, "m.onnx out.onnx --calib script.py:missing", "missing"),
    (2, "m.onnx out.onnx --calib script.py:fails", "no data"),
    (2, "m.onnx out.onnx --validate unlabelled.npz --metric top-1", "labels"),
    (2, "m.onnx out.onnx --validate unlabelled.npz --metric best", "top-1"),
    (2, "m.onnx out.onnx --max-drop 0.01", "--validate"),
    (2, "m.onnx out.onnx --config unknown.toml", "no flag --ration; did you mean '--ratio'?"),
    (2, "m.onnx out.onnx --config", "expected one argument"),
    (2, "compare m.onnx m.onnx --data no.npz", "no.npz does not exist"),
    (2, "apply-plan no.json w.safetensors small.safetensors", "no.json does not exist"),
    (2, "apply-plan empty.json w.safetensors small.safetensors", "not a plan"),
    (2, "apply-plan nothing.json m.onnx small.pt", ".safetensors"),
    # words
    (2, "m.onnx", "OUT"),
    (2, "prune m.onnx", "OUT"),
    (2, "m.onnx out.onnx more.onnx", "more.onnx"),
    (2, "inspct m.onnx", "did you mean 'inspect'?"),
    (2, "m.onnx out.onnx --ratoi 0.3", "did you mean '--ratio'?"),
    (2, "m.onnx out.onnx --ratoi=0.3", "did you mean '--ratio'?"),
    (2, "help concept", "did you mean 'concepts'?"),
    (2, "m.onnx out.onnx --raito 0.3", "--raito"),
    (2, "m.onnx out.onnx --ratio 30", "between 0 and 1"),
    (2, "m.onnx out.onnx --ratio 30%", "such as 0.3"),
    (2, "m.onnx out.onnx --ratio", "expected one argument"),
    (2, "m.onnx out.onnx --nodes-to-exclude re:[", "re:["),
    (2, "inspect m.onnx --nodes-to-exclude c re:(", "re:("),
    (2, "sweep m.onnx out --nodes-to-exclude re:*", "re:*"),
    (2, "m.onnx out.onnx --nodes-to-exclude xyz", "no node, parameter or group"),
    (2, "m.onnx out.onnx --nodes-to-exclude conv1_wieght", "did you mean conv1_weight"),
    (2, "m.onnx out.onnx --nodes-to-exclude conv*[7]", "no node"),
    (2, "inspect m.onnx --op-types-to-exclude Convv", "did you mean Conv?"),
    (2, "inspect m.onnx --nodes-to-exclude re:^$", "inspect"),
    (2, "m.onnx out.onnx --overwrite-input-shape image:1,3", "give 4 sizes"),
    (2, "m.onnx out.onnx --overwrite-input-shape picture:1,3,8,8", "image"),
    (2, "m.onnx out.onnx --overwrite-input-shape image:1,4,8,8", "3, not 4"),
    (2, "m.onnx out.onnx --criterion magic", "obs"),
    (2, "m.onnx out.onnx --providers gpu", "cuda"),
    (2, "m.onnx out.onnx --std 0", "--std"),
    (2, "m.onnx out.onnx --mean nan", "--mean"),
    (2, "m.onnx out.onnx --scale 0", "--scale"),
    (2, "m.onnx out.onnx --scale 1/0", "1/255"),
    (2, "m.onnx out.onnx --memory lots", "4G"),
    (2, "sweep m.onnx out --ratios 2", "between 0 and 1"),
    (2, "sweep m.onnx out --backend dusk", "loky"),
    # what leaves nothing to do
    (3, "m.onnx out.onnx --fast --ratio 0.01", "raise it"),
    (3, "m.onnx out.onnx --fast --min-channels 100", "--min-channels"),
    (3, "m.onnx out.onnx --fast --max-ratio 0.01", "--max-ratio"),
    (3, "m.onnx out.onnx --fast --round-to 64", "--round-to"),
    (3, "m.onnx out.onnx --fast --round-to 64 --min-channels 50", "--min-channels and lower --round-to"),
    (3, "m.onnx out.onnx --fast --nodes-to-exclude re:", "everything is excluded by --nodes-to-exclude"),
    (
        3,
        "m.onnx out.onnx --fast --op-types-to-exclude Conv --nodes-to-exclude head*",
        "by --nodes-to-exclude and --op-types-to-exclude",
    ),
]


@pytest.mark.parametrize(("code", "command", "says"), WRONG, ids=[w[1] for w in WRONG])
def test_a_wrong_command(code: int, command: str, says: str, folder: Path, capsys: Captured) -> None:
    folders = sorted(folder.iterdir())
    line = fails(folder, capsys, code, *command.split())
    assert says in line
    assert "internal error" not in line
    assert sorted(folder.iterdir()) == folders


def test_prune_is_the_command_without_a_word(folder: Path) -> None:
    for words in ((), ("prune",)):
        assert main([*words, "m.onnx", f"{len(words)}.onnx", "--fast", "-q"]) == 0
    assert Path("0.onnx").read_bytes() == Path("1.onnx").read_bytes()


@pytest.mark.parametrize(("code", "number"), [(2, errno.EROFS), (2, errno.EACCES), (0, errno.ENOSPC)])
def test_a_folder_that_cannot_be_written_to(
    code: int, number: int, folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found out by trying, before any work is done. A full disk may have room again in the end."""

    def refused(*_: Any, **__: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    if not code:
        assert main(["m.onnx", "out.onnx", "--fast", "-q"]) == 0
        return
    monkeypatch.setattr(api, "prune", unexpected)
    assert "not writable" in fails(folder, capsys, code, "m.onnx", "out.onnx")
    assert "not writable" in fails(folder, capsys, code, "m.onnx", "out.onnx", "--report", "folder/r.html")


# -- why nothing goes ----------------------------------------------------------------------------------------------------


def refusal(model: ModelProto, folder: Path, capsys: Captured, flags: Sequence[str] = ()) -> str:
    onnx.save(model, folder / "in.onnx")
    return fails(folder, capsys, 3, folder / "in.onnx", folder / "out.onnx", "--fast", *flags)


TOKENS = "(float[N,6,16] x) => (float[N,6,3] y)"
NORMED = "a = MatMul(x, wa) n = LayerNormalization(a, gain, bias) y = MatMul(n, wo)"
SHORTCUT = "a = MatMul(x, wa) b = MatMul(x, wb) s = Add(a, b) y = MatMul(s, wo)"


def test_the_flag_that_helps_is_said(tmp_path: Path, capsys: Captured) -> None:
    normed = graph(TOKENS, NORMED, wa=(16, 32), gain=(32,), bias=(32,), wo=(32, 3))
    line = refusal(normed, tmp_path, capsys)
    assert "--residual" in line
    assert "raise" not in line
    assert main([str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--fast", "-q", "--residual"]) == 0
    (tmp_path / "out.onnx").unlink()
    shortcut = graph(TOKENS, SHORTCUT, wa=(16, 32), wb=(16, 32), wo=(32, 3))
    assert "leave out --no-residual" in refusal(shortcut, tmp_path, capsys, ["--no-residual"])
    limited = refusal(normed, tmp_path, capsys, ["--min-channels", "40"])
    assert "--residual" in limited
    assert "--min-channels" in limited


def test_what_holds_most_parameters_is_named(tmp_path: Path, capsys: Captured) -> None:
    """Neither what comes first, nor what is fixed only because of that: the operator, at the larger of its two nodes."""
    body = """
        z = MatMul(x, wz) s = Softmax(z) a = MatMul(s, wa) b = CumSum(a, last) c = MatMul(b, wc) d = CumSum(c, last)
        y = MatMul(d, wy)
    """
    model = graph(TOKENS, body, wz=(16, 8), wa=(8, 32), wc=(32, 80), wy=(80, 3), last=np.array(-1))
    for node in model.graph.node:
        node.name = f"layer {node.output[0]}"
    line = refusal(model, tmp_path, capsys, ["--nodes-to-exclude", "layer z"])
    assert "(CumSum 'layer d')" in line
    share = (8 * 32 + 32 * 80) / (16 * 8 + 8 * 32 + 32 * 80 + 80 * 3)
    assert f"{share:.0%} of the parameters" in line
    only = graph(TOKENS, "y = MatMul(x, wy)", wy=(16, 3))
    assert "an output of the model" in refusal(only, tmp_path, capsys)


def test_sizes_that_are_not_known_have_a_flag(tmp_path: Path, capsys: Captured) -> None:
    body = "a = my.domain.Mystery(x) b = MatMul(a, wa) c = Relu(b) y = MatMul(c, wy)"
    model = graph("(float[N,M] x) => (float[N,K] y)", body, wa=(16, 32), wy=(32, 4))
    model.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))
    line = refusal(model, tmp_path, capsys)
    assert "not known" in line
    assert "--overwrite-input-shape" in line


@pytest.mark.parametrize("position", [8, 9, 100])
def test_positions_that_a_plan_names_and_that_are_not_there(position: int, tiny: ModelProto) -> None:
    removal = Removal("conv1_weight", (0,), (8,), (position,))
    with pytest.raises(UsageError):
        api.apply(tiny, Plan({"conv1_weight": (removal,)}))
    with pytest.raises(UsageError):
        transfer.cut("conv1_weight", np.zeros((8, 3), np.float32), frozenset({removal}))


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MemoryError(), 4, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "f.onnx"), 4, "f.onnx: no space left"),
        (OSError(errno.EIO, "Input/output error", "f.onnx"), 4, "f.onnx"),
        (KeyError("a"), 4, "internal error: KeyError: 'a'"),
    ],
    ids=str,
)
def test_what_the_machine_does_is_no_wrong_usage(error: Exception, code: int, says: str) -> None:
    line, found = explain(error)
    assert found == code
    assert says in line


def test_nothing_is_left_of_a_sweep_that_cannot_begin(folder: Path, capsys: Captured) -> None:
    before = contents(folder)
    assert main(["sweep", "m.onnx", "new", "--criteria", "magic"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert contents(folder) == before
    assert not Path("new").exists()
