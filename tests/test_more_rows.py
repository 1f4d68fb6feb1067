"""More rows of the table of operators: what knows the positions of some axes, what runtimes fuse, sequences, and
ai.onnx.ml in the middle of a graph. A row is as in `test_operator_rows.py`.
"""

from __future__ import annotations

import pytest
from test_rules import HALF, TOKENS, build, check, conv, rows

Row = tuple[str, dict[str, tuple[int, ...]], int]
PLACES = "i0 = Constant<value_int=0>() i1 = Constant<value_int=1>() im = Constant<value_int=-1>() "
ONE_AXIS = "ax = Constant<value_ints=[1]>() last = Constant<value_ints=[-1]>() both = Constant<value_ints=[2,3]>() "
SECOND = "c = Conv(x, C:float[16,3,1,1] ) "
PAIR = {"A": (8, 3, 3, 3), "C": (8, 3, 1, 1)}
SQUARES = (
    "t = Transpose<perm=[0,2,1]>(a) i = Constant<value_ints=[0,1,2,1]>() g = Gather<axis=2>(t, i) "
    "sq = Constant<value_ints=[0,0,2,2]>() "
)
SIXTEEN = ",".join(f"{1 + k / 7:.3f}" for k in range(16))
TABLE: dict[str, Row] = {
    "CenterCropPad": (conv("s = Constant<value_ints=[6,10]>() b = CenterCropPad<axes=[2,3]>(a, s)"), HALF, 18),
    "CenterCropPad that lists the channels": (
        conv("s = Constant<value_ints=[16,6,10]>() b = CenterCropPad<axes=[-3,2,3]>(a, s)"),
        HALF,
        18,
    ),
    "Col2Im": (
        conv(
            "s = Constant<value_ints=[0,16,64]>() r = Reshape(a, s) i = Constant<value_ints=[16,16]>() "
            "k = Constant<value_ints=[2,2]>() b = Col2Im<strides=[2,2]>(r, i, k)",
            c=4,
        ),
        HALF | {"G": (5, 2)},
        18,
    ),
    "Compress": (
        conv(
            "m = Constant<value = bool[15] {1,1,0,1,0,1,1,1,1,1,1,0,1,1,1}>() b = Compress<axis=1>(a, m)",
            c=12,
        ),
        HALF,
        17,
    ),
    "Compress by a condition of the run": (
        conv(
            "r = ReduceMax<axes=[0,1,2], keepdims=0>(x) h = Constant<value_float=-9.0>() i = Greater(r, h) "
            "b = Compress<axis=3>(a, i)"
        ),
        HALF,
        17,
    ),
    "DFT": (
        rows(f"{ONE_AXIS} u = Unsqueeze(a, last) d = DFT<axis=1>(u) z = Constant<value_int=1>() b = Gather<axis=3>(d, z)"),
        TOKENS,
        18,
    ),
    "DFT 20": (
        rows(f"{ONE_AXIS} u = Unsqueeze(a, last) o = Constant<value_int=1>() d = DFT(u, , o) b = ReduceSum<keepdims=0>(d, last)"),
        TOKENS,
        20,
    ),
    "CumProd": (rows("s = Sigmoid(a) o = Constant<value_int=1>() b = CumProd(s, o)"), TOKENS, 26),
    "BitCast": (rows("i = BitCast<to=6>(a) b = BitCast<to=1>(i)"), TOKENS, 26),
    "Det": (rows(f"{SQUARES} {ONE_AXIS} r = Reshape(g, sq) d = Det(r) u = Unsqueeze(d, ax) b = Mul(a, u)"), TOKENS, 18),
    "Inverse": (
        rows(
            f"{SQUARES} {ONE_AXIS} r = Reshape(g, sq) e = Constant<value = float[2,2] {{9.0, 0.0, 0.0, 9.0}}>() w = Add(r, e) "
            "d = com.microsoft.Inverse(w) q = ReduceSum<keepdims=0>(d, both) u = Unsqueeze(q, ax) b = Mul(a, u)"
        ),
        TOKENS,
        18,
    ),
    "OneHot": (
        rows(
            "i = ArgMax<axis=1, keepdims=0>(a) n = Constant<value_int=6>() v = Constant<value_floats=[0.5,2.0]>() "
            "o = OneHot(i, n, v) t = Transpose<perm=[0,2,1]>(o) b = Mul(a, t)"
        ),
        TOKENS,
        18,
    ),
    "UnfoldTensor": (
        rows(
            f"{ONE_AXIS} u = com.microsoft.UnfoldTensor<dim=1, size=2, step=1>(a) m = ReduceMean<axes=[1,3], keepdims=0>(u) "
            "v = Unsqueeze(m, ax) b = Mul(a, v)"
        ),
        TOKENS,
        17,
    ),
    "CDist": (
        "agraph (float[N,4] x) => (float[N,2] y) { a = MatMul(x, A:float[4,16] ) r = Relu(a) "
        'b = com.microsoft.CDist<metric="sqeuclidean">(r, D:float[6,16] ) y = MatMul(b, G:float[6,2] ) }',
        TOKENS | {"D": (3, 8)},
        18,
    ),
    "GatedAdd": (
        rows("c = MatMul(x, C:float[4,16] ) g = MatMul(x, Q:float[4,1] ) b = com.microsoft.GatedAdd(a, c, g)"),
        TOKENS | {"C": (4, 8)},
        18,
    ),
    "GatedRMSNorm": (
        rows('c = MatMul(x, C:float[4,16] ) b = com.microsoft.GatedRMSNorm<activation="silu">(a, s:float[16] , c)'),
        TOKENS | {"C": (4, 8), "s": (8,)},
        18,
    ),
    "GatedRMSNorm of heads": (
        rows('c = MatMul(x, C:float[4,16] ) b = com.microsoft.GatedRMSNorm<activation="silu">(a, s:float[4] , c)'),
        {"A": (4, 4), "C": (4, 4), "s": (2,)},
        18,
    ),
    "LinearAttentionGate": (
        rows("c, d = com.microsoft.LinearAttentionGate(a, p:float[16] , q:float[16] , a) b = Add(c, d)"),
        TOKENS | {"p": (8,), "q": (8,)},
        18,
    ),
    "CausalConvWithState of com.microsoft": (
        rows(
            't = Transpose<perm=[0,2,1]>(a) c, d = com.microsoft.CausalConvWithState<activation="silu">(t, W:float[16,1,3] , '
            "B:float[16] ) b = Transpose<perm=[0,2,1]>(c)"
        ),
        TOKENS | {"W": (8, 1, 3), "B": (8,)},
        18,
    ),
    "CausalConvWithState, channels last": (
        rows("b, d = com.microsoft.CausalConvWithState<channels_last=1>(a, W:float[16,1,3] , B:float[16] )"),
        TOKENS | {"W": (8, 1, 3), "B": (8,)},
        18,
    ),
    "CausalConvWithState": (
        rows(
            "t = Transpose<perm=[0,2,1]>(a) p = Slice(t, z0, z2, z2) c, d = CausalConvWithState(t, W:float[16,1,3] , "
            "B:float[16] , p) b = Transpose<perm=[0,2,1]>(c)"
        ).replace("{ a", "{ z0 = Constant<value_ints=[0]>() z2 = Constant<value_ints=[2]>() a"),
        TOKENS | {"W": (8, 1, 3)},
        27,
    ),
    "ConvTransposeWithDynamicPads": (
        conv(
            "w = Constant<value_ints=[1,1,1,1]>() "
            "b = com.microsoft.ConvTransposeWithDynamicPads(a, W:float[16,8,3,3] , w, Wb:float[8] )",
            c=8,
        ),
        HALF | {"W": (8, 4, 3, 3)},
        18,
    ),
    "CropAndResize": (
        conv(
            "r = Constant<value = float[1,4] {0.1,0.1,0.9,0.8}>() i = Constant<value = int32[1] {0}>() "
            "s = Constant<value = int32[2] {8,8}>() d = com.microsoft.CropAndResize(a, r, i, s) b = Add(a, d)"
        ),
        HALF,
        18,
    ),
    "ExpandDims": (
        conv(f"i = Constant<value = int32 {{1}}>() d = com.microsoft.ExpandDims(a, i) {ONE_AXIS} b = Squeeze(d, ax)"),
        HALF,
        18,
    ),
    "GridSample of com.microsoft": (
        conv(
            "g = Constant<value = float[1,1,2,2] {0.1,0.2,0.3,0.4}>() n = Shape<end=1>(a) o = Constant<value_ints=[1,2,2]>() "
            "e = Concat<axis=0>(n, o) h = Expand(g, e) b = com.microsoft.GridSample(a, h)"
        ),
        HALF,
        18,
    ),
    "Pad of com.microsoft": (
        conv("w = Constant<value_ints=[0,0,1,1,0,0,1,1]>() b = com.microsoft.Pad(a, w)"),
        HALF,
        18,
    ),
    "Trilu of com.microsoft": (
        rows("t = Transpose<perm=[2,1,0]>(a) u = com.microsoft.Trilu(t) b = Transpose<perm=[2,1,0]>(u)"),
        TOKENS,
        18,
    ),
    "GatherND of com.microsoft": (
        rows(
            "i = Constant<value = int64[2,2] {0,0,0,1}>() g = com.microsoft.GatherND(a, i) "
            "m = ReduceMean<axes=[0], keepdims=0>(g) b = Mul(a, m)"
        ),
        TOKENS,
        17,
    ),
    "ScaledSiLU": (rows("b = com.microsoft.ScaledSiLU<alpha=1.5>(a)"), TOKENS, 18),
    "SampleOp": (rows("b = com.microsoft.SampleOp(a)"), TOKENS, 18),
    "Scaler": (
        "agraph (float[N,4] x) => (float[N,3] y) { a = MatMul(x, A:float[4,16] ) "
        f"b = ai.onnx.ml.Scaler<offset=[{SIXTEEN}], scale=[{SIXTEEN}]>(a) y = MatMul(b, G:float[16,3] ) }}",
        TOKENS,
        18,
    ),
    "Imputer": (
        "agraph (float[N,4] x) => (float[N,3] y) { a = MatMul(x, A:float[4,16] ) r = Relu(a) "
        f"b = ai.onnx.ml.Imputer<imputed_value_floats=[{SIXTEEN}], replaced_value_float=0.0>(r) y = MatMul(b, G:float[16,3] ) }}",
        TOKENS,
        18,
    ),
    "Normalizer": (
        "agraph (float[N,4] x) => (float[N,3] y) { a = MatMul(x, A:float[4,16] ) "
        'b = ai.onnx.ml.Normalizer<norm="L2">(a) y = MatMul(b, G:float[16,3] ) }',
        TOKENS,
        18,
    ),
    "QEmbedLayerNormalization": (
        "agraph (int32[N,6] i, int32[N,6] s) => (float[N,6,3] y) { b, m = com.microsoft.QEmbedLayerNormalization(i, s, "
        "W:uint8[20,16] , P:uint8[6,16] , T:uint8[2,16] , g:uint8[16] , h:uint8[16] , , scalew:float[] , scalep:float[] , "
        "scalet:float[] , scaleg:float[] , scaleh:float[] , zw:uint8[] , zp:uint8[] , zt:uint8[] , zg:uint8[] , zh:uint8[] ) "
        "y = MatMul(b, G:float[16,3] ) }",
        {"W": (20, 8), "P": (6, 8), "g": (8,), "G": (8, 3)},
        18,
    ),
    "SplitToSequence": (
        conv(
            f"{PLACES} s = Constant<value_ints=[4,12]>() q = SplitToSequence<axis=1>(a, s) c = SequenceAt(q, i0) "
            "d = SequenceAt(q, im) e = Relu(d) b = Concat<axis=1>(c, e)"
        ),
        HALF,
        17,
    ),
    "SplitToSequence by a number": (
        conv(
            f"{PLACES} s = Constant<value_int=8>() q = SplitToSequence<axis=1>(a, s) c = SequenceAt(q, i0) "
            "d = SequenceAt(q, i1) b = Mul(c, d)",
            c=8,
        ),
        HALF | {"G": (5, 4)},
        17,
    ),
    "SplitToSequence position by position": (
        conv(
            f"{PLACES} {ONE_AXIS} q = SplitToSequence<axis=2, keepdims=0>(a) c = SequenceAt(q, i0) d = SequenceAt(q, i1) "
            "e = Add(c, d) b = Unsqueeze(e, last)"
        ),
        HALF,
        17,
    ),
    "SplitToSequence by one, as exporters write it": (
        conv(
            f"{PLACES} {ONE_AXIS} q = SplitToSequence<axis=2, keepdims=0>(a, i1) c = SequenceAt(q, i0) d = SequenceAt(q, i1) "
            "e = Add(c, d) b = Unsqueeze(e, last)"
        ),
        HALF,
        17,
    ),
    "ConcatFromSequence": (
        conv(f"{SECOND} q = SequenceConstruct(a, c) b = ConcatFromSequence<axis=1>(q)", c=32),
        PAIR | {"G": (5, 16)},
        17,
    ),
    "ConcatFromSequence on a new axis": (
        conv(
            f"{PLACES} {SECOND} q = SequenceEmpty() r = SequenceInsert(q, a) s = SequenceInsert(r, c, i0) "
            "t = ConcatFromSequence<axis=1, new_axis=1>(s) b = ReduceMean<axes=[1], keepdims=0>(t)"
        ),
        PAIR,
        17,
    ),
    "SequenceErase": (
        conv(
            f"{PLACES} {SECOND} q = SequenceConstruct(a, c, a) r = SequenceErase(q, i1) n = SequenceLength(r) m = Cast<to=1>(n) "
            "s = ConcatFromSequence<axis=1>(r) b = Mul(s, m)",
            c=32,
        ),
        HALF | {"G": (5, 16)},
        17,
    ),
    "Optional": (
        conv(
            "o = Optional(a) h = OptionalHasElement(o) g = OptionalGetElement(o) k = Cast<to=1>(h) b = Mul(g, k)"
        ),
        HALF,
        17,
    ),
    "Optional of a sequence": (
        conv(
            f"{PLACES} q = SequenceConstruct(a) o = Optional(q) g = OptionalGetElement(o) b = SequenceAt(g, i0)"
        ),
        HALF,
        17,
    ),
    "Expand of nothing on two axes, which differ from row to row": (
        conv(
            "n = Shape<end=1>(a) w = Constant<value_ints=[4,4,8,8]>() e = Concat<axis=0>(n, w) z = Constant<value_float=0.5>() "
            "s = Expand(z, e) k = Constant<value_ints=[0,4,4,8,8]>() h = Reshape(a, k) t = Add(h, s) "
            "u = Constant<value_ints=[0,16,8,8]>() b = Reshape(t, u)"
        ),
        HALF,
        18,
    ),
    "GatherND of channels, as torch.export spells an index": (
        conv(
            "t = Transpose<perm=[1,0,2,3]>(a) i = Constant<value = int64[16,1] {9,3,0,8,4,11,5,15,1,2,7,6,14,10,13,12}>() "
            "g = GatherND(t, i) b = Transpose<perm=[1,0,2,3]>(g)"
        ),
        HALF,
        18,
    ),
    "Reshape of learned positions beside the batch": (
        "agraph (float[N,6,4] x) => (float[N,6,3] y) { n = Shape<end=1>(x) o = Constant<value_ints=[1,1]>() "
        "s = Concat<axis=0>(n, o) q = Expand(Q:float[1,6,12] , s) a = MatMul(q, A:float[12,16] ) "
        "t = Transpose<perm=[1,0,2]>(a) h = Constant<value_ints=[6,-1,4]>() r = Reshape(t, h) "
        "w = Constant<value_ints=[-1,16]>() f = Reshape(r, w) m = MatMul(f, G:float[16,3] ) "
        "k = Constant<value_ints=[6,-1,3]>() v = Reshape(m, k) y = Transpose<perm=[1,0,2]>(v) }",
        {"A": (6, 8), "Q": (1, 6, 6), "G": (8, 3)},
        18,
    ),
    "ReduceMean of a weight that is centred, of which rounding leaves nothing": (
        "agraph (float[N,3,8,8] x) => (float[N,5] y) { l = Constant<value_ints=[1,2,3]>() "
        "m = ReduceMean(A:float[16,3,3,3] , l) c = Sub(A, m) e = ReduceMean(c, l) d = Sub(c, e) b = Conv(x, d) "
        "p = GlobalAveragePool(b) f = Flatten(p) y = Gemm<transB=1>(f, G:float[5,16] ) }",
        HALF,
        18,
    ),
    **{
        f"InstanceNormalization of {groups} groups of an image of open size": (
            conv(
                f"k = Constant<value_ints=[0,{groups},-1]>() r = Reshape(a, k) "
                f"i = InstanceNormalization(r, s:float[{groups}] , t:float[{groups}] ) n = Shape(a) b = Reshape(i, n)"
            ).replace("float[N,3,8,8]", "float[N,3,H,W]"),
            HALF | sizes,
            16,
        )
        for groups, sizes in ((4, {}), (1, {"s": (1,)}), (16, {"s": (8,)}))
    },
    "Tile of an axis of one": (
        conv(
            "ax = Constant<value_ints=[1]>() d = Conv(x, D:float[4,3,1,1] ) q = Unsqueeze(d, ax) "
            "w = Constant<value_ints=[1,4,1,1,1]>() s = Tile(q, w) k = Constant<value_ints=[0,4,4,8,8]>() h = Reshape(a, k) "
            "t = Mul(h, s) u = Constant<value_ints=[0,16,8,8]>() b = Reshape(t, u)"
        ),
        {"A": (4, 3, 3, 3), "D": (2, 3, 1, 1)},
        18,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "kept", "opset"), TABLE.values(), ids=TABLE)
def test_operator(monkeypatch: pytest.MonkeyPatch, text: str, kept: dict[str, tuple[int, ...]], opset: int) -> None:
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")  # of the newest, ONNX Runtime runs some
    check(build(text, opset), kept)
