"""README's commands do what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import onnx

from onnxprune.cli import flags
from onnxprune.cli.commands import prune
from onnxprune.options import Options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def commands(block: str) -> list[list[str]]:
    """The commands of a block of shell code, with continued lines joined and `&&` taken apart."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&") if part.strip()]


def words(text: str) -> list[str]:
    """Lines without their numbers, which another machine may round otherwise."""
    return [" ".join(re.sub(r"\d[\d.,]*", "0", line).split()) for line in text.splitlines()]


def blocks() -> list[list[list[str]]]:
    return [commands(block) for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)]


def test_first_command_prunes_the_trained_model(tmp_path: Path) -> None:
    (command,) = [command for command in blocks()[0] if command[0].endswith("/onnxprune")]
    (tmp_path / "models").symlink_to(ROOT / "models")
    arguments = [sys.executable, "-m", "onnxprune", *command[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (quoted,) = re.findall(r"^```text\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert set(words(quoted)) - {"..."} <= set(words(run.stdout))
    before, after = (ROOT / command[1]).stat().st_size, (tmp_path / command[2]).stat().st_size
    assert after < 0.85 * before
    onnx.checker.check_model(tmp_path / command[2], full_check=True)


def test_second_command_runs_the_tests() -> None:
    assert blocks()[1][-1][1:] == ["-m", "pytest", "-q"]


def test_both_commands_install_a_runtime() -> None:
    installs = [command for block in blocks()[:2] for command in block if command[0].endswith("/pip")]
    assert [command[1:] for command in installs] == [["install", ".[gpu]"], ["install", ".[gpu,test]"]]


def test_every_default_is_of_options() -> None:
    arguments = prune.parser().parse_args(["in.onnx", "out.onnx"])
    assert flags.options(arguments) == Options()
