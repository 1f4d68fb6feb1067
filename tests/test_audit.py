"""onnxprune verify: what a run wrote is proven, refitted or not; what anybody changed since is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import array, graph, replace
from numpy.typing import NDArray
from onnx import ModelProto, helper

import onnxprune
from onnxprune.api import Result
from onnxprune.cli import main
from onnxprune.errors import CheckFailed
from onnxprune.results import Verified

Captured = pytest.CaptureFixture[str]
SAMPLES = "256"


def dense() -> ModelProto:
    """Two convolutions that share one zero vector as bias, a normalisation, a grouped convolution and a head without
    a bias, which a refit may give one."""
    body = """a = Conv(x, w1, zero) b = Relu(a) c = Conv(b, w2, zero) d = BatchNormalization(c, gain, shift, mean, var)
        e = Relu(d) f = Conv<group = 2>(e, w3) g = Relu(f) h = GlobalAveragePool(g) i = Flatten(h) y = Gemm(i, w4)"""
    return graph("(float[N, 3, 8, 8] x) => (float[N, 5] y)", body, w1=(8, 3, 3, 3), zero=np.zeros(8, np.float32),
                 w2=(8, 8, 3, 3), gain=(8,), shift=(8,), mean=(8,), var=(8,), w3=(12, 4, 1, 1), w4=(12, 5))  # fmt: skip


def scalar_bias() -> ModelProto:
    """A bias of one number for all channels."""
    body = "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) y = Add(c, one)"
    return graph("(float[N, 6] x) => (float[N, 5] y)", body, w1=(6, 32), one=np.float32([0.3]), w2=(32, 5))


@pytest.fixture(scope="module")
def sliced() -> Result:
    return onnxprune.prune(dense(), ratio=0.5, fast=True)


@pytest.fixture(scope="module")
def refitted() -> Result:
    result = onnxprune.prune(dense(), ratio=0.4, calib_samples=int(SAMPLES))
    assert result.plan.reconstruct == "ls", "or the tests show nothing"
    return result


@pytest.fixture
def files(tmp_path: Path, sliced: Result, refitted: Result) -> Path:
    onnx.save(dense(), tmp_path / "dense.onnx")
    for name, result in (("sliced", sliced), ("refitted", refitted)):
        result.model.save(tmp_path / f"{name}.onnx")
        (tmp_path / f"{name}.json").write_text(json.dumps(result.plan.to_json()))
    return tmp_path


def call(folder: Path, *arguments: str) -> int:
    named = [str(folder / a) if a.endswith((".onnx", ".json")) else a for a in arguments]
    return main(["verify", str(folder / "dense.onnx"), *named])


def test_slices_are_proven(files: Path, capsys: Captured) -> None:
    assert call(files, "sliced.onnx", "sliced.json") == 0
    out = capsys.readouterr().out
    assert "couplings agree" in out
    assert "refitted" not in out
    assert "verified" in out
    assert call(files, "sliced.onnx", "sliced.json", "-q") == 0
    assert capsys.readouterr().out == ""


def test_a_refitted_file_is_proven_in_structure_and_measured(files: Path, refitted: Result, capsys: Captured) -> None:
    assert call(files, "refitted.onnx", "refitted.json", "--calib-samples", SAMPLES, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    story = refitted.report.reconstruction or {}
    assert found["kind"] == "verified"
    assert {"w2", "f_bias"} <= set(found["refitted"]), "a weight, and a bias where none was"
    assert "gain" not in found["refitted"]
    assert found["proof"]["error"] <= found["proof"]["tolerance"]
    assert found["output_error"]["written"] == pytest.approx(story["output_error"]["refitted"], rel=1e-3)
    assert found["output_error"]["sliced"] == pytest.approx(story["output_error"]["sliced"], rel=1e-3)
    assert call(files, "refitted.onnx", "refitted.json", "--calib-samples", SAMPLES) == 0
    assert "output error beside the original" in capsys.readouterr().out


def test_other_values_need_a_plan_that_says_so(files: Path, capsys: Captured) -> None:
    """A plan whose run did not refit, and a file of another run of it that did."""
    plan = json.loads((files / "refitted.json").read_text()) | {"reconstruct": "none"}
    (files / "plain.json").write_text(json.dumps(plan))
    assert call(files, "refitted.onnx", "plain.json") == 1
    error = capsys.readouterr().err
    assert "--refitted" in error
    assert error.count("\n") == 1
    assert call(files, "refitted.onnx", "plain.json", "--refitted", "--calib-samples", SAMPLES, "-q") == 0


@pytest.mark.parametrize(
    "how", [{}, {"reconstruct": "merge"}, {"reconstruct": "none"}, {"fast": True}, {"scope": "local"}]
)
@pytest.mark.parametrize("build", [dense, scalar_bias])
def test_whatever_a_run_wrote_is_accepted(build: Callable[[], ModelProto], how: dict[str, Any]) -> None:
    model = build()
    result = onnxprune.prune(model, ratio=0.4, calib_samples=32, **how)
    found = onnxprune.verify(model, result.model.to_proto(), result.plan, calib_samples=16)
    assert isinstance(found, Verified)
    assert bool(found.refitted) == (result.plan.reconstruct != "none")


def test_a_replay_is_accepted_by_the_plan_that_it_gives() -> None:
    model = dense()
    plan = onnxprune.plan(model, ratio=0.4, fast=True)
    result = onnxprune.prune(model, plan=plan, calib_samples=16)
    assert onnxprune.verify(model, result.model, result.plan, calib_samples=16).refitted
    with pytest.raises(CheckFailed, match="refitted=True"):
        onnxprune.verify(model, result.model, plan)


def swapped(value: NDArray[Any]) -> NDArray[Any]:
    return value[[1, 0, *range(2, len(value))]]


def rolled(value: NDArray[Any]) -> NDArray[Any]:
    return np.roll(value, 1, axis=min(1, value.ndim - 1))


def changed(value: NDArray[Any]) -> NDArray[Any]:
    return value + np.float32(1e-3)


def longer(value: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([value, value[:1]])


def halved(value: NDArray[Any]) -> NDArray[Any]:
    return value.astype(np.float16)


@pytest.mark.parametrize("edit", [swapped, rolled, changed, longer, halved])
@pytest.mark.parametrize("name", ["w1", "w2", "w3", "w4", "gain", "mean"])
def test_changed_slices_are_refused(name: str, edit: Callable[[Any], Any], sliced: Result) -> None:
    model = sliced.model.to_proto()
    replace(model, name, edit(array(model, name)))
    with pytest.raises(CheckFailed):
        onnxprune.verify(dense(), model, sliced.plan)


@pytest.mark.parametrize("edit", [swapped, longer, halved])
def test_changed_parameters_that_no_refit_touches_are_refused(edit: Callable[[Any], Any], refitted: Result) -> None:
    model = refitted.model.to_proto()
    replace(model, "gain", edit(array(model, "gain")))
    with pytest.raises(CheckFailed):
        onnxprune.verify(dense(), model, refitted.plan, calib_samples=16)


def other_groups(model: ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "Conv" and n.attribute).attribute[0].i = 1


def other_order(model: ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    node.input[1], node.input[2] = node.input[2], node.input[1]


def other_operator(model: ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Abs"


def other_source(model: ModelProto) -> None:
    relus = [n for n in model.graph.node if n.op_type == "Relu"]
    relus[1].input[0] = relus[0].input[0]


def one_more(model: ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Flatten")
    model.graph.node.insert(list(model.graph.node).index(node), helper.make_node("Neg", [node.input[0]], ["negated"]))
    next(n for n in model.graph.node if n.op_type == "Flatten").input[0] = "negated"


def not_finite(model: ModelProto) -> None:
    replace(model, "w4", array(model, "w4") * np.float32(np.inf))


@pytest.mark.parametrize("edit", [other_groups, other_order, other_operator, other_source, one_more, not_finite])
def test_another_graph_is_refused_though_refitted(edit: Callable[[ModelProto], None], refitted: Result) -> None:
    model = refitted.model.to_proto()
    edit(model)
    with pytest.raises(CheckFailed):
        onnxprune.verify(dense(), model, refitted.plan, calib_samples=16)


def test_the_original_and_another_plan_are_refused(files: Path, capsys: Captured) -> None:
    assert call(files, "dense.onnx", "sliced.json") == 1
    assert call(files, "sliced.onnx", "refitted.json") == 1
    assert call(files, "sliced.onnx", "dense.onnx") == 2
    assert call(files, "missing.onnx", "sliced.json") == 2
    assert capsys.readouterr().err.count("\n") == 4
