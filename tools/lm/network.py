"""A small decoder of Llama's kind: RMSNorm, rotary positions, grouped query attention, SwiGLU, with or without cache.

Parameters are named as in `transformers`' LlamaForCausalLM, so that a state dict of one loads into the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Of the whole network; `heads` are query heads, `kv_heads` divide them."""

    vocabulary: int = 2048
    width: int = 256
    layers: int = 8
    heads: int = 8
    kv_heads: int = 2
    hidden: int = 640
    theta: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        """The width of one head."""
        return self.width // self.heads


def rotary(positions: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Cosine and sine [..., S, head] of `positions` [..., S]; the halves of a head turn together."""
    steps = torch.arange(0, sizes.head, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None].float() * sizes.theta ** (-steps / sizes.head)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` [N, heads, S, head] turned by its positions."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Grouped query attention; gives its keys and values back for the cache."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, kv = sizes.width, sizes.kv_heads * sizes.head
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, kv, bias=False), nn.Linear(width, kv, bias=False)
        self.sizes = sizes

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, past: Cache | None) -> Attended:
        s, (n, length, _) = self.sizes, x.shape
        q = self.q_proj(x).view(n, length, s.heads, s.head).transpose(1, 2)
        k = self.k_proj(x).view(n, length, s.kv_heads, s.head).transpose(1, 2)
        v = self.v_proj(x).view(n, length, s.kv_heads, s.head).transpose(1, 2)
        q, k = turned(q, cos, sin).to(v.dtype), turned(k, cos, sin).to(v.dtype)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        times = s.heads // s.kv_heads
        wide = [a[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2) for a in (k, v)]
        y = F.scaled_dot_product_attention(q, *wide, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).reshape(n, length, s.width)), (k, v)


class Feedforward(nn.Module):
    """SwiGLU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.up_proj = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.down_proj = nn.Linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A decoder layer, normed before each part."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.input_layernorm = Norm(sizes.width, sizes.epsilon)
        self.self_attn = Attention(sizes)
        self.post_attention_layernorm = Norm(sizes.width, sizes.epsilon)
        self.mlp = Feedforward(sizes)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, past: Cache | None) -> Attended:
        y, present = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Decoder(nn.Module):
    """Ids [N, S] to states [N, S, width], with the caches of all layers."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = Norm(sizes.width, sizes.epsilon)
        self.sizes = sizes

    def forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, past: Caches) -> States:
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        cos, sin = (a[:, None] for a in rotary(positions, self.sizes))
        x, presents = self.embed_tokens(ids), []
        for i, layer in enumerate(self.layers):
            x, present = layer(x, cos, sin, mask, past[i] if past else None)
            presents.append(present)
        return self.norm(x), presents


class LanguageModel(nn.Module):
    """Ids [N, S] to logits [N, S, vocabulary]; the embedding's table is the head's weight too."""

    def __init__(self, sizes: Sizes = Sizes()) -> None:
        super().__init__()
        self.sizes, self.model = sizes, Decoder(sizes)
        self.lm_head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * sizes.layers) ** 0.5 if last else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.model(ids, None, None, [])[0])


Cache = tuple[Tensor, Tensor]
Caches = list[Cache]
Attended = tuple[Tensor, Cache]
States = tuple[Tensor, Caches]
