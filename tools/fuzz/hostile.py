"""Damages that someone means: files that grow when they are read, nest without end, or point out of their folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from mutate import SIZES, NothingToDamage, mutator, pick, weight
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

OnFile = Callable[[Random, ModelProto, Path], None]
OnBytes = Callable[[Random, bytes, list[tuple[int, int]]], bytes]
FILES: dict[str, OnFile] = {}
BYTES: dict[str, OnBytes] = {}
HUGE = (2**24, 2**28, 2**31, 2**33, 2**40, 2**62)


def _feed(rng: Random, model: ModelProto, nodes: list[NodeProto], out: str) -> None:
    """`nodes` make `out`, which a node of the graph reads from now on in place of something else."""
    chosen = pick(rng, [n for n in model.graph.node if n.input])
    chosen.input[rng.randrange(len(chosen.input))] = out
    for k, new in enumerate(nodes):
        model.graph.node.insert(k, new)


def _ints(model: ModelProto, name: str, *values: int) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


@mutator
def bomb(rng: Random, model: ModelProto) -> None:
    """A few bytes that ask for gigabytes when they are computed."""
    many = rng.choice(HUGE)
    made = helper.make_node
    one = "bomb_one"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.float32), one))
    kind = rng.choice(("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "OneHot", "EyeLike", "doubling"))
    if kind == "ConstantOfShape":
        shape = rng.choice(((many,), (many, 1), (64, 64), (2**13, 2**13), (2**16, 2**9), (many, many)))
        nodes = [made(kind, [_ints(model, "bomb_shape", *shape)], ["bomb"])]
    elif kind == "Expand":
        nodes = [made(kind, [one, _ints(model, "bomb_shape", many, 1)], ["bomb"])]
    elif kind == "Tile":
        nodes = [made(kind, [one, _ints(model, "bomb_shape", many, rng.choice((1, 2, many)))], ["bomb"])]
    elif kind == "Range":
        for name, value in (("bomb_from", 0), ("bomb_to", many), ("bomb_by", rng.choice((1, 1, 0)))):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        nodes = [made(kind, ["bomb_from", "bomb_to", "bomb_by"], ["bomb"])]
    elif kind == "Pad":
        nodes = [made(kind, [one, _ints(model, "bomb_shape", 0, 0, many, rng.choice((0, many)))], ["bomb"])]
    elif kind == "Resize":
        model.graph.initializer.append(numpy_helper.from_array(np.array([many, 1], np.float32), "bomb_scales"))
        nodes = [made(kind, [one, "", "bomb_scales"], ["bomb"])]
    elif kind == "OneHot":
        model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1], np.float32), "bomb_values"))
        indices, depth = _ints(model, "bomb_indices", 1, 2, 3), _ints(model, "bomb_depth", many)
        nodes = [made(kind, [indices, depth, "bomb_values"], ["bomb"])]
    elif kind == "EyeLike":
        shaped = made("ConstantOfShape", [_ints(model, "bomb_shape", many, many)], ["bomb_like"])
        nodes = [shaped, made(kind, ["bomb_like"], ["bomb"])]
    else:  # every step twice as long as the last
        nodes = [made("Concat", [one if not k else f"bomb_{k}"] * 2, [f"bomb_{k + 1}"], axis=0) for k in range(60)]
        nodes.append(made("Identity", ["bomb_60"], ["bomb"]))
    _feed(rng, model, nodes, "bomb")


@mutator
def bomb_of_constants(rng: Random, model: ModelProto) -> None:
    """Many large tensors, each of them allowed."""
    shape = _ints(model, "bomb_shape", 2**13, 2**12)
    nodes = [helper.make_node("ConstantOfShape", [shape], [f"bomb_{k}"]) for k in range(rng.choice((8, 64)))]
    nodes.append(helper.make_node("Sum", [n.output[0] for n in nodes], ["bomb"]))
    _feed(rng, model, nodes, "bomb")


@mutator
def long_chain(rng: Random, model: ModelProto) -> None:
    many = rng.choice((300, 1000, 5000))  # at 20,000 the planner of ONNX Runtime takes minutes
    chosen = pick(rng, [n for n in model.graph.node if n.input and n.input[0]])
    source, chosen.input[0] = chosen.input[0], f"chain_{many}"
    kind = rng.choice(("Identity", "Neg", "Relu"))
    steps = [helper.make_node(kind, [source if not k else f"chain_{k}"], [f"chain_{k + 1}"]) for k in range(many)]
    model.graph.node.extend(steps if rng.random() < 0.5 else reversed(steps))


@mutator
def wide_node(rng: Random, model: ModelProto) -> None:
    chosen = pick(rng, [n for n in model.graph.node if n.input and n.input[0]])
    source, chosen.input[0] = chosen.input[0], "wide"
    model.graph.node.append(helper.make_node(rng.choice(("Sum", "Max", "Concat")), [source] * 5000, ["wide"], axis=1))


@mutator
def deep_bodies(rng: Random, model: ModelProto) -> None:
    """An If inside an If inside an If: protobuf itself refuses what is deeper than it can nest."""
    depth = rng.choice((3, 10, 24, 30, 45, 200))
    chosen = pick(rng, [n for n in model.graph.node if n.input and n.input[0]])
    source, chosen.input[0] = chosen.input[0], "deep"
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "deep_condition"))
    info = helper.make_tensor_value_info
    inner = [helper.make_node("Identity", [source], ["deep_0"])]
    for k in range(depth):
        body = helper.make_graph(inner, f"body_{k}", [], [info(f"deep_{k}", TensorProto.FLOAT, None)])
        flat = helper.make_graph([helper.make_node("Identity", [source], [f"flat_{k}"])], f"flat_{k}", [],
                                 [info(f"flat_{k}", TensorProto.FLOAT, None)])  # fmt: skip
        out = f"deep_{k + 1}" if k + 1 < depth else "deep"
        inner = [helper.make_node("If", ["deep_condition"], [out], then_branch=body, else_branch=flat)]
    model.graph.node.insert(0, inner[0])


@mutator
def functions(rng: Random, model: ModelProto) -> None:
    """Local functions: deep, doubling, calling themselves, or wrong."""
    kind = rng.choice(("deep", "doubling", "recursive", "mutual", "missing", "fewer inputs"))
    chosen = pick(rng, [n for n in model.graph.node if n.input and n.input[0]])
    source, chosen.input[0] = chosen.input[0], "called"
    imports = [*model.opset_import, helper.make_operatorsetid("local", 1)]

    def function(name: str, nodes: list[NodeProto], inputs: tuple[str, ...] = ("x",)) -> FunctionProto:
        return helper.make_function("local", name, list(inputs), ["y"], nodes, imports)

    def call(name: str, x: str, y: str) -> NodeProto:
        return helper.make_node(name, [x] if x else [], [y], domain="local")

    many = {"deep": 200, "doubling": 24}.get(kind, 0)
    if many:
        model.functions.append(function("f0", [helper.make_node("Identity", ["x"], ["y"])]))
        for k in range(many):
            twice = [call(f"f{k}", "x", "z"), call(f"f{k}", "z", "y")]
            model.functions.append(function(f"f{k + 1}", twice if kind == "doubling" else [call(f"f{k}", "x", "y")]))
    elif kind == "recursive":
        model.functions.append(function("f0", [call("f0", "x", "y")]))
    elif kind == "mutual":
        model.functions.extend([function("f0", [call("g", "x", "y")]), function("g", [call("f0", "x", "y")])])
    elif kind == "fewer inputs":
        model.functions.append(function("f0", [helper.make_node("Add", ["x", "w"], ["y"])], ("x", "w")))
    else:
        model.functions.append(function("other", [helper.make_node("Identity", ["x"], ["y"])]))
    model.opset_import.append(helper.make_operatorsetid("local", 1))
    model.graph.node.append(call(f"f{many}", source, "called"))


@mutator
def sparse_weight(rng: Random, model: ModelProto) -> None:
    """A weight as a sparse one, with wrong indices or huge dims."""
    held = model.graph.initializer
    tensor = pick(rng, [t for t in held if t.data_type == TensorProto.FLOAT and t.dims])
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), tensor.name))
    wild = rng.choice(([0, 1, 2], [0, 0, 0], [-1, 2**40, 5], [[0, 1]], []))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(wild, np.int64), "at"))
    sparse.dims.extend(rng.choice((list(tensor.dims), [2**20, 2**20], [2**40], [-1], [])))
    held.remove(tensor)


def file_mutator(change: OnFile) -> OnFile:
    FILES[change.__name__] = change
    return change


def _outside(tensor: TensorProto, **entries: object) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


@file_mutator
def external_path(rng: Random, model: ModelProto, folder: Path) -> None:
    """Weights in a file that is none of the model's: outside the folder, a device, a pipe, a folder, the model."""
    tensor = weight(rng, model, integers=False)
    raw = tensor.raw_data or bytes(8)
    tensor.ClearField("raw_data")
    secret = folder.parent / "secret.bin"
    secret.write_bytes(raw)
    (folder / "real.bin").write_bytes(raw)
    link, loop, pipe, zero = (folder / n for n in ("link.bin", "loop.bin", "pipe.bin", "zero.bin"))
    link.symlink_to(secret)
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    zero.symlink_to("/dev/zero")
    (folder / "inner").mkdir()
    where = rng.choice(("../secret.bin", str(secret), "link.bin", "loop.bin", "pipe.bin", "zero.bin", "inner", "",
                        "inner/../../secret.bin", "C:\\x.bin", "..\\secret.bin", "real.bin\0", "real.bin", "x" * 5000,
                        "mutant.onnx", "/dev/zero", "/proc/self/mem", "é\n.bin", ".", "./real.bin"))  # fmt: skip
    _outside(tensor, location=where, length=len(raw))


@file_mutator
def external_range(rng: Random, model: ModelProto, folder: Path) -> None:
    tensor = weight(rng, model, integers=False)
    raw = tensor.raw_data
    if not raw:
        raise NothingToDamage
    tensor.ClearField("raw_data")
    size = rng.choice((len(raw), len(raw) - 1, 0, len(raw) * 2))
    (folder / "w.bin").write_bytes((raw * 2)[:size])
    entries: dict[str, object] = {"location": "w.bin"}
    for key in ("offset", "length"):
        if rng.random() < 0.8:
            entries[key] = rng.choice((0, 1, 64, len(raw), "", "abc", "1e3", "0x10", "9" * 5000, *SIZES))
    _outside(tensor, **entries)


@file_mutator
def external_good(rng: Random, model: ModelProto, folder: Path) -> None:
    """Nothing is wrong: the weights lie beside the model, as they may."""
    with (folder / "w.bin").open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor.raw_data:
                offset = file.tell()
                file.write(tensor.raw_data)
                length = len(tensor.raw_data)
                tensor.ClearField("raw_data")
                _outside(tensor, location="w.bin", offset=offset, length=length)


def byte_mutator(change: OnBytes) -> OnBytes:
    BYTES[change.__name__] = change
    return change


def _place(rng: Random, data: bytes, weights: list[tuple[int, int]]) -> int:
    """A byte of the file, seldom one of a weight."""
    for _ in range(200):
        at = rng.randrange(len(data))
        if not any(low <= at < high for low, high in weights):
            return at
    # nearly all of the file is weights: what is left lies before, between and behind them
    edges = [
        p for low, high in weights for p in (*range(max(low - 40, 0), low), *range(high, min(high + 40, len(data))))
    ]
    edges = [p for p in edges if not any(low <= p < high for low, high in weights)]
    return rng.choice(edges) if edges else rng.randrange(len(data))


@byte_mutator
def bits(rng: Random, data: bytes, weights: list[tuple[int, int]]) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16, 64))):
        out[_place(rng, data, weights)] ^= 1 << rng.randrange(8)
    return bytes(out)


@byte_mutator
def any_bits(rng: Random, data: bytes, weights: list[tuple[int, int]]) -> bytes:
    return bits(rng, data, [])


@byte_mutator
def bytes_of_others(rng: Random, data: bytes, weights: list[tuple[int, int]]) -> bytes:
    at, size = _place(rng, data, weights), rng.choice((1, 4, 32, 200))
    kind = rng.randrange(3)
    return data[:at] + (rng.randbytes(size), b"", data[:size])[kind] + data[at + (size if kind else 0) :]


@byte_mutator
def truncated(rng: Random, data: bytes, weights: list[tuple[int, int]]) -> bytes:
    return data[: rng.choice((_place(rng, data, weights), rng.randrange(len(data)), 1, 4, 0))]


@byte_mutator
def text(rng: Random, data: bytes, weights: list[tuple[int, int]]) -> bytes:
    size = rng.choice((1, 40, 5000))
    kind = rng.randrange(3)
    return ("".join(rng.choice("abc {}<>\n") for _ in range(size)).encode(), rng.randbytes(size), bytes(size))[kind]


@byte_mutator
def nested_bytes(rng: Random, data: bytes, weights: list[tuple[int, int]]) -> bytes:
    """A graph field that nests in itself, deeper than any reader allows."""
    inner = b""
    for _ in range(rng.choice((90, 200, 3000))):
        if len(inner) > 1 << 20:
            break
        body = helper.make_attribute("then_branch", 1).SerializeToString()[:0] + _field(6, inner)  # AttributeProto.g
        inner = _field(1, _field(5, body))  # GraphProto.node, NodeProto.attribute
    return b"\x08\x08" + _field(7, inner) + _field(8, b"\x10\x11")


def _field(number: int, payload: bytes) -> bytes:
    size, length = len(payload), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload
