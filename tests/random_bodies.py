"""Ways to grow a random graph that have bodies: If, Loop and Scan. Weights and other tensors are read from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import GraphProto, TensorProto, helper
from random_graph import LARGEST, Graph, Shape, op


@contextmanager
def body(g: Graph, **given: Shape) -> Iterator[None]:
    """What is added meanwhile is added to a body, to which tensors of these shapes are given."""
    nodes, shapes = g.nodes, dict(g.shapes)
    g.nodes, g.shapes = [], g.shapes | given
    yield
    g.nodes, g.shapes = nodes, shapes


def close(g: Graph, given: dict[str, int], *outs: str, known: bool = False) -> GraphProto:
    """The body so far. Shapes of what it is given are said or, unless they have to be known, left open."""

    def info(name: str, kind: int) -> Any:
        if kind != TensorProto.FLOAT:
            return helper.make_tensor_value_info(name, kind, [])
        return helper.make_tensor_value_info(
            name, kind, ["batch", *g.shapes[name]] if known or g.choose(True, False) else None
        )

    ends = [info(n, given.get(n, TensorProto.FLOAT)) if known else
            helper.make_tensor_value_info(n, given.get(n, TensorProto.FLOAT), None) for n in outs]  # fmt: skip
    g.made += 1
    return helper.make_graph(g.nodes, f"body{g.made}", [info(n, k) for n, k in given.items()], ends)


def grown(g: Graph, x: str, shape: Shape | None = None) -> str:
    """A tensor made of `x` in a few steps, of the given shape."""
    y = g.add("Identity", [x], g.shapes[x])
    for _ in range(g.draw(st.integers(0, 2))):
        g.grow()
    candidates = [n for n in list(g.shapes)[list(g.shapes).index(y) :] if shape is None or g.shapes[n] == shape]
    if candidates:
        return candidates[-1]
    last = list(g.shapes)[-1]
    flat = g.add("Flatten", [last], (prod(g.shapes[last]),), axis=1)
    return g.reshape(g.linear(flat, prod(shape or ())), shape or ())


def small(shape: Shape) -> bool:
    return len(shape) > 0 and prod(shape) <= 96


@op(small)
def branch(g: Graph, x: str) -> None:
    whole = g.add("ReduceSum", [x], None, keepdims=0)
    more = g.add("Greater", [whole, g.param(role="scale")], None)
    with body(g):
        one = grown(g, x)
        shape = g.shapes[one]
        if prod(shape) > 96:
            one, shape = g.add("Tanh", [x], g.shapes[x]), g.shapes[x]
        then = close(g, {}, g.add("Neg", [one], shape))
    with body(g):
        other = close(g, {}, g.add("Neg", [grown(g, x, shape)], shape))
    g.add("If", [more], shape, then_branch=then, else_branch=other)


@op(small)
def loop(g: Graph, x: str) -> None:
    shape, turns = g.shapes[x], g.choose(2, 3, 1)
    count, yes = f"count{g.made}", f"yes{g.made}"
    g.params |= {count: np.array(turns, np.int64), yes: np.array(True)}
    state, turn, again = f"state{g.made}", f"turn{g.made}", f"again{g.made}"
    with body(g, **{state: shape}):
        end = g.add("Tanh", [grown(g, state, shape)], shape)
        every = [g.add("Neg", [g.choose(end, state)], shape)] if g.choose(True, False) else []
        on = g.add("Identity", [again], None)
        kinds = {turn: TensorProto.INT64, again: TensorProto.BOOL, state: TensorProto.FLOAT}
        inner = close(g, kinds, on, end, *every)
        inner.output[0].CopyFrom(helper.make_tensor_value_info(on, TensorProto.BOOL, None))
    out = g.add("Loop", [count, yes, x], shape, *[None for _ in every], body=inner)
    if every and turns * prod(shape) <= LARGEST:
        rank = len(shape) + 2
        g.add("Transpose", [f"{out}_1"], (turns, *shape), perm=[1, 0, *range(2, rank)])


@op(lambda s: len(s) > 1 and small(s))
def scan(g: Graph, x: str) -> None:
    shape = g.shapes[x]
    axis = g.draw(st.integers(0, len(shape) - 1))
    step = (*shape[:axis], *shape[axis + 1 :])
    first = g.linear(g.add("ReduceMean", [x, g.ints(axis + 1)], step, keepdims=0), g.choose(4, 6, 8))
    width = g.shapes[first]
    state, at = f"state{g.made}", f"at{g.made}"
    with body(g, **{state: width, at: step}):
        moved = g.linear(at, width[-1])
        held = g.linear(state, width[-1])
        end = g.add("Tanh", [g.add("Add", [moved, held], width)], width)
        every = g.add("Neg", [grown(g, end)], g.shapes[list(g.shapes)[-1]]) if g.choose(True, False) else ""
        made = g.shapes[every] if every else ()
        inner = close(g, {state: TensorProto.FLOAT, at: TensorProto.FLOAT}, end, *[every][: bool(every)], known=True)
    stacked = (shape[axis], *made)
    ways = {"scan_output_axes": [1]} if every else {}
    g.add("Scan", [first, x], width, *[stacked][: bool(every)], body=inner, num_scan_inputs=1,
          scan_input_axes=[axis + 1], **ways)  # fmt: skip
