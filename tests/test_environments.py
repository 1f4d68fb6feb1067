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
from test_runtime import MISSING, STAGES

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


def stays(environment: Environment, files: dict[str, str]) -> None:
    """The runtime with these files is whole when onnxprune has gone."""
    environment.pip("uninstall", "-y", "onnxprune")
    assert environment.runtime() == files != {}
    environment.python("-c", "import onnxruntime; onnxruntime.InferenceSession")


def test_beside_nothing_and_then_onnxruntime(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    """One line; and what that line says mends it, though no index has this version of onnxprune."""
    environment.pip("install", str(wheel))
    assert not environment.runtime()
    for words in (["--help"], ["--version"], ["help"], ["inspect", "models/tiny_conv.onnx"]):
        assert STAGES.sub("", environment.python("-m", "onnxprune", *words).stderr) == ""
    failed = environment.python("-m", "onnxprune", "models/tiny_conv.onnx", str(tmp_path / "out.onnx"), code=4)
    assert (failed.stdout, failed.stderr) == ("", MISSING)
    environment.pip("install", "onnxprune[cpu]")
    files = environment.runtime()
    assert prunes(environment, tmp_path) == "onnxruntime"
    stays(environment, files)


def test_with_onnxruntime_gpu(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    """On a machine without a GPU, too; where that build has no wheel onnxruntime takes its place."""
    environment.pip("install", f"{wheel}[gpu]")
    assert prunes(environment, tmp_path) == ("onnxruntime-gpu" if WHEELS_FOR_ALL else "onnxruntime")
    stays(environment, environment.runtime())


@pytest.mark.skipif(not WHEELS_FOR_ALL, reason="this build has wheels for x86-64 and not for macOS")
def test_beside_another_build(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    """It is the same, file by file, when onnxprune comes, works and goes."""
    environment.pip("install", "onnxruntime-openvino")
    files = environment.runtime()
    environment.pip("install", str(wheel))
    assert environment.runtime() == files != {}
    assert prunes(environment, tmp_path) == "onnxruntime-openvino"
    stays(environment, files)


BASE = os.environ.get("ONNXPRUNE_BASE", "docker.io/library/python:3.12-slim")
"""The image that the Dockerfile is built on here; it is not fetched."""


def _has_image() -> bool:
    command = ["buildah", "inspect", "--type", "image", BASE]
    return shutil.which("buildah") is not None and not subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.skipif(not _has_image(), reason=f"needs buildah, and {BASE} on this machine")
def test_the_image_does_the_job(tmp_path: Path) -> None:
    """The Dockerfile, built without a daemon, and run as another user than root."""
    way = ["--isolation", "chroot", "--network", "host"]
    build = ["buildah", "bud", *way, "--pull-never", "--build-arg", f"BASE={BASE}", "-t", "onnxprune-test"]
    subprocess.run([*build, "-f", "tools/docker/Dockerfile", "."], cwd=ROOT, check=True)
    name = subprocess.run(["buildah", "from", "onnxprune-test"], capture_output=True, text=True, check=True).stdout.strip()
    shutil.copy(ROOT / "models" / "tiny_conv.onnx", tmp_path / "in.onnx")
    tmp_path.chmod(0o777)
    try:
        job = ["onnxprune", "in.onnx", "out.onnx"]
        subprocess.run(["buildah", "run", *way, "--user", "1000:1000", "-v", f"{tmp_path}:/work", name, "--", *job], check=True)
    finally:
        subprocess.run(["buildah", "rm", name], check=True)
        subprocess.run(["buildah", "rmi", "onnxprune-test"], check=True)
    assert (tmp_path / "out.onnx").stat().st_size < (tmp_path / "in.onnx").stat().st_size
