"""The files for pipelines: they say what the command line and GitHub's schema know, and do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from onnxprune.cli.commands import prune

ROOT = Path(__file__).parents[1]
ACTION = ROOT / "tools" / "action" / "action.yml"
DOCKERFILE = ROOT / "tools" / "docker" / "Dockerfile"


def scripts() -> list[str]:
    """The shell of the steps that install and prune."""
    blocks = re.findall(r"run: \|\n((?: {8}.*\n)+)", ACTION.read_text("utf-8"))
    return ["\n".join(line.strip() for line in block.splitlines()) for block in blocks]


def script() -> str:
    """The shell of the step that prunes: the last block of the file."""
    return scripts()[-1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="the action runs in bash")
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("version", ["", "onnxprune==0.1"])
def test_action_installs_a_runtime_only_where_there_is_none(tmp_path: Path, there: bool, version: str) -> None:
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then exit {0 if there else 1}; fi\nprintf "%s\\n" "$*" >> called\n')
    fake.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "GITHUB_ACTION_PATH": "/a/tools/action",
        "VERSION": version, "RUNTIME": "onnxruntime",
    }  # fmt: skip
    install, _ = scripts()
    subprocess.run(["bash", "-eo", "pipefail", "-c", install], cwd=tmp_path, env=environment, check=True)
    called = (tmp_path / "called").read_text().splitlines()
    pip = "-m pip install --quiet"
    assert called == [f"{pip} {version or '/a/tools/action/../..'}", *([] if there else [f"{pip} onnxruntime"])]


def test_action_fits_the_schema() -> None:
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-actions", str(ACTION)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="the action runs in bash")
@pytest.mark.parametrize("optional", [True, False])
def test_action_calls_the_command(tmp_path: Path, optional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a model.onnx").touch()
    fake = tmp_path / "onnxprune"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > called\n')
    fake.chmod(0o755)
    given = {"MODEL": "a model.onnx", "OUT": "out.onnx", "RATIO": "0.4", "CALIB": "my data", "REPORT": "r.json"}
    given |= {"ARGS": "--of macs", "VALIDATE": "test set", "DROP": "0.01"}
    if not optional:
        given |= dict.fromkeys(("RATIO", "CALIB", "VALIDATE", "DROP", "REPORT", "ARGS"), "")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**given, "PATH": path, "GITHUB_OUTPUT": str(tmp_path / "output")}
    subprocess.run(["bash", "-eo", "pipefail", "-c", script()], cwd=tmp_path, env=environment, check=True)
    called = (tmp_path / "called").read_text().splitlines()
    more = [
        "--ratio",
        "0.4",
        "--calib",
        "my data",
        "--validate",
        "test set",
        "--max-drop",
        "0.01",
        "--report",
        "r.json",
    ]
    assert called == ["a model.onnx", "out.onnx", *([*more, "--of", "macs"] if optional else [])]
    assert hasattr(prune.parser().parse(called), "ratio") == optional
    assert (tmp_path / "output").read_text() == "model=out.onnx\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="the action runs in bash")
def test_action_fails_with_the_command(tmp_path: Path) -> None:
    fake = tmp_path / "onnxprune"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    given = dict.fromkeys(("RATIO", "CALIB", "VALIDATE", "DROP", "REPORT", "ARGS"), "") | {"MODEL": "m", "OUT": "o"}
    environment = {
        **given,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }
    run = subprocess.run(["bash", "-eo", "pipefail", "-c", script()], cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 1
    assert not (tmp_path / "output").exists()


def test_action_can_keep_the_python_of_earlier_steps() -> None:
    """In another one the build of ONNX Runtime that they have installed is not there."""
    (condition,) = re.findall(r"uses: actions/setup-python@\S+\n +if: (.*?) +#", ACTION.read_text("utf-8"))
    assert condition == "inputs.python-version != ''"


def test_action_puts_no_input_into_a_script() -> None:
    assert len(scripts()) == 2
    assert not any("${{" in text for text in scripts())
    assert set(re.findall(r"inputs\.([\w-]+)", ACTION.read_text())) == set(
        re.findall(r"^  ([\w-]+):\n    description", ACTION.read_text().partition("outputs:")[0], re.MULTILINE)
    )


def copied() -> list[str]:
    """What the Dockerfile copies from this folder."""
    lines = re.findall(r"^COPY (.*) \S+$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_dockerfile_copies_what_there_is() -> None:
    text = DOCKERFILE.read_text("utf-8")
    assert copied()
    assert all((ROOT / name).exists() for name in copied())
    assert text.index("USER 1000") < text.index("ENTRYPOINT")
    (runtime,) = re.findall(r"^ARG RUNTIME=(\w+)$", text, re.MULTILINE)
    assert runtime in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert '"/src[${RUNTIME}]"' in text


def test_dockerfile_is_without_lint() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint comes with the extra dev")
    run = subprocess.run([hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    broken = subprocess.run(
        [hadolint, "-"], input="FROM python\nRUN cd x && sudo pip install y\n", capture_output=True, text=True, check=False
    )
    assert broken.returncode, "a lint that finds nothing wrong with this finds nothing"
