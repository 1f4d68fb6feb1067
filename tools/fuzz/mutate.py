"""Small damages to a graph: what a wrong tool, a wrong hand or a bad exporter leaves in a file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from random import Random
from typing import TypeVar

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

T = TypeVar("T")
Mutator = Callable[[Random, ModelProto], None]
GRAPH: dict[str, Mutator] = {}
SIZES = (0, 1, 2, 3, 5, 7, 16, 1000, -1, -2, -7, 2**31 - 1, 2**31, 2**40, 2**62, -(2**40), -(2**63))
OPS = ("Relu", "Conv", "MatMul", "Gemm", "Add", "Reshape", "Transpose", "Concat", "Split", "Slice", "Gather", "Shape",
       "Softmax", "LSTM", "BatchNormalization", "Resize", "Pad", "Expand", "Tile", "Squeeze", "Unsqueeze", "TopK",
       "Einsum", "If", "Loop", "Scan", "Constant", "ConstantOfShape", "ReduceMean", "NoSuchOperator")  # fmt: skip


class NothingToDamage(Exception):
    """The model has nothing that this damage could be done to."""


def mutator(change: Mutator) -> Mutator:
    GRAPH[change.__name__] = change
    return change


def pick(rng: Random, items: list[T]) -> T:
    if not items:
        raise NothingToDamage
    return rng.choice(items)


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph and, after it, every body."""
    todo = [model.graph]
    for graph in todo:
        yield graph
        todo += [g for n in graph.node for a in n.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def node(rng: Random, model: ModelProto) -> NodeProto:
    return pick(rng, [n for g in graphs(model) for n in g.node])


def names(model: ModelProto) -> list[str]:
    return sorted({x for g in graphs(model) for n in g.node for x in (*n.input, *n.output) if x})


def weight(rng: Random, model: ModelProto, integers: bool | None = None) -> TensorProto:
    """An initializer; `integers`: only (or never) one of integers, such as a target of Reshape."""
    kinds = (TensorProto.INT32, TensorProto.INT64)
    fitting = [
        t for g in graphs(model) for t in g.initializer if integers is None or (t.data_type in kinds) == integers
    ]
    fitting += [a.t for g in graphs(model) for n in g.node for a in n.attribute if a.HasField("t")
                and (integers is None or (a.t.data_type in kinds) == integers)]  # fmt: skip
    return pick(rng, fitting)


@mutator
def drop_node(rng: Random, model: ModelProto) -> None:
    nodes = pick(rng, [g for g in graphs(model) if g.node]).node
    del nodes[rng.randrange(len(nodes))]


@mutator
def drop_many_nodes(rng: Random, model: ModelProto) -> None:
    nodes = model.graph.node
    for k in sorted(rng.sample(range(len(nodes)), len(nodes) // 3), reverse=True):
        del nodes[k]


@mutator
def duplicate_node(rng: Random, model: ModelProto) -> None:
    model.graph.node.append(copy.deepcopy(node(rng, model)))


@mutator
def shuffle_nodes(rng: Random, model: ModelProto) -> None:
    nodes = [copy.deepcopy(n) for n in model.graph.node]
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@mutator
def rename_one_use(rng: Random, model: ModelProto) -> None:
    fields = [f for g in graphs(model) for n in g.node for f in (n.input, n.output) if f]
    field = pick(rng, fields)
    field[rng.randrange(len(field))] = rng.choice(["renamed", "", "né\u202e\n", "x" * 10000, *names(model)])


@mutator
def same_output_twice(rng: Random, model: ModelProto) -> None:
    a, b = node(rng, model), node(rng, model)
    if a.output and b.output:
        a.output[0] = b.output[0]


@mutator
def swap_inputs(rng: Random, model: ModelProto) -> None:
    chosen = pick(rng, [n for g in graphs(model) for n in g.node if len(n.input) > 1])
    a, b = rng.sample(range(len(chosen.input)), 2)
    chosen.input[a], chosen.input[b] = chosen.input[b], chosen.input[a]


@mutator
def rewire(rng: Random, model: ModelProto) -> None:
    """An input becomes any other tensor: often a cycle, often a wrong shape."""
    chosen = pick(rng, [n for g in graphs(model) for n in g.node if n.input])
    chosen.input[rng.randrange(len(chosen.input))] = pick(rng, names(model))


@mutator
def cycle(rng: Random, model: ModelProto) -> None:
    chosen = pick(rng, [n for n in model.graph.node if n.input and n.output])
    later = pick(rng, [o for n in model.graph.node for o in n.output if o])
    chosen.input[0] = rng.choice([later, chosen.output[0]])


@mutator
def wrong_count_of_inputs(rng: Random, model: ModelProto) -> None:
    chosen = pick(rng, [n for g in graphs(model) for n in g.node if n.input])
    kind = rng.randrange(4)
    if kind == 0:
        del chosen.input[rng.randrange(len(chosen.input)) :]
    elif kind == 1:
        chosen.input.extend([rng.choice(names(model))] * rng.choice((1, 3, 100)))
    elif kind == 2:
        del chosen.output[:]
    else:
        chosen.output.append("extra")


@mutator
def other_operator(rng: Random, model: ModelProto) -> None:
    node(rng, model).op_type = rng.choice(("", *OPS))


@mutator
def other_domain(rng: Random, model: ModelProto) -> None:
    node(rng, model).domain = rng.choice(("com.microsoft", "ai.onnx", "ai.onnx.ml", "nowhere", "com.microsoft.nchwc"))


@mutator
def drop_attribute(rng: Random, model: ModelProto) -> None:
    chosen = pick(rng, [n for g in graphs(model) for n in g.node if n.attribute])
    del chosen.attribute[rng.randrange(len(chosen.attribute))]


def _attribute(rng: Random, model: ModelProto) -> AttributeProto:
    return pick(rng, [a for g in graphs(model) for n in g.node for a in n.attribute])


@mutator
def other_type_of_attribute(rng: Random, model: ModelProto) -> None:
    chosen = _attribute(rng, model)
    values = (1, -3, 0.5, "text", b"\xff\xfe", [1, 2], [0.5], ["a", "b"], numpy_helper.from_array(np.ones(3)),
              helper.make_graph([], "g", [], []))  # fmt: skip
    chosen.CopyFrom(helper.make_attribute(chosen.name, rng.choice(values)))


@mutator
def only_the_tag_of_an_attribute(rng: Random, model: ModelProto) -> None:
    _attribute(rng, model).type = rng.randrange(15)


@mutator
def other_value_of_attribute(rng: Random, model: ModelProto) -> None:
    chosen = pick(rng, [a for g in graphs(model) for n in g.node for a in n.attribute if a.type in (2, 7, 3)])
    if chosen.type == AttributeProto.INT:
        chosen.i = rng.choice(SIZES)
    elif chosen.type == AttributeProto.STRING:
        chosen.s = rng.choice((b"", b"\xff", b"SAME_UPPER", b"bidirectional", b"bij,bjk->bik", b"...i->", b"linear"))
    elif chosen.ints and rng.random() < 0.7:
        chosen.ints[rng.randrange(len(chosen.ints))] = rng.choice(SIZES)
    else:
        size = rng.choice((0, 1, len(chosen.ints) + 1, 300))
        del chosen.ints[:]
        chosen.ints.extend(rng.choice(SIZES) for _ in range(size))


@mutator
def attribute_twice(rng: Random, model: ModelProto) -> None:
    chosen = pick(rng, [n for g in graphs(model) for n in g.node if n.attribute])
    chosen.attribute.append(copy.deepcopy(chosen.attribute[0]))


@mutator
def foreign_attribute(rng: Random, model: ModelProto) -> None:
    name = rng.choice(("axis", "axes", "perm", "group", "to", "value", "keepdims", "allowzero", "split", "num_outputs"))
    value = rng.choice((0, 1, -1, 2**40, [1, 0], [-1], 0.5, "a"))
    node(rng, model).attribute.append(helper.make_attribute(name, value))


@mutator
def other_integers(rng: Random, model: ModelProto) -> None:
    """A target of Reshape, bounds of Slice, sizes of Split, axes: other numbers."""
    tensor = weight(rng, model, integers=True)
    try:
        array = numpy_helper.to_array(tensor).copy()
    except Exception as error:
        raise NothingToDamage from error
    if not array.size:
        raise NothingToDamage
    flat = array.reshape(-1)
    flat[rng.randrange(flat.size)] = rng.choice(
        [s for s in SIZES if np.iinfo(array.dtype).min <= s <= np.iinfo(array.dtype).max]
    )
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutator
def odd_weights(rng: Random, model: ModelProto) -> None:
    tensor = weight(rng, model, integers=False)
    if tensor.data_type != TensorProto.FLOAT:
        raise NothingToDamage
    array = numpy_helper.to_array(tensor).copy()
    flat = array.reshape(-1)
    if not flat.size:
        raise NothingToDamage
    value = rng.choice((np.nan, np.inf, -np.inf, 0.0, 1e38, 1e-45))
    flat[: rng.choice((1, flat.size))] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutator
def reshaped_weight(rng: Random, model: ModelProto) -> None:
    """Other dims, the same count: another layout than the operator wants."""
    tensor = weight(rng, model)
    dims = list(tensor.dims)
    rng.shuffle(dims)
    kind = rng.randrange(4)
    dims = [dims, [1, *dims], [int(np.prod(dims))] if dims else [1], [*dims, 1]][kind]
    del tensor.dims[:]
    tensor.dims.extend(dims)


@mutator
def wrong_dims_of_weight(rng: Random, model: ModelProto) -> None:
    tensor = weight(rng, model)
    if not tensor.dims:
        tensor.dims.append(rng.choice(SIZES))
    else:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(SIZES)


@mutator
def other_size_of_weight(rng: Random, model: ModelProto) -> None:
    """A weight that is whole, of another size."""
    tensor = weight(rng, model, integers=False)
    if tensor.data_type != TensorProto.FLOAT or not tensor.dims or np.prod(tensor.dims) > 1 << 20:
        raise NothingToDamage
    dims = list(tensor.dims)
    axis = rng.randrange(len(dims))
    dims[axis] = rng.choice((0, 1, dims[axis] - 1, dims[axis] + 1, dims[axis] * 2))
    array = np.resize(numpy_helper.to_array(tensor), [max(d, 0) for d in dims])
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutator
def empty_huge_weight(rng: Random, model: ModelProto) -> None:
    """Dims of terabytes, and no data."""
    tensor = weight(rng, model)
    for field in ("raw_data", "float_data", "int64_data", "int32_data", "dims"):
        tensor.ClearField(field)
    tensor.dims.extend(rng.choice(([2**40], [2**31, 2**31], [2**40, 0], [2**62, 4], [2**20, 2**11])))


@mutator
def other_type_of_weight(rng: Random, model: ModelProto) -> None:
    weight(rng, model).data_type = rng.choice((*range(30), 1000, -1))


@mutator
def drop_weight(rng: Random, model: ModelProto) -> None:
    held = pick(rng, [g for g in graphs(model) if g.initializer]).initializer
    del held[rng.randrange(len(held))]


@mutator
def weight_twice(rng: Random, model: ModelProto) -> None:
    held = pick(rng, [g for g in graphs(model) if g.initializer]).initializer
    twin = copy.deepcopy(pick(rng, list(held)))
    if rng.random() < 0.5:
        twin.name = pick(rng, list(held)).name
    held.append(twin)


@mutator
def name_of_weight(rng: Random, model: ModelProto) -> None:
    held = pick(rng, [g for g in graphs(model) if g.initializer]).initializer
    pick(rng, list(held)).name = rng.choice(["", "renamed", *names(model)])


@mutator
def data_in_two_fields(rng: Random, model: ModelProto) -> None:
    tensor = weight(rng, model)
    getattr(tensor, rng.choice(("float_data", "int32_data", "int64_data"))).extend([1] * rng.choice((1, 100)))


@mutator
def declared_dims(rng: Random, model: ModelProto) -> None:
    """What the file says of shapes: inputs, outputs, value_info."""
    lists = [model.graph.input, model.graph.input, model.graph.output, model.graph.value_info]
    info = pick(rng, [i for i in rng.choice(lists) if i.type.HasField("tensor_type")])
    dims = info.type.tensor_type.shape.dim
    kind = rng.randrange(6)
    if kind == 0:
        info.type.tensor_type.ClearField("shape")
    elif kind == 1:
        info.type.tensor_type.elem_type = rng.randrange(30)
    elif kind == 2 and dims:
        dims[rng.randrange(len(dims))].dim_param = rng.choice(
            ("n", "n + m", "n / 0", "((((", "2 ** 99", "é", "-n", "9" * 5000)
        )
    elif kind == 3 and dims:
        del dims[rng.randrange(len(dims))]
    elif kind == 4:
        dims.add().dim_value = rng.choice(SIZES)
    elif dims:
        dims[rng.randrange(len(dims))].dim_value = rng.choice(SIZES)


@mutator
def other_kind_of_type(rng: Random, model: ModelProto) -> None:
    info = pick(rng, [*model.graph.input, *model.graph.output])
    inner = copy.deepcopy(info.type)
    info.type.Clear()
    if rng.random() < 0.7:
        getattr(info.type, rng.choice(("sequence_type", "optional_type"))).elem_type.CopyFrom(inner)


@mutator
def change_inputs_or_outputs(rng: Random, model: ModelProto) -> None:
    held = rng.choice((model.graph.input, model.graph.output))
    kind = rng.randrange(4)
    if not held or kind == 0:
        del held[:]
    elif kind == 1:
        del held[rng.randrange(len(held))]
    elif kind == 2:
        held.append(copy.deepcopy(held[0]))
    else:
        held[rng.randrange(len(held))].name = rng.choice(
            ["", "renamed", *names(model), *(t.name for t in model.graph.initializer)]
        )


@mutator
def other_opset(rng: Random, model: ModelProto) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        del model.opset_import[:]
    elif kind == 1:
        model.opset_import.add().version = rng.choice((5, 9, 11, 13, 21))
    else:
        model.opset_import[0].version = rng.choice((-1, 0, 1, 4, 5, 7, 9, 10, 11, 13, 17, 18, 21, 23, 30, 10000))


@mutator
def other_ir(rng: Random, model: ModelProto) -> None:
    model.ir_version = rng.choice((-1, 0, 1, 2, 3, 4, 7, 10, 13, 99, 2**40))


@mutator
def weight_as_input(rng: Random, model: ModelProto) -> None:
    """A weight becomes an input, or is one as well, of its own or of another shape."""
    held = model.graph.initializer
    tensor = pick(rng, list(held))
    dims = rng.choice((list(tensor.dims), [1], ["n"] * len(tensor.dims), None))
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, dims))
    if rng.random() < 0.5:
        held.remove(tensor)


@mutator
def weight_as_constant(rng: Random, model: ModelProto) -> None:
    held = model.graph.initializer
    tensor = pick(rng, list(held))
    name = tensor.name
    attribute = [
        {"value": tensor},
        {},
        {"value_ints": [1, 2]},
        {"value": tensor, "value_int": 1},
        {"value_strings": ["a"]},
    ]
    model.graph.node.insert(0, helper.make_node("Constant", [], [name], **rng.choice(attribute)))
    held.remove(tensor)
