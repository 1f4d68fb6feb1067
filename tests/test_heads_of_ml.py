"""A small network in front of what scikit-learn's converters write: columns go from attributes, and answers stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import inputs, replace, run, silence
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.api import inspect, prune, verify
from onnxprune.errors import CheckFailed

COLUMNS, GONE = 12, (1, 4, 5, 8, 10, 11)
RANDOM = np.random.default_rng(3)


def drawn(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def without(values: NDArray[np.float32]) -> list[float]:
    """The columns that go hold nothing: what measures distances has no share in them either."""
    values = values.copy()
    values[..., list(GONE)] = 0
    return [float(x) for x in values.ravel()]


def ml(op_type: str, ins: Sequence[str], outs: Sequence[str], **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, ins, outs, domain="ai.onnx.ml", **attributes)


LABEL = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])
SCORES = helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", None])
NAMED = helper.make_value_info(
    "z", helper.make_sequence_type_proto(helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, None)))
)
CLASSES = {"classlabels_ints": [4, 5, 6]}
COEFFICIENTS = {"coefficients": drawn(3, COLUMNS).ravel().tolist(), "intercepts": [0.1, 0.2, 0.3]}
VECTORS = {"support_vectors": without(drawn(6, COLUMNS)), "kernel_params": [0.1, 0.5, 3.0]}
TREE = {
    "nodes_treeids": [0] * 5, "nodes_nodeids": [0, 1, 2, 3, 4], "nodes_featureids": [7, 2, 0, 0, 0],
    "nodes_values": [0.1, 0.2, 0.0, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "BRANCH_LT", "LEAF", "LEAF", "LEAF"],
    "nodes_truenodeids": [1, 3, 0, 0, 0], "nodes_falsenodeids": [2, 4, 0, 0, 0],
}  # fmt: skip
TREE_5 = {
    "n_targets": 1, "aggregate_function": 1, "post_transform": 0, "tree_roots": [0], "nodes_featureids": [7, 2],
    "nodes_modes": numpy_helper.from_array(np.zeros(2, np.uint8)), "nodes_truenodeids": [1, 0],
    "nodes_splits": numpy_helper.from_array(np.float32([0.1, 0.2])), "nodes_trueleafs": [0, 1],
    "nodes_falsenodeids": [2, 1], "nodes_falseleafs": [1, 1], "leaf_targetids": [0, 0, 0],
    "leaf_weights": numpy_helper.from_array(np.float32([1, 2, 3])),
}  # fmt: skip


def machine(kind: str, kernel: str) -> list[NodeProto]:
    if kind == "SVMRegressor":
        return [ml(kind, ["t"], ["p"], kernel_type=kernel, coefficients=[0.3, -0.4, 0.5, 0.1, -0.6, 0.2], n_supports=6,
                   rho=[0.3], **VECTORS)]  # fmt: skip
    more = {"coefficients": drawn(2, 6).ravel().tolist(), "vectors_per_class": [2, 2, 2], "rho": [0.1, 0.2, 0.3]}
    return [ml(kind, ["t"], ["label", "p"], kernel_type=kernel, **more, **VECTORS, **CLASSES)]


HEADS: dict[str, tuple[list[NodeProto], list[ValueInfoProto]]] = {
    "LinearRegressor": ([ml("LinearRegressor", ["t"], ["p"], targets=3, **COEFFICIENTS)], [SCORES]),
    "LinearClassifier": (
        [
            ml("LinearClassifier", ["t"], ["label", "q"], post_transform="LOGISTIC", **COEFFICIENTS, **CLASSES),
            ml("Normalizer", ["q"], ["p"], norm="L1"),
            ml("ZipMap", ["p"], ["z"], classlabels_int64s=[4, 5, 6]),
        ],
        [LABEL, NAMED],
    ),
    "Scaler": (
        [
            ml("Scaler", ["t"], ["s"], offset=[0.0] * COLUMNS, scale=[1 + k / 9 for k in range(COLUMNS)]),
            ml("LinearClassifier", ["s"], ["label", "p"], post_transform="SOFTMAX", **COEFFICIENTS, **CLASSES),
        ],
        [LABEL, SCORES],
    ),
    **{f"{k} {kernel}": (machine(k, kernel), [LABEL, SCORES] if k == "SVMClassifier" else [SCORES])
       for k in ("SVMRegressor", "SVMClassifier") for kernel in ("LINEAR", "POLY", "RBF")},
    "SVMRegressor without vectors": (
        [ml("SVMRegressor", ["t"], ["p"], kernel_type="LINEAR", kernel_params=[0.1, 0.0, 3.0], rho=[0.3],
            coefficients=drawn(COLUMNS).tolist())],
        [SCORES],
    ),
    "TreeEnsembleRegressor": (
        [ml("TreeEnsembleRegressor", ["t"], ["p"], n_targets=1, target_treeids=[0] * 3, target_nodeids=[2, 3, 4],
            target_ids=[0] * 3, target_weights=[1.0, 2.0, 3.0], **TREE)],
        [SCORES],
    ),
    "TreeEnsembleClassifier": (
        [ml("TreeEnsembleClassifier", ["t"], ["label", "p"], class_treeids=[0] * 3, class_nodeids=[2, 3, 4],
            class_ids=[0, 1, 1], class_weights=[1.0, 2.0, 3.0], classlabels_int64s=[0, 1], **TREE)],
        [LABEL, SCORES],
    ),
    "TreeEnsemble": ([ml("TreeEnsemble", ["t"], ["p"], **TREE_5)], [SCORES]),
}  # fmt: skip


def network(head: str) -> onnx.ModelProto:
    """Two layers with a Tanh between them and the head; its columns that go are zero there."""
    nodes, outputs = HEADS[head]
    layers = [
        helper.make_node("Gemm", ["x", "A"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "B", "b"], ["c"]),
        helper.make_node("Tanh", ["c"], ["t"]),
    ]
    weights = {"A": drawn(6, 16), "B": drawn(16, COLUMNS), "b": drawn(COLUMNS)}
    graph = helper.make_graph(
        [*layers, *nodes], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])], outputs,
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )  # fmt: skip
    versions = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 5 if head == "TreeEnsemble" else 3)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=8)
    silence(model, {"A": (1, range(0, 16, 2)), "B": (0, range(0, 16, 2))})
    return silence(model, {"B": (1, GONE), "b": (0, GONE)})


@pytest.mark.parametrize("head", HEADS)
def test_columns_go_and_answers_stay(head: str) -> None:
    model = network(head)
    result = prune(model, ratio=0.5, fast=True)
    assert result.model.weights["B"].shape == (8, 7 if "Tree" in head else 6)  # half of those that may go
    after = result.model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    for batch in (1, 4):
        feeds = inputs(model, batch, batch)
        for expected, got in zip(run(model, feeds), run(after, feeds), strict=True):
            if isinstance(expected, list):  # of dictionaries
                expected, got = ([sorted(d.items()) for d in x] for x in (expected, got))
            np.testing.assert_allclose(np.array(got, float), np.array(expected, float), rtol=1e-4, atol=1e-5)


def test_a_column_that_a_tree_asks_for_stays() -> None:
    model = network("TreeEnsembleRegressor")
    weight = drawn(16, COLUMNS)
    weight[:, [7, 2]] *= 1e-3  # the least important ones
    bias = drawn(COLUMNS)
    replace(model, "B", weight)
    replace(model, "b", bias)
    after = prune(model, ratio=0.5, fast=True).model
    kept = np.flatnonzero(np.isin(bias, after.weights["b"].array())).tolist()
    assert {7, 2} <= set(kept) < set(range(COLUMNS))
    tree = next(n for n in after.graph.node if n.op_type == "TreeEnsembleRegressor")
    asked = next(list(a.ints) for a in tree.attribute if a.name == "nodes_featureids")
    assert asked[:2] == [kept.index(7), kept.index(2)]


@pytest.mark.parametrize(
    ("head", "name", "by"),
    [("LinearRegressor", "coefficients", 1), ("LinearClassifier", "coefficients", 6), ("Scaler", "scale", 1),
     ("SVMClassifier RBF", "support_vectors", 1), ("TreeEnsembleRegressor", "nodes_featureids", 1)],
)  # fmt: skip
def test_attributes_that_are_cut_in_another_place_are_found(head: str, name: str, by: int) -> None:
    model = network(head)
    replace(model, "B", drawn(16, COLUMNS))
    replace(model, "b", drawn(COLUMNS))
    result = prune(model, ratio=0.5, fast=True)
    after = result.model.to_proto()
    verify(model, after, result.plan)
    attribute = next(a for n in after.graph.node if n.domain == "ai.onnx.ml" for a in n.attribute if a.name == name)
    values = attribute.floats or attribute.ints
    values[:] = np.roll(values, by).tolist()
    with pytest.raises(CheckFailed):
        verify(model, after, result.plan)


def test_what_is_not_followed_stays_and_says_so() -> None:
    """Coefficients that are no whole rows of columns belong to a file that something is wrong with."""
    model = network("LinearRegressor")
    head = next(n for n in model.graph.node if n.op_type == "LinearRegressor")
    next(a for a in head.attribute if a.name == "coefficients").floats.append(1.0)
    reasons = {f.reason for f in inspect(model).frozen}
    assert "its columns are not followed" in reasons
