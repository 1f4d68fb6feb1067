"""Metrics, data in all forms, gates, comparison and the search for the largest cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.measure import Comparison, Gates, compared
from onnxprune.measure.custom import chosen
from onnxprune.measure.metrics import METRICS
from onnxprune.measure.quality import Data
from onnxprune.measure.tally import figures, likely
from onnxprune.model import Model
from onnxprune.options import Options

Captured = pytest.CaptureFixture[str]


def value(name: str, outputs: Any, reference: Any) -> float:
    metric = METRICS[name]
    found = metric.statistics([np.asarray(outputs)], reference)
    return float(metric.value(found.sum(0), np.asarray(float(len(found)))))


LOGITS = np.array([[0.1, 0.9, 0, 0, 0, 0], [0.9, 0.1, 0.2, 0.3, 0.4, 0.5], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("name", "outputs", "reference", "wanted"),
    [
        ("top-1", LOGITS, np.array([1, 1, 2, 3]), 0.5),
        ("top-1", np.array([1, 0, 2, 5]), np.array([1, 1, 2, 5]), 0.75),
        ("top-5", LOGITS[1:2], np.array([1]), 0.0),
        ("top-5", LOGITS[1:2], np.array([2]), 1.0),
        ("agreement", LOGITS, [LOGITS[::-1]], 0.0),
        ("agreement", LOGITS[:, :, None, None], [LOGITS[:, :, None, None]], 1.0),
        ("agreement", np.zeros((2, 3, 4)), [np.eye(4)[None, :3].repeat(2, 0)], 1 / 3),
        # argmax takes what is not a number for the largest: class 0 of both, and of two pixels
        ("top-1", np.full((2, 6), np.nan), np.zeros(2, int), 0.0),
        ("top-5", np.where(LOGITS == 1, np.nan, LOGITS), np.array([1, 0, 2, 5]), 0.5),
        ("agreement", np.full((2, 6), np.nan), [np.full((2, 6), np.nan)], 0.0),
        ("exact", np.full((1, 3, 4), np.nan), np.zeros((1, 3), int), 0.0),
        ("miou", np.array([[0.0, 1, np.nan, np.nan], [1, 0, 0, 0]]).reshape(1, 2, 2, 2), np.array([[[1, 0], [0, 0]]]), 2 / 3),
        ("cosine", LOGITS, [3 * LOGITS], 1.0),
        ("cosine", LOGITS, [-LOGITS], -1.0),
        ("cosine", np.zeros((2, 3)), [np.zeros((2, 3))], 1.0),
        ("snr", np.array([[1.0, 0]]), [np.array([[1.0, 0.1]])], 10 * np.log10(1.01 / 0.01)),
        ("snr", LOGITS, [LOGITS], 200.0),
        ("exact", np.eye(4)[None, [1, 2, 3]], np.array([[1, 2, 3]]), 1.0),
        ("exact", np.eye(4)[None, [1, 2, 3]], np.array([[1, 2, 0]]), 0.0),
        # two classes of four pixels: class 0 has 1 of 3 in common, class 1 has 1 of 3
        ("miou", np.eye(2)[[0, 0, 1, 1]].T.reshape(1, 2, 2, 2), np.array([[[0, 1], [0, 1]]]), 1 / 3),
        ("miou", np.eye(2)[[0, 0, 1, 1]].T.reshape(1, 2, 2, 2), np.array([[[0, 255], [255, 1]]]), 1.0),
    ],
)
def test_metrics(name: str, outputs: Any, reference: Any, wanted: float) -> None:
    assert value(name, outputs, reference) == pytest.approx(wanted)


def test_what_a_metric_cannot_measure() -> None:
    for name, outputs, labels in (
        ("top-5", np.array([1, 2]), np.array([1, 2])),
        ("top-1", LOGITS, np.zeros((4, 3), int)),
        ("top-1", LOGITS, np.array([0.2, 1, 2, 3])),
        ("top-1", LOGITS, np.array(["cat"] * 4)),
        ("top-1", LOGITS[:, :1], np.array([0, 1, 0, 1])),
        ("exact", LOGITS, np.zeros((4, 3), int)),
        ("miou", LOGITS[:, :, None, None], np.zeros((4, 3, 3), int)),
    ):
        with pytest.raises(UsageError, match=name):
            value(name, outputs, labels)
    with pytest.raises(UsageError, match="needs labels"):
        chosen("top-1", [LOGITS], None)


def test_what_is_measured_where_nothing_is_said() -> None:
    assert chosen("", [LOGITS], np.zeros(4, int)).name == "top-1"
    assert chosen("", [LOGITS[:, :, None, None]], np.zeros((4, 2, 2), int)).name == "miou"
    assert chosen("", [LOGITS[:, None]], np.zeros((4, 1), int)).name == "top-1"
    assert chosen("", [LOGITS[:, None].repeat(3, 1)], np.zeros((4, 3), int)).name == "exact"
    assert chosen("", [LOGITS], None).name == "agreement"
    assert chosen("", [LOGITS[:, :1]], None).name == "cosine"


def drop(before: np.ndarray, after: np.ndarray, name: str = "top-1") -> tuple[float, float]:
    interval = figures(METRICS[name], before, after, 0)[3]
    assert interval is not None
    return interval


@pytest.mark.parametrize("n", [1, 5, 20, 100, 2000])
def test_no_difference_in_few_samples_says_little(n: int) -> None:
    """Where none of n samples was lost, 3 / n of all may be, for all that is known (97.5 %: 3.7 / n)."""
    low, high = drop(np.ones((n, 1)), np.ones((n, 1)))
    assert low == pytest.approx(-high, abs=1.1 / (n + 2))
    assert 1.5 / n < high < 4.5 / n or high == 1
    within = likely(METRICS["agreement"], np.ones((n, 1)), 0)
    assert within is not None
    assert within[1] == 1
    assert 1 - min(1, 6 / n) <= within[0] <= 1 - min(0.3, 2 / n)


@pytest.mark.parametrize("n", [2, 4, 10, 40])
def test_the_interval_of_a_mean_holds_as_often_as_it_says(n: int) -> None:
    """Of normal numbers, whose mean Student's interval holds in 95 of 100 cases."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = drop(rng.standard_normal((n, 1)), np.zeros((n, 1)), "cosine")
        held += low <= 0 <= high
    assert held >= {2: 80, 4: 164, 10: 180, 40: 182}[n]


def test_the_interval_of_a_drop_is_paired() -> None:
    """Two models that fail on the same samples differ for certain by what else they fail on."""
    rng = np.random.default_rng(0)
    before = (rng.random((2000, 1)) < 0.7).astype(float)
    after = before.copy()
    after[np.flatnonzero(before)[:40]] = 0
    low, high = drop(before, after)
    assert low < 0.02 < high
    assert high - low < 0.015  # unpaired it would be 0.057
    half = np.tile([[0.0], [1.0]], (400, 1))  # of 800 samples every other one is lost
    low, high = drop(np.ones((800, 1)), half)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 800**0.5, rel=0.08)  # 95 per cent of a normal distribution
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.005)


def linear(weight: np.ndarray, batch: str = "N") -> Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{batch}, 5] x) => (float[{batch}, 5] y) {{ y = MatMul(x, w) }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    return Model.load(model)


@pytest.mark.parametrize("batch", ["N", "1", "7"])
def test_two_models_at_any_batch_size(tmp_path: Path, batch: str) -> None:
    labels = np.arange(150) % 5
    np.savez(tmp_path / "d.npz", x=np.eye(5, dtype=np.float16)[labels], labels=labels)
    swapped = np.eye(5)[[1, 0, 2, 3, 4]]
    comparison = compared(linear(np.eye(5), batch), tmp_path / "d.npz", Options())
    found = comparison.measure(linear(swapped, batch), Gates(max_drop=0.3, min_agreement=0.6))
    assert (found.before, found.after, found.samples, found.metric) == (1.0, 0.6, 150, "top-1")
    assert found.drop == pytest.approx(0.4)
    assert found.interval is not None
    assert found.interval[0] < 0.4 < found.interval[1]
    assert found.fidelity["agreement"] == pytest.approx(0.6)
    assert found.fidelity["cosine"] == pytest.approx(0.6)
    assert len(found.failed) == 1
    assert "--max-drop" in found.failed[0]
    assert not comparison.measure(linear(swapped, batch), Gates(max_drop=0.41)).failed


def test_unlabelled_data_of_a_fixed_batch_counts_no_filling(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.eye(5))
    found = compared(linear(np.eye(5), "3"), tmp_path / "d.npz", Options()).measure(linear(np.eye(5)[::-1], "3"))
    assert (found.metric, found.samples, found.before, found.after) == ("agreement", 5, 1.0, 0.2)


def test_pictures_in_a_folder_for_each_class(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for k, name in enumerate(("black", "white")):
        (tmp_path / name).mkdir()
        for i in range(3):
            image.new("RGB", (6, 6), (255 * k,) * 3).save(tmp_path / name / f"{i}.png")
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 4, 4] x) => (float[N, 2] y)
        { m = ReduceMean<axes = [1, 2, 3], keepdims = 0>(x) u = Reshape(m, s) n = Neg(u) y = Concat<axis = 1>(n, u) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), "s"))
    options = Options(scale=1.0, mean=(0.5,), std=(0.5,))
    found = compared(proto, tmp_path, options).measure(Model.load(proto))
    assert (found.metric, found.before, found.samples) == ("top-1", 1.0, 6)


def test_a_script_gives_data_and_a_metric(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(
        "import numpy as np\n"
        "def data():\n    for k in range(4):\n        yield {'x': np.eye(5, dtype=np.float32)[k:k+1], 'labels': np.array([k])}\n"
        "def hits(outputs, labels):\n    return (outputs[0].argmax(1) == labels) * 1.0\n"
        "def one(outputs, labels):\n    return float((outputs[0].argmax(1) == labels).mean())\n"
        "def bad(outputs, labels):\n    raise KeyError('no such thing')\n"
        "def shape(outputs, labels):\n    return np.zeros((2, 2))\n"
    )
    data, other = f"{tmp_path}/s.py:data", linear(np.eye(5)[[1, 0, 2, 3, 4]])
    found = {
        name: compared(linear(np.eye(5)), data, Options(), f"{tmp_path}/s.py:{name}").measure(other)
        for name in ("hits", "one")
    }
    assert {(q.before, q.after, q.samples) for q in found.values()} == {(1.0, 0.5, 4)}
    assert found["hits"].interval is not None
    assert found["one"].interval is None
    for name, says in (("bad", "KeyError"), ("shape", "must give a number"), ("none", "has no function")):
        with pytest.raises(UsageError, match=says):
            compared(linear(np.eye(5)), data, Options(), f"{tmp_path}/s.py:{name}").measure(other)
    with pytest.raises(UsageError, match="metric takes one of"):
        compared(linear(np.eye(5)), data, Options(), "no-such")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"image": np.zeros((3, 3, 8, 8)), "labels": np.zeros(4, int)}, "one per sample"),
        ({"x": np.zeros((4, 3, 8, 8)), "y": np.zeros(4), "labels": np.zeros(4, int)}, "no array for the input 'image'"),
        ({"image": np.zeros((4, 3, 9, 8)), "labels": np.zeros(4, int)}, "has shape"),
        ({"labels": np.zeros(4, int)}, "no array"),
        ({"image": np.array([None] * 4)}, "not plain arrays"),
    ],
)
def test_wrong_data(tmp_path: Path, tiny: ModelProto, arrays: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(UsageError, match=says):
        compared(tiny, tmp_path / "data.npz", Options())


def test_a_model_without_rows_for_samples() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 5] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }'
    )
    with pytest.raises(UsageError, match="row for each sample"):
        Comparison(Model.load(model), Data([{"x": np.zeros((4, 5), np.float32)}], None, [4], "d"))


# The command line


@pytest.fixture
def labelled(tiny_path: Path, tmp_path: Path) -> Path:
    """Inputs, and what the dense model says of them as labels."""
    from onnxprune.run import open_session

    images = np.random.default_rng(0).standard_normal((120, 3, 8, 8)).astype(np.float32)
    session = open_session(Model.load(tiny_path))
    (name,) = (i.name for i in session.get_inputs())
    scores = np.concatenate([session.run(None, {name: images[k : k + 1]})[0] for k in range(len(images))])
    path = tmp_path / "data.npz"
    np.savez(path, **{name: images, "labels": scores.reshape(len(images), -1).argmax(1)})
    return path


@pytest.mark.parametrize(
    ("gate", "passes"),
    [
        (["--max-drop", "0.9"], True), (["--max-drop", "0"], False),
        (["--min-agreement", "0.05"], True), (["--min-agreement", "1"], False),
        (["--min-cosine", "0.01"], True), (["--min-cosine", "1"], False),
    ],
)  # fmt: skip
def test_every_gate_both_ways(gate: list[str], passes: bool, tiny_path: Path, labelled: Path, capsys: Captured) -> None:
    out, report = labelled.parent / "o.onnx", labelled.parent / "r.json"
    arguments = [
        str(tiny_path),
        str(out),
        "--ratio",
        "0.5",
        "--fast",
        "--validate",
        str(labelled),
        "--report",
        str(report),
    ]
    assert main([*arguments, *gate]) == (0 if passes else 1)
    assert out.exists() == passes
    error = capsys.readouterr().err
    assert passes == (error == "")
    assert passes or (gate[0] in error and error.count("\n") == 1)
    assert bool(json.loads(report.read_text())["validation"]["failed"]) != passes
    assert not list(labelled.parent.glob("*failed*"))


def test_a_failing_gate_leaves_an_old_result_and_keeps_the_new_one_if_asked(
    tiny_path: Path, labelled: Path, capsys: Captured
) -> None:
    out = labelled.parent / "o.onnx"
    out.write_bytes(b"old")
    arguments = [
        str(tiny_path),
        str(out),
        "--ratio",
        "0.5",
        "--fast",
        "--validate",
        str(labelled),
        "--max-drop",
        "0",
        "-q",
    ]
    assert main([*arguments, "--keep-on-fail"]) == 1
    assert out.read_bytes() == b"old"
    onnx.checker.check_model(labelled.parent / "o.failed.onnx")
    assert "o.failed.onnx" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--max-drop", "0.1"], ["--metric", "top-1"], ["--min-cosine", "0.5"]])
def test_a_gate_needs_data(flag: list[str], tiny_path: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main([str(tiny_path), str(tmp_path / "o.onnx"), "--fast", *flag]) == 2
    assert "--validate" in capsys.readouterr().err


def test_a_metric_that_raises_is_one_line_before_any_file(tiny_path: Path, labelled: Path, capsys: Captured) -> None:
    script = labelled.parent / "m.py"
    script.write_text("def f(outputs, labels):\n    return 1 / 0\n")
    out = labelled.parent / "o.onnx"
    assert main([str(tiny_path), str(out), "--fast", "--validate", str(labelled), "--metric", f"{script}:f"]) == 2
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_the_largest_cut_that_holds(tiny_path: Path, labelled: Path) -> None:
    out, report = labelled.parent / "o.onnx", labelled.parent / "r.json"
    gates = ["--min-agreement", "0.7"]
    arguments = ["--fast", "--validate", str(labelled), *gates, "--report", str(report), "-q"]
    assert main([str(tiny_path), str(out), *arguments]) == 0
    found = json.loads(report.read_text())
    assert found["validation"]["fidelity"]["agreement"] >= 0.7
    ratio = found["options"]["ratio"]
    assert 0 < ratio < 1
    bigger = api.prune(tiny_path, fast=True, ratio=min(0.99, ratio + 0.1)).model
    comparison = compared(tiny_path, labelled, Options())
    assert comparison.measure(bigger).fidelity["agreement"] < 0.7


def test_no_cut_holds(tiny_path: Path) -> None:
    with pytest.raises(CheckFailed, match="no cut is small enough"):
        api.largest(tiny_path, lambda result: False, fast=True)


def test_statistics_are_taken_once_for_all_cuts(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.planning import curves

    calls = []
    real = curves.observe
    monkeypatch.setattr(curves, "observe", lambda *a: calls.append(1) or real(*a))
    ratios = []
    result = api.largest(tiny_path, lambda r: ratios.append(r.report.options.ratio) or r.report.options.ratio < 0.4,
                         calib_samples=32)  # fmt: skip
    assert len(calls) <= 2  # without heads, and with them where there are any
    assert len(ratios) >= 5
    assert 0.35 < result.report.options.ratio < 0.4
    alone = api.prune(tiny_path, ratio=result.report.options.ratio, calib_samples=32)
    assert alone.plan.groups == result.plan.groups


def test_compare(tiny_path: Path, labelled: Path, capsys: Captured) -> None:
    out = labelled.parent / "o.onnx"
    assert main([str(tiny_path), str(out), "--ratio", "0.5", "--fast", "-q"]) == 0
    assert main(["compare", str(tiny_path), str(out), "--data", str(labelled), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["after"]["macs"] < found["before"]["macs"]
    assert found["quality"]["metric"] == "top-1"
    assert found["quality"]["before"] == 1.0
    assert main(["compare", str(tiny_path), str(tiny_path)]) == 0  # on made-up inputs
    assert "100.00%" in capsys.readouterr().out
    assert main(["compare", str(tiny_path), str(out), "--min-cosine", "1"]) == 1
    assert main(["compare", str(tiny_path), str(labelled.parent / "no.onnx")]) == 2


OTHER = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 5] x) => (float[N, 2] y)
    { y = Slice(x, a, b, c) }"""


def test_models_that_cannot_be_compared(tmp_path: Path) -> None:
    comparison = compared(linear(np.eye(5)), None, Options())
    slices = onnx.parser.parse_model(OTHER)
    for name, value in (("a", [0]), ("b", [2]), ("c", [1])):
        slices.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    with pytest.raises(UsageError, match="outputs of shapes"):
        comparison.measure(Model.load(slices))
    renamed = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 5] z) => (float[N, 5] y) { y = Relu(z) }'
    )
    with pytest.raises(UsageError, match="different inputs: x and z"):
        comparison.measure(Model.load(renamed))
    wider = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => (float[N, 6] y) { y = Relu(x) }'
    )
    with pytest.raises(UsageError, match="different sizes of 'x'"):
        comparison.measure(Model.load(wider))


def test_the_dense_model_answers_once_where_there_is_room(tmp_path: Path) -> None:
    """However many models are measured; and what is kept changes no number."""
    data = Data([{"x": np.random.default_rng(k).standard_normal((4, 5)).astype(np.float32)} for k in range(3)], None,
                [4, 4, 3], "d")  # fmt: skip
    others = [Model.load(linear(np.eye(5) * k)) for k in (1, -1)]
    found, runs = [], []
    for room in (0, 2 * 4 * 5 * 4, 1 << 20):
        comparison = Comparison(Model.load(linear(np.eye(5))), data, "", room=room)
        counted, answers = [], comparison._outputs
        comparison._outputs = lambda s, k, c=comparison, n=counted, a=answers: n.append(s is c.session) or a(s, k)
        found.append([comparison.measure(other) for other in others])
        runs.append(sum(counted))
    assert found[0] == found[1] == found[2]
    assert runs == [6, 2, 0]  # besides the first time, before any is measured
