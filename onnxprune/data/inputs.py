"""What each input of a model is: image, tokens, mask, sound, ...

Knows the inputs of a graph and who reads them, no units.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto

from onnxprune.model import FLOATS, Model, attribute, dtype_of, every_node, traits
from onnxprune.shapes import Shapes

InputKind = Literal["image", "sound", "features", "tokens", "positions", "integers", "mask", "state", "cache", "text"]
"""`cache`: keys and values of what went before, or whether there are any."""

LONG = 256
"""A float axis of at least this many entries, alone or beside one of few channels, is a wave form."""
CHANNELS = (1, 3, 4)
"""Of an image: grey, coloured, coloured with transparency."""
TIMES = 1000
"""One integer a sample that is used as a number is nearly always a time step; there are mostly this many."""
_INDEXED = {"Gather": (1, 0), "GatherElements": (1, 0), "ScatterElements": (1, 0), "Scatter": (1, 0)}
"""Which input holds the indices, and which one they index."""
_STATE = re.compile(r"(^|[_.:/])(h|c|hn|cn|hx|cx|state)[_.]?(in)?\d*([_.:/]|$)", re.IGNORECASE)
_MASK = re.compile(r"mask", re.IGNORECASE)
_CACHE = re.compile(r"past|cache|mems", re.IGNORECASE)
_MICROSOFT = "com.microsoft"
_PASTS = {
    ("", "Attention"): (4, 5), (_MICROSOFT, "Attention"): (4,), (_MICROSOFT, "MultiHeadAttention"): (6, 7),
    (_MICROSOFT, "GroupQueryAttention"): (3, 4), (_MICROSOFT, "SparseAttention"): (3, 4),
    (_MICROSOFT, "DecoderMaskedMultiHeadAttention"): (5, 6), (_MICROSOFT, "DecoderMaskedSelfAttention"): (4,),
}  # fmt: skip
"""Which operands of an operator hold keys and values of what went before."""
_POSITION = re.compile(r"position|pos_ids", re.IGNORECASE)


@dataclass(frozen=True)
class Input:
    """One real input: what it is and its axes as declared (None: open).

    `batch` is the axis that counts the samples, or None; `channel` is that of an image, 1 or -1. Of integers, `bound`
    values from 0 on are safe, and `compared` are those that the graph tells apart from all others.
    """

    name: str
    dtype: np.dtype[Any]
    axes: tuple[int | None, ...]
    kind: InputKind
    batch: int | None
    channel: int = 1
    bound: int = 2
    compared: tuple[int, ...] = ()

    def safe(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """The integers to choose from for an array of this shape. A token that the graph compares with marks padding,
        mostly; a scalar that it compares with is a mode of the model, such as a sample rate."""
        if not shape and self.compared:
            return np.array(self.compared[:1])
        found = np.setdiff1d(np.arange(self.bound), self.compared)
        return found if len(found) > 1 else np.arange(self.bound)


def describe(model: Model, shapes: Shapes) -> list[Input]:
    """The inputs that are no weights, in order."""
    graph = _Graph(model, shapes, consumers(model))
    infos = real_inputs(model)
    first = {i.type.tensor_type.shape.dim[0].dim_value for i in infos if i.type.tensor_type.shape.dim}
    return [_describe(graph, info, len(first) == 1) for info in infos]


def cache_outputs(model: Model, specs: Sequence[Input]) -> set[str]:
    """The outputs that are caches of the inputs `specs` with what came behind them: given out by who reads one."""
    caches = {s.name for s in specs if s.kind == "cache"}
    made = (o for n in model.graph.node if caches & set(n.input) for o in n.output)
    return {o.name for o in model.graph.output} & set(made)


def real_inputs(model: Model) -> list[ValueInfoProto]:
    """The inputs that are no weights, as the graph declares them."""
    return [i for i in model.graph.input if i.name not in model.weights]


def consumers(model: Model) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor, those inside control flow included."""
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in every_node(model.graph):
        for name in dict.fromkeys(node.input):
            users[name].append(node)
    return users


@dataclass(frozen=True)
class _Graph:
    """Where the values of an input go."""

    model: Model
    shapes: Shapes
    users: Mapping[str, list[NodeProto]]

    def read_as(self, name: str, operators: Container[str], operands: slice) -> bool:
        """Whether one of these operators reads it as one of these operands."""
        return any(name in n.input[operands] for n in self.users[name] if n.op_type in operators)

    def is_past(self, name: str) -> bool:
        """Whether what comes is put behind it, and both together are given out; or an operator does so."""
        given_out = {o.name for o in self.model.graph.output}
        return any(
            name in [n.input[k] for k in _PASTS.get((n.domain, n.op_type), ()) if k < len(n.input)]
            or (n.op_type == "Concat" and n.input[0] == name and n.output[0] in given_out)
            for n in self.users[name]
        )

    def reached(self, name: str) -> Iterator[tuple[NodeProto, str]]:
        """The nodes that see the input's own values, each with the tensor that carries these there."""
        names, seen = [name], {name}
        while names:
            name = names.pop()
            for node in self.users[name]:
                yield node, name
                if self._makes_indices(node) or (node.op_type in traits.CARRYING_INTEGERS and node.input[0] == name):
                    names += [o for o in node.output if o not in seen]
                    seen.update(node.output)

    def _makes_indices(self, node: NodeProto) -> bool:
        integers = (TensorProto.INT32, TensorProto.INT64)
        return node.op_type in traits.MIXING_INTEGERS and self.shapes.dtype(node.output[0]) in integers

    def entries(self, node: NodeProto, given: str) -> int | None:
        """How many entries the axis has that these values index; None where they index nothing."""
        indices, data = _INDEXED.get(node.op_type, (-1, 0))
        if node.op_type == "EmbedLayerNormalization":  # words and segments, with their tables
            indices, data = (0, 2) if node.input[0] == given else (1, 4)
        if indices < 0 or node.input[indices] != given:
            return None
        name = node.input[data]
        axis = attribute(node, "axis", 0)
        dims = self.model.weights[name].shape if name in self.model.weights else self.shapes.static(name)
        return dims[axis] if dims else None

    def classes(self, node: NodeProto, carriers: Container[str]) -> int | None:
        """How many classes a one-hot encoding has, be it an operator or a comparison with 0, 1, 2, ..."""
        if node.op_type == "OneHot" and node.input[0] in carriers:
            depth = self.shapes.value(node.input[1])
            return None if depth is None else int(depth.reshape(-1)[0])
        others = [n for n in node.input if n not in carriers]
        if node.op_type != "Equal" or len(others) != 1:
            return None
        dims = self.shapes.static(others[0])
        return dims[-1] if dims and (dims[-1] or 0) > 2 else None

    def scalars(self, node: NodeProto) -> list[int]:
        """The known operands of one number."""
        values = (self.shapes.value(name) for name in node.input)
        return [int(v.reshape(-1)[0]) for v in values if v is not None and v.size == 1]


def _describe(graph: _Graph, info: ValueInfoProto, alike: bool) -> Input:
    """`alike`: all inputs have the same size along their first axis."""
    tensor, name = info.type.tensor_type, info.name
    axes = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    dtype = np.dtype(object) if tensor.elem_type in (0, TensorProto.STRING) else dtype_of(tensor.elem_type)
    # An open first axis counts samples; a fixed one does where all inputs have the same.
    plain = Input(name, dtype, axes, "features", 0 if axes and (axes[0] is None or alike) else None)
    if dtype.kind == "O":
        return replace(plain, kind="text")
    if _is_cache(graph, plain):
        return replace(plain, kind="cache")
    if dtype.kind == "b" or _MASK.search(name):
        return replace(plain, kind="mask")
    if channel := _channel_axis(graph, plain, tensor.elem_type):
        return replace(plain, kind="image", channel=channel)
    return _of_floats(graph, plain) if tensor.elem_type in FLOATS else _of_integers(graph, plain)


def _is_cache(graph: _Graph, plain: Input) -> bool:
    """Keys and values of what went before, by their name or by who reads them; or a truth that says whether there are
    any."""
    if plain.dtype.kind == "b" or len(plain.axes) >= 3:
        return bool(_CACHE.search(plain.name)) or graph.is_past(plain.name)
    return False


def _channel_axis(graph: _Graph, plain: Input, element: int) -> int:
    """1 or -1 for an image, 0 for what is none."""
    numeric = element in FLOATS or element == TensorProto.UINT8
    if not numeric or len(plain.axes) not in (4, 5):
        return 0
    if graph.read_as(plain.name, ("Conv",), slice(1, None)):  # a weight that is made outside
        return 0
    return next((k for k in (1, -1) if plain.axes[k] in CHANNELS), 0)


def _of_floats(graph: _Graph, plain: Input) -> Input:
    """A recurrent state, sound, or any other vectors."""
    recurrent = graph.read_as(plain.name, traits.GATES, slice(5, 7))
    if recurrent or _STATE.search(plain.name):
        return replace(plain, kind="state", batch=1 if len(plain.axes) == 3 else plain.batch)
    shape = graph.shapes.inputs[0].get(plain.name, plain.axes)
    return replace(plain, kind="sound" if _is_sound(plain.axes, shape) else "features")


def _is_sound(axes: tuple[int | None, ...], shape: tuple[int | None, ...]) -> bool:
    """One axis that is long or open, beside no other but a few channels: a dense layer's width is never open."""
    if len(axes) not in (2, 3) or (len(axes) == 3 and min(d or 0 for d in shape[1:]) > 2):
        return False
    return max(d or 0 for d in shape[1:]) >= LONG or (len(axes) == 2 and axes[1] is None)


def _of_integers(graph: _Graph, plain: Input) -> Input:
    """Indices into a table, a mask that is computed with, or any other integers."""
    reached = list(graph.reached(plain.name))
    plain = replace(plain, compared=tuple(v for n, _ in reached if n.op_type == "Equal" for v in graph.scalars(n)))
    if tables := _tables(graph, reached):
        kind: InputKind = "positions" if _POSITION.search(plain.name) else "tokens"
        return replace(plain, kind=kind, bound=max(1, min(tables)))
    if _POSITION.search(plain.name):  # they are turned into angles, by operators or inside one
        return replace(plain, kind="positions", bound=np.iinfo(np.int32).max)
    # 1 - x, times a large negative number, is how exporters apply a mask.
    masking = any(n.op_type == "Sub" and n.input[1] == given and graph.scalars(n) == [1] for n, given in reached)
    time = 1 <= len(plain.axes) <= 2 and set(plain.axes[1:]) <= {1}
    return replace(plain, kind="mask" if masking else "integers", bound=TIMES if time else plain.bound)


def _tables(graph: _Graph, reached: Sequence[tuple[NodeProto, str]]) -> list[int]:
    """Sizes of the tables that the values index; where there are none, of the one-hot encodings made of them."""
    tables = [size for node, given in reached if (size := graph.entries(node, given)) is not None]
    if tables:
        return tables
    carriers = {given for _, given in reached}
    return [size for node, _ in reached if (size := graph.classes(node, carriers)) is not None]
