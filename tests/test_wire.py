"""ONNX files read and written around the bytes of their weights."""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.model import Model, Weight, wire
from onnxprune.rewrite import take
from onnxprune.trace import Block

RNG = np.random.default_rng(0)


def model(odd_name: bool = False) -> ModelProto:
    """Weights of many sizes and kinds, at offsets that are not aligned where `odd_name` is."""
    arrays = {
        "large" + "x" * odd_name: RNG.standard_normal((64, 300)).astype(np.float32),
        "small": RNG.standard_normal(3).astype(np.float32),
        "half": RNG.standard_normal((5000,)).astype(np.float16),
        "indices": np.arange(2000),
    }
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    tensors[0].doc_string = "said of it"
    tensors.append(helper.make_tensor("typed", TensorProto.FLOAT, [2000], RNG.standard_normal(2000)))
    tensors.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"one", b"two"]))
    tensors.append(helper.make_tensor("packed", TensorProto.INT4, [9000], RNG.integers(-8, 8, 9000)))
    nodes = [helper.make_node("Identity", [t.name], [f"{t.name}_out"], name=t.name) for t in tensors]
    outputs = [helper.make_tensor_value_info(f"{t.name}_out", t.data_type, t.dims) for t in tensors]
    graph = helper.make_graph(nodes, "g", [], outputs, tensors, doc_string="the graph")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="test")


def same(a: ModelProto, b: ModelProto) -> bool:
    """Equal, whichever way the values are written."""
    values = [[(t.name, t.data_type, numpy_helper.to_array(t).tolist()) for t in m.graph.initializer] for m in (a, b)]
    for m in (a, b):
        del m.graph.initializer[:]
    return values[0] == values[1] and a.SerializeToString() == b.SerializeToString()


@pytest.mark.parametrize("odd_name", [False, True])
def test_a_file_comes_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd_name: bool) -> None:
    onnx.save(model(odd_name), tmp_path / "a.onnx")
    for small in (wire.SMALL, 16):
        monkeypatch.setattr(wire, "SMALL", small)
        Model.load(tmp_path / "a.onnx").save(tmp_path / "b.onnx")
        assert same(onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "b.onnx"))


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    proto = model(odd_name=True)
    onnx.save(proto, tmp_path / "a.onnx")
    loaded = Model.load(tmp_path / "a.onnx")
    weight = loaded.weights["largex"]
    expected = numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_array_equal(weight.array(), expected)
    weight.release()
    np.testing.assert_array_equal(weight.array(), expected)
    assert not weight.array().flags.writeable
    assert loaded.skeleton.ByteSize() < 3000


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 255, 256, 16383, 16384, 16385])
def test_lengths_take_as_many_bytes_as_protobuf_gives_them(length: int, tmp_path: Path) -> None:
    """In seven bits each: as the length of a weight, of the graph around it, of its name and of what follows it."""
    for most in (16, 4096):
        tensor = numpy_helper.from_array(np.arange(length, dtype=np.uint8), "n" * max(length, 1))
        node = helper.make_node("Identity", [tensor.name], ["y"])
        graph = helper.make_graph([node], "g", [], [], [tensor], doc_string="d" * length)
        proto = helper.make_model(graph, doc_string="e" * length)
        onnx.save(proto, tmp_path / "a.onnx")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wire, "SMALL", most)
            with (tmp_path / "a.onnx").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
                found = wire.skeleton(held)
                assert [held[a:b] for a, b in found.held.values()] == [tensor.raw_data] * len(found.held)
            assert bool(found.held) == (len(tensor.SerializeToString()) > most)
            bare = ModelProto.FromString(found.data)
            assert (bare.doc_string, bare.graph.doc_string) == (proto.doc_string, graph.doc_string)
            assert bare.graph.initializer[0].name == tensor.name
            Model.load(tmp_path / "a.onnx").save(tmp_path / "b.onnx")
            assert same(onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "b.onnx"))


def test_two_graphs_in_one_file_are_one(tmp_path: Path) -> None:
    """Protobuf merges what comes twice, so that files that were put together are one model."""
    one, two = model(), ModelProto()
    two.graph.initializer.append(numpy_helper.from_array(np.ones((50, 50), np.float32), "more"))
    data = one.SerializeToString() + two.SerializeToString()
    (tmp_path / "a.onnx").write_bytes(data)
    assert same(Model.load(tmp_path / "a.onnx").to_proto(), ModelProto.FromString(data))


def test_damage_is_one_line_wherever_it_is(tmp_path: Path) -> None:
    data = model().SerializeToString()
    path = tmp_path / "a.onnx"
    for at in RNG.integers(8, len(data), 150):
        path.write_bytes(data[:at])
        with pytest.raises(UsageError):
            Model.load(path)
    for at in (*range(60), *RNG.integers(0, len(data), 150)):
        broken = bytearray(data)
        broken[at] ^= 1 << int(RNG.integers(8))
        path.write_bytes(broken)
        with contextlib.suppress(UsageError):  # not all damage shows, but what does is ours to say
            Model.load(path)


def test_what_is_cut_from_a_large_weight_is_cut_when_it_is_needed() -> None:
    array = RNG.standard_normal((600, 700)).astype(np.float32)
    kept = np.ones(2001, bool)
    kept[1:601:3] = kept[601:1301:2] = False
    blocks = [Block((0,), np.arange(1, 601)), Block((1,), np.arange(601, 1301))]
    part = take(Weight.of(array), blocks, kept)
    assert part.shape == (400, 350)
    assert part.nbytes == 400 * 350 * 4
    values = part.array()
    assert part.array() is values, "as long as somebody has them, they are not made again"
    np.testing.assert_array_equal(values, array[np.ix_(kept[1:601], kept[601:1301])])
    again = take(part, [Block((0,), np.arange(1301, 1701))], kept)
    np.testing.assert_array_equal(again.array(), values)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("shift", [0, 1])
def test_cutting_is_indexing(axes: tuple[int, ...], shift: int) -> None:
    """Aligned or not."""
    shape = (70, 40, 50)
    data = RNG.standard_normal(shape).astype(np.float32).tobytes()
    array = np.frombuffer(bytes(shift) + data, np.float32, 70 * 40 * 50, shift).reshape(shape)
    kept, start, blocks, index = RNG.random(200) < 0.6, 1, [], [np.arange(n) for n in shape]
    for axis in axes:
        ids = np.arange(start, start + shape[axis])
        start += shape[axis]
        blocks.append(Block((axis,), ids))
        index[axis] = np.flatnonzero(kept[ids])
    np.testing.assert_array_equal(take(Weight.of(array), blocks, kept).array(), array[np.ix_(*index)])
