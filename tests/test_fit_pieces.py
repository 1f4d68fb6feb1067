"""Weights that a graph cuts out of others and joins, as exporters put the gates of an LSTM into another order: they are
read, written and solved for, also in one branch of an If beside another that never runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graph, run
from onnx import ModelProto, numpy_helper
from test_fit_bodies import errors
from test_fit_recurrent import GATES, H, feeds, layer

import onnxprune
from onnxprune.fit.expressions import Parameter
from onnxprune.fit.pieces import Pieces, moved
from onnxprune.model import Model, Topology

BODY = """
    l = Slice(a, nought, two) r = Slice(a, two, six) joined = Concat<axis = 0>(r, l) w = Unsqueeze(joined, nought)
    g = Slice(a, four, six) v = Gather(b, picked) halves, other = Split<axis = 0>(c) f = Reshape(halves, flat)
    t = Transpose(b) twice = Gather(b, same) more = Add(a, a) u = Concat<axis = 0>(x, a) k = Slice(a, i, six)
    y = Identity(x)
"""


def expressions() -> Topology:
    """Of a [6, 4], b [6, 3] and c [4, 2]."""
    places = {"nought": [0], "two": [2], "four": [4], "six": [6], "picked": [5, 0, 2], "same": [1, 1], "flat": [-1]}
    arrays = {name: np.array(value) for name, value in places.items()}
    model = graph("(float[N, 4] x, int64[1] i) => (float[N, 4] y)", BODY, a=(6, 4), b=(6, 3), c=(4, 2), **arrays)
    return Topology(Model.load(model))


MOVED = {"w": ("a",), "g": ("a",), "v": ("b",), "f": ("c",)}


@pytest.mark.parametrize("name", MOVED)
def test_what_is_moved_is_read_as_the_runtime_has_it_and_written_back(name: str) -> None:
    own = expressions()
    found = moved(name, own)
    assert isinstance(found, Pieces)
    assert found.roots == MOVED[name]
    model = own.model
    whole = own.piece(sorted(own.ancestors([name])), (), [onnx.helper.make_tensor_value_info(name, 1, None)])
    (value,) = run(whole.to_proto(), {})
    np.testing.assert_array_equal(found.read(model), value)
    before = {root: model.weights[root].array().copy() for root in found.roots}
    found.write(model, value + 1)
    np.testing.assert_allclose(found.read(model), value + 1, rtol=1e-6)
    changed = sum(int((model.weights[root].array() != was).sum()) for root, was in before.items())
    assert changed == value.size, "and nothing else"


@pytest.mark.parametrize("name", ["twice", "more", "u", "k"])
def test_what_is_repeated_or_computed_is_not(name: str) -> None:
    assert moved(name, expressions()) is None


def test_one_chain_is_a_parameter_as_before() -> None:
    assert isinstance(moved("t", expressions()), Parameter)


def in_pieces(model: ModelProto, body: onnx.GraphProto | None = None) -> ModelProto:
    """The weights of a recurrent layer, of the graph or of a `body`, which is changed in place: the first gate stands
    behind the others, and the offsets of both sides apart."""
    made = ModelProto()
    made.CopyFrom(model)
    own = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    inside = made.graph if body is None else body
    at = next(k for k, n in enumerate(inside.node) if n.op_type in GATES)
    cell, rows = inside.node[at], GATES[inside.node[at].op_type] * H
    weights = {"wi_h": own["w"][0], "wh_h": own["r"][0], **dict(zip(("b_0", "b_1"), np.split(own["b"][0], 2), strict=True))}
    lines = [f"{n}_a = Slice({n}, first, every, nought) {n}_b = Slice({n}, nought, first, nought) "
             f"{n}_all = Concat<axis = 0>({n}_a, {n}_b)" for n in weights]  # fmt: skip
    lines.append("w_ = Unsqueeze(wi_h_all, nought) r_ = Unsqueeze(wh_h_all, nought) "
                 "sides = Concat<axis = 0>(b_0_all, b_1_all) b_ = Unsqueeze(sides, nought)")  # fmt: skip
    moving = onnx.parser.parse_graph(f"g () => () {{ {' '.join(lines)} }}").node
    for k, node in enumerate(moving):  # names of their own in every graph
        node.name, node.output[0] = f"{inside.name}_{k}", f"{inside.name}_{node.output[0]}"
        node.input[:] = [n if n in {*weights, "first", "every", "nought"} else f"{inside.name}_{n}" for n in node.input]
    cell.input[1:4] = [f"{inside.name}_{n}" for n in ("w_", "r_", "b_")]
    ordered = [*inside.node[:at], *moving, *inside.node[at:]]
    inside.ClearField("node")
    inside.node.extend(ordered)
    arrays = {n: np.roll(value, -H, 0) for n, value in weights.items()}
    arrays |= {"nought": np.array([0]), "first": np.array([rows - H]), "every": np.array([rows])}
    rest = [t for t in made.graph.initializer if t.name not in ("w", "r", "b")]
    made.graph.ClearField("initializer")
    made.graph.initializer.extend([*rest, *(numpy_helper.from_array(value, n) for n, value in arrays.items())])
    return made


KINDS: dict[str, dict[str, Any]] = {
    "lstm": {}, "gru": {"kind": "GRU"}, "gru, linear before reset": {"kind": "GRU", "attributes": "linear_before_reset = 1"},
    "rnn": {"kind": "RNN"},
}  # fmt: skip


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_gates_in_another_order_are_solved_for(options: dict[str, Any]) -> None:
    """Features of rank four, of which the matrix product before the layer makes twelve."""
    whole = layer(**options)
    model = in_pieces(whole)
    one = feeds(whole, 1, 8)[0]
    np.testing.assert_allclose(run(model, one)[0], run(whole, one)[0], atol=1e-6)
    calib = feeds(model)
    result, plain = (onnxprune.prune(m, ratio=0.3, calib=calib, scope="local", criterion="l2") for m in (model, whole))
    story = result.report.reconstruction
    assert story is not None
    cells = [r for r in story["layers"] if not r["layer"].startswith("MatMul")]
    assert len(cells) == {"LSTM": 1, "RNN": 1}.get(options.get("kind", "LSTM"), 3 if "attributes" in options else 2)
    assert all(r["after"] < 0.5 * r["before"] for r in cells)
    sliced = onnxprune.prune(model, plan=result.plan, fast=True)
    after, before = errors(model, [result.model, sliced.model], fresh := feeds(model, 2, 60, 99))
    assert after < 0.5 * before
    if "GRU" not in options.values():  # of which the parts weigh otherwise, so that other units go
        assert after == pytest.approx(errors(whole, [plain.model], fresh)[0], rel=1e-3)


def branching(alike: bool) -> ModelProto:
    """A layer in pieces in both branches of an If, which share its weights; one of them looks at the negative of what
    the other does. alike: with the same operator in both."""
    whole = layer(last=True)
    first, cell, *rest = whole.graph.node
    branches = {}
    for name in ("one", "other"):
        out = onnx.helper.make_tensor_value_info(f"{name}_h", 1, None)
        body = branches[name] = onnx.helper.make_graph([cell], name, [], [out])
        body.node[0].output[:] = ["", out.name]
    other = branches["other"].node[0]
    other.input[0] = "minus"
    other.attribute.extend([] if alike else [onnx.helper.make_attribute("clip", 9.0)])
    branches["other"].node.insert(0, onnx.helper.make_node("Neg", ["x"], ["minus"]))
    made, _ = [in_pieces(whole, body) for body in branches.values()]
    choice = onnx.helper.make_node("If", ["way"], ["h"], then_branch=branches["one"], else_branch=branches["other"])
    nodes = [first, choice, *rest]
    made.graph.ClearField("node")
    made.graph.node.extend(nodes)
    made.graph.input.append(onnx.helper.make_tensor_value_info("way", onnx.TensorProto.BOOL, []))
    onnx.checker.check_model(made)
    return made


def taking(model: ModelProto, ways: list[bool], **kw: Any) -> list[dict[str, Any]]:
    return [f | {"way": np.array(ways[k % len(ways)])} for k, f in enumerate(feeds(model, **kw))]


@pytest.mark.parametrize(
    ("alike", "ways", "solved"), [(True, [True], True), (False, [True], False), (True, [True, False], False)],
    ids=["one runs", "one runs, and the other reads them otherwise", "both run"],
)  # fmt: skip
def test_a_weight_that_a_branch_shares_with_one_that_never_runs(alike: bool, ways: list[bool], solved: bool) -> None:
    """What both read in the same way is solved for by the one that runs."""
    model = branching(alike)
    result = onnxprune.prune(model, ratio=0.3, calib=taking(model, ways), scope="local", criterion="l2")
    story = result.report.reconstruction
    assert story is not None
    cells = [r for r in story["layers"] if not r["layer"].startswith("MatMul")]
    assert bool(cells) == solved
    sliced = onnxprune.prune(model, plan=result.plan, fast=True)
    weights = [m.model.weights for m in (result, sliced)]
    for name in ("wi_h", "wh_h", "b_0"):
        same = np.array_equal(*(w[name].array() for w in weights))
        assert same != solved, name
    assert result.report.proof.error <= 1e-5
    if solved:  # the other branch reads the new weights, too
        for way in (True, False):
            after, before = errors(model, [result.model, sliced.model], taking(model, [way], count=2, batch=60, seed=99))
            assert after < 0.6 * before


def test_a_weight_that_two_layers_read_through_one_expression() -> None:
    """The second reads what the first was given, as where both read the weight itself."""
    w = np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32) / 4
    mix = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    text = "a = MatMul(x, w0) b = Relu(a) c = MatMul(b, W) d = Relu(c) e = MatMul(d, W) f = Relu(e) y = MatMul(f, w1)"

    def left(text: str, weight: Any) -> float:
        model = graph("(float[N, 8] x) => (float[N, 3] y)", text, w0=(8, 16), w1=(16, 3), w=weight)
        new, *calib = [{"x": np.random.default_rng(k).standard_normal((40, 4)).astype(np.float32) @ mix} for k in range(9)]
        result = onnxprune.prune(model, ratio=0.2, calib=calib, scope="local", criterion="l2", residual="all")
        return errors(model, [result.model], [new])[0]

    through = left("t = Transpose(w) " + text.replace("W", "t"), w.T.copy())
    assert through == pytest.approx(left(text.replace("W", "w"), w), rel=1e-3)
