"""The command of optimum-cli, as optimum finds it, with optimum-onnx where it is installed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from folders import BERT, HIDDEN, bert, written

ROOT = Path(__file__).parents[1]
REGISTER = ROOT / "onnxprune" / "cli" / "optimum_register.py"


def test_the_wheel_brings_the_register_file() -> None:
    import tomllib

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"onnxprune/cli/optimum_register.py": "optimum/commands/register/register_onnxprune.py"}
    assert REGISTER.exists()


def test_without_optimum_nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum.commands.onnxruntime.base", None)
    spec = importlib.util.spec_from_file_location("register_onnxprune", REGISTER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not hasattr(module, "PruneCommand")


@pytest.fixture
def optimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """optimum-cli with the register file where the wheel puts it: in the namespace, on the path."""
    pytest.importorskip("optimum.commands.onnxruntime.base", exc_type=ImportError)
    import optimum.commands.register as namespace
    from optimum.commands import optimum_cli

    folder = tmp_path / "site" / "optimum" / "commands" / "register"
    folder.mkdir(parents=True)
    shutil.copy(REGISTER, folder / "register_onnxprune.py")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert str(folder) in map(str, namespace.__path__)

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["optimum-cli", *words])
        optimum_cli.main()

    return run


def test_a_folder_is_pruned(optimum, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    root, out = written(tmp_path / "bert", {"model.onnx": bert()}, BERT), tmp_path / "out"
    keep = ["--nodes-to-exclude", "*_k_weight", "*_q_weight", "*_v_weight"]
    words = ["onnxruntime", "prune", "--onnx_model", str(root), "-o", str(out)]
    optimum(*words, "--ratio", "0.5", "--fast", "--no-heads", *keep)
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == HIDDEN // 2
    assert f"written: {out}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        optimum(*words, "--ratio", "1.5")
    assert end.value.code == 2
    assert "'1.5' is not between 0 and 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        optimum(*words, "--fast")
    assert end.value.code == 2
    assert "not empty" in capsys.readouterr().err
