"""The command line: what it writes, and what it does with wrong input, a full disk and Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import onnxprune
from onnxprune import api
from onnxprune.cli import main

Captured = pytest.CaptureFixture[str]
OLD = b"an older result"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(folder: Path, capsys: Captured, code: int, *arguments: str | Path) -> str:
    """The command ends with `code` and one line, and changes no file in `folder`."""
    before = contents(folder)
    assert main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("onnxprune: error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert contents(folder) == before
    return captured.err


def mystery(prunable: bool) -> ModelProto:
    """A model with an operator that nobody knows, behind two convolutions or at once."""
    text = """<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>
        g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { BODY }"""
    first = "c = my.domain.Mystery(x) y = Conv(c, w2)"
    last = "a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) y = my.domain.Mystery(c)"
    model = onnx.parser.parse_model(text.replace("BODY", last if prunable else first))
    random = np.random.default_rng(0)
    for name, shape in {"w1": (8, 3, 1, 1), "w2": (4, 8, 1, 1)}.items():
        if prunable or name == "w2":
            model.graph.initializer.append(numpy_helper.from_array(random.random(shape, np.float32), name))
    return model


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a result of an earlier run lies."""
    path = tmp_path / "out.onnx"
    path.write_bytes(OLD)
    return path


# What it does


def test_prunes_and_reports(tiny_path: Path, tmp_path: Path, capsys: Captured) -> None:
    source, out, report, plan = tiny_path.read_bytes(), tmp_path / "o.onnx", tmp_path / "r.json", tmp_path / "p.json"
    assert main([str(tiny_path), str(out), "--ratio", "0.5", "--fast", "--report", str(report), "--save-plan",
                 str(plan)]) == 0  # fmt: skip
    text = capsys.readouterr()
    assert "parameters" in text.out
    assert "proof" in text.out
    assert text.err == ""
    assert tiny_path.read_bytes() == source
    onnx.checker.check_model(out, full_check=True)
    shapes = {weight.name: tuple(weight.dims) for weight in onnx.load(out).graph.initializer}
    assert shapes["conv1_weight"] == (4, 3, 3, 3)
    assert shapes["conv2_weight"] == (6, 4, 3, 3)
    assert shapes["head_weight"] == (5, 6)
    data = json.loads(report.read_text())
    assert data["schema"] == 1
    assert data["providers"] == ["CPUExecutionProvider"]
    assert data["after"]["parameters"] == sum(int(np.prod(shape)) for shape in shapes.values())

    again = tmp_path / "again.onnx"
    assert main([str(tiny_path), str(again), "--plan", str(plan), "--fast", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert again.read_bytes() == out.read_bytes()


def test_validate(tiny_path: Path, tmp_path: Path, capsys: Captured) -> None:
    images = np.random.default_rng(0).standard_normal((70, 3, 8, 8)).astype(np.float16)
    np.savez(tmp_path / "data.npz", image=images, labels=np.arange(70) % 5)
    report = tmp_path / "r.json"
    arguments = ["--validate", str(tmp_path / "data.npz"), "--report", str(report)]
    assert main([str(tiny_path), str(tmp_path / "o.onnx"), *arguments]) == 0
    assert "top-1 of 70" in capsys.readouterr().out
    validation = json.loads(report.read_text())["validation"]
    assert validation["samples"] == 70
    assert 0 <= validation["before"] <= 1


@pytest.mark.gpu
def test_cuda(tiny_path: Path, tmp_path: Path, capsys: Captured) -> None:
    report = tmp_path / "r.json"
    arguments = ["--providers", "cuda", "--check-rtol", "1e-3", "--report", str(report)]
    assert main([str(tiny_path), str(tmp_path / "o.onnx"), *arguments]) == 0
    assert json.loads(report.read_text())["providers"][0] == "CUDAExecutionProvider"


def test_external_data(tiny: ModelProto, tmp_path: Path) -> None:
    tiny.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((64, 3, 3, 3), np.float32), "conv1_weight"))
    tiny.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(64, np.float32), "conv1_bias"))
    tiny.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.ones((12, 64, 3, 3), np.float32), "conv2_weight"))
    onnx.save(tiny, tmp_path / "in.onnx")
    assert main([str(tmp_path / "in.onnx"), str(tmp_path / "o.onnx"), "--save-as-external-data", "-q"]) == 0
    assert (tmp_path / "o.onnx.data").stat().st_size > (tmp_path / "o.onnx").stat().st_size
    onnx.checker.check_model(tmp_path / "o.onnx", full_check=True)


def test_inspect(tiny_path: Path, capsys: Captured) -> None:
    assert main(["inspect", str(tiny_path)]) == 0
    text = capsys.readouterr().out
    assert "groups" in text
    assert "frozen" in text
    assert main(["inspect", str(tiny_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert sorted(group["units"] for group in data["groups"] if group["prunable"]) == [8, 12]
    assert all(entry["reason"] for entry in data["frozen"])


def test_inspect_is_a_command_only_as_the_first_word(tiny: ModelProto, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny, "inspect")
    assert main(["./inspect", "o.onnx", "-q"]) == 0


def test_api_functions_are_not_hidden_by_modules() -> None:
    assert (onnxprune.plan, onnxprune.verify, onnxprune.prune) == (api.plan, api.verify, api.prune)


def test_help_and_version_are_quick() -> None:
    for flag in ("--help", "--version"):
        code = f"""if True:
            import sys
            from onnxprune.cli import main
            try:
                main([{flag!r}])
            except SystemExit as end:
                assert end.code == 0
            assert not {{"numpy", "onnx", "onnxruntime", "rich"}} & set(sys.modules)
        """
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert "onnxprune" in run.stdout


# What it refuses


def truncated(path: Path, model: ModelProto) -> None:
    data = model.SerializeToString()
    path.write_bytes(data[: len(data) // 2])


BROKEN: dict[str, Callable[[Path, ModelProto], object]] = {
    "missing": lambda path, model: None,
    "folder": lambda path, model: path.mkdir(),
    "empty": lambda path, model: path.write_bytes(b""),
    "text": lambda path, model: path.write_text("This is a text, not a model.\n" * 50),
    "truncated": truncated,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_input_that_is_no_model(kind: str, tiny: ModelProto, tmp_path: Path, out: Path, capsys: Captured) -> None:
    path = tmp_path / "in.onnx"
    BROKEN[kind](path, tiny)
    assert str(path) in fails(tmp_path, capsys, 2, path, out)
    fails(tmp_path, capsys, 2, "inspect", path)


def test_model_without_weights(tmp_path: Path, out: Path, capsys: Captured) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "in.onnx")
    fails(tmp_path, capsys, 3, tmp_path / "in.onnx", out)


def test_everything_excluded(tiny_path: Path, tmp_path: Path, out: Path, capsys: Captured) -> None:
    fails(tmp_path, capsys, 3, tiny_path, out, "--nodes-to-exclude", "*")


@pytest.mark.parametrize(("prunable", "code"), [(True, 4), (False, 3)])
def test_unknown_custom_operators(prunable: bool, code: int, tmp_path: Path, out: Path, capsys: Captured) -> None:
    onnx.save(mystery(prunable), tmp_path / "in.onnx")
    error = fails(tmp_path, capsys, code, tmp_path / "in.onnx", out)
    assert "Mystery" in error or code == 3


def test_inspect_names_unknown_operators(tmp_path: Path, capsys: Captured) -> None:
    onnx.save(mystery(True), tmp_path / "in.onnx")
    assert main(["inspect", str(tmp_path / "in.onnx")]) == 0
    assert "Mystery" in capsys.readouterr().out


@pytest.mark.parametrize("ratio", ["0", "1", "1.5", "-0.1", "nan", "inf", "many"])
def test_ratio_outside_0_and_1(ratio: str, tiny_path: Path, tmp_path: Path, out: Path, capsys: Captured) -> None:
    assert "--ratio" in fails(tmp_path, capsys, 2, tiny_path, out, f"--ratio={ratio}")


@pytest.mark.parametrize(
    "flags",
    [
        ["--min-channels", "0"], ["--round-to", "x"], ["--max-ratio", "1.1"], ["--scope", "wide"], ["--no-such-flag"],
        ["--criterion", "magic"], ["--overwrite-input-shape", "image"], ["--overwrite-input-shape", "image:1,x"],
        ["--check-rtol", "-1"], ["--plan", "no.json"], ["--validate", "no.npz"], ["--report", "no/r.json"],
        ["--save-plan", "no/p.json"], ["--seed", "-1"],
    ],
)  # fmt: skip
def test_wrong_flags(flags: list[str], tiny_path: Path, tmp_path: Path, out: Path, capsys: Captured) -> None:
    fails(tmp_path, capsys, 2, tiny_path, out, *flags)


@pytest.mark.parametrize("plan", ["", "{", "[]", "{}", '{"version": 1, "groups": {"g": [{}]}}'])
def test_a_file_that_is_no_plan(plan: str, tiny_path: Path, tmp_path: Path, out: Path, capsys: Captured) -> None:
    (tmp_path / "plan.json").write_text(plan)
    fails(tmp_path, capsys, 2, tiny_path, out, "--plan", tmp_path / "plan.json")


def test_plan_and_ratio_exclude_each_other(tiny_path: Path, tmp_path: Path, out: Path, capsys: Captured) -> None:
    (tmp_path / "plan.json").write_text("{}")
    error = fails(tmp_path, capsys, 2, tiny_path, out, "--plan", tmp_path / "plan.json", "--ratio", "0.3")
    assert "--ratio" in error


def test_no_arguments(tmp_path: Path, capsys: Captured) -> None:
    fails(tmp_path, capsys, 2)
    fails(tmp_path, capsys, 2, "inspect")


def test_out_in_a_missing_folder_or_a_folder(
    tiny_path: Path, tmp_path: Path, capsys: Captured, monkeypatch: Any
) -> None:
    monkeypatch.setattr(api, "prune", unexpected)
    assert "does not exist" in fails(tmp_path, capsys, 2, tiny_path, tmp_path / "no" / "out.onnx")
    assert "folder" in fails(tmp_path, capsys, 2, tiny_path, tmp_path)


def test_out_is_in(tiny_path: Path, tmp_path: Path, capsys: Captured, monkeypatch: Any) -> None:
    monkeypatch.setattr(api, "prune", unexpected)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.onnx").symlink_to(tiny_path)
    os.link(tiny_path, tmp_path / "hard.onnx")
    for out in (tiny_path, tiny_path.name, "link.onnx", "hard.onnx"):
        assert "read and written" in fails(tmp_path, capsys, 2, tiny_path, out)
    for flag in ("--report", "--save-plan"):
        assert "read and written" in fails(tmp_path, capsys, 2, tiny_path, "out.onnx", flag, tiny_path)
        assert "written twice" in fails(tmp_path, capsys, 2, tiny_path, "out.onnx", flag, "out.onnx")


def test_plan_over_the_weights_of_in(tiny: ModelProto, tmp_path: Path, out: Path, capsys: Captured) -> None:
    source, data = tmp_path / "in.onnx", tmp_path / "weights"
    onnx.save(tiny, source, save_as_external_data=True, location=data.name, size_threshold=0)
    assert "read and written" in fails(tmp_path, capsys, 2, source, out, "--save-plan", data)


# What goes wrong on the way


def unexpected(*_: object, **__: object) -> NoReturn:
    raise ValueError("one line\nand another")


def interrupted(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


def interrupted_import(*_: object, **__: object) -> NoReturn:
    """As a compiled module that Ctrl-C meets while it is imported."""
    raise ImportError("initialization failed") from KeyboardInterrupt()


def full(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk(tiny_path: Path, tmp_path: Path, out: Path, capsys: Captured, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "replace", full)
    for flag in ((), ("--save-as-external-data",)):
        assert "no space left" in fails(tmp_path, capsys, 4, tiny_path, out, *flag)


def test_interrupted_at_work_or_while_writing(
    tiny_path: Path, tmp_path: Path, out: Path, capsys: Captured, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        fails(tmp_path, capsys, 130, tiny_path, out)
    for raised in (interrupted, interrupted_import):
        monkeypatch.setattr(api, "prune", raised)
        assert "interrupted" in fails(tmp_path, capsys, 130, tiny_path, out)


def test_ctrl_c(tiny_path: Path, tmp_path: Path, out: Path) -> None:
    code = """if True:
        import signal, sys, time
        from onnxprune import api
        from onnxprune.cli import main
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def prune(*_, **__):
            print("at work", flush=True)
            time.sleep(60)
        api.prune = prune
        sys.exit(main(sys.argv[1:]))
    """
    before = contents(tmp_path)
    arguments = [sys.executable, "-c", code, str(tiny_path), str(out)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None  # where all goes that is no result
        assert process.stderr.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "onnxprune: error: interrupted\n"
    assert contents(tmp_path) == before


def test_a_bug_is_one_line_unless_verbose(
    tiny_path: Path, tmp_path: Path, out: Path, capsys: Captured, monkeypatch: Any
) -> None:
    monkeypatch.setattr(api, "prune", unexpected)
    assert "ValueError: one line and another" in fails(tmp_path, capsys, 4, tiny_path, out)
    assert main([str(tiny_path), str(out), "--verbose"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_a_failed_proof_leaves_out_alone(
    tiny_path: Path, tmp_path: Path, out: Path, capsys: Captured, monkeypatch: Any
) -> None:
    def unproven(*_: object, **__: object) -> NoReturn:
        raise onnxprune.errors.CheckFailed("the outputs part at node 'c'")

    monkeypatch.setattr(api, "prune", unproven)
    assert "at node 'c'" in fails(tmp_path, capsys, 1, tiny_path, out)


def test_broken_external_data(tiny: ModelProto, tmp_path: Path, out: Path, capsys: Captured) -> None:
    onnx.save(tiny, tmp_path / "in.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    assert "weights" in fails(tmp_path, capsys, 2, tmp_path / "in.onnx", out)


def test_node_names_with_markup(tiny: ModelProto, tmp_path: Path, capsys: Captured) -> None:
    tiny.graph.node[0].name = "[bold]conv[/red]"
    tiny.metadata_props.append(helper.onnx.StringStringEntryProto(key="author", value="me"))
    onnx.save(tiny, tmp_path / "in.onnx")
    assert main([str(tmp_path / "in.onnx"), str(tmp_path / "o.onnx"), "--verbose"]) == 0
    assert onnx.load(tmp_path / "o.onnx").metadata_props[0].value == "me"


def test_a_reader_that_has_gone_is_no_failed_gate(tiny_path: Path, out: Path) -> None:
    """As in `onnxprune IN OUT | head -1`: OUT is written."""
    for words in ([str(tiny_path), str(out), "--fast"], ["inspect", str(tiny_path)], ["help", "flags"]):
        command = [sys.executable, "-m", "onnxprune", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            error = process.stderr.read()
        assert process.returncode == 0, (words, error)
        assert "error" not in error
    assert out.exists()
