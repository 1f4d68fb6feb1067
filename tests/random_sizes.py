"""Ways to grow a random graph over axes of open size: batches and lengths of several inputs, and what exporters work out
from them.

`Graph.open` holds the sizes of such tensors, batch first and channels last: numbers and symbols. What arithmetic makes of
a size is a symbol of its own, so that only tensors whose sizes agree by themselves meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from random_bodies import body
from random_graph import Dim, Graph

Grow = Callable[[Graph, str], None]
SIZED: list[tuple[Callable[[Graph, str], bool], Grow]] = []
FRAME = 12
"""Lengths of some inputs must be a multiple of this."""
TABLE = 64
"""Rows of tables of positions."""
CLAMPS = (8, 10, 3)


def sized(grow: Grow) -> Grow:
    """Register a way to grow from any open tensor [batch, length, channels]."""
    SIZED.append((lambda g, x: True, grow))
    return grow


def when(fits: Callable[[Graph, str], bool]) -> Callable[[Grow], Grow]:
    def register(grow: Grow) -> Grow:
        SIZED.append((fits, grow))
        return grow

    return register


def begin(g: Graph) -> None:
    """One to three inputs of open sizes; the later ones share the batch, the length or neither with the first."""
    g.input_open("batch", g.choose("length", "length", 6), g.choose(8, 6, 12))
    for k in range(2, g.choose(2, 2, 3, 1) + 1):
        batch, length = g.choose("batch", f"batch{k}", f"batch{k}"), g.choose("length", f"length{k}", f"length{k}", 9)
        if g.choose(True, True, False):
            g.input_open(batch, length, g.choose(8, 6))
        else:
            frames(g, g.input_open(batch, f"length{k}"))
    for x in [x for x in g.open if len(g.open[x]) == 3]:
        dense(g, x)


def step(g: Graph) -> None:
    names = [x for x in g.open if len(g.open[x]) == 3][-4:]
    x = g.choose(*names[::-1])
    g.choose(*(grow for fits, grow in SIZED if fits(g, x)))(g, x)


def end(g: Graph) -> None:
    """What is not read is pooled to what every graph has, or becomes an output of open size."""
    for x in [x for x in g.unread() if x in g.open and x not in g.inputs]:
        if g.open[x][0] == "batch" and g.choose(True, False):
            pooled(g, x)
        elif g.choose(True, True, True, False):
            linear(g, x, 3)


# -- sizes as exporters write them ---------------------------------------------------------------------------------------


def size(g: Graph, x: str, axis: int) -> str:
    """One size of a tensor, as a vector of one number."""
    style = g.choose("range", "gather", "slice", "scalar")
    if style == "range":
        return g.add("Shape", [x], None, start=axis, end=axis + 1)
    shape = g.add("Shape", [x], None)
    if style == "gather":
        return g.add("Gather", [shape, g.ints(axis)], None)
    if style == "slice":
        return g.add("Slice", [shape, g.ints(axis), g.ints(axis + 1)], None)
    return g.add("Unsqueeze", [g.add("Gather", [shape, scalar(g, axis)], None), g.ints(0)], None)


def scalar(g: Graph, value: int) -> str:
    name = f"scalar{len(g.params)}"
    g.params[name] = np.array(value, np.int64)
    return name


def target(g: Graph, *parts: str | int) -> str:
    """A shape put together of sizes and numbers; now and then one of the sizes is left to the runtime."""
    return g.add("Concat", [p if isinstance(p, str) else g.ints(p) for p in parts], None, axis=0)


def inferred(g: Graph, part: str) -> str | int:
    return g.choose(part, part, -1)


def keep(g: Graph, name: str, *dims: Dim) -> str:
    g.open[name] = dims
    return name


def fresh(g: Graph, what: str) -> str:
    return f"{what}{g.made}"


def reshape(g: Graph, x: str, shape: str, *dims: Dim) -> str:
    return keep(g, g.add("Reshape", [x, shape], None), *dims)


def linear(g: Graph, x: str, width: int) -> str:
    *rest, n = g.open[x]
    y = g.add("MatMul", [x, g.param(int(n), width)], None)
    if g.choose(True, False):
        y = g.add("Add", g.choose([y, b := g.param(width, role="bias")], [b, y]), None)
    return keep(g, y, *rest, width)


def floats(g: Graph, x: str) -> str:
    return g.add("Cast", [x], None, to=TensorProto.FLOAT)


# -- layers --------------------------------------------------------------------------------------------------------------


@sized
def dense(g: Graph, x: str) -> None:
    linear(g, x, g.choose(8, 6, 12))


@sized
def unary(g: Graph, x: str) -> None:
    keep(g, g.add(g.choose("Relu", "Sigmoid", "Tanh"), [x], None), *g.open[x])


@sized
def shortcut(g: Graph, x: str) -> None:
    keep(g, g.add("Add", [x, linear(g, linear(g, x, g.choose(8, 6)), int(g.open[x][2]))], None), *g.open[x])


@sized
def norm(g: Graph, x: str) -> None:
    c = int(g.open[x][2])
    keep(g, g.add("LayerNormalization", [x, g.param(c, role="scale"), g.param(c, role="bias")], None, axis=-1),
         *g.open[x])  # fmt: skip


@sized
def over_positions(g: Graph, x: str) -> None:
    keep(g, g.add("Softmax", [x], None, axis=1), *g.open[x])


@sized
def pooled(g: Graph, x: str) -> None:
    """To [batch, channels], by the mean, the largest, or a sum divided by the length."""
    batch, _, c = g.open[x]
    kind = g.choose("ReduceMean", "ReduceMax", "ReduceSum")
    y = g.add(kind, [x, g.ints(1)], None, keepdims=0)
    if kind == "ReduceSum":
        y = g.add("Div", [y, floats(g, size(g, x, 1))], None)
    if batch == "batch":
        g.shapes[y] = (int(c),)
    else:
        keep(g, y, batch, c)


@sized
def rows(g: Graph, x: str) -> None:
    """All positions of all samples as rows of a matrix, and back."""
    batch, length, c = g.open[x]
    b, n = size(g, x, 0), size(g, x, 1)
    flat = g.add("Reshape", [x, target(g, g.choose(-1, g.add("Mul", [b, n], None)), int(c))], None)
    width = g.choose(8, 6)
    y = g.add("MatMul", [flat, g.param(int(c), width)], None)
    reshape(g, y, target(g, b, inferred(g, n), width), batch, length, width)


@sized
def scaled(g: Graph, x: str) -> None:
    """By the root of a size, of channels or of positions."""
    root = g.add("Sqrt", [floats(g, size(g, x, g.choose(2, 1)))], None)
    keep(g, g.add(g.choose("Div", "Mul"), [x, root], None), *g.open[x])


def first(g: Graph, x: str) -> str:
    """The first positions, as many as there are up to some number."""
    batch, _, c = g.open[x]
    most = g.choose(*CLAMPS)
    stop = g.ints(most) if g.choose(True, False) else g.add("Min", [size(g, x, 1), g.ints(most)], None)
    return keep(g, g.add("Slice", [x, g.ints(0), stop, g.ints(1)], None), batch, fresh(g, "first"), c)


@sized
def clamped(g: Graph, x: str) -> None:
    first(g, x)


@sized
def half(g: Graph, x: str) -> None:
    """The second half of the positions."""
    batch, _, c = g.open[x]
    n = size(g, x, 1)
    start = g.add("Div", [n, g.ints(2)], None)
    keep(g, g.add("Slice", [x, start, n, g.ints(1)], None), batch, fresh(g, "half"), c)


@sized
def best(g: Graph, x: str) -> None:
    """The best positions, as many as there are up to some number, by a score of each."""
    batch, _, c = g.open[x]
    score = g.add("Squeeze", [g.add("MatMul", [x, g.param(int(c), 1)], None), g.ints(2)], None)
    most = g.add("Min", g.choose([size(g, x, 1), k := g.ints(g.choose(*CLAMPS))], [k, size(g, x, 1)]), None)
    g.add("TopK", [score, most], None, None, axis=1)
    at = g.add("Unsqueeze", [f"t{g.made - 1}_1", g.ints(2)], None)
    at = g.add("Expand", [at, target(g, size(g, x, 0), most, size(g, x, 2))], None)
    keep(g, g.add("GatherElements", [x, at], None, axis=1), batch, fresh(g, "best"), c)


@sized
def where_long(g: Graph, x: str) -> None:
    """Other weights, and perhaps fewer positions, where there are many of them."""
    batch, length, c = g.open[x]
    width, cut = g.choose(8, 6), g.choose(True, False)
    most = g.choose(*CLAMPS)
    long = g.add("Greater", [g.add("Squeeze", [size(g, x, 1)], None), scalar(g, most)], None)
    graphs = []
    for then in (True, False):
        with body(g):
            y = g.add("MatMul", [x, g.param(int(c), width)], None)
            if then and cut:
                y = g.add("Slice", [y, g.ints(0), g.ints(most), g.ints(1)], None)
            graphs.append(helper.make_graph(g.nodes, f"body{g.made}", [], [helper.make_tensor_value_info(
                y, TensorProto.FLOAT, g.choose(None, [None, None, width]))]))  # fmt: skip
    y = g.add("If", [long], None, then_branch=graphs[0], else_branch=graphs[1])
    keep(g, y, batch, fresh(g, "some") if cut else length, width)


@sized
def positions(g: Graph, x: str) -> None:
    """Something for each position: rows of a table, a line, zeros, or a vector written out to all."""
    batch, length, c = g.open[x][0], g.open[x][1], int(g.open[x][2])
    n = size(g, x, 1)
    style = g.choose("table", "line", "zeros", "expanded")
    if style in ("table", "line"):
        steps = g.add("Range", [scalar(g, 0), g.add("Squeeze", [n], None), scalar(g, 1)], None)
        if style == "table":
            there = g.add("Gather", [g.param(TABLE, c), steps], None)
        else:
            there = g.add("MatMul", [g.add("Unsqueeze", [floats(g, steps), g.ints(1)], None), g.param(1, c)], None)
    elif style == "zeros":
        there = g.add("ConstantOfShape", [target(g, size(g, x, 0), n, c)], None, value=numbers(0.25))
    else:
        there = g.add("Expand", [g.param(1, 1, c), target(g, size(g, x, 0), n, c)], None)
    keep(g, g.add("Add", g.choose([x, there], [there, x]), None), batch, length, c)


def numbers(value: float) -> TensorProto:
    return helper.make_tensor("value", TensorProto.FLOAT, [1], [value])


@sized
def token(g: Graph, x: str) -> None:
    """One position more, learned, the same for every sample; perhaps taken off as what the whole stands for."""
    batch, _, c = g.open[x][0], g.open[x][1], int(g.open[x][2])
    learned = g.add("Expand", [g.param(1, 1, c), target(g, size(g, x, 0), 1, c)], None)
    y = keep(g, g.add("Concat", [learned, x], None, axis=1), batch, fresh(g, "more"), c)
    if batch == "batch" and g.choose(True, False):
        g.shapes[g.add("Gather", [y, scalar(g, 0)], None, axis=1)] = (c,)


def frames(g: Graph, x: str) -> str:
    """[batch, samples] in frames: the length must be a multiple."""
    batch = g.open[x][0]
    style = g.choose("left", "divided")
    count = -1 if style == "left" else g.add("Div", [size(g, x, 1), g.ints(FRAME)], None)
    return reshape(g, x, target(g, size(g, x, 0), count, FRAME), batch, fresh(g, "frames"), FRAME)


@sized
def windows(g: Graph, x: str) -> None:
    """Positions filled up to a multiple, something done to each window of them, and what was filled up cut off."""
    batch, length, c = g.open[x][0], g.open[x][1], int(g.open[x][2])
    n, side = size(g, x, 1), g.choose(4, 5)
    over = g.add("Mod", [n, g.ints(side)], None)
    fill = g.add("Mod", [g.add("Sub", [g.ints(side), over], None), g.ints(side)], None)
    nothing = g.ints(0)
    full = g.add("Pad", [x, target(g, nothing, nothing, nothing, nothing, fill, nothing)], None)
    cut = g.add("Reshape", [full, target(g, -1, side, c)], None)
    width = g.choose(8, 6)
    y = g.add("Softmax", [g.add("MatMul", [cut, g.param(c, width)], None)], None, axis=1)
    b = size(g, x, 0)
    back = g.add("Reshape", [y, target(g, b, g.choose(-1, g.add("Add", [n, fill], None)), width)], None)
    keep(g, g.add("Slice", [back, nothing, n, g.ints(1)], None), batch, length, width)


@sized
def strided(g: Graph, x: str) -> None:
    """A convolution along the positions, over every second of them, and perhaps back to as many as there were."""
    batch, length, c = g.open[x][0], g.open[x][1], int(g.open[x][2])
    width, back = g.choose(8, 6), g.choose(True, False)
    t = g.add("Transpose", [x], None, perm=[0, 2, 1])
    y = g.add("Conv", [t, g.param(width, c, 3)], None, kernel_shape=[3], strides=[2], pads=[1, 1])
    if back:
        shape = target(g, size(g, x, 0), width, size(g, x, 1))
        y = g.add("Resize", [y, "", "", shape], None, mode="nearest", coordinate_transformation_mode="asymmetric")
    keep(g, g.add("Transpose", [y], None, perm=[0, 2, 1]), batch, length if back else fresh(g, "every"), width)


@sized
def recurrent(g: Graph, x: str) -> None:
    """Positions first; the state at the beginning is as large as the batch."""
    batch, length, c = g.open[x][0], g.open[x][1], int(g.open[x][2])
    hidden = g.choose(4, 6)
    t = g.add("Transpose", [x], None, perm=[1, 0, 2])
    state = g.add("ConstantOfShape", [target(g, 1, size(g, x, 0), hidden)], None, value=numbers(0))
    y = g.add("GRU", [t, g.param(1, 3 * hidden, c), g.param(1, 3 * hidden, hidden), "", "", state], None, None,
              hidden_size=hidden)  # fmt: skip
    y = g.add("Squeeze", [f"t{g.made - 1}", g.ints(1)], None)
    keep(g, g.add("Transpose", [y], None, perm=[1, 0, 2]), batch, length, hidden)


# -- two tensors ---------------------------------------------------------------------------------------------------------


def alike(g: Graph, x: str, *axes: int) -> list[str]:
    return [y for y, d in g.open.items() if len(d) == 3 and y not in g.inputs and y != x
            and all(d[a] == g.open[x][a] for a in axes)]  # fmt: skip


def often(g: Graph, x: str) -> None:
    """Sizes matter where a Reshape has to say them: attention, mostly behind something that makes a size."""
    if g.choose(True, True, False):
        g.choose(clamped, clamped, best, where_long, half, strided, token)(g, x)
        x = [x for x in g.open if len(g.open[x]) == 3][-1]
    attention(g, x)


SIZED += [(lambda g, x: True, often)] * 5


@when(lambda g, x: bool(alike(g, x, 0, 1, 2)))
def merged(g: Graph, x: str) -> None:
    y = g.choose(*alike(g, x, 0, 1, 2))
    keep(g, g.add(g.choose("Add", "Mul", "Max"), [x, y], None), *g.open[x])


@when(lambda g, x: bool(alike(g, x, 0, 1)))
def beside(g: Graph, x: str) -> None:
    y = g.choose(*alike(g, x, 0, 1))
    batch, length, c = g.open[x]
    if int(c) + int(g.open[y][2]) <= 32:
        keep(g, g.add("Concat", [x, y], None, axis=2), batch, length, int(c) + int(g.open[y][2]))


@when(lambda g, x: bool(alike(g, x, 0, 2)))
def behind(g: Graph, x: str) -> None:
    y = g.choose(*alike(g, x, 0, 2))
    batch, _, c = g.open[x]
    keep(g, g.add("Concat", [x, y], None, axis=1), batch, fresh(g, "both"), c)


@sized
def attention(g: Graph, x: str) -> None:
    """Of a tensor to itself or to another one: of another length, of another batch, of its first positions."""
    others = [y for y, d in g.open.items() if len(d) == 3 and y not in g.inputs]
    y = g.choose(x, first(g, x) if g.choose(False, True) else x, *others[::-1])
    batch, length, c = g.open[x][0], g.open[x][1], int(g.open[x][2])
    heads, each = g.choose(2, 4, 3), g.choose(4, 2)
    b, n = size(g, x, 0), size(g, x, 1)
    q = split(g, linear(g, x, heads * each), target(g, b, inferred(g, n), heads, each))
    # Of another batch, keys are read as if they were of this one: as many positions each as there come to be.
    own = target(g, size(g, y, 0), inferred(g, size(g, y, 1)), heads, each)
    shape = own if g.open[y][0] == batch or g.choose(True, False) else target(g, b, -1, heads, each)
    k, v = (split(g, linear(g, y, heads * each), shape) for _ in range(2))
    if g.choose(True, False):
        scale = g.add("Sqrt", [floats(g, size(g, q, 3))], None)
        q = g.add(g.choose("Div", "Mul"), [q, scale], None)
    scores = product(g, q, g.add("Transpose", [k], None, perm=[0, 1, 3, 2])) if g.choose(True, False) else merged_heads(
        g, q, k)  # fmt: skip
    if y == x and g.choose(True, False):
        scores = masked(g, scores, n)
    y = g.add("MatMul", [g.add("Softmax", [scores], None, axis=-1), v], None)
    y = g.add("Transpose", [y], None, perm=[0, 2, 1, 3])
    linear(g, reshape(g, y, target(g, b, inferred(g, n), heads * each), batch, length, heads * each), c)


def split(g: Graph, x: str, shape: str) -> str:
    return g.add("Transpose", [g.add("Reshape", [x, shape], None)], None, perm=[0, 2, 1, 3])


def product(g: Graph, a: str, b: str) -> str:
    return g.add("MatMul", [a, b], None)


def merged_heads(g: Graph, q: str, k: str) -> str:
    """Keys turned while heads and batch are one axis, as exporters of the other kind write it."""
    shape = g.add("Shape", [k], None)
    tail = g.add("Slice", [shape, g.ints(2), g.ints(4)], None)
    flat = g.add("Reshape", [k, g.add("Concat", [g.ints(-1), tail], None, axis=0)], None)
    turned = g.add("Transpose", [flat], None, perm=[0, 2, 1])
    head = g.add("Slice", [shape, g.ints(0), g.ints(2)], None)
    back = g.add("Concat", [head, size(g, k, 3), size(g, k, 2)], None, axis=0)
    return g.add("MatMul", [q, g.add("Reshape", [turned, back], None)], None)


def masked(g: Graph, scores: str, n: str) -> str:
    """Positions before, and no later ones."""
    if g.choose(True, False):
        ones = g.add("ConstantOfShape", [target(g, n, n)], None, value=numbers(-1e4))
        return g.add("Add", [scores, g.add("Trilu", [ones, scalar(g, 1)], None, upper=1)], None)
    steps = g.add("Range", [scalar(g, 0), g.add("Squeeze", [n], None), scalar(g, 1)], None)
    later = g.add("Greater", [steps, g.add("Unsqueeze", [steps, g.ints(1)], None)], None)
    low = f"low{len(g.params)}"
    g.params[low] = np.array(-1e4, np.float32)
    return g.add("Where", [later, low, scores], None)


@st.composite
def open_models(draw: Any) -> ModelProto:
    """Of several open sizes; what is pooled goes on to grow as every other graph does."""
    g = Graph(draw)
    begin(g)
    for _ in range(draw(st.integers(1, 6))):
        step(g)
    end(g)
    for _ in range(draw(st.integers(0, 3)) if g.shapes else 0):
        g.grow()
    return g.finish()
