"""Whole residual branches: found, taken out, proven, planned, replayed."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from graphs import graph, inputs, run
from onnx import ModelProto

import onnxprune
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed, proven
from onnxprune.planning import Planner, branches, settled, trials
from onnxprune.planning.decision import Informed
from onnxprune.rewrite import branches as rewriting
from onnxprune.trace import Groups

ENDS = "float[N, 6] x) => (float[N, 3] y)"
BLOCK = "{0}a = MatMul({1}, w{0}a) {0}b = Relu({0}a) {0}f = MatMul({0}b, w{0}b) "


def stack(*sums: str, last: str, seed: int = 0, **more: Any) -> ModelProto:
    """A stem of 8 channels, whatever `sums` make of it, and a head that reads `last`."""
    body = "s = MatMul(x, stem) " + " ".join(sums) + f" y = MatMul({last}, head)"
    weights = {f"w{k}{half}": shape for k in "pqr" for half, shape in (("a", (8, 12)), ("b", (12, 8)))}
    used = {name: shape for name, shape in weights.items() if f" {name})" in body}
    return graph(f"({ENDS}", body, seed=seed, stem=(6, 8), head=(8, 3), **used, **more)


TWO = (BLOCK.format("p", "s"), "t = Add(s, pf)", BLOCK.format("q", "t"), "u = Add(qf, t)")


def groups_of(model: ModelProto, **options: Any) -> Groups:
    return analysed(Model.load(model), Options(fast=True, **options).resolved(), Clock())


def without(groups: Groups, *names: str) -> Model:
    """Proven without these branches."""
    removed = np.zeros(len(groups.prunable), bool)
    removed[[unit for unit, branch in groups.branches.items() if branch.name in names]] = True
    assert removed.sum() == len(names)
    return proven(groups, removed, Options(fast=True).resolved(), Clock())[0].model


def silenced(model: ModelProto, *weights: str) -> ModelProto:
    """An oracle of its own: the last layers of branches are zero."""
    copy = ModelProto.FromString(model.SerializeToString())
    for tensor in copy.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = b"\0" * len(tensor.raw_data)
    return copy


FOUND = [
    ("two in a row, either side of the sum", stack(*TWO, last="u"), {"t": 3, "u": 3}),
    (
        "two branches of the same stream, one sum after the other",
        stack(BLOCK.format("p", "s"), "t = Add(s, pf)", BLOCK.format("q", "s"), "u = Add(t, qf)", last="u"), {"t": 3, "u": 3},
    ),
    ("a sum with what does not depend on the stream", stack("c = MatMul(x, other)", "t = Add(s, c)", last="t", other=(6, 8)), {}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "found"), [row[1:] for row in FOUND], ids=[row[0] for row in FOUND])
def test_branches_are_sums_with_what_depends_on_the_stream(model: ModelProto, found: dict[str, int]) -> None:
    assert {b.name: len(b.nodes) for b in groups_of(model).branches.values()} == found


def test_a_projection_is_no_stream() -> None:
    model = stack("e = MatMul(s, wide)", BLOCK.format("p", "s"), "t = Add(e, pf)", last="t", wide=(8, 8))
    assert not groups_of(model).branches


def test_what_an_output_needs_is_not_taken_for_the_branch_alone() -> None:
    model = stack(*TWO, last="u")
    extra = onnx_output(model, "pb", 12)
    assert {b.name: len(b.nodes) for b in groups_of(extra).branches.values()} == {"t": 1, "u": 3}


def onnx_output(model: ModelProto, name: str, size: int) -> ModelProto:
    copy = ModelProto.FromString(model.SerializeToString())
    out = copy.graph.output.add()
    out.CopyFrom(copy.graph.output[0])
    out.name = name
    out.type.tensor_type.shape.dim[1].dim_value = size
    return copy


@pytest.mark.parametrize("gone", [("t",), ("u",), ("t", "u")])
def test_equal_to_an_original_whose_last_layers_are_zero(gone: tuple[str, ...]) -> None:
    model = stack(*TWO, last="u")
    after = without(groups_of(model), *gone).to_proto()
    feeds = inputs(model, 5)
    last = {"t": "wpb", "u": "wqb"}
    np.testing.assert_allclose(run(after, feeds)[0], run(silenced(model, *(last[n] for n in gone)), feeds)[0], atol=1e-6)
    left = {t.name for t in after.graph.initializer}
    assert left == {"stem", "head", *(w for n, ws in (("t", ("wpa", "wpb")), ("u", ("wqa", "wqb"))) for w in ws if n not in gone)}


def test_a_sum_that_is_an_output_keeps_its_name() -> None:
    model = onnx_output(stack(*TWO, last="u"), "t", 8)
    after = without(groups_of(model), "t").to_proto()
    feeds = inputs(model, 3)
    for ours, theirs in zip(run(after, feeds), run(silenced(model, "wpb"), feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_stream_is_named_after_the_last_sum_that_became_it() -> None:
    after = without(groups_of(stack(*TWO, last="u")), "t", "u").to_proto()
    assert [(n.op_type, *n.output) for n in after.graph.node] == [("MatMul", "u"), ("MatMul", "y")]


def test_what_repeats_the_last_thing_done_to_the_stream_goes() -> None:
    model = stack("r = Relu(s)", BLOCK.format("p", "r"), "t = Add(r, pf)", "v = Relu(t)", last="v")
    after = without(groups_of(model), "t").to_proto()
    assert [n.op_type for n in after.graph.node] == ["MatMul", "Relu", "MatMul"]
    feeds = inputs(model, 4)
    np.testing.assert_allclose(run(after, feeds)[0], run(silenced(model, "wpb"), feeds)[0], atol=1e-6)


IDLE = [
    ("a pool of what is not negative", "r0 = Relu(s) r = Max(r0)", "v = Relu(t)", True),
    ("within the same limits", "r0 = Clip(s, none, six) r = Identity(r0)", "v = Clip(t, none, six)", True),
    ("within wider limits", "r = Sigmoid(s)", "v = Clip(t, none, six)", True),
    ("linear above zero", "r0 = Relu(s) r1 = Sigmoid(s) r = Mul(r0, r1)", "v = LeakyRelu(t)", True),
    ("a stream that is a sum", "r0 = Relu(s) r1 = Abs(s) r = Add(r0, r1)", "v = Abs(t)", True),
    ("narrower limits", "r0 = Clip(s, none, six) r = Identity(r0)", "v = Clip(t, none, one)", False),
    ("an average may be larger than its largest", "r1 = Clip(s, none, six) r = Mean(r1, r1)", "v = Clip(t, none, six)", False),
    ("what may be negative", "r = LeakyRelu(s)", "v = Relu(t)", False),
    ("times a weight, which may change", "r0 = Relu(s) r = Mul(r0, one)", "v = Relu(t)", False),
    ("limits that are computed", "m = ReduceMax<keepdims = 0>(s) r = Clip(s, none, m)", "v = Clip(t, none, six)", False),
    ("what bends above zero", "r = Relu(s)", "v = Selu(t)", False),
]  # fmt: skip


@pytest.mark.parametrize(("before", "activation", "goes"), [row[1:] for row in IDLE], ids=[row[0] for row in IDLE])
def test_an_activation_that_does_nothing_to_what_is_left_goes(before: str, activation: str, goes: bool) -> None:
    limits = {"none": np.float32(0), "six": np.float32(6), "one": np.float32(1)}
    body = f"{before} {BLOCK.format('p', 'r')} t = Add(r, pf) {activation}"
    model = stack(body, last="v", **{n: np.array(x) for n, x in limits.items() if f"{n})" in body or f"{n}," in body})
    after = without(groups_of(model), "t").to_proto()
    kind = activation.split(" = ")[1].split("(")[0]
    assert sum(n.op_type == kind for n in after.graph.node) == body.count(f" {kind}(") - body.count(f"pb = {kind}(") - goes
    feeds = inputs(model, 4)
    np.testing.assert_allclose(run(after, feeds)[0], run(silenced(model, "wpb"), feeds)[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_a_fused_sum_and_norm(kind: str) -> None:
    """The stream goes on from the fourth output, as after ONNX Runtime's own fusions."""
    beta = ", beta" if kind == "SkipLayerNormalization" else ""
    body = (
        "s = MatMul(x, stem) pa = MatMul(s, wpa) pb = Relu(pa) pf = MatMul(pb, wpb) "
        f"n, , , t = com.microsoft.{kind}(s, pf, gain{beta}) "
        "qa = MatMul(n, wqa) qb = Relu(qa) qf = MatMul(qb, wqb) "
        f"m = com.microsoft.{kind}(t, qf, gain2{beta}) y = MatMul(m, head)"
    )
    model = graph(
        "(float[N, 5, 6] x) => (float[N, 5, 3] y)", body, stem=(6, 8), head=(8, 3), wpa=(8, 12), wpb=(12, 8), wqa=(8, 12),
        wqb=(12, 8), gain=(8,), gain2=(8,), **({"beta": (8,)} if beta else {}),
    )  # fmt: skip
    groups, feeds = groups_of(model), inputs(model, 2)
    assert [b.name for b in groups.branches.values()] == ["n", "m"]
    after = without(groups, "n", "m").to_proto()
    np.testing.assert_allclose(run(after, feeds)[0], run(silenced(model, "wpb", "wqb"), feeds)[0], atol=1e-5)


def test_the_wrong_side_of_a_sum_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    drop = rewriting.drop

    def mistaken(model: Model, gone: Any) -> None:
        drop(model, [replace(b, stream=b.operand, operand=b.stream) for b in gone])

    monkeypatch.setattr("onnxprune.rewrite.rewriting.drop", mistaken)
    with pytest.raises(CheckFailed):
        without(groups_of(stack(*TWO, last="u")), "t")


def test_a_branch_more_than_the_plan_says_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = groups_of(stack(*TWO, last="u"))
    drop, every = rewriting.drop, list(groups.branches.values())
    monkeypatch.setattr("onnxprune.rewrite.rewriting.drop", lambda model, gone: drop(model, every if gone else gone))
    with pytest.raises(CheckFailed):
        without(groups, "t")


def useless(seed: int = 0) -> ModelProto:
    """A network of which the first branch adds next to nothing."""
    model = stack(*TWO, last="u", seed=seed)
    for tensor in model.graph.initializer:
        if tensor.name == "wpb":
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1e-3).tobytes()
    return model


def own(model: ModelProto) -> list[dict[str, np.ndarray]]:
    """Inputs of the user's."""
    return [inputs(model, 8, seed) for seed in range(16)]


def test_no_branch_goes_on_made_up_inputs_unless_asked_for() -> None:
    model = useless()
    assert onnxprune.prune(model, ratio=0.4, of="macs").plan.branches == ()
    assert onnxprune.prune(model, ratio=0.4, of="macs", blocks=True).plan.branches == ("t",)


def test_no_branch_goes_where_every_group_keeps_something() -> None:
    model = useless()
    for limit in ({"max_ratio": 0.6}, {"min_channels": 2}):
        assert onnxprune.prune(model, ratio=0.4, of="macs", calib=own(model), **limit).plan.branches == ()


def test_the_default_takes_a_branch_that_adds_nothing_and_the_plan_repeats_it(tmp_path: Any) -> None:
    model = useless()
    result = onnxprune.prune(model, ratio=0.4, of="macs", calib=own(model))
    assert result.plan.branches == ("t",)
    assert [b.name for b in result.report.branches if b.gone] == ["t"]
    assert "t" in result.summary()
    result.plan.save(tmp_path / "p.json")
    plan = onnxprune.Plan.load(tmp_path / "p.json")
    assert plan.branches == ("t",)
    again = onnxprune.prune(model, plan=plan, reconstruct="none", fast=True)
    assert {n.output[0] for n in again.model.to_proto().graph.node} == {n.output[0] for n in result.model.to_proto().graph.node}
    result.save(tmp_path / "o.onnx")
    onnxprune.verify(model, tmp_path / "o.onnx", plan)


def test_branches_stay_where_the_user_says_so() -> None:
    model = useless()
    assert onnxprune.prune(model, ratio=0.4, of="macs", calib=own(model), blocks=False).plan.branches == ()
    held = onnxprune.prune(model, ratio=0.3, of="macs", calib=own(model), ratio_of={"wpa": 0.0}).plan
    assert "t" not in held.branches
    assert not [b for b in groups_of(model, nodes_to_exclude=["MatMul_1"]).branches.values() if b.name == "t"]
    with pytest.raises(UsageError, match="whole branches go only where what the outputs lose is measured"):
        onnxprune.prune(model, fast=True, blocks=True)


THREE = (*TWO, BLOCK.format("r", "u"), "v = Add(u, rf)")


def decider(**options: Any) -> Planner:
    model = stack(*THREE, last="v")
    groups = analysed(Model.load(model), made := Options(of="macs", calib=own(model), **options).resolved(), Clock())
    return Planner(groups, settled(groups, made))


def test_what_only_a_branch_needs_goes_with_it() -> None:
    groups = groups_of(stack(*TWO, last="u"))
    for unit, branch in groups.branches.items():
        own = {"t": {"wpa", "wpb"}, "u": {"wqa", "wqb"}}[branch.name]
        inner = branches.within(groups, unit) & groups.prunable
        held = {s.parameter for s, _, ids in groups.blocks if inner[groups.classes[ids]].any()}
        assert inner.sum() == 12
        assert held == own


@pytest.mark.parametrize(("errors", "gone"), [((0.3, 0.2, 0.1), 3), ((0.3, 0.1, 0.2), 1), ((0.1, 0.1, 0.2), 0), ((None, 0.5, None), 1)])
def test_as_many_branches_go_as_lose_least_together(
    errors: tuple[float | None, ...], gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone each branch loses nothing; with none, one and three of them gone the outputs lose these `errors`."""
    planner = decider(ratio=0.7)
    units = [*planner.groups.branches]

    def lost(trials: Any, cuts: Any) -> list[float | None]:
        counts = [int(cut[units].sum()) for cut in cuts]
        if not any(counts):  # the shares of widths are tried
            return [0.5] * len(counts)
        assert counts == [0, 1, 3]
        return [*errors]

    monkeypatch.setattr("onnxprune.planning.branches.measured", lambda *args: dict.fromkeys(units, 1e-9))
    monkeypatch.setattr(trials.Trials, "lost", lost)
    assert planner(planner.options).removed[units].sum() == gone


def test_where_time_is_short_the_branches_that_look_best_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three branches adds next to nothing: it is the one that a single trial goes to, of time of its own
    where branches are asked for, else of what is left beside the trials of widths."""
    model = stack(*THREE, last="v")
    for tensor in model.graph.initializer:
        if tensor.name == "wqb":
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1e-3).tobytes()
    seen: dict[tuple[bool | None, float], dict[str, float]] = {}
    for asked, most in product((True, None), (1.5, 4.5, 5.5)):
        monkeypatch.setattr(trials, "_work", lambda trace, count, *pace, most=most: count * trials.MOST_WORK / most)
        options = Options(of="macs", ratio=0.3, blocks=asked, calib=own(model)).resolved()
        groups = analysed(Model.load(model), options, Clock())
        found = Planner(groups, settled(groups, options))(options).curve_set
        assert found is not None
        assert len(found.curves) == 4
        seen[asked, most] = {groups.branches[unit].name: loss for unit, loss in found.branches.items()}
    assert {key: [*lost] for key, lost in seen.items()} == {
        (True, 1.5): ["u"], (None, 1.5): [], (True, 4.5): ["t", "u", "v"], (None, 4.5): [],
        (True, 5.5): ["t", "u", "v"], (None, 5.5): ["u"],
    }  # fmt: skip
    assert seen[True, 1.5]["u"] < 1e-3
    assert seen[None, 5.5]["u"] < 1e-3


def test_branches_are_tried_only_where_they_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that say little of the network let none go unless that is asked for."""
    tried: list[tuple[bool | None, float]] = []
    for asked, trust in (cases := [(None, 0.5), (None, 1.0), (True, 0.5), (False, 1.0)]):
        planner = decider(ratio=0.3, blocks=asked)
        assert isinstance(planner._informed, Informed)
        planner._informed.trust = trust
        monkeypatch.setattr(
            "onnxprune.planning.branches.measured", lambda *args, case=(asked, trust): tried.append(case) or {}
        )
        planner(planner.options)
    assert tried == cases[1:3]


def test_a_plan_of_another_network() -> None:
    plan = onnxprune.Plan(branches=("elsewhere",))
    with pytest.raises(UsageError, match="residual branch that ends at elsewhere is not in this model"):
        onnxprune.prune(useless(), plan=plan, fast=True)
