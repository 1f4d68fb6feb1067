"""Recurrent layers of a stack keep units of their own: what tied them is taken out, and the same is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import graph, inputs, run, shapes
from onnx import ModelProto, TensorProto, helper

from onnxprune import prune
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, F, H = 6, 12, 10


def stack(
    kind: str = "LSTM", directions: int = 1, zeros: str = "ConstantOfShape(sizes)", end: str = "z = Gather<axis = 0>(last, at)",
    at: Any = -1, signature: str = "(float[6, N, 12] x) => (float[N, 3] y)", **weights: Any,
) -> ModelProto:  # fmt: skip
    """Three layers as torch exports them: the initial states are parts of one tensor, the last ones are put together."""
    g, way = GATES[kind], ', direction = "bidirectional"' if directions == 2 else ""
    body = f"size = Shape(x) n = Gather<axis = 0>(size, one) sizes = Concat<axis = 0>(layers, n, width) zeros = {zeros}\n"
    for k in range(3):
        state = f"s{k}{', s' + str(k) if kind == 'LSTM' else ''}"
        body += f"""s{k} = Slice(zeros, from{k}, to{k}, nought)
            t{k}, h{k} = {kind}<hidden_size = {H}{way}>(x{k}, w{k}, r{k}, b{k}, , {state})
            turned{k} = Transpose<perm = [0, 2, 1, 3]>(t{k}) x{k + 1} = Reshape(turned{k}, flat)\n"""
    body = body.replace("(x0,", "(x,") + f"last = Concat<axis = 0>(h0, h1, h2) {end} y = MatMul(z, wo)"
    for k in range(3):
        weights |= {f"w{k}": (directions, g * H, F if k == 0 else directions * H), f"r{k}": (directions, g * H, H),
                    f"b{k}": (directions, 2 * g * H), f"from{k}": np.array([k * directions]),
                    f"to{k}": np.array([(k + 1) * directions])}  # fmt: skip
    return graph(
        signature, body, **{
            "wo": (H, 3), "at": np.array(at), "one": np.array([1]), "nought": np.array([0]), "flat": np.array([0, 0, -1]),
            "layers": np.array([3 * directions]), "width": np.array([H]), "nil": np.float32(0), **weights,
        },
    )  # fmt: skip


def sets(model: ModelProto) -> int:
    """How many groups of units may go by themselves."""
    groups = analysed(Model.load(model), Options(ratio=0.5, fast=True).resolved(), Clock())
    return sum(any(groups.prunable[np.unique(groups.classes[groups.blocks[k][2]])].any() for k in c)
               for c in groups.components())  # fmt: skip


def equal(model: ModelProto) -> bool:
    """Whether the working copy computes what the model does, bit by bit."""
    feeds = inputs(model, 5)
    return all(map(np.array_equal, run(model, feeds), run(Model.load(model).normalised().to_proto(), feeds)))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("zeros", ["ConstantOfShape(sizes)", "Expand(nil, sizes)"])
def test_layers_of_a_stack_keep_units_of_their_own(kind: str, zeros: str) -> None:
    model = stack(kind, zeros=zeros)
    assert equal(model)
    assert sets(model) == 3
    assert {n.op_type for n in Model.load(model).normalised().graph.node}.isdisjoint(("Concat", "Slice", "Shape"))


@pytest.mark.parametrize("at", [-1, 2])
@pytest.mark.parametrize("end", ["z = Gather<axis = 0>(last, at)", "part = Gather<axis = 0>(last, ats) z = Squeeze(part, nought)"])
def test_the_last_state_is_taken_of_its_layer(at: int, end: str) -> None:
    model = stack(at=at, end=end, ats=np.array([at]))
    assert equal(model)
    assert sets(model) == 3


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 2), (2, 3), (-1, 2**63 - 1), (-3, -2)])
def test_each_layer_of_a_decoder_takes_the_state_of_its_own(first: int, last: int) -> None:
    end = "part = Slice(last, first, behind) z = Squeeze(part, nought)"
    model = stack(end=end, first=np.array([first]), behind=np.array([last]))
    assert equal(model)
    assert sets(model) == 3


def test_what_is_cut_is_said_by_attributes_before_opset_10() -> None:
    body = """t0, h0 = RNN<hidden_size = 10>(x, w0, r0) s = Squeeze<axes = [1]>(t0)
        t1, h1 = RNN<hidden_size = 10>(s, w1, r1) last = Concat<axis = 0>(h0, h1) y = Slice<starts = [1], ends = [2]>(last)"""
    weights = {"w0": (1, H, F), "r0": (1, H, H), "w1": (1, H, H), "r1": (1, H, H)}
    model = graph("(float[6, N, 12] x) => (float[1, N, 10] y)", body, opset=9, **weights)
    assert equal(model)
    assert "Concat" not in [n.op_type for n in Model.load(model).normalised().graph.node]


@pytest.mark.parametrize("at", range(-6, 6))
def test_either_direction_of_any_layer_is_found(at: int) -> None:
    model = stack("GRU", 2, at=at)
    assert equal(model)
    gathers = [n for n in Model.load(model).normalised().graph.node if n.op_type == "Gather"]
    assert [n.input[0] for n in gathers if n.output[0] == "z"] == [f"h{at % 6 // 2}"]


def test_states_that_are_not_zeros_stay() -> None:
    """Those of a constant, of ones, and of an input with a default, which a caller may replace."""
    ones = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    model = stack("GRU")
    filling = next(n for n in model.graph.node if n.op_type == "ConstantOfShape")
    filling.attribute.append(helper.make_attribute("value", ones))
    assert equal(model)
    assert states(model) == 3
    assert states(stack("GRU", zeros="Expand(nil, sizes)", nil=np.float32(-0.5))) == 3
    default = stack("GRU", zeros="Expand(nil, sizes)")
    default.graph.input.append(helper.make_tensor_value_info("nil", TensorProto.FLOAT, []))
    assert states(default) == 3
    assert states(stack("GRU", zeros="Expand(nil, sizes)")) == 0


def states(model: ModelProto) -> int:
    """How many layers read an initial state."""
    nodes = Model.load(model).normalised().graph.node
    return sum(len(n.input) > 5 and bool(n.input[5]) for n in nodes if n.op_type in GATES)


def test_states_that_are_read_elsewhere_stay_together() -> None:
    """All last states come out of the model: they have to be as wide as each other, and go nowhere."""
    model = stack(signature="(float[6, N, 12] x) => (float[N, 3] y, float[3, N, 10] last)")
    assert equal(model)
    assert "Concat" in [n.op_type for n in Model.load(model).normalised().graph.node]


@pytest.mark.parametrize(
    ("end", "weights"),
    [("some = Gather<axis = 0>(last, ats) z = ReduceSum<keepdims = 0>(some, nought)", {"ats": np.array([0, 2])}),
     ("more = Concat<axis = 0>(last, given) z = Gather<axis = 0>(more, at)", {}),
     ("wide = Concat<axis = 1>(h1, h2) z = Gather<axis = 0>(wide, at)", {}),
     ("two = Slice(last, from1, to2) z = ReduceSum<keepdims = 0>(two, nought)", {}),
     ("odd = Slice(last, from0, to2, nought, steps) z = ReduceSum<keepdims = 0>(odd, nought)", {"steps": np.array([2])})],
    ids=["several", "of unknown length", "along another axis", "two layers", "every other layer"],
)  # fmt: skip
def test_other_entries_are_taken_as_before(end: str, weights: dict[str, Any]) -> None:
    model = stack(end=end, signature="(float[6, N, 12] x, float[k, N, 10] given) => (float[M, 3] y)", **weights)
    assert equal(model)
    assert "Concat" in [n.op_type for n in Model.load(model).normalised().graph.node]


def test_a_stack_is_pruned_layer_by_layer() -> None:
    """Shares of their own, found on inputs; the proof compares with the file as it came."""
    model = stack()
    result = prune(model, ratio=0.4, of="macs", calib=[{"x": inputs(model, 64)["x"]}], seed=0)
    kept = shapes(result)
    assert len({kept[f"r{k}"][2] for k in range(3)}) > 1
    assert result.report.after.macs < 0.65 * result.report.before.macs
