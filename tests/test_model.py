"""Storage: what is loaded, kept, normalised and written, and what a failure leaves behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.files import same_file
from onnxprune.model import Model, Weight

RNG = np.random.default_rng(0)
W1 = RNG.standard_normal((8, 600)).astype(np.float32)
W2 = RNG.standard_normal((600, 4)).astype(np.float32)
B2 = RNG.standard_normal(4).astype(np.float32)


def make(nodes: Sequence[onnx.NodeProto], weights: dict[str, Any], out: int = 4, **kw: Any) -> ModelProto:
    tensors = [w if isinstance(w, TensorProto) else numpy_helper.from_array(w, n) for n, w in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", out])
    opsets = [helper.make_opsetid("", 20), *kw.pop("opsets", ())]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors, **kw.pop("graph", {}))
    return helper.make_model(graph, opset_imports=opsets, **{"ir_version": 10, **kw})


def mlp() -> ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], name="fc1"),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["y"]),
    ]
    return make(nodes, {"w1": W1, "w2": W2, "b2": B2})


def run(source: bytes | str | Path, size: int = 3) -> np.ndarray:
    session = ort.InferenceSession(
        source if isinstance(source, bytes) else str(source), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(1).standard_normal((size, 8)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


def whole(path: Path) -> ModelProto:
    """The file as onnx reads it, less the marks that onnx leaves on tensors that were external."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        tensor.ClearField("data_location")
    return proto


@pytest.fixture
def single(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    onnx.save(mlp(), path)
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    path = tmp_path / "big" / "in.onnx"
    path.parent.mkdir()
    onnx.save(mlp(), path, save_as_external_data=True, location="weights.bin", size_threshold=16)
    return path


def redirect(path: Path, location: str) -> Path:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())
    return path


def rich() -> ModelProto:
    """A model that uses what tools like to drop."""
    scale = helper.make_function(
        "local", "Scale", ["a"], ["b"],
        [helper.make_node("Constant", [], ["two"], value_float=2.0), helper.make_node("Mul", ["a", "two"], ["b"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    typed = helper.make_tensor("b2", TensorProto.FLOAT, [4], B2)
    typed.doc_string = "a bias"
    typed.metadata_props.add(key="origin", value="fc2")
    values = numpy_helper.from_array(np.array([1, 2], np.float32), "sparse")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 3])), [4])
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], doc_string="first"),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["z"], name="fc2"),
        helper.make_node("Scale", ["z"], ["s"], domain="local"),
        helper.make_node("Add", ["s", "sparse"], ["y"]),
    ]
    weights = {
        "w1": W1, "w2": W2, "b2": typed, "words": np.array(["a", "bc"], object),
        "nibbles": np.array([1, -2, 3], ml_dtypes.int4), "bf": np.ones(3, ml_dtypes.bfloat16),
    }  # fmt: skip
    proto = make(
        nodes, weights, functions=[scale], opsets=[helper.make_opsetid("local", 1)], domain="org.test",
        model_version=7, doc_string="doc", producer_name="maker", graph={"sparse_initializer": [sparse]},
    )  # fmt: skip
    helper.set_model_props(proto, {"author": "someone"})
    proto.graph.metadata_props.add(key="k", value="v")
    proto.graph.quantization_annotation.add(tensor_name="w1")
    proto.training_info.add().algorithm.name = "sgd"
    return proto


def test_single_file_round_trip(single: Path, tmp_path: Path) -> None:
    before, out = single.read_bytes(), tmp_path / "out.onnx"
    model = Model.load(single)
    assert all(not t.raw_data and not t.float_data for t in model.graph.initializer)
    model.save(out)
    assert onnx.load(out) == onnx.load(single)
    assert single.read_bytes() == before
    assert abs(model.size() - out.stat().st_size) < 64
    assert sorted(os.listdir(tmp_path)) == ["in.onnx", "out.onnx"]


def test_external_round_trip(external: Path, tmp_path: Path) -> None:
    model = Model.load(external)
    assert not model.weights["w1"].array().flags.writeable
    model.save(out := tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["out.onnx", "out.onnx.data"]
    assert whole(out) == mlp()
    np.testing.assert_array_equal(run(out), run(external))
    model.save(out, external=False)
    assert ModelProto.FromString(out.read_bytes()) == mlp()


def test_external_data_is_aligned(single: Path, tmp_path: Path) -> None:
    model = Model.load(single)
    model.weights["big"] = Weight.of(np.zeros(40_000, np.float32))
    model.save(out := tmp_path / "out.onnx", external=True)
    where = {
        t.name: {e.key: e.value for e in t.external_data}
        for t in onnx.load(out, load_external_data=False).graph.initializer
    }
    assert int(where["w2"]["offset"]) % 64 == 0
    assert int(where["big"]["offset"]) % 4096 == 0
    assert not where["b2"]  # small tensors stay in the model


def test_saving_over_the_own_external_source_keeps_the_weights(external: Path) -> None:
    model = Model.load(external)
    expected = run(external)
    model.save(external)
    model.save(external)
    np.testing.assert_array_equal(run(external), expected)


def test_saving_never_overwrites_the_data_of_the_source(external: Path) -> None:
    other = external.with_name("weights.bin")
    with pytest.raises(UsageError, match="overwrite the weights"):
        Model.load(external).save(other)


@pytest.mark.parametrize("as_external", [False, True])
def test_nothing_is_dropped(tmp_path: Path, as_external: bool) -> None:
    proto = rich()
    Model.load(proto).save(out := tmp_path / "out.onnx", external=as_external)
    assert whole(out) == proto
    again = Model.load(out)
    for name in (
        "metadata_props",
        "functions",
        "training_info",
        "opset_import",
        "domain",
        "model_version",
        "doc_string",
    ):
        assert getattr(again.skeleton, name) == getattr(proto, name)
    for name in ("sparse_initializer", "quantization_annotation", "metadata_props", "node"):
        assert getattr(again.graph, name) == getattr(proto.graph, name)
    bias = next(t for t in again.graph.initializer if t.name == "b2")
    assert bias.doc_string == "a bias"
    assert bias.metadata_props[0].value == "fc2"
    assert again.weights["words"].array().tolist() == ["a", "bc"]
    assert again.weights["nibbles"].array().astype(int).tolist() == [1, -2, 3]
    assert again.weights["bf"].dtype == ml_dtypes.bfloat16


def test_normalised_inlines_functions_and_densifies_sparse_initializers() -> None:
    model = Model.load(rich())
    proto = model.skeleton.SerializeToString()
    normal = model.normalised()
    assert [n.op_type for n in normal.graph.node] == ["Gemm", "Gemm", "Mul", "Add"]
    assert len({n.name for n in normal.graph.node} - {""}) == 4
    assert normal.graph.node[1].name == "fc2"
    assert normal.weights["sparse"].array().tolist() == [1, 0, 0, 2]
    assert {m.key for m in normal.skeleton.metadata_props} == {"author"}
    assert model.skeleton.SerializeToString() == proto
    assert "sparse" not in model.weights


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"value": numpy_helper.from_array(B2)}, B2),
        ({"value_float": 1.5}, np.float32(1.5)),
        ({"value_floats": [1.5, 2.0]}, np.array([1.5, 2], np.float32)),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [3, 4]}, np.array([3, 4])),
        ({"value_string": "a"}, np.array("a", object)),
        ({"value_strings": ["a", "b"]}, np.array(["a", "b"], object)),
    ],
)
def test_constant_nodes_become_initializers(attribute: dict[str, Any], expected: np.ndarray) -> None:
    nodes = [helper.make_node("Constant", [], ["c"], **attribute), helper.make_node("Gemm", ["x", "w"], ["y"])]
    normal = Model.load(make(nodes, {"w": W1[:, :4]})).normalised()
    assert [n.op_type for n in normal.graph.node] == ["Gemm"]
    array = normal.weights["c"].array()
    assert array.dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(array, expected)
    run(normal.session_source())


@pytest.mark.parametrize("width", [4, 16])
def test_only_large_constant_of_shape_becomes_a_weight(width: int) -> None:
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[8, width]),
        helper.make_node("ConstantOfShape", ["shape"], ["w"], value=helper.make_tensor("v", 1, [1], [0.5])),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = Model.load(make(nodes, {}, width))
    normal = model.normalised()
    assert ("w" in normal.weights) == (width == 16)
    np.testing.assert_array_equal(run(normal.session_source()), run(model.session_source()))


def test_normalised_sorts_nodes_and_makes_names_unique() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, ["n", 4])]
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="same", then_branch=body, else_branch=body),
        helper.make_node("Gemm", ["x", "w"], ["h"], name="same"),
        helper.make_node("Relu", ["h"], ["dead"], name="Gemm_1"),
    ]
    graph = Model.load(make(nodes, {"w": W1[:, :4], "c": np.array(True)})).normalised().graph
    assert [n.op_type for n in graph.node] == ["Gemm", "If", "Relu"]
    assert len({n.name for n in graph.node}) == 3


def test_a_cycle_is_a_usage_error() -> None:
    nodes = [helper.make_node("Add", ["x", "y"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    with pytest.raises(UsageError, match="cycle"):
        Model.load(make(nodes, {})).normalised()


def test_old_files_keep_listing_initializers_as_inputs() -> None:
    nodes = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W1[:, :4].copy()))]
    proto = make([*nodes, helper.make_node("MatMul", ["x", "w"], ["y"])], {}, ir_version=3)
    normal = Model.load(proto).normalised()
    assert [i.name for i in normal.graph.input] == ["x", "w"]
    onnx.checker.check_model(normal.to_proto())


def test_edits_reach_the_file_and_copies_are_independent(tmp_path: Path) -> None:
    proto = mlp()
    proto.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, W1.shape))
    model = Model.load(proto)
    edited = model.copy()
    edited.weights["w1"] = Weight.of(W1[:, ::2])
    edited.weights["w2"] = Weight.of(W2[::2].astype(np.float64), TensorProto.FLOAT)
    edited.save(out := tmp_path / "out.onnx")
    saved = onnx.load(out)
    onnx.checker.check_model(saved, full_check=True)
    assert [d.dim_value for d in saved.graph.input[1].type.tensor_type.shape.dim] == [8, 300]
    np.testing.assert_array_equal(numpy_helper.to_array(saved.graph.initializer[0]), W1[:, ::2])
    assert model.to_proto() == proto


def test_weights_in_subgraphs_are_read_from_external_data(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, ["n", 4])],
        [numpy_helper.from_array(W1[:, :4].copy(), "w")],
    )  # fmt: skip
    proto = make([helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)], {"c": np.array(True)})
    inner = proto.graph.node[0].attribute[0].g.initializer[0]
    (tmp_path / "w.bin").write_bytes(inner.raw_data)
    onnx.external_data_helper.set_external_data(inner, "w.bin", 0, len(inner.raw_data))
    inner.ClearField("raw_data")
    path = tmp_path / "in.onnx"
    path.write_bytes(proto.SerializeToString())
    Model.load(path).save(out := tmp_path / "out.onnx", external=False)
    (tmp_path / "w.bin").unlink()
    assert run(out).shape == (3, 4)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: None, "does not exist"),
    "folder": (lambda p: p.mkdir(), "is a folder"),
    "empty": (lambda p: p.touch(), "is empty"),
    "text": (lambda p: p.write_text("hello\n" * 50), "text file"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "zip": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(99)), "another format"),
    "binary": (lambda p: p.write_bytes(bytes([255, 1, 2, 3]) * 99), "not an ONNX model"),
    "truncated": (lambda p: p.write_bytes(mlp().SerializeToString()[:-5000]), "truncated"),
    "no graph": (lambda p: p.write_bytes(ModelProto(ir_version=8).SerializeToString()), "not a complete"),
    "no nodes": (lambda p: p.write_bytes(make([], {}).SerializeToString()), "no nodes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line_usage_errors(tmp_path: Path, case: str) -> None:
    prepare, message = BAD[case]
    prepare(path := tmp_path / "bad.onnx")
    with pytest.raises(UsageError, match=message) as caught:
        Model.load(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_damaged_weights_are_refused() -> None:
    proto = mlp()
    proto.graph.initializer[0].raw_data = b"123"
    with pytest.raises(UsageError, match="'w1'"):
        Model.load(proto)
    with pytest.raises(UsageError, match="list"):
        Model.load([])


def test_missing_and_truncated_external_data(external: Path) -> None:
    data = external.with_name("weights.bin")
    data.write_bytes(data.read_bytes()[:-9])
    with pytest.raises(UsageError, match="truncated"):
        Model.load(external)
    data.unlink()
    with pytest.raises(UsageError, match="is missing"):
        Model.load(external)
    with pytest.raises(UsageError, match="load the model from its path"):
        Model.load(onnx.load(external, load_external_data=False))


@pytest.mark.parametrize("location", ["../weights.bin", "a/../../weights.bin", "..\\weights.bin", "C:\\w.bin", ""])
def test_external_paths_stay_in_the_folder(external: Path, location: str) -> None:
    external.with_name("weights.bin").rename(external.parent.parent / "weights.bin")
    with pytest.raises(UsageError, match="outside the model's folder"):
        Model.load(redirect(external, location))


def test_external_links_and_absolute_paths_stay_in_the_folder(external: Path, tmp_path: Path) -> None:
    data = external.with_name("weights.bin")
    with pytest.raises(UsageError, match="outside"):
        Model.load(redirect(external, str(data)))
    redirect(external, "weights.bin")
    data.rename(tmp_path / "elsewhere.bin")
    data.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(UsageError, match="outside"):
        Model.load(external)


def test_a_download_cache_of_links_loads(external: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("in.onnx", "weights.bin"):
        (cache / name).symlink_to(external.with_name(name))
    assert Model.load(cache / "in.onnx").to_proto() == mlp()


def fail_at(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, error: BaseException, after: int = 0) -> None:
    """Let `target.name` work `after` times, then raise `error`, once."""
    real, calls = getattr(target, name), iter(range(10**6))

    def wrapper(*args: Any, **kw: Any) -> Any:
        if next(calls) == after:
            raise error
        return real(*args, **kw)

    monkeypatch.setattr(target, name, wrapper)


FULL = OSError(errno.ENOSPC, "No space left on device")


STEPS = [(False, "fsync", 1), (False, "replace", 1), (True, "fsync", 3), (True, "replace", 4), (True, "link", 1)]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize(("as_external", "call", "after"), [(e, c, i) for e, c, n in STEPS for i in range(n)])
def test_a_failed_save_keeps_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_external: bool, error: BaseException, call: str, after: int
) -> None:
    old = Model.load(mlp())
    old.save(out := tmp_path / "out.onnx", external=as_external)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    new = old.copy()
    new.weights["w1"] = Weight.of(W1 * 2)
    fail_at(monkeypatch, os, call, error, after)
    with pytest.raises(RuntimeFailure if error is FULL else type(error)) as caught:
        new.save(out, external=as_external)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    if error is FULL:
        assert "no space left" in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    new.save(out, external=as_external)
    assert whole(out) == new.to_proto()
    assert {p.name for p in tmp_path.iterdir()} == set(before)


def test_bad_targets_are_usage_errors(single: Path, tmp_path: Path) -> None:
    model = Model.load(single)
    for target, message in ((tmp_path / "no" / "out.onnx", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(UsageError, match=message):
            model.save(target)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        model.save(tmp_path / "pipe")


def test_too_large_for_one_protobuf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onnxprune.model.model.PROTOBUF_LIMIT", 10_000)
    monkeypatch.setattr("onnxprune.model.model.SESSION_LIMIT", 10_000)
    model = Model.load(mlp())
    with pytest.raises(UsageError, match="external data"):
        model.save(tmp_path / "out.onnx", external=False)
    model.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").exists()
    source = model.session_source()
    assert isinstance(source, str)
    np.testing.assert_array_equal(run(source), run(mlp().SerializeToString()))


def test_graphsurgeon_graphs_load() -> None:
    gs = pytest.importorskip("onnx_graphsurgeon")
    source = Model.load(gs.import_onnx(mlp())).session_source()
    assert isinstance(source, bytes)
    np.testing.assert_array_equal(run(source), run(mlp().SerializeToString()))


@pytest.mark.parametrize("kind", ["float32", "float16", "int64", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_weights_of_arrays(kind: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, kind)
    weight = Weight.of(array)
    tensor = TensorProto(name="t", doc_string="kept")
    weight.fill(tensor)
    assert (weight.shape, weight.size, weight.nbytes) == (array.shape, array.size, array.nbytes)
    assert len(weight.raw() or b"") == array.nbytes
    assert (tensor.name, tensor.doc_string) == ("t", "kept")
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), array)


def test_packed_weights_can_be_sliced_and_saved() -> None:
    weight = Weight.of(np.arange(-3, 4).astype(ml_dtypes.int4))
    part = Weight.of(weight.array()[1:4])
    assert (weight.nbytes, part.nbytes, len(part.raw() or b"")) == (4, 2, 2)
    assert part.onnx_type == TensorProto.INT4
    assert part.array().astype(int).tolist() == [-2, -1, 0]


def test_same_file_sees_through_links(single: Path, tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(single)
    assert same_file(single, tmp_path / "link.onnx")
    assert same_file(tmp_path / "new", tmp_path / "." / "new")
    assert not same_file(single, tmp_path / "new")
