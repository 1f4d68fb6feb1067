"""Operators of which a build of ONNX Runtime may have no kernel, as functions of operators of which it has.

A file is pruned on a machine that need not be the one it is for. What stands in is run only; what is written has the
operator itself. Knows operators, one node at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import FunctionProto, ModelProto, NodeProto, helper, parser

from onnxprune.model import attribute, every_node

DOMAIN = "onnxprune.stand_in"
LACKS = re.compile(r"Could not find an implementation for (\w+)\(")
"""How a runtime says that it has no kernel."""
KINDS = {
    "auto_pad": "string", "dilations": "ints", "group": "int", "kernel_shape": "ints", "pads": "ints",
    "strides": "ints", "alpha": "float", "transA": "int", "transB": "int", "transBatchA": "int", "transBatchB": "int",
    "axes": "ints", "keepdims": "int", "num_heads": "int", "scale": "float", "mask_filter_value": "float",
    "qkv_hidden_sizes": "ints",
}  # fmt: skip
"""Of the attributes that are handed on, the types."""
LEAST_OPSET = 15
"""Before which the functions are no valid ones."""


def _handed(node: NodeProto, names: str) -> str:
    """These attributes of a node, as a function hands them on, as far as it has them."""
    told = ", ".join(f"{n}: {KINDS[n]} = @{n}" for n in names.split() if attribute(node, n) is not None)
    return f"<{told}>" if told else ""


def _given(node: NodeProto, names: str) -> str:
    """Names for the inputs of a node, in order; "" for one that is left out."""
    own = [name if given else '""' for name, given in zip(names.split(), node.input, strict=False)]
    while own and own[-1] == '""':
        own.pop()
    return ", ".join(own)


def _conv(node: NodeProto) -> str:
    """Channels last, the weight as Conv has it; a sum and an activation behind it."""
    spatial = len(attribute(node, "kernel_shape", (0, 0)))
    first, last = [0, spatial + 1, *range(1, spatial + 1)], [0, *range(2, spatial + 2), 1]
    window = _handed(node, "auto_pad dilations group kernel_shape pads strides")
    total = "Add (s, z)" if len(node.input) > 3 and node.input[3] else "Identity (s)"
    return (
        f"(x, w, b, z) => (y) {{ t = Transpose <perm = {first}> (x) c = Conv {window} ({_given(node, 't w b')}) "
        f"s = Transpose <perm = {last}> (c) r = {total} {_activated(node, 'r')} }}"
    )


def _matmul(node: NodeProto) -> str:
    """A product as FusedMatMul has it, and an activation."""
    product = f"com.microsoft.FusedMatMul {_handed(node, 'alpha transA transB transBatchA transBatchB')} (x, w)"
    return f"(x, w) => (y) {{ p = {product} {_activated(node, 'p')} }}"


def _mean(node: NodeProto) -> str:
    """As its definition says."""
    after = ", ".join(["m", *_given(node, "x xs xz ys yz").split(", ")[3:]])
    return (
        f"(x, xs, xz, ys, yz) => (y) {{ f = DequantizeLinear ({_given(node, 'x xs xz')}) "
        f"m = ReduceMean {_handed(node, 'axes keepdims')} (f) y = QuantizeLinear ({after}) }}"
    )


def _one_step(node: NodeProto) -> str:
    """Attention with a past as long as it is; None where past and present share a buffer, or beams are told apart."""
    if attribute(node, "past_present_share_buffer", 0) or any(node.input[7:]):
        raise ValueError("past and present share a buffer")
    inside = f"com.microsoft.Attention {_handed(node, 'num_heads scale mask_filter_value')}"
    return f"(x, w, b, m, p, a, n, i, j) => (y, q) {{ y, q = {inside} ({_given(node, 'x w b m p a')}) }}"


APART = """zero = Constant <value_ints = [0]> () one = Constant <value_ints = [1]> ()
both = Constant <value_ints = [0, 1]> () first = Constant <value_int = 0> () step = Constant <value_int = 1> ()
size = Shape <start = 0, end = 1> (x)
count = Squeeze (size) place = Range (first, count, step) row = Unsqueeze (place, one) ends = Cast <to = 7> (e)
before = LessOrEqual (ends, row) passed = Cast <to = 7> (before) own = ReduceSum <keepdims = 0> (passed, one)
down = Unsqueeze (own, one) along = Unsqueeze (own, zero) same = Equal (down, along)
near = Constant <value_float = 0.0> () far = Constant <value_float = -30000.0> () apart = Where (same, near, far)
like = CastLike (apart, x) bias = Unsqueeze (like, both)"""
"""What is added to scores so that tokens see those of their own sequence only; e: where sequences end."""


def _packed(node: NodeProto) -> str:
    """PackedAttention: as one sequence, whose parts do not see each other."""
    if any(node.input[5:]):
        raise ValueError("a bias by place")
    inside = f"com.microsoft.Attention {_handed(node, 'num_heads scale qkv_hidden_sizes')}"
    return (
        f"(x, w, b, o, e, a) => (y) {{ {APART} t = Unsqueeze (x, zero) "
        f'u = {inside} (t, w, b, "", "", bias) y = Squeeze (u, zero) }}'
    )


def _packed_heads(node: NodeProto) -> str:
    """PackedMultiHeadAttention, likewise."""
    if any(node.input[6:]) or not all(node.input[1:3]):
        raise ValueError("a bias by place, or query, key and value in one")
    inside = f"com.microsoft.MultiHeadAttention {_handed(node, 'num_heads scale')}"
    bias = "b" if node.input[3] else '""'
    return (
        f"(x, k, v, b, o, e, a) => (y) {{ {APART} q = Unsqueeze (x, zero) l = Unsqueeze (k, zero) "
        f'w = Unsqueeze (v, zero) u = {inside} (q, l, w, {bias}, "", bias) y = Squeeze (u, zero) }}'
    )


def _activated(node: NodeProto, tensor: str) -> str:
    """y, by the activation that a node names; Identity without one."""
    kind = str(attribute(node, "activation", "") or "Identity")
    numbers = [*attribute(node, "activation_params", ())]
    if kind == "Clip":
        bounds = zip("lh", numbers or (-3.4e38, 3.4e38), strict=False)
        told = " ".join(f"{name} = Constant <value_float = {value:.9g}> ()" for name, value in bounds)
        return f"{told} y = Clip ({tensor}, l, h)"
    named = dict(zip(("alpha", "beta"), numbers, strict=False))
    named |= {n: float(v) for n in ("alpha", "beta") if (v := attribute(node, f"activation_{n}")) is not None}
    told = ", ".join(f"{name} = {value!r}" for name, value in named.items())
    return f"y = {kind} {f'<{told}>' if told else ''} ({tensor})"


BODIES: Mapping[str, Callable[[NodeProto], str]] = {
    "NhwcConv": _conv, "NhwcFusedConv": _conv, "FusedMatMulActivation": _matmul, "QLinearReduceMean": _mean,
    "DecoderMaskedSelfAttention": _one_step, "PackedAttention": _packed, "PackedMultiHeadAttention": _packed_heads,
}  # fmt: skip
"""By operator of com.microsoft: a function that computes what a node of it does; ValueError where there is none."""
_LACKED: dict[tuple[str, ...], list[str]] = {}
"""By providers, operators that none of them has a kernel for: a property of the build."""


def lacked(providers: Sequence[str]) -> frozenset[str]:
    """The operators of which it turned out that none of `providers` has a kernel, and that something stood in for."""
    return frozenset(_LACKED.get(tuple(providers), ()))


def with_stand_ins(proto: ModelProto, providers: Sequence[str], make: Callable[[bytes], Any]) -> Any:
    """What `make` makes of the bytes of a model; functions stand in for operators that it finds no kernel for. Raises
    what it raises for other reasons."""
    known = _LACKED.setdefault(tuple(providers), [])
    while True:
        stand_in(proto, known)
        try:
            return make(proto.SerializeToString())
        except Exception as error:  # of a runtime, or the one line that was made of it
            operator = LACKS.search(str(error))
            if operator is None or operator[1] not in BODIES or operator[1] in known:
                raise
            known.append(operator[1])


def stand_in(proto: ModelProto, operators: Sequence[str]) -> None:
    """Put functions in the place of the nodes of these operators, as far as there are any."""
    functions: dict[str, FunctionProto] = {}
    version = next((o.version for o in proto.opset_import if not o.domain), 1)
    for node in every_node(proto.graph) if operators and version >= LEAST_OPSET else ():
        if node.domain == "com.microsoft" and node.op_type in operators:
            name = f"{node.op_type}_{len(functions)}"
            try:
                text = BODIES[node.op_type](node)
            except ValueError:
                continue
            named = ", ".join(a.name for a in node.attribute)
            opsets = f'opset_import: ["" : {version}, "com.microsoft" : 1], domain: "{DOMAIN}"'
            functions[name] = parser.parse_function(f"<{opsets}> {name} {f'<{named}>' if named else ''} {text}")
            node.op_type, node.domain = name, DOMAIN
    if functions:
        proto.functions.extend(functions.values())
        proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        proto.ir_version = max(proto.ir_version, 8)  # from which on there are functions
