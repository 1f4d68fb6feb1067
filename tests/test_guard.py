"""What crashes, hangs or is killed ends in one line, and takes neither a run nor whoever called along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
from graphs import graph, shapes

from onnxprune import api, guard
from onnxprune.errors import OnnxPruneError, RuntimeFailure
from onnxprune.rehearsal import helpers as rehearsal

ROOT = Path(__file__).parents[1]
MLP = "a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2)"
SIGNATURE = "(float[n, 16] x) => (float[n, 8] y)"
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def mlp() -> Any:
    return graph(SIGNATURE, MLP, w1=(16, 32), w2=(32, 8))


def crash() -> Any:
    """Attention without a bias, which ONNX Runtime reads all the same."""
    body = "a = MatMul(x, w1) b = com.microsoft.Attention<num_heads = 4>(a, w2) y = MatMul(b, w3)"
    return graph("(float[2, 4, 16] x) => (float[2, 4, 8] y)", body, w1=(16, 32), w2=(32, 96), w3=(32, 8))


def endless() -> Any:
    turn = "body = turn (int64 k, bool more, float[n, 32] s) => (bool on, float[n, 32] t) { on = Identity(more) t = Tanh(s) }"
    body = f"many = Constant<value_int = 1152921504606846976>() a = MatMul(x, w1) b = Loop(many, , a) <{turn}> y = MatMul(b, w2)"
    return graph(SIGNATURE, body, w1=(16, 32), w2=(32, 8))


@pytest.fixture(autouse=True)
def helped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(guard.UNGUARDED, raising=False)


def ended(job: str, **kw: Any) -> tuple[int, str]:
    """The exit code and what is printed by a process that does `job` under guard."""
    code = f"import ctypes, os, signal, sys, time\nfrom onnxprune import guard\ndef job():\n    {job}\nsys.exit(guard.supervised(job))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, **kw)  # fmt: skip
    return done.returncode, done.stderr


@posix
@pytest.mark.parametrize(("job", "code", "said"), [
    ("return 3", 3, ""),
    ("with guard.bounded('it'): os.abort()", 4, "it crashed (SIGABRT) on this model"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", 4, "the run crashed (SIGSEGV) on this model"),
    ("os.kill(os.getpid(), signal.SIGKILL)", 4, "the run was killed, as happens where memory runs out"),
    ("with guard.bounded('it', 0.2): time.sleep(60)", 4, "it did not end within 0 s"),
    ("with guard.bounded('it', 0.2): ctypes.PyDLL(None).sleep(60)", 4, "it did not end within 0 s"),  # nobody else runs
    ("with guard.bounded('it', 0.2), guard.bounded('that', 60): time.sleep(60)", 4, "it did not end within 0 s"),
    ("\n    with guard.bounded('it', 0.1): pass\n    time.sleep(1)\n    return 0", 0, ""),
    ("\n    import atexit\n    atexit.register(os.abort)\n    return 1", 1, ""),
    ("os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", 128 + 15, ""),
    ("return guard.supervised(lambda: 5)", 5, ""),
])  # fmt: skip
def test_a_guarded_process(job: str, code: int, said: str) -> None:
    """Whatever a library does to the process, its parent tells the exit code."""
    found, line = ended(job)
    assert (found, line.count("\n")) == (code, bool(said)), line
    assert line.startswith(f"onnxprune: error: {said}" if said else "")


@posix
@pytest.mark.parametrize("both", [True, False])
def test_an_interrupt_is_passed_on_once(both: bool, tmp_path: Path) -> None:
    """A terminal sends it to parent and child, `kill` to the parent only."""
    code = "import sys, time\nfrom onnxprune import cli, guard\nsys.modules['onnxprune.cli.commands.inspect'] = type(sys)('x')\n" \
           "def run(argv):\n    print('ready', flush=True)\n    try:\n        time.sleep(60)\n    finally:\n        time.sleep(0.3)\n" \
           "sys.modules['onnxprune.cli.commands.inspect'].run = run\nsys.argv[1:] = ['inspect']\nsys.exit(cli.command())"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for patience in (10, 30):  # Python may drop an interrupt in a callback of its own; whoever waits presses again
            (os.killpg if both else os.kill)(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                _, said = process.communicate(timeout=patience)
                break
    assert (process.returncode, said) == (130, "onnxprune: error: interrupted\n")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child ends what it is at")
def test_who_kills_the_parent_means_the_run(tmp_path: Path) -> None:
    job = f"import os, sys, time\nfrom onnxprune import guard\ndef job():\n    print(os.getpid(), flush=True)\n    time.sleep(3)\n    open({str(tmp_path / 'out')!r}, 'w')\nsys.exit(guard.supervised(job))"
    with subprocess.Popen([sys.executable, "-c", job], stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:  # fmt: skip
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.02)
    else:
        pytest.fail("the child lives")


@posix
def test_the_command_ends_in_one_line(tmp_path: Path) -> None:
    onnx.save(crash(), tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-m", "onnxprune", str(tmp_path / "in.onnx"), str(out), "--fast", "--log-level", "error"],
                          text=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "crashed (SIGSEGV) on this model" in done.stderr
    assert done.stderr.count("\n") == 1
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


@pytest.mark.parametrize("by_path", [True, False])
def test_whoever_calls_survives(by_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, and then there is a model that is fine."""
    for name, model in (("crash.onnx", crash()), ("mlp.onnx", mlp())):
        onnx.save(model, tmp_path / name, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(RuntimeFailure, match="crashed"):
            api.prune("crash.onnx" if by_path else crash(), fast=True)
        assert shapes(api.prune("mlp.onnx" if by_path else mlp(), ratio=0.5, fast=True))["w1"] == (16, 16)


def test_what_never_ends_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "wait_for", lambda macs, size: None)
    monkeypatch.setattr(guard, "patience", 1.0)
    with pytest.raises(RuntimeFailure, match="did not end within 1 s"):  # or this test would not end, either
        api.prune(endless(), fast=True)
    monkeypatch.setattr(guard, "patience", 60.0)
    assert shapes(api.prune(mlp(), ratio=0.5, fast=True))["w1"] == (16, 16)


def test_an_equation_that_nobody_comes_to_the_end_of() -> None:
    body = 'a = MatMul(x, w1) b = Einsum<equation = "......ij,jk->...ik">(a, w2) y = MatMul(b, w3)'
    model = graph("(float[2, 3, 16] x) => (float[2, 3, 8] y)", body, w1=(16, 32), w2=(32, 12), w3=(12, 8))
    with pytest.raises(OnnxPruneError) as caught:
        api.prune(model, fast=True)
    assert "did not end" not in str(caught.value)  # refused at once, not given up on


def test_several_threads_at_once() -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(api.prune(mlp(), ratio=0.5, fast=True))) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [shapes(result)["w1"] for result in found] == [(16, 16)] * 3


def test_a_helper_that_is_gone_is_started_again() -> None:
    for _ in range(2):
        assert shapes(api.prune(mlp(), ratio=0.5, fast=True))["w1"] == (16, 16)
        (helper,) = rehearsal._idle
        helper.process.kill()
        helper.process.wait()


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kw: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(rehearsal, "_idle", [])
    monkeypatch.setattr(subprocess, "Popen", refused)
    assert shapes(api.prune(mlp(), ratio=0.5, fast=True))["w1"] == (16, 16)


def test_a_helper_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "_idle", [])
    monkeypatch.setattr(rehearsal, "START", "raise SystemExit(1)")
    assert shapes(api.prune(mlp(), ratio=0.5, fast=True))["w1"] == (16, 16)


def test_a_helper_sees_no_folder_but_those_of_its_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy.py").write_text("raise SystemExit(99)")
    monkeypatch.setattr(rehearsal, "_idle", [])
    with pytest.raises(RuntimeFailure, match="crashed"):
        api.prune(crash(), fast=True)
