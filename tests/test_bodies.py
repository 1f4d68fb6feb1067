"""Weights inside the bodies of If, Loop and Scan, and outside ones that bodies read: pruned, and proven like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.model import Model, every_node, scopes

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(0)


def tensor(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32) / 2, name)


def info(name: str, kind: int = FLOAT, shape: Sequence[Any] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def model(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], weights: list[TensorProto]) -> ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def cell(inside: bool) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """One step of a recurrence: state 16 -> 16, and the weights, to be put inside the body or outside."""
    nodes = [
        node("MatMul", "state R", "r"), node("MatMul", "step W", "w"), node("Add", "r w", "s"), node("Tanh", "s", "next"),
        node("MatMul", "next U", "u"), node("Relu", "u", "hidden"), node("MatMul", "hidden V", "turn"),
    ]  # fmt: skip
    return nodes, [tensor("R", 16, 16), tensor("W", 5, 16), tensor("U", 16, 12), tensor("V", 12, 3)]


def loop(inside: bool) -> ModelProto:
    """A loop over a number of turns that an input gives, with a state and an output of every turn."""
    nodes, weights = cell(inside)
    nodes = [node("Gather", "x turn_number", "step", axis=1), *nodes, node("Identity", "again", "more")]
    body = helper.make_graph(
        nodes, "body", [info("turn_number", INT64, []), info("again", BOOL, []), info("state")],
        [info("more", BOOL), info("next"), info("turn")], weights if inside else [],
    )  # fmt: skip
    one = numpy_helper.from_array(np.array(True), "yes")
    outer = [
        node("MatMul", "h first", "begin"), node("Loop", "count yes begin", "end every", body=body),
        node("MatMul", "end last", "y"),
    ]  # fmt: skip
    return model(
        outer, [info("x", FLOAT, ["N", 4, 5]), info("h", FLOAT, ["N", 6]), info("count", INT64, [])],
        [info("y", FLOAT, ["N", 2]), info("every", FLOAT, ["T", "N", 3])],
        [one, tensor("first", 6, 16), tensor("last", 16, 2), *([] if inside else weights)],
    )  # fmt: skip


def scan(inside: bool) -> ModelProto:
    """The same as a Scan over the second axis, its outputs stacked along another one."""
    nodes, weights = cell(inside)
    body = helper.make_graph(
        nodes, "body", [info("state"), info("step")], [info("next"), info("turn")], weights if inside else []
    )
    outer = [
        node("MatMul", "h first", "begin"),
        node("Scan", "begin x", "end every", body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[-1]),
        node("MatMul", "end last", "y"),
    ]
    return model(
        outer, [info("x", FLOAT, ["N", 4, 5]), info("h", FLOAT, ["N", 6])],
        [info("y", FLOAT, ["N", 2]), info("every", FLOAT, ["N", 3, 4])],
        [tensor("first", 6, 16), tensor("last", 16, 2), *([] if inside else weights)],
    )  # fmt: skip


def branches(inside: bool) -> ModelProto:
    """Two ways through: the same names in both, one of them reads a weight that the outside reads, too."""
    own = {k: [tensor("U", 16, 12), tensor("V", 12, 16)] for k in "te"} if inside else {"t": [], "e": []}
    then = helper.make_graph(
        [node("MatMul", "a U", "u"), node("Relu", "u", "v"), node("MatMul", "v V", "out")], "then", [], [info("out")],
        own["t"],
    )  # fmt: skip
    other = helper.make_graph(
        [node("MatMul", "a U", "u"), node("Tanh", "u", "v"), node("MatMul", "v V", "w"), node("Add", "w a", "out")],
        "else", [], [info("out")], own["e"],
    )  # fmt: skip
    nodes = [
        node("MatMul", "x first", "a"), node("If", "way", "b", then_branch=then, else_branch=other),
        node("MatMul", "b last", "y"),
    ]  # fmt: skip
    weights = [tensor("first", 6, 16), tensor("last", 16, 2)]
    return model(
        nodes, [info("x", FLOAT, ["N", 6]), info("way", BOOL, [])], [info("y", FLOAT, ["N", 2])],
        weights if inside else [*weights, tensor("U", 16, 12), tensor("V", 12, 16)],
    )  # fmt: skip


def runs_alike(a: ModelProto, b: ModelProto, **given: Any) -> None:
    """Both run on the same inputs and give outputs of the same shapes."""
    sessions = [ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in (a, b)]
    for n in (1, 3):
        feeds = {
            i.name: given.get(i.name, np.ones([n if isinstance(d, str) else d for d in i.shape], np.float32))
            for i in sessions[0].get_inputs()
        }
        one, two = (s.run(None, feeds) for s in sessions)
        assert [x.shape for x in one] == [x.shape for x in two]


@pytest.mark.parametrize("inside", [True, False], ids=["weights inside", "weights outside"])
@pytest.mark.parametrize("build", [loop, scan, branches])
def test_weights_of_a_body_go(build: Any, inside: bool) -> None:
    dense = build(inside)
    result = onnxprune.prune(dense, ratio=0.5, fast=True, residual="all", seed=3)
    kept = {name: w.shape for name, w in result.model.weights.items()}
    assert kept["first"] == (6, 8)
    assert kept["last"] == (8, 2)
    assert kept["U"] == (8, 6)
    assert kept["V"][0] == 6
    if build is not branches:
        assert kept["R"] == (8, 8)
        assert kept["W"] == (5, 8)
        assert kept["V"] == (6, 3)
    assert result.report.proof.error <= 1e-5
    after = result.model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    for choice in (
        ({"way": np.array(True)}, {"way": np.array(False)}) if build is branches else ({"count": np.array(4)},)
    ):
        runs_alike(dense, after, **choice)


def test_macs_of_a_body_count_for_every_turn() -> None:
    """4 turns of Scan: 16 * 16 + 5 * 16 + 16 * 12 + 12 * 3, and the two products outside."""
    found = onnxprune.inspect(scan(True))
    assert found.cost.macs == 4 * (256 + 80 + 192 + 36) + 6 * 16 + 16 * 2


def test_macs_of_an_if_are_the_mean_of_its_branches() -> None:
    """Of a run one of two is part: each has 16 * 12 + 12 * 16."""
    found = onnxprune.inspect(branches(True))
    assert found.cost.macs == 2 * 16 * 12 + 6 * 16 + 16 * 2


def test_what_grows_from_turn_to_turn_stays() -> None:
    """A state that a loop makes longer has no fixed shape; what does not touch it is pruned all the same."""
    nodes, weights = cell(True)
    nodes = [node("Gather", "x turn_number", "step", axis=1), *nodes, node("Identity", "again", "more")]
    body = helper.make_graph(
        [*nodes, node("Concat", "grown turn", "longer", axis=1)], "body",
        [info("turn_number", INT64, []), info("again", BOOL, []), info("state"), info("grown")],
        [info("more", BOOL), info("next"), info("longer")], weights,
    )  # fmt: skip
    outer = [
        node("MatMul", "h first", "begin"), node("MatMul", "h short", "few"),
        node("Loop", "count yes begin few", "end y", body=body),
    ]  # fmt: skip
    dense = model(
        outer, [info("x", FLOAT, ["N", 4, 5]), info("h", FLOAT, ["N", 6])], [info("y", FLOAT, ["N", "L"])],
        [numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.array(4), "count"),
         tensor("first", 6, 16), tensor("short", 6, 4)],
    )  # fmt: skip
    result = onnxprune.prune(dense, ratio=0.5, fast=True, residual="all")
    kept = {name: w.shape for name, w in result.model.weights.items()}
    assert kept["short"] == (6, 4)
    assert kept["V"] == (6, 3)
    assert kept["R"] == (8, 8)
    runs_alike(dense, result.model.to_proto())


def test_a_body_that_adds_a_fixed_axis_to_its_state_keeps_it() -> None:
    """The state begins prunable, but a turn adds an input of the model to it."""
    body = helper.make_graph(
        [node("Add", "state x", "next"), node("Identity", "again", "more")], "body",
        [info("turn_number", INT64, []), info("again", BOOL, []), info("state")], [info("more", BOOL), info("next")],
    )  # fmt: skip
    nodes = [
        node("MatMul", "x U", "u"), node("Relu", "u", "v"), node("MatMul", "v V", "begin"),
        node("Loop", "count yes begin", "end", body=body), node("MatMul", "end last", "y"),
    ]  # fmt: skip
    yes, count = numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.array(2), "count")
    dense = model(
        nodes, [info("x", FLOAT, ["N", 6])], [info("y", FLOAT, ["N", 2])],
        [yes, count, tensor("U", 6, 12), tensor("V", 12, 6), tensor("last", 6, 2)],
    )  # fmt: skip
    result = onnxprune.prune(dense, ratio=0.5, fast=True, residual="all")
    kept = {name: w.shape for name, w in result.model.weights.items()}
    assert (kept["U"], kept["V"], kept["last"]) == ((6, 6), (6, 6), (6, 2))


def test_a_nested_body() -> None:
    """An If in a Loop: a branch reads the state and weights of all three graphs."""
    then = helper.make_graph([node("MatMul", "state R", "out")], "then", [], [info("out")], [])
    other = helper.make_graph(
        [node("MatMul", "state Q", "q"), node("Add", "q b", "out")], "else", [], [info("out")], [tensor("Q", 16, 16)]
    )
    body = helper.make_graph(
        [node("If", "again", "next", then_branch=then, else_branch=other), node("Identity", "again", "more")], "body",
        [info("turn_number", INT64, []), info("again", BOOL, []), info("state")], [info("more", BOOL), info("next")],
        [tensor("b", 16)],
    )  # fmt: skip
    nodes = [
        node("MatMul", "h first", "begin"), node("Loop", "count yes begin", "end", body=body),
        node("MatMul", "end last", "y"),
    ]  # fmt: skip
    yes, count = numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.array(3), "count")
    dense = model(
        nodes, [info("h", FLOAT, ["N", 6])], [info("y", FLOAT, ["N", 2])],
        [yes, count, tensor("R", 16, 16), tensor("first", 6, 16), tensor("last", 16, 2)],
    )  # fmt: skip
    kept = {n: w.shape for n, w in onnxprune.prune(dense, ratio=0.5, fast=True).model.weights.items()}
    assert kept["Q"] == kept["R"] == (8, 8)
    assert kept["b"] == (8,)
    assert kept["first"] == (6, 8)


def test_numbers_of_nodes_in_bodies_follow_those_of_the_main_graph() -> None:
    working = Model.load(loop(True)).normalised()
    main, inner = scopes(working.graph)
    assert list(main.numbers) == [0, 1, 2]
    assert inner.numbers.start == 3
    assert inner.owner == 1
    names = [n.name for n in every_node(working.graph)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("build", [loop, scan, branches])
def test_bodies_under_the_default(build: Any) -> None:
    """Scored and refitted around the bodies and inside them."""
    result = onnxprune.prune(build(True), ratio=0.4, calib_samples=32, residual="all")
    assert result.report.after.parameters < result.report.before.parameters
    assert result.report.proof.error <= 1e-5
