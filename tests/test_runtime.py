"""ONNX Runtime is whatever build is installed: what is said where there is none or a broken one, who may import it, and
what is imported at all before there is work to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from packaging.markers import default_environment
from packaging.requirements import Requirement

from onnxprune import run
from onnxprune.cli import COMMANDS, main
from onnxprune.errors import RuntimeFailure
from onnxprune.model import Model
from onnxprune.run import installed, runtime

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
Captured = pytest.CaptureFixture[str]

# Nothing is installed

STAGES = re.compile(r"^[a-z-]+ \d+\.\d s\n", re.MULTILINE)
"""What is said on the way."""
MISSING = (
    "onnxprune: error: ONNX Runtime is not installed; run pip install 'onnxprune[gpu]' ([cpu] is smaller, [cuda] brings "
    "CUDA), or install any other build of it\n"
)
NEEDING = [
    "m.onnx out.onnx",
    "m.onnx out.onnx --fast",
    "m.onnx out.onnx --fast --benchmark",
    "m.onnx out.onnx --of latency",
    "m.onnx out.onnx --plan p.json --fast",
    "m.onnx out.onnx --validate d.npz",
    "prune m.onnx out.onnx",
    "compare m.onnx m.onnx",
    "compare m.onnx m.onnx --data d.npz",
    "verify m.onnx small.onnx p.json",
    "sweep m.onnx swept --ratios 0.5 --fast --jobs 1",
    "sweep m.onnx swept --ratios 0.5 --fast --jobs 1 --validate d.npz",
    "inspect odd.onnx",
]
"""`odd.onnx` has an operator whose shapes only a runtime knows."""
DOING_WITHOUT = [
    "--help",
    "--version",
    *(f"{name} --help" for name in COMMANDS),
    "help",
    "help concepts",
    "inspect m.onnx",
    "inspect m.onnx --json",
    "inspect m.onnx --graph graph.html",
    "apply-plan p.json w.safetensors small.safetensors --model m.onnx",
]
NONE = """
import contextlib, io, json, sys

class None_:
    "What Python finds where no build of ONNX Runtime is installed."
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, None_())
from onnxprune.cli import main

found = {}
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(command.split())
        except SystemExit as end:
            code = end.code or 0
    found[command] = [code, out.getvalue(), err.getvalue()]
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder, and what each command says and returns there, in a Python that has no ONNX Runtime."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("without")
    model = onnx.load(ROOT / "models" / "tiny_conv.onnx")
    onnx.save(model, folder / "m.onnx")
    onnx.save(odd(), folder / "odd.onnx")
    arrays = {t.name: onnx.numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    save_file(arrays, folder / "w.safetensors")
    image = np.random.default_rng(0).standard_normal((4, 3, 16, 16), np.float32)
    np.savez(folder / "d.npz", image=image, labels=np.zeros(4, np.int64))
    made = [str(folder / name) for name in ("m.onnx", "small.onnx", "p.json")]
    assert main([*made[:2], "--fast", "-q", "--save-plan", made[2]]) == 0
    done = subprocess.run(
        [sys.executable, "-c", NONE], input=json.dumps([*NEEDING, *DOING_WITHOUT]), cwd=folder, check=True, text=True,
        stdout=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    return folder, json.loads(done.stdout)


def environment() -> dict[str, str]:
    """Of a process that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def odd() -> ModelProto:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { a = com.microsoft.Gelu(x) y = Relu(a) }"""
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize("command", NEEDING)
def test_what_runs_a_model_names_the_extras(command: str, without: tuple[Path, dict[str, Any]]) -> None:
    folder, found = without
    code, out, err = found[command]
    assert (code, out, STAGES.sub("", err)) == (4, "", MISSING)
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize("command", DOING_WITHOUT)
def test_what_runs_none_does_without(command: str, without: tuple[Path, dict[str, Any]]) -> None:
    folder, found = without
    code, out, err = found[command]
    assert (code, STAGES.sub("", err)) == (0, "")
    assert out or (folder / command.split()[-1]).exists()


def test_fine_tuning_says_first_what_it_needs_besides(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("onnxprune.finetuning.check_torch", lambda: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["finetune", str(tiny_path), str(tiny_path), str(tmp_path / "out.onnx")]) == 4
    assert capsys.readouterr().err == MISSING


def test_the_extras_that_are_named_install_a_runtime() -> None:
    for name in re.findall(r"\[(\w+)\]", MISSING):
        assert any(Requirement(text).name.startswith("onnxruntime") for text in EXTRAS[name])


# What is installed is broken


def test_an_installed_build_that_cannot_be_imported(
    tiny_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "onnxruntime":
                raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert main(["compare", str(tiny_path), str(tiny_path)]) == 4
    line = capsys.readouterr().err
    assert "cannot be used (libcudart.so.13" in line
    assert "pip uninstall -y onnxruntime" in line
    assert line.count("\n") == 1


def test_what_an_uninstalled_build_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without `__init__.py`, which Python imports as an empty package."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    monkeypatch.setattr(installed, "builds", list)
    with pytest.raises(RuntimeFailure, match=r"files of it are missing.*; run pip install 'onnxprune\[gpu\]'"):
        run.onnx_runtime()
    monkeypatch.setattr(installed, "builds", lambda: ["onnxruntime", "onnxruntime-gpu"])
    with pytest.raises(RuntimeFailure, match="; run 'pip uninstall -y onnxruntime onnxruntime-gpu', then run pip"):
        run.onnx_runtime()


@pytest.mark.parametrize(
    ("names", "built_in", "says"),
    [
        (["onnxruntime"], False, "run 'pip uninstall -y onnxruntime', then install a build that has it"),
        ([], False, "install a build that has it"),
        (["onnxruntime-gpu"], True, "install what it needs"),
        (["a", "b"], True, "run 'pip uninstall -y a b', then install a build that has it"),
    ],
)
def test_how_a_missing_provider_is_got(
    names: list[str], built_in: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "builds", lambda: names)
    assert installed.how_to_get(built_in).startswith(says)


@pytest.mark.parametrize(
    ("name", "says"),
    [("openvino", "install onnxruntime-openvino,"), ("xnnpack", "a build with XNNPACK"), ("dnnl", "with oneDNN")],
)
def test_which_build_has_a_provider(name: str, says: str) -> None:
    if run.PROVIDERS[name] in run.onnx_runtime().get_available_providers():
        pytest.skip("it is here")
    with pytest.raises(RuntimeFailure, match=re.escape(says)):
        run.usable([name])


def test_a_provider_with_threads_of_its_own_is_told_how_many(tiny: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Session:
        def __init__(self, source: Any, options: Any, providers: Any) -> None:
            told.append(providers)

        def get_providers(self) -> list[str]:
            return [name for name, _ in told[-1]]

    monkeypatch.setattr(runtime, "watched", lambda: Session)
    monkeypatch.setattr(runtime, "usable", lambda names: [run.PROVIDERS[name] for name in names])
    run.deployed(Model.load(tiny), ["openvino"], 3)
    run.deployed(Model.load(tiny), ["cpu"], 3)
    cpu = ("CPUExecutionProvider", {})
    assert told == [[("OpenVINOExecutionProvider", {"num_of_threads": "3"}), cpu], [cpu]]


# Another build is installed


def test_any_build_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its distribution is not asked for: what can be imported is it, and says its own name."""
    other = SimpleNamespace(InferenceSession=object, __version__="1.24.4", package_name="onnxruntime-directml")
    monkeypatch.setitem(sys.modules, "onnxruntime", other)
    assert run.onnx_runtime() is other
    assert run.runtime_version() == ("onnxruntime-directml", "1.24.4")
    del other.package_name
    assert run.runtime_version() == ("onnxruntime", "1.24.4")


def test_the_build_that_is_here_is_found() -> None:
    build, version = run.runtime_version()
    assert build in installed.builds()
    assert version == run.onnx_runtime().__version__


def test_a_provider_is_missed_before_any_work(tiny_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where weights alone decide and nothing is run until the end."""
    monkeypatch.setattr("onnxprune.pipeline.stages.infer", lambda *_: pytest.fail("the work has begun"))
    assert main([str(tiny_path), "out.onnx", "--fast", "--providers", "MIGraphXExecutionProvider"]) == 4
    assert "MIGraphXExecutionProvider is not in the installed ONNX Runtime; run 'pip uninstall" in capsys.readouterr().err


# What pip installs


def requirement_names(texts: list[str], **where: str) -> set[str]:
    """The distributions that requirements ask for on another machine."""
    environment = {**default_environment(), **where}
    found = map(Requirement, texts)
    return {str(r.name) for r in found if r.marker is None or r.marker.evaluate(environment)}


@pytest.mark.parametrize(
    ("system", "machine", "gpu"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("linux", "armv7l", "onnxruntime"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("win32", "ARM64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
    ],
)
def test_a_runtime_is_an_extra(system: str, machine: str, gpu: str) -> None:
    where = {"sys_platform": system, "platform_machine": machine}
    assert requirement_names(EXTRAS["gpu"], **where) == {gpu}
    assert requirement_names(EXTRAS["cpu"], **where) == {"onnxruntime"}
    assert requirement_names(EXTRAS["cuda"], **where) == {"onnxruntime-gpu"}
    others = [text for name, texts in EXTRAS.items() if name not in ("gpu", "cpu", "cuda") for text in texts]
    assert not [n for n in requirement_names(PROJECT["dependencies"] + others, **where) if n.startswith("onnxruntime")]


def test_every_extra_that_is_named_exists() -> None:
    """In commands for pip, wherever they stand; and what installs the tests or the tools installs a runtime, too."""
    named = re.compile(r"(?<![\w\]])(?:onnxprune|\.|/src)\[([a-z]+(?:,[a-z]+)*)\]")
    files = [ROOT / ".ci" / "run", *ROOT.glob("*.md"), *(ROOT / "tools").rglob("*.*"), *(ROOT / "onnxprune").rglob("*.md")]
    files += (ROOT / "onnxprune").rglob("*.py")
    found = [(p.name, e.split(",")) for p in files if p.suffix != ".png" for e in named.findall(p.read_text("utf-8"))]
    assert {"run", "README.md", "CONTRIBUTING.md", "pipelines.md", "installed.py"} <= {name for name, _ in found}
    for name, extras in found:
        assert set(extras) <= EXTRAS.keys(), name
        if "test" in extras:
            assert {"gpu", "cpu", "cuda"} & set(extras), name


# What is imported

HEAVY = ("numpy", "onnx", "onnxruntime", "scipy", "rich", "joblib", "networkx", "google.protobuf", "PIL", "onnxprune.api")
LIGHT = """
import contextlib, io, json, sys
import onnxprune
from onnxprune.cli import main

heavy = json.loads(sys.argv[1])
found = {"import onnxprune": sorted(set(heavy) & set(sys.modules))}
onnxprune.Options, onnxprune.UsageError
found["options and errors"] = sorted(set(heavy) & set(sys.modules))
for command in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        with contextlib.suppress(SystemExit):
            main(command.split())
    found[command] = sorted(set(heavy) & set(sys.modules)), err.getvalue()
json.dump(found, sys.stdout)
"""
ABSENT = {
    "prune": "no.onnx out.onnx",
    "inspect": "no.onnx",
    "verify": "no.onnx no.onnx p.json",
    "compare": "no.onnx no.onnx",
    "finetune": "m.onnx no.onnx out.onnx",
    "sweep": "no.onnx swept",
    "apply-plan": "p.json w.safetensors small.safetensors --model no.onnx",
}
"""Commands with a model that is not there."""


def test_what_needs_no_work_imports_nothing(tmp_path: Path) -> None:
    """Import, help, and a model that is not there: counted in modules, as seconds are the machine's."""
    (tmp_path / "m.onnx").touch()
    words = ["--help", "--version", *(f"{name} --help" for name in COMMANDS), "help", "help concepts"]
    absent = [ABSENT["prune"], *(f"{name} {rest}" for name, rest in ABSENT.items())]
    assert {*ABSENT, "help"} == set(COMMANDS)
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(HEAVY)], input=json.dumps([*words, *absent]), cwd=tmp_path, check=True,
        text=True, stdout=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found.pop("import onnxprune") == found.pop("options and errors") == []
    assert found == {
        **{command: [[], ""] for command in words},
        **{command: [[], "onnxprune: error: no.onnx does not exist; check the path\n"] for command in absent},
    }


def test_help_is_answered_also_for_a_model_that_is_not_there(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        main(["no.onnx", "out.onnx", "--help"])
    assert end.value.code == 0
    assert "--ratio" in capsys.readouterr().out


def test_a_link_that_leads_nowhere_is_no_file(tmp_path: Path, capsys: Captured) -> None:
    link = tmp_path / "m.onnx"
    link.symlink_to(tmp_path / "gone.onnx")
    assert main(["inspect", str(link)]) == 2
    assert "m.onnx does not exist" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the command is guarded where processes can be forked")
def test_the_process_that_guards_loads_nothing(tiny_path: Path, tmp_path: Path) -> None:
    code = """if True:
        import os, sys
        from onnxprune.cli import command
        parent, code = os.getpid(), command()
        if os.getpid() == parent:
            print(sorted({"numpy", "onnx", "onnxruntime"} & set(sys.modules)))
        sys.exit(code)
    """
    arguments = [str(tiny_path), str(tmp_path / "out.onnx"), "--fast", "-q"]
    guarded = {name: value for name, value in environment().items() if name != "ONNXPRUNE_UNGUARDED"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=guarded
    )  # fmt: skip
    assert done.stdout == "[]\n"
    assert (tmp_path / "out.onnx").exists()
