"""A hypothesis strategy that grows small random graphs: branches and merges, reshapes, attention, tied weights.

Every tensor's first axis is the batch, of run-time size; `Graph.shapes` holds the sizes of the others. Tensors of other
open sizes are in `Graph.open`; how they grow is in `random_sizes`."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
Dim = int | str
"""A size, or the symbol of an open one."""
Grow = Callable[["Graph", str], None]
OPS: list[tuple[Callable[[Shape], bool], Grow]] = []
LARGEST = 4096


def op(fits: Callable[[Shape], bool]) -> Callable[[Grow], Grow]:
    """Register a way to grow a graph from a tensor of a shape that fits."""

    def register(grow: Grow) -> Grow:
        OPS.append((fits, grow))
        return grow

    return register


class Graph:
    """A graph under construction, and the draws that decide about it."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 255)))
        self.nodes: list[NodeProto] = []
        self.params: dict[str, NDArray[Any]] = {}
        self.roles: dict[tuple[str, Shape], list[str]] = {}
        self.shapes: dict[str, Shape] = {}
        self.open: dict[str, tuple[Dim, ...]] = {}
        self.inputs: list[str] = []
        self.made = 0

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def input(self, shape: Shape) -> None:
        name = f"in{len(self.inputs)}"
        self.inputs.append(name)
        self.shapes[name] = shape

    def input_open(self, *dims: Dim) -> str:
        name = f"in{len(self.inputs)}"
        self.inputs.append(name)
        self.open[name] = dims
        return name

    def param(self, *shape: int, role: str = "weight") -> str:
        """A parameter of distinct values; now and then one of the same shape and role is shared."""
        known = self.roles.setdefault((role, shape), [])
        if known and self.choose(False, False, True):
            return str(self.choose(*known))
        n = prod(shape)
        values = self.rng.permutation(np.linspace(-1, 1, n) if n > 1 else np.ones(1)) + self.rng.uniform(-0.3, 0.3) / n
        values *= (3 / max(n // max(shape, default=1), 1)) ** 0.5 if role == "weight" else 1
        known.append(f"{role}{len(self.params)}")
        self.params[known[-1]] = (
            (abs(values) + 0.5 + values / 8 if role == "variance" else values).reshape(shape).astype(np.float32)
        )
        return known[-1]

    def ints(self, *values: int) -> str:
        name = f"ints{len(self.params)}"
        self.params[name] = np.array(values, np.int64)
        return name

    def add(self, kind: str, inputs: list[str], *shapes: Shape | None, **attributes: Any) -> str:
        """Add a node; a shape of None marks a helper tensor that nothing else grows from. Returns the first output."""
        outs = [f"t{self.made}" + (f"_{k}" if k else "") for k in range(len(shapes))]
        self.nodes.append(helper.make_node(kind, inputs, outs, name=f"{kind}_{self.made}", **attributes))
        self.made += 1
        self.shapes |= {o: s for o, s in zip(outs, shapes, strict=True) if s is not None}
        return outs[0]

    def reshape(self, x: str, shape: Shape, merged: bool = False) -> str:
        """To `shape` behind the batch axis, with a target as exporters write it; `merged`: the batch takes in an axis."""
        style = "minus" if merged else self.choose("minus", "zero", "computed")
        if style != "computed":
            return self.add("Reshape", [x, self.ints(0 if style == "zero" else -1, *shape)], shape)
        sizes = self.add("Shape", [x], None)
        batch = self.add("Slice", [sizes, self.ints(0), self.ints(1)], None)
        target = self.add("Concat", [batch, self.ints(*shape)], None, axis=0)
        return self.add("Reshape", [x, target], shape)

    def transpose(self, x: str, *perm: int) -> str:
        return self.add("Transpose", [x], tuple(self.shapes[x][p - 1] for p in perm), perm=[0, *perm])

    def linear(self, x: str, width: int) -> str:
        """MatMul with a weight, and mostly a bias, on the last axis."""
        *rest, n = self.shapes[x]
        y = self.add("MatMul", [x, self.param(n, width)], (*rest, width))
        if self.choose(True, False):
            bias = self.param(width, role="bias")
            y = self.add("Add", self.choose([y, bias], [bias, y]), (*rest, width))
        return y

    def conv(self, x: str, width: int, groups: int = 1, transposed: bool = False) -> str:
        channels, *image = self.shapes[x]
        kernel = self.choose(1, 3)
        sides = (channels, width // groups) if transposed else (width, channels // groups)
        inputs = [x, self.param(*sides, *[kernel] * len(image))]
        if self.choose(True, False):
            inputs.append(self.param(width, role="bias"))
        return self.add("ConvTranspose" if transposed else "Conv", inputs, (width, *image), group=groups,
                        kernel_shape=[kernel] * len(image), pads=[kernel // 2] * 2 * len(image))  # fmt: skip

    def grow(self) -> None:
        names = list(self.shapes)
        x = names[-1 - self.draw(st.integers(0, min(len(names), 4) - 1))]
        fitting = [grow for fits, grow in OPS if fits(self.shapes[x])]
        self.choose(*fitting)(self, x)

    def finish(self) -> ModelProto:
        """Unread tensors become outputs; some through a last layer, so that their channels may go."""
        for x in [x for x in self.unread() if x in self.shapes]:
            shape = self.shapes[x]
            if self.choose(True, True, True, True, False):
                if len(shape) in (2, 3) and self.choose(True, False):
                    self.conv(x, 3)
                elif shape:
                    self.linear(x, 3)
        outputs = [x for x in self.unread() if x not in self.inputs]
        graph = helper.make_graph(
            self.nodes, "random", [self._info(x) for x in self.inputs], [self._info(x) for x in outputs],
            [numpy_helper.from_array(a, name) for name, a in self.params.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    def unread(self) -> list[str]:
        read = {i for n in self.nodes for i in reads(n)}
        return [x for x in (*self.shapes, *self.open) if x not in read]

    def _info(self, name: str) -> Any:
        dims = self.open[name] if name in self.open else ("batch", *self.shapes[name])
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def reads(node: NodeProto) -> set[str]:
    """What a node and its bodies read; names are unique, so that what a body makes is in no one's way."""
    return {*node.input, *(i for a in node.attribute for n in a.g.node for i in reads(n))}


@st.composite
def models(draw: Any) -> ModelProto:
    """Of one open size, the batch."""
    g = Graph(draw)
    g.input(g.choose((4, 5, 5), (3, 6, 4), (5, 8), (12,)))
    x = g.inputs[0]
    width = g.choose(8, 4, 12, 6)
    if len(g.shapes[x]) == 3:
        g.conv(x, width)
    else:
        g.linear(x, width)
    for _ in range(draw(st.integers(1, 9))):
        g.grow()
    return g.finish()


def divisors(n: int) -> list[int]:
    return [d for d in range(2, n) if n % d == 0]


def ranked(*ranks: int) -> Callable[[Shape], bool]:
    return lambda shape: len(shape) in ranks


def composite(shape: Shape) -> bool:
    return any(divisors(n) for n in shape)


@op(ranked(2, 3))
def convolution(g: Graph, x: str) -> None:
    g.conv(x, g.choose(8, 6, 4, 12), transposed=g.choose(False, False, True))


@op(lambda s: len(s) in (2, 3) and s[0] > 1)
def grouped(g: Graph, x: str) -> None:
    channels = g.shapes[x][0]
    groups = g.choose(channels, *divisors(channels))
    g.conv(x, groups * g.choose(1, 2, channels // groups), groups, transposed=g.choose(False, False, True))


@op(lambda s: len(s) > 0)
def dense(g: Graph, x: str) -> None:
    g.linear(x, g.choose(8, 6, 4, 12))


@op(ranked(1))
def gemm(g: Graph, x: str) -> None:
    n, width = g.shapes[x][0], g.choose(8, 6, 4)
    turned = g.choose(0, 1)
    weight = g.param(*((width, n) if turned else (n, width)))
    bias = [g.param(*g.choose((width,), (1, width), (1,)), role="bias")] if g.choose(True, False) else []
    g.add("Gemm", [x, weight, *bias], (width,), transB=turned)


@op(lambda s: True)
def unary(g: Graph, x: str) -> None:
    g.add(g.choose("Relu", "Sigmoid", "Tanh", "Neg", "Identity"), [x], g.shapes[x])


@op(lambda s: len(s) > 0)
def broadcast_parameter(g: Graph, x: str) -> None:
    shape = g.shapes[x]
    own = [n if g.choose(True, False) else 1 for n in shape[g.draw(st.integers(0, len(shape) - 1)) :]]
    value = g.param(*g.choose([], [1], [1])[: 1 - len(own)], *own, role="scale")
    g.add(g.choose("Add", "Mul", "Sub", "Div"), [x, value], shape) if g.params[value].all() else None


@op(lambda s: True)
def merge(g: Graph, x: str) -> None:
    """With a tensor of the same shape, or one of size one along some axes."""
    shape = g.shapes[x]
    others = [y for y, s in g.shapes.items() if y != x and len(s) == len(shape)
              and all(n in (1, m) for n, m in zip(s, shape, strict=True))]  # fmt: skip
    if others:
        y = g.choose(*others[::-1])
    elif len(shape) in (2, 3):
        y = g.conv(x, shape[0])
    else:
        y = g.linear(x, shape[-1]) if shape else x
    g.add(g.choose("Add", "Mul", "Sub", "Max"), g.choose([x, y], [y, x]), shape)


@op(lambda s: len(s) > 0)
def concat(g: Graph, x: str) -> None:
    shape = g.shapes[x]
    axis = g.draw(st.integers(0, len(shape) - 1))
    fitting = [
        y
        for y, s in g.shapes.items()
        if len(s) == len(shape) and s[:axis] + s[axis + 1 :] == shape[:axis] + shape[axis + 1 :]
    ]
    parts = [x, g.choose(*fitting[::-1])]
    size = sum(g.shapes[p][axis] for p in parts)
    if prod(shape) // shape[axis] * size <= LARGEST:
        g.add("Concat", parts, (*shape[:axis], size, *shape[axis + 1 :]), axis=axis + 1)


@op(lambda s: any(n > 1 for n in s))
def split(g: Graph, x: str) -> None:
    shape = g.shapes[x]
    axis = g.choose(*(k for k, n in enumerate(shape) if n > 1))
    cut = g.choose(shape[axis] // 2, g.draw(st.integers(1, shape[axis] - 1)))
    sizes = (cut, shape[axis] - cut)
    g.add("Split", [x, g.ints(*sizes)], *((*shape[:axis], n, *shape[axis + 1 :]) for n in sizes), axis=axis + 1)


@op(lambda s: any(n > 2 for n in s))
def pick(g: Graph, x: str) -> None:
    """Slice or Gather with constant positions."""
    shape = g.shapes[x]
    axis = g.choose(*(k for k, n in enumerate(shape) if n > 2))
    n = shape[axis]
    if g.choose(True, False):
        start, end, step = g.choose(
            (0, n - 1, 1), (1, n, 1), (0, n, 2), (1, n, 2), (n - 1, -n - 1, -1), (1, 1 << 40, 1)
        )
        size = len(range(n)[slice(start, None if end < 0 else end, step)])
        bounds = [g.ints(start), g.ints(end), g.ints(axis + 1), g.ints(step)]
        g.add("Slice", [x, *bounds], (*shape[:axis], size, *shape[axis + 1 :]))
    else:
        at = g.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=n))
        g.add("Gather", [x, g.ints(*at)], (*shape[:axis], len(at), *shape[axis + 1 :]), axis=axis + 1)


@op(lambda s: len(s) < 4 and composite(s))
def split_axis(g: Graph, x: str) -> None:
    shape = g.shapes[x]
    axis = g.choose(*(k for k, n in enumerate(shape) if divisors(n)))
    outer = g.choose(*divisors(shape[axis]))
    g.reshape(x, (*shape[:axis], outer, shape[axis] // outer, *shape[axis + 1 :]))


@op(lambda s: len(s) > 1)
def merge_axes(g: Graph, x: str) -> None:
    shape = g.shapes[x]
    axis = g.draw(st.integers(0, len(shape) - 2))
    g.reshape(x, (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]))


@op(lambda s: len(s) > 1)
def flatten(g: Graph, x: str) -> None:
    g.add("Flatten", [x], (prod(g.shapes[x]),), axis=1)


@op(lambda s: len(s) > 1)
def permute(g: Graph, x: str) -> None:
    g.transpose(x, *g.draw(st.permutations(range(1, len(g.shapes[x]) + 1))))


@op(lambda s: len(s) in (2, 3) and bool(divisors(s[0])))
def shuffle(g: Graph, x: str) -> None:
    channels, *image = g.shapes[x]
    groups = g.choose(*divisors(channels))
    y = g.reshape(x, (groups, channels // groups, *image))
    y = g.transpose(y, 2, 1, *range(3, 3 + len(image)))
    g.reshape(y, (channels, *image))


@op(lambda s: len(s) > 0 and s[0] > 1)
def batch_norm(g: Graph, x: str) -> None:
    n = g.shapes[x][0]
    roles = ("scale", "bias", "bias", "variance")
    g.add("BatchNormalization", [x, *(g.param(n, role=r) for r in roles)], g.shapes[x])


@op(lambda s: len(s) > 0 and s[-1] > 2)
def layer_norm(g: Graph, x: str) -> None:
    roles = g.choose(("scale", "bias"), ("scale",))
    g.add("LayerNormalization", [x, *(g.param(g.shapes[x][-1], role=r) for r in roles)], g.shapes[x], axis=-1)


@op(lambda s: len(s) == 3 and bool(divisors(s[0])))
def group_norm(g: Graph, x: str) -> None:
    """As exporters write it: groups to an axis of their own, InstanceNormalization, and back."""
    shape = g.shapes[x]
    groups = g.choose(*divisors(shape[0]))
    y = g.reshape(x, (groups, prod(shape) // groups))
    y = g.add("InstanceNormalization", [y, g.param(groups, role="ones"), g.param(groups, role="bias")], g.shapes[y])
    y = g.reshape(y, shape)
    g.add("Mul", [y, g.param(shape[0], 1, 1, role="scale")], shape)


@op(lambda s: len(s) > 1)
def reduce(g: Graph, x: str) -> None:
    shape = g.shapes[x]
    axes = g.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=2, unique=True))
    keep = g.choose(1, 0)
    left = tuple(1 if k in axes else n for k, n in enumerate(shape) if keep or k not in axes)
    kind = g.choose("ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2")
    g.add(kind, [x, g.ints(*(a + 1 for a in axes))], left, keepdims=keep)


@op(ranked(2, 3))
def global_pool(g: Graph, x: str) -> None:
    g.add("GlobalAveragePool", [x], (g.shapes[x][0], *(1 for _ in g.shapes[x][1:])))


@op(lambda s: len(s) > 0)
def softmax(g: Graph, x: str) -> None:
    g.add("Softmax", [x], g.shapes[x], axis=g.draw(st.integers(1, len(g.shapes[x]))))


@op(ranked(2, 3))
def product(g: Graph, x: str) -> None:
    """A tensor with itself turned: scores."""
    *lead, rows, columns = g.shapes[x]
    rank = len(lead) + 2
    turned = g.transpose(x, *range(1, rank - 1), rank, rank - 1)
    order = g.choose(True, False)
    side = rows if order else columns
    g.add("MatMul", [x, turned] if order else [turned, x], (*lead, side, side))


@op(ranked(2))
def attention(g: Graph, x: str) -> None:
    """Multi-head attention: separate or fused projections, heads as an axis or merged into the batch."""
    length, _ = g.shapes[x]
    heads, each = g.choose(2, 4, 3), g.choose(4, 2)
    width = heads * each
    style = g.choose("separate", "split", "gather")
    if style == "separate":
        parts = [g.linear(x, width) for _ in range(3)]
    elif style == "split":
        fused = g.linear(x, 3 * width)
        q = g.add("Split", [fused, g.ints(width, width, width)], *((length, width),) * 3, axis=2)
        parts = [q, f"{q}_1", f"{q}_2"]
    if style == "gather":
        fused = g.transpose(g.reshape(g.linear(x, 3 * width), (length, 3, heads, each)), 2, 3, 1, 4)
        q, k, v = (g.add("Squeeze", [g.add("Gather", [fused, g.ints(i)], (1, heads, length, each), axis=1), g.ints(1)],
                         (heads, length, each)) for i in range(3))  # fmt: skip
    else:
        q, k, v = (g.transpose(g.reshape(p, (length, heads, each)), 2, 1, 3) for p in parts)
    k = g.transpose(k, 1, 3, 2)
    if g.choose(False, True):
        wide = [g.reshape(p, g.shapes[p][1:], merged=True) for p in (q, k, v)]
        scores = g.add("Softmax", [g.add("MatMul", wide[:2], None)], None, axis=-1)
        y = g.add("MatMul", [scores, wide[2]], None)
        y = g.add("Reshape", [y, g.ints(-1, heads, length, each)], (heads, length, each))
        for p in wide:
            del g.shapes[p]
    else:
        scores = g.add("Softmax", [g.add("MatMul", [q, k], (heads, length, length))], (heads, length, length), axis=-1)
        y = g.add("MatMul", [scores, v], (heads, length, each))
    y = g.reshape(g.transpose(y, 2, 1, 3), (length, width))
    g.linear(y, g.shapes[x][1])
