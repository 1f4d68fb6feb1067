"""How a command line is read: files wherever they stand, help in sections with every default, words that are completed in
real shells, and what a search prints."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxprune
from onnxprune.cli import arguments, flags, main, running
from onnxprune.cli.commands import COMMANDS, job
from onnxprune.cli.completion import SHELLS, script
from onnxprune.cli.helping import Answer
from onnxprune.errors import UsageError
from onnxprune.measure import metrics
from onnxprune.run import PROVIDERS

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tiny: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in.onnx, labelled data d.npz."""
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny, "in.onnx")
    random = np.random.default_rng(0)
    np.savez("d.npz", image=random.standard_normal((40, 3, 8, 8), np.float32), labels=np.arange(40) % 5)
    return tmp_path


# Files among flags


@pytest.mark.parametrize(
    ("line", "files", "said"),
    [
        ("in.onnx out.onnx --ratio 0.2", "in.onnx out.onnx", {"ratio": 0.2}),
        ("--ratio 0.2 in.onnx out.onnx", "in.onnx out.onnx", {"ratio": 0.2}),
        ("in.onnx --ratio 0.2 out.onnx", "in.onnx out.onnx", {"ratio": 0.2}),
        ("--fast in.onnx --heads out.onnx", "in.onnx out.onnx", {"fast": True, "heads": True}),
        ("--providers cpu in.onnx out.onnx", "in.onnx out.onnx", {"providers": ["cpu"]}),
        ("--providers cpu cuda in.onnx out.onnx --fast", "in.onnx out.onnx", {"providers": ["cpu", "cuda"]}),
        ("--providers cpu in.onnx out.onnx --nodes-to-exclude a b", "in.onnx out.onnx", {"nodes_to_exclude": ["a", "b"]}),
        ("--nodes-to-exclude a b --op-types-to-exclude Gemm in.onnx out.onnx", "in.onnx out.onnx",
         {"nodes_to_exclude": ["a", "b"], "op_types_to_exclude": ["Gemm"]}),
        ("in.onnx --providers cpu out.onnx", "in.onnx out.onnx", {"providers": ["cpu"]}),
        ("--providers cpu -- in.onnx folder/out", "in.onnx folder/out", {"providers": ["cpu"]}),
        ("--providers=cpu in.onnx folder/out", "in.onnx folder/out", {"providers": ["cpu"]}),
        ("--finetune in.onnx out.onnx", "in.onnx out.onnx", {"finetune": True}),
        ("--finetune 5m in.onnx out.onnx", "in.onnx out.onnx", {"finetune": "5m"}),
        ("--mean -0.5,0.5 in.onnx out.onnx", "in.onnx out.onnx", {"mean": (-0.5, 0.5)}),
        ("in.onnx out.onnx --scale 1/255", "in.onnx out.onnx", {"scale": 1 / 255}),
        ("in.onnx out.onnx --nodes-to-exclude a --nodes-to-exclude b", "in.onnx out.onnx", {"nodes_to_exclude": ["a", "b"]}),
        ("in.onnx out.onnx --providers cuda --providers cpu", "in.onnx out.onnx", {"providers": ["cuda", "cpu"]}),
        ("in.onnx out.onnx --allocation uniform", "in.onnx out.onnx", {"scope": "local"}),
        ("-- -in.onnx -out.onnx", "-in.onnx -out.onnx", {}), ("-- --help out.onnx", "--help out.onnx", {}),
    ],
)  # fmt: skip
def test_files_are_found_wherever_they_stand(
    line: str, files: str, said: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "check_inputs", lambda inputs: None)
    args = job("prune").parser().parse(line.split())
    assert f"{args.IN} {args.OUT}" == files
    found = {**vars(args), "scope": flags.options(args).scope}
    assert {name: found[name] for name in said} == said


@pytest.mark.parametrize(
    ("command", "line", "files"),
    [
        ("sweep", "--ratios 0.2 0.4 --criteria l1 l2 in.onnx out", ("IN", "OUT_FOLDER")),
        ("verify", "--providers cpu dense.onnx pruned.onnx plan.json", ("DENSE", "PRUNED", "PLAN")),
        ("inspect", "--nodes-to-exclude a* re:b in.onnx --json", ("IN",)),
        ("compare", "a.onnx --providers cpu b.onnx", ("A", "B")),
    ],
)
def test_files_of_other_commands(
    command: str, line: str, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "check_inputs", lambda inputs: None)
    args = job(command).parser().parse(line.split())
    last = [word for word in line.split() if re.search(r"\.onnx|^out$|\.json", word) and not word.startswith("-")]
    assert [str(getattr(args, name)) for name in files] == last


def test_a_value_is_never_taken_for_a_file_to_write(folder: Path, capsys: Captured) -> None:
    """Where OUT is forgotten, the last word of a flag is not what is written."""
    for line in ("in.onnx --providers cpu cuda", "in.onnx --nodes-to-exclude conv1_weight out"):
        assert main(line.split()) == 2
        assert "write IN OUT first, or -- before them" in capsys.readouterr().err
    assert sorted(p.name for p in folder.iterdir()) == ["d.npz", "in.onnx"]


def test_prune_is_the_same_command(folder: Path, capsys: Captured) -> None:
    helps = []
    for words in ([], ["prune"]):
        assert main([*words, "--fast", "-q", "--providers", "cpu", "in.onnx", f"{len(words)}.onnx"]) == 0
        with pytest.raises(SystemExit) as end:
            main([*words, "--help"])
        assert end.value.code == 0
        helps.append(capsys.readouterr().out)
    assert Path("0.onnx").read_bytes() == Path("1.onnx").read_bytes()
    assert helps[0] == helps[1]


def test_a_command_may_stand_behind_flags(folder: Path, capsys: Captured) -> None:
    assert main(["--json", "inspect", "in.onnx"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "inspection"
    assert main(["in.onnx", "sweep", "--fast", "-q"]) == 0  # a file of that name
    assert onnx.load("sweep")
    assert main(["--fast", "-q", "--save-plan", "verify", "in.onnx", "out.onnx"]) == 0
    assert json.loads(Path("verify").read_text())["groups"]


# Help


def text(command: str, flag: str, capsys: Captured) -> str:
    with pytest.raises(SystemExit) as end:
        main([command, flag])
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_default_is_said(command: str, capsys: Captured) -> None:
    parser = job(command).parser()
    said = text(command, "--help-all", capsys)
    for action in parser._actions:
        if action.option_strings and not isinstance(action, Answer):
            words = parser._get_formatter()._expand_help(action)
            assert "default" in words, action.option_strings
            assert "".join(words.split()) in "".join(said.split()), action.option_strings
    assert said.count("--verbose") == (command != "help")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_common_flags_come_first(command: str, capsys: Captured) -> None:
    """All flags are named by --help, ten are explained; a command of few flags explains all of them."""
    parser = job(command).parser()
    said = text(command, "--help", capsys)
    assert said.startswith(f"usage: {parser.prog} ")
    names = [flag for action in parser._actions for flag in action.option_strings[-1:]]
    for flag in names:
        assert re.search(rf"{flag}\b", said) or flag.startswith("--no-"), flag
    if parser.common:
        assert len(parser.common) == 10
        places = [said.index(f" {flag}") for flag in parser.common]
        assert places == sorted(places)
        assert max(places) < said.index("more flags")
    else:
        assert said == text(command, "--help-all", capsys)
        assert len(names) < 30


def test_help_names_the_other_commands(capsys: Captured) -> None:
    said = text("prune", "--help", capsys)
    for command in COMMANDS:
        assert command == "prune" or f"onnxprune {command} {job(command).ABOUT}" in said


def test_help_wins_over_mistakes(capsys: Captured) -> None:
    for line in ("--no-such-flag --help", "in.onnx -h --ratio", "sweep --ratios x --help-all"):
        with pytest.raises(SystemExit) as end:
            main(line.split())
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith("usage: ")


# Words and numbers in Python


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"ratio": 30}, "ratio=30 is not between 0 and 1; it is the share of units to remove, such as 0.3; did you mean 0.3?"),
        ({"ratio": "30%"}, "is not a number; it is the share of units to remove, such as 0.3; did you mean 0.3?"),
        ({"ratio": "0,3"}, "did you mean 0.3?"), ({"ratio": 1.5}, "such as 0.3"), ({"max_ratio": 50}, "did you mean 0.5?"),
        ({"scope": "globl"}, "scope='globl' is not local, global, sensitivity or pq; did you mean 'global'?"),
        ({"of": "mac"}, "did you mean 'macs'?"), ({"criterion": "obss"}, "no criterion 'obss'; did you mean 'obs'?"),
        ({"providers": "cudaa"}, "no provider 'cudaa'; did you mean 'cuda'?"), ({"providers": "gpu"}, "take cpu, cuda"),
    ],
)  # fmt: skip
def test_keywords_are_answered_in_the_same_words(keywords: dict[str, object], says: str, tiny: ModelProto) -> None:
    with pytest.raises(UsageError) as refused:
        onnxprune.prune(tiny, **{"fast": True, **keywords})  # type: ignore[arg-type]
    assert says in str(refused.value)


# Reports


@pytest.mark.parametrize("name", ["x.pdf", "report", "r.json.gz", "page.HTM_"])
def test_a_report_is_a_page_or_json(name: str, folder: Path, capsys: Captured) -> None:
    said = f"a report is a page or JSON: give {name} a name that ends in .html or .json"
    for line in ("in.onnx out.onnx --fast", "sweep in.onnx s --fast", "compare in.onnx in.onnx"):
        assert main([*line.split(), "--report", name]) == 2
        assert said in capsys.readouterr().err
    report = onnxprune.prune("in.onnx", fast=True).report
    with pytest.raises(UsageError, match=re.escape(said)):
        report.save(name)
    assert sorted(p.name for p in folder.iterdir()) == ["d.npz", "in.onnx"]


def test_compare_times_and_reports(folder: Path, capsys: Captured) -> None:
    assert main(["in.onnx", "out.onnx", "--fast", "-q"]) == 0
    line = "compare in.onnx out.onnx --benchmark --threads 1 --batch 2 --validate-samples 8 --report"
    assert main([*line.split(), "c.json"]) == 0
    assert "latency" in capsys.readouterr().out
    data = json.loads(Path("c.json").read_text())
    assert data["kind"] == "compared"
    assert data["latency"]["measured"]["batch"] == 2
    assert main([*line.split(), "c.html"]) == 0
    assert Path("c.html").read_text().startswith("<!")


def test_a_sweep_measures_on_few_samples(folder: Path) -> None:
    line = "sweep in.onnx s --fast --ratios 0.3 --jobs 1 -q --validate d.npz --validate-samples"
    keys = []
    for count in ("5", "20"):
        assert main([*line.split(), count, "--report", f"{count}.json"]) == 0
        data = json.loads(Path(f"{count}.json").read_text())
        assert float(data["dense"]["metric"]) * int(count) == pytest.approx(round(data["dense"]["metric"] * int(count)))
        keys.append(json.loads(Path("s/original.json").read_text())["key"])
    assert keys[0] != keys[1]


def test_a_search_prints_its_ratio_and_the_command_that_repeats_it(folder: Path, capsys: Captured) -> None:
    gate = ["--fast", "--validate", "d.npz", "--min-agreement", "0.5"]
    assert main([*gate, "in.onnx", "a model.onnx", "--report", "r.json"]) == 0
    out = capsys.readouterr().out
    (found,) = re.findall(r"^search: --ratio (\S+) is the largest of 6 tried that holds the gates", out, re.MULTILINE)
    (command,) = re.findall(r"^again, without the search: (.*)$", out, re.MULTILINE)
    search = json.loads(Path("r.json").read_text())["search"]
    assert (str(search["ratio"]), search["command"]) == (found, command)
    assert [one["ratio"] for one in search["tried"] if one["holds"]][-1] == search["ratio"]
    name, *words = shlex.split(command)
    assert (name, words[:2], words[-4:]) == ("onnxprune", ["--ratio", found], ["in.onnx", "a model.onnx", "--report", "r.json"])
    first = Path("a model.onnx").read_bytes()
    Path("a model.onnx").unlink()
    assert main(words) == 0
    assert Path("a model.onnx").read_bytes() == first
    assert "search" not in capsys.readouterr().out


# Completion

COMPLETED = [
    ("swe", {"sweep"}), ("mod", {"model.onnx"}), ("--sco", {"--scope"}),
    ("model.onnx out.onnx --scope ", {"local", "global", "sensitivity", "pq"}),
    ("model.onnx out.onnx --calib my", {"my data.npz"}), ("model.onnx out.onnx --providers cpu cu", {"cuda"}),
    ("sweep --back", {"--backend"}), ("sweep model.onnx s --criteria l1 wa", {"wanda"}), ("help con", {"concepts"}),
    ("inspect --sco", set()), ("model.onnx out.onnx --ratio 0.3 mod", {"model.onnx"}),
]  # fmt: skip
"""(what is typed after onnxprune, what a shell completes)."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a shell completes: two files and the script of each shell, above."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("model.onnx", "my data.npz"):
        (work / name).touch()
    for shell in SHELLS:
        (tmp_path / shell).write_text(script(shell))
    monkeypatch.chdir(work)
    return tmp_path


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes(files: Path) -> None:
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _onnxprune; printf "%s\\n" "${COMPREPLY[@]}"'
    for typed, wanted in [*COMPLETED, ("model.onnx out.onnx --of = m", {"macs"})]:
        run = subprocess.run(
            ["bash", "-c", code, "bash", files / "bash", "onnxprune", *typed.split(" ")], capture_output=True, text=True, check=True
        )
        assert set(filter(None, run.stdout.splitlines())) == wanted, typed


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish here")
def test_fish_completes(files: Path) -> None:
    for typed, wanted in COMPLETED:
        code = f"source {files / 'fish'}; complete -C {shlex.quote('onnxprune ' + typed)}"
        run = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)
        assert {line.split("\t")[0] for line in run.stdout.splitlines()} == wanted, typed


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh here")
def test_zsh_completes(files: Path) -> None:
    """In a terminal, as zsh completes nowhere else: one TAB."""
    process, terminal = pty.fork()
    if process == 0:  # pragma: no cover
        os.environ["TERM"] = "dumb"
        os.execlp("zsh", "zsh", "-f", "-i")

    def answer(words: str, seconds: float = 20.0) -> str:
        os.write(terminal, words.encode())
        said, end = "", time.monotonic() + seconds
        while "\a" not in said and "READY" not in said and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                said += os.read(terminal, 65536).decode(errors="replace")
        return said

    answer(f"autoload -Uz compinit; compinit -u -D; source {files / 'zsh'}; print -r READ''Y\n")
    for typed, wanted in [("swe", "sweep"), ("--sco", "--scope"), ("model.onnx o.onnx --scope gl", "global")]:
        assert wanted in answer(f"onnxprune {typed}\t", 2.0)
        os.write(terminal, b"\x15")
    os.close(terminal)
    os.waitpid(process, 0)


def test_the_words_that_are_suggested_exist() -> None:
    assert flags.METRICS.split(", ") == [*metrics.METRICS]
    assert running.PROVIDERS.split(", ") == [*PROVIDERS]


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_printed(shell: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", shell])
    assert end.value.code == 0
    assert capsys.readouterr().out == script(shell)
    for command in COMMANDS:
        for action in job(command).parser()._actions:
            assert isinstance(action, argparse.Action)
            for flag in action.option_strings:
                assert (f"-l {flag[2:]}" if shell == "fish" and flag.startswith("--") else flag[1:]) in script(shell)
