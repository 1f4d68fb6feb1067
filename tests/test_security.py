"""What a run never does, whatever the model is: run code from a file that was not named as code, or use a network."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.cli import main
from onnxprune.data import samples
from onnxprune.errors import UsageError

ROOT = Path(__file__).parents[1]
TINY = ROOT / "models/tiny_conv.onnx"
SOURCES = sorted((ROOT / "onnxprune").rglob("*.py"))
NEVER = {
    "aiohttp", "asyncio", "cloudpickle", "cPickle", "dill", "ftplib", "http", "httpx", "imaplib", "marshal",
    "multiprocessing", "pickle", "poplib", "requests", "shelve", "smtplib", "socket", "socketserver", "ssl",
    "telnetlib", "urllib", "webbrowser", "xmlrpc",
}  # fmt: skip
ONLY_IN = {
    "joblib": "workers.py",
    "distributed": "workers.py",
    "ray": "workers.py",
    "runpy": "script.py",
    "subprocess": "helpers.py",
}
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "spawnv", "execv", "fork", "create_connection"}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def called(tree: ast.AST) -> Iterator[tuple[str, str, ast.Call]]:
    """What a call is of (re, np, or nothing), its name and itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value), node.func.attr, node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield "", node.func.id, node


def says(call: ast.Call, name: str, value: bool) -> bool:
    return any(k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_source_unpickles_opens_sockets_or_starts_programs(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    names = set(imported(tree))
    assert not names & NEVER
    assert all(path.name == ONLY_IN[name] for name in names & ONLY_IN.keys())
    for of, name, call in called(tree):
        guarded = (path.name, of, name) == ("guard.py", "os", "fork")
        assert name not in CALLS or guarded or (of, name) == ("re", "compile"), f"line {call.lineno}"
        if of == "subprocess":
            assert name == "Popen"
            assert ast.unparse(call.args[0]) == "[sys.executable, '-I', '-c', START]"
            assert not any(k.arg == "shell" for k in call.keywords)
        if (of, name) in (("np", "load"), ("numpy", "load")):
            assert says(call, "allow_pickle", False), f"line {call.lineno}"
        if (of, name) == ("torch", "load"):
            assert says(call, "weights_only", True), f"line {call.lineno}"


WATCHED = """
import sys
seen = []
def hook(event, args):
    if event.startswith(("socket.", "pickle.", "subprocess.", "urllib.", "http.", "ftplib.", "webbrowser.", "os.exec",
                         "os.fork", "os.posix_spawn", "os.spawn", "os.system")):
        seen.append((event, str(args)[:80]))
sys.addaudithook(hook)
{job}
print(code, seen)
"""


def watched(job: str, *args: str) -> list[str]:
    """What each process says of the exit code and of what it saw."""
    command = [sys.executable, "-c", WATCHED.replace("{job}", job), *args]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return done.stdout.splitlines() or [done.stderr]


@pytest.mark.parametrize("flags", [["--calib-samples", "32"], ["--fast"]])
def test_a_run_uses_no_network_no_pickle_and_no_other_program(tmp_path: Path, flags: list[str]) -> None:
    """But for the child in which the command does its work, where there are such."""
    given = [str(TINY), str(tmp_path / "out.onnx"), "--report", str(tmp_path / "page.html")]
    args = (*given, "-q", "--save-plan", str(tmp_path / "plan.json"), *flags)
    fork = "[('os.fork', '()')]"
    both = watched("from onnxprune.cli import command\ncode = command()", *args)
    assert both == ([f"0 {fork}"] * 2 if hasattr(os, "fork") else ["0 []"])


def test_the_api_starts_python_to_try_a_model_and_nothing_else() -> None:
    job = "import onnxprune\nfor _ in range(2): onnxprune.prune(sys.argv[1], fast=True)\ncode = 0"
    (line,) = watched(job, str(TINY))
    code, _, started = line.partition(" ")
    events: list[tuple[str, str]] = ast.literal_eval(started)
    assert (code, [name for name, _ in events][:1]) == ("0", ["subprocess.Popen"])
    assert {name for name, _ in events[1:]} <= {"os.posix_spawn"}, "by which a newer Python starts the same process"
    assert {what for _, what in events} == {events[0][1]}
    assert events[0][1].startswith(f"('{sys.executable}', ['{sys.executable}', '-I', '-c'"[:70])


def test_a_script_beside_the_model_is_not_run(tmp_path: Path) -> None:
    """Nor one in a folder of data: only `script.py:function` names one."""
    data = tmp_path / "data"
    data.mkdir()
    for folder in (tmp_path, data):
        for name in ("sitecustomize.py", "calib.py", "numpy.py"):
            (folder / name).write_text("raise SystemExit(99)")
    (tmp_path / "in.onnx").write_bytes(TINY.read_bytes())
    name, sizes = image()
    np.savez(data / "x.npz", **{name: np.random.default_rng(0).standard_normal(sizes).astype(np.float32)})
    given = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--calib", str(data), "-q"]
    command = [sys.executable, "-P", "-m", "onnxprune", *given]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_pickled_arrays_are_no_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="not plain arrays"):
        samples._arrays(tmp_path / "x.npz")


@pytest.mark.parametrize("outside", [False, True])
def test_test_data_in_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: bool) -> None:
    """onnx would look for such a file in the working directory."""
    monkeypatch.chdir(tmp_path)
    name, sizes = image()
    values = np.ones(sizes, np.float32)
    (tmp_path / "other.bin").write_bytes(values.tobytes())
    tensor = onnx.numpy_helper.from_array(values, name)
    if outside:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="other.bin")
    (tmp_path / "input_0.pb").write_bytes(tensor.SerializeToString())
    command = [str(TINY), str(tmp_path / "out.onnx"), "--calib", str(tmp_path), "-q"]
    assert main(command) == (2 if outside else 0)


def image() -> tuple[str, list[int]]:
    """The input of the model, and sizes for it."""
    found = onnx.load(TINY).graph.input[0]
    return found.name, [d.dim_value or 8 for d in found.type.tensor_type.shape.dim]
