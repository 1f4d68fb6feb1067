"""What is asked for and nobody reads is an error: a row for each kind, on the command line and in Python."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from test_cli import fails

import onnxprune
from onnxprune.cli import main
from onnxprune.options import unread

Captured = pytest.CaptureFixture[str]
FAST = "m.onnx out.onnx --fast"
UNREAD = [
    (f"{FAST} --calib no.npz", "--calib is not used with --fast; leave one of them out"),
    (f"{FAST} --calib-samples 512", "--calib-samples is not used with --fast"),
    (f"{FAST} --calib-batch 8", "--calib-batch is not used"),
    (f"{FAST} --mean 0.5", "--mean is not used"),
    (f"{FAST} --std 1/2", "--std is not used"),
    (f"{FAST} --scale 1/255", "--scale is not used: nothing here reads inputs, pictures or texts"),
    (f"{FAST} --tokenizer t.json", "--tokenizer is not used: nothing here reads inputs, pictures or texts"),
    ("m.onnx out.onnx --calib d.npz --tokenizer t.json", "--tokenizer is about texts, and none is read or made up"),
    ("m.onnx out.onnx --calib d.npz --text-length 9", "--text-length is about texts, and none is read"),
    (f"{FAST} --effort high", "--effort is not used: nothing here looks at inputs"),
    (f"{FAST} --no-blocks", "--blocks and --no-blocks are not used: whole branches go only where what the outputs lose is measured"),
    (f"{FAST} --threads 1", "--threads says how time is measured, and none is"),
    (f"{FAST} --batch 1", "--batch says how time is measured"),
    ("m.onnx out.onnx --reconstruct none --scope local --criterion l2 --calib x.npz", "nothing here looks at inputs"),
    *(
        (f"m.onnx out.onnx --plan p.json {flag}", f"--plan already says what goes; leave out {flag.split()[0]}")
        for flag in (
            "--ratio 0.3", "--of macs", "--scope local", "--criterion l2", "--min-channels 2", "--round-to 8",
            "--max-ratio 0.5", "--residual", "--blocks", "--kv-heads", "--ratio-of conv1_weight=0.5",
            "--max-latency 5ms",
        )
    ),
    ("m.onnx out.onnx --plan p.json --no-residual", "leave out --residual"),
    ("m.onnx out.onnx --plan p.json --allocation uniform", "leave out --scope"),
    ("m.onnx out.onnx --max-latency 5ms --ratio 0.3", "--max-latency finds the ratio; leave out --ratio"),
    ("m.onnx out.onnx --force-plan", "--force-plan is about a plan"),
    ("m.onnx out.onnx --metric top-1", "--metric needs data"),
    ("m.onnx out.onnx --validate-samples 5", "--validate-samples needs data"),
    ("m.onnx out.onnx --max-drop 0", "--max-drop needs data"),
    ("m.onnx out.onnx --min-agreement 0.5", "--min-agreement needs data"),
    ("m.onnx out.onnx --min-cosine 0.5", "--min-cosine needs data"),
    ("m.onnx out.onnx --validate d.npz --keep-on-fail", "--keep-on-fail needs a gate"),
    ("m.onnx out.onnx --validate d.npz --gate interval", "--gate needs a gate; give --max-drop"),
    ("compare m.onnx m.onnx --gate interval", "--gate needs a gate"),
    ("finetune m.onnx m.onnx out.onnx --max-drop 0.1", "--max-drop needs data; give it with --validate"),
    ("sweep m.onnx s --fast --calib d.npz --validate d.npz", "--calib is not used with --fast"),
    ("sweep m.onnx s --threads 1", "--threads says how time is measured"),
    ("verify m.onnx m.onnx p.json --calib d.npz", "nothing here looks at inputs"),
    ("verify m.onnx m.onnx p.json --residual", "there is no flag --residual, but prune and sweep have one"),
    ("verify m.onnx m.onnx p.json --kv-heads", "there is no flag --kv-heads, but inspect, prune and sweep have one"),
    ("inspect m.onnx --no-residual", "there is no flag --no-residual, but prune and sweep have one"),
]  # fmt: skip


@pytest.fixture
def folder(tiny: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model m.onnx, a plan p.json that refits nothing, data d.npz."""
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny, "m.onnx")
    onnxprune.plan(tiny, fast=True).save("p.json")
    np.savez("d.npz", image=np.random.default_rng(0).standard_normal((16, 3, 8, 8), np.float32))
    return tmp_path


@pytest.mark.parametrize(("command", "says"), UNREAD, ids=[c for c, _ in UNREAD])
def test_a_flag_that_nobody_reads(command: str, says: str, folder: Path, capsys: Captured) -> None:
    assert says in fails(folder, capsys, 2, *command.split())


def test_every_row_has_a_flag_that_shows_it() -> None:
    shown = " ".join(command for command, _ in UNREAD)
    for names, _, _ in unread.ROWS:
        assert all(f"--{name.replace('_', '-')}" in shown for name in names), names


@pytest.mark.parametrize(
    "flags",
    [
        "--calib d.npz --calib-samples 16 --calib-batch 4", "--fast --criterion wanda --calib d.npz",
        "--fast --scope sensitivity --calib d.npz", "--fast --reconstruct ls --calib d.npz", "--mean 0.5 --calib-samples 16",
        "--fast --validate d.npz --std 2 --calib-batch 4 --validate-samples 8 --metric cosine --max-drop 2 --keep-on-fail --ratio 0.2",
        "--plan p.json --fast --seed 3 --no-heads --force-plan", "--plan p.json --calib d.npz",
    ],
)  # fmt: skip
def test_a_flag_that_somebody_reads(flags: str, folder: Path) -> None:
    assert main(["m.onnx", "out.onnx", "-q", *flags.split()]) == 0


@pytest.mark.parametrize("flags", ["--metric cosine", "--calib d.npz --calib-samples 8 --mean 0.5", "--validate d.npz"])
def test_a_sweep_measures_quality_in_any_case(flags: str, folder: Path) -> None:
    assert main(["sweep", "m.onnx", "s", "-q", "--fast", "--ratios", "0.3", "--jobs", "1", *flags.split()]) == 0


def test_training_reads_inputs_where_the_cut_does_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is refused is what is missing, and not --calib."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(onnxprune.OnnxPruneError, match="finetune needs torch"):
        onnxprune.prune("m.onnx", fast=True, finetune=True, calib="d.npz")


def test_time_is_measured_for_a_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(folder / "cache"))
    assert main(["m.onnx", "out.onnx", "-q", "--fast", "--round-to", "auto", "--threads", "1", "--batch", "2"]) == 0
    assert main(["m.onnx", "out.onnx", "-q", "--fast", "--of", "latency", "--threads", "1"]) == 0


def test_verify_reads_inputs_where_weights_may_be_refitted(folder: Path) -> None:
    assert main(["m.onnx", "out.onnx", "-q", "--plan", "p.json", "--fast"]) == 0
    assert main(["verify", "m.onnx", "out.onnx", "p.json", "-q", "--refitted", "--calib", "d.npz"]) == 0


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"fast": True, "calib": "no.npz"}, "calib is not used with fast=True; leave one of them out"),
        ({"fast": True, "scale": 0.5}, "scale is not used"), ({"plan": True, "of": "macs"}, "leave out of"),
        ({"plan": True, "ratio": 0.4}, "plan already says what goes; leave out ratio"),
    ],
)  # fmt: skip
def test_a_keyword_that_nobody_reads(keywords: dict[str, Any], says: str, folder: Path) -> None:
    if "plan" in keywords:
        keywords = keywords | {"plan": onnxprune.Plan()}
    with pytest.raises(onnxprune.UsageError, match=says):
        onnxprune.prune("m.onnx", **keywords)


def test_options_serve_several_calls(tiny: ModelProto) -> None:
    """One set of options for planning, pruning and timing; and a keyword that says what holds anyway."""
    options = onnxprune.Options(fast=True, threads=1, batch=2, calib_samples=8)
    plan = onnxprune.plan(tiny, options)
    assert onnxprune.prune(tiny, options, plan=plan, calib=None, threads=2).plan.groups == plan.groups
