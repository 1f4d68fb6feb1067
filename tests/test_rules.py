"""The table of operators: each stands once in a tiny graph that is pruned by half, proven, and kept as expected.

A row is (name, text, kept): `text` is an ONNX graph in which `{w}` names are weights, drawn at random; `kept` says
which sizes some weights must have afterwards. `x` is the input, `y` the output, and both keep their shapes.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from onnxprune.api import prune

HEAD = '<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1, "ai.onnx.ml" : 3]>\n'


def build(text: str, opset: int = 18) -> onnx.ModelProto:
    """`W:float[8,4,3,3]` in the text declares a weight the first time it is used."""
    rng = np.random.default_rng(0)
    weights = {}
    declared = re.findall(r"([A-Za-z]\w*):(float|int8|uint8|int32)\[([\d,]*)\]", text)
    for name, kind, dims in declared:
        shape = [int(d) for d in dims.split(",") if d]
        if kind == "float":
            positive = name.startswith(("var", "pos"))
            data = rng.uniform(0.5, 1.5, shape) if positive else rng.normal(0, 0.5, shape)
            data = data.astype(np.float32)
            if name.startswith("scale"):
                data = np.full(shape, 0.05, np.float32)
        elif kind == "int32":
            data = rng.integers(-5, 5, shape).astype(np.int32)
        else:
            low, high = (0, 9) if name.startswith("z") else (-60, 60) if kind == "int8" else (90, 160)
            data = rng.integers(low, high, shape).astype(kind)
        weights[name] = onnx.numpy_helper.from_array(data, name)
    text = re.sub(r":(float|int8|uint8|int32)\[[\d,]*\](?=[ ,)])", "", text)
    model = parser.parse_model(HEAD.format(opset=opset) + text)
    model.graph.initializer.extend(weights.values())
    return model


CONV = "agraph (float[N,3,8,8] x) => (float[N,{out}] y) {{ a = Conv<pads=[1,1,1,1]>(x, A:float[16,3,3,3] , Ab:float[16] ) {body} p = GlobalAveragePool({last}) f = Flatten(p) y = Gemm<transB=1>(f, G:float[5,{c}] , Gb:float[5] ) }}"


def conv(body: str, last: str = "b", c: int = 16) -> str:
    """A convolution, `body` from `a` to `last` of `c` channels, pooling and a classifier."""
    return CONV.format(out=5, body=body, last=last, c=c)


def rows(body: str, last: str = "b", c: int = 16) -> str:
    """Tokens: a matrix product to 16 features, `body`, and a product back."""
    return (
        "agraph (float[N,6,4] x) => (float[N,6,3] y) { a = MatMul(x, A:float[4,16] ) "
        + body
        + " y = MatMul("
        + last
        + f", G:float[{c},3] ) }}"
    )


KINDS = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64}
HALF = {"A": (8, 3, 3, 3)}
TOKENS = {"A": (4, 8)}
UNARY = [
    "Relu",
    "Sigmoid",
    "Tanh",
    "Elu",
    "LeakyRelu",
    "HardSwish",
    "Softplus",
    "Abs",
    "Exp",
    "Identity",
    "Neg",
    "Erf",
    "Mish",
    "Softsign",
]
TABLE: list[tuple[str, str, dict[str, tuple[int, ...]]]] = [
    *((op, conv(f"b = {op}(a)"), HALF) for op in UNARY),
    ("Clip", conv("l = Constant<value_float=0.0>() h = Constant<value_float=6.0>() b = Clip(a, l, h)"), HALF),
    ("PRelu", conv("b = PRelu(a, S:float[16,1,1] )"), HALF),
    ("Cast", conv("c = Cast<to=11>(a) b = Cast<to=1>(c)"), HALF),
    ("Dropout", conv("b = Dropout(a)"), HALF),
    ("Add vector", conv("b = Add(B:float[1,16,1,1] , a)"), HALF),
    ("Div by parameter", conv("b = Div(a, pos:float[16,1,1] )"), HALF),
    ("Where", conv("z = Constant<value_float=0.0>() c = Greater(a, z) b = Where(c, a, B:float[16,1,1] )"), HALF),
    ("Conv group 1", conv("b = Conv(a, B:float[8,16,1,1] )", c=8), {"A": (8, 3, 3, 3), "B": (4, 8, 1, 1), "G": (5, 4)}),
    ("Conv depthwise", conv("b = Conv<group=16>(a, B:float[16,1,3,3] )"), HALF | {"B": (8, 1, 3, 3)}),
    ("Conv depthwise x2", conv("b = Conv<group=16>(a, B:float[32,1,3,3] )", c=32), HALF),
    ("Conv grouped", conv("b = Conv<group=4>(a, B:float[8,4,3,3] )", c=8), HALF),
    ("ConvTranspose", conv("b = ConvTranspose(a, B:float[16,8,2,2] , Bb:float[8] )", c=8), HALF | {"B": (8, 4, 2, 2)}),
    ("ConvTranspose grouped", conv("b = ConvTranspose<group=4>(a, B:float[16,2,2,2] )", c=8), HALF),
    (
        "BatchNormalization",
        conv("b = BatchNormalization(a, s:float[16] , t:float[16] , m:float[16] , var:float[16] )"),
        HALF,
    ),
    ("InstanceNormalization", conv("b = InstanceNormalization(a, s:float[16] , t:float[16] )"), HALF),
    ("LRN", conv("b = LRN<size=5>(a)"), HALF),
    ("MeanVarianceNormalization", conv("b = MeanVarianceNormalization<axes=[0,2,3]>(a)"), HALF),
    ("LpNormalization", conv("b = LpNormalization<axis=1>(a)"), HALF),
    ("MaxPool", conv("b = MaxPool<kernel_shape=[2,2]>(a)"), HALF),
    ("AveragePool", conv("b = AveragePool<kernel_shape=[2,2]>(a)"), HALF),
    ("Resize scales", conv('r = Constant<value_floats=[1.0,1.0,2.0,2.0]>() b = Resize<mode="nearest">(a, , r)'), HALF),
    (
        "Resize sizes",
        conv('r = Constant<value_ints=[2,16,16,16]>() b = Resize<mode="nearest">(a, , , r)')
        .replace("float[N,3", "float[2,3")
        .replace("float[N,5", "float[2,5"),
        HALF,
    ),
    ("GridSample", conv("b = GridSample(a, grid:float[1,4,4,2] )").replace("[N,", "[1,"), HALF),
    ("Pad spatial", conv("p2 = Constant<value_ints=[0,0,1,1,0,0,1,1]>() b = Pad(a, p2)"), HALF),
    (
        "Pad channels",
        conv(
            "p2 = Constant<value_ints=[0,4,0,0,0,4,0,0]>() q = Pad(a, p2) d = Conv(x, D:float[24,3,1,1] ) e = MaxPool<kernel_shape=[1,1]>(d) b = Add(q, e)",
            c=24,
        ),
        {},
    ),
    (
        "Reshape to heads",
        conv(
            "s2 = Constant<value_ints=[0,4,4,64]>() q = Reshape(a, s2) r = Relu(q) t = Constant<value_ints=[0,16,8,8]>() b = Reshape(r, t)"
        ),
        HALF,
    ),
    ("Transpose", conv("q = Transpose<perm=[0,2,3,1]>(a) r = Relu(q) b = Transpose<perm=[0,3,1,2]>(r)"), HALF),
    (
        "Shuffle",
        conv(
            "s2 = Constant<value_ints=[0,2,8,8,8]>() q = Reshape(a, s2) t = Transpose<perm=[0,2,1,3,4]>(q) s3 = Constant<value_ints=[0,16,8,8]>() b = Reshape(t, s3)"
        ),
        HALF,
    ),
    ("Squeeze", conv("k = Constant<value_ints=[4]>() q = Unsqueeze(a, k) b = Squeeze(q, k)"), HALF),
    (
        "Concat",
        conv(
            "c = Conv(x, C:float[8,3,3,3] ) d = Conv(x, D:float[6,3,3,3] ) b = Concat<axis=1>(c, d) u = Relu(a)", c=14
        ),
        {"C": (4, 3, 3, 3), "D": (3, 3, 3, 3)},
    ),
    (
        "Concat inside heads, one part read by itself",
        "agraph (float[N,6,10] x) => (float[N,6,5] y) { p = MatMul(x, P:float[10,32] ) q = MatMul(x, Q:float[10,16] )"
        " s = Constant<value_ints=[0,6,4,8]>() t = Constant<value_ints=[0,6,4,4]>() u = Constant<value_ints=[0,6,48]>()"
        " l = Constant<value_ints=[-1]>() a = Reshape(p, s) b = Reshape(q, t) c = Concat<axis=3>(a, b)"
        " m = ReduceMax<keepdims=0>(a, l) d = MatMul(m, M:float[4,5] ) f = Reshape(c, u) e = MatMul(f, G:float[48,5] )"
        " y = Add(d, e) }",
        {"M": (2, 5), "P": (10, 8), "Q": (10, 4), "G": (12, 5)},
    ),
    ("Split", conv("c, d = Split<axis=1, num_outputs=2>(a) b = Mul(c, d)", c=8), HALF),
    (
        "Slice",
        conv(
            "s1 = Constant<value_ints=[4]>() e1 = Constant<value_ints=[16]>() ax = Constant<value_ints=[1]>() b = Slice(a, s1, e1, ax)",
            c=12,
        ),
        HALF,
    ),
    (
        "Slice with step",
        conv(
            "s1 = Constant<value_ints=[0]>() e1 = Constant<value_ints=[16]>() ax = Constant<value_ints=[1]>() st = Constant<value_ints=[2]>() b = Slice(a, s1, e1, ax, st)",
            c=8,
        ),
        {},
    ),
    ("Gather constant", conv("i = Constant<value_ints=[3,1,2,9,8,15]>() b = Gather<axis=1>(a, i)", c=6), {}),
    ("Expand", conv("q = GlobalAveragePool(a) s2 = Constant<value_ints=[1,16,8,8]>() b = Expand(q, s2)"), HALF),
    ("Tile", conv("s2 = Constant<value_ints=[1,2,1,1]>() b = Tile(a, s2)", c=32), HALF),
    ("DepthToSpace", conv("b = DepthToSpace<blocksize=2>(a)", c=4), {"A": (8, 3, 3, 3), "G": (5, 2)}),
    ("DepthToSpace CRD", conv('b = DepthToSpace<blocksize=2, mode="CRD">(a)', c=4), {"A": (8, 3, 3, 3), "G": (5, 2)}),
    ("SpaceToDepth", conv("b = SpaceToDepth<blocksize=2>(a)", c=64), HALF),
    ("ReduceMean spatial", conv("ax = Constant<value_ints=[2,3]>() b = ReduceMean(a, ax)"), HALF),
    ("ReduceMean channels", conv("ax = Constant<value_ints=[1]>() q = ReduceMean(a, ax) b = Mul(a, q)"), HALF),
    ("ReduceMax channels", conv("ax = Constant<value_ints=[1]>() q = ReduceMax(a, ax) b = Mul(a, q)"), HALF),
    ("ReduceL2 channels", conv("ax = Constant<value_ints=[1]>() q = ReduceL2(a, ax) b = Div(a, q)"), HALF),
    ("GlobalMaxPool", conv("q = GlobalMaxPool(a) b = Mul(a, q)"), HALF),
    ("CumSum spatial", conv("ax = Constant<value_int=2>() b = CumSum(a, ax)"), HALF),
    (
        "MatMul left weight",
        "agraph (float[N,6,4] x) => (float[N,3,4] y) { a = MatMul(A:float[16,6] , x) r = Relu(a) y = MatMul(G:float[3,16] , r) }",
        {"A": (8, 6), "G": (3, 8)},
    ),
    (
        "Gemm transposes",
        "agraph (float[N,4] x) => (float[N,3] y) { a = Gemm(x, A:float[4,16] , Ab:float[16] ) r = Relu(a) y = Gemm<transB=1>(r, G:float[3,16] ) }",
        {"A": (4, 8), "G": (3, 8)},
    ),
    (
        "Einsum",
        'agraph (float[N,6,4] x) => (float[N,6,3] y) { a = Einsum<equation="nsc,chd->nshd">(x, A:float[4,4,8] ) r = Relu(a) y = Einsum<equation="nshd,hdo->nso">(r, G:float[4,8,3] ) }',
        {},
    ),
    ("Softmax over tokens", rows("b = Softmax<axis=1>(a)"), TOKENS),
    ("LayerNormalization", rows("b = LayerNormalization(a, s:float[16] , t:float[16] )"), TOKENS),
    ("TopK over tokens", rows("k = Constant<value_ints=[6]>() b, i = TopK<axis=1>(a, k)"), TOKENS),
    ("FusedMatMul", rows("b = com.microsoft.FusedMatMul<alpha=0.5>(a, B:float[16,16] )"), TOKENS | {"B": (8, 8)}),
    (
        "FusedGemm",
        'agraph (float[N,4] x) => (float[N,3] y) { a = com.microsoft.FusedGemm<activation="Relu">(x, A:float[4,16] , Ab:float[16] ) y = Gemm<transB=1>(a, G:float[3,16] ) }',
        {"A": (4, 8)},
    ),
    (
        "FusedConv",
        conv('b = com.microsoft.FusedConv<activation="Relu">(a, B:float[8,16,1,1] , Bb:float[8] )', c=8),
        HALF,
    ),
    (
        "ReverseSequence",
        rows(
            "six = Constant<value_ints=[6]>() n = Shape<end=1>(a) l = Expand(six, n) b = ReverseSequence<batch_axis=0, time_axis=1>(a, l)"
        ),
        TOKENS,
    ),
    ("Gelu", rows("b = com.microsoft.Gelu(a)"), TOKENS),
    ("BiasGelu", rows("b = com.microsoft.BiasGelu(a, t:float[16] )"), TOKENS),
    ("FastGelu", rows("b = com.microsoft.FastGelu(a, t:float[16] )"), TOKENS),
    ("QuickGelu", rows("b = com.microsoft.QuickGelu(a)"), TOKENS),
    (
        "SkipLayerNormalization",
        rows(
            "c = MatMul(x, C:float[4,16] ) b = com.microsoft.SkipLayerNormalization(a, c, s:float[16] , t:float[16] , u:float[16] )"
        ),
        TOKENS | {"C": (4, 8)},
    ),
    (
        "SkipSimplifiedLayerNormalization",
        rows("c = MatMul(x, C:float[4,16] ) b = com.microsoft.SkipSimplifiedLayerNormalization(a, c, s:float[16] )"),
        TOKENS,
    ),
    (
        "EmbedLayerNormalization",
        "agraph (int32[N,6] x, int32[N,6] m) => (float[N,6,3] y) { b, mi = com.microsoft.EmbedLayerNormalization(x, , E:float[9,16] , P:float[6,16] , , s:float[16] , t:float[16] , m) y = MatMul(b, G:float[16,3] ) }",
        {"E": (9, 8), "P": (6, 8)},
    ),
    (
        "Attention (com.microsoft)",
        rows("b = com.microsoft.Attention<num_heads=4>(a, W:float[16,96] , Wb:float[96] )", c=32),
        TOKENS | {"W": (8, 24), "G": (8, 3)},  # half of the heads, half of each
    ),
    (
        "MultiHeadAttention",
        rows(
            "q = MatMul(a, Q:float[16,32] ) k = MatMul(a, K:float[16,32] ) v = MatMul(a, V:float[16,32] ) b = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, Wb:float[96] )",
            c=32,
        ),
        TOKENS | {"Q": (8, 8), "K": (8, 8), "V": (8, 8), "G": (8, 3)},
    ),
    (
        "QDQ",
        rows(
            "d = DequantizeLinear(W:int8[16,16] , scale:float[] , zz:int8[] ) q = QuantizeLinear(a, scale2:float[] , z3:uint8[] ) e = DequantizeLinear(q, scale2, z3) b = MatMul(e, d)"
        ),
        TOKENS | {"W": (8, 8)},
    ),
    (
        "QDQ bias, one scale, no axis said",
        rows("d = DequantizeLinear(W:int32[16] , scale:float[] , zz:int32[] ) b = Add(a, d)"),
        TOKENS | {"W": (8,)},
    ),
    (
        "QDQ per channel",
        rows("d = DequantizeLinear<axis=1>(W:int8[16,16] , scale:float[16] , zz:int8[16] ) b = MatMul(a, d)"),
        TOKENS | {"W": (8, 8), "scale": (8,)},
    ),
    (
        "MatMulInteger",
        rows(
            "q, s1, z1 = DynamicQuantizeLinear(a) i = MatMulInteger(q, W:int8[16,16] , z1) f = Cast<to=1>(i) b = Mul(f, s1)"
        ),
        TOKENS | {"W": (8, 8)},
    ),
    (
        "ConvInteger",
        conv(
            "q, s1, z1 = DynamicQuantizeLinear(a) i = ConvInteger(q, W:int8[8,16,1,1] , z1) f0 = Cast<to=1>(i) b = Mul(f0, s1)",
            c=8,
        ),
        HALF | {"W": (4, 8, 1, 1)},
    ),
    (
        "QLinearConv",
        conv(
            "q = QuantizeLinear(a, scale1:float[] , z1:uint8[] ) c = QLinearConv(q, scale1, z1, W:int8[8,16,1,1] , scale2:float[8] , zw:int8[8] , scale3:float[] , z1, Wb:int32[8] ) b = DequantizeLinear(c, scale3, z1)",
            c=8,
        ),
        HALF | {"W": (4, 8, 1, 1), "Wb": (4,)},
    ),
    (
        "QLinearMatMul",
        rows(
            "q = QuantizeLinear(a, scale1:float[] , z1:uint8[] ) c = QLinearMatMul(q, scale1, z1, W:int8[16,16] , scale2:float[] , zw:int8[] , scale3:float[] , z1) b = DequantizeLinear(c, scale3, z1)"
        ),
        TOKENS | {"W": (8, 8)},
    ),
]
LATER = [
    (
        19,
        "DeformConv",
        conv(
            "w = Conv<pads=[1,1,1,1]>(x, O:float[18,3,3,3] ) b = DeformConv<kernel_shape=[3,3], pads=[1,1,1,1], offset_group=1>(a, D:float[16,16,3,3] , w, Db:float[16] )"
        ),
        HALF | {"D": (8, 8, 3, 3), "O": (18, 3, 3, 3), "Db": (8,)},
    ),
    (
        19,
        "DeformConv, groups, offset groups",
        conv(
            "w = Conv<pads=[1,1,1,1]>(x, O:float[36,3,3,3] ) b = DeformConv<kernel_shape=[3,3], pads=[1,1,1,1], offset_group=2, group=2>(a, D:float[16,8,3,3] , w)"
        ),
        {"A": (16, 3, 3, 3), "D": (8, 8, 3, 3)},
    ),
    (
        16,
        "RoiAlign",
        conv(
            "z = Constant<value_floats=[0.0,0.0,4.0,4.0,1.0,1.0,6.0,5.0]>() s2 = Constant<value_ints=[2,4]>() r = Reshape(z, s2) i = Constant<value_ints=[0,0]>() d = RoiAlign<output_height=8, output_width=8>(a, r, i) t = Constant<value_ints=[0]>() e = ReduceMean<axes=[0]>(d) b = Add(a, e)"
        ),
        HALF,
    ),
    (
        23,
        "Attention, heads in the last axis",
        rows(
            "q = MatMul(a, Q:float[16,32] ) k = MatMul(a, K:float[16,16] ) v = MatMul(a, V:float[16,16] ) b = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)",
            c=32,
        ),
        {"Q": (8, 8), "K": (8, 4), "V": (8, 4)},
    ),
    (23, "RMSNormalization", rows("b = RMSNormalization(a, s:float[16] )"), TOKENS),
    (21, "GroupNormalization", conv("b = GroupNormalization<num_groups=4>(a, s:float[16] , t:float[16] )"), HALF),
    (
        18,
        "GroupNormalization by group",
        conv("b = GroupNormalization<num_groups=4>(a, s:float[4] , t:float[4] )"),
        HALF,
    ),
    (20, "Gelu opset 20", rows("b = Gelu(a)"), TOKENS),
]


def recurrent(op: str, gates: int, directions: int) -> str:
    way = "bidirectional" if directions == 2 else "forward"
    d, g = directions, gates
    return (
        "agraph (float[6,N,4] x) => (float[6,N,3] y) { "
        f'h, hn = {op}<hidden_size=16, direction="{way}">(x, W:float[{d},{16 * g},4] , R:float[{d},{16 * g},16] , B:float[{d},{32 * g}] ) '
        f"t = Transpose<perm=[0,2,1,3]>(h) s2 = Constant<value_ints=[0,0,-1]>() f = Reshape(t, s2) y = MatMul(f, G:float[{16 * d},3] ) }}"
    )


RECURRENT = [
    (op, d, recurrent(op, g, d), {"W": (d, 8 * g, 4), "R": (d, 8 * g, 8), "G": (8 * d, 3)})
    for op, g in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
    for d in (1, 2)
]


def check(model: onnx.ModelProto, kept: dict[str, tuple[int, ...]]) -> None:
    result = prune(model, ratio=0.5, residual="all", fast=True)
    after = result.model.to_proto()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:  # deprecated operators, and those of runtimes
        pass
    else:
        onnx.checker.check_model(after)
    shapes = {t.name: tuple(t.dims) for t in after.graph.initializer}
    for name, shape in kept.items():
        assert shapes[name] == shape, (name, shapes[name])
    assert sum(np.prod(s) for s in shapes.values()) < sum(np.prod(t.dims) for t in model.graph.initializer)
    sessions = [ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in (model, after)]
    for batch in (1, 4):
        feeds = {}
        for i in sessions[0].get_inputs():
            shape = [batch if isinstance(d, str) else d for d in i.shape]
            feeds[i.name] = np.ones(shape, KINDS[i.type])
        assert [o.shape for o in sessions[0].run(None, feeds)] == [o.shape for o in sessions[1].run(None, feeds)]


@pytest.mark.parametrize(("text", "kept"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_operator(text: str, kept: dict[str, tuple[int, ...]]) -> None:
    check(build(text), kept)


@pytest.mark.parametrize(("opset", "text", "kept"), [(r[0], *r[2:]) for r in LATER], ids=[r[1] for r in LATER])
def test_later_operator(opset: int, text: str, kept: dict[str, tuple[int, ...]]) -> None:
    check(build(text, opset), kept)


@pytest.mark.parametrize(("text", "kept"), [r[2:] for r in RECURRENT], ids=[f"{r[0]}-{r[1]}" for r in RECURRENT])
def test_recurrent(text: str, kept: dict[str, tuple[int, ...]]) -> None:
    check(build(text), kept)
