"""A sweep: its points and fronts, going on after an end, and what becomes of points and processes that fail."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from browser import opened
from graphs import graph

import onnxprune
from onnxprune import api, fit
from onnxprune.cli import main
from onnxprune.data import sources
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Pruned, Pruner, pruner
from onnxprune.planning import curves, read_plan, timings
from onnxprune.results import SweepPoint
from onnxprune.sweeping import Job, Measured, fronts
from onnxprune.sweeping.workers import processes

FAST = Options(fast=True)


def size(job: Job, model: Model) -> Measured:
    """A metric that costs nothing."""
    return Measured("size", model.size() / Model.load(job.model).size(), latency=model.size() / 1e6)


def lethal(job: Job, model: Model) -> Measured:
    """The process dies of one point, always."""
    if job.options.criterion == "l1" and job.options.ratio == 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    return size(job, model)


def once(job: Job, model: Model) -> Measured:
    """The process dies of the first point that gets here, and of no other. Beside the model lies a mark of it."""
    if model.size() < Model.load(job.model).size():
        try:
            os.close(os.open(job.model.with_name("died"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return size(job, model)


def test_fronts() -> None:
    def point(name: str, metric: float, macs: int, parameters: int, latency: float | None = 1.0) -> SweepPoint:
        return SweepPoint(name, "l2", 0.5, metric, parameters, macs, 10, latency)

    a, b, c, d = point("a", 0.9, 100, 50), point("b", 0.8, 50, 60), point("c", 0.7, 60, 40), point("d", 0.8, 50, 90)
    failed = SweepPoint("e", "l1", 0.5, error="no")
    found = fronts([a, b, c, d, failed])
    assert found == {"macs": ("b", "a"), "parameters": ("c", "a"), "latency": ("a",)}
    better = point("better", 0.85, 50, 60)  # at the cost of another one
    for points in ([a, b, better], [better, b, a]):
        assert fronts(points)["macs"] == ("better", "a")
    assert "latency" not in fronts([a, replace(b, latency=None)])
    assert fronts([failed]) == {"macs": (), "parameters": ()}
    assert fronts([a, b, c, d, failed], higher_is_better=False) == {
        "macs": ("b", "c"), "parameters": ("c",), "latency": ("c",),
    }  # fmt: skip
    free = point("free", 0.0, 200, 200)  # a loss of nothing
    assert fronts([a, b, free], higher_is_better=False)["macs"] == ("b", "free")


def test_goes_on_where_it_was(tiny_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "points"
    made: list[float] = []
    cut = Pruner.cut
    monkeypatch.setattr(Pruner, "cut", lambda self, ratio, *how: made.append(ratio) or cut(self, ratio, *how))

    def sweep(*ratios: float, **more: Any) -> onnxprune.options.Sweep:
        return onnxprune.sweep(tiny_path, folder, ratios, options=FAST, jobs=1, measure=size, **more)

    first = sweep(0.25, 0.5)
    assert made == [0.25, 0.5]
    second = sweep(0.25, 0.5, 0.75)
    assert made == [0.25, 0.5, 0.75]
    assert second.points[:2] == first.points
    assert [path.name for path in sorted(folder.iterdir())] == [
        "l2-0.25.json", "l2-0.5.json", "l2-0.75.json", "original.json",
    ]  # fmt: skip
    (folder / "l2-0.5.json").write_text("{")
    sweep(0.25, 0.5, 0.75)
    assert made[3:] == [0.5]
    sweep(0.25, save_models=True)
    assert made[4:] == [0.25]
    assert (folder / "l2-0.25.onnx").stat().st_size < tiny_path.stat().st_size
    onnxprune.sweep(tiny_path, folder, [0.25], options=replace(FAST, min_channels=7), jobs=1, measure=size)
    assert made[5:] == [0.25]
    tiny_path.write_bytes(tiny_path.read_bytes())  # the same file, only newer
    sweep(0.5)
    assert made[6:] == []
    tiny_path.write_bytes(tiny_path.read_bytes() + b"\x3a\x00")  # another, empty graph to merge: another file
    sweep(0.5)
    assert made[6:] == [0.5]


ATTENTION = """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q4 = Reshape(q, split) k4 = Reshape(k, split)
    v4 = Reshape(v, split) qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 3, 1]>(k4)
    vt = Transpose<perm = [0, 2, 1, 3]>(v4) s = MatMul(qt, kt) p = Softmax(s) o = MatMul(p, vt)
    ot = Transpose<perm = [0, 2, 1, 3]>(o) m = Reshape(ot, merge) a = MatMul(m, wo) h = MatMul(a, w1) r = Relu(h)
    y = MatMul(r, w2)"""


@pytest.fixture
def attention_path(tmp_path: Path) -> Path:
    """Four heads and a hidden layer."""
    sizes = dict.fromkeys(("wq", "wk", "wv"), (8, 16)) | {"wo": (16, 8), "w1": (8, 12), "w2": (12, 8)}
    shapes = {"split": np.array([0, 0, 4, 4]), "merge": np.array([0, 0, 16])}
    model = graph("(float[N, 5, 8] x) => (float[N, 5, 8] y)", ATTENTION, **sizes, **shapes)
    onnx.save(model, tmp_path / "attention.onnx")
    return tmp_path / "attention.onnx"


@pytest.mark.parametrize(
    ("network", "jobs", "options"),
    [
        ("tiny_path", 2, Options(calib_samples=16)), ("tiny_path", 1, Options(fast=True, of="macs")),
        ("attention_path", 1, Options(calib_samples=16)), ("attention_path", 1, Options(calib_samples=16, scope="global")),
        ("attention_path", 1, Options(calib_samples=4, scope="pq", of="params", round_to=2)),
        ("tiny_path", 1, Options(calib_samples=16, ratio_of={"conv1_weight": 0.5})),
    ],
    ids=["two processes", "weights only", "heads", "heads by the ratio", "turns", "a share by name"],
)  # fmt: skip
def test_a_point_is_what_a_run_of_its_own_makes(
    network: str, jobs: int, options: Options, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whatever was made before it in the same process: the same plan and the same file, byte for byte."""
    path = request.getfixturevalue(network)
    ratios, criteria = (0.6, 0.3), ("l2", "fpgm") if options.fast else ("obs", "wanda")
    result = onnxprune.sweep(path, tmp_path / "s", ratios, criteria, options, save_models=True, jobs=jobs, measure=size)
    assert [point.error for point in result.points] == [None] * 4
    for point in result.points:
        alone = api.prune(path, replace(options, criterion=point.criterion, ratio=point.ratio))
        made = alone.save(tmp_path / "alone.onnx")
        assert Path(str(point.model)).read_bytes() == made.read_bytes()
        assert read_plan(Path(str(point.model)).with_suffix(".plan.json")) == alone.plan


def test_what_does_not_depend_on_the_ratio_is_made_once(tiny_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Inputs, shapes, trace and statistics for all points; curves for each criterion. Inputs are made twice: to prune
    with, and others to compare with."""
    calls: Counter[str] = Counter()

    def count(home: Any, name: str) -> None:
        real = getattr(home, name)
        monkeypatch.setattr(home, name, lambda *a, **k: calls.update([name]) or real(*a, **k))

    for home, name in (
        (sources._Calibrator, "synthetic"), (pruner, "analysed"), (fit, "collect"), (curves, "observe"),
        (curves, "measure"), (timings, "costs"), (Pruner, "cut"),
    ):  # fmt: skip
        count(home, name)
    options = Options(calib_samples=16)
    onnxprune.sweep(tiny_path, tmp_path / "s", [0.2, 0.4, 0.6], ["obs", "wanda"], options)
    assert calls == {"synthetic": 2, "analysed": 1, "collect": 1, "observe": 2, "measure": 2, "cut": 6}
    calls.clear()
    onnxprune.sweep(tiny_path, tmp_path / "f", [0.2, 0.4, 0.6], ["l2", "l1"], FAST)
    assert calls == {"synthetic": 1, "analysed": 1, "cut": 6}


def test_cheap_points_come_first_and_every_point_is_told(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def swept(*ratios: float) -> tuple[onnxprune.options.Sweep, list[str]]:
        """The result, and the points by the lines that were told."""
        caplog.clear()
        with caplog.at_level("INFO", "onnxprune.progress"):
            options = replace(FAST, calib_samples=8)
            result = onnxprune.sweep(tiny_path, tmp_path / "s", ratios, ["wanda", "l2"], options, jobs=1, measure=size)
        found = (record.getMessage().split(": ") for record in caplog.records)
        return result, [words[1] for words in found if words[0] in ("original", "points") and len(words) > 1]

    result, told = swept(0.6, 0.2)
    assert told[0].startswith("44,988 MACs, 1,165 parameters, size 1")
    assert told[1:] == ["l2 at 0.2", "l2 at 0.6", "wanda at 0.2", "wanda at 0.6"]
    assert [(p.criterion, p.ratio) for p in result.points] == [("wanda", 0.6), ("wanda", 0.2), ("l2", 0.6), ("l2", 0.2)]
    assert swept(0.6, 0.1)[1][1:] == ["wanda at 0.6", "l2 at 0.6", "l2 at 0.1", "wanda at 0.1"]


def test_a_process_for_every_few_points(monkeypatch: Any) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    assert [processes(n) for n in (1, 4, 7, 8, 11, 12, 100)] == [1, 1, 1, 2, 2, 3, 3]


def test_a_failing_point_is_recorded_and_tried_again(tiny_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    cut = Pruner.cut

    def fails(self: Pruner, ratio: float, *how: Any) -> Pruned:
        if ratio == 0.25:
            raise MemoryError
        return cut(self, ratio, *how)

    with monkeypatch.context() as patch:
        patch.setattr(Pruner, "cut", fails)
        result = onnxprune.sweep(tiny_path, tmp_path / "s", [0.25, 0.5], options=FAST, jobs=1, measure=size)
    bad, good = result.points
    assert "out of memory" in str(bad.error)
    assert bad.metric is None
    assert good.error is None
    assert result.fronts["macs"] == (good.name,)
    assert "out of memory" in json.loads((tmp_path / "s" / "l2-0.25.json").read_text())["point"]["error"]
    again = onnxprune.sweep(tiny_path, tmp_path / "s", [0.25, 0.5], options=FAST, jobs=1, measure=size)
    assert [point.error for point in again.points] == [None, None]
    assert again.points[1] == good


def test_a_process_that_dies_takes_no_other_point_along(tiny_path: Path, tmp_path: Path) -> None:
    criteria = ("l2", "l1")
    result = onnxprune.sweep(tiny_path, tmp_path / "s", [0.25, 0.5, 0.25], criteria, FAST, jobs=2, measure=lethal)
    assert [point.name for point in result.points if point.error] == ["l1-0.5"]
    assert "did not come to an end" in str(result.points[3].error)


def test_a_cluster_that_loses_a_worker(tiny_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(api.__file__).parents[1])]))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        before = {worker.pid for worker in cluster.workers.values()}
        result = onnxprune.sweep(
            tiny_path, tmp_path / "s", [0.25, 0.5, 0.75], ("l1", "l2"), FAST, backend="dask",
            address=cluster.scheduler_address, measure=once,
        )  # fmt: skip
        after = {worker.pid for worker in cluster.workers.values()}
    assert (tmp_path / "died").exists()
    assert len(before) == 2
    assert before != after
    assert [point.error for point in result.points] == [None] * 6
    assert len(list((tmp_path / "s").glob("l*.json"))) == 6


def test_command(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).standard_normal((70, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=images, labels=np.arange(70) % 5)
    html, folder = tmp_path / "s" / "sweep.html", tmp_path / "s"
    arguments = ["sweep", str(tiny_path), str(folder), "--ratios", "0.25", "0.5", "--criteria", "l2", "l1", "--fast",
                 "--jobs", "1", "--validate", str(tmp_path / "data.npz"), "--report"]  # fmt: skip
    assert main([*arguments, str(html), "--log-level", "info"]) == 0
    text, log = capsys.readouterr()
    assert "top-1" in text
    assert text.count("points") == 4
    lines = [line.removeprefix("points: ") for line in log.splitlines() if line.startswith("points: ")]
    assert [line.partition(":")[0] for line in lines] == ["l2 at 0.25", "l1 at 0.25", "l2 at 0.5", "l1 at 0.5"]
    assert "original: " in log
    assert "% of the MACs" in lines[0]
    assert "top-1 " in lines[0]
    with opened(html) as page:
        assert page.locator("section:has(h2:text-is('Pareto fronts')) figure > svg").count() == 2
        rows = page.locator("section:has(h2:text-is('Points')) tbody tr")
        assert rows.count() == 4
        page.get_by_label("Filter points").fill("l1")
        assert rows.count() == 2
    assert main([*arguments, str(tmp_path / "s.json"), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    data = json.loads((tmp_path / "s.json").read_text())
    assert data["dense"]["ratio"] == 0
    assert data["points"][0]["parameters"] < data["dense"]["parameters"]


def test_without_labels_the_metric_is_agreement(tiny_path: Path, tmp_path: Path) -> None:
    options = replace(FAST, calib_samples=32)
    result = onnxprune.sweep(tiny_path, tmp_path / "s", [0.1, 0.7], options=options, jobs=1)
    assert result.metric == "agreement"
    assert result.dense.metric == 1
    light, heavy = (float(point.metric or 0) for point in result.points)
    assert 0 <= heavy < light < 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ratios", "1.5"], "--ratios"), (["--criteria", "magic"], "magic"), (["--address", "tcp://h:1"], "--backend"),
        (["--validate", "no.npz"], "no.npz"), (["--report", "no/r.html"], "does not exist"), (["--jobs", "0"], "--jobs"),
        (["--calib", "no.npz"], "no.npz"), (["--calib", "no.py:feeds"], "no.py"),
    ],
)  # fmt: skip
def test_wrong_flags(
    flags: list[str], said: str, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "points"
    assert main(["sweep", str(tiny_path), str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not folder.exists()


def test_no_model_and_no_folder(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(tmp_path / "no.onnx"), str(tmp_path / "s")]) == 2
    assert main(["sweep", str(tiny_path), str(tiny_path)]) == 2
    assert main(["sweep", str(tiny_path), str(tmp_path / "no" / "s")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.onnx"]
    assert main(["sweep", str(tiny_path), str(tmp_path / "s"), "--nodes-to-exclude", "*", "--fast", "--jobs", "1"]) == 4
    assert "no point could be made" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cluster_of_ray(tiny_path: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ways = [0.25, 0.5], ("l1", "l2"), FAST
    there = onnxprune.sweep(tiny_path, tmp_path / "there", *ways, backend="ray")
    here = onnxprune.sweep(tiny_path, tmp_path / "here", *ways, jobs=1)
    assert not ray.is_initialized()
    assert [replace(point, seconds=0.0) for point in there.points] == [replace(point, seconds=0.0) for point in here.points]


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_cluster_that_is_not_installed(
    name: str, tiny_path: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, {"dask": "distributed"}.get(name, name), None)
    assert main(["sweep", str(tiny_path), str(tmp_path / "s"), "--fast", "--backend", name]) == 2
    assert f"pip install 'onnxprune[{name}]'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
