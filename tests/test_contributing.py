"""CONTRIBUTING's walk through adding an operator and a criterion shows what is in the files, and the picture of
`onnxprune help how-it-works` what is traced."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from graphs import graph

from onnxprune.cli import flags
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import criteria

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = [textwrap.dedent(b) for b in re.findall(r"^ *```python\n(.*?)^ *```", SECTION, re.DOTALL | re.MULTILINE)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.splitlines()[0])
def test_a_step_is_in_its_file(block: str) -> None:
    head, code = block.split("\n", 1)
    path = ROOT / head.removeprefix("# ")
    text = path.read_text("utf-8")
    lines = code.rstrip("\n").splitlines()
    assert any(textwrap.indent("\n".join(lines), " " * n) in text for n in (0, 4, 8)) or " ".join(lines) in text, path


def test_every_file_of_the_way_exists() -> None:
    named = [n for row in re.findall(r"^\| (`.*?) \|", SECTION, re.MULTILINE) for n in re.findall(r"`(.*?)`", row)]
    _, found, _ = SECTION.partition("| you want to change | look at |\n")
    named += [n for row in found.split("\n\n")[0].splitlines() for n in re.findall(r"`(.*?)`", row)]
    assert len(named) > 40
    for name in named:
        assert (ROOT / "onnxprune" / name).exists(), name


def test_every_criterion_is_in_the_help() -> None:
    assert {*flags.CRITERIA.split(", "), "obs"} == {*criteria.WEIGHTS, *criteria.UNITS}


@pytest.mark.parametrize("test", re.findall(r"python -m\s+pytest\s+(tests/\w+\.py -k \w+)", SECTION))
def test_the_command_that_tries_one_finds_tests(test: str) -> None:
    path, _, name = test.split()
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", path, "-k", name],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout


def test_the_picture_of_a_traced_block() -> None:
    body = """a = Conv<pads = [1, 1, 1, 1]>(x, w1) b = Relu(a) c = Conv(b, w2) d = Add(c, a) e = GlobalAveragePool(d)
              f = Flatten(e) y = Gemm<transB = 1>(f, w3)"""
    model = graph("(float[N, 3, 8, 8] x) => (float[N, 5] y)", body, w1=(4, 3, 3, 3), w2=(4, 4, 1, 1), w3=(5, 4))
    groups = analysed(Model.load(model), Options(residual="all").resolved(), Clock())
    born = {(parameter, axes): ids for s in groups.trace.slices.values() for parameter in [s.parameter]
            for axes, ids in ((b.axes, b.ids) for b in s.blocks)}  # fmt: skip
    assert born["w1", (0,)].tolist() == [1, 2, 3, 4]
    assert born["w2", (0,)].tolist() == [14, 15, 16, 17]
    assert born["w2", (1,)].tolist() == [18, 19, 20, 21]
    assert born["w3", (1,)].tolist() == [27, 28, 29, 30]
    first = groups.classes[1]
    assert np.flatnonzero(groups.classes == first).tolist() == [1, 14, 18, 27]
    assert groups.prunable[first]
    assert not groups.prunable[groups.classes[born["w3", (0,)]]].any()
