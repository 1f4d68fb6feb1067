"""Sizes as expressions, operator by operator: what they come to is what ONNX Runtime gives, at every size tried."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_shapes import agrees, inferred, text

ROWS: list[tuple[str, str, str, dict[str, Any], str]] = [
    # what, inputs, nodes that make y, constants, the dims of y
    ("reshape, one size left out", "float[N, S, 8] x", "y = Reshape(x, to)", {"to": [0, -1, 4]}, "N, 2*S, 4"),
    ("reshape, all but one merged", "float[N, S, 8] x", "y = Reshape(x, to)", {"to": [-1, 8]}, "N*S, 8"),
    ("reshape to computed sizes", "float[N, S, 8] x",
     "s = Shape(x) n = Slice(s, a, b) to = Concat<axis=0>(n, tail) y = Reshape(x, to)",
     {"a": [0], "b": [2], "tail": [2, 4]}, "N, S, 2, 4"),
    ("a multiple", "float[N, L] x", "y = Reshape(x, to)", {"to": [0, -1, 12]}, "N, floor(L, 12), 12"),
    ("a ratio of two batches", "float[A, 4] x, float[B, 9] e",
     "a = Shape<start=0, end=1>(x) b = Shape<start=0, end=1>(e) m = Mul(b, nine) y0 = Reshape(e, flat) "
     "q = Div(m, a) g = Mul(q, a) y = ConstantOfShape(q)",
     {"nine": [9], "flat": [-1]}, "floor(9*B, A)"),
    ("a slice with an end beyond", "float[N, S, 8] x", "y = Slice(x, a, b, axes)", {"a": [0], "b": [10], "axes": [1]},
     "N, min(10, S), 8"),
    ("a slice without the first", "float[N, S, 8] x", "y = Slice(x, a, b, axes)",
     {"a": [1], "b": [2**63 - 1], "axes": [1]}, "N, (S + -1), 8"),
    ("the last three", "float[N, S, 8] x", "y = Slice(x, a, b, axes)", {"a": [-3], "b": [2**63 - 1], "axes": [1]},
     "N, max((S + -1*max((S + -3), 0)), 0), 8"),
    ("every second", "float[N, S, 8] x", "y = Slice(x, a, b, axes, step)",
     {"a": [0], "b": [2**63 - 1], "axes": [1], "step": [2]}, "N, floor((S + 1), 2), 8"),
    ("back to front", "float[N, S, 8] x", "y = Slice(x, a, b, axes, step)",
     {"a": [-1], "b": [-(2**63) + 1], "axes": [1], "step": [-1]}, "N, S, 8"),
    ("min of a length", "float[N, S] x", "s = Shape<start=1>(x) k = Min(s, eight) y, i = TopK(x, k)", {"eight": [8]},
     "N, min(8, S)"),
    ("concat", "float[N, S, 8] x, float[N, T, 8] z", "y = Concat<axis=1>(x, z, x)", {}, "N, (2*S + T), 8"),
    ("split", "float[N, S, 8] x", "z, y = Split<axis=2>(x)", {}, "N, S, 4"),
    ("expand to computed sizes", "float[N, 1, 8] x, float[M, S] z",
     "s = Shape<start=1>(z) to = Concat<axis=0>(one, s, one) y = Expand(x, to)", {"one": [1]}, "N, S, 8"),
    ("tile", "float[N, 3] x", "s = Shape<start=0, end=1>(x) r = Concat<axis=0>(one, s) y = Tile(x, r)", {"one": [1]},
     "N, 3*N"),
    ("pad to windows", "float[N, S] x",
     "s = Shape<start=1>(x) n = Neg(s) m = Mod(n, seven) p = Concat<axis=0>(o, o, o, m) q = Pad(x, p) "
     "y = Reshape(q, to)", {"seven": [7], "o": [0], "to": [0, -1, 7]}, "N, floor((S + 6), 7), 7"),
    ("range", "float[N, S] x", "s = Shape<start=1>(x) n = Squeeze(s) y = Range(zero, n, one)",
     {"zero": 0, "one": 1}, "S"),
    ("conv", "float[N, 3, H, W] x", "y = Conv<strides=[2, 2], pads=[1, 1, 1, 1]>(x, w)",
     {"w": np.ones((4, 3, 3, 3), np.float32)}, "N, 4, floor((H + 1), 2), floor((W + 1), 2)"),
    ("conv, same", "float[N, 3, H, W] x", 'y = Conv<strides=[2, 2], auto_pad="SAME_UPPER">(x, w)',
     {"w": np.ones((4, 3, 3, 3), np.float32)}, "N, 4, floor((H + 1), 2), floor((W + 1), 2)"),
    ("conv of a batch", "float[N, 3, 8, 8] x", "y = Conv<dilations=[2, 2]>(x, w)",
     {"w": np.ones((4, 3, 3, 3), np.float32)}, "N, 4, 4, 4"),
    ("transposed conv", "float[N, 4, H, 8] x", "y = ConvTranspose<strides=[2, 2], output_padding=[1, 0]>(x, w)",
     {"w": np.ones((4, 2, 3, 3), np.float32)}, "N, 2, (2*H + 2), 17"),
    ("pool", "float[N, 3, H, 8] x", "y = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x)", {},
     "N, 3, floor(H, 2), 4"),
    ("pool, rounded up", "float[N, 3, 7, 7] x", "y = MaxPool<kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1>(x)", {},
     "N, 3, 4, 4"),
    ("twice as large", "float[N, 3, H, W] x", "y = Resize(x, , scales)", {"scales": np.float32([1, 1, 2, 2])},
     "N, 3, 2*H, 2*W"),
    ("as large as another", "float[N, 3, H, W] x, float[N, 3, P, Q] z", "s = Shape(z) y = Resize(x, , , s)", {},
     "N, 3, P, Q"),
    ("pixels to channels", "float[N, 2, H, W] x",
     "d = SpaceToDepth<blocksize=2>(x) y = DepthToSpace<blocksize=2>(d)", {}, "N, 2, 2*floor(H, 2), 2*floor(W, 2)"),
    ("flatten", "float[N, 4, H] x", "y = Flatten(x)", {}, "N, 4*H"),
    ("einsum", "float[N, S, 4] x", 'y = Einsum<equation="nsc, ntc -> nst">(x, x)', {}, "N, S, S"),
    ("a size in floats", "float[N, 3, H, W] x",
     "s = Shape<start=2>(x) f = Cast<to=1>(s) d = Mul(f, two) r = Floor(d) i = Cast<to=7>(r) h = Shape<end=2>(x) "
     "t = Concat<axis=0>(h, i) y = Resize(x, , , t)", {"two": np.float32(2)}, "N, 3, 2*H, 2*W"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "inputs", "nodes", "constants", "dims"), ROWS, ids=[row[0] for row in ROWS])
def test_sizes_are_known_and_right(what: str, inputs: str, nodes: str, constants: dict[str, Any], dims: str) -> None:
    model = text(f"g ({inputs}) => (float[{','.join('abcd'[: dims.count(', ') + 1])}] y) {{ {nodes} }}",
                 **{n: np.asarray(x) for n, x in constants.items()})  # fmt: skip
    if what == "range":
        model.graph.output[0].type.tensor_type.elem_type = 7
    shapes = inferred(model)
    found = shapes.sizes("y")
    assert found is not None
    assert ", ".join(map(str, found)) == dims
    agrees(shapes, model)


@pytest.mark.parametrize("multiple", [12, 441, 480, 80 * 80])
def test_lengths_that_have_to_be_multiples_are_found(multiple: int) -> None:
    model = text("g (float[N, L] x) => (float[a, b, c] y) { y = Reshape(x, to) }", to=np.array([0, -1, multiple]))
    shapes = inferred(model)
    assert len(shapes.inputs) >= 6
    assert all(sizes["x"][1] % multiple == 0 for sizes in shapes.inputs)
    assert shapes.static("y") == (None, None, multiple)


def test_the_only_length_that_fits_is_found() -> None:
    """An exporter wrote the length of its example into one target, and left the input open."""
    model = text("g (float[N, L, 4] x) => (float[a, b, c] y) { y = Reshape(x, to) }", to=np.array([0, 7, 4]))
    shapes = inferred(model)
    assert {sizes["x"][1] for sizes in shapes.inputs} == {7}
    assert shapes.pinned == ("L",)


def test_skips_that_fit_only_at_some_sizes() -> None:
    """A U-Net: what is pooled and made large again meets what was not."""
    model = text(
        """g (float[N, 2, H, W] x) => (float[a, b, c, d] y) {
            p = MaxPool<kernel_shape=[4, 4], strides=[4, 4]>(x)
            u = Resize(p, , scales)
            y = Concat<axis=1>(u, x)
        }""",
        scales=np.float32([1, 1, 4, 4]),
    )
    shapes = inferred(model)
    assert len(shapes.inputs) >= 6
    assert all(n % 4 == 0 for sizes in shapes.inputs for n in sizes["x"][2:])
    agrees(shapes, model)


BRANCH = """g (float[N, S, 4] x) => (float[a, b, c] y) {
    s = Shape<start=1, end=2>(x) n = Squeeze(s) long = Greater(n, eight)
    y = If(long) <
        then_branch = t () => (float[d, e, f] p) { p = Slice(x, from, to, axis) },
        else_branch = u () => (float[g, h, i] q) { q = Identity(x) }
    >
}"""


def test_a_branch_on_a_size_is_not_decided() -> None:
    constants = {"eight": np.array(8), "from": np.array([0]), "to": np.array([8]), "axis": np.array([1])}
    model = text(BRANCH, **constants)
    shapes = inferred(model)
    assert shapes.value("long") is None
    assert shapes.static("y") == (None, None, 4)
    agrees(shapes, model)


def test_a_comparison_that_holds_for_all_sizes_is_known() -> None:
    model = text(
        "g (float[N, S] x) => (bool[a] y) { s = Shape<start=1>(x) t = Add(s, one) y = Greater(t, s) }",
        one=np.array([1]),
    )
    value = inferred(model).value("y")
    assert value is not None
    assert value.tolist() == [True]
