"""Every operator of the registry stands in a row: here those that `test_rules.py` has none for, and old forms.

A row is the graph's text, the sizes that some weights must have when half of the units went, and the opset.
"""

from __future__ import annotations

import numpy as np
import pytest
import test_heads_of_ml
import test_more_rows
import test_rules
import test_sparse_attention
import test_stand_ins
from graphs import array, replace
from test_rules import HALF, TOKENS, build, check, conv, rows

from onnxprune.api import prune
from onnxprune.trace.rules import RULES

Row = tuple[str, dict[str, tuple[int, ...]], int]
ONE = "one = Constant<value_float=1.0>() half = Constant<value_float=0.5>() "
AX = "ax = Constant<value_ints=[1]>() "
BOTH = "c = Conv<pads=[1,1,1,1]>(x, C:float[16,3,3,3] ) "
PAIR = {"A": (8, 3, 3, 3), "C": (8, 3, 3, 3)}


def positive(op: str) -> str:
    """Of values between 0 and 1, or 1 and 2: there all of them are defined."""
    return conv(f"s = Sigmoid(a) {ONE} t = Add(s, one) b = {op}({'s' if op in ('Acos', 'Asin', 'Atanh') else 't'})")


def judged(body: str) -> str:
    """Of one truth or two at each position, another."""
    return conv(f"{ONE} g = Greater(a, half) h = Less(a, one) t = {body} b = Cast<to=1>(t)")


def whole(body: str, kind: int = 6) -> str:
    """Of small whole numbers."""
    return conv(
        f"s = Sigmoid(a) e = Constant<value_float=8.0>() m = Mul(s, e) i = Cast<to={kind}>(m) k = Cast<to={kind}>(e) "
        f"t = {body} b = Cast<to=1>(t)"
    )


def beside(body: str) -> str:
    """Tokens of which all channels stay, since `body` makes a number `n` of their positions; another layer goes."""
    return (
        "agraph (float[6,4] x) => (float[6,3] y) { a = MatMul(x, A:float[4,16] ) "
        f"{body} d = MatMul(x, D:float[4,16] ) e = Add(d, n) y = MatMul(e, G:float[16,3] ) }}"
    )


def grouped(attributes: str = "", inputs: str = "", past: str = ", , ", length: int = 6) -> str:
    """Four query heads of 32 on two heads of keys and values, in a sequence of six; `length`: with what was before."""
    last = f"l = Constant<value = int32[1] {{{length - 1}}}>() n = Constant<value = int32[1] {{{length}}}>() "
    return (
        "agraph (float[1,6,16] x) => (float[1,6,3] y) { q = MatMul(x, Q:float[16,128] ) k = MatMul(x, K:float[16,64] ) "
        f"v = MatMul(x, V:float[16,64] ) {last} b, nk, nv = com.microsoft.GroupQueryAttention<num_heads=4, "
        f"kv_num_heads=2{attributes}>(q, k, v{past}, l, n{inputs}) y = MatMul(b, G:float[128,3] ) }}"
    )


def quantised(op: str, attributes: str = "", inputs: str = "", last: bool = False, scale: str = "scale1") -> str:
    """`op` of com.microsoft on an image of 8 bits, whose channels are `last` or not; scale of what it gives."""
    there, back = ("t = Transpose<perm=[0,2,3,1]>(a) ", "b = Transpose<perm=[0,3,1,2]>(d)") if last else ("", "")
    return conv(
        f"{there} q = QuantizeLinear({'t' if last else 'a'}, scale1:float[] , z1:uint8[] ) "
        f"o = com.microsoft.{op}{attributes}(q, scale1, z1{inputs}, {scale}, z1) "
        f"{'d' if last else 'b'} = DequantizeLinear(o, {scale}, z1) {back}"
    )


def two(op: str, first: str = "") -> str:
    """`op` of com.microsoft on two images of 8 bits."""
    return conv(
        f"{BOTH} q = QuantizeLinear(a, scale1:float[] , z1:uint8[] ) r = QuantizeLinear(c, scale2:float[] , z2:uint8[] ) "
        f"o = com.microsoft.{op}({first}q, scale1, z1, r, scale2, z2, scale3:float[] , z1) b = DequantizeLinear(o, scale3, z1)"
    )


def turned(operator: str, operands: str, apart: bool = False) -> str:
    """Four heads of eight channels, turned by the angles of positions `i`, which are summed with their own shift."""
    to, back = ("s = Constant<value_ints=[1, 6, 4, 8]>() c = Reshape(a, s) h = Transpose<perm=[0,2,1,3]>(c) ",
                "t = Transpose<perm=[0,2,1,3]>(b) f = Constant<value_ints=[1, 6, 32]>() g = Reshape(t, f) ")  # fmt: skip
    return (
        "agraph (float[1,6,16] x) => (float[1,6,3] y) { a = MatMul(x, A:float[16,32] ) "
        f"i = Constant<value = int64[1,6] {{0, 1, 2, 3, 4, 5}}>() {to if apart else ''} b = {operator}{operands} "
        f"{back if apart else 'g = Identity(b)'} y = MatMul(g, G:float[32,3] ) }}"
    )


def stated(rule: str, shared: int = 2, inputs: str = "") -> str:
    """Four queries of eight channels on so many states, with a decay a channel and one gain for all."""
    gates = "c0 = MatMul(x, C:float[16,32] ) c1 = Sigmoid(c0) c = Neg(c1) d0 = MatMul(x, D:float[16,1] ) d = Sigmoid(d0) "
    width = shared * 8
    return (
        f"agraph (float[1,6,16] x) => (float[1,6,3] y) {{ q = MatMul(x, Q:float[16,32] ) k = MatMul(x, K:float[16,{width}] ) "
        f"v = MatMul(x, V:float[16,{width}] ) {gates if inputs else ''} b, p = com.microsoft.LinearAttention<q_num_heads=4, kv_num_heads={shared}, "
        f'update_rule="{rule}">(q, k, v{inputs}) y = MatMul(b, G:float[32,3] ) }}'
    )


UNARY = """Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Floor HardSigmoid Log Reciprocal Round Selu Shrink Sign
Sin Sinh Sqrt Tan ThresholdedRelu"""
JUDGED = """And(g,h) Or(g,h) Xor(g,h) Not(g) Equal(a,half) Less(a,one) LessOrEqual(a,one) GreaterOrEqual(a,one) IsNaN(a)
IsInf(a)"""
WHOLE = "BitwiseAnd(i,k) BitwiseOr(i,k) BitwiseXor(i,k) BitwiseNot(i) Mod(i,k)"
REDUCE = "ReduceL1 ReduceLogSum ReduceLogSumExp ReduceMin ReduceProd ReduceSum ReduceSumSquare"
HEADS = {"Q": (16, 32), "K": (16, 16), "V": (16, 16), "G": (32, 3)}
TURNED = {"A": (16, 16), "U": (1, 6, 2), "V": (1, 6, 2), "G": (16, 3)}
ALONE = {"A": (4, 16), "D": (4, 8)}
TABLE: dict[str, Row] = {
    **{op: (positive(op), HALF, 18) for op in UNARY.split()},
    **{text.partition("(")[0]: (judged(text), HALF, 18) for text in JUDGED.split()},
    **{text.partition("(")[0]: (whole(text), HALF, 18) for text in WHOLE.split()},
    "BitShift": (whole('BitShift<direction="LEFT">(i, k)', 2), HALF, 18),
    **{op: (conv(f"{BOTH} b = {op}(a, c, pos:float[16,1,1] )"), PAIR, 18) for op in ("Max", "Min", "Mean", "Sum")},
    "Sub": (conv("b = Sub(pos:float[16,1,1] , a)"), HALF, 18),
    "Pow": (conv("r = Abs(a) b = Pow(r, pos:float[16,1,1] )"), HALF, 18),
    "CastLike": (conv("n = Constant<value_int=1>() i = CastLike(a, n) b = CastLike(i, Ab)"), HALF, 18),
    "Swish": (conv("b = Swish(a)"), HALF, 24),
    "LpPool": (conv("b = LpPool<kernel_shape=[2,2]>(a)"), HALF, 18),
    "GlobalLpPool": (conv("q = GlobalLpPool(a) b = Mul(a, q)"), HALF, 18),
    **{op: (conv(f"{AX} r = Sigmoid(a) q = {op}(r, ax) b = Mul(a, q)"), HALF, 18) for op in REDUCE.split()},
    "Hardmax": (rows("b = Hardmax<axis=1>(a)"), TOKENS, 18),
    "LogSoftmax": (rows("b = LogSoftmax<axis=1>(a)"), TOKENS, 18),
    "ArgMax": (rows("i = ArgMax<axis=1>(a) f = Cast<to=1>(i) b = Add(a, f)"), TOKENS, 18),
    "ArgMin": (
        rows(f"i = ArgMin<axis=1, keepdims=0>(a) {AX} u = Unsqueeze(i, ax) f = Cast<to=1>(u) b = Add(a, f)"),
        TOKENS,
        18,
    ),
    "Trilu": (rows("t = Transpose<perm=[2,1,0]>(a) u = Trilu(t) b = Transpose<perm=[2,1,0]>(u)"), TOKENS, 18),
    "MaxUnpool": (
        conv(
            "m, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) "
            "b = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(m, i)"
        ),
        HALF,
        18,
    ),
    "MaxRoiPool": (
        conv(
            "r = Constant<value = float[2,5] {0.0, 0.0, 0.0, 4.0, 4.0, 0.0, 1.0, 1.0, 6.0, 5.0}>() "
            "d = MaxRoiPool<pooled_shape=[8,8]>(a, r) e = ReduceMean<axes=[0]>(d) b = Add(a, e)"
        ),
        HALF,
        16,
    ),
    "ConstantOfShape": (conv("s = Shape(a) z = ConstantOfShape<value = float[1] {0.5}>(s) b = Add(a, z)"), HALF, 18),
    "GatherElements": (
        rows("k = Constant<value_ints=[6]>() v, i = TopK<axis=1>(a, k) b = GatherElements<axis=1>(a, i)"),
        TOKENS,
        18,
    ),
    **{
        op: (rows(f"k = Constant<value_ints=[6]>() v, i = TopK<axis=1>(a, k) b = {op}<axis=1>(a, i, v)"), TOKENS, opset)
        for op, opset in (("ScatterElements", 18), ("Scatter", 10))
    },
    "GatherND": (
        rows("i = Constant<value = int64[2,6,1] {0,1,2,3,4,5,5,4,3,2,1,0}>() b = GatherND<batch_dims=1>(a, i)").replace(
            "[N,", "[2,"
        ),
        TOKENS,
        18,
    ),
    "ScatterND": (
        rows(
            "i = Constant<value = int64[2,2] {0,1,1,0}>() u = Constant<value_ints=[2]>() s, r = Split<axis=1>(a, w) w = Constant<value_ints=[1,5]>() b = ScatterND(a, i, f)"
        )
        .replace(
            "u = Constant<value_ints=[2]>() s, r = Split<axis=1>(a, w) w = Constant<value_ints=[1,5]>()",
            "w = Constant<value_ints=[1,5]>() s, r = Split<axis=1>(a, w) one = Constant<value_ints=[1]>() f = Squeeze(s, one)",
        )
        .replace("[N,", "[2,"),
        TOKENS,
        18,
    ),
    "If": (
        rows(
            f"{ONE} s = ReduceMax<keepdims=0>(a) g = Greater(s, one) b = If (g) <then_branch = t () => (float[N,6,16] u)"
            " { u = Relu(a) }, else_branch = f () => (float[N,6,16] v) { v = Neg(a) }>"
        ),
        TOKENS,
        18,
    ),
    "Loop": (
        rows(
            "n = Constant<value_int=3>() g = Constant<value = bool {1}>() b = Loop (n, g, a) <body = t (int64 i, bool h, "
            "float[N,6,16] u) => (bool k, float[N,6,16] v) { k = Identity(h) v = Tanh(u) }>"
        ),
        TOKENS,
        18,
    ),
    "Scan": (
        rows(
            "z = ReduceMean<axes=[1], keepdims=0>(a) e, b = Scan<num_scan_inputs=1, scan_input_axes=[1], "
            "scan_output_axes=[1], body = t (float[N,16] s, float[N,16] u) => (float[N,16] r, float[N,16] v) "
            "{ r = Add(s, u) v = Tanh(r) }>(z, a)"
        ),
        TOKENS,
        16,
    ),
    "Range": (
        rows(
            "o = Constant<value_float=0.0>() n = Constant<value_float=6.0>() i = Constant<value_float=1.0>() "
            f"r = Range(o, n, i) {AX} u = Unsqueeze(r, ax) b = Add(a, u)"
        ),
        TOKENS,
        18,
    ),
    "Bernoulli": (conv("s = Sigmoid(a) b = Bernoulli(s)"), HALF, 18),
    "RandomNormalLike": (conv("r = RandomNormalLike<scale=0.1>(a) b = Add(a, r)"), HALF, 18),
    "RandomUniformLike": (conv("r = RandomUniformLike<seed=1.0>(a) b = Mul(a, r)"), HALF, 18),
    "RandomNormal": (rows("r = RandomNormal<shape=[6,1]>() b = Add(a, r)"), TOKENS, 18),
    "Dropout in training": (
        conv("h = Constant<value_float=0.5>() t = Constant<value = bool {1}>() b = Dropout(a, h, t)"),
        HALF,
        18,
    ),
    "SimplifiedLayerNormalization": (
        rows("b = SimplifiedLayerNormalization(a, s:float[16] )"),
        TOKENS | {"s": (8,)},
        18,
    ),
    "ai.onnx.ml::Binarizer": (conv("b = ai.onnx.ml.Binarizer<threshold=0.5>(a)"), HALF, 18),
    **{
        op: (conv(f"b = {op}<alpha=0.5, beta=0.1>(a)"), HALF, 8)
        for op in ("Affine", "ParametricSoftplus", "ScaledTanh")
    },
    "Scale": (conv("b = Scale<scale=0.5>(a)"), HALF, 8),
    "ImageScaler": (conv(f"b = ImageScaler<scale=0.5, bias=[{', '.join(f'0.{k}' for k in range(16))}]>(a)"), HALF, 8),
    "Crop": (conv("b = Crop<border=[1,1,1,1]>(a)"), HALF, 8),
    "MaxPool's places": (
        conv(
            "m, i = MaxPool<kernel_shape=[8,8]>(a) w = Cast<to=1>(i) d = Conv(x, D:float[16,3,1,1] ) "
            "e = Conv(d, E:float[16,16,8,8] ) b = Add(e, w)"
        ),
        {"A": (16, 3, 3, 3), "D": (8, 3, 1, 1)},
        18,
    ),
    "Gather by labelled indices": (
        rows("k = Constant<value_ints=[6]>() v, i = TopK<axis=1>(a, k) b = Gather<axis=0>(T:float[6] , i)"),
        TOKENS,
        18,
    ),
    "GatherElements of the first channels": (
        beside(
            "i = Constant<value = int64[6,1] {0,1,2,3,4,5}>() g = GatherElements<axis=0>(a, i) n = ReduceMean<keepdims=0>(g)"
        ),
        ALONE,
        18,
    ),
    "ScatterElements into the first channels": (
        beside(
            "i = Constant<value = int64[6,2] {0,1,2,3,4,5,5,4,3,2,1,0}>() u = Constant<value = float[6,2] {1,2,3,4,5,6,7,8,9,10,11,12}>() "
            "g = ScatterElements<axis=0>(a, i, u) n = ReduceMax<keepdims=0>(g)"
        ),
        ALONE,
        18,
    ),
    "GatherND by labelled places": (
        "agraph (float[3,4] x) => (float[3] y) { a = MatMul(x, A:float[4,2] ) s = Sigmoid(a) i = Cast<to=7>(s) "
        "d = MatMul(x, D:float[4,16] ) e = MatMul(d, E:float[16,2] ) y = GatherND(e, i) }",
        {"A": (4, 2), "D": (4, 8), "E": (8, 2)},
        18,
    ),
    "Slice by bounds that are told": (
        "agraph (float[2,4] x, int64[2] l, int64[2] h) => (float[J,K] y, float[2,3] z) { a = MatMul(x, A:float[4,16] ) "
        "b = MatMul(a, B:float[16,16] ) y = Slice(b, l, h) z = MatMul(b, G:float[16,3] ) }",
        {"A": (4, 8), "B": (8, 16)},
        18,
    ),
    "NonZero": (beside("p = NonZero(a) f = Cast<to=1>(p) n = ReduceMean<keepdims=0>(f)"), ALONE, 18),
    "Size": (beside("s = Size(a) n = Cast<to=1>(s)"), ALONE, 18),
    "EyeLike": (beside("i = EyeLike(a) m = Mul(a, i) n = ReduceMean<keepdims=0>(m)"), ALONE, 18),
    "com.microsoft::QuantizeLinear": (
        rows(
            "q = com.microsoft.QuantizeLinear(a, scale:float[] , z:uint8[] ) "
            "b = com.microsoft.DequantizeLinear(q, scale, z)"
        ),
        TOKENS,
        18,
    ),
    "com.microsoft::QGemm": (
        "agraph (float[N,4] x) => (float[N,3] y) { a = Gemm(x, A:float[4,16] , Ab:float[16] ) "
        "q = QuantizeLinear(a, scale1:float[] , z1:uint8[] ) g = com.microsoft.QGemm<transB=1>(q, scale1, z1, "
        "W:int8[8,16] , scale2:float[8] , zw:int8[8] , B:int32[8] , scale3:float[] , z1) "
        "b = DequantizeLinear(g, scale3, z1) y = MatMul(b, G:float[8,3] ) }",
        {"A": (4, 8), "W": (4, 8), "B": (4,), "scale2": (4,), "zw": (4,), "G": (4, 3)},
        18,
    ),
    **{f"com.microsoft::{op}": (two(op), PAIR, 18) for op in ("QLinearAdd", "QLinearMul")},
    "com.microsoft::QLinearWhere": (
        two("QLinearWhere", "m, ").replace("o = com", "h = Constant<value_float=0.1>() m = Greater(a, h) o = com"),
        PAIR,
        18,
    ),
    **{f"com.microsoft::{op}": (quantised(op), HALF, 18) for op in ("QLinearSigmoid", "QLinearLeakyRelu")},
    "com.microsoft::QLinearSoftmax": (quantised("QLinearSoftmax", "<axis=3, opset=13>"), HALF, 18),
    "QLinearSoftmax over channels": (
        beside(
            "q = QuantizeLinear(a, scale1:float[] , z1:uint8[] ) o = com.microsoft.QLinearSoftmax<axis=1, opset=13>(q, "
            "scale1, z1, scale2:float[] , z1) f = DequantizeLinear(o, scale2, z1) n = ReduceMean<keepdims=0>(f)"
        ),
        ALONE,
        18,
    ),
    "QLinearSoftmax of opset 12": (quantised("QLinearSoftmax", "<axis=2, opset=12>"), HALF, 18),
    "com.microsoft::QLinearConcat": (
        conv(
            f"{BOTH} q = QuantizeLinear(a, scale1:float[] , z1:uint8[] ) r = QuantizeLinear(c, scale2:float[] , z2:uint8[] ) "
            "o = com.microsoft.QLinearConcat<axis=1>(scale1, z1, q, scale1, z1, r, scale2, z2) b = DequantizeLinear(o, scale1, z1)",
            c=32,
        ),
        PAIR | {"G": (5, 16)},
        18,
    ),
    **{
        f"QLinearAveragePool{', channels last' * last}": (
            quantised("QLinearAveragePool", f"<kernel_shape=[2,2], channels_last={int(last)}>", last=last),
            HALF,
            18,
        )
        for last in (False, True)
    },
    **{
        f"QLinearGlobalAveragePool{', channels last' * last}": (
            quantised("QLinearGlobalAveragePool", f"<channels_last={int(last)}>", last=last),
            HALF,
            18,
        )
        for last in (False, True)
    },
    "com.microsoft::NhwcMaxPool": (
        conv(
            "t = Transpose<perm=[0,2,3,1]>(a) q = QuantizeLinear(t, scale1:float[] , z1:uint8[] ) "
            "o = com.microsoft.NhwcMaxPool<kernel_shape=[2,2]>(q) d = DequantizeLinear(o, scale1, z1) "
            "b = Transpose<perm=[0,3,1,2]>(d)"
        ),
        HALF,
        18,
    ),
    "com.microsoft::QLinearConv": (
        quantised("QLinearConv", "<channels_last=1, pads=[1,1,1,1]>", ", W:int8[16,16,3,3] , scale2:float[16] , zw:int8[16] ", True),
        HALF | {"W": (8, 8, 3, 3), "scale2": (8,), "zw": (8,)},
        18,
    ),
    "QLinearConv by groups, channels last": (
        quantised("QLinearConv", "<channels_last=1, group=16>", ", W:int8[16,1,1,1] , scale2:float[16] , zw:int8[16] ", True),
        HALF | {"W": (8, 1, 1, 1), "scale2": (8,)},
        18,
    ),
    "com.microsoft::QAttention": (
        rows(
            "q, s1, z1 = DynamicQuantizeLinear(a) b = com.microsoft.QAttention<num_heads=4, unidirectional=1>(q, "
            "W:int8[16,96] , Wb:float[96] , s1, scale2:float[96] , , z1, zw:int8[96] )",
            c=32,
        ),
        TOKENS | {"W": (8, 24), "Wb": (24,), "scale2": (24,), "zw": (24,), "G": (8, 3)},
        18,
    ),
    "QAttention after a past": (
        rows(
            "q, s1, z1 = DynamicQuantizeLinear(a) b, p = com.microsoft.QAttention<num_heads=4>(q, "
            "W:int8[16,96] , Wb:float[96] , s1, scale2:float[] , , z1, zw:int8[] , P:float[2,2,4,3,8] )",
            c=32,
        ).replace("[N,", "[2,"),
        TOKENS | {"W": (8, 96), "P": (2, 2, 4, 3, 8)},
        18,
    ),
    "MatMulInteger by columns": (
        rows(
            "q, s1, z1 = DynamicQuantizeLinear(a) i = MatMulInteger(q, W:int8[16,16] , z1, zw:int8[16] ) f = Cast<to=1>(i) b = Mul(f, s1)"
        ),
        TOKENS | {"W": (8, 8), "zw": (8,)},
        18,
    ),
    "QLinearMatMul by columns": (
        rows(
            "q = QuantizeLinear(a, scale1:float[] , z1:uint8[] ) c = QLinearMatMul(q, scale1, z1, W:int8[16,16] , scale2:float[16] , zw:int8[16] , scale3:float[] , z1) b = DequantizeLinear(c, scale3, z1)"
        ),
        TOKENS | {"W": (8, 8), "scale2": (8,), "zw": (8,)},
        18,
    ),
    "ReduceL1 over all axes, by none": (
        rows("z = Constant<value = int64[0] {}>() n = ReduceL1(a, z) b = Mul(a, n)"),
        TOKENS,
        18,
    ),
    "com.microsoft::GroupQueryAttention": (grouped(), HEADS, 18),
    "GroupQueryAttention, in a window": (grouped(", local_window_size=3, softcap=2.0"), HEADS, 18),
    "GroupQueryAttention, smooth": (grouped(", smooth_softmax=1"), HEADS, 18),
    "GroupQueryAttention, rotary": (
        grouped(", do_rotary=1", ", U:float[8,16] , V2:float[8,16] "),
        {"Q": (16, 64), "K": (16, 32), "V": (16, 32), "G": (64, 3)},
        18,
    ),
    "GroupQueryAttention, biased": (grouped("", ", , , , T:float[1,4,6,6] "), HEADS | {"T": (1, 2, 6, 6)}, 18),
    "GroupQueryAttention, with sinks": (grouped("", ", , , , , T:float[4] "), HEADS | {"T": (2,)}, 18),
    "GroupQueryAttention, after a constant past": (
        grouped(past=", P:float[1,2,4,32] , P2:float[1,2,4,32] ", length=10),
        {"Q": (16, 32), "K": (16, 16), "V": (16, 16), "P": (1, 1, 4, 16), "P2": (1, 1, 4, 16)},
        18,
    ),
    "GroupQueryAttention, packed": (
        grouped("", "")
        .replace("k = MatMul(x, K:float[16,64] ) v = MatMul(x, V:float[16,64] )", "h = MatMul(x, H:float[16,16] )")
        .replace("q = MatMul(x, Q:float[16,128] )", "")
        .replace(" l = ", " q = MatMul(h, Q:float[16,256] ) l = ")
        .replace("(q, k, v, ", "(q, , , "),
        {"H": (16, 8), "Q": (8, 64), "G": (32, 3)},
        18,
    ),
    "RotaryEmbedding": (turned("RotaryEmbedding<num_heads=4>", "(a, U:float[1,6,4] , V:float[1,6,4] )"), TURNED, 23),
    "RotaryEmbedding, heads apart": (
        turned("RotaryEmbedding<interleaved=1>", "(h, U:float[9,4] , V:float[9,4] , i)", apart=True),
        {"A": (16, 16), "U": (9, 2), "V": (9, 2), "G": (16, 3)},
        23,
    ),
    "RotaryEmbedding, of a part": (
        turned("RotaryEmbedding<num_heads=4, rotary_embedding_dim=4>", "(a, U:float[1,6,2] , V:float[1,6,2] )"),
        {"A": (16, 16), "U": (1, 6, 1), "G": (16, 3)},
        23,
    ),
    "com.microsoft::RotaryEmbedding": (
        turned("com.microsoft.RotaryEmbedding", "(a, i, U:float[9,4] , V:float[9,4] )"),
        {"A": (16, 16), "U": (9, 2), "V": (9, 2), "G": (16, 3)},
        18,
    ),
    "com.microsoft::DecoderMaskedMultiHeadAttention": (
        "agraph (float[1,1,16] x, float[1,4,6,8] pk, float[1,4,6,8] pv) => (float[1,1,3] y, float[1,4,6,8] nk, float[1,4,6,8] nv) "
        "{ h = MatMul(x, H:float[16,16] ) q = MatMul(h, Q:float[16,32] ) k = MatMul(h, K:float[16,32] ) v = MatMul(h, V:float[16,32] ) "
        "l = Constant<value = int32[1] {3}>() b, nk, nv = com.microsoft.DecoderMaskedMultiHeadAttention<num_heads=4, "
        "past_present_share_buffer=1>(q, k, v, , , pk, pv, l) y = MatMul(b, G:float[32,3] ) }",
        {"H": (16, 8), "Q": (8, 32), "K": (8, 32), "G": (32, 3)},
        18,
    ),
    "TensorScatter": (
        "agraph (float[1,6,16] x, float[1,2,16] z) => (float[1,6,3] y) { a = MatMul(x, A:float[16,32] ) u = MatMul(z, U:float[16,32] ) "
        "w = Constant<value = int64[1] {3}>() b = TensorScatter(a, u, w) y = MatMul(b, G:float[32,3] ) }",
        {"A": (16, 16), "U": (16, 16), "G": (16, 3)},
        24,
    ),
    "com.microsoft::LinearAttention": (stated("linear"), {"Q": (16, 8), "K": (16, 4), "V": (16, 4), "G": (8, 3)}, 18),
    "LinearAttention, gated": (
        stated("gated_delta", 4, ", , c, d"), {"Q": (16, 8), "K": (16, 8), "V": (16, 8), "C": (16, 8), "G": (8, 3)}, 18,
    ),
    "com.microsoft::Attention, biased for each sequence, head and place": (
        'agraph (float[2,6,12] x) => (float[2,6,3] y) { a = com.microsoft.Attention<num_heads=4>(x, A:float[12,96] , U:float[96] , "", "", '
        "T:float[2,4,6,6] ) y = MatMul(a, G:float[32,3] ) }",
        {"A": (12, 24), "T": (2, 2, 6, 6), "G": (8, 3)},
        18,
    ),
    "com.microsoft::Attention with a past": (
        "agraph (float[1,6,16] x, float[2,1,4,5,8] past) => (float[1,6,3] y, float[2,1,4,11,8] present) "
        "{ h = MatMul(x, H:float[16,16] ) b, present = com.microsoft.Attention<num_heads=4, unidirectional=1>(h, W:float[16,96] , B:float[96] , , past) "
        "y = MatMul(b, G:float[32,3] ) }",
        {"H": (16, 8), "W": (8, 96), "B": (96,), "G": (32, 3)},
        18,
    ),
    "MultiHeadAttention, keys with an axis of heads": (
        "agraph (float[1,6,16] x, float[1,5,16] z) => (float[1,6,3] y) { q = MatMul(x, Q:float[16,32] ) k = MatMul(z, K:float[16,32] ) "
        "v = MatMul(z, V:float[16,32] ) s = Constant<value_ints=[0, 0, 4, 8]>() k4 = Reshape(k, s) kt = Transpose<perm=[0,2,1,3]>(k4) "
        "v4 = Reshape(v, s) vt = Transpose<perm=[0,2,1,3]>(v4) b = com.microsoft.MultiHeadAttention<num_heads=4>(q, kt, vt) y = MatMul(b, G:float[32,3] ) }",
        {"Q": (16, 8), "K": (16, 8), "V": (16, 8), "G": (8, 3)},
        18,
    ),
    "com.microsoft::MatMulNBits": (
        "agraph (float[N,4] x) => (float[N,3] y) { a = MatMul(x, A:float[4,32] ) b = com.microsoft.MatMulNBits<K=32, N=48, "
        "bits=4, block_size=16>(a, W:uint8[48,2,8] , scale:float[96] , Z:uint8[48] , , B:float[48] ) r = Relu(b) "
        "c = com.microsoft.MatMulNBits<K=48, N=32, bits=4, block_size=16>(r, V:uint8[32,3,8] , scale2:float[32,3] , Y:uint8[32,2] ) "
        "y = MatMul(c, G:float[32,3] ) }",
        {"A": (4, 16), "W": (32, 1, 8), "scale": (32,), "Z": (32,), "B": (32,), "V": (16, 2, 8), "Y": (16, 1), "G": (16, 3)},
        18,
    ),
    "com.microsoft::GatherBlockQuantized": (
        "agraph (int64[N,6] x) => (float[N,6,3] y) { b = com.microsoft.GatherBlockQuantized<gather_axis=0, quantize_axis=1, "
        "block_size=16, bits=4>(W:uint8[9,24] , x, scale:float[9,3] , Z:uint8[9,2] ) y = MatMul(b, G:float[48,3] ) }",
        {"W": (9, 16), "scale": (9, 2), "Z": (9, 1), "G": (32, 3)},
        18,
    ),
    "com.microsoft::MoE": (
        "agraph (float[N,4] x) => (float[N,3] y) { a = MatMul(x, A:float[4,16] ) r = MatMul(a, R:float[16,4] ) "
        'b = com.microsoft.MoE<k=1, activation_type="relu">(a, r, U:float[4,24,16] , Ub:float[4,24] , V:float[4,16,24] , Vb:float[4,16] ) '
        "y = MatMul(b, G:float[16,3] ) }",
        {"A": (4, 8), "R": (8, 2), "U": (2, 12, 8), "Ub": (2, 12), "V": (2, 8, 12), "Vb": (2, 8), "G": (8, 3)},
        18,
    ),
    "com.microsoft::QMoE": (
        "agraph (float[N,4] x) => (float[N,3] y) { a = MatMul(x, A:float[4,16] ) r = MatMul(a, R:float[16,4] ) "
        'b = com.microsoft.QMoE<k=3, activation_type="silu", expert_weight_bits=4>(a, r, U:uint8[4,24,8] , scale:float[4,24] , '
        "Ub:float[4,24] , V:uint8[4,16,12] , scale2:float[4,16] ) y = MatMul(b, G:float[16,3] ) }",
        {"A": (4, 8), "R": (8, 3), "U": (3, 12, 4), "scale": (3, 12), "V": (3, 8, 6), "scale2": (3, 8), "G": (8, 3)},
        18,
    ),
    "com.microsoft::DynamicQuantizeMatMul": (
        rows("b = com.microsoft.DynamicQuantizeMatMul(a, W:int8[16,16] , scale:float[16] , zw:int8[16] , Wb:float[16] )"),
        TOKENS | {"W": (8, 8), "scale": (8,), "zw": (8,), "Wb": (8,)},
        18,
    ),
    "com.microsoft::MatMulIntegerToFloat": (
        rows(
            "q, s, z = DynamicQuantizeLinear(a) "
            "b = com.microsoft.MatMulIntegerToFloat(q, W:int8[16,16] , s, scale:float[16] , z, zw:int8[16] , Wb:float[16] )"
        ),
        TOKENS | {"W": (8, 8), "scale": (8,), "zw": (8,), "Wb": (8,)},
        18,
    ),
    "com.microsoft::TransposeMatMul": (
        rows("b = com.microsoft.TransposeMatMul<transB=1>(a, W:float[16,16] )"),
        TOKENS | {"W": (8, 8)},
        18,
    ),
    "FusedMatMul, batch axes turned inside": (
        rows("t = Transpose<perm=[1,0,2]>(a) b = com.microsoft.FusedMatMul<transBatchA=1>(t, W:float[1,16,16] )").replace("[N,", "[2,"),
        TOKENS | {"W": (1, 8, 8)},
        18,
    ),
    "Einsum of a diagonal": (
        'agraph (float[4,6] x) => (float[4,3] y) { a = MatMul(x, A:float[6,4] ) i = Einsum<equation="jj->j">(a) '
        "d = MatMul(x, D:float[6,16] ) r = Relu(d) e = MatMul(r, E:float[16,4] ) b = Mul(e, i) y = MatMul(b, G:float[4,3] ) }",
        {"A": (6, 4), "D": (6, 8)},
        18,
    ),
    "Clip 6": (conv("b = Clip<min=0.0, max=6.0>(a)"), HALF, 10),
    "Slice 1": (conv("b = Slice<axes=[1], starts=[4], ends=[16]>(a)", c=12), HALF, 9),
    "Pad 2": (conv("b = Pad<pads=[0,0,1,1,0,0,1,1]>(a)"), HALF, 10),
    "Split 2": (conv("c, d = Split<axis=1, split=[8,8]>(a) b = Mul(c, d)", c=8), HALF, 12),
    "Squeeze 1": (conv("q = Unsqueeze<axes=[4]>(a) b = Squeeze<axes=[4]>(q)"), HALF, 12),
    "ReduceSum 1": (conv("q = ReduceSum<axes=[1]>(a) b = Mul(a, q)"), HALF, 12),
    "TopK 1": (rows("b, i = TopK<axis=1, k=6>(a)"), TOKENS, 9),
    "Softmax 1, all after the axis": (beside("s = Softmax<axis=1>(a) n = ReduceMean<keepdims=0>(s)"), ALONE, 12),
    "BatchNormalization 7": (
        conv("b = BatchNormalization(a, s:float[16] , t:float[16] , m:float[16] , var:float[16] )"),
        HALF | {"s": (8,), "var": (8,)},
        8,
    ),
    "BatchNormalization in training, whose statistics are told": (
        "agraph (float[N,3,8,8] x) => (float[N,5,8,8] y, float[16] n, float[16] u) { d = Conv(x, D:float[16,3,1,1] ) "
        "a = Conv(d, A:float[16,16,1,1] ) b, n, u = BatchNormalization<training_mode=1>(a, s:float[16] , t:float[16] , "
        "m:float[16] , var:float[16] ) y = Conv(b, G:float[5,16,1,1] ) }",
        {"D": (8, 3, 1, 1), "A": (16, 8, 1, 1)},
        18,
    ),
    "Upsample": (conv('r = Constant<value_floats=[1.0,1.0,2.0,2.0]>() b = Upsample<mode="nearest">(a, r)'), HALF, 9),
    "Upsample 7": (conv('b = Upsample<mode="nearest", scales=[1.0,1.0,2.0,2.0]>(a)'), HALF, 8),
    "Resize 10": (conv('r = Constant<value_floats=[1.0,1.0,2.0,2.0]>() b = Resize<mode="nearest">(a, r)'), HALF, 10),
}


@pytest.mark.parametrize(("text", "kept", "opset"), TABLE.values(), ids=TABLE)
def test_operator(text: str, kept: dict[str, tuple[int, ...]], opset: int) -> None:
    check(build(text, opset), kept)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("heads", [True, False])
def test_the_heads_of_grouped_queries_are_of_a_size_that_kernels_take(ratio: float, heads: bool) -> None:
    after = prune(build(grouped()), ratio=ratio, residual="all", fast=True, heads=heads).model
    node = next(n for n in after.graph.node if n.op_type == "GroupQueryAttention")
    count = next(a.i for a in node.attribute if a.name == "num_heads")
    assert after.weights["Q"].shape[1] % (8 * count) == 0


def test_what_goes_may_be_no_number() -> None:
    """The logarithm of the first channels is none, and they are the least important ones."""
    model = build(rows("s = Add(a, B:float[16] ) b = Log(s)"))
    scale = np.repeat(np.float32([0.01, 1]), 8)
    replace(model, "A", array(model, "A") * scale)
    replace(model, "G", array(model, "G") * scale[:, None])
    replace(model, "B", np.repeat(np.float32([-1, 30]), 8))
    result = prune(model, ratio=0.5, residual="all", fast=True)
    assert (result.model.weights["B"].array() == 30).all()


def test_every_operator_of_the_registry_is_in_a_row() -> None:
    texts = [(text, opset) for text, _, opset in TABLE.values()]
    texts += [(r[1], 18) for r in test_rules.TABLE] + [(r[2], r[0]) for r in test_rules.LATER]
    texts += [(r[2], 18) for r in test_rules.RECURRENT]
    texts += [(text, opset) for text, _, opset in test_more_rows.TABLE.values()]
    others = [test_stand_ins.STEP, *test_stand_ins.ATTENTION.values(), *(m for m, _ in test_stand_ins.CASES.values())]
    others.append(test_sparse_attention.network(4, 2, 2))
    seen = set()
    for model in (*(build(*t) for t in texts), *map(test_heads_of_ml.network, test_heads_of_ml.HEADS), *others):
        for node in model.graph.node:
            seen.add(node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}")
    assert sorted(RULES.keys() - seen) == []
