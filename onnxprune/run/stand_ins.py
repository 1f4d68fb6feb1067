"""Operators of which a build of ONNX Runtime may have no kernel, as functions of operators of which it has.

A file is pruned on a machine that need not be the one it is for. What stands in is run only; what is written has the
operator itself. Knows operators, one node at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from onnx import FunctionProto, ModelProto, NodeProto, helper, parser

from onnxprune.errors import RuntimeFailure
from onnxprune.model import attribute, every_node

DOMAIN = "onnxprune.stand_in"
EMPTY = '""'
"""An input that is left out."""
LACKS = re.compile(r"Could not find an implementation for (\w+)\(")
"""How a runtime says that it has no kernel."""
KINDS = {
    "auto_pad": "string", "dilations": "ints", "group": "int", "kernel_shape": "ints", "pads": "ints",
    "strides": "ints", "alpha": "float", "transA": "int", "transB": "int", "transBatchA": "int", "transBatchB": "int",
    "axes": "ints", "keepdims": "int", "num_heads": "int", "scale": "float", "mask_filter_value": "float",
    "qkv_hidden_sizes": "ints",
}  # fmt: skip
"""Of the attributes that are handed on, the types."""
LEAST_OPSET = {"DecoderMaskedSelfAttention": 10, "PackedAttention": 15, "PackedMultiHeadAttention": 15}
"""By operator, from which opset on there are the operators that its function is of."""


def _handed(node: NodeProto, names: str) -> str:
    """These attributes of a node, as a function hands them on, as far as it has them."""
    told = ", ".join(f"{n}: {KINDS[n]} = @{n}" for n in names.split() if attribute(node, n) is not None)
    return f"<{told}>" if told else ""


def _given(node: NodeProto, names: str) -> str:
    """Names for the inputs of a node, in order; "" for one that is left out."""
    own = [name if given else EMPTY for name, given in zip(names.split(), node.input, strict=False)]
    while own and own[-1] == EMPTY:
        own.pop()
    return ", ".join(own)


def _conv(node: NodeProto, _: int) -> str:
    """Channels last, the weight as Conv has it; a sum and an activation behind it."""
    spatial = len(attribute(node, "kernel_shape", (0, 0)))
    first, last = [0, spatial + 1, *range(1, spatial + 1)], [0, *range(2, spatial + 2), 1]
    window = _handed(node, "auto_pad dilations group kernel_shape pads strides")
    total = "Add (s, z)" if len(node.input) > 3 and node.input[3] else "Identity (s)"
    return (
        f"(x, w, b, z) => (y) {{ t = Transpose <perm = {first}> (x) c = Conv {window} ({_given(node, 't w b')}) "
        f"s = Transpose <perm = {last}> (c) r = {total} {_activated(node, 'r')} }}"
    )


def _matmul(node: NodeProto, _: int) -> str:
    """A product as FusedMatMul has it, and an activation."""
    product = f"com.microsoft.FusedMatMul {_handed(node, 'alpha transA transB transBatchA transBatchB')} (x, w)"
    return f"(x, w) => (y) {{ p = {product} {_activated(node, 'p')} }}"


def _mean(node: NodeProto, opset: int) -> str:
    """As its definition says; from opset 18 on the axes of a mean are an input."""
    after = ", ".join(["m", *_given(node, "x xs xz ys yz").split(", ")[3:]])
    before, mean = "", f"ReduceMean {_handed(node, 'axes keepdims')} (f)"
    if opset >= 18 and (axes := list(attribute(node, "axes", ()))):
        before = f"a = Constant <value = int64[{len(axes)}] {{{', '.join(map(str, axes))}}}> ()"
        mean = f"ReduceMean {_handed(node, 'keepdims')} (f, a)"
    return (
        f"(x, xs, xz, ys, yz) => (y) {{ {before} f = DequantizeLinear ({_given(node, 'x xs xz')}) m = {mean} "
        f"y = QuantizeLinear ({after}) }}"
    )


def _one_step(node: NodeProto, _: int) -> str:
    """Attention with a past as long as it is, or with the part of a buffer that is filled: what is new comes behind
    that, and what lies beyond stays."""
    if any(node.input[7:]):
        raise ValueError("it tells beams apart")
    inside = f"com.microsoft.Attention {_handed(node, 'num_heads scale mask_filter_value')}"
    if not attribute(node, "past_present_share_buffer", 0):
        return f"(x, w, b, m, p, a, n, i, j) => (y, q) {{ y, q = {inside} ({_given(node, 'x w b m p a')}) }}"
    return (
        "(x, w, b, m, p, a, n, i, j) => (y, q) { shape = Constant <value = int64[1] {1}> () long = Cast <to = 7> (n) "
        "zero = Constant <value = int64[1] {0}> () axis = Constant <value = int64[1] {3}> () "
        "far = Constant <value = int64[1] {2147483647}> () filled = Reshape (long, shape) "
        f"u = Slice (p, zero, filled, axis) y, v = {inside} ({_given(node, 'x w b m u a')}) "
        "next = Add (filled, shape) rest = Slice (p, next, far, axis) q = Concat <axis = 3> (v, rest) }"
    )


APART = """zero = Constant <value_ints = [0]> () one = Constant <value_ints = [1]> ()
both = Constant <value_ints = [0, 1]> () first = Constant <value_int = 0> () step = Constant <value_int = 1> ()
size = Shape <start = 0, end = 1> (x)
count = Squeeze (size) place = Range (first, count, step) row = Unsqueeze (place, one) ends = Cast <to = 7> (e)
before = LessOrEqual (ends, row) passed = Cast <to = 7> (before) own = ReduceSum <keepdims = 0> (passed, one)
down = Unsqueeze (own, one) along = Unsqueeze (own, zero) same = Equal (down, along)
near = Constant <value_float = 0.0> () far = Constant <value_float = -30000.0> () apart = Where (same, near, far)
like = CastLike (apart, x) bias = Unsqueeze (like, both)"""
"""What is added to scores so that tokens see those of their own sequence only; e: where sequences end."""


PLACED = """own_row = Sub (own, one) start = Gather (ends, own_row) at = Sub (place, start)
tables = Shape <start = 0, end = 1> (a) most = Sub (tables, one) which = Min (own_row, most)
whole = Cast <to = 7> (same) grid = Mul (whole, zero) which_down = Unsqueeze (which, one)
at_down = Unsqueeze (at, one) at_along = Unsqueeze (at, zero) two = Constant <value_ints = [2]> ()
g0 = Add (grid, which_down) g1 = Add (grid, at_down) g2 = Add (grid, at_along)
h0 = Unsqueeze (g0, two) h1 = Unsqueeze (g1, two) h2 = Unsqueeze (g2, two) picked = Concat <axis = 2> (h0, h1, h2)
by_place = Transpose <perm = [0, 2, 3, 1]> (a) of_pairs = GatherND (by_place, picked)
of_heads = Transpose <perm = [2, 0, 1]> (of_pairs) wide = Unsqueeze (of_heads, zero) scores = Add (bias, wide)"""
"""A bias a [sequences or 1, heads or 1, places, places] by the places of two tokens in their sequence, added to it."""


def _biased(node: NodeProto, i: int) -> tuple[str, str]:
    """What makes the bias of all scores, where input `i` is one by place, and its name."""
    placed = any(node.input[i:])
    return (f"{APART} {PLACED}", "scores") if placed else (APART, "bias")


def _packed(node: NodeProto, _: int) -> str:
    """PackedAttention: as one sequence, whose parts do not see each other."""
    made, bias = _biased(node, 5)
    inside = f"com.microsoft.Attention {_handed(node, 'num_heads scale qkv_hidden_sizes')}"
    return (
        f"(x, w, b, o, e, a) => (y) {{ {made} t = Unsqueeze (x, zero) "
        f"u = {inside} (t, w, b, {EMPTY}, {EMPTY}, {bias}) y = Squeeze (u, zero) }}"
    )


def _packed_heads(node: NodeProto, _: int) -> str:
    """PackedMultiHeadAttention, likewise; query, key and value may be one, [tokens, heads, 3, size]."""
    made, bias = _biased(node, 6)
    inside = f"com.microsoft.MultiHeadAttention {_handed(node, 'num_heads scale')}"
    sides = ("x", "k", "v")
    if not any(node.input[1:3]):
        sides, flat = ("x0", "x1", "x2"), "flat = Constant <value_ints = [0, -1]> ()"
        made += flat + " ".join(
            f" n{k} = Constant <value_int = {k}> () p{k} = Gather <axis = 2> (x, n{k}) x{k} = Reshape (p{k}, flat)"
            for k in range(3)
        )
    q, k, v = sides
    return (
        f"(x, k, v, b, o, e, a) => (y) {{ {made} q = Unsqueeze ({q}, zero) l = Unsqueeze ({k}, zero) "
        f"w = Unsqueeze ({v}, zero) u = {inside} (q, l, w, {'b' if node.input[3] else EMPTY}, {EMPTY}, {bias}) "
        "y = Squeeze (u, zero) }"
    )


def _activated(node: NodeProto, tensor: str) -> str:
    """y, by the activation that a node names; Identity without one."""
    kind = str(attribute(node, "activation", "") or "Identity")
    numbers = [*attribute(node, "activation_params", ())]
    if kind == "Clip":
        bounds = zip("lh", numbers or (-3.4e38, 3.4e38), strict=False)
        told = " ".join(f"{name} = Constant <value = float {{{value:.9g}}}> ()" for name, value in bounds)
        return f"{told} above = Max ({tensor}, l) y = Min (above, h)"
    named = dict(zip(("alpha", "beta"), numbers, strict=False))
    named |= {n: float(v) for n in ("alpha", "beta") if (v := attribute(node, f"activation_{n}")) is not None}
    told = ", ".join(f"{name} = {value!r}" for name, value in named.items())
    return f"y = {kind} {f'<{told}>' if told else ''} ({tensor})"


BODIES: Mapping[str, Callable[[NodeProto, int], str]] = {
    "NhwcConv": _conv, "NhwcFusedConv": _conv, "FusedMatMulActivation": _matmul, "QLinearReduceMean": _mean,
    "DecoderMaskedSelfAttention": _one_step, "PackedAttention": _packed, "PackedMultiHeadAttention": _packed_heads,
}  # fmt: skip
"""By operator of com.microsoft: a function that computes what a node of it does, of operators of an opset; ValueError,
with the reason, where there is none."""
_LACKED: dict[tuple[str, ...], list[str]] = {}
"""By providers, operators that none of them has a kernel for: a property of the build."""


def lacked(providers: Sequence[str]) -> frozenset[str]:
    """The operators of which it turned out that none of `providers` has a kernel, and that something stood in for."""
    return frozenset(_LACKED.get(tuple(providers), ()))


def with_stand_ins(proto: ModelProto, providers: Sequence[str], make: Callable[[bytes], Any]) -> Any:
    """What `make` makes of the bytes of a model; functions stand in for operators that it finds no kernel for. Raises
    what it raises for other reasons, and RuntimeFailure where no function can stand in."""
    known = _LACKED.setdefault(tuple(providers), [])
    while True:
        left = stand_in(proto, known)
        try:
            return make(proto.SerializeToString())
        except Exception as error:  # of a runtime, or the one line that was made of it
            operator = LACKS.search(str(error))
            if operator is None or operator[1] not in BODIES:
                raise
            if operator[1] in left:
                raise RuntimeFailure(left[operator[1]]) from error
            if operator[1] in known:
                raise
            known.append(operator[1])


def stand_in(proto: ModelProto, operators: Sequence[str]) -> dict[str, str]:
    """Put functions in the place of the nodes of these operators, as far as there are any; by operator, what is said of
    a node that none can stand in for."""
    functions: dict[str, FunctionProto] = {}
    left: dict[str, str] = {}
    version = _opset(proto)
    for node in [*_nodes(proto, operators)]:
        name = f"{node.op_type}_{len(functions)}"
        try:
            text = _body(node, version)
        except ValueError as why:
            left[node.op_type] = _unfilled(node, why)
            continue
        named = ", ".join(a.name for a in node.attribute)
        opsets = f'opset_import: ["" : {version}, "com.microsoft" : 1], domain: "{DOMAIN}"'
        functions[name] = parser.parse_function(f"<{opsets}> {name} {f'<{named}>' if named else ''} {text}")
        node.op_type, node.domain = name, DOMAIN
    if functions:
        proto.functions.extend(functions.values())
        proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        proto.ir_version = max(proto.ir_version, 8)  # from which on there are functions
    return left


def check(proto: ModelProto, providers: Sequence[str]) -> None:
    """RuntimeFailure at an operator that these providers are known to have no kernel for, where no function can stand
    in for it either: before any work that would end there."""
    gone = lacked(providers)
    for node in _nodes(proto, gone):
        try:
            _body(node, _opset(proto))
        except ValueError as why:
            raise RuntimeFailure(_unfilled(node, why)) from why


def may_lack(proto: ModelProto) -> bool:
    """Whether a model has operators that a runtime may have no kernel for, and that something may stand in for."""
    return any(True for _ in _nodes(proto, BODIES))


def _nodes(proto: ModelProto, operators: Collection[str]) -> Iterator[NodeProto]:
    """The nodes of these operators of com.microsoft, in bodies, too."""
    for node in every_node(proto.graph) if operators else ():
        if node.domain == "com.microsoft" and node.op_type in operators:
            yield node


def _opset(proto: ModelProto) -> int:
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)


def _body(node: NodeProto, opset: int) -> str:
    """The function of a node. ValueError, with the reason, where there is none."""
    least = LEAST_OPSET.get(node.op_type, 1)
    if opset < least:
        raise ValueError(f"that takes opset {least}, and the model has {opset}")
    return BODIES[node.op_type](node, opset)


def _unfilled(node: NodeProto, why: ValueError) -> str:
    return (
        f"ONNX Runtime has no kernel for {node.op_type} here, and no function can stand in for '{node.name}': {why}; "
        "prune the model with a build of ONNX Runtime that has one, by --providers"
    )
