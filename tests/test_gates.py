"""Gates: what a metric is, what must hold of it, and the data on which nothing can be said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from browser import opened
from onnx import numpy_helper
from test_cli import fails

import onnxprune
from onnxprune import Gates, UsageError, units
from onnxprune.cli import main
from onnxprune.measure import Quality, compared
from onnxprune.measure.doubts import Answers
from onnxprune.measure.gates import failures
from onnxprune.model import Model
from onnxprune.options import Options

Captured = pytest.CaptureFixture[str]
SCRIPT = """
import numpy as np
def loss(outputs, labels):
    p = outputs[0] - np.log(np.exp(outputs[0]).sum(1, keepdims=True))
    return -p[np.arange(len(labels)), labels]
loss.higher_is_better, loss.unit, loss.name = False, 'nats', 'cross entropy'
def whole(outputs, labels):
    return float(loss(outputs, labels).mean())
whole.higher_is_better = False
def hits(outputs, labels):
    return outputs[0].argmax(1) == labels
hits.higher_is_better, hits.unit = True, 'share'
def silent(outputs, labels):
    return outputs[0].argmax(1) == labels
def crooked(outputs, labels):
    return 93.2
crooked.higher_is_better, crooked.unit = True, 'share'
def wrong(outputs, labels):
    return 1.0
wrong.higher_is_better = 'yes'
"""


def linear(weight: np.ndarray) -> Model:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 10] x) => (float[N, 10] y) { y = MatMul(x, w) }'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    return Model.load(model)


EYE = 4 * np.eye(10)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models of ten classes: a.onnx knows all, b.onnx takes class 9 for class 0 and is less sure of class 1; data of
    400 samples, and metrics."""
    monkeypatch.chdir(tmp_path)
    linear(EYE).save("a.onnx")
    weight = EYE.copy()
    weight[9], weight[1] = EYE[0], EYE[1] / 2
    linear(weight).save("b.onnx")
    labels = np.arange(400) % 10
    np.savez("d.npz", x=np.eye(10, dtype=np.float32)[labels], labels=labels)
    Path("s.py").write_text(SCRIPT)
    return tmp_path


# -- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "says"),
    [(0.94652, "share", "94.65%"), (20.21, "", "20.21"), (20.21, "nats", "20.21 nats"), (200.0, "dB", "200 dB"), (-0.0, "", "0")],
)
def test_values(value: float, unit: str, says: str) -> None:
    assert units.written(value, unit) == says


@pytest.mark.parametrize(
    ("change", "unit", "interval", "says"),
    [
        (-0.019, "share", (-0.028, -0.0105), "-1.90 points (-2.80 to -1.05)"), (-0.0, "share", None, "0.00 points"),
        (-0.00001, "share", (-0.00004, 0.0), "0.00 points (0.00 to 0.00)"), (0.5, "nats", None, "+0.5 nats"),
        (-0.0, "", None, "0"), (-191.0, "dB", None, "-191 dB"),
    ],
)  # fmt: skip
def test_changes(change: float, unit: str, interval: Any, says: str) -> None:
    assert units.changed(change, unit, interval) == says


FIGURES = Quality(
    "top-1", 0.94, 0.92, 0.02, (0.011, 0.029), 2000, {"agreement": 0.96, "cosine": 0.95, "snr": 9.0}, "d", (), "share", True,
    {"agreement": (0.95, 0.97), "cosine": (0.94, 0.96)},
)  # fmt: skip
LOSS = replace(FIGURES, metric="loss", unit="nats", higher_is_better=False, before=2.0, after=2.02)


@pytest.mark.parametrize(
    ("found", "gates", "says"),
    [
        (FIGURES, Gates(0.02), ""), (FIGURES, Gates(0.019), "top-1 falls by 2.00 points (94.00% to 92.00%), more than --max-drop 0.019"),
        (FIGURES, Gates(0.03, gate="interval"), ""),
        (FIGURES, Gates(0.025, gate="interval"), "falls by 2.00 points (94.00% to 92.00%), perhaps by 2.90 points, more than"),
        (FIGURES, Gates(min_agreement=0.96), ""), (FIGURES, Gates(min_agreement=0.97), "agreement with the dense model is 0.9600, less"),
        (FIGURES, Gates(min_agreement=0.95, gate="interval"), ""),
        (FIGURES, Gates(min_agreement=0.96, gate="interval"), "is 0.9600, perhaps 0.9500, less than --min-agreement 0.96"),
        (FIGURES, Gates(min_cosine=0.945, gate="interval"), "perhaps 0.9400, less than --min-cosine 0.945"),
        (LOSS, Gates(0.02), ""), (LOSS, Gates(0.01), "loss rises by 0.02 nats (2 nats to 2.02 nats), more than --max-drop 0.01"),
        (replace(LOSS, drop=-0.5, interval=(-0.6, 0.2)), Gates(0.1), ""),
        (replace(LOSS, drop=-0.5, after=1.5, interval=(-0.6, 0.2)), Gates(0.1, gate="interval"), "loss falls by 0.5 nats (2 nats to 1.5 nats), perhaps"),
        (replace(FIGURES, drop=float("nan")), Gates(0.5), "nan"), (replace(FIGURES, interval=None), Gates(0.5, gate="interval"), "nan"),
    ],
)  # fmt: skip
def test_what_fails(found: Quality, gates: Gates, says: str) -> None:
    failed = list(failures(found, gates))
    assert bool(failed) == bool(says)
    assert not says or says in failed[0]


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"max_drop": -0.1}, "is not from 0 on"), ({"max_drop": "x"}, "is not a number"), ({"min_agreement": 1.5}, "did you mean 0.015"),
        ({"min_agreement": 95}, "did you mean 0.95"), ({"min_cosine": 0.0}, "above 0"), ({"gate": "both"}, "is not point or interval"),
        ({"max_drop": float("nan")}, "is not from 0 on"),
    ],
)  # fmt: skip
def test_what_no_gate_can_be(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        onnxprune.compare(linear(EYE).to_proto(), linear(EYE).to_proto(), gates=Gates(**keywords))


# -- each gate, from end to end ---------------------------------------------------------------------------------------

# b.onnx gets 40 of 400 wrong: 10 points of top-1. A gate of the interval asks for more than one of the figure.
ROWS: list[tuple[str, int, str]] = [
    ("--max-drop 0.11", 0, "held: --max-drop 0.11 data"), ("--max-drop 0.09", 1, "top-1 falls by 10.00 points (100.00% to 90.00%)"),
    ("--max-drop 0.2 --gate interval", 0, "-10.00 points ("), ("--max-drop 0.11 --gate interval", 1, "perhaps by 13"),
    ("--min-agreement 0.89", 0, ""), ("--min-agreement 0.91", 1, "agreement"),
    ("--min-agreement 0.8 --gate interval", 0, "held: --min-agreement 0.8 at the worse end of its confidence interval"), ("--min-agreement 0.89 --gate interval", 1, "0.9000, perhaps 0.86"),
    ("--min-cosine 0.89", 0, ""), ("--min-cosine 0.91", 1, "cosine"),
    ("--min-cosine 0.8 --gate interval", 0, ""), ("--min-cosine 0.89 --gate interval", 1, "0.9000, perhaps 0.8"),
    ("--metric s.py:loss --max-drop 0.7", 0, "cross entropy of 400 (less is better) 0.1526 nats 0.617 nats +0.464 nats ("),
    ("--metric s.py:loss --max-drop 0.3", 1, "cross entropy rises by 0.464 nats (0.1526 nats to 0.617 nats), more than --max-drop 0.3"),
    ("--metric s.py:loss --max-drop 0.5 --gate interval", 1, "perhaps by 0.5"),
    ("--metric s.py:loss --max-drop 0.7 --gate interval", 0, ""),
    ("--metric s.py:whole --max-drop 0.5", 0, "s.py:whole of 400 (less is better)"), ("--metric s.py:whole --max-drop 0.3", 1, "s.py:whole rises"),
    ("--metric s.py:hits --max-drop 0.11", 0, "s.py:hits of 400 100.00% 90.00% -10.00 points ("), ("--metric s.py:hits --max-drop 0.09", 1, "falls by 10.00 points"),
    ("--metric snr --max-drop 194", 0, ""), ("--metric snr --max-drop 100", 1, "snr falls by 19"),
    ("--metric cosine --max-drop 0.11", 0, ""), ("--metric cosine --max-drop 0.09", 1, "cosine falls by 0.1 (1 to 0.9)"),
    # what is refused
    ("--max-drop 1", 2, "top-1 is a share, from 0 to 1; did you mean 0.01?"), ("--max-drop 2.5", 2, "did you mean 0.025?"),
    ("--metric s.py:hits --max-drop 5", 2, "did you mean 0.05?"),
    ("--min-agreement 95", 2, "did you mean 0.95?"), ("--max-drop -1", 2, "is not from 0 on"), ("--gate both", 2, "is not point or interval"),
    ("--metric s.py:whole --max-drop 0.3 --gate interval", 2, "s.py:whole gives one number for all samples, not one for each; or use --gate point"),
    ("--metric s.py:silent --max-drop 0.3", 2, "silent.higher_is_better = True or False"), ("--metric s.py:silent", 0, "warning: d.npz: whether more"),
    ("--metric s.py:crooked --max-drop 0.3", 2, "unit is a share, which lies between 0 and 1, but it gave 93.2"),
    ("--metric s.py:wrong", 2, "its attribute higher_is_better is 'yes', not True or False"),
    ("--max-drop 0.3 --gate interval --validate-samples 1", 2, "one sample has none"),
]  # fmt: skip


@pytest.mark.parametrize(("gate", "code", "says"), ROWS, ids=[row[0] for row in ROWS])
def test_compare_with_each_gate(gate: str, code: int, says: str, folder: Path, capsys: Captured) -> None:
    command = ["compare", "a.onnx", "b.onnx", "--data", "d.npz", *gate.split()]
    if code == 2:
        assert says in fails(folder, capsys, code, *command)
        return
    assert main(command) == code
    captured = capsys.readouterr()
    assert says in " ".join((captured.err if code else captured.out).split())
    assert captured.err.count("\n") == code


def test_a_function_in_python_says_what_it_is(folder: Path) -> None:
    def loss(outputs: list[np.ndarray], labels: np.ndarray) -> Any:
        return 20 + (outputs[0].argmax(1) != labels)

    loss.higher_is_better = False  # type: ignore[attr-defined]
    found = onnxprune.compare("a.onnx", "b.onnx", "d.npz", metric=loss, gates=Gates(max_drop=0.05)).quality
    assert (found["before"], found["after"], found["drop"]) == (20.0, pytest.approx(20.1), pytest.approx(0.1))
    assert found["failed"][0].startswith("loss rises by 0.1 (20 to 20.1)")
    assert not onnxprune.compare("a.onnx", "b.onnx", "d.npz", metric=loss, gates=Gates(max_drop=0.15)).quality["failed"]
    better = onnxprune.compare("b.onnx", "a.onnx", "d.npz", metric=loss, gates=Gates(max_drop=0.0)).quality
    assert better["drop"] == pytest.approx(-0.1)
    assert not better["failed"]


def test_targets_have_a_ratio_of_signal_to_noise(folder: Path) -> None:
    """Labels that are numbers, of which the model should give as many: the drop is a difference of decibels."""
    x = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    np.savez("t.npz", x=x, labels=x @ EYE + 0.4 * np.random.default_rng(1).standard_normal((64, 10)))
    found = onnxprune.compare("a.onnx", "b.onnx", "t.npz", gates=Gates(max_drop=30)).quality
    assert (found["metric"], found["unit"], found["failed"]) == ("snr", "dB", ())
    assert 18 < found["before"] < 22
    assert found["drop"] == pytest.approx(found["before"] - found["after"])
    assert onnxprune.compare("a.onnx", "b.onnx", "t.npz", gates=Gates(max_drop=1)).quality["failed"]


# -- data on which nothing can be said -------------------------------------------------------------------------------


def noisy(labels: np.ndarray, right: float, classes: int, seed: int = 0) -> np.ndarray:
    """Answers of a model that is right in so many cases, and says anything else."""
    rng = np.random.default_rng([seed, 1])
    other = (labels + rng.integers(1, classes, labels.shape)) % classes
    return np.where(rng.random(labels.shape) < right, labels, other)


def scores(answers: np.ndarray, classes: int) -> list[np.ndarray]:
    return [np.moveaxis(np.eye(classes)[answers], -1, 1)]


def doubt(labels: np.ndarray, answers: np.ndarray, classes: int, folders: tuple[str, ...] = ()) -> str:
    found = Answers(folders)
    for part in np.array_split(np.arange(len(labels)), 3):
        if len(part):
            found.add(scores(answers[part], classes), labels[part])
    return found.doubt()


def drawn(n: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, n)


def case(n: int, classes: int, right: float, change: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Labels as the user gives them, and answers to what they should have been."""
    labels = drawn(n, classes)
    return change(labels), noisy(labels, right, classes)


def anything(classes: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda labels: drawn(len(labels), classes, 1)


def order(numbers: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda labels: np.array(numbers)[labels]


SHUFFLED = [3, 1, 4, 9, 5, 0, 2, 6, 8, 7]
SWAPPED = [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]
DOUBTS = [
    # samples, classes, how often the model is right, what was done to the labels, what is said
    (2000, 10, 0.9, lambda x: x, ""), (2000, 1000, 0.75, lambda x: x, ""), (2000, 10, 0.15, lambda x: x, ""),
    (2000, 1000, 0.02, lambda x: x, ""), (40, 10, 0.6, lambda x: x, ""), (10, 2, 0.6, lambda x: x, ""),
    (3, 10, 0.0, lambda x: x, ""), (5, 1000, 0.0, lambda x: x, ""),
    (200, 10, 0.9, anything(10), "no more than by chance"), (2000, 2, 0.9, anything(2), "no more than by chance"),
    (2000, 1000, 0.7, anything(1000), "no more than by chance"), (4, 10, 0.9, anything(10), ""),
    (200, 10, 0.9, lambda x: x + 1, "off by one: the dense model is right on 1"), (200, 10, 0.9, lambda x: (x - 1), "1 added to every label"),
    (200, 1000, 0.5, lambda x: x + 1, "with 1 subtracted from every label"), (30, 10, 0.9, lambda x: x + 1, "off by one"),
    (4, 10, 0.9, lambda x: (x + 1) % 10, ""), (200, 10, 0.9, lambda x: 2 * x, "the labels are 0 to 18, but the model has the classes 0 to 9"),
    (200, 10, 0.9, order(SHUFFLED), "numbered in another order"), (2000, 10, 0.4, order(SHUFFLED), "another order"),
    (500, 10, 0.9, order(SWAPPED), "where label 0 is class 1, label 1 is class 0"), (6, 10, 0.9, order(SWAPPED), ""),
    (3000, 100, 0.7, lambda x: 99 - x, "another order"),
]  # fmt: skip


@pytest.mark.parametrize(("n", "classes", "right", "change", "says"), DOUBTS, ids=[f"{i}-{row[4][:12]}" for i, row in enumerate(DOUBTS)])
def test_what_is_wrong_with_labels(n: int, classes: int, right: float, change: Callable[..., Any], says: str) -> None:
    found = doubt(*case(n, classes, right, change), classes)
    assert bool(found) == bool(says), found
    assert says in found


@pytest.mark.parametrize("n", [2, 5, 10, 20, 50, 200, 1000])
@pytest.mark.parametrize(("classes", "right"), [(2, 0.7), (10, 0.5), (10, 0.9), (100, 0.4), (1000, 0.3)])
def test_right_labels_raise_no_doubt(n: int, classes: int, right: float) -> None:
    """Of a hundred draws two may, of half of which a quarter of the labels is one too small."""
    found = []
    for seed in range(50):
        labels = drawn(n, classes, seed)
        found.append(doubt(labels, noisy(labels, right, classes, seed), classes))
        found.append(doubt(np.maximum(labels - (drawn(n, 4, seed + 1) == 0), 0), noisy(labels, right, classes, seed), classes))
    assert sum(map(bool, found)) <= 2, [x for x in found if x]


def test_pixels_and_steps_have_labels_too() -> None:
    """Neighbours say the same, so that samples count and not pixels: 40 maps of two classes each."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 6, (40, 2, 2)).repeat(16, 1).repeat(16, 2)
    answers = np.where(rng.random(blocks.shape) < 0.8, blocks, rng.integers(0, 6, blocks.shape))
    void = blocks.copy()
    void[:, :4] = 255
    for labels, says in ((blocks, ""), (void, ""), (blocks + 1, "off by one"), (np.full_like(blocks, 255), "no label counts")):
        found = doubt(labels, answers, 6)
        assert bool(found) == bool(says), found
        assert says in found


def test_one_class_alone_says_nothing() -> None:
    ones = np.ones(500, int)
    assert doubt(ones, noisy(ones, 0.9, 10), 10) == ""
    assert doubt(drawn(500, 10), ones, 10).startswith("the dense model is right on")  # whose answer is always the same
    assert doubt(np.full(500, 2), ones, 10) == ""
    two = drawn(200, 2) + 2
    assert "where label 1 is class 3" in doubt(4 - two, two, 5)  # one of the two classes that there are bears another number


def spoilt(folder: Path, how: str) -> str:
    """Arguments with which --validate or --calib is given something that is wrong in one way."""
    labels = np.arange(400) % 10
    x = np.eye(10, dtype=np.float32)[labels]
    arrays: dict[str, Any] = {
        "label": {"x": x, "label": labels}, "more": {"x": x, "labels": labels, "ids": labels, "age": labels},
        "shifted": {"x": x, "labels": labels + 1}, "chance": {"x": x, "labels": drawn(400, 10)},
        "order": {"x": x, "labels": np.array(SHUFFLED)[labels]}, "calib": {"x": x, "xx": x},
    }[how]
    np.savez(folder / "bad.npz", **arrays)
    return "--validate d.npz --calib bad.npz" if how == "calib" else "--validate bad.npz"


SPOILT = [
    ("label", "bad.npz: nobody reads the array 'label' (labels are the array 'labels')"), ("more", "nobody reads the arrays 'age', 'ids'"),
    ("shifted", "off by one"), ("chance", "no more than by chance"), ("order", "another order"), ("calib", "nobody reads the array 'xx'"),
]  # fmt: skip


@pytest.fixture
def small(folder: Path) -> Path:
    """A model of ten classes that can be pruned."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 10] x) => (float[N, 10] y)
        { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"""
    model = onnx.parser.parse_model(text)
    wide = np.concatenate([np.eye(10), 0.01 * np.random.default_rng(0).standard_normal((10, 30))], 1)
    for name, value in (("a", wide), ("b", wide.T)):
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    onnx.save(model, folder / "m.onnx")
    return folder


@pytest.mark.parametrize("gate", ["--max-drop 0.5", "--min-agreement 0.1", "--min-cosine 0.1 --gate interval"])
@pytest.mark.parametrize(("how", "says"), SPOILT)
def test_spoilt_data_is_refused_with_any_gate(how: str, says: str, gate: str, small: Path, capsys: Captured) -> None:
    line = fails(small, capsys, 2, "m.onnx", "out.onnx", "--ratio", "0.3", *spoilt(small, how).split(), *gate.split())
    assert says in line
    assert "could hold by mistake: mend that, or ask for no gate" in line
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(("how", "says"), SPOILT)
def test_spoilt_data_is_said_loudly(how: str, says: str, small: Path, capsys: Captured) -> None:
    given = spoilt(small, how).split()
    assert main(["m.onnx", "out.onnx", "--ratio", "0.3", *given, "--report", "r.json"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: "))
    assert says in line
    report = json.loads(Path("r.json").read_text())
    assert [w for w in (*report["warnings"], *report["validation"]["warnings"]) if says in w]
    if "--calib" not in given:
        assert main(["compare", "m.onnx", "out.onnx", "--data", "bad.npz"]) == 0
        assert says in capsys.readouterr().out
        assert main(["sweep", "m.onnx", "s", "--ratios", "0.3", "--fast", "--jobs", "1", *given, "--report", "s.json"]) == 0
        assert f"warning: {json.loads(Path('s.json').read_text())['warnings'][0]}" in capsys.readouterr().out


def test_folders_in_another_order_than_the_models_classes(tmp_path: Path, capsys: Captured) -> None:
    """A model of grey values in three steps, whose classes are black, grey, white: the third, second and first name."""
    image = pytest.importorskip("PIL.Image")
    names = {"zz_dark": 20, "mm_grey": 128, "aa_light": 230}
    for name, value in names.items():
        for i in range(15):
            (tmp_path / "right" / f"{value:03}").mkdir(parents=True, exist_ok=True)
            (tmp_path / "wrong" / name).mkdir(parents=True, exist_ok=True)
            picture = image.new("L", (4, 4), value + i)
            picture.save(tmp_path / "right" / f"{value:03}" / f"{i}.png")
            picture.save(tmp_path / "wrong" / name / f"{i}.png")
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 1, 4, 4] x) => (float[N, 3] y)
        { m = ReduceMean<axes = [1, 2, 3], keepdims = 0>(x) u = Reshape(m, s) d = Sub(u, c) q = Mul(d, d) y = Neg(q) }"""
    proto = onnx.parser.parse_model(text)
    for name, array in (("s", np.array([-1, 1])), ("c", np.array([[0.1, 0.5, 0.95]], np.float32))):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    options = Options(scale=1 / 255)
    assert compared(proto, tmp_path / "right", options, gates=Gates(max_drop=0.01)).warnings == ()
    (warning,) = compared(proto, tmp_path / "wrong", options).warnings
    assert "the folders of the classes, in order of their names, are numbered in another order" in warning
    assert "right on 33.3% of the samples, and on 100.0% where 'aa_light' is class 2, 'zz_dark' is class 0" in warning
    with pytest.raises(UsageError, match="another order"):
        compared(proto, tmp_path / "wrong", options, gates=Gates(max_drop=0.01))


# -- the search, the sweep, what the figures look like ----------------------------------------------------------------


def test_the_search_holds_the_interval(small: Path) -> None:
    """The largest cut of which the figure holds is larger than that of which the interval does."""
    ratios = {}
    for gate in ("point", "interval"):
        command = ["m.onnx", "out.onnx", "-q", "--fast", "--validate", "d.npz", "--max-drop", "0.2", "--gate", gate]
        assert main([*command, "--report", "r.json"]) == 0
        report = json.loads(Path("r.json").read_text())
        ratios[gate] = report["options"]["ratio"]
        found = report["validation"]
        assert (found["drop"] if gate == "point" else found["interval"][1]) <= 0.2
        assert found["gates"] == {"max_drop": 0.2, "min_agreement": None, "min_cosine": None, "gate": gate}
    assert ratios["interval"] < ratios["point"]


def test_python_gates(small: Path) -> None:
    held = onnxprune.prune("m.onnx", fast=True, ratio=0.2, validate="d.npz", gates=Gates(0.2, gate="interval"))
    assert held.report.validation is not None
    assert held.report.validation["gates"]["gate"] == "interval"
    with pytest.raises(onnxprune.CheckFailed, match=r"more than max_drop=0\.2"):
        onnxprune.prune("m.onnx", fast=True, ratio=0.95, validate="d.npz", gates=Gates(0.2))
    with pytest.raises(UsageError, match=r"did you mean 0\.01"):
        onnxprune.prune("m.onnx", fast=True, validate="d.npz", gates=Gates(1.0))
    with pytest.raises(TypeError, match="given as Gates"):
        onnxprune.prune("m.onnx", fast=True, validate="d.npz", gates=0.01)  # type: ignore[arg-type]


def test_a_sweep_of_a_loss(small: Path, capsys: Captured) -> None:
    """Less is better: what is on the front, and how its change is told."""
    command = ["sweep", "m.onnx", "s", "--fast", "--ratios", "0.2", "0.5", "0.8", "--jobs", "1", "--validate", "d.npz"]
    assert main([*command, "--metric", "s.py:loss", "--report", "s.json"]) == 0
    data = json.loads(Path("s.json").read_text())
    assert (data["metric"], data["unit"], data["higher_is_better"]) == ("cross entropy", "nats", False)
    points = {point["name"]: point for point in data["points"]}
    losses = [points[name]["metric"] for name in data["fronts"]["macs"]]  # the cheapest first
    assert len(losses) >= 2
    assert losses == sorted(losses, reverse=True)
    text = capsys.readouterr().out
    assert "cross entropy (less is better)" in text
    assert text.count(" nats") >= 7
    assert "points" not in text


@pytest.mark.parametrize(
    ("gates", "says"),
    [("--max-drop 100 --gate interval", "--max-drop 100 held at the worse ends of the intervals"), ("--max-drop 0", "failed: cross entropy rises by")],
)  # fmt: skip
def test_the_page_says_what_the_terminal_says(gates: str, says: str, small: Path) -> None:
    command = ["m.onnx", "out.onnx", "-q", "--fast", "--ratio", "0.9", "--validate", "d.npz", "--metric", "s.py:loss"]
    assert main([*command, *gates.split(), "--report", "r.json"]) == main([*command, *gates.split(), "--report", "r.html"])
    found = json.loads(Path("r.json").read_text())["validation"]
    with opened(Path("r.html").resolve()) as page:
        text = page.inner_text("main")
    assert f"{found['after']:.4g} nats" in text
    assert "less is better" in text
    assert says in text


def test_the_page_warns(small: Path) -> None:
    command = ["m.onnx", "out.onnx", "-q", "--ratio", "0.3", *spoilt(small, "shifted").split(), "--report", "r.html"]
    assert main(command) == 0
    with opened(Path("r.html").resolve()) as page:
        assert page.locator("dt:text-is('Warning') + dd").inner_text().startswith("bad.npz: the labels look off by one")


@pytest.mark.parametrize(("metric", "others"), [("", "cosine 1.0000, 200.0 dB"), ("cosine", "agreement 100.00%, 200.0 dB"), ("snr", "agreement 100.00%, cosine 1.0000")])
def test_no_figure_stands_there_twice(metric: str, others: str, small: Path, capsys: Captured) -> None:
    np.savez("u.npz", x=np.eye(10, dtype=np.float32))
    assert main(["compare", "m.onnx", "m.onnx", "--data", "u.npz", *(["--metric", metric] if metric else [])]) == 0
    text = capsys.readouterr().out
    fidelity = next(line for line in text.splitlines() if line.startswith("fidelity"))
    assert fidelity.split(maxsplit=1)[1].strip() == others
    assert "-0" not in text


# -- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ("", ""), ("--criterion lamp", ""), ("--criterion wanda", "inputs were run in spite of --fast, for --criterion wanda"),
        ("--scope sensitivity --reconstruct ls", "for --scope sensitivity and --reconstruct ls"), ("--reconstruct merge --scope pq", ""),
    ],
)  # fmt: skip
def test_fast_runs_inputs_only_where_it_says_so(flags: str, note: str, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    from onnxprune.planning import parting

    calls = []
    real = parting.calibration
    monkeypatch.setattr(parting, "calibration", lambda *a: calls.append(1) or real(*a))
    assert main(["m.onnx", "out.onnx", "--fast", "--ratio", "0.3", *flags.split()]) == 0
    text = capsys.readouterr().out
    assert bool(calls) == bool(note)
    assert note in text
    assert ("in spite of" in text) == bool(note)


def test_bad_inputs_are_found_where_this_call_needs_none(small: Path, tmp_path: Path) -> None:
    """One set of options serves several calls: what is wrong with it is said by the first, before any work."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    for calib, says in (("no.npz", "no.npz does not exist"), ("empty", "nothing to read"), ("torn.npz", "not plain arrays"), ("no.py:f", "no.py does not exist")):
        options = Options(fast=True, calib=calib)
        for call in (onnxprune.prune, onnxprune.plan, onnxprune.inspect):
            with pytest.raises(UsageError, match=says):
                call("m.onnx", options)
