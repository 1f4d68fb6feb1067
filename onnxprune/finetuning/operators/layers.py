"""Matrix products, normalisations and attention. Knows tensors, no graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.finetuning.operators.call import Call, Form

Tensor = Any
KNOWN = {"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"}
"""Attributes of Attention that are heeded, or that do not change what is computed here."""


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = (a.T if call("transA", 0) else a), (b.T if call("transB", 0) else b)
    y = call("alpha", 1.0) * (a @ b) if call("alpha", 1.0) != 1 else a @ b
    return y if c is None else y + (call("beta", 1.0) * c if call("beta", 1.0) != 1 else c)


def _fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    if call("transBatchA", 0) or call("transBatchB", 0):
        call.refuse("transBatchA or transBatchB")
    a, b = (a.mT if call("transA", 0) else a), (b.mT if call("transB", 0) else b)
    return call("alpha", 1.0) * (a @ b)


def _einsum(call: Call, *xs: Tensor) -> Tensor:
    return torch.einsum(call("equation").replace(" ", ""), *xs)


def _batch_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """With the moments that it was trained with, which stay."""
    if call("training_mode", 0) or call.outputs > 1:
        call.refuse("training_mode")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, call("epsilon", 1e-5))


def _layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis = call("axis", -1) % x.dim()
    if scale.shape == x.shape[axis:] and (bias is None or bias.shape == scale.shape):
        y = F.layer_norm(x, x.shape[axis:], scale, bias, call("epsilon", 1e-5))
    else:
        y = F.layer_norm(x, x.shape[axis:], None, None, call("epsilon", 1e-5)) * scale
        y = y if bias is None else y + bias
    if call.outputs == 1:
        return y
    axes = list(range(axis, x.dim()))
    spread = torch.rsqrt(x.var(axes, correction=0, keepdim=True) + call("epsilon", 1e-5))
    return (y, x.mean(axes, True), spread)[: call.outputs]


def _rms_norm(call: Call, x: Tensor, scale: Tensor) -> Any:
    axes = list(range(call("axis", -1) % x.dim(), x.dim()))
    y = x * torch.rsqrt((x * x).mean(axes, True) + call("epsilon", 1e-5)) * scale
    return (y, *[None] * (call.outputs - 1)) if call.outputs > 1 else y


def _skip_layer_norm(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> Any:
    total = x + skip if bias is None else x + skip + bias
    y = F.layer_norm(total, total.shape[-1:], scale, shift, call("epsilon", 1e-12))
    return (y, None, None, total)[: call.outputs] if call.outputs > 1 else y


def _skip_rms_norm(call: Call, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    total = x + skip if bias is None else x + skip + bias
    y = total * torch.rsqrt((total * total).mean(-1, True) + call("epsilon", 1e-12)) * scale
    return (y, None, None, total)[: call.outputs] if call.outputs > 1 else y


def _instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, call("epsilon", 1e-5))


def _group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, channels = call("num_groups"), x.shape[1]
    if scale.numel() != channels:  # before opset 21 there is one of each for a whole group
        scale, bias = (v.repeat_interleave(channels // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call("epsilon", 1e-5))


def _lrn(call: Call, x: Tensor) -> Tensor:
    return F.local_response_norm(x, call("size"), call("alpha", 1e-4), call("beta", 0.75), call("bias", 1.0))


def _lp_norm(call: Call, x: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(x, call("p", 2), call("axis", -1), True)
    return x / torch.where(size == 0, torch.ones_like(size), size)


def _mean_variance_norm(call: Call, x: Tensor) -> Tensor:
    axes = list(call("axes") or (0, 2, 3))
    centred = x - x.mean(axes, True)
    return centred / ((centred * centred).mean(axes, True).sqrt() + 1e-9)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[batch, steps, heads * size] -> [batch, heads, steps, size]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attention(call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *past: Tensor) -> Tensor:
    """ONNX's own, without a cache."""
    if any(p is not None for p in past) or call.outputs > 1 or call("softcap", 0.0):
        call.refuse("a cache, scores as an output or softcap")
    if set(call.attributes) - KNOWN:
        call.refuse(", ".join(sorted(set(call.attributes) - KNOWN)))
    flat = q.dim() == 3
    if flat:
        q, k, v = _heads(q, call("q_num_heads")), _heads(k, call("kv_num_heads")), _heads(v, call("kv_num_heads"))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, mask, 0.0, bool(call("is_causal", 0)) and mask is None, scale=call("scale")
    )
    if call("is_causal", 0) and mask is not None:
        call.refuse("a mask beside is_causal")
    return y.transpose(1, 2).flatten(2) if flat else y


def _multi_head(
    call: Call, q: Tensor, k: Tensor | None = None, v: Tensor | None = None, bias: Tensor | None = None, *more: Tensor
) -> Tensor:
    if k is None or v is None or k.dim() != 3 or any(m is not None for m in more) or call("unidirectional", 0):
        call.refuse("packed inputs, masks or a cache")
    assert k is not None
    assert v is not None
    if bias is not None:
        a, b = q.shape[-1], q.shape[-1] + k.shape[-1]
        q, k, v = q + bias[:a], k + bias[a:b], v + bias[b:]
    heads = call("num_heads")
    q, k, v = _heads(q, heads), _heads(k, heads), _heads(v, heads)
    y = F.scaled_dot_product_attention(q, k, v, scale=call("scale") or None)
    return y.transpose(1, 2).flatten(2)


FORMS: dict[str, Form] = {
    "Gemm": _gemm, "MatMul": lambda call, a, b: a @ b, "Einsum": _einsum, "com.microsoft::FusedMatMul": _fused_matmul,
    "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm, "RMSNormalization": _rms_norm,
    "SimplifiedLayerNormalization": _rms_norm, "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm, "LRN": _lrn, "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance_norm, "com.microsoft::SkipLayerNormalization": _skip_layer_norm,
    "com.microsoft::SkipSimplifiedLayerNormalization": _skip_rms_norm, "Attention": _attention,
    "com.microsoft::MultiHeadAttention": _multi_head,
}  # fmt: skip
