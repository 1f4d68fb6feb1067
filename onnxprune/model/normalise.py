"""The graph in a form that is simpler to trace: protobuf in, protobuf out. Knows graphs, no stage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper
from onnx.checker import ValidationError
from onnx.inliner import inline_local_functions

from onnxprune.errors import UsageError
from onnxprune.model.graph import attribute, bodies, graphs, needs
from onnxprune.model.storage import ExternalData
from onnxprune.model.weight import FLOATS, Array, Weight

FILLED_LIMIT = 1 << 26
"""Elements that all ConstantOfShape of a model may have together to be taken for weights."""
INLINED_LIMIT = 1_000_000
"""Nodes that a model may have once its functions are written out."""
DENSE_LIMIT = 1 << 31
"""Bytes of a sparse weight that is written out."""


def constant(node: NodeProto, _: Mapping[str, Weight]) -> Weight | None:
    """The value of a Constant node, in any of its forms."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    a = node.attribute[0]
    match a.name:
        case "value":
            return ExternalData(None).weight(a.t)
        case "sparse_value":
            return Weight.of(dense_of(a.sparse_tensor), a.sparse_tensor.values.data_type)
        case "value_float" | "value_floats":
            return Weight.of(np.array(a.f if a.name == "value_float" else a.floats, np.float32))
        case "value_int" | "value_ints":
            return Weight.of(np.array(a.i if a.name == "value_int" else a.ints, np.int64))
        case "value_string" | "value_strings":
            dims = () if a.name == "value_string" else (len(a.strings),)
            text = TensorProto(string_data=[a.s] if a.name == "value_string" else a.strings)
            text.data_type = TensorProto.STRING
            text.dims.extend(dims)
            return Weight(TensorProto.STRING, dims, text)
    return None


def filled(node: NodeProto, weights: Mapping[str, Weight]) -> Weight | None:
    """A large float ConstantOfShape of known shape: a weight that an exporter wrote in short."""
    if node.op_type != "ConstantOfShape" or node.domain not in ("", "ai.onnx") or node.input[0] not in weights:
        return None
    shape = tuple(int(d) for d in weights[node.input[0]].array().reshape(-1))
    if min(shape, default=0) < 0 or not 64 <= math.prod(shape) <= FILLED_LIMIT:
        return None
    value = attribute(node, "value")
    if value is None:
        return Weight.of(np.zeros(shape, np.float32))
    if value.data_type not in FLOATS:
        return None
    return Weight.of(np.broadcast_to(numpy_helper.to_array(value).reshape(-1), shape).copy(), value.data_type)


def dense_of(sparse: SparseTensorProto) -> Array:
    """The tensor with its zeros; indices are flat or one row a value. UsageError where they do not fit the shape."""
    store, dims = ExternalData(None), tuple(sparse.dims)
    values, indices = store.weight(sparse.values).array(), store.weight(sparse.indices).array()
    shape = dims if indices.ndim == 2 else (math.prod(dims),)
    at = indices if indices.ndim == 2 else indices.reshape(-1, 1)
    fits = min(dims, default=1) >= 0 and at.shape == (values.size, len(shape)) and values.ndim == 1
    if not fits or math.prod(dims) * values.itemsize > DENSE_LIMIT or ((at < 0) | (at >= shape)).any():
        raise UsageError(
            f"sparse weight '{sparse.values.name}' does not fit its shape {list(dims)}; export the model again"
        )
    dense = np.zeros(shape, values.dtype)
    dense[tuple(at.T)] = values
    return dense.reshape(dims)


def inlined(proto: ModelProto) -> ModelProto:
    """The model with its functions written out where they are called."""
    functions = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[NodeProto]) -> int:
        """Nodes once everything is written out; a function that calls itself is left to the inliner to refuse."""
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in functions and key not in sizes:
                sizes[key] = 0
                sizes[key] = size(functions[key].node)
            total += sizes.get(key, 1) + sum(size(body.node) for _, body in bodies(node))
        return total

    try:
        if size(proto.graph.node) > INLINED_LIMIT:
            raise UsageError(f"the model's functions come to over {INLINED_LIMIT:,} nodes; export it without functions")
        found: ModelProto = inline_local_functions(proto)
        return found
    except (ValidationError, RuntimeError) as e:
        raise UsageError(f"the model's functions cannot be written out ({e}); export it without functions") from e


def set_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Make these the nodes of the graph; a graph that has them already is not touched."""
    if len(nodes) == len(graph.node) and all(a is b for a, b in zip(nodes, graph.node, strict=True)):
        return
    del graph.node[:]
    graph.node.extend(nodes)


def sorted_nodes(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Topological order, as close to the given one as can be; UsageError where there is a cycle."""
    nodes = list(nodes)
    producer = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    sources = [[producer[name] for name in needs(n) if name in producer] for n in nodes]
    return [nodes[i] for i in _producers_first(nodes, sources)]


def _producers_first(nodes: Sequence[NodeProto], sources: Sequence[Sequence[int]]) -> Iterator[int]:
    """A depth-first walk that gives a node, by index, once all of its `sources` were given."""
    entered, placed = bytearray(len(nodes)), bytearray(len(nodes))
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            i = stack[-1]
            if placed[i]:
                stack.pop()
                continue
            waiting = [j for j in sources[i] if not placed[j]]
            if any(entered[j] for j in waiting):
                raise UsageError(f"the graph has a cycle through node '{nodes[i].name}'; export the model again")
            if waiting:
                entered[i] = True
                stack.extend(reversed(waiting))
            else:
                placed[i] = True
                yield stack.pop()


def name_nodes(nodes: Iterable[NodeProto]) -> None:
    """Give a name to every node that has none or a name already taken."""
    nodes = list(nodes)
    taken, used = Counter(n.name for n in nodes), set[str]()
    for i, node in enumerate(nodes):
        if not node.name or node.name in used:
            name = f"{node.op_type}_{i}"
            while taken[name] or name in used:
                name += "_"
            node.name = name
        used.add(node.name)


def count_axes_from_first(nodes: Iterable[NodeProto]) -> None:
    """A Transpose numbers its axes from the first; an exporter of torch writes them as torch takes them, from the last,
    and no runtime loads that. What is meant is clear."""
    for node in nodes:
        for a in node.attribute:
            if node.op_type == "Transpose" and a.name == "perm" and min(a.ints, default=0) < 0:
                a.ints[:] = [k + len(a.ints) if k < 0 else k for k in a.ints]


def inner_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that is not an initializer of the main graph: attributes, sub-graphs, functions, training."""

    def of_sparse(sparse: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
        for s in sparse:
            yield from (s.values, s.indices)

    def of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
        yield from of_attributes(a for n in nodes for a in n.attribute)

    def of_attributes(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
        for a in attributes:
            yield from ([a.t] if a.HasField("t") else ())
            yield from a.tensors
            yield from of_sparse([a.sparse_tensor] if a.HasField("sparse_tensor") else ())
            yield from of_sparse(a.sparse_tensors)
            for graph in graphs(a):
                yield from of_graph(graph)

    def of_graph(graph: GraphProto) -> Iterator[TensorProto]:
        yield from graph.initializer
        yield from of_sparse(graph.sparse_initializer)
        yield from of_nodes(graph.node)

    yield from of_sparse(proto.graph.sparse_initializer)
    yield from of_nodes(proto.graph.node)
    for function in proto.functions:
        yield from of_nodes(function.node)
        yield from of_attributes(function.attribute_proto)
    for training in proto.training_info:
        yield from of_graph(training.initialization)
        yield from of_graph(training.algorithm)
