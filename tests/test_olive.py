"""The pass for Olive: the recipe of the guide, which prunes and then quantises, with olive-ai where it is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
pytest.importorskip("olive.workflows", exc_type=ImportError)

from olive.workflows import run

from onnxprune.integrations.olive import main, package_config

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "onnxprune" / "guide" / "integrations.md").read_text("utf-8")
Shapes = dict[str, tuple[int, ...]]


def shown(language: str) -> str:
    """The block of the guide in this language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    return str(block)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the guide calls model.onnx, data.npz, data.py and package.json."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "models" / "tiny_conv.onnx", "model.onnx")
    np.savez("data.npz", image=np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32))
    Path("data.py").write_text(shown("py"))
    assert main(["package.json"]) == 0
    return tmp_path


def ran(prune: dict[str, Any], *, alone: bool = True) -> onnx.ModelProto:
    """The recipe of the guide, with other parameters of the pass; alone: without quantisation behind it."""
    recipe = json.loads(shown("json"))
    recipe["passes"]["prune"] |= prune
    if alone:
        del recipe["passes"]["quantise"]
    run(recipe | {"cache_dir": "cache"}, package_config="package.json")
    (path,) = Path("small").rglob("*.onnx")
    return onnx.load(path)


def shapes(model: onnx.ModelProto) -> Shapes:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def test_prune_then_quantise(folder: Path) -> None:
    made = ran({"effort": "low"}, alone=False)
    onnx.checker.check_model(made)
    assert "DequantizeLinear" in {node.op_type for node in made.graph.node}
    dense = onnx.load("model.onnx")
    count = {m: sum(np.prod(s) for s in shapes(x).values() if len(s) == 4) for m, x in (("made", made), ("dense", dense))}
    assert 0 < count["made"] < count["dense"]


@pytest.mark.parametrize(
    "prune",
    [{"ratio": 0.5, "fast": True, "data_config": None}, {"effort": "low", "data_config": None, "calib": "data.npz"}],
    ids=["fast", "calib"],
)
def test_the_pass_prunes_as_the_api_does(prune: dict[str, Any], folder: Path) -> None:
    made = ran(prune)
    given = {"ratio": 0.3, **prune}
    given.pop("data_config")
    assert shapes(made) == shapes(onnxprune.prune("model.onnx", **given).model.to_proto())


def test_weights_may_lie_beside_the_model(folder: Path) -> None:
    ran({"fast": True, "data_config": None, "save_as_external_data": True})
    assert len([*Path("small").rglob("*.data")]) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"ratio": 1.5, "fast": True, "data_config": None}, "ratio=1.5 is not between 0 and 1"), ({"calib": "data.npz"}, "`calib` and `data_config`")],
)  # fmt: skip
def test_what_is_refused(wrong: dict[str, Any], says: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Olive puts what a pass raises into its log, and makes no model."""
    with pytest.raises(ValueError, match="not enough values"):
        ran(wrong)
    assert says in caplog.text


def test_the_package_configuration(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = json.loads(Path("package.json").read_text())
    assert written == package_config()
    assert {"OnnxPrune", "OnnxStaticQuantization"} <= written["passes"].keys()
    assert main([]) == 2
    assert "usage: " in capsys.readouterr().err
