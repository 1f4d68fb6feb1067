"""Chains of movements that come to one permutation of an axis: its channels stay apart, and a Gather replaces the chain."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from graphs import array, graph, inputs, pruned, replace, run, shapes, silence
from onnx import ModelProto, helper
from test_learned_channels import shuffles

import onnxprune
from onnxprune.errors import CheckFailed

SILENT = (0, 1, 2, 3, 4, 5, 6, 9)  # seven of the first row of (2, 8), one of the second: no rectangle
KINDS = ["channels first", "channels last", "merged axes", "squeezed", "run-time target"]


def operators(model: ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def shuffled(rank: int, kind: str = "channels first", more: str = "") -> ModelProto:
    """Sixteen channels over `rank` spatial axes, shuffled in two groups between two products over the channels."""
    image = [3, 4, 5][:rank]
    last = list(range(2, rank + 2))
    first = [0, rank + 1, *range(1, rank + 1)]
    apart, turn, joint = [0, 2, 8, *image], [0, 2, 1, *(k + 1 for k in last)], [0, 16, *image]
    before = f"a = Transpose<perm = {first}>(m)"
    after = f"u = Transpose<perm = {[0, *last, 1]}>(s)"
    if kind == "channels last":
        apart, turn, joint = [0, *image, 2, 8], [*range(rank + 1), rank + 2, rank + 1], [0, *image, 16]
        before, after = "a = Identity(m)", "u = Identity(s)"
    chain = f"r = Reshape(a, apart) t = Transpose<perm = {turn}>(r) s = Reshape(t, joint)"
    if kind == "merged axes":
        apart = [-1, 2, 8, int(np.prod(image))]
        chain = "r = Reshape(a, apart) t = Transpose<perm = [0, 2, 1, 3]>(r) s = Reshape(t, joint)"
    if kind == "squeezed":
        turned = [0, 3, 1, 2, *(k + 2 for k in last)]
        chain = f"r = Reshape(a, apart) i = Unsqueeze(r, one) t = Transpose<perm = {turned}>(i) s = Reshape(t, joint)"
    if kind == "run-time target":
        target = "z = Shape(a) b = Gather(z, first) g = Concat<axis = 0>(b, tail)"
        chain = f"{target} r = Reshape(a, g) t = Transpose<perm = {turn}>(r) s = Reshape(t, joint)"
    body = f"m = MatMul(x, w) {before} {chain} {after} p = Relu(u) y = MatMul(p, v) {more}"
    rows = "".join(f", {n}" for n in image)
    signature = f"(float[N{rows}, 6] x) => (float[N{rows}, 5] y)"
    constants = {"apart": np.array(apart), "joint": np.array(joint), "one": np.array([1]), "first": np.array([0]),
                 "tail": np.array(apart[1:])}  # fmt: skip
    return graph(signature, body, w=(6, 16), v=(16, 5), **{k: a for k, a in constants.items() if f" {k})" in body})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_channels_go_one_by_one(rank: int, kind: str) -> None:
    model = silence(shuffled(rank, kind), {"w": (1, SILENT)})
    silence(model, {"v": (0, np.flatnonzero(np.isin(np.arange(16).reshape(2, 8).T.ravel(), SILENT)))})
    result = pruned(model, equal=True)
    after = result.model.to_proto()
    np.testing.assert_array_equal(array(after, "w"), np.delete(array(model, "w"), SILENT, 1))
    found = operators(after)
    outer = {"Transpose", "Identity"}  # those around the three are in the chain too, where it ends with them
    assert {k: n for k, n in found.items() if k not in outer} == {"MatMul": 2, "Relu": 1, "Gather": 1}
    assert all(w in {i for n in after.graph.node for i in n.input} for w in shapes(after))
    assert rank == 0 or kind in ("channels last", "run-time target") or not found["Transpose"]


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_chained_shuffles(ratio: float) -> None:
    """Every layer loses its share, and with zeros in what went the original computes the same."""
    model = shuffles(4)
    plan = onnxprune.plan(model, ratio=ratio, residual="all", fast=True)
    for removal in (r for group in plan.groups.values() for r in group):
        value = array(model, removal.parameter)
        where = np.zeros(removal.shape, bool)
        where.flat[list(removal.remove)] = True
        assert len(removal.axes) == 1
        np.moveaxis(value, removal.axes[0], 0)[where] = 0
        replace(model, removal.parameter, value)
    result = onnxprune.prune(model, plan=plan, fast=True)
    after = result.model.to_proto()
    found = shapes(after)
    assert all(abs(found[f"w{k}"][0] / (16 if k == 0 else 8) - (1 - ratio)) < 0.13 for k in range(5))
    for batch in (1, 3):
        feeds = inputs(model, batch)
        np.testing.assert_allclose(run(after, feeds)[0], run(model, feeds)[0], rtol=1e-4, atol=1e-5)


def test_what_loses_nothing_stays_as_it_is() -> None:
    model = shuffled(2, "channels first", "q = MatMul(x, w2) o = Relu(q) y2 = MatMul(o, v2)")
    model.graph.output.append(helper.make_tensor_value_info("y2", 1, ["N", 3, 4, 5]))
    for name, shape in (("w2", (6, 8)), ("v2", (8, 5))):
        weight = np.random.default_rng(2).normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    for k, node in enumerate(model.graph.node):
        node.name = f"n{k}"
    after = pruned(model, nodes_to_exclude=["n0"]).model.to_proto()
    assert shapes(after)["w2"] == (6, 4)
    assert list(after.graph.node) == list(model.graph.node)


def test_who_reads_in_between_keeps_the_chain() -> None:
    """The channels of both rows are tied then, as they have to be where the tensor in between is a rectangle."""
    model = shuffled(1, more="d = ReduceMean<axes = [1, 2, 3], keepdims = 0>(r)")
    model.graph.output.append(helper.make_tensor_value_info("d", 1, ["N"]))
    after = pruned(model).model.to_proto()
    assert operators(after)["Reshape"] == 2
    assert shapes(after)["w"] == (6, 8)


def test_other_nodes_and_names_stay() -> None:
    model = shuffled(2)
    for k, node in enumerate(model.graph.node):
        node.name, node.doc_string = f"n{k}", f"node {k}"
    model = silence(model, {"w": (1, SILENT)})
    model.graph.value_info.append(helper.make_tensor_value_info("r", 1, ["N", 2, 8, 3, 4]))
    model.graph.value_info.append(helper.make_tensor_value_info("y", 1, ["N", 3, 4, 5]))
    after = pruned(model).model.to_proto()
    assert [n.name for n in after.graph.node] == ["n0", "n5", "n6", "n7"]
    assert [n.doc_string for n in after.graph.node] == [f"node {n.name[1:]}" for n in after.graph.node]
    assert [v.name for v in after.graph.value_info] == ["y"]


@pytest.mark.parametrize("checked", ["another order", "re-trace", "masked"])
def test_a_wrong_order_is_found(checked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = silence(shuffled(2), {"w": (1, SILENT)})
    result = pruned(model)
    after = result.model.to_proto()
    name = next(n.input[1] for n in after.graph.node if n.op_type == "Gather")
    order = array(after, name)
    replace(after, name, np.roll(order, 1))
    if checked != "another order":
        monkeypatch.setattr("onnxprune.pipeline.auditing._is_slice", lambda *_: True)
    if checked == "masked":
        monkeypatch.setattr("onnxprune.pipeline.stages.retrace", lambda *_: 1)
    with pytest.raises(CheckFailed, match=checked):
        onnxprune.verify(model, after, result.plan, residual="all")


def test_rows_without_a_common_divisor_take_their_share_of_a_global_budget() -> None:
    """The 3 x 20 channels between two grouped convolutions meet in cells of 7 and 6: one step would be all or nothing."""
    body = """
        a = Conv(x, w0)
        b = Conv<group = 3>(a, w1)
        r = Reshape(b, apart) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) s = Reshape(t, joint)
        c = Relu(s)
        d = Conv<group = 3>(c, w2)
        p = GlobalAveragePool(d) f = Flatten(p) y = Gemm<transB = 1>(f, wo)
    """
    model = graph(
        "(float[N, 3, 4, 4] x) => (float[N, 5] y)", body, w0=(48, 3, 1, 1), w1=(60, 16, 1, 1), w2=(30, 20, 1, 1),
        wo=(5, 30), apart=np.array([0, 3, 20, 4, 4]), joint=np.array([0, 60, 4, 4]),
    )  # fmt: skip
    found = shapes(pruned(model, ratio=0.3, scope="global"))
    for name, n in (("w0", 48), ("w1", 60), ("w2", 30)):
        assert 0.45 * n <= found[name][0] <= 0.9 * n, (name, found[name])
