"""Mistakes with metrics, gates and the data that they are measured on; see test_mistakes.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from graphs import graph
from onnx import ModelProto

from onnxprune.model import Model
from onnxprune.run import open_session

SCRIPT = """
def silent(outputs, labels): return (outputs[0].argmax(1) != labels) * 1.0
def share(outputs, labels): return 93.2
share.unit, share.higher_is_better = "share", True
def word(outputs, labels): return 1.0
word.higher_is_better = "yes"
def unit(outputs, labels): return 1.0
unit.unit = 3
def whole(outputs, labels): return float((outputs[0].argmax(1) == labels).mean())
whole.higher_is_better = True
def fails(outputs, labels): return 1 / 0
def shape(outputs, labels): return outputs[0]
def nan(outputs, labels): return float("nan")
number = 3
"""
FILES: dict[str, Callable[[], str | bytes]] = {"s.py": lambda: SCRIPT, "torn.npz": lambda: b"PK\x03\x04", "text.npz": lambda: "no arrays"}


def make(folder: Path, tiny: ModelProto) -> None:
    """The model m.onnx of five classes, one.onnx that gives one number a sample, and data that is wrong in one way each."""
    onnx.save(tiny, folder / "m.onnx")
    onnx.save(graph("(float[N,6] x) => (float[N,1] y)", "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)", a=(6, 8), b=(8, 1)), folder / "one.onnx")
    x = np.random.default_rng(0).standard_normal((200, 3, 8, 8)).astype(np.float32)
    session = open_session(Model.load(tiny))
    labels = np.concatenate([session.run(None, {"image": x[k : k + 1]})[0].reshape(1, -1).argmax(1) for k in range(len(x))])
    chance = np.random.default_rng(1).permutation(labels)
    given = {
        "d": {"labels": labels}, "label": {"label": labels}, "more": {"labels": labels, "ids": labels}, "unlabelled": {},
        "shifted": {"labels": labels + 1}, "chance": {"labels": chance}, "order": {"labels": 4 - labels},
        "outside": {"labels": np.where(np.arange(200) < 9, 77, labels)}, "numbers": {"labels": labels + 0.5},
        "names": {"labels": np.array(["cat"] * 200)}, "short": {"labels": labels[:9]}, "hot": {"labels": np.eye(5)[labels]},
        "holes": {"labels": np.where(np.arange(200) == 9, np.nan, labels)},
    }  # fmt: skip
    for name, arrays in given.items():
        np.savez(folder / f"{name}.npz", image=x, **arrays)
    np.savez(folder / "huge.npz", image=np.where(x > 0, 3e38, -3e38))
    np.savez(folder / "one.npz", x=x.reshape(200, -1)[:, :6], labels=labels % 2)
    (folder / "empty").mkdir()


CUT = "m.onnx out.onnx --fast --validate"
DROP = "--max-drop 0.9"
VALUES = [
    ("a drop of all", f"{CUT} d.npz --max-drop 1", 2, "top-1 is a share, from 0 to 1; did you mean 0.01?"),
    ("per cent", f"{CUT} d.npz --max-drop 5", 2, "did you mean 0.05?"),
    ("a negative drop", f"{CUT} d.npz --max-drop -0.1", 2, "is not from 0 on"),
    ("no number", f"{CUT} d.npz --max-drop little", 2, "is not a number"),
    ("with a sign of per cent", f"{CUT} d.npz --max-drop 1%", 2, "is not a number"),
    ("no drop but a gate", f"{CUT} d.npz --max-drop", 2, "expected one argument"),
    ("agreement in per cent", f"{CUT} d.npz --min-agreement 95", 2, "did you mean 0.95?"),
    ("agreement of nothing", f"{CUT} d.npz --min-agreement 0", 2, "is not above 0 and at most 1"),
    ("a cosine above 1", f"{CUT} d.npz --min-cosine 1.1", 2, "is not above 0 and at most 1"),
    ("a word of no meaning", f"{CUT} d.npz {DROP} --gate both", 2, "point"),
    ("an interval of nothing", f"{CUT} d.npz --gate interval", 2, "needs a gate; give --max-drop"),
    ("a gate without data", "m.onnx out.onnx --max-drop 0.1", 2, "give it with --validate"),
    ("a gate in a sweep", "sweep m.onnx s --max-drop 0.1", 2, "--max-drop"),
    ("agreement too low", f"{CUT} d.npz -q --ratio 0.9 --min-agreement 1", 1, "less than --min-agreement 1"),
    ("an interval too wide", f"{CUT} d.npz -q --ratio 0.3 --max-drop 0 --gate interval", 1, "more than --max-drop 0"),
]  # fmt: skip
METRICS = [
    ("none of that name", f"{CUT} d.npz --metric accuracy", 2, "takes one of top-1"),
    ("labels that are not there", f"{CUT} unlabelled.npz --metric top-1", 2, "needs labels"),
    ("no direction", f"{CUT} d.npz --metric s.py:silent {DROP}", 2, "silent.higher_is_better = True or False"),
    ("a share above 1", f"{CUT} d.npz --metric s.py:share", 2, "lies between 0 and 1, but it gave 93.2"),
    ("a direction in words", f"{CUT} d.npz --metric s.py:word", 2, "higher_is_better is 'yes', not True or False"),
    ("a unit that is no text", f"{CUT} d.npz --metric s.py:unit", 2, "unit is 3, not a text"),
    ("no interval", f"{CUT} d.npz --metric s.py:whole {DROP} --gate interval", 2, "or use --gate point"),
    ("an error", f"{CUT} d.npz --metric s.py:fails", 2, "ZeroDivisionError"),
    ("an array", f"{CUT} d.npz --metric s.py:shape", 2, "must give a number, or one for each sample, not an array of shape"),
    ("not a number", f"{CUT} d.npz --metric s.py:nan", 2, "not NaN or infinity"),
    ("no function", f"{CUT} d.npz --metric s.py:number", 2, "has no function 'number'"),
    ("one number a sample", "one.onnx out.onnx --fast --validate one.npz", 2, "scores for two classes or more"),
]  # fmt: skip
DATA = [
    ("label for labels", f"{CUT} label.npz {DROP}", 2, "nobody reads the array 'label' (labels are the array 'labels')"),
    ("an array too much", f"{CUT} more.npz {DROP}", 2, "nobody reads the array 'ids'; --max-drop could hold by mistake: mend that"),
    ("the same to calibrate on", f"m.onnx out.onnx --calib more.npz --validate d.npz {DROP}", 2, "more.npz: nobody reads the array 'ids'"),
    ("off by one", f"{CUT} shifted.npz {DROP}", 2, "off by one"),
    ("off by one, compared", f"compare m.onnx m.onnx --data shifted.npz {DROP}", 2, "off by one"),
    ("of other inputs", f"{CUT} chance.npz --min-cosine 0.1", 2, "by chance"),
    ("in another order", f"{CUT} order.npz --min-agreement 0.1", 2, "another order"),
    ("no classes of the model", f"{CUT} outside.npz {DROP}", 2, "but the model has the classes 0 to 4"),
    ("no whole numbers", f"{CUT} numbers.npz --metric top-1", 2, "takes the numbers of classes as labels"),
    ("names of classes", f"{CUT} names.npz", 2, "takes the numbers of classes as labels, not 'cat'"),
    ("one that is no number", f"{CUT} holes.npz", 2, "takes the numbers of classes as labels, not nan"),
    ("one-hot", f"{CUT} hot.npz", 2, "of one-hot labels the argmax"),
    ("answers that are no numbers", f"{CUT} huge.npz --min-agreement 0.9", 2, "answer to 200 of 200 samples is not a number (NaN); --min-agreement could hold"),
    ("too few labels", f"{CUT} short.npz", 2, "one per sample"),
    ("one sample", f"{CUT} d.npz --validate-samples 1 {DROP} --gate interval", 2, "one sample has none"),
    ("a torn file", f"{CUT} torn.npz", 2, "not plain arrays"), ("text", "m.onnx out.onnx --calib text.npz", 2, "not plain arrays"),
    ("an empty folder", "m.onnx out.onnx --calib empty", 2, "nothing to read in this folder"),
    ("no such script", "m.onnx out.onnx --calib no.py:feeds", 2, "no.py does not exist"),
    ("inputs that --fast does not read", "m.onnx out.onnx --fast --calib no.npz", 2, "--calib is not used with --fast"),
]  # fmt: skip
ROWS = {"gates": VALUES, "metrics": METRICS, "data of gates": DATA}
