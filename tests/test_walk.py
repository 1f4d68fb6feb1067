"""A walk through a graph: what it holds, and for how long."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from onnxprune.fit import Walk
from onnxprune.model import Model
from onnxprune.shapes import infer
from tests.graphs import graph

WIDTH = 4
NET = """a = MatMul(x, w0) n = Shape(a) m = Gather(n, i) b = Relu(a) c = MatMul(b, w1) s = Shape(c)
t = ConstantOfShape(s) y = Add(c, t)"""


def walk() -> Walk:
    """Nobody reads `m`, a size that once was asked for; `s` leads to the output."""
    weights = {"w0": (WIDTH, WIDTH), "w1": (WIDTH, WIDTH), "i": np.array(0)}
    model = Model.load(graph(f"(float[N, {WIDTH}] x) => (float[N, {WIDTH}] y)", NET, **weights))
    return Walk(model, [{"x": np.ones((2, WIDTH), np.float32)}], infer(model).dtype)


@pytest.mark.parametrize(
    ("asked", "left"), [("a", {"a"}), ("b", {"b"}), ("c", {"c"}), ("y", set())], ids=["a", "b", "c", "y"]
)
def test_a_node_that_leads_to_no_output_is_not_waited_for(asked: str, left: set[str]) -> None:
    found = walk()
    found.value(asked)
    found.release()
    assert found.values.keys() - {"x"} == left


def test_what_leads_to_no_output_is_there_for_whoever_asks() -> None:
    found = walk()
    expected = found.value("y")[0]
    found.release()
    assert found.value("m")[0] == 2
    np.testing.assert_array_equal(found.value("y")[0], expected)


OTHERS = """
import numpy as np, onnxruntime as ort
from onnxprune.model import Model
from onnxprune.run import open_session
from tests.graphs import graph
where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
if {theirs}:
    ort.create_and_register_allocator(where, None)
model = Model.load(graph("(float[N, 4] x) => (float[N, 4] y)", "y = Relu(x)"))
for way in (False, True):
    session = open_session(model, one_of_many=way)
    made = [session.made(["y"], {{"x": np.ones((2, 4), np.float32)}}, last)[0] for last in (False, True)]
    print(session.shares, *(float(m.value.numpy().sum()) for m in made))
"""


@pytest.mark.parametrize("theirs", [False, True], ids=["none", "an arena of the application's"])
def test_sessions_share_an_arena_in_any_process(theirs: bool) -> None:
    """In a process of its own, as an arena stays registered."""
    code = OTHERS.format(theirs=theirs)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "False 8.0 8.0"
    assert second.endswith(" 8.0 8.0")
    assert theirs or second.startswith("True")


HELD = """
import sys
import numpy as np
from onnxprune import heap
from onnxprune.fit import Walk
from onnxprune.model import Model
from onnxprune.run import Tensor
from onnxprune.shapes import infer
from tests.graphs import graph
if not {apart}:
    sys.modules["onnxprune.run.watched"].apart = Tensor
heap.one_for_all()
names, text, weights = ["x"], "", {{}}
for k in range(3):  # as in a transformer, with its activation in single operators
    text += (f"a{{k}} = MatMul({{names[-1]}}, w{{k}}) b{{k}} = Erf(a{{k}}) c{{k}} = Mul(a{{k}}, b{{k}}) d{{k}} = Mul(c{{k}}, c{{k}}) "
             f"m{{k}} = MatMul(d{{k}}, v{{k}}) y{{k}} = Add(m{{k}}, {{names[-1]}}) ")
    names.append(f"y{{k}}")
    weights |= {{f"w{{k}}": (256, 1024), f"v{{k}}": (1024, 256)}}
net = graph("(float[N, 256] x) => (float[N, 8] z)", text + "z = MatMul(y2, u)", **weights, u=(256, 8))
model = Model.load(net).normalised()
walk = Walk(model, [{{"x": np.ones((4096, 256), np.float32)}} for _ in range(8)], infer(model).dtype)
def size(): return sum(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) >> 10
before = size()
for k in range(3):
    for name in (f"d{{k}}", f"y{{k}}"):
        walk.value(name)
        walk.release()
print(size() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("apart", [True, False])
def test_what_is_held_keeps_nothing_that_was_larger(apart: bool) -> None:
    """Eight tensors of 4 MB are held at last, each made where some of 16 MB had been."""
    found = subprocess.run(
        [sys.executable, "-c", HELD.format(apart=apart)], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (int(found.stdout) < 150) == apart, found.stdout
