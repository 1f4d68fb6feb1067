"""README, the guide, CONTRIBUTING and SECURITY: every command in them is run, every tool, flag and file that they name
exists."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from test_text_files import bigrams, trained

from onnxprune.cli import main
from onnxprune.cli.commands import help as guide
from onnxprune.cli.commands import prune, sweep
from onnxprune.data import text
from onnxprune.planning import criteria
from onnxprune.trace.rules import RULES

ROOT = Path(__file__).parents[1]
GUIDE = sorted((ROOT / "onnxprune" / "guide").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *GUIDE]
SCRIPT = """
import numpy as np
def batches():
    for seed in range(4):
        yield {"image": np.random.default_rng(seed).standard_normal((16, 3, 16, 16)).astype("float32")}
def loss(outputs, labels):
    scores = outputs[0] - outputs[0].max(1, keepdims=True)
    return np.log(np.exp(scores).sum(1)) - scores[np.arange(len(labels)), labels]
loss.higher_is_better = False
"""


def said(path: Path) -> str:
    return path.read_text("utf-8")


def commands(path: Path) -> list[list[str]]:
    """The shell commands of a document, but for those that set an environment up (tests/test_readme.py runs these)."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", said(path), re.DOTALL | re.MULTILINE):
        if "venv" not in block:
            found += [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return found


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files under the names that the documents use."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copy(ROOT / "models" / "tiny_conv.onnx", folder / "model.onnx")
    shutil.copy(ROOT / "models" / "tiny_attention.onnx", folder / "decoder.onnx")
    images = np.random.default_rng(0).standard_normal((96, 3, 16, 16)).astype(np.float32)
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    labels = session.run(None, {"image": images})[0].argmax(1)
    np.savez(folder / "data.npz", image=images[:48])
    np.savez(folder / "labelled.npz", image=images[48:], labels=labels[48:])
    (folder / "script.py").write_text(SCRIPT)
    (folder / "prune.toml").write_text("ratio = 0.3\nfast = true\n")
    from safetensors.numpy import save_file

    weights = onnx.load(folder / "model.onnx").graph.initializer
    save_file({t.name: numpy_helper.to_array(t).copy() for t in weights}, folder / "weights.safetensors")
    return folder


def write_texts(folder: Path) -> None:
    """A model of what follows what with its tokenizer, and texts that it knows."""
    pytest.importorskip("tokenizers")
    trained().save(str(folder / "tokenizer.json"))
    onnx.save(bigrams(), folder / "decoder.onnx")
    for name in ("words.txt", "other_words.txt"):
        (folder / name).write_text("\n".join(text.sentences()), "utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", [d for d in DOCUMENTS if commands(d)], ids=lambda p: p.stem)
def test_every_command_does_its_job(
    path: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if any({"finetune", "--finetune"}.intersection(words) for words in commands(path)):
        pytest.importorskip("torch")
    folder = tmp_path / "work"
    shutil.copytree(workspace, folder)
    if any(word.endswith(".txt") for words in commands(path) for word in words):
        write_texts(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    for name, *arguments in commands(path):
        assert name == "onnxprune"
        try:
            code = main(arguments)
        except SystemExit as end:  # --help
            code = int(end.code or 0)
        assert code == 0, (arguments, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "leaves"),
    [(ROOT / "README.md", {"pruned.onnx", "report.html", "plan.json"}), (ROOT / "onnxprune/guide/integrations.md", {"pruned.onnx", "small.onnx"})],
    ids=lambda x: x.stem if isinstance(x, Path) else "",
)  # fmt: skip
def test_the_python_runs(path: Path, leaves: set[str], workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", said(path), re.DOTALL | re.MULTILINE)
    folder = tmp_path / "work"
    shutil.copytree(workspace, folder)
    monkeypatch.chdir(folder)
    exec(compile(block, path.name, "exec"), {})
    assert leaves <= {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_what_is_named_exists(path: Path) -> None:
    text = said(path)
    for tool in re.findall(r"`(?:python )?(tools/\w+(?:\.\w+)?)", text):
        assert (ROOT / tool).exists(), tool
    for tool, rest in re.findall(r"python (tools/\w+\.py|tools/fuzz)([^`#]*)[`#\n]", text):
        sources = [ROOT / tool] if tool.endswith(".py") else list((ROOT / tool).glob("*.py"))
        source = "".join(map(said, sources))
        for flag in re.findall(r"(?<!\S)(--[a-z][\w-]*)", rest):
            assert f'"{flag}"' in source, (tool, flag)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (path.parent / link).exists(), link
    for topic in re.findall(r"onnxprune help ([a-z][\w-]*)", text):
        assert topic in guide.TOPICS, topic
    for name in re.findall(r"`(tests/\w+\.py|tests/\w+|onnxprune/[\w/]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


def test_the_guide_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert {p.stem for p in GUIDE} == guide.TOPICS.keys()
    assert main(["help"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*guide.TOPICS]
    for path in GUIDE:
        assert main(["help", path.stem]) == 0
        assert capsys.readouterr().out == said(path)
    assert main(["help", "nothing"]) == 2
    assert "choose concepts" in capsys.readouterr().err


def test_every_operator_that_has_a_rule_is_listed() -> None:
    listed: dict[str, list[str]] = {}
    for domain, names in re.findall(r"^## (\S+)\n\n([^#]*)", said(ROOT / "onnxprune" / "guide" / "operators.md"), re.MULTILINE):
        listed[domain] = re.split(r",\s+", names.strip())
    found = [name if domain == "ONNX" else f"{domain}::{name}" for domain, names in listed.items() for name in names]
    assert sorted(found) == sorted(RULES)


def test_every_criterion_is_described() -> None:
    (row,) = [line for line in said(ROOT / "onnxprune" / "guide" / "flags.md").splitlines() if "| `--criterion NAME`" in line]
    assert set(re.findall(r"`([a-z][a-z0-9-]*)`", row)) == {*criteria.WEIGHTS, *criteria.UNITS}


def test_readme_is_short() -> None:
    assert len(said(ROOT / "README.md").splitlines()) <= 200


def test_every_flag_is_described() -> None:
    text = "".join(map(said, GUIDE))
    for action in (*prune.parser()._actions, *sweep.parser()._actions):
        for name in action.option_strings:
            if name.startswith("--") and name not in ("--help", "--version", "--quiet"):
                assert f"`{name}" in text, name
