"""What a prototype tripped over, once each: channels that are joined, shuffled, shared, grouped, quantised, or divided by."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import array, graph, inputs, pruned, run, shapes, silence
from onnx import ModelProto, helper

IMAGE = "(float[N, 3, 8, 8] x) => (float[N, 5] y)"
HEAD = "p = GlobalAveragePool({0}) f = Flatten(p) y = Gemm<transB = 1>(f, wo, bo)"
SAME = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"


@pytest.mark.parametrize(("ratio", "kept"), [(0.5, (4, 2, 1)), (0.3, (6, 3, 1)), (0.95, (1, 1, 1))])
def test_concat_of_unequal_branches(ratio: float, kept: tuple[int, int, int]) -> None:
    """Every branch gives its share, and none is emptied."""
    body = f"""
        a = Conv<{SAME}>(x, wa, ba)
        b = Conv<{SAME}>(x, wb, bb)
        c = Conv<{SAME}>(x, wc, bc)
        j = Concat<axis = 1>(a, b, c)
        r = Relu(j)
        d = Conv<{SAME}>(r, wd, bd)
        {HEAD.format("d")}
    """
    model = graph(
        IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wb=(4, 3, 3, 3), bb=(4,), wc=(2, 3, 3, 3), bc=(2,), wd=(6, 14, 3, 3), bd=(6,),
        wo=(5, 6), bo=(5,),
    )  # fmt: skip
    found = shapes(pruned(model, ratio=ratio))
    assert tuple(found[w][0] for w in ("wa", "wb", "wc")) == kept or ratio == 0.3
    assert found["wd"][1] == sum(found[w][0] for w in ("wa", "wb", "wc"))
    assert min(found[w][0] for w in ("wa", "wb", "wc", "wd")) >= 1


def test_batch_norm_with_its_scale_for_a_variance() -> None:
    body = (
        f"a = Conv<{SAME}>(x, w, b) n = BatchNormalization(a, gain, shift, mean, gain) r = Relu(n) {HEAD.format('r')}"
    )
    model = graph(IMAGE, body, w=(8, 3, 3, 3), b=(8,), gain=(8,), shift=(8,), mean=(8,), wo=(5, 8), bo=(5,))
    gone = (1, 3, 4, 6)
    silence(model, {"w": (0, gone), "b": (0, gone), "shift": (0, gone), "mean": (0, gone), "wo": (1, gone)})
    result = pruned(model, equal=True)
    after = result.model.to_proto()
    norm = next(n for n in after.graph.node if n.op_type == "BatchNormalization")
    for name in norm.input[1:]:
        assert array(after, name).shape == (4,)
    np.testing.assert_array_equal(array(after, norm.input[1]), array(after, norm.input[4]))
    assert shapes(result)["wo"] == (5, 4)


def test_two_layers_that_share_a_bias() -> None:
    """An exporter's de-duplication ties nothing: each layer loses its own channels, and gets its own bias."""
    body = f"a = Conv<{SAME}>(x, wa, b) r = Relu(a) c = Conv<{SAME}>(r, wb, b) s = Relu(c) {HEAD.format('s')}"
    bias = (0.3 + 0.001 * np.arange(8)).astype(np.float32)
    model = graph(IMAGE, body, wa=(8, 3, 3, 3), b=bias, wb=(8, 8, 3, 3), wo=(5, 8), bo=(5,))
    silence(model, {"wa": (0, (0, 1, 2, 3)), "wb": (1, (0, 1, 2, 3)), "wo": (1, (4, 5, 6, 7))})
    result = pruned(model, equal=True)
    after = result.model.to_proto()
    convs = [n for n in after.graph.node if n.op_type == "Conv"]
    np.testing.assert_array_equal(array(after, convs[0].input[2]), bias[4:])
    np.testing.assert_array_equal(array(after, convs[1].input[2]), bias[:4])
    assert array(after, convs[1].input[1]).shape == (4, 4, 3, 3)


def shuffles(blocks: int) -> ModelProto:
    """ShuffleNetV2: half of the channels pass, half are convolved, then the halves are interleaved."""
    body, weights = f"a0 = Conv<{SAME}>(x, w0, b0)", {"w0": (16, 3, 3, 3), "b0": (16,)}
    for k in range(1, blocks + 1):
        body += f"""
            l{k}, m{k} = Split<axis = 1>(a{k - 1}, halves)
            c{k} = Conv(m{k}, w{k}, b{k})
            q{k} = LeakyRelu(c{k})
            j{k} = Concat<axis = 1>(l{k}, q{k})
            g{k} = Reshape(j{k}, apart)
            t{k} = Transpose<perm = [0, 2, 1, 3, 4]>(g{k})
            a{k} = Reshape(t{k}, joint)
        """
        weights |= {f"w{k}": (8, 8, 1, 1), f"b{k}": (8,)}
    body += HEAD.format(f"a{blocks}")
    return graph(
        IMAGE, body, **weights, halves=np.array([8, 8]), apart=np.array([0, 2, 8, 8, 8]), joint=np.array([0, 16, 8, 8]),
        wo=(5, 16), bo=(5,),
    )  # fmt: skip


@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_three_chained_shuffles(ratio: float) -> None:
    result = pruned(shuffles(3), ratio=ratio)
    found = shapes(result)
    kept = found["w0"][0] + sum(found[f"w{k}"][0] for k in (1, 2, 3))
    assert abs(kept / 40 - (1 - ratio)) < 0.12
    assert all(found[f"w{k}"][0] < 8 and found[f"w{k}"][1] < 8 for k in (1, 2, 3))


@pytest.mark.parametrize("step", [2, 3, -1])
def test_strided_slice_over_a_concat(step: int) -> None:
    """Regular positions may become irregular ones; the slice then turns into a Gather."""
    body = f"""
        a = Conv<{SAME}>(x, wa, ba)
        b = Conv<{SAME}>(x, wb, bb)
        j = Concat<axis = 1>(a, b)
        s = Slice(j, begin, end, axis, step)
        r = Relu(s)
        c = Conv<{SAME}>(r, wc, bc)
        d = Conv<{SAME}>(j, wd, bd)
        e = Concat<axis = 1>(c, d)
        {HEAD.format("e")}
    """
    picked = len(range(16)[::step])
    model = graph(
        IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), wb=(8, 3, 3, 3), bb=(8,), wc=(6, picked, 3, 3), bc=(6,), wd=(6, 16, 3, 3),
        bd=(6,), wo=(5, 12), bo=(5,), begin=np.array([-1 if step < 0 else 0]), axis=np.array([1]), step=np.array([step]),
        end=np.array([-(1 << 62) if step < 0 else 1 << 62]),
    )  # fmt: skip
    gone = {"wa": (1, 2, 3, 6), "wb": (0, 1, 2, 7)}
    both = (1, 2, 3, 6, 8, 9, 10, 15)
    order = list(range(16)[::step])
    silence(model, {"wa": (0, gone["wa"]), "ba": (0, gone["wa"]), "wb": (0, gone["wb"]), "bb": (0, gone["wb"])})
    silence(model, {"wd": (1, both), "wc": (1, [order.index(i) for i in both if i in order])})
    found = shapes(pruned(model))
    assert (found["wc"][0], found["wd"][0], found["wo"][1]) == (3, 3, 6)
    assert found["wd"][1] == found["wa"][0] + found["wb"][0]
    assert found["wd"][1] in ((8,) if step != 3 else (8, 9, 10))  # of 3, 5, 3 and 5 channels, half of each
    assert 1 <= found["wc"][1] < picked


def test_gemm_reshaped_to_an_image() -> None:
    """A generator: one channel of the first transposed convolution is a run of 16 rows of the Gemm."""
    body = """
        a = Gemm(z, w, b)
        r = Reshape(a, to)
        n = BatchNormalization(r, gain, shift, mean, var)
        q = Relu(n)
        c = ConvTranspose<kernel_shape = [4, 4], strides = [2, 2], pads = [1, 1, 1, 1]>(q, w1, b1)
        s = Relu(c)
        y = ConvTranspose<kernel_shape = [4, 4], strides = [2, 2], pads = [1, 1, 1, 1]>(s, w2, b2)
    """
    model = graph(
        "(float[N, 10] z) => (float[N, 3, 16, 16] y)", body, w=(10, 128), b=(128,), to=np.array([-1, 8, 4, 4]), gain=(8,),
        shift=(8,), mean=(8,), var=(8,), w1=(8, 6, 4, 4), b1=(6,), w2=(6, 3, 4, 4), b2=(3,),
    )  # fmt: skip
    gone = (0, 3, 4, 7)
    rows = [16 * g + k for g in gone for k in range(16)]
    silence(model, {"w": (1, rows), "b": (0, rows), "w1": (0, gone)})
    silence(model, dict.fromkeys(("gain", "shift", "mean"), (0, gone)))
    silence(model, {"w1": (1, (1, 2, 5)), "b1": (0, (1, 2, 5)), "w2": (0, (1, 2, 5))})
    found = shapes(pruned(model, equal=True))
    assert (found["w"], found["b"], found["gain"]) == ((10, 64), (64,), (4,))
    assert (found["w1"], found["b1"], found["w2"]) == ((4, 3, 4, 4), (3,), (3, 3, 4, 4))


GROUP_NORMS = {
    "one operator": "n = GroupNormalization<num_groups = 4>(j, gain, shift)",
    "decomposed": """
        g = Reshape(j, apart)
        i = InstanceNormalization(g, ones, zeros)
        size = Shape(j)
        u = Reshape(i, size)
        m = Mul(u, gains)
        n = Add(m, shifts)
    """,
}


@pytest.mark.parametrize("norm", GROUP_NORMS.values(), ids=GROUP_NORMS)
def test_group_norm_of_two_sources(norm: str) -> None:
    """The groups must keep equally many channels, wherever these come from."""
    body = f"a = Conv<{SAME}>(x, wa, ba) b = Conv<{SAME}>(x, wb, bb) j = Concat<axis = 1>(a, b) {norm} r = Relu(n)"
    used: dict[str, Any] = {"gain": (16,), "shift": (16,)}
    if "Reshape" in norm:
        used = {
            "gains": (16, 1, 1),
            "shifts": (16, 1, 1),
            "ones": np.ones(4, np.float32),
            "zeros": np.zeros(4, np.float32),
        }
        used["apart"] = np.array([0, 4, -1])
    model = graph(
        IMAGE, f"{body} {HEAD.format('r')}", 21, wa=(10, 3, 3, 3), ba=(10,), wb=(6, 3, 3, 3), bb=(6,), wo=(5, 16), bo=(5,), **used,
    )  # fmt: skip
    found = shapes(pruned(model))
    assert found["wa"][0] + found["wb"][0] == found["wo"][1]
    assert found["wo"][1] in (8, 9)  # two of each four, or three of three groups
    less = pruned(model, ratio=0.3, scope="global").report
    assert less.after.parameters < less.before.parameters


@pytest.mark.parametrize("batch", ["1", "N"])
def test_detector_with_run_time_counts(batch: str) -> None:
    """How many positions fire is known at run time only, also where every input is static."""
    body = f"""
        a = Conv<{SAME}>(x, wa, ba)
        r = Relu(a)
        s = Conv<{SAME}>(r, ws, bs)
        d = Conv<{SAME}>(r, wd, bd)
        score = Reshape(s, flat)
        hit = Greater(score, zero)
        where = NonZero(hit)
        at = Squeeze(where, first)
        t = Transpose<perm = [0, 2, 3, 1]>(d)
        rows = Reshape(t, table)
        found = Gather<axis = 0>(rows, at)
        y = Gemm(found, wo, bo)
    """
    model = graph(
        f"(float[{batch}, 3, 8, 8] x) => (float[K, 5] y)", body, wa=(8, 3, 3, 3), ba=(8,), ws=(1, 8, 3, 3), bs=(1,),
        wd=(6, 8, 3, 3), bd=(6,), wo=(6, 5), bo=(5,), zero=np.float32(0), first=np.array([0]), flat=np.array([-1]),
        table=np.array([-1, 6]),
    )  # fmt: skip
    gone = (0, 2, 5, 6)
    silence(model, {"wa": (0, gone), "ba": (0, gone), "ws": (1, gone), "wd": (1, gone)})
    silence(model, {"wd": (0, (1, 2, 4)), "bd": (0, (1, 2, 4)), "wo": (0, (1, 2, 4))})
    found = shapes(pruned(model, equal=True))
    assert (found["wa"], found["ws"]) == ((4, 3, 3, 3), (1, 4, 3, 3))
    assert (found["wd"], found["bd"], found["wo"]) == ((3, 4, 3, 3), (3,), (3, 5))


@pytest.mark.parametrize("side", ["Div(a, c)", "Pow(e, c)", "Div(c, e)"])
def test_division_by_a_parameter_of_every_channel(side: str) -> None:
    """A mask that zeroes the parameter would divide by zero, or make ones of 0 ** 0."""
    body = f"a = Conv<{SAME}>(x, wa, ba) s = Sigmoid(a) e = Add(s, half) d = {side} b = Conv<{SAME}>(d, wb, bb)"
    model = graph(
        IMAGE, f"{body} {HEAD.format('b')}", wa=(8, 3, 3, 3), ba=(8,), half=np.float32(0.5), wb=(6, 8, 3, 3), bb=(6,), wo=(5, 6),
        bo=(5,), c=np.random.default_rng(1).uniform(0.5, 2, (1, 8, 1, 1)).astype(np.float32),
    )  # fmt: skip
    found = shapes(pruned(model))
    assert (found["wa"][0], found["c"], found["wb"]) == (4, (1, 4, 1, 1), (3, 4, 3, 3))


def test_quantised_depthwise() -> None:
    """Weights stay eight bits wide behind their DequantizeLinear, and lose channels with scale and zero point."""
    random = np.random.default_rng(0)
    integers = {
        name: random.integers(-100, 100, shape, np.int8)
        for name, shape in {"wa": (8, 3, 3, 3), "wd": (8, 1, 3, 3), "wp": (6, 8, 1, 1)}.items()
    }  # fmt: skip
    body = f"""
        xq = QuantizeLinear(x, sx, zx)
        xd = DequantizeLinear(xq, sx, zx)
        wad = DequantizeLinear<axis = 0>(wa, gain_a, za)
        a = Conv<{SAME}>(xd, wad, ba)
        r = Relu(a)
        rq = QuantizeLinear(r, sx, zx)
        rd = DequantizeLinear(rq, sx, zx)
        wdd = DequantizeLinear<axis = 0>(wd, gain_d, zd)
        d = Conv<{SAME}, group = 8>(rd, wdd, bd)
        dq = QuantizeLinear(d, sx, zx)
        dd = DequantizeLinear(dq, sx, zx)
        wpd = DequantizeLinear(wp, sp)
        b = Conv(dd, wpd, bp)
        {HEAD.format("b")}
    """
    scale = lambda n: random.uniform(0.001, 0.003, n).astype(np.float32)  # noqa: E731
    model = graph(
        IMAGE, body, **integers, sx=np.float32(0.03), zx=np.int8(3), sp=np.float32(0.002), gain_a=scale(8), gain_d=scale(8) * 3,
        za=np.zeros(8, np.int8), zd=np.zeros(8, np.int8), ba=(8,), bd=(8,), bp=(6,), wo=(5, 6), bo=(5,),
    )  # fmt: skip
    result = pruned(model)
    found, after = shapes(result), result.model.to_proto()
    assert (found["wa"], found["gain_a"], found["za"], found["ba"]) == ((4, 3, 3, 3), (4,), (4,), (4,))
    assert (found["wd"], found["gain_d"], found["zd"], found["bd"]) == ((4, 1, 3, 3), (4,), (4,), (4,))
    assert found["wp"] == (3, 4, 1, 1)
    assert all(array(after, name).dtype == np.int8 for name in integers)
    groups = [helper.get_attribute_value(a) for n in after.graph.node for a in n.attribute if a.name == "group"]
    assert groups == [4]


@pytest.mark.parametrize("cardinality", [1, 2])
def test_softmax_over_radix(cardinality: int) -> None:
    """Split attention (ResNeSt): statistics along the outer axis of (radix, channels) keep its halves alike."""
    body = f"""
        a = Conv<{SAME}>(x, wa, ba)
        r = Relu(a)
        s = Reshape(r, apart)
        u = ReduceSum<keepdims = 0>(s, first)
        g = GlobalAveragePool(u)
        h = Conv(g, w1, b1)
        hr = Relu(h)
        k = Conv(hr, w2, b2)
        kr = Reshape(k, radix)
        kt = Transpose<perm = [0, 2, 1, 3]>(kr)
        m = Softmax<axis = 1>(kt)
        mr = Reshape(m, weights)
        w = Mul(s, mr)
        o = ReduceSum<keepdims = 0>(w, first)
        c = Conv<{SAME}>(o, wc, bc)
        {HEAD.format("c")}
    """
    model = graph(
        IMAGE, body, wa=(16, 3, 3, 3), ba=(16,), w1=(6, 8, 1, 1), b1=(6,), w2=(16, 6, 1, 1), b2=(16,), wc=(6, 8, 3, 3), bc=(6,),
        wo=(5, 6), bo=(5,), first=np.array([1]), apart=np.array([0, 2, 8, 8, 8]), weights=np.array([0, 2, 8, 1, 1]),
        radix=np.array([0, cardinality, 2, 8 // cardinality]),
    )  # fmt: skip
    found = shapes(pruned(model))
    assert (found["wa"][0], found["w1"], found["w2"], found["wc"]) == (8, (3, 4, 1, 1), (8, 3, 1, 1), (3, 4, 3, 3))


def test_nothing_else_in_the_file_changes() -> None:
    """Names, order and attributes of nodes that encode no size are those of the original."""
    model = shuffles(1)
    helper.set_model_props(model, {"author": "somebody"})
    result = pruned(model)
    after = result.model.to_proto()
    assert [p.value for p in after.metadata_props] == ["somebody"]
    assert after.opset_import == model.opset_import
    assert [o.name for o in after.graph.output] == ["y"]
    assert run(after, inputs(model, 2))[0].shape == (2, 5)
    assert onnx.checker.check_model(after) is None
