"""What architectures of the model libraries tripped over at their real sizes, once each, in small."""

from __future__ import annotations

import numpy as np
from graphs import graph, pruned, shapes

HEADS = """
    {0}w = MatMul(x, w{0})
    {0}r = Reshape({0}w, to)
    {0} = Transpose<perm = [0, 2, 1, 3]>({0}r)
"""
UNIT = """
    {0}n = ReduceL2<axes = [-1], keepdims = 1>({0})
    {0}c = Clip({0}n, least)
    {0}s = Shape({0})
    {0}e = Expand({0}c, {0}s)
    {0}u = Div({0}, {0}e)
"""


def test_heads_of_cosine_attention_go_where_the_norm_is_expanded() -> None:
    model = graph(
        "(float[N, 6, 16] x) => (float[N, 6, 16] y)",
        "".join(HEADS.format(x) for x in "qkv") + "".join(UNIT.format(x) for x in "qk") + """
        turned = Transpose<perm = [0, 1, 3, 2]>(ku)
        s = MatMul(qu, turned)
        p = Softmax<axis = -1>(s)
        o = MatMul(p, v)
        back = Transpose<perm = [0, 2, 1, 3]>(o)
        flat = Reshape(back, from)
        y = MatMul(flat, wo)
        """,
        wq=(16, 32), wk=(16, 32), wv=(16, 32), wo=(32, 16), least=np.float32(1e-6), to=np.array([0, 6, 4, 8]),
        **{"from": np.array([0, 6, 32])},
    )  # fmt: skip
    result = pruned(model, residual="conv")
    kept = shapes(result)
    heads = "half of the heads go, and half of what is left of the values; queries and keys are normalised in each head"
    assert (kept["wq"], kept["wk"], kept["wv"], kept["wo"]) == ((16, 16), (16, 16), (16, 8), (8, 16)), heads


def test_attention_whose_heads_share_keys_and_values_loses_width() -> None:
    """Which heads there are and what their values hold are two axes that one Reshape merges."""
    model = graph(
        "(float[N, 6, 16] x) => (float[N, 6, 16] y)",
        HEADS.format("q") + """
        k = MatMul(x, wk)
        turned = Transpose<perm = [0, 2, 1]>(k)
        one = Unsqueeze(turned, axis)
        s = MatMul(q, one)
        p = Softmax<axis = -1>(s)
        values = MatMul(x, wv)
        v = Unsqueeze(values, axis)
        o = MatMul(p, v)
        back = Transpose<perm = [0, 2, 1, 3]>(o)
        flat = Reshape(back, from)
        y = MatMul(flat, wo)
        """,
        wq=(16, 32), wk=(16, 8), wv=(16, 8), wo=(32, 16), to=np.array([0, 6, 4, 8]), axis=np.array([1]),
        **{"from": np.array([0, 6, 32])},
    )  # fmt: skip
    kept = shapes(pruned(model, residual="conv"))
    assert (kept["wq"], kept["wk"], kept["wv"], kept["wo"]) == ((16, 16), (16, 4), (16, 4), (16, 16))


def test_a_standardised_weight_is_no_normalised_stream() -> None:
    """BatchNormalization in training mode takes the statistics of what it is given: here of every filter."""
    standard = """
        flat{0} = Reshape(w{0}, rows{0})
        n{0}, mean{0}, var{0} = BatchNormalization<training_mode = 1>(flat{0}, gain{0}, zero{0}, old{0}, gain{0})
        f{0} = Reshape(n{0}, back{0})
    """
    model = graph(
        "(float[N, 3, 8, 8] x) => (float[N, 5] y)",
        standard.format(1) + standard.format(2) + """
        a = Conv(x, f1)
        b = Relu(a)
        c = Conv(b, f2)
        p = GlobalAveragePool(c)
        r = Flatten(p)
        y = Gemm<transB = 1>(r, wo)
        """,
        w1=(16, 3, 3, 3), w2=(8, 16, 3, 3), wo=(5, 8), gain1=(16,), gain2=(8,), zero1=(16,), zero2=(8,), old1=(16,),
        old2=(8,), rows1=np.array([1, 16, 27]), rows2=np.array([1, 8, -1]), back1=np.array([16, 3, 3, 3]),
        back2=np.array([8, 16, 3, 3]),
    )  # fmt: skip
    kept = shapes(pruned(model, residual="conv"))
    assert (kept["w1"], kept["w2"], kept["wo"]) == ((8, 3, 3, 3), (4, 8, 3, 3), (5, 4))


def test_a_vector_of_which_a_part_is_overwritten() -> None:
    """The keys' third of a bias is set to zero in the graph."""
    model = graph(
        "(float[N, 6, 16] x) => (float[N, 6, 16] y)",
        """
        zeros = Expand(nought, third)
        bias = ScatterND(b, at, zeros)
        m = MatMul(x, w)
        all = Add(bias, m)
        qw0, kw0, vw0 = Split<axis = -1>(all, thirds)
        qr = Reshape(qw0, to)
        q = Transpose<perm = [0, 2, 1, 3]>(qr)
        kr = Reshape(kw0, to)
        k = Transpose<perm = [0, 2, 3, 1]>(kr)
        vr = Reshape(vw0, to)
        v = Transpose<perm = [0, 2, 1, 3]>(vr)
        s = MatMul(q, k)
        p = Softmax<axis = -1>(s)
        o = MatMul(p, v)
        back = Transpose<perm = [0, 2, 1, 3]>(o)
        flat = Reshape(back, from)
        y = MatMul(flat, wo)
        """,
        w=(16, 96), b=(96,), wo=(32, 16), nought=np.zeros(1, np.float32), third=np.array([32]), at=np.arange(32, 64)[:, None],
        to=np.array([0, 6, 4, 8]), thirds=np.array([32, 32, 32]), **{"from": np.array([0, 6, 32])},
    )  # fmt: skip
    kept = shapes(pruned(model, residual="conv"))
    assert (kept["w"], kept["b"], kept["wo"]) == ((16, 24), (24,), (8, 16))


def test_heads_that_are_repeated_for_a_batch_of_run_time_size() -> None:
    """Relative positions: keys made of a table are tiled as often as there are samples."""
    beside = """
        {0}w = MatMul(x, w{0})
        {0}r = Reshape({0}w, to)
        {0}h = Transpose<perm = [0, 2, 1, 3]>({0}r)
        {0} = Reshape({0}h, joined)
    """
    model = graph(
        "(float[N, 6, 16] x) => (float[N, 6, 16] y)",
        beside.format("q") + beside.format("v") + """
        n = Shape<start = 0, end = 1>(x)
        repeats = Concat<axis = 0>(n, ones)
        places = MatMul(table, wp)
        pr = Reshape(places, apart)
        ph = Transpose<perm = [1, 2, 0]>(pr)
        p = Tile(ph, repeats)
        s = MatMul(q, p)
        a = Softmax<axis = -1>(s)
        o = MatMul(a, v)
        oh = Reshape(o, again)
        back = Transpose<perm = [0, 2, 1, 3]>(oh)
        flat = Reshape(back, from)
        y = MatMul(flat, wo)
        """,
        wq=(16, 32), wv=(16, 32), wp=(12, 32), table=(6, 12), wo=(32, 16), ones=np.array([1, 1]),
        to=np.array([0, 6, 4, 8]), joined=np.array([-1, 6, 8]), apart=np.array([6, 4, 8]),
        again=np.array([-1, 4, 6, 8]), **{"from": np.array([0, 6, 32])},
    )  # fmt: skip
    kept = shapes(pruned(model, residual="conv"))
    assert (kept["wq"], kept["wp"], kept["wv"], kept["wo"]) == ((16, 8), (6, 8), (16, 8), (8, 16))


def test_a_depthwise_convolution_of_what_has_an_unknown_number_of_channels() -> None:
    """Its channels stay, and its group count with them."""
    model = graph(
        "(float[N, 8, 6, 6] x) => (float[N, a, b, c] y, float[N, 5, 6, 6] z)",
        """
        r = Relu(x)
        where = NonZero(x)
        count = ReduceMin<keepdims = 0>(where)
        offset = Min(count, nought)
        wide = Unsqueeze(offset, first)
        size = Shape(x)
        same = Add(size, wide)
        some = Reshape(r, same)
        y = Conv<group = 8>(some, wd)
        c = Conv(x, w1)
        z = Conv(c, w2)
        """,
        wd=(8, 1, 3, 3), w1=(16, 8, 1, 1), w2=(5, 16, 1, 1), nought=np.array(0), first=np.array([0]),
    )  # fmt: skip
    kept = shapes(pruned(model))
    assert (kept["wd"], kept["w1"], kept["w2"]) == ((8, 1, 3, 3), (8, 8, 1, 1), (5, 8, 1, 1))


def test_states_that_are_parameters_keep_their_batch() -> None:
    model = graph(
        "(float[6, 4, 16] x) => (float[6, 1, 4, 5] y)",
        "a = MatMul(x, w0) b = Relu(a) l = LSTM<hidden_size = 8>(b, w, r, bias, lens, h, c) y = MatMul(l, w1)",
        w0=(16, 12), w=(1, 32, 12), r=(1, 32, 8), bias=(1, 64), lens=np.full(4, 6, np.int32), h=(1, 4, 8), c=(1, 4, 8),
        w1=(8, 5),
    )  # fmt: skip
    found = shapes(pruned(model, batches=(1,)))
    assert (found["w0"], found["w"], found["h"], found["c"]) == ((16, 6), (1, 16, 6), (1, 4, 4), (1, 4, 4))


def test_a_grid_of_parameters_stays() -> None:
    """Where it looks is computed from tables: neither the pairs of image and grid nor the places in it go."""
    model = graph(
        "(float[4, 3, 8, 8] x) => (float[4, 5, 6, 6] y)",
        """
        a = Conv(x, w0) r = Relu(a) places = Add(table, offsets) grid = Tanh(places) g = GridSample(r, grid)
        y = Conv(g, w1)
        """,
        w0=(8, 3, 3, 3), table=(4, 6, 6, 2), offsets=(4, 1, 1, 2), w1=(5, 8, 1, 1),
    )  # fmt: skip
    found = shapes(pruned(model, batches=(1,)))
    assert (found["w0"], found["table"], found["w1"]) == ((4, 3, 3, 3), (4, 6, 6, 2), (5, 4, 1, 1))


def test_a_mask_that_may_hide_nothing_is_one_of_the_inputs_tried() -> None:
    """Traced where every token counted: with another number of them the graph does not run."""
    model = graph(
        "(float[6, 16] x, int64[6] mask) => (float[6, 5] y)",
        """
        at = NonZero(mask) rows = Squeeze(at, zero) some = Gather<axis = 0>(x, rows) all = Reshape(some, traced)
        h = MatMul(all, w0) r = Relu(h) y = MatMul(r, w1)
        """,
        w0=(16, 8), w1=(8, 5), zero=np.array([0]), traced=np.array([6, 16]),
    )  # fmt: skip
    assert pruned(model, batches=()).report.proof.batches == (6,)
