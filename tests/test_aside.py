"""Calibrated runs whose second moments and new weights wait on a disk: the same results, one line where it is full."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import graph, inputs, pruned
from onnx import ModelProto
from test_allocate import attention
from test_memory import grouped, recurrent, residual
from test_shifted import perceptron

from onnxprune.errors import RuntimeFailure, UsageError, explain
from onnxprune.model import Aside, aside, aside_in
from onnxprune.options import Options
from onnxprune.planning import Needs, memory, sensitivity
from onnxprune.run import entire

ARRAYS = {
    "matrices": np.arange(12.0).reshape(2, 3, 2),
    "a view": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "one number": np.array(3, np.int64),
    "nothing": np.zeros((0, 4), np.float32),
    "half precision": np.array([1.5, -2.0], ml_dtypes.bfloat16),
}


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Whatever its size, an array is put aside, in the folder that is given."""
    monkeypatch.setattr(aside, "LEAST", 0)
    with aside_in(tmp_path):
        yield tmp_path


def test_what_was_put_aside_comes_back(everything: Path) -> None:
    store = Aside()
    put = {name: store.put(array) for name, array in ARRAYS.items()}
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda p: p.load(), [*put.values()] * 20))
    for got, array in zip(loaded, [*ARRAYS.values()] * 20, strict=True):
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert got.tobytes() == array.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        loaded[0][0] = 1


def test_nothing_is_left_that_has_a_name(everything: Path) -> None:
    put = Aside().put(np.ones(100))
    assert not list(everything.iterdir()), "or whoever is killed leaves it"
    assert put.load().sum() == 100


def test_small_arrays_stay_in_memory(tmp_path: Path) -> None:
    array = np.ones(5)
    with aside_in(tmp_path / "there is none"):
        assert Aside().put(array).load() is array


def _full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next array finds no place on the disk."""

    class Full:
        def seek(self, place: int) -> None:
            pass

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(aside.tempfile, "TemporaryFile", lambda **_: Full())


def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is one that has to put aside what it can."""
    found = memory.needs

    def needs(*given: Any) -> Needs:
        return replace(found(*given), aside=1, together=1)

    for place in ("planning.memory", "refit.judging"):
        monkeypatch.setattr(f"onnxprune.{place}.needs", needs)


NETS: dict[str, Callable[[], ModelProto]] = {
    "conv": residual, "attention": attention, "recurrent": recurrent, "mlp": perceptron,
}  # fmt: skip


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("criterion", ["obs", "wanda"])
def test_the_result_is_the_same(
    net: Callable[[], ModelProto], criterion: str, everything: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    feeds = [inputs(model, 3, seed) for seed in range(4)]
    plain = pruned(model, fast=False, calib=feeds, criterion=criterion, ratio=0.4)
    tight(monkeypatch)
    stored: list[int] = []
    put = Aside.put
    monkeypatch.setattr(Aside, "put", lambda self, array: stored.append(array.nbytes) or put(self, array))
    bounded = pruned(model, fast=False, calib=feeds, criterion=criterion, ratio=0.4)
    assert len(stored) > 3, "or nothing was put aside"
    assert bounded.plan.to_json() == plain.plan.to_json()
    assert bounded.model.to_proto().SerializeToString() == plain.model.to_proto().SerializeToString()
    assert bounded.report.reconstruction == plain.report.reconstruction
    assert not list(everything.iterdir())


def test_a_full_disk_ends_the_run_in_one_line(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tight(monkeypatch)
    _full(everything, monkeypatch)
    with pytest.raises(OSError, match="No space left") as told:
        pruned(perceptron(), fast=False, calib=[inputs(perceptron(), 3, 0)])
    line, code = explain(told.value)
    assert (code, line) == (4, f"{everything}: no space left on the disk; free some and run again")


def test_what_is_too_much_is_said_with_what_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = grouped(residual())
    whole = memory.needs(groups, Options())
    assert not whole.aside
    layerwise = memory.needs(groups, Options(memory=whole.memory - 1))
    assert 0 < layerwise.memory < whole.memory
    weights = sum(w.nbytes for w in groups.trace.model.weights.values())
    grams = 4 * (144**2 + 20**2 + 144**2 + 24**2)
    assert layerwise.aside == weights + grams
    assert memory.needs(groups, Options(memory=whole.memory - 1, reconstruct="none")).aside == grams
    with pytest.raises(UsageError, match=r"takes (\d+M) even layer by layer, the most of it for .*; allow it with memory \1,") as told:
        memory.checked(groups, Options(memory=layerwise.memory - 1))
    (enough,) = re.findall(r"allow it with memory (\d+)M", str(told.value))
    memory.checked(groups, Options(memory=int(enough) << 20))
    memory.checked(groups, Options(memory=layerwise.memory))
    monkeypatch.setattr(memory, "space_aside", lambda: (tmp_path, layerwise.aside - 1))
    with pytest.raises(RuntimeFailure, match=f"have to wait in {tmp_path}, where .* GB are free; free some"):
        memory.checked(groups, Options(memory=layerwise.memory))
    memory.checked(groups, Options(memory=whole.memory))


def test_much_waits_where_no_memory_was_asked_for_and_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many samples are looked at in any case, or a full disk would change the plan."""
    groups = grouped(residual())
    whole, samples = memory.needs(groups, Options()), memory.samples_that_fit(groups, Options())
    monkeypatch.setattr(memory, "ROOMY", whole.memory - 1)
    spared = memory.needs(groups, Options())
    assert 0 < spared.memory < whole.memory
    assert spared.aside > 0
    assert memory.needs(groups, Options(memory=4 << 30)) == whole
    assert memory.samples_that_fit(groups, Options()) == samples
    monkeypatch.setattr(memory, "space_aside", lambda: (tmp_path, spared.aside - 1))
    assert memory.needs(groups, Options()) == whole
    memory.checked(groups, Options())


def test_sets_are_looked_at_one_at_a_time_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = grouped(residual())
    assert memory.needs(groups, Options(memory=1)).together == 1
    monkeypatch.setattr(memory, "ROOMY", 1)
    assert memory.needs(groups, Options()).together > 1
    monkeypatch.setattr(memory, "MODERATE", 1)
    assert memory.needs(groups, Options()).together == 1


def test_a_model_in_pieces_answers_as_a_session_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for net in NETS.values():
        groups = grouped(net())
        trace = groups.trace
        feeds = [inputs(net(), 3, seed) for seed in range(2)]
        whole = entire(trace.model, ("cpu",), trace.shapes.dtype)
        with monkeypatch.context() as patch:
            patch.setattr("onnxprune.run.whole.WHOLE", 0)
            patch.setattr("onnxprune.run.whole.BLOCK", 1)
            pieces = entire(trace.model, ("cpu",), trace.shapes.dtype)
            assert pieces.chain.blocks > 1
            error = sensitivity.OutputError(groups, feeds, ("cpu",)).error(trace.model)
        assert error < 1e-9
        assert [(o.name, o.type) for o in pieces.get_outputs()] == [(o.name, o.type) for o in whole.get_outputs()]
        assert [len(o.shape) for o in pieces.get_outputs()] == [len(o.shape) for o in whole.get_outputs()]
        for ours, theirs in zip(pieces.run(None, feeds[0]), whole.run(None, feeds[0]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def blocks(count: int, width: int, hidden: int) -> ModelProto:
    """Residual blocks, whose second moments are many times their weights."""
    body, weights, x = "", {}, "x"
    for k in range(count):
        body += f"a{k} = MatMul({x}, v{k}) b{k} = Relu(a{k}) c{k} = MatMul(b{k}, w{k}) s{k} = Add(c{k}, {x}) "
        weights |= {f"v{k}": (width, hidden), f"w{k}": (hidden, width)}
        x = f"s{k}"
    return graph(f"(float[N, {width}] x) => (float[N, {width}] y)", f"{body} y = Neg({x})", **weights)


MEASURED = """
import sys, onnxprune
onnxprune.prune(sys.argv[1], ratio=0.3, calib=sys.argv[2], memory=int(sys.argv[3]), effort='low')
print(next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""  # not getrusage's ru_maxrss: a child begins with what the process that started it once took


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_process_stays_within_what_it_is_given(tmp_path: Path) -> None:
    """As the system counts it, where all second moments together would take more."""
    model = blocks(40, 128, 1536)
    groups = grouped(model)
    layerwise = memory.needs(groups, Options(memory=1)).memory
    given = layerwise + memory.BASE + (96 << 20)
    assert memory.needs(groups, Options()).memory > given, "or all would fit"
    onnx.save(model, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((256, 128), np.float32))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "net.onnx", tmp_path / "x.npy", str(given)], capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert 0.5 * given <= int(done.stdout) <= given
