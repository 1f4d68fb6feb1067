"""State widths: gated linear attention over a few steps, whose state of keys by values begins with zeros that exporters
make in one of several ways. The widths of keys and
of values in every head may go.
"""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph, pruned, shapes, silence
from onnx import ModelProto

HEADS, KEY, VALUE, STEPS = 4, 6, 8, 3
ZEROS = {
    "ConstantOfShape": "zero = ConstantOfShape(state)",
    "Expand": "nil = Constant <value_float = 0.0> () zero = Expand(nil, state)",
    "Tile": "one = ConstantOfShape(ones) many = Concat <axis = 0> (single, sizes) zero = Tile(one, many)",
}


def steps() -> str:
    """state <- state * gate + key x value; what comes out is query . state."""
    text = []
    for t in range(STEPS):
        last = f"s{t - 1}" if t else "zero"
        text.append(
            f"t{t} = Constant <value_int = {t}> () q{t} = Gather <axis = 1> (q, t{t}) k{t} = Gather <axis = 1> (k, t{t}) "
            f"v{t} = Gather <axis = 1> (v, t{t}) g{t} = Gather <axis = 1> (g, t{t}) "
            f"gc{t} = Unsqueeze(g{t}, end) kc{t} = Unsqueeze(k{t}, end) qc{t} = Unsqueeze(q{t}, end) vr{t} = Unsqueeze(v{t}, near) "
            f"kept{t} = Mul({last}, gc{t}) new{t} = Mul(kc{t}, vr{t}) s{t} = Add(kept{t}, new{t}) "
            f"read{t} = Mul(s{t}, qc{t}) o{t} = ReduceSum <keepdims = 0> (read{t}, near) y{t} = Unsqueeze(o{t}, first)"
        )
    return " ".join(text)


def network(zeros: str) -> ModelProto:
    wide = {"q": KEY, "k": KEY, "g": KEY, "v": VALUE}
    text = (
        "".join(f"{x}f = MatMul(x, w{x}) {x}h = Reshape(f{x}, to{x}) ".replace(f"f{x}", f"{x}f") for x in wide)
        + "q = Identity(qh) k = Identity(kh) v = Identity(vh) g = Sigmoid(gh) batch = Shape <end = 1> (x) "
        + "state = Concat <axis = 0> (batch, sizes) ones = Concat <axis = 0> (batch, singles) "
        + f"{ZEROS[zeros]} {steps()} all = Concat <axis = 1> ({', '.join(f'y{t}' for t in range(STEPS))}) "
        + "flat = Reshape(all, back) y = MatMul(flat, wo)"
    )
    rng = np.random.default_rng(0)
    weights = {f"w{x}": rng.standard_normal((8, HEADS * n)).astype(np.float32) / 3 for x, n in wide.items()}
    return graph(
        f"(float[N, {STEPS}, 8] x) => (float[N, {STEPS}, 5] y)", text, **weights,
        wo=rng.standard_normal((HEADS * VALUE, 5)).astype(np.float32),
        **{f"to{x}": np.array([0, STEPS, HEADS, n]) for x, n in wide.items()}, back=np.array([0, STEPS, HEADS * VALUE]),
        sizes=np.array([HEADS, KEY, VALUE]), singles=np.array([1, 1, 1]), single=np.array([1]), end=np.array([-1]),
        near=np.array([-2]), first=np.array([1]),
    )  # fmt: skip


def columns(head: int, width: int, inside: range) -> list[int]:
    return [head * width + k for k in inside]


@pytest.mark.parametrize("zeros", ZEROS)
def test_widths_inside_heads_go(zeros: str) -> None:
    """The same of every head, as those of all heads meet on one axis of the state."""
    model = network(zeros)
    keys = [c for h in range(HEADS) for c in columns(h, KEY, range(0, KEY, 2))]
    values = [c for h in range(HEADS) for c in columns(h, VALUE, range(1, 5))]
    silence(model, dict.fromkeys(("wq", "wk", "wg"), (1, keys)) | {"wv": (1, values), "wo": (0, values)})
    result = pruned(model, equal=True, heads=False)
    found = shapes(result)
    assert (found["wk"], found["wg"], found["wv"], found["wo"]) == ((8, 12), (8, 12), (8, 16), (16, 5))
