"""Files that are damaged, or meant to do harm: one line, at once, without the memory that they ask for."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import array, graph, pruned, replace, shapes
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import api
from onnxprune.errors import CheckFailed, NothingToPrune, OnnxPruneError, RuleFailed, RuntimeFailure, UsageError
from onnxprune.model import Model, Weight
from onnxprune.pipeline import stages
from onnxprune.prove import proofs as verify
from onnxprune.rewrite import Rewritten
from onnxprune.shapes import infer
from onnxprune.shapes.footprint import peak
from onnxprune.shapes.values import propagate
from onnxprune.trace import Labels, Trace
from onnxprune.trace.rules import RULES

ROOT = Path(__file__).parents[1]

MLP = "a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2)"
SIGNATURE = "(float[n, 16] x) => (float[n, 8] y)"


def mlp(extra: str = "", **weights: Any) -> ModelProto:
    return graph(SIGNATURE, extra + MLP, w1=(16, 32), w2=(32, 8), **weights)


def refused(model: Any, error: type[OnnxPruneError], match: str, seconds: float = 10) -> None:
    start = time.process_time()
    with pytest.raises(error, match=match) as caught:
        api.prune(model, fast=True)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < seconds


@pytest.mark.parametrize("body", [
    "s = Constant<value_ints = [1099511627776]>() z = ConstantOfShape(s)",
    "s = Constant<value_ints = [1099511627776, 1]>() z = Expand(one, s)",
    "s = Constant<value_ints = [1099511627776, 1099511627776]>() z = Tile(one, s)",
    "z = Range(zero, many, by)",
    "s = Constant<value_ints = [0, 0, 1099511627776, 0]>() z = Pad(one, s)",
    "z = OneHot(at, many, values)",
    "s = Constant<value_floats = [4e9, 1.0]>() z = Resize(one, , s)",
    " ".join(f"z{k + 1} = Concat<axis = 0>({'one' if not k else f'z{k}'}, {'one' if not k else f'z{k}'})" for k in range(60)),
])  # fmt: skip
def test_a_tensor_that_grows_is_refused_before_it_does(body: str) -> None:
    given = {"one": np.ones((1, 1), np.float32), "zero": np.int64(0), "many": np.int64(1 << 40), "by": np.int64(1),
             "at": np.array([1, 2]), "values": np.array([0, 1], np.float32)}  # fmt: skip
    refused(mlp(body + " ", **{n: v for n, v in given.items() if n in body}), RuntimeFailure, "of memory.*more with memory")


def test_memory_is_that_of_the_worst_moment() -> None:
    model = Model.load(mlp()).normalised()
    state = infer(model, {"x": (4, 16)}).passes[0]
    assert peak(model, state) == (4 * (32 + 32 + 16) * 4, "a")


def test_many_large_constants_stay_nodes() -> None:
    shape = "s = Constant<value_ints = [8192, 4096]>() "
    many = "".join(f"c{k} = ConstantOfShape(s) " for k in range(40))
    refused(mlp(f"{shape}{many}z = Sum({', '.join(f'c{k}' for k in range(40))}) "), RuntimeFailure, "of memory")


SUM = """
import sys
from onnxprune import api
def most(): return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
import onnxruntime
before = most()
api.prune(sys.argv[1], fast=True, memory=1 << 28)
print(most() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_large_constants_and_outputs_take_the_memory_that_is_allowed(tmp_path: Path) -> None:
    """Tensors of 32 MB: seven that depend on no input, an output, and what the proof keeps of both models."""
    many = " ".join(f"c{k} = Expand(one, s)" for k in range(6))
    body = f"s = Constant<value_ints = [4096, 2048]>() {many} t = Sum({', '.join(f'c{k}' for k in range(6))}) " + MLP
    model = graph(f"{SIGNATURE[:-1]}, float[4096, 2048] z)", f"{body} m = ReduceMax<keepdims = 0>(y) z = Add(t, m)",
                  w1=(16, 32), w2=(32, 8), one=np.ones((1, 1), np.float32))  # fmt: skip
    onnx.save(model, tmp_path / "in.onnx")
    done = subprocess.run([sys.executable, "-c", SUM, str(tmp_path / "in.onnx")], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert int(done.stdout) < 1.5 * (1 << 28), done.stderr


def test_what_is_not_finite_is_no_match_for_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    right = stages.rewrite

    def wrong(*args: Any) -> Rewritten:
        after = right(*args)
        after.model.weights["w2"] = Weight.of(np.full_like(after.model.weights["w2"].array(), np.nan))
        return after

    model = mlp()
    replace(model, "w2", np.zeros((32, 8), np.float32))
    account = verify.compared
    monkeypatch.setattr(stages, "rewrite", wrong)
    refused(model, CheckFailed, "its parameter 'w2' from what is kept of 'w2'")
    monkeypatch.setattr(verify, "compared", lambda *given: dataclasses.replace(account(*given), differing=()))
    refused(model, CheckFailed, "differs from the masked original by inf")


def test_a_target_of_a_million_axes() -> None:
    body = "s = Constant<value_ints = [16777216]>() t = ConstantOfShape(s) z = Reshape(one, t) "
    start = time.process_time()
    said = ""
    try:
        api.prune(mlp(body, one=np.ones((1, 1), np.float32)), fast=True)
    except OnnxPruneError as error:
        said = error.message
    assert "did not end" not in said
    assert time.process_time() - start < 10


def edited(change: Any) -> ModelProto:
    model = mlp()
    change(model)
    return model


def no_data(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [1 << 20, 1 << 11]


def sparse(dims: list[int], at: Any) -> Any:
    def change(model: ModelProto) -> None:
        del model.graph.initializer[0]
        made = model.graph.sparse_initializer.add()
        made.values.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "w1"))
        made.indices.CopyFrom(numpy_helper.from_array(np.array(at, np.int64), "at"))
        made.dims.extend(dims)

    return change


def calls(bodies: dict[str, list[str]]) -> Any:
    """Local functions, by what they call in turn; the model calls the last one."""

    def change(model: ModelProto) -> None:
        model.opset_import.append(helper.make_operatorsetid("local", 1))
        for name, called in bodies.items():
            wires = ["x", *(f"t{k}" for k in range(len(called) - 1)), "y"]
            nodes = [helper.make_node(c, [a], [b], domain="local" if c in bodies else "")
                     for c, a, b in zip(called, wires, wires[1:], strict=False)]  # fmt: skip
            model.functions.append(helper.make_function("local", name, ["x"], ["y"], nodes, model.opset_import))
        model.graph.node[0].input[0] = "called"
        model.graph.node.insert(0, helper.make_node(list(bodies)[-1], ["x"], ["called"], domain="local"))

    return change


DOUBLING = {"f0": ["Relu"]} | {f"f{k + 1}": [f"f{k}"] * 2 for k in range(30)}
DEEP = {"f0": ["Relu"]} | {f"f{k + 1}": [f"f{k}"] for k in range(150)}


@pytest.mark.parametrize(("change", "match"), [
    (no_data, "does not hold what its shape"),
    (sparse([16, 32], [0, 1, 1 << 40]), "does not fit its shape"),
    (sparse([16, 32], [[0, 1]]), "does not fit its shape"),
    (sparse([1 << 20, 1 << 20], [0, 1, 2]), "does not fit its shape"),
    (sparse([-1], [0, 1, 2]), "does not fit its shape"),
    (calls(DOUBLING), "come to over"),
    (calls(DEEP), "cannot be written out"),
    (calls({"f0": ["f0"]}), "cannot be written out"),
    (lambda m: setattr(m, "ir_version", 1 << 40), "version"),
    (lambda m: setattr(m.opset_import[0], "version", -1), "version"),
])  # fmt: skip
def test_what_does_not_hold_together_is_refused(change: Any, match: str) -> None:
    refused(edited(change), UsageError, match)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    data = mlp().SerializeToString().replace(b"w1", b"\xf7\xff")
    (tmp_path / "in.onnx").write_bytes(data)
    refused(tmp_path / "in.onnx", UsageError, "UTF-8")


def test_graphs_nested_too_deep_for_protobuf(tmp_path: Path) -> None:
    def inside(number: int, payload: bytes) -> bytes:
        size = len(payload)
        return bytes([number << 3 | 2, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + payload

    body = b""
    for _ in range(60):
        body = inside(1, inside(5, inside(6, body)))
    (tmp_path / "in.onnx").write_bytes(b"\x08\x08" + inside(7, body))
    refused(tmp_path / "in.onnx", UsageError, "deeper than protobuf")


@pytest.mark.parametrize("location", ["loop.bin", "x" * 5000, "w\0.bin", "pipe.bin", "zero.bin", "inner", "."])
def test_external_data_that_is_no_file(tmp_path: Path, location: str) -> None:
    model = mlp()
    (tmp_path / "loop.bin").symlink_to(tmp_path / "loop.bin")
    (tmp_path / "zero.bin").symlink_to("/dev/zero")
    (tmp_path / "inner").mkdir()
    os.mkfifo(tmp_path / "pipe.bin")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    onnx.save(model, tmp_path / "in.onnx")
    refused(tmp_path / "in.onnx", UsageError, "w1")


def test_a_model_that_nobody_can_run_is_no_internal_error() -> None:
    body = "a = Conv<kernel_shape = [3]>(x, v) y = Conv<kernel_shape = [3]>(a, v)"
    refused(graph("(float[n, 4, 9] x) => (float[n, 4, 5] y)", body, v=(12,)), RuntimeFailure, "ONNX Runtime cannot")


def test_einsum_of_nothing_does_not_reach_the_runtime() -> None:
    body = 'a = Einsum<equation = "ibnd,jbnd->bnij">(x, e) y = MatMul(a, w)'
    model = graph("(float[2, 3, 4, 5] x) => (float[3, 4, 2, 8] y)", body, e=np.ones((0, 3, 4, 5), np.float32), w=(0, 8))
    refused(model, RuntimeFailure, "Einsum.*without elements")


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e38])
def test_odd_weights_are_no_warnings(value: float) -> None:
    model = mlp()
    weight = array(model, "w1")
    weight[0, :3] = value
    replace(model, "w1", weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with suppress(OnnxPruneError):
            assert api.prune(model, fast=True, ratio=0.5).report.proof.error <= 1e-4


def test_a_bias_that_is_an_output_too() -> None:
    body = "a = Gemm(x, w1, bias) b = Relu(a) y = MatMul(b, w2)"
    pruned(graph(f"{SIGNATURE[:-1]}, float[32] bias)", body, w1=(16, 32), bias=(32,), w2=(32, 8)))


def test_the_shape_of_a_weight_is_asked_for() -> None:
    body = "s = Shape(bias) f = Cast<to = 1>(s) a = MatMul(x, w1) c = Add(a, bias) b = Mul(c, f) y = MatMul(b, w2)"
    pruned(graph(SIGNATURE, body, w1=(16, 32), bias=(32,), w2=(32, 8)))


def test_a_long_chain_takes_no_longer_than_it_is() -> None:
    names = ["x", *(f"t{k}" for k in range(3000))]
    chain = "".join(f"{b} = Identity({a}) " for a, b in pairwise(names))
    model = graph(SIGNATURE, chain + MLP.replace("(x, w1)", f"({names[-1]}, w1)"), w1=(16, 32), w2=(32, 8))
    start = time.process_time()
    api.prune(model, fast=True)
    assert time.process_time() - start < 30


def test_many_parameters_of_few_units() -> None:
    """More blocks of parameters than there are units, and units that come late."""
    biases = {f"b{k}": (4,) for k in range(12)}
    adds = " ".join(f"a{k + 1} = Add(a{k}, b{k})" for k in range(12))
    body = f"a0 = MatMul(x, w0) {adds} c = MatMul(a12, w1) d = Add(c, e) y = MatMul(d, w2)"
    model = graph("(float[n, 3] x) => (float[n, 3] y)", body, w0=(3, 4), w1=(4, 4), w2=(4, 3), e=(4,), **biases)
    assert shapes(pruned(model))["w1"] == (2, 2)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("job", [
    ("files", str(ROOT / "tests/data"), "bad", "--count", "12", "--seconds", "120"), ("graphs", "bad", "--count", "15"),
    ("kills", "--count", "2", "--only", "while saving"), ("kills", "--count", "1", "--only", "size limit"),
], ids=lambda job: job[0])  # fmt: skip
def test_a_little_of_the_search(job: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/fuzz"), *job]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("body", "why"), [
    ("a = MatMul(x, w1) b = Relu(a) s = Softmax<axis = 7>(b) y = MatMul(s, w2)", "its axis 7 is none of the 2"),
    ("a = MatMul(x, w1) b = Relu(a) s = TopKLike(b) y = MatMul(s, w2)", "no rule"),
    ("r = Gather<axis = 3>(w1, at) a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2)", "its axis 3 is none of the 2"),
    ("c = Conv(w1, kernel) a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2)", "it takes 4 axes, not the 2"),
    ("a = MatMul(x, w1) b = Relu(a) y = MatMul(b)", "it has 1 inputs, not 2 to 2"),
    ("a = MatMul(x, w1) b = Relu(a) s = Concat(b, b) y = MatMul(s, w2)", "it lacks axis"),
    ("a = MatMul(x, w1) b = Relu(a) s = Softmax<axis = 1.0>(b) y = MatMul(s, w2)", "axis is of another type"),
    ("a = MatMul(x, w1) b = Relu(a) s = Clip(, b) y = MatMul(s, w2)", "it lacks input"),
])  # fmt: skip
def test_a_node_that_does_not_fit_its_operator_freezes_what_meets_it(body: str, why: str) -> None:
    """The model need not run: what is not understood is frozen with its reason, and tracing goes on."""
    model = graph(SIGNATURE, body, w1=(16, 32), w2=(32, 8), at=np.array([0]), kernel=(4, 32, 1, 1))
    shapes = infer(Model.load(model))
    trace = Trace(Model.load(model), shapes, Labels())
    trace.run(RULES)
    assert any(why in reason.text for _, reason in trace.labels.frozen)


def test_a_rule_that_fails_costs_no_more_than_what_meets_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-way through, after the body of the If was traced; a test hears of it."""
    right = RULES["If"]

    def wrong(op: Any) -> None:
        right(op)
        raise IndexError("list index out of range")

    monkeypatch.setitem(RULES, "If", wrong)
    branches = "then_branch = one () => (float[n, 24] o) { t = MatMul(b, v1) u = Tanh(t) o = MatMul(u, v2) }, else_branch = two () => (float[n, 24] p) { p = Neg(b) }"
    body = f"a = MatMul(x, w1) h = Relu(a) c = MatMul(h, w2) b = Relu(c) i = If(k) <{branches}> y = MatMul(i, w3)"
    model = graph("(float[n, 16] x, bool k) => (float[n, 8] y)", body, w1=(16, 32), w2=(32, 24), v1=(24, 20),
                  v2=(20, 24), w3=(24, 8))  # fmt: skip
    with pytest.raises(RuleFailed, match=r"If .* list index out of range"):
        api.prune(model, fast=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuleFailed)
        found = shapes(pruned(model))
    assert found == {"w1": (16, 16), "w2": (16, 24), "v1": (24, 20), "v2": (20, 24), "w3": (24, 8)}


@pytest.mark.parametrize("control", [
    "h = Loop(none, , b) <body = turn (int64 k, bool more, float[n, 32] s) => (bool on, float[n, 32] t) { on = Identity(more) t = Tanh(s) }>",
    "h = If(unsaid) <then_branch = one () => (float[n, 32] o) { o = Tanh(b) }, else_branch = two () => (float[n, 32] p) { p = Neg(b) }>",
])  # fmt: skip
def test_neither_how_often_nor_whether(control: str) -> None:
    given = {"none": np.zeros(0, np.int64), "unsaid": np.zeros(0, bool)}
    body = f"a = MatMul(x, w1) b = Relu(a) {control} y = MatMul(h, w2)"
    model = graph(SIGNATURE, body, w1=(16, 32), w2=(32, 8), **{n: v for n, v in given.items() if n in control})
    refused(model, RuntimeFailure, "without elements")


def test_a_constant_of_another_type_has_no_value() -> None:
    assert propagate(helper.make_node("Constant", [], ["k"], value=[1, 2]), [], 17) is None


def test_a_vector_without_elements() -> None:
    model = graph(SIGNATURE, "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) y = Add(c, none)", w1=(16, 32), w2=(32, 8),
                  none=np.zeros((0, 8), np.float32))  # fmt: skip
    with suppress(OnnxPruneError):
        api.prune(model, fast=True)


def test_a_convolution_over_no_channels() -> None:
    """ONNX Runtime leaves its output as the memory was."""
    body = "s = Slice(x, from, to, axes) c = Conv(s, k) f = Flatten(c) a = MatMul(f, w1) y = MatMul(a, w2)"
    bounds = {"from": np.array([9], np.int64), "to": np.array([99], np.int64), "axes": np.array([1], np.int64)}
    model = graph("(float[N, 3, 4, 4] x) => (float[N, 8] y)", body, k=np.zeros((4, 0, 1, 1), np.float32), w1=(64, 32),
                  w2=(32, 8), **bounds)  # fmt: skip
    with pytest.raises(NothingToPrune, match="has no channels to sum over"):
        api.prune(model, fast=True)
