"""What is said and where: results on stdout, all else on stderr, as lines, as JSON or as a bar; and Python's logging."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from safetensors.numpy import save_file
from test_guard import crash
from test_schema import VALIDATOR

import onnxprune
from onnxprune import api, progress
from onnxprune.cli import COMMANDS, logs, main
from onnxprune.cli.commands import inspect
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.finetuning import Finetuned
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import tuning
from onnxprune.rehearsal import helpers as rehearsal

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]
STAGE = re.compile(r"[a-z-]+ \d+\.\d s|(search|points|original): .+ \(\d+% after \d+\.\d s\)")
KEYS = {"time", "level", "stage", "seconds", "share", "message"}
SKIPPED = {"inputs": "none", "made_up": True, "samples": 3, "judged_on": 1, "skipped": "too few", "seconds": 0.0}
OURS = ["load", "shapes", "trace", "group", "rehearse", "decide", "rewrite", "re-trace", "check", "equivalence"]
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and has terminals")

# A command by its first word, what it is given, the kind of what it prints as JSON, and stages that it names
TABLE = [
    ("prune", "tiny.onnx out.onnx --ratio 0.5 --calib-samples 16 --validate data.npz --report page.html", "report",
     "load validate shapes calibrate statistics scores sensitivity equivalence reconstruct run write"),
    ("prune", "tiny.onnx out.onnx --fast --validate data.npz --max-drop 0.9", "report", "validate search write"),
    ("inspect", "tiny.onnx --graph deps.json", "inspection", "load shapes trace group"),
    ("compare", "tiny.onnx small.onnx --data data.npz", "compared", "load validate shapes"),
    ("verify", "tiny.onnx small.onnx plan.json", "verified", "load shapes re-trace equivalence"),
    ("sweep", "tiny.onnx points --ratios 0.3 0.5 --fast --jobs 1 --validate data.npz", "sweep", "load original points"),
    ("apply-plan", "plan.json w.safetensors o.safetensors --model tiny.onnx", "applied", "load match slice write"),
    ("finetune", "tiny.onnx small.onnx out.onnx", "finetuned", "load finetune write"),
]  # fmt: skip
table = pytest.mark.parametrize(("name", "words", "kind", "stages"), TABLE, ids=[f"{t[0]}-{t[2]}-{k}" for k, t in enumerate(TABLE)])


@pytest.fixture
def folder(tiny: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a model, what a plan leaves of it, its weights and labelled inputs; training is somebody else's test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "DEFAULT", "info")
    monkeypatch.setattr(tuning, "finetune", trained)
    monkeypatch.setattr(tuning, "check", lambda options: None)
    onnx.save(tiny, "tiny.onnx")
    result = onnxprune.prune(tiny, ratio=0.5, fast=True)
    result.save("small.onnx")
    result.plan.save("plan.json")
    save_file({t.name: numpy_helper.to_array(t).copy() for t in tiny.graph.initializer}, "w.safetensors")
    images = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    np.savez("data.npz", image=images, labels=np.arange(16) % 5)
    return tmp_path


def trained(dense: Any, pruned: Any, *_: Any, **__: Any) -> Finetuned:
    progress.now()("finetune: loss 0.1 of 0.2", 0.5)
    warnings.warn("of a library", stacklevel=1)
    print("printed by a library")
    return Finetuned(Model.load(pruned), SKIPPED)


def records(err: str) -> list[dict[str, Any]]:
    """Lines of JSON as they were written, one after the other; a stage's own seconds only grow."""
    found = [json.loads(line) for line in err.splitlines()]
    for record in found:
        assert record.keys() - {"traceback"} == KEYS
        assert (record["stage"] is None) == (record["seconds"] is None)
    assert [r["time"] for r in found] == sorted(r["time"] for r in found)
    for one, other in pairwise(found):
        assert one["stage"] != other["stage"] or one["seconds"] <= other["seconds"] or one["share"] == 1
    return found


# What every command says


def test_every_command_has_a_row() -> None:
    assert {row[0] for row in TABLE} == set(COMMANDS) - {"help"}


@table
def test_streams(name: str, words: str, kind: str, stages: str, folder: Path, capsys: Captured) -> None:
    """Of one command with all the flags: what is a result, and nothing else, is on stdout."""
    given = [name, *words.split()]
    own = {"of a library", "printed by a library"} if name == "finetune" else set()

    def said(*more: str) -> tuple[str, str]:
        assert main([*given, *more]) == 0, capsys.readouterr().err
        out, err = capsys.readouterr()
        return out, "\n".join(line for line in err.splitlines() if not any(text in line for text in own))

    out, err = said()
    assert out.strip()
    assert not STAGE.search(out)
    assert [line for line in err.splitlines() if not STAGE.fullmatch(line)] == []
    assert set(stages.split()) <= {re.split("[: ]", line)[0] for line in err.splitlines()}
    assert said("-q") == ("", "")
    assert said("--log-level", "warning")[1] == ""
    for more, quiet in (((), False), (("-q",), True)):
        out, err = said("--json", *more)
        VALIDATOR.validate(document := json.loads(out))
        assert document["kind"] == kind
        assert bool(err) != quiet
    assert said("-q", "--log-level", "info")[0] == ""
    out, err = said("--json", "--log-format", "json")
    json.loads(out)
    assert set(stages.split()) <= {record["stage"] for record in records(err)}
    assert {record["level"] for record in records(err)} == {"info"}
    assert {record["level"] for record in records(said("--log-format=json", "--log-level=debug")[1])} >= {"info"}


def test_the_report_is_the_one_that_is_written(folder: Path, capsys: Captured) -> None:
    assert main(["tiny.onnx", "out.onnx", "--fast", "--report", "r.json", "--json", "-q"]) == 0
    shown, written = json.loads(capsys.readouterr().out), json.loads(Path("r.json").read_text())
    assert shown == written


def test_a_gate_that_fails_has_a_report_too(folder: Path, capsys: Captured) -> None:
    gate = ["--validate", "data.npz", "--min-cosine", "1", "--ratio", "0.5"]
    assert main(["tiny.onnx", "out.onnx", "--fast", *gate, "--json", "-q", "--log-format", "json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["validation"]["failed"]
    (record,) = records(err)
    assert (record["level"], record["stage"]) == ("error", None)


def test_the_file_of_flags_may_say_how(folder: Path, capsys: Captured) -> None:
    Path("f.toml").write_text("log-format = 'json'\njson = true\n")
    assert main(["tiny.onnx", "out.onnx", "--fast", "--config", "f.toml"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)
    assert records(err)
    assert main(["tiny.onnx", "no/out.onnx", "--fast", "--config", "f.toml"]) == 2
    assert "does not exist" in records(capsys.readouterr().err)[0]["message"]


@pytest.mark.parametrize(
    ("words", "code", "stage", "says"),
    [
        ("nothing.onnx out.onnx", 2, None, "does not exist"),
        ("prun out.onnx", 2, None, "did you mean"),
        ("tiny.onnx out.onnx --ratio 2", 2, None, "--ratio"),
        ("tiny.onnx out.onnx --log-level loud", 2, None, "--log-level"),
        ("tiny.onnx out.onnx --calib no.npz", 2, "load", "no.npz"),
        ("tiny.onnx out.onnx --validate no.npz --fast", 2, "validate", "no.npz"),
        ("tiny.onnx out.onnx --fast --nodes-to-exclude *", 3, "decide", "--nodes-to-exclude"),
    ],
)  # fmt: skip
def test_an_error_is_a_line_of_the_same_form(
    words: str, code: int, stage: str | None, says: str, folder: Path, capsys: Captured
) -> None:
    assert main([*words.split(), "--log-format", "json"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    last = records(err)[-1]
    assert (last["level"], last["stage"]) == ("error", stage)
    assert says in last["message"]
    assert main(words.split()) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith("onnxprune: error: ")


def test_a_traceback_is_part_of_the_line(folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object, **__: object) -> NoReturn:
        raise ValueError("one line\nand another")

    monkeypatch.setattr(api, "prune", unexpected)
    assert main(["tiny.onnx", "out.onnx", "--log-format", "json", "--verbose"]) == 4
    (record,) = records(capsys.readouterr().err)
    assert "Traceback" in record["traceback"]
    assert "ValueError: one line and another" in record["message"]
    assert record["stage"] == "load"


def test_nothing_of_it_stays(folder: Path, capsys: Captured) -> None:
    """Whoever calls the command line from a program finds logging and warnings as they were."""


    def state() -> list[Any]:
        return [warnings.showwarning, *((x.level, [*x.handlers]) for x in map(logging.getLogger, ("", "onnxprune")))]

    before = state()
    for words in ("tiny.onnx out.onnx --fast --log-level debug", "tiny.onnx out.onnx --ratio 2"):
        main(words.split())
        assert state() == before
    capsys.readouterr()
    onnxprune.prune("tiny.onnx", fast=True)
    assert capsys.readouterr() == ("", "")


# Through the process that guards a command


def started(folder: Path, *words: str, **kw: Any) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "ONNXPRUNE_UNGUARDED"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "onnxprune", *words], cwd=folder, env=env, text=True, check=False,
                          **{"capture_output": True, **kw})  # fmt: skip


SCRIPT = """
import ctypes, logging, sys, warnings
import numpy as np
logging.basicConfig(level=logging.INFO)
def batches():
    print("printed by the script")
    ctypes.CDLL(None).puts(b"put by C")
    warnings.warn("take care")
    logging.getLogger("theirs").warning("logged by the %s", "script", extra={"stage": 1, "flags": 2})
    yield {"image": np.ones((16, 3, 8, 8), np.float32)}
"""


@posix
def test_what_others_print_is_no_result(folder: Path) -> None:
    (folder / "s.py").write_text(SCRIPT)
    done = started(folder, "tiny.onnx", "out.onnx", "--calib", "s.py:batches", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "report"
    for text in ("printed by the script", "put by C", "warning: logged by the script", "warning: UserWarning: take care"):
        assert done.stderr.count(text) == 1
    assert done.stderr.count("calibrate") == 1  # not a second time by the script's own logging


@posix
def test_a_crash_is_a_line_of_the_same_form(folder: Path) -> None:
    onnx.save(crash(), folder / "crash.onnx")
    for form in ("json", "text"):
        done = started(folder, "crash.onnx", "out.onnx", "--fast", "--log-format", form)
        assert (done.returncode, done.stdout) == (4, "")
        last = done.stderr.splitlines()[-1]
        said = records(done.stderr)[-1]["message"] if form == "json" else last.removeprefix("onnxprune: error: ")
        assert "crashed (SIGSEGV) on this model" in said
        assert "load 0." in done.stderr


@posix
def test_stderr_that_nobody_reads_stops_nothing(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = started(folder, "tiny.onnx", "out.onnx", "--fast", capture_output=False, stdout=subprocess.PIPE, stderr=writing)
    os.close(writing)
    assert done.returncode == 0
    assert "written: out.onnx" in done.stdout


@posix
@pytest.mark.parametrize(("closed", "shown"), [("<&-", True), (">&-", False), ("2>&-", True), ("<&- >&- 2>&-", False)])
def test_streams_that_are_closed(closed: str, shown: bool, folder: Path) -> None:
    """Results go nowhere then, and not into the files that are opened next."""
    line = f"{sys.executable} -m onnxprune tiny.onnx out.onnx --fast --json --report r.json {closed}"
    env = {k: v for k, v in os.environ.items() if k != "ONNXPRUNE_UNGUARDED"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, cwd=folder, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    onnx.checker.check_model(folder / "out.onnx")
    report = (folder / "r.json").read_text()
    assert done.stdout == (report if shown else "")
    assert bool(done.stderr) == ("2>&-" not in closed)


# A terminal


def on_terminal(
    folder: Path, *words: str, interrupt: str = "", code: str = "", kind: str = "xterm"
) -> tuple[int, str, str]:
    """The exit code, stdout, and what was written to the terminal that stderr is; Ctrl-C once `interrupt` is seen.
    code: run before the command."""
    import pty

    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("ONNXPRUNE_UNGUARDED", "NO_COLOR")}
    env |= {"PYTHONPATH": str(ROOT), "TERM": kind, "COLUMNS": "80", "LINES": "24"}
    code += "\nfrom onnxprune.cli import command\nraise SystemExit(command())"
    with subprocess.Popen([sys.executable, "-c", code, *words], cwd=folder, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=theirs, start_new_session=True) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if interrupt and interrupt.encode() in shown:
                process.send_signal(signal.SIGINT)
                interrupt = ""
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    return process.returncode, out, shown.decode()


def plain(shown: str) -> list[str]:
    """The frames of a bar and the lines above it, without what moves the cursor and colours."""
    return [line.strip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)) if line.strip()]


STEPS = """
import time
from onnxprune import api, progress
inspect = api.inspect
def slowly(*args, **kw):
    for k in range(10):
        progress.now()("score", k / 10)
        time.sleep(0.15)  # longer than between two frames
    return inspect(*args, **kw)
api.inspect = slowly
"""
SLOW = ("tiny.onnx", "out.onnx", "--ratio", "0.5", "--calib-samples", "64")


@posix
def test_a_bar_on_a_terminal(folder: Path) -> None:
    code, out, shown = on_terminal(folder, *SLOW)
    assert code == 0, shown
    assert "written: out.onnx" in out
    frames = plain(shown)
    assert all("━" in frame for frame in frames), frames  # stages are no lines here
    assert {"load", "calibrate", "reconstruct"} <= {frame.split()[0] for frame in frames}
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    assert "\x1b[" not in out


@posix
def test_the_bar_says_what_is_left(folder: Path) -> None:
    code, _, shown = on_terminal(folder, "inspect", "tiny.onnx", code=STEPS)
    assert code == 0, shown
    found = [re.fullmatch(r"score +[━╸╺]{22} +(\d+)% 0:00:0\d (-:--:--|0:00:0\d)", frame) for frame in plain(shown)]
    shares = [int(match[1]) for match in found if match]
    assert len(set(shares)) > 5
    assert shares[: shares.index(max(shares))] == sorted(shares[: shares.index(max(shares))])
    assert any(match[2] != "-:--:--" for match in found if match)
    assert max(map(len, plain(shown))) < 80


@posix
def test_lines_above_the_bar_where_they_are_asked_for(folder: Path) -> None:
    code, _, shown = on_terminal(folder, *SLOW, "--log-level", "info")
    assert code == 0
    lines = [line for line in plain(shown) if "━" not in line]
    assert any("━" in line for line in plain(shown))
    assert {"load", "calibrate", "reconstruct"} <= {line.split()[0] for line in lines if STAGE.fullmatch(line)}


@posix
def test_lines_where_the_cursor_cannot_be_moved(folder: Path) -> None:
    code, _, shown = on_terminal(folder, "tiny.onnx", "out.onnx", "--fast", kind="dumb")
    assert code == 0
    assert [line for line in plain(shown) if not STAGE.fullmatch(line)] == []
    assert "load" in shown


@posix
@pytest.mark.parametrize("more", [["-q"], ["--log-level", "warning"], ["--log-format", "json"], ["--json", "-q"]], ids=" ".join)
def test_no_bar_where_none_is_wanted(more: list[str], folder: Path) -> None:
    code, out, shown = on_terminal(folder, "tiny.onnx", "out.onnx", "--fast", *more)
    assert code == 0
    assert "\x1b" not in shown
    assert bool(records(shown.replace("\r", ""))) == ("--log-format" in more)
    assert bool(out) == (more != ["-q"])


@posix
def test_ctrl_c_ends_the_bar(folder: Path) -> None:
    code, out, shown = on_terminal(folder, *SLOW[:-1], "512", interrupt="calibrate")
    assert (code, out) == (130, "")
    assert plain(shown)[-1] == "onnxprune: error: interrupted"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


# In Python


def stages(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """The stages that have ended, in order."""
    return [r.stage for r in caplog.records if r.levelno == level and r.name == "onnxprune.progress" and "stage" in vars(r)]


def test_logging_is_silent_until_it_is_asked_for(folder: Path, capsys: Captured) -> None:
    code = "import onnxprune; onnxprune.prune('tiny.onnx', fast=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


def test_stages_are_info(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNXPRUNE_UNGUARDED", raising=False)
    monkeypatch.setattr(rehearsal, "_idle", [])
    caplog.set_level(logging.DEBUG, "onnxprune")
    result = onnxprune.prune("tiny.onnx", ratio=0.5, fast=True)
    assert stages(caplog) == OURS
    seconds = {r.stage: r.seconds for r in caplog.records if "seconds" in vars(r)}  # type: ignore[attr-defined]
    for stage, taken in result.report.seconds.items():
        assert seconds[stage] == pytest.approx(taken, abs=0.5)
    frozen = [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG]
    assert "head_weight[0]: 5 units stay: an output of the model keeps its shape (output 'logits')" in frozen
    assert all(r.name.startswith("onnxprune.") for r in caplog.records)


@pytest.mark.parametrize(("job", "named"), [
    (lambda path: onnxprune.inspect(path), {"shapes", "trace", "group"}),
    (lambda path: onnxprune.plan(path, fast=True), {"shapes", "trace", "group"}),
    (lambda path: onnxprune.compare(path, path, samples=4), {"validate", "shapes"}),
    (lambda path: onnxprune.verify(path, "small.onnx", onnxprune.Plan.load("plan.json")), {"re-trace", "equivalence"}),
    (lambda path: onnxprune.sweep(path, "points", [0.5], options=Options(fast=True), data="data.npz", jobs=1), {"original", "points"}),
], ids=["inspect", "plan", "compare", "verify", "sweep"])  # fmt: skip
def test_every_call_has_stages(
    job: Callable[[str], Any], named: set[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "onnxprune")
    job("tiny.onnx")
    assert named <= set(stages(caplog))
    assert progress.now().stage == ""


def test_the_turns_of_a_search(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "onnxprune")
    heard: list[tuple[str, float]] = []
    onnxprune.largest("tiny.onnx", lambda result: result.plan.ratio < 0.3, fast=True,
                      progress=lambda stage, share: heard.append((stage, share)))  # fmt: skip
    steps = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO and " hold" in r.getMessage()]
    assert [step.partition(" (")[0] for step in steps[:2]] == ["search: ratio 0.500 does not hold", "search: ratio 0.250 holds"]
    assert len(steps) == api.STEPS
    assert stages(caplog)[-1] == "search"
    assert {"rewrite", "equivalence"} <= set(stages(caplog, logging.DEBUG))
    assert not {"rewrite", "equivalence"} & set(stages(caplog))
    assert ("search: ratio 0.500, rewrite", 0.0) in heard
    shares = [share for stage, share in heard if stage.startswith("search")]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_warning_says_what_is_less_than_asked_for(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> NoReturn:
        raise RuntimeFailure("take --providers cpu")

    monkeypatch.setattr("onnxprune.planning.decision.calibrated", fails)
    onnxprune.prune("tiny.onnx", ratio=0.5)
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage().startswith("no inputs could be run (take providers cpu), so weights alone decided")
    assert "--providers" in record.flags  # type: ignore[attr-defined]


def test_progress_is_called_with_stages_and_shares(folder: Path) -> None:
    heard: list[tuple[str, float]] = []
    onnxprune.prune("tiny.onnx", ratio=0.5, calib_samples=16, progress=lambda *said: heard.append(said))
    names = list(dict.fromkeys(stage for stage, _ in heard))
    assert names[:4] == ["load", "shapes", "trace", "group"]
    assert {"statistics", "scores", "sensitivity", "reconstruct"} <= set(names)
    for name in ("statistics", "scores", "sensitivity"):
        shares = [share for stage, share in heard if stage == name]
        assert len(set(shares)) > 1
        assert shares == sorted(shares)
    turns = [share for stage, share in heard if stage == "reconstruct"]
    assert turns == sorted(turns)  # of all turns together
    assert all(0 <= share <= 1 for _, share in heard)


def test_who_raises_in_progress_ends_the_run(folder: Path) -> None:
    def enough(stage: str, share: float) -> None:
        if stage == "trace":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        onnxprune.prune("tiny.onnx", fast=True, progress=enough)
    assert progress.now().stage == ""


def test_a_long_stage_says_that_it_lives(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.01)
    caplog.set_level(logging.INFO, "onnxprune")

    def lives(text: str) -> Iterator[str]:
        while not (said := [r.getMessage() for r in caplog.records if text in r.getMessage()]):
            pass  # the test would be ended by its runner
        yield said[0]

    with progress.telling() as run:
        run("equivalence", 0.0)
        assert re.fullmatch(r"equivalence: not done yet after \d+ s", *lives("equivalence"))
        run("finetune: loss 1", 0.25)
        assert re.fullmatch(r"finetune: loss 1, 25% done after \d+ s, about \d+ s left", *lives("25%"))
    spoken = len(caplog.records)
    assert [r.getMessage() for r in caplog.records if " done" not in r.getMessage()][-1].startswith("finetune ")
    with progress.telling():
        pass  # and nobody speaks for a run that has ended, or one without a stage
    assert len(caplog.records) == spoken


@pytest.mark.parametrize(
    ("share", "seconds", "left"),
    [
        (0.01, 60, ""), (0.5, 60, ", about 60 s left"), (0.4, 60, ", about 90 s left"), (0.25, 60, ", about 3 min left"),
        (1.0, 60, ", about 0 s left"),
    ],
)  # fmt: skip
def test_what_is_left_follows_from_what_is_done(
    share: float, seconds: int, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "onnxprune")
    stages = progress.Stages()
    stages("scores", share)
    stages._began -= seconds
    stages._spoke -= progress.EVERY
    stages.live()
    assert caplog.records[-1].getMessage() == f"scores: {share:.0%} done after {seconds} s{left}"


def test_nobody_is_woken_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def thread(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(progress, "Thread", thread)
    with progress.telling():
        pass


def test_a_run_within_a_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "onnxprune")
    with progress.telling() as outer:
        outer("one", 0.0)
        with progress.telling() as same:
            assert same is outer
        with progress.telling(lambda stage, share: None) as other:
            other("inner", 0.0)
        with progress.inside("two: a", 0.5) as part:
            part("inner", 0.0)
            assert (outer.stage, outer.detail, outer.share) == ("two", "a, inner", 0.5)
    assert stages(caplog) == ["one", "two"]


def test_flags_of_the_log_are_those_of_all_commands() -> None:
    for name in set(COMMANDS) - {"help"}:
        module = __import__(f"onnxprune.cli.commands.{name.replace('-', '_')}", fromlist=["parser"])
        assert {"--json", "-q", "--log-level", "--log-format"} <= module.parser()._option_string_actions.keys()
    with pytest.raises(UsageError, match="loud"):
        inspect.parser().parse(["tiny.onnx", "--log-level", "loud"])
