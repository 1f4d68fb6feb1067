"""Tensors stay on the device of a session until Python reads them: what crosses is counted, on a processor, too."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto

from onnxprune import prune
from onnxprune.fit import Walk
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.run import Chain, Session, Tensor, crossings, on_host, open_session, opened, runtime
from onnxprune.run.tensors import apart, largest_first, placed
from onnxprune.shapes import infer
from tests.graphs import graph

WIDTH, LAYERS, BATCH = 8, 6, 3
ITEM = BATCH * WIDTH * 4
"""Bytes of one tensor on its way."""
WEIGHTS = {f"w{k}": (WIDTH, WIDTH) for k in range(LAYERS)}


def net() -> ModelProto:
    """A product and an activation for each layer; `x` is read again by the last node."""
    names = ["x", *(f"r{k}" for k in range(LAYERS))]
    body = " ".join(f"m{k} = MatMul({names[k]}, w{k}) r{k} = Relu(m{k})" for k in range(LAYERS))
    return graph(
        f"(float[N, {WIDTH}] x) => (float[N, {WIDTH}] y, float[N, {WIDTH}] r1)", f"{body} y = Add({names[-1]}, x)", **WEIGHTS
    )


def feeds(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((BATCH, WIDTH)).astype(np.float32)} for _ in range(count)]


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_between_the_pieces_of_a_proof_nothing_crosses(count: int) -> None:
    """An input crosses once for every feed, however many pieces read it, a weight once for all of them, and what comes
    back is what was asked for."""
    model = Model.load(net()).normalised()
    pieces = opened(model, Options(), infer(model).dtype)
    assert isinstance(pieces, Chain)
    assert pieces.blocks > LAYERS / 2
    with crossings() as found:
        got = pieces.run_all(feeds(count))
    assert (found.read, found.read_bytes) == (2 * count, 2 * count * ITEM)
    assert (found.given, found.given_bytes) == (count + LAYERS, count * ITEM + LAYERS * 4 * WIDTH**2)
    whole = open_session(model)
    for feed, values in zip(feeds(count), got, strict=True):
        for value, expected in zip(values, whole.run(None, feed), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.usefixtures("in_pieces")
def test_only_what_is_asked_for_comes_back() -> None:
    model = Model.load(net()).normalised()
    pieces = opened(model, Options(), infer(model).dtype)
    with crossings() as found:
        pieces.run_all(feeds(3), [["r1"], [], ["r1"]])
    assert found.read == 2


def test_weights_that_are_fed_cross_once_for_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "LARGE", 1)
    monkeypatch.setattr(runtime, "SMALL", 1)
    with crossings() as found:
        session = Session(Model.load(net()), ["cpu"])
        assert session.holds(WEIGHTS)
        for feed in feeds(4):
            session.run(feed, ["y"])
    assert (found.read, found.given) == (4, 4 + LAYERS)


@pytest.mark.parametrize("count", [1, 4])
def test_a_walk_reads_what_is_looked_at_and_no_more(count: int) -> None:
    """What one piece makes and the next one takes stays where it is, and nothing is read twice."""
    model = Model.load(net()).normalised()
    walk = Walk(model, feeds(count), infer(model).dtype)
    with crossings() as found:
        for name in ("m0", "m2", "m4", "m2"):
            walk.value(name)
    assert (found.read, found.read_bytes) == (3 * count, 3 * count * ITEM)
    assert found.given == count
    assert isinstance(walk.unread("r1")[0], Tensor)
    np.testing.assert_array_equal(walk.value("m2")[0], open_session(model_with(model, "m2")).run(["m2"], feeds(1)[0])[0])


def model_with(model: Model, name: str) -> Model:
    out = model.copy()
    out.skeleton.graph.output.add().CopyFrom(out.skeleton.graph.output[0])
    out.skeleton.graph.output[-1].name = name
    return out


@pytest.mark.parametrize(
    ("signature", "body", "value"),
    [
        ("(string[N] x) => (string[N] y)", "y = Identity(x)", np.array(["a", "b"], object)),
        ("(float[N, 2] x) => (seq(float[N, 1]) y)", "y = SplitToSequence<axis = 1>(x)", np.eye(2, dtype=np.float32)),
        ("(bool[N] x) => (bool[N] y)", "y = Not(x)", np.array([True, False])),
        ("(float16[N] x) => (float16[N] y)", "y = Neg(x)", np.float16([1, 2])),
        ("(float x) => (float y)", "y = Neg(x)", np.array(3, np.float32)),
        ("(float[N, 3] x) => (float[N, 3] y)", "y = Neg(x)", np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]),
        ("(float[N, 3] x) => (float[N, 3] y)", "y = Neg(x)", np.zeros((0, 3), np.float32)),
    ],
    ids=["strings", "a sequence", "booleans", "float16", "a scalar", "strides", "nothing"],
)  # fmt: skip
def test_values_of_every_kind_are_what_a_plain_run_gives(signature: str, body: str, value: Any) -> None:
    """Strings and sequences come as Python has them."""
    session = open_session(Model.load(graph(signature, body)))
    (made,), (expected,) = session.made(None, {"x": value}), session.run(None, {"x": value})
    assert isinstance(made, Tensor) == ("string" not in signature and "seq" not in signature)
    np.testing.assert_array_equal(on_host(made), expected)
    (again,) = session.made(["y"], {"x": session.placed(value)})
    np.testing.assert_array_equal(on_host(again), expected)


def test_what_crosses_is_counted_by_all_that_count() -> None:
    session = open_session(Model.load(net()))
    with crossings() as outer:
        session.run(None, feeds(1)[0])
        with crossings() as inner:
            session.run(["y"], feeds(1)[0])
    assert (outer.read, inner.read, outer.given, inner.given) == (3, 1, 2, 1)


def test_sessions_of_our_own_multiply_exactly_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TF32, and with kernels that are chosen by rule; what is timed runs as it does for users."""
    asked: list[dict[str, dict[str, str]]] = []

    class Made:
        """In the place of a session."""

        def __init__(self, source: Any, options: Any, providers: list[tuple[str, dict[str, str]]]) -> None:
            asked.append(dict(providers))
            self.options = options

        def get_providers(self) -> list[str]:
            return [*asked[-1]]

        def get_outputs(self) -> list[Any]:
            return []

    monkeypatch.setattr(runtime, "watched", lambda: Made)
    monkeypatch.setattr(runtime, "usable", lambda names: [runtime.PROVIDERS[n] for n in names])
    model = Model.load(net())
    lean, own = Session(model, ["cuda"]), open_session(model, ["cuda"])
    runtime.deployed(model, ["cuda"])
    exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert [a["CUDAExecutionProvider"] for a in asked] == [exact, exact, {}]
    assert all(a["CPUExecutionProvider"] == {} for a in asked)
    assert lean.used == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert own.options.use_deterministic_compute
    assert not own.options.enable_mem_reuse


def test_numbers_that_numpy_has_not_cross_both_ways() -> None:
    body = "f = Cast<to=1>(x) a = MatMul(f, A) h = Cast<to=16>(a) g = Cast<to=1>(h) b = MatMul(g, B) y = Cast<to=16>(b)"
    proto = graph("(bfloat16[N, 4] x) => (bfloat16[N, 3] y)", body, A=(4, 8), B=(8, 3))
    assert prune(proto, ratio=0.5, fast=True).report.proof.error <= 5e-2
    x = np.eye(4, dtype=ml_dtypes.bfloat16)
    same = graph("(bfloat16[N, 4] x) => (bfloat16[N, 4] y)", "f = Cast<to=1>(x) g = Add(f, f) y = Cast<to=16>(g)")
    (y,) = opened(Model.load(same), Options(), infer(Model.load(same), {}).dtype).run({"x": x})
    assert y.dtype == x.dtype
    assert np.array_equal(y, x + x)


def test_numbers_stay_when_the_tensor_goes() -> None:
    """ONNX Runtime gives the memory of an array that it was given without keeping it alive."""
    for made in (placed, lambda array: apart(placed(array).value)):
        kept = [made(np.full((256, 256), k, np.float32)).array for k in range(8)]
        gc.collect()
        others = [np.full((256, 256), -1, np.float32) for _ in range(16)]
        assert [float(array.min()) for array in kept] == [float(array.max()) for array in kept] == list(range(8))
        del others


@pytest.mark.parametrize(
    ("sizes", "order"),
    [
        ([[(2, 3)], [(4, 3)], [(1, 3)]], [1, 0, 2]),
        ([[(2, 3)], [(2, 3)]], [0, 1]),
        ([[(2, 2), (9,)], [(4, 3)]], [0, 1]),
        ([[()], [(2,)]], [1, 0]),
        ([], []),
    ],
    ids=["by size", "as they came", "all together", "a scalar", "none"],
)
def test_the_largest_runs_first(sizes: list[list[tuple[int, ...]]], order: list[int]) -> None:
    assert largest_first([map(np.zeros, own) for own in sizes]) == order


FAULTS = """
import resource
import numpy as np
from onnxprune.model import Model
from onnxprune.run import Session
from tests.graphs import graph
body = "a0 = Mul(x, w) " + " ".join(f"a{k + 1} = Mul(a{k}, w)" for k in range(8)) + " y = ReduceSum<keepdims = 0>(a8)"
session = Session(Model.load(graph("(float[N, 1024] x) => (float y)", body, w=(1024,))), ["cpu"])
found = []
for rows in (4096, 2048, 4096):
    x = np.ones((rows, 1024), np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    session.run({"x": x})
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_minflt counts something else")
def test_runs_of_a_proof_take_the_pages_that_are_there() -> None:
    """Tensors of 16 MB, whose pages the system would give anew to every node of every run."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    first, *others = map(int, done.stdout.split())
    assert max(others) < first / 20
