"""What a prototype tripped over, once each: attention, rotary embeddings, recurrent layers, shared and odd parameters."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import array, graph, inputs, pruned, run, shapes, silence
from onnx import ModelProto

from onnxprune.api import Result

LAST = np.array(-1)
EVEN = (0, 2, 4, 6)


def scaled_attention() -> ModelProto:
    """Dot-product attention whose scale is the square root of a size asked for at run time."""
    return graph(
        "(float[N, 6, 16] x) => (float[N, 6, 5] y)",
        """
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        kt = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(q, kt)
        size = Shape(q)
        depth = Gather<axis = 0>(size, last)
        wide = Cast<to = 1>(depth)
        root = Sqrt(wide)
        scaled = Div(s, root)
        p = Softmax<axis = -1>(scaled)
        o = MatMul(p, v)
        y = MatMul(o, wo)
        """,
        wq=(16, 8), wk=(16, 8), wv=(16, 8), wo=(8, 5), last=LAST,
    )  # fmt: skip


def test_scale_by_the_root_of_a_size() -> None:
    model = silence(scaled_attention(), {"wq": (1, EVEN), "wk": (1, EVEN), "wv": (1, EVEN), "wo": (0, EVEN)})
    kept = shapes(pruned(model, equal=True))
    assert (kept["wq"], kept["wk"], kept["wv"], kept["wo"]) == ((16, 4), (16, 4), (16, 4), (4, 5))


FUSED = """
    t = MatMul(x, w)
    u = Add(b, t)
    r = Reshape(u, to)
    z = Transpose<perm = [2, 0, 3, 1, 4]>(r)
    q = Gather<axis = 0>(z, zero)
    k = Gather<axis = 0>(z, one)
    v = Gather<axis = 0>(z, two)
    kt = Transpose<perm = [0, 1, 3, 2]>(k)
    s = MatMul(q, kt)
    m = Mul(s, c)
    p = Softmax<axis = -1>(m)
    o = MatMul(p, v)
    back = Transpose<perm = [0, 2, 1, 3]>(o)
    flat = Reshape(back, from)
    y = MatMul(flat, wo)
"""


@pytest.mark.parametrize("heads", [True, False])
def test_fused_qkv_with_scalar_gathers(heads: bool) -> None:
    model = graph(
        "(float[N, 6, 16] x) => (float[N, 6, 16] y)", FUSED, w=(16, 96), b=(96,), wo=(32, 16), c=np.float32(0.35),
        to=np.array([0, 6, 3, 4, 8]), zero=np.array(0), one=np.array(1), two=np.array(2), **{"from": np.array([0, 6, 32])},
    )  # fmt: skip
    result = pruned(model, heads=heads)
    kept = shapes(result)
    width = 8 if heads else 16  # of the heads half, and of every head half
    assert (kept["w"], kept["b"], kept["wo"]) == ((16, 3 * width), (3 * width,), (width, 16))
    target = next(n for n in result.model.to_proto().graph.node if n.output[0] == "r").input[1]
    assert array(result.model.to_proto(), target).tolist()[2:] == ([3, 2, 4] if heads else [3, 4, 4])


ROTARY = """
    {0}w = MatMul(x, w{0})
    {0}r = Reshape({0}w, to)
    {0}t = Transpose<perm = [0, 2, 1, 3]>({0}r)
    {turn}
    {0}c = Mul({0}t, cos)
    {0}s = Mul({0}turned, sin)
    {0} = Add({0}c, {0}s)
"""
HALVES = """
    {0}1 = Slice({0}t, zero, half, axis)
    {0}2 = Slice({0}t, half, end, axis)
    {0}n = Neg({0}2)
    {0}turned = Concat<axis = -1>({0}n, {0}1)
"""
INTERLEAVED = """
    {0}1 = Slice({0}t, zero, end, axis, step)
    {0}2 = Slice({0}t, one, end, axis, step)
    {0}n = Neg({0}2)
    {0}a = Unsqueeze({0}n, axis)
    {0}b = Unsqueeze({0}1, axis)
    {0}p = Concat<axis = -1>({0}a, {0}b)
    {0}turned = Reshape({0}p, rotated)
"""
PARTIAL = """
    {0}1 = Slice({0}t, zero, half, axis)
    {0}2 = Slice({0}t, half, whole, axis)
    {0}rest = Slice({0}t, whole, end, axis)
    {0}n = Neg({0}2)
    {0}turned = Concat<axis = -1>({0}n, {0}1, {0}rest)
"""
ATTENTION = """
    turned = Transpose<perm = [0, 1, 3, 2]>(k)
    s = MatMul(q, turned)
    p = Softmax<axis = -1>(s)
    v = MatMul(x, wv)
    vr = Reshape(v, to)
    vt = Transpose<perm = [0, 2, 1, 3]>(vr)
    o = MatMul(p, vt)
    back = Transpose<perm = [0, 2, 1, 3]>(o)
    flat = Reshape(back, from)
    y = MatMul(flat, wo)
"""


def rotary(turn: str) -> ModelProto:
    """Attention of 4 heads of 8 with rotary embeddings of queries and keys."""
    angles = np.outer(np.arange(6), 0.5 ** np.arange(4)).astype(np.float32)
    both = np.repeat(angles, 2, axis=1) if turn is INTERLEAVED else np.tile(angles, 2)
    body = "".join(ROTARY.format(x, turn=turn.format(x)) for x in "qk") + ATTENTION
    return graph(
        "(float[N, 6, 16] x) => (float[N, 6, 16] y)", body, wq=(16, 32), wk=(16, 32), wv=(16, 32), wo=(32, 16),
        cos=np.cos(both), sin=np.sin(both), zero=np.array([0]), one=np.array([1]), half=np.array([4]), whole=np.array([8]),
        end=np.array([1 << 62]), axis=np.array([-1]), step=np.array([2]), rotated=np.array([0, 0, 6, -1]),
        to=np.array([0, 6, 4, 8]), **{"from": np.array([0, 6, 32])},
    )  # fmt: skip


@pytest.mark.parametrize(
    "turn", [HALVES, INTERLEAVED, PARTIAL], ids=["halves", "interleaved", "partial, nothing left over"]
)
@pytest.mark.parametrize("heads", [True, False])
def test_rotary_embedding(turn: str, heads: bool) -> None:
    """One rotation for all heads: they lose the same pairs, and whole heads go beside, where they can be told apart."""
    kept = shapes(pruned(rotary(turn), heads=heads))
    width = 8 if heads and turn is not INTERLEAVED else 16
    assert [kept[w] for w in ("wq", "wk", "wv")] == [(16, width)] * 3
    assert kept["wo"] == (width, 16)
    assert kept["cos"] == kept["sin"] == (6, 4)


def test_partial_rotary_by_split() -> None:
    """Half of each head is turned, the other half is passed on."""
    turn = """
        {0}1 = Slice({0}t, zero, two, axis)
        {0}2 = Slice({0}t, two, half, axis)
        {0}rest = Slice({0}t, half, end, axis)
        {0}n = Neg({0}2)
        {0}f = Concat<axis = -1>({0}n, {0}1)
        {0}fs = Mul({0}f, some)
        {0}turned = Concat<axis = -1>({0}fs, {0}rest)
    """
    model = rotary(turn)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "two"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.7), "some"))
    for heads in (True, False):
        kept = shapes(pruned(model, heads=heads))
        width = kept["wq"][1]
        many = 2 if heads else 4
        assert width in (3 * many, 4 * many, 5 * many)  # of every head: one of two pairs, or three positions, or both
        assert (kept["wk"], kept["cos"], kept["sin"]) == ((16, width), (6, width // many), (6, width // many))
        assert (kept["wv"], kept["wo"]) == ((16, 4 * many), (4 * many, 16))


@pytest.mark.parametrize("heads", [True, False])
def test_normalise_and_expand_as(heads: bool) -> None:
    """F.normalize over (H, D): the norm is expanded to the shape of what it divides."""
    model = graph(
        "(float[N, 6, 16] x) => (float[N, 6, 5] y)",
        """
        t = MatMul(x, w)
        a = Add(t, b)
        r = Reshape(a, to)
        h = Transpose<perm = [0, 2, 1, 3]>(r)
        l = ReduceL2<axes = [-1], keepdims = 1>(h)
        c = Clip(l, tiny)
        size = Shape(h)
        e = Expand(c, size)
        d = Div(h, e)
        back = Transpose<perm = [0, 2, 1, 3]>(d)
        flat = Reshape(back, from)
        y = MatMul(flat, wo)
        """,
        w=(16, 32), b=(32,), wo=(32, 5), tiny=np.float32(1e-12), to=np.array([0, 6, 4, 8]), **{"from": np.array([0, 6, 32])},
    )  # fmt: skip
    kept = shapes(pruned(model, heads=heads))
    assert (kept["w"], kept["b"], kept["wo"]) == ((16, 16), (16,), (16, 5))


LSTM = """
    size = Shape(x)
    n = Gather<axis = 0>(size, at)
    state = Concat<axis = 0>({d}, n, width)
    zeros = {zeros}
    a, ah, ac = LSTM<hidden_size = 8{way}>(x, w1, r1, b1, , zeros, zeros)
    {join}
    c, ch, cc = LSTM<hidden_size = 8{way}>(b, w2, r2, b2, , zeros, zeros)
    {join2}
    y = MatMul(z, wo)
"""
ZEROS = {"of shape": "ConstantOfShape(state)", "expanded": "Expand(nought, state)"}


def stacked(zeros: str) -> ModelProto:
    body = LSTM.format(d="one", zeros=zeros, way="", join="b = Squeeze(a, ones)", join2="z = Squeeze(c, ones)")
    return graph(
        "(float[5, N, 12] x) => (float[5, N, 3] y)", body, w1=(1, 32, 12), r1=(1, 32, 8), b1=(1, 64), w2=(1, 32, 8),
        r2=(1, 32, 8), b2=(1, 64), wo=(8, 3), at=np.array([1]), one=np.array([1]), ones=np.array([1]), width=np.array([8]),
        nought=np.float32(0),
    )  # fmt: skip


@pytest.mark.parametrize("zeros", ZEROS.values(), ids=ZEROS)
def test_stacked_lstm_from_zero_states(zeros: str) -> None:
    model = stacked(zeros)
    kept = shapes(pruned(model))
    assert (kept["w1"], kept["r1"], kept["b1"]) == ((1, 16, 12), (1, 16, 4), (1, 32))
    assert (kept["w2"], kept["r2"], kept["b2"], kept["wo"]) == ((1, 16, 4), (1, 16, 4), (1, 32), (4, 3))


@pytest.mark.parametrize("zeros", ZEROS.values(), ids=ZEROS)
def test_bidirectional_stacked_lstm_from_zero_states(zeros: str) -> None:
    join = "{1}t = Transpose<perm = [0, 2, 1, 3]>({0}) {1} = Reshape({1}t, flat)"
    body = LSTM.format(
        d="two", zeros=zeros, way=', direction = "bidirectional"', join=join.format("a", "b"), join2=join.format("c", "z")
    )  # fmt: skip
    model = graph(
        "(float[5, N, 12] x) => (float[5, N, 3] y)", body, w1=(2, 32, 12), r1=(2, 32, 8), b1=(2, 64), w2=(2, 32, 16),
        r2=(2, 32, 8), b2=(2, 64), wo=(16, 3), at=np.array([1]), two=np.array([2]), width=np.array([8]),
        flat=np.array([0, 0, -1]), nought=np.float32(0),
    )  # fmt: skip
    kept = shapes(pruned(model))
    assert (kept["w1"], kept["r1"], kept["b1"]) == ((2, 16, 12), (2, 16, 4), (2, 32))
    assert (kept["w2"], kept["r2"], kept["b2"], kept["wo"]) == ((2, 16, 8), (2, 16, 4), (2, 32), (8, 3))


def test_tied_embedding_through_transpose() -> None:
    """The width goes from the table, from both layers, and from the logits' use of the table: one parameter still."""
    model = graph(
        "(int64[N, 6] ids) => (float[N, 6, 20] y)",
        """
        e = Gather<axis = 0>(table, ids)
        n = LayerNormalization<axis = -1>(e, gain, shift)
        h = MatMul(n, w1)
        a = Relu(h)
        o = MatMul(a, w2)
        s = Add(e, o)
        t = Transpose<perm = [1, 0]>(table)
        y = MatMul(s, t)
        """,
        table=(20, 16), gain=(16,), shift=(16,), w1=(16, 12), w2=(12, 16),
    )  # fmt: skip
    kept = shapes(pruned(model))
    assert (kept["table"], kept["gain"], kept["w1"], kept["w2"]) == ((20, 8), (8,), (8, 6), (6, 8))
    assert set(kept) == {"table", "gain", "shift", "w1", "w2"}
    kept = shapes(pruned(model, residual="conv"))
    assert (kept["table"], kept["w1"], kept["w2"]) == ((20, 16), (16, 6), (6, 16))


@pytest.mark.parametrize("options", [{"ratio": 0.3}, {"ratio": 0.3, "scope": "global"}, {"scope": "global"}], ids=str)
@pytest.mark.parametrize("build", [scaled_attention, lambda: rotary(HALVES), lambda: rotary(INTERLEAVED)])
def test_other_budgets(build: object, options: dict[str, object]) -> None:
    assert callable(build)
    model = build()
    result: Result = pruned(model, **options)
    assert result.report.after.parameters < result.report.before.parameters


def test_a_second_batch_size() -> None:
    """Channels beside the batch on one axis, and a target that is computed: right at one size only is wrong."""
    model = graph(
        "(float[N, 6, 16] x) => (float[N, 6, 5] y)",
        """
        t = MatMul(x, w)
        r = Reshape(t, to)
        h = Transpose<perm = [0, 2, 1, 3]>(r)
        size = Shape(x)
        n = Gather<axis = 0>(size, first)
        many = Mul(n, four)
        joint = Concat<axis = 0>(many, rest)
        m = Reshape(h, joint)
        mt = Transpose<perm = [0, 2, 1]>(m)
        s = MatMul(m, mt)
        p = Softmax<axis = -1>(s)
        o = MatMul(p, m)
        apart = Concat<axis = 0>(n, heads, rest)
        q = Reshape(o, apart)
        back = Transpose<perm = [0, 2, 1, 3]>(q)
        flat = Reshape(back, from)
        y = MatMul(flat, wo)
        """,
        w=(16, 32), wo=(32, 5), to=np.array([0, 6, 4, 8]), first=np.array([0]), four=np.array([4]), rest=np.array([6, 8]),
        heads=np.array([4]), **{"from": np.array([0, 6, 32])},
    )  # fmt: skip
    for heads in (True, False):
        result = pruned(model, batches=(1, 2, 5), heads=heads)
        assert len(set(result.report.proof.batches)) > 4
        assert shapes(result)["w"] == (16, 8 if heads else 16)
        after = result.model.to_proto()
        assert run(after, inputs(model, 7))[0].shape == (7, 6, 5)


@pytest.mark.parametrize("tokens", [6, 12])
def test_indices_that_are_computed_from_the_batch(tokens: int) -> None:
    """Windows as `as_strided` makes them: of the flattened tensor, at i * tokens * 16 + j * 32 + k * 16 + channel."""
    windows = tokens // 2 - 1
    model = graph(
        f"(float[N, {tokens}, 8] x) => (float[N, {windows}, 5] y)",
        """
        h = MatMul(x, w)
        a = Relu(h)
        flat = Reshape(a, all)
        size = Shape(x)
        n = Gather<axis = 0>(size, nought)
        items = Range(nought, n, one)
        far = Mul(items, item)
        start = Unsqueeze(far, trailing)
        index = Add(start, within)
        windowed = Gather<axis = 0>(flat, index)
        mean = ReduceMean<axes = [2], keepdims = 0>(windowed)
        y = MatMul(mean, wo)
        """,
        w=(8, 16), wo=(16, 5), all=np.array([-1]), nought=np.array(0), one=np.array(1), item=np.array(tokens * 16),
        trailing=np.array([1, 2, 3]),
        within=np.arange(windows)[:, None, None] * 32 + np.arange(4)[:, None] * 16 + np.arange(16),
    )  # fmt: skip
    kept = shapes(pruned(model, batches=(1, 2, 5)))
    assert (kept["w"], kept["wo"]) == ((8, 8), (8, 5))


def test_indices_of_more_elements_than_are_followed() -> None:
    """A constant index of any size is known: 5 windows of 4 rows of 256 channels."""
    index = (np.arange(5)[:, None, None] + np.arange(4)[:, None]) * 256 + np.arange(256)
    model = graph(
        "(float[8, 8] x) => (float[5, 4, 5] y)",
        "h = MatMul(x, w) a = Relu(h) flat = Reshape(a, all) v = Gather<axis = 0>(flat, index) y = MatMul(v, wo)",
        w=(8, 256), wo=(256, 5), all=np.array([-1]), index=index,
    )  # fmt: skip
    kept = shapes(pruned(model, batches=()))
    assert (kept["w"], kept["wo"]) == ((8, 128), (128, 5))
