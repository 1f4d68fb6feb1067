"""Real environments: onnxprune beside nothing, beside each build of ONNX Runtime that an extra installs, and beside others
that were there before it and are still there after it. Packages come from where pip has them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_pipeline import copied
from test_runtime import MISSING

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
WHEELS_FOR_ALL = sys.platform in ("linux", "win32") and platform.machine() in ("x86_64", "AMD64")
"""Whether this machine is one for which every build here has wheels."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, of which pip is this Python's."""

    folder: Path

    def python(self, *words: str | Path, code: int = 0, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run its Python without anything of this one; it must end with `code`."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ONNXPRUNE"))}
        bin_ = self.folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        done = subprocess.run([bin_, *words], cwd=cwd, env=own, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def pip(self, *words: str) -> None:
        """pip install, pip uninstall."""
        self.python("-m", "pip", "--disable-pip-version-check", "-q", *words)

    def runtime(self) -> dict[str, str]:
        """The files of ONNX Runtime, by what is in them; without those that Python compiles."""
        where = self.python("-c", "import sysconfig; print(sysconfig.get_paths()['platlib'])").stdout.strip()
        files = [p for p in Path(where, "onnxruntime").rglob("*") if p.is_file() and p.suffix != ".pyc"]
        return {str(p.relative_to(where)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxprune as pip builds it, of the files that the Dockerfile copies."""
    source, built = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("wheel")
    for name in copied():
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", built, source], check=True)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """One with pip and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    return Environment(tmp_path / "venv")


def prunes(environment: Environment, folder: Path) -> str:
    """The command does its whole job; the build that did it, by the report."""
    model, out, report = ROOT / "models" / "tiny_conv.onnx", folder / "out.onnx", folder / "report.json"
    environment.python("-m", "onnxprune", model, out, "--report", report, cwd=folder)
    assert out.stat().st_size < model.stat().st_size
    return next(name for name in json.loads(report.read_text())["versions"] if name.startswith("onnxruntime"))


def test_beside_nothing(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    """One line; and what that line says mends it, though no index has this version of onnxprune."""
    environment.pip("install", str(wheel))
    assert not environment.runtime()
    for words in (["--help"], ["--version"], ["help"], ["inspect", "models/tiny_conv.onnx"]):
        assert environment.python("-m", "onnxprune", *words).stderr == ""
    failed = environment.python("-m", "onnxprune", "models/tiny_conv.onnx", str(tmp_path / "out.onnx"), code=4)
    assert (failed.stdout, failed.stderr) == ("", MISSING)
    environment.pip("install", "onnxprune[cpu]")
    assert prunes(environment, tmp_path) == "onnxruntime"


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_with_the_build_of_an_extra(extra: str, environment: Environment, wheel: Path, tmp_path: Path) -> None:
    environment.pip("install", f"{wheel}[{extra}]")
    assert prunes(environment, tmp_path) == ("onnxruntime-gpu" if extra == "gpu" and WHEELS_FOR_ALL else "onnxruntime")
    files = environment.runtime()
    environment.pip("uninstall", "-y", "onnxprune")
    assert environment.runtime() == files != {}


@pytest.mark.skipif(not WHEELS_FOR_ALL, reason="these builds have wheels for x86-64 and not for macOS")
@pytest.mark.parametrize("build", ["onnxruntime", "onnxruntime-openvino"])
def test_beside_a_build_that_is_there(build: str, environment: Environment, wheel: Path, tmp_path: Path) -> None:
    """It is the same, file by file, when onnxprune comes, works and goes."""
    environment.pip("install", build)
    files = environment.runtime()
    environment.pip("install", str(wheel))
    assert environment.runtime() == files != {}
    assert prunes(environment, tmp_path) == build
    environment.pip("uninstall", "-y", "onnxprune")
    assert environment.runtime() == files
    environment.python("-c", "import onnxruntime; onnxruntime.InferenceSession")
