"""What each input of a model is (image, tokens, mask, sound, ...), and at which sizes to feed it.

Knows the inputs of a graph and who reads them, no units.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto

from onnxprune.model import FLOATS, Model, dtype_of, every_node
from onnxprune.shapes import Inputs, Shapes, plan_sizes

Array = NDArray[Any]
Kind = Literal["image", "sound", "features", "tokens", "positions", "integers", "mask", "state", "text"]

LONG = 256
"""A float axis of at least this many entries, alone or beside one of few channels, is a wave form."""
TOKENS = 64
"""Length of a text where the model leaves it open: more tokens say more, and models of short texts still take it."""
CHANNELS = (1, 3, 4)
LINE = 48
"""Height of a line of text where the model leaves it open."""
WAVES = (4096, 512)
"""Lengths of sound to try where the model leaves it open."""
TIMES = 1000
"""One integer a sample that is used as a number is nearly always a time step; there are mostly this many."""
_THROUGH = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Tile", "Slice",
            "Clip", "Gather", "Split"}  # fmt: skip
"""What hands integers on as they are."""
_MIXING = {"Concat", "Add", "Mul", "Where", "Max", "Min"}
"""What hands on integers of which an index may be made: wrapped from negative ones, shifted, or joined."""
_INDEXED = {"Gather": (1, 0), "GatherElements": (1, 0), "ScatterElements": (1, 0), "Scatter": (1, 0)}
"""Which input holds indices, and which one they index."""
_STATE = re.compile(r"(^|[_.:/])(h|c|hn|cn|hx|cx|state)[_.]?(in)?\d*([_.:/]|$)", re.IGNORECASE)
_MASK = re.compile(r"mask", re.IGNORECASE)
_CACHE = re.compile(r"past|cache|mems", re.IGNORECASE)
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
    kind: Kind
    batch: int | None
    channel: int = 1
    bound: int = 2
    compared: tuple[int, ...] = ()


def describe(model: Model, shapes: Shapes) -> list[Input]:
    """The inputs that are no weights, in order."""
    users = consumers(model)
    infos = real_inputs(model)
    first = {i.type.tensor_type.shape.dim[0].dim_value for i in infos if i.type.tensor_type.shape.dim}
    return [_describe(model, shapes, users, info, len(first) == 1) for info in infos]


def real_inputs(model: Model) -> list[ValueInfoProto]:
    return [i for i in model.graph.input if i.name not in model.weights]


def consumers(model: Model) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor, those inside control flow included."""
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in every_node(model.graph):
        for name in dict.fromkeys(node.input):
            users[name].append(node)
    return users


def _describe(model: Model, shapes: Shapes, users: Mapping[str, list[NodeProto]], info: ValueInfoProto,
              alike: bool) -> Input:  # fmt: skip
    tensor, name = info.type.tensor_type, info.name
    axes = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    shape = shapes.inputs[0].get(name, axes)
    dtype = np.dtype(object) if tensor.elem_type in (0, TensorProto.STRING) else dtype_of(tensor.elem_type)
    # An open first axis counts samples; a fixed one does where all inputs have the same.
    batch = 0 if axes and (axes[0] is None or alike) else None
    image = len(axes) in (4, 5) and (tensor.elem_type in FLOATS or tensor.elem_type == TensorProto.UINT8)
    weight = any(name in n.input[1:] for n in users[name] if n.op_type == "Conv")
    image = image and not weight and not _CACHE.search(name)
    channel = next((k for k in (1, -1) if image and axes[k] in CHANNELS), 0)
    kind: Kind
    bound, values = 2, list[int]()
    if dtype.kind == "O":
        kind = "text"
    elif dtype.kind == "b" or _MASK.search(name):
        kind = "mask"
    elif channel:
        kind = "image"
    elif tensor.elem_type in FLOATS:
        state = any(name in n.input[5:7] for n in users[name] if n.op_type in ("LSTM", "GRU", "RNN"))
        kind = "state" if state or _STATE.search(name) else "sound" if _is_sound(axes, shape) else "features"
        batch = 1 if kind == "state" and len(axes) == 3 else batch
    else:
        reached = list(_reached(users, shapes, name))
        tables = [size for node, given in reached if (size := _table(node, given, model, shapes)) is not None]
        if not tables:
            carriers = {given for _, given in reached}
            tables = [size for node, _ in reached if (size := _one_hot(node, carriers, shapes)) is not None]
        values = [v for node, _ in reached if node.op_type == "Equal" for v in _scalars(node, shapes)]
        masking = any(n.op_type == "Sub" and n.input[1] == given and _scalars(n, shapes) == [1] for n, given in reached)
        # 1 - x, times a large negative number, is how exporters apply a mask.
        kind = "tokens" if tables else "mask" if masking else "integers"
        kind = "positions" if tables and _POSITION.search(name) else kind
        time = not tables and 1 <= len(axes) <= 2 and set(axes[1:]) <= {1}
        bound = max(1, min(tables, default=TIMES if time else 2))
    return Input(name, dtype, axes, kind, batch, channel or 1, bound, tuple(values))


def _is_sound(axes: tuple[int | None, ...], shape: tuple[int | None, ...]) -> bool:
    """One axis that is long or open, beside no other but a few channels: a dense layer's width is never open."""
    if len(axes) not in (2, 3) or (len(axes) == 3 and min(d or 0 for d in shape[1:]) > 2):
        return False
    return max(d or 0 for d in shape[1:]) >= LONG or (len(axes) == 2 and axes[1] is None)


def _reached(users: Mapping[str, list[NodeProto]], shapes: Shapes, name: str) -> Iterator[tuple[NodeProto, str]]:
    """The nodes that see the input's own values, each with the tensor that carries these there."""
    names, seen = [name], {name}
    while names:
        name = names.pop()
        for node in users[name]:
            yield node, name
            mixes = node.op_type in _MIXING and shapes.dtype(node.output[0]) in (TensorProto.INT32, TensorProto.INT64)
            if mixes or (node.op_type in _THROUGH and node.input[0] == name):
                names += [o for o in node.output if o not in seen]
                seen.update(node.output)


def _table(node: NodeProto, given: str, model: Model, shapes: Shapes) -> int | None:
    """How many entries the axis has that these values index; None where they index nothing."""
    indices, data = _INDEXED.get(node.op_type, (-1, 0))
    if node.op_type == "EmbedLayerNormalization":  # words and segments, with their tables
        indices, data = (0, 2) if node.input[0] == given else (1, 4)
    if indices < 0 or node.input[indices] != given:
        return None
    name = node.input[data]
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 0)
    dims = model.weights[name].shape if name in model.weights else shapes.static(name)
    return dims[axis] if dims else None


def _one_hot(node: NodeProto, carriers: set[str], shapes: Shapes) -> int | None:
    """How many classes a one-hot encoding has, be it an operator or a comparison with 0, 1, 2, ..."""
    if node.op_type == "OneHot" and node.input[0] in carriers:
        depth = shapes.value(node.input[1])
        return None if depth is None else int(depth.reshape(-1)[0])
    others = [n for n in node.input if n not in carriers]
    if node.op_type != "Equal" or len(others) != 1:
        return None
    dims = shapes.static(others[0])
    return dims[-1] if dims and (dims[-1] or 0) > 2 else None


def _scalars(node: NodeProto, shapes: Shapes) -> list[int]:
    values = (shapes.value(name) for name in node.input)
    return [int(v.reshape(-1)[0]) for v in values if v is not None and v.size == 1]


def sizes(model: Model, shapes: Shapes, batch: int, given: Mapping[str, Sequence[int]]) -> Iterator[Inputs]:
    """Sizes of all inputs to try in turn, for `batch` samples where the model leaves their number open: first the most
    telling ones, then those that shape inference found to fit."""
    inputs = {i.name: i for i in describe(model, shapes)}
    axes = plan_sizes(real_inputs(model), given)
    probe = {s: shapes.inputs[0][name][k] for name in axes.axes for k, s in axes.symbols(name).items()}
    batches = dict.fromkeys((s for s, role in axes.roles.items() if role == "batch"), batch)
    late: dict[str, int] = {}
    best, other = dict(probe), dict(probe)
    for name in axes.axes:
        spec = inputs[name]
        symbols = {k: s for k, s in axes.symbols(name).items() if s not in batches}
        if spec.kind == "image":
            best |= _image_size(spec, shapes, symbols)
        elif spec.kind in ("tokens", "mask", "positions"):
            best |= {s: TOKENS for s in symbols.values() if axes.roles[s] == "token"}
        elif spec.kind == "sound":
            best |= dict.fromkeys(symbols.values(), WAVES[0])
            other |= dict.fromkeys(symbols.values(), WAVES[1])
        elif spec.batch == 1 and 1 in symbols:
            late[symbols[1]] = batch
    tried: list[Inputs] = []
    trials = [chosen | batches | more for chosen in (best, other, probe) for more in (late, {})] + [probe]
    for trial in (fit for t in trials for fit in (t, shapes.fitted(t))):
        found = axes.shapes(trial)
        if found not in tried and all(d > 0 for dims in found.values() for d in dims):
            tried.append(found)
            yield found


def _image_size(spec: Input, shapes: Shapes, symbols: Mapping[int, str]) -> dict[str, int]:
    """Seven or eight positions a side where the network is coarsest, as at 224 for the usual stride of 32; a width
    that alone is open is that of a line of text, and so are both where much less is left of the height."""
    rank = len(spec.axes)
    rows, columns = (rank - 2, rank - 1) if spec.channel == 1 else (rank - 3, rank - 2)
    high, wide = spec.axes[rows], spec.axes[columns]
    if high and columns in symbols:
        return {symbols[columns]: 4 * high}
    if rows not in symbols:
        return {symbols[columns]: wide} if columns in symbols and wide else {}
    size = shapes.inputs[0][spec.name][rows]
    if columns in symbols and _reads_lines(spec, shapes, rows, columns):
        return {symbols[rows]: LINE, symbols[columns]: 4 * LINE}
    least = min((d for name, dims in shapes.probe[0].items() if len(dims) == rank
                 for d, fixed in zip(dims[1:], (shapes.static(name) or ())[1:], strict=False)
                 if d and fixed is None), default=size)  # fmt: skip
    stride = max(1, size // max(least, 1))
    best = 224 if stride >= 16 else max(32, 8 * stride)
    return {symbols[k]: best for k in (rows, columns) if k in symbols}


def _reads_lines(spec: Input, shapes: Shapes, rows: int, columns: int) -> bool:
    """Whether the height shrinks to less than half of what the width does: writing goes on to the right."""
    height, width = (shapes.inputs[0][spec.name][k] for k in (rows, columns))
    left = [dims for name, dims in shapes.probe[0].items() if len(dims) == len(spec.axes)
            and dims[rows] and dims[columns] and (shapes.static(name) or dims)[columns] is None]  # fmt: skip
    if not left:
        return False
    high, wide = (min(dims[k] or 1 for dims in left) for k in (rows, columns))
    return height * wide >= 2 * width * high
