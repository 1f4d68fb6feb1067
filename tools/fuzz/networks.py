"""Networks in which a mistake is hard to see: weights that multiply it by nothing, ends that level it, numbers that are
rounded. Made in ONNX text, with random weights.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from graphs import graph

SAME = "pads = [1, 1, 1, 1]"
IMAGE = "(float[N, 3, 8, 8] x) => "
ROWS = "(float[N, 6, 12] x) => "
RNG = np.random.default_rng(11)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def zeros(*shape: int, value: float = 0.0) -> np.ndarray:
    return np.full(shape, value, np.float32)


def int8(*shape: int, low: int = -90, high: int = 90) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(np.int8)


def convnext() -> ModelProto:
    """A block with a layer scale of 1e-6, as it begins."""
    return graph(
        IMAGE + "(float[N, 5] y)",
        f"""s = Conv<{SAME}>(x, stem, stemb) d = Conv<pads = [3, 3, 3, 3], group = 16>(s, dw, dwb)
        t = Transpose<perm = [0, 2, 3, 1]>(d) n = LayerNormalization<axis = -1>(t, gain, shift) u = MatMul(n, up)
        ub = Add(u, upb) a = Relu(ub) v = MatMul(a, down) vb = Add(v, downb) w = Mul(vb, gamma)
        b = Transpose<perm = [0, 3, 1, 2]>(w) r = Add(s, b) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, head,
        headb)""",
        stem=(16, 3, 3, 3), stemb=(16,), dw=(16, 1, 7, 7), dwb=(16,), gain=(16,), shift=(16,), up=(16, 64), upb=(64,),
        down=(64, 16), downb=(16,), gamma=zeros(16, value=1e-6), head=(16, 5), headb=(5,),
    )  # fmt: skip


def zero_branch() -> ModelProto:
    """A residual block whose last BatchNorm begins at zero."""
    norm = "{0} = BatchNormalization({1}, {2}, shift{3}, mean{3}, var{3})"
    return graph(
        IMAGE + "(float[N, 5] y)",
        f"""s = Conv<{SAME}>(x, stem) {norm.format("sn", "s", "gain0", 0)} r = Relu(sn) a = Conv<{SAME}>(r, first)
        {norm.format("an", "a", "gain1", 1)} ar = Relu(an) b = Conv<{SAME}>(ar, second) {norm.format("bn", "b",
        "zero2", 2)} j = Add(bn, r) o = Relu(j) p = GlobalAveragePool(o) f = Flatten(p) y = Gemm(f, head)""",
        stem=(16, 3, 3, 3), first=(16, 16, 3, 3), second=(16, 16, 3, 3), zero2=zeros(16), head=(16, 5),
        **{f"{n}{k}": (16,) for n in ("shift", "mean", "var") for k in range(3)}, gain0=(16,), gain1=(16,),
    )  # fmt: skip


def ends(tail: str, out: str = "float[N, 6]", **weights: Any) -> Callable[[], ModelProto]:
    """A small convolutional network up to its logits `h`, and an end."""
    return lambda: graph(
        IMAGE + f"({out} y)",
        f"""a = Conv<{SAME}>(x, wa, ba) r = Relu(a) b = Conv<{SAME}>(r, wb, bb) s = Relu(b) p = GlobalAveragePool(s)
        f = Flatten(p) h = Gemm<transB = 1>(f, wc, bc) {tail}""",
        wa=(16, 3, 3, 3), ba=(16,), wb=(16, 16, 3, 3), bb=(16,), wc=(6, 16), bc=(6,), **weights,
    )  # fmt: skip


def loud(outputs: str, large: str, end: str = "") -> Callable[[], ModelProto]:
    """A product `large`, a million times larger than the one beside it, `z`, and an end."""
    return lambda: graph(
        f"{ROWS}({outputs})",
        f"a = MatMul(x, wa) r = Relu(a) y0 = MatMul(r, wy) {large} = Mul(y0, much) b = MatMul(x, wb) "
        f"s = Tanh(b) z = MatMul(s, wz) {end}",
        wa=(12, 16), wy=(16, 4), much=f32(1e6), wb=(12, 16), wz=(16, 3),
    )  # fmt: skip


def rounded(name: str, source: str, scale: str = "s1", zero: str = "z1") -> str:
    return f"{name}q = QuantizeLinear({source}, {scale}, {zero}) {name} = DequantizeLinear({name}q, {scale}, {zero})"


SCALES: dict[str, Any] = {"s0": np.float32(0.02), "s1": np.float32(0.05), "z0": np.int8(3), "z1": np.uint8(110)}


def qdq_convolutions() -> ModelProto:
    return graph(
        IMAGE + "(float[N, 5] y)",
        f"""{rounded("xd", "x")} wa = DequantizeLinear<axis = 0>(qa, sa, za) ba = DequantizeLinear<axis = 0>(pa, pas)
        a = Conv<{SAME}>(xd, wa, ba) r = Relu(a) {rounded("rd", "r")} wb = DequantizeLinear<axis = 0>(qb, sb, za)
        b = Conv<{SAME}, group = 16>(rd, wb) {rounded("bd", "b")} wc = DequantizeLinear(qc, s0, z0) c = Conv(bd, wc)
        t = Relu(c) {rounded("td", "t")} p = GlobalAveragePool(td) f = Flatten(p) wd = DequantizeLinear(qd, s0, z0)
        y = Gemm<transB = 1>(f, wd)""",
        qa=int8(16, 3, 3, 3), sa=RNG.uniform(0.002, 0.006, 16).astype(np.float32), za=np.zeros(16, np.int8),
        pa=np.zeros(16, np.int32), pas=RNG.uniform(1e-4, 3e-4, 16).astype(np.float32), qb=int8(16, 1, 3, 3),
        sb=RNG.uniform(0.002, 0.006, 16).astype(np.float32), qc=int8(12, 16, 1, 1), qd=int8(5, 12), **SCALES,
    )  # fmt: skip


def qdq_rows() -> ModelProto:
    return graph(
        ROWS + "(float[N, 6, 5] y)",
        f"""{rounded("xd", "x")} wa = DequantizeLinear(qa, s0, z0) a = MatMul(xd, wa) ab = Add(a, ba) r = Relu(ab)
        {rounded("rd", "r")} wb = DequantizeLinear<axis = 1>(qb, sb, zb) b = MatMul(rd, wb) {rounded("bd", "b")}
        g = Sigmoid(bd) wc = DequantizeLinear(qc, s0, z0) y0 = MatMul(g, wc) {rounded("y", "y0")}""",
        qa=int8(12, 24), ba=(24,), qb=int8(24, 16), sb=RNG.uniform(0.005, 0.02, 16).astype(np.float32),
        zb=np.zeros(16, np.int8), qc=int8(16, 5), **SCALES,
    )  # fmt: skip


def operators(sums: bool) -> Callable[[], ModelProto]:
    """QLinearConv and QLinearMatMul, and com.microsoft's sum."""
    add = "com.microsoft.QLinearAdd(a, s1, z1, b, s1, z1, s1, z1)" if sums else "Identity(b)"
    return lambda: graph(
        IMAGE + "(float[N, 5] y)",
        f"""xq = QuantizeLinear(x, s1, z1) a = QLinearConv<{SAME}>(xq, s1, z1, qa, sa, za, s1, z1, pa)
        b = QLinearConv<{SAME}>(a, s1, z1, qb, s0, z0, s1, z1) c = {add}
        d = DequantizeLinear(c, s1, z1) p = GlobalAveragePool(d) f = Flatten(p) fq = QuantizeLinear(f, s1, z1)
        h = QLinearMatMul(fq, s1, z1, qd, s0, z0, s1, z1) y = DequantizeLinear(h, s1, z1)""",
        qa=int8(16, 3, 3, 3), sa=RNG.uniform(0.004, 0.02, 16).astype(np.float32), za=np.zeros(16, np.int8),
        pa=np.zeros(16, np.int32), qb=int8(16, 16, 3, 3, low=-20, high=20), qd=int8(16, 5), **SCALES,
    )  # fmt: skip


def dynamic() -> ModelProto:
    """DynamicQuantizeLinear and MatMulInteger, as `quantize_dynamic` writes them."""
    layer = """{0}q, {0}s, {0}z = DynamicQuantizeLinear({1}) {0}i = MatMulInteger({0}q, {2}, {0}z, z0) {0}f = Cast<to
    = 1>({0}i) {0}m = Mul({0}s, s0) {0} = Mul({0}f, {0}m)"""
    return graph(
        ROWS + "(float[N, 6, 5] y)",
        f"""{layer.format("a", "x", "qa")} ab = Add(a, ba) r = Relu(ab) {layer.format("b", "r", "qb")} s = Tanh(b)
        {layer.format("y", "s", "qc")}""",
        qa=int8(12, 24), ba=(24,), qb=int8(24, 16), qc=int8(16, 5), **SCALES,
    )  # fmt: skip


def other_branch() -> ModelProto:
    """Weights that only the branch reads that no run takes."""
    return graph(
        "(float[N, 12] x, bool use) => (float[N, 5] y)",
        """h = MatMul(x, w0) r = Relu(h) y = If(use) <
            then_branch = yes () => (float[N, 5] t) { t = MatMul(r, w1) },
            else_branch = no () => (float[N, 5] e) { a = MatMul(r, w2) ab = Add(a, b2) s = Tanh(ab) e = MatMul(s, w3) }
        >""",
        w0=(12, 16), w1=(16, 5), w2=(16, 14), b2=(14,), w3=(14, 5),
    )  # fmt: skip


def branch_in_branch() -> ModelProto:
    return graph(
        "(float[N, 12] x, bool use, bool more) => (float[N, 5] y)",
        """h = MatMul(x, w0) r = Relu(h) y = If(use) <
            then_branch = yes () => (float[N, 5] t) { t = MatMul(r, w1) },
            else_branch = no () => (float[N, 5] e) { e = If(more) <
                then_branch = ay () => (float[N, 5] u) { u = MatMul(r, w2) },
                else_branch = nay () => (float[N, 5] v) { a = MatMul(r, w3) s = Tanh(a) v = MatMul(s, w4) }
            > }
        >""",
        w0=(12, 16), w1=(16, 5), w2=(16, 5), w3=(16, 14), w4=(14, 5),
    )  # fmt: skip


def heads() -> ModelProto:
    """Four heads, one fused projection, scale by the size of a head."""
    return graph(
        ROWS + "(float[N, 6, 12] y)",
        """q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, apart) q = Transpose<perm = [0, 2, 1, 3]>(q2)
        k0 = MatMul(x, wk) k2 = Reshape(k0, apart) k = Transpose<perm = [0, 2, 3, 1]>(k2) v0 = MatMul(x, wv)
        v1 = Add(v0, bv) v2 = Reshape(v1, apart) v = Transpose<perm = [0, 2, 1, 3]>(v2) s0 = MatMul(q, k) s = Mul(s0,
        half) p = Softmax<axis = -1>(s) o0 = MatMul(p, v) o1 = Transpose<perm = [0, 2, 1, 3]>(o0) o = Reshape(o1, back)
        y0 = MatMul(o, wo) y = Add(y0, x)""",
        wq=(12, 16), bq=(16,), wk=(12, 16), wv=(12, 16), bv=(16,), wo=(16, 12), apart=np.array([0, 0, 4, 4]),
        back=np.array([0, 0, 16]), half=f32(0.5),
    )  # fmt: skip


def groups(count: int, width: int = 16) -> Callable[[], ModelProto]:
    return lambda: graph(
        IMAGE + "(float[N, 5] y)",
        f"""a = Conv<{SAME}>(x, wa, ba) r = Relu(a) g = Conv<{SAME}, group = {count}>(r, wg, bg) s = Relu(g) c =
        Conv(s, wc) t = Relu(c) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm(f, head)""",
        wa=(width, 3, 3, 3), ba=(width,), wg=(width, width // count, 3, 3), bg=(width,), wc=(12, width, 1, 1),
        head=(12, 5),
    )  # fmt: skip


def recurrent(kind: str, gates: int, both: bool) -> Callable[[], ModelProto]:
    """Two layers over [6, N, 12]."""
    ways, hidden = (2, 8) if both else (1, 8)
    word = "bidirectional" if both else "forward"
    return lambda: graph(
        "(float[6, N, 12] x) => (float[6, N, 5] y)",
        f"""a = {kind}<hidden_size = {hidden}, direction = "{word}">(x, w1, r1, b1) t = Transpose<perm = [0, 2, 1,
        3]>(a) j = Reshape(t, flat) c = {kind}<hidden_size = {hidden}, direction = "{word}">(j, w2, r2, b2)
        u = Transpose<perm = [0, 2, 1, 3]>(c) k = Reshape(u, flat) y = MatMul(k, head)""",
        w1=(ways, gates * hidden, 12), r1=(ways, gates * hidden, hidden), b1=(ways, 2 * gates * hidden),
        w2=(ways, gates * hidden, ways * hidden), r2=(ways, gates * hidden, hidden), b2=(ways, 2 * gates * hidden),
        flat=np.array([0, 0, -1]), head=(ways * hidden, 5),
    )  # fmt: skip


def embedded(tied: bool) -> Callable[[], ModelProto]:
    out = "tt = Transpose(table) y = MatMul(g, tt)" if tied else "y = MatMul(g, head)"
    return lambda: graph(
        f"(int64[N, 6] ids) => (float[N, 6, {20 if tied else 5}] y)",
        f"""e = Gather(table, ids) m = MatMul(e, up) mb = Add(m, upb) r = Relu(mb) d = MatMul(r, down) j = Add(d, e)
        g = Tanh(j) {out}""",
        table=(20, 16), up=(16, 32), upb=(32,), down=(32, 16), **({} if tied else {"head": (16, 5)}),
    )  # fmt: skip


def unet() -> ModelProto:
    return graph(
        IMAGE + "(float[N, 2, 8, 8] y)",
        f"""a = Conv<{SAME}>(x, wa, ba) ar = Relu(a) d = Conv<{SAME}, strides = [2, 2]>(ar, wd, bd) dr = Relu(d)
        u = ConvTranspose<strides = [2, 2]>(dr, wu, bu) j = Concat<axis = 1>(u, ar) c = Conv<{SAME}>(j, wc) cr = Relu(c)
        y = Conv(cr, wy, by)""",
        wa=(12, 3, 3, 3), ba=(12,), wd=(16, 12, 3, 3), bd=(16,), wu=(16, 10, 2, 2), bu=(10,), wc=(14, 22, 3, 3),
        wy=(2, 14, 1, 1), by=(2,),
    )  # fmt: skip


def squeeze() -> ModelProto:
    """A gate over channels."""
    return graph(
        IMAGE + "(float[N, 5] y)",
        f"""a = Conv<{SAME}>(x, wa, ba) r = HardSwish(a) p = GlobalAveragePool(r) s = Conv(p, ws, bs) sr = Relu(s)
        e = Conv(sr, we, be) g = HardSigmoid(e) m = Mul(r, g) c = Conv(m, wc) q = GlobalAveragePool(c) f = Flatten(q)
        y = Gemm(f, head)""",
        wa=(16, 3, 3, 3), ba=zeros(16), ws=(8, 16, 1, 1), bs=zeros(8), we=(16, 8, 1, 1), be=zeros(16),
        wc=(12, 16, 1, 1), head=(12, 5),
    )  # fmt: skip


def split() -> ModelProto:
    """A gate in halves, of unequal fate."""
    return graph(
        ROWS + "(float[N, 6, 5] y)",
        "a = MatMul(x, wa) l, m = Split<axis = 2>(a, sizes) g = Sigmoid(m) u = Relu(l) c = Concat<axis = 2>(u, g) "
        "y = MatMul(c, wo)",
        wa=(12, 32), sizes=np.array([20, 12]), wo=(32, 5),
    )  # fmt: skip


def in_a_loop() -> ModelProto:
    return graph(
        "(float[N, 12] x) => (float[N, 5] y)",
        """h = MatMul(x, w0) z = Loop(times, , h) <body = b (int64 i, bool c, float[N, 16] s) => (bool d, float[N, 16]
            t) { d = Identity(c) a = MatMul(s, w1) r = Relu(a) e = MatMul(r, w2) t = Add(e, s) }> y = MatMul(z, w3)""",
        w0=(12, 16), w1=(16, 24), w2=(24, 16), w3=(16, 5), times=np.array(3),
    )  # fmt: skip


SPECIAL: dict[str, Callable[[], ModelProto]] = {
    "convnext, layer scale 1e-6": convnext, "residual, last BatchNorm zero": zero_branch,
    "plain": ends("y = Identity(h)"),
    "ends in ArgMax": ends("y = ArgMax<axis = 1>(h)", "int64[N, 1]"),
    "ends in Greater": ends("y = Greater(h, limit)", "bool[N, 6]", limit=f32(0.1)),
    "ends in TopK": ends("v, y = TopK<axis = 1>(h, two)", "int64[N, 2]", two=np.array([2])),
    "ends in Softmax of large logits": ends("g = Mul(h, much) y = Softmax<axis = 1>(g)", much=f32(1e4)),
    "ends in Sigmoid of large logits": ends("g = Mul(h, much) y = Sigmoid(g)", much=f32(1e4)),
    "ends in Tanh of large logits": ends("g = Mul(h, much) y = Tanh(g)", much=f32(1e4)),
    "ends in Log of a negative": ends("q = Mul(h, h) g = Sub(q, much) y = Log(g)", much=f32(1e6)),
    "ends in Sign": ends("y = Sign(h)"), "ends in Floor": ends("y = Floor(h)"),
    "ends in Hardmax": ends("y = Hardmax(h)"),
    "ends in Round": ends("y = Round(h)"), "ends in a cast": ends("y = Cast<to = 7>(h)", "int64[N, 6]"),
    "one output 1e6 larger": loud("float[N, 6, 4] y, float[N, 6, 3] z", "y"),
    "one channel 1e6 larger": loud("float[N, 6, 7] y", "l", "y = Concat<axis = 2>(l, z)"),
    "QDQ convolutions": qdq_convolutions,
    "QDQ matrices": qdq_rows, "QOperator": operators(False), "QOperator with a sum": operators(True),
    "dynamically quantised": dynamic,
    "weights in an else branch": other_branch, "branch in a branch": branch_in_branch, "heads": heads,
    "2 groups": groups(2), "4 groups": groups(4), "depthwise": groups(16), "8 groups": groups(8, 32),
    "LSTM": recurrent("LSTM", 4, False), "bidirectional LSTM": recurrent("LSTM", 4, True),
    "GRU": recurrent("GRU", 3, False), "bidirectional GRU": recurrent("GRU", 3, True),
    "RNN": recurrent("RNN", 1, False),
    "embedding": embedded(False), "tied embedding": embedded(True), "U-Net": unet, "squeeze and excitation": squeeze,
    "split": split, "loop": in_a_loop,
}  # fmt: skip


def generated() -> Iterator[tuple[str, ModelProto]]:
    """Those above, and every row of the table of operators: each operator once between layers with weights."""
    import test_rules

    for name, made in SPECIAL.items():
        yield name, made()
    for name, text, _ in test_rules.TABLE:
        yield f"operator {name}", test_rules.build(text)
