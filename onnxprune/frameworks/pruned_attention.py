"""torch's MultiheadAttention with fewer or smaller heads than fill its width, which its own `forward` cannot compute.

Knows torch, no plan and no ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxprune.errors import UsageError
from onnxprune.trace import Mask


class PrunedAttention(nn.MultiheadAttention):  # type: ignore[misc, unused-ignore]
    """Same tensors, arguments and answers as `torch.nn.MultiheadAttention` (2.0 and later), of any number and size of
    heads. head_dim: of a head of queries and keys; those of values share the inputs of `out_proj`. scale: of the
    scores, 1 / sqrt(size of a head before pruning)."""

    scale: float

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """[N, L, width] of [N, L, width], [N, S, key width] and [N, S, value width] where batches come first, else
        [L, N, ..], or without N; and the weights [N, L, S], or [N, heads, L, S]. `is_causal` is a hint beside
        `attn_mask`, as in torch."""
        batched = query.dim() == 3
        swap = batched and not self.batch_first
        inputs = [x.transpose(0, 1) if swap else x if batched else x.unsqueeze(0) for x in (query, key, value)]
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in self._projected(*inputs))
        scores = q * self.scale @ k.transpose(-2, -1)
        for mask in self._masks(key_padding_mask, attn_mask, scores):
            scores = scores + mask
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        out = self.out_proj((weights @ v).transpose(1, 2).flatten(-2))
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if not batched:
            return out.squeeze(0), None if shown is None else shown.squeeze(0)
        return (out.transpose(0, 1) if swap else out), shown

    def _projected(self, *inputs: Tensor) -> list[Tensor]:
        """Queries, keys and values [N, L or S, heads x size]."""
        values = self.out_proj.in_features
        sizes = (self.num_heads * self.head_dim, self.num_heads * self.head_dim, values)
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if self.in_proj_weight is None
            else self.in_proj_weight.split(sizes)
        )
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]

    def _masks(self, padding: Tensor | None, mask: Tensor | None, scores: Tensor) -> list[Tensor]:
        """What is added to scores [N, heads, L, S]; True in a mask of booleans means that a place is not looked at."""
        given = [] if padding is None else [padding.reshape(-1, 1, 1, padding.shape[-1])]
        if mask is not None:
            given.append(mask.reshape(-1, self.num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask)
        return [
            torch.zeros_like(m, dtype=scores.dtype).masked_fill(m, -torch.inf) if m.dtype == torch.bool else m
            for m in given
        ]


def resize(path: str, layer: Any, after: Mapping[str, tuple[int, ...]], kept: Mapping[tuple[str, int], Mask]) -> None:
    """Make a MultiheadAttention a `PrunedAttention`, in place. after: new shapes of its own tensors; kept: which
    positions stay, by tensor and axis. Raises UsageError where the heads that are left do not follow from these."""
    if layer.bias_k is not None or layer.add_zero_attn:
        raise UsageError(f"'{path}' adds keys of its own (add_bias_kv, add_zero_attn); exclude it (--nodes-to-exclude)")
    name = f"{path}.out_proj.weight".removeprefix(".")
    first = "in_proj_weight" if "in_proj_weight" in after else "q_proj_weight"
    if not kept:
        raise UsageError(
            f"which heads of '{path}' are left does not follow from its shapes; give the plan in the names of these "
            "weights (plan=), or exclude it when pruning (--nodes-to-exclude)"
        )
    mask = kept.get((name, 1), np.ones(layer.out_proj.in_features, bool))
    left = mask.reshape(layer.num_heads, -1).sum(1)
    heads, values = int((left > 0).sum()), int(mask.sum())
    if len(set(left[left > 0].tolist())) != 1:
        raise UsageError(f"the heads of '{path}' keep different numbers of positions; make the plan anew")
    rows = after[first][0] if first == "q_proj_weight" else (after[first][0] - values) // 2
    layer.scale = getattr(layer, "scale", layer.head_dim**-0.5)
    layer.num_heads, layer.head_dim = heads, rows // heads
    layer.embed_dim = after[first][1]
    layer.kdim, layer.vdim = (
        after[n][1] if n in after else layer.embed_dim for n in ("k_proj_weight", "v_proj_weight")
    )
    layer._qkv_same_embed_dim = False  # keeps torch's encoder layers from computing it on their own
    layer.__class__ = PrunedAttention
