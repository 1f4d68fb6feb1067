"""Layers inside the bodies of If, Loop and Scan are refitted: on what they are given whenever the body runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import test_bodies
from onnx import ModelProto, helper, numpy_helper
from test_bodies import BOOL, FLOAT, INT64, branches, info, loop, model, node, scan, tensor

import onnxprune
from onnxprune.api import trace
from onnxprune.fit import Reconstruction, Walk, bodies, collect
from onnxprune.model import Model
from onnxprune.trace import build

Feeds = Mapping[str, Any]


@pytest.fixture(autouse=True)
def _the_same_weights_whatever_ran_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_bodies, "RNG", np.random.default_rng(0))


def drawn(dense: ModelProto, batches: int, seed: int, **fixed: Any) -> list[dict[str, Any]]:
    """Batches of 16 samples, but for the inputs that are `fixed`: a value, or one for every batch in turn."""
    rng = np.random.default_rng(seed)
    found = []
    for b in range(batches):
        feeds = {}
        for i in dense.graph.input:
            dims = [d.dim_value or 16 for d in i.type.tensor_type.shape.dim]
            feeds[i.name] = rng.standard_normal(dims).astype(np.float32)
        found.append(feeds | {k: np.asarray(v[b % len(v)] if isinstance(v, list) else v) for k, v in fixed.items()})
    return found


def errors(dense: ModelProto, models: list[Any], feeds: list[dict[str, Any]]) -> list[float]:
    """The squared error of each model's outputs, as a share of their squares."""
    first, *others = [
        [ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, f) for f in feeds]
        for m in (dense, *(m.to_proto() for m in models))
    ]
    whole = sum(float(np.square(y).sum()) for ys in first for y in ys)
    return [
        sum(float(np.square(y - z).sum()) for ys, zs in zip(first, each, strict=True) for y, z in zip(ys, zs, strict=True))
        / whole for each in others
    ]  # fmt: skip


def refitted(dense: ModelProto, **fixed: Any) -> tuple[Any, float, float]:
    """(what half of the units leave, its error on fresh inputs, that of the same plan without a refit)"""
    result = onnxprune.prune(
        dense, ratio=0.3, calib=drawn(dense, 16, 1, **fixed), residual="all", scope="local", criterion="l2"
    )
    sliced = onnxprune.prune(dense, plan=result.plan, fast=True)
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    return result, *errors(dense, [result.model, sliced.model], drawn(dense, 8, 99, **fixed))


def nested() -> ModelProto:
    """An LSTM in an If in an If, with a bias that only the inner branch reads."""
    rng = np.random.default_rng(3)
    gates = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 2, n)
             for n, s in (("W", (1, 32, 12)), ("R", (1, 32, 8)), ("B", (1, 64)))]  # fmt: skip
    within = helper.make_graph([node("LSTM", "u W R B", "every", hidden_size=8)], "within", [], [info("every")], gates)
    without = helper.make_graph([node("LSTM", "v W R B", "other", hidden_size=8)], "without", [], [info("other")])
    without.initializer.extend(gates)
    without.node.insert(0, node("Neg", "u", "v"))
    branch = [helper.make_graph(
        [node("MatMul", "x U", "l"), node("Tanh", "l", "u"),
         node("If", "way", "r", then_branch=within, else_branch=without), node("Identity", "r", "out")], name, [],
        [info("out")], [tensor("U", 6, 12)],
    ) for name in ("one", "two")]  # fmt: skip
    nodes = [node("If", "way", "s", then_branch=branch[0], else_branch=branch[1]), node("Squeeze", "s axes", "t"),
             node("MatMul", "t last", "y")]  # fmt: skip
    return model(
        nodes, [info("x", FLOAT, [5, "N", 6]), info("way", BOOL, [])], [info("y", FLOAT, [5, "N", 2])],
        [tensor("last", 8, 2), numpy_helper.from_array(np.array([1]), "axes")],
    )  # fmt: skip


def carried() -> ModelProto:
    """Weights that a loop carries without a change, as TensorFlow and JAX write it, and a bias among them."""
    body = helper.make_graph(
        [node("MatMul", "state R", "r"), node("Add", "r b", "s"), node("Tanh", "s", "next"),
         node("Identity", "again", "more"), node("Identity", "R", "same"), node("Identity", "b", "still")],
        "body", [info("turn_number", INT64, []), info("again", BOOL, []), info("state"), info("R"), info("b")],
        [info("more", BOOL), info("next"), info("same"), info("still")],
    )  # fmt: skip
    nodes = [node("MatMul", "x first", "begin"), node("Loop", "count yes begin weight bias", "end w v", body=body),
             node("MatMul", "end last", "y")]  # fmt: skip
    yes, count = numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.array(3), "count")
    return model(nodes, [info("x", FLOAT, ["N", 6])], [info("y", FLOAT, ["N", 2])],
                 [yes, count, tensor("first", 6, 16), tensor("weight", 16, 16), tensor("bias", 16), tensor("last", 16, 2)])  # fmt: skip


BOTH = {"way": [True, False]}
CASES: list[tuple[str, Callable[[], ModelProto], Feeds, set[str]]] = [
    ("weights in a loop", lambda: loop(True), {"count": [3, 4]}, {"R"}),
    ("weights around a loop", lambda: loop(False), {"count": [3, 4]}, {"R"}),
    ("a scan", lambda: scan(True), {}, {"R"}),
    ("both branches", lambda: branches(True), BOTH, {"V", "V_2"}),
    ("one of them", lambda: branches(True), {"way": True}, {"V_2"}),
    ("an operator with gates", nested, BOTH, {"W"}),
    ("parameters that are carried", carried, {}, {"weight"}),
]


@pytest.mark.parametrize(("build", "fixed", "changed"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_is_inside_makes_up_for_what_went(build: Any, fixed: Feeds, changed: set[str]) -> None:
    dense = build()
    result, error, sliced = refitted(dense, **fixed)
    assert error < 0.7 * sliced
    plain = onnxprune.prune(dense, plan=result.plan, fast=True).model.weights
    now = result.model.weights
    assert changed <= {n for n in plain if n in now and not np.array_equal(now[n].array(), plain[n].array())}
    assert result.report.proof.error <= 1e-5


def test_a_branch_that_no_input_takes_keeps_its_weights_and_is_told() -> None:
    dense = branches(True)
    result, *_ = refitted(dense, way=True)
    plain = onnxprune.prune(dense, plan=result.plan, fast=True).model.weights
    same = {n: np.array_equal(result.model.weights[n].array(), plain[n].array()) for n in ("U", "V", "U_2", "V_2")}
    assert same == {"U": True, "V": True, "U_2": False, "V_2": False}
    assert any("else_branch" in name for name in result.report.reconstruction["skipped"])


def test_a_weight_that_others_read_stays() -> None:
    """Both branches read the same matrices: what is right for one may be wrong for the other."""
    result, *_ = refitted(branches(False), **BOTH)
    assert {"U", "V"} <= result.report.reconstruction["skipped"].keys()


def test_a_refit_that_makes_it_worse_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(self: Reconstruction, progress: object = None) -> Any:
        own = run(self, progress)  # type: ignore[arg-type]
        if self.inner:
            for name in self.after.model.weights.keys() & {"R", "W"}:
                weight = self.after.model.weights[name]
                self.after.model.weights[name] = type(weight).of(weight.array() * 9, weight.onnx_type)
        return own

    run = Reconstruction.run
    monkeypatch.setattr(Reconstruction, "run", spoiled)
    dense = scan(True)
    result, *_ = refitted(dense)
    plain = onnxprune.prune(dense, plan=result.plan, fast=True).model.weights
    assert all(np.array_equal(result.model.weights[n].array(), plain[n].array()) for n in ("R", "W", "U"))


def test_statistics_are_taken_of_what_bodies_read() -> None:
    """Of every turn that is looked at, by the rows of their own."""
    dense = scan(True)
    groups = build(trace(dense))
    found = {s.members[0].roots[0]: s for s in collect(groups, drawn(dense, 4, 1), ("cpu",), 0)}
    assert {"R", "U", "V", "last"} <= found.keys()
    assert found["R"].inside
    assert not found["last"].inside
    states = []
    tensors = (*dense.graph.initializer, *dense.graph.node[1].attribute[0].g.initializer)
    weights = {t.name: numpy_helper.to_array(t) for t in tensors}
    for feeds in drawn(dense, 4, 1):
        state = feeds["h"] @ weights["first"]
        for t in range(4):
            states.append(state)
            state = np.tanh(state @ weights["R"] + feeds["x"][:, t] @ weights["W"])
    rows = np.concatenate(states)
    assert np.allclose(found["R"].gram[0], rows.T @ rows / len(rows), atol=1e-4)


def test_turns_are_those_of_the_loop_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "TURNS", 3)
    working = Model.load(loop(True)).normalised()
    feeds = drawn(loop(True), 2, 5, count=4)
    kinds = {"turn_number": INT64, "again": BOOL, "count": INT64, "yes": BOOL}
    walk = Walk(working, feeds, lambda name: kinds.get(name, FLOAT))
    found = bodies.visits(walk, 1)["body"]
    assert [int(given["turn_number"]) for given in found.values()] == [0, 2, 3] * 2
    assert np.array_equal(found[0, 0]["state"], walk.value("begin")[0])


def test_a_branch_that_no_input_takes_is_not_the_one_to_be_emptied() -> None:
    """What goes of it costs nothing on these inputs, which says nothing."""
    dense = branches(True)
    plan = onnxprune.prune(dense, ratio=0.3, calib=drawn(dense, 8, 1, way=True)).plan
    gone = {r.parameter: len(r.remove) for removals in plan.groups.values() for r in removals if r.axes == (1,)}
    assert gone.get("U", 0) < 9  # of 12, nine are all that the floor allows
