"""The small language model as the ONNX files that people have of such models, all of the same logits.

| form | who writes such files | attention | cache | weights |
|---|---|---|---|---|
| `plain` | torch's exporter | written out | none | float32 |
| `cached` | Optimum, by torch's exporter | written out | inputs and outputs | float32 |
| `grouped` | ONNX Runtime's model builder | GroupQueryAttention with its rotary | inputs and outputs | float32 |
| `int4` | the same, quantised by ONNX Runtime | the same | the same | MatMulNBits, blocks of 32 |
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tools.lm.network import LanguageModel, Sizes, rotary

POSITIONS = 512
"""So many positions have the tables of `grouped`."""
OPSET = 18
BLOCK = 32


def pasts(sizes: Sizes, word: str = "past_key_values") -> list[str]:
    """Names of the caches, as Optimum and ONNX Runtime GenAI call them."""
    return [f"{word}.{i}.{kind}" for i in range(sizes.layers) for kind in ("key", "value")]


class Cached(nn.Module):
    """The model as Optimum exports it: a mask of past and present, positions, and the caches of every layer."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]) -> Any:
        """Logits [N, S, V], then a key and a value [N, KV heads, P + S, head] of every layer."""
        seen = past[0].shape[2]
        queries = seen + torch.arange(input_ids.shape[1])
        keys = torch.arange(attention_mask.shape[1])
        mask = (keys[None] <= queries[:, None])[None, None] & (attention_mask[:, None, None] > 0)
        pairs = list(zip(past[::2], past[1::2], strict=True))
        states, presents = self.model.model(input_ids, mask, position_ids, pairs)
        return self.model.lm_head(states), [x for pair in presents for x in pair]


def plain(model: LanguageModel, path: Path) -> None:
    """Ids to logits, without a cache."""
    ids = torch.zeros(2, 16, dtype=torch.int64)
    torch.onnx.export(
        model, (ids,), str(path), input_names=["input_ids"], output_names=["logits"], dynamo=True, opset_version=OPSET,
        dynamic_shapes={"ids": {0: "batch_size", 1: "sequence_length"}}, external_data=False, verbose=False,
    )  # fmt: skip


def cached(model: LanguageModel, path: Path) -> None:
    """With the cache as inputs and outputs, by torch's exporter."""
    sizes, (n, s, p) = model.sizes, (2, 3, 5)
    caches = [torch.zeros(n, sizes.kv_heads, p, sizes.head) for _ in pasts(sizes)]
    inputs = (
        torch.zeros(n, s, dtype=torch.int64), torch.ones(n, p + s, dtype=torch.int64),
        torch.arange(p, p + s)[None].repeat(n, 1), caches,
    )  # fmt: skip
    each = {0: "batch_size", 1: "sequence_length"}
    shapes = {
        "input_ids": each, "attention_mask": {0: "batch_size", 1: "past_sequence_length + sequence_length"},
        "position_ids": each, "past": [{0: "batch_size", 2: "past_sequence_length"} for _ in caches],
    }  # fmt: skip
    torch.onnx.export(
        Cached(model).eval(), inputs, str(path), dynamo=True, opset_version=OPSET, dynamic_shapes=shapes,
        external_data=False, input_names=["input_ids", "attention_mask", "position_ids", *pasts(sizes)],
        output_names=["logits", *pasts(sizes, "present")], verbose=False,
    )  # fmt: skip


class _Graph:
    """Nodes and weights as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, value: Tensor | np.ndarray) -> str:
        """A weight; its name."""
        array = value.detach().numpy() if isinstance(value, Tensor) else value
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], name: str, more: Sequence[str] = (), **attributes: Any) -> str:
        """A node with the output `name`/output_0, and `more` of them; the name of the first."""
        domain, _, kind = kind.rpartition("::")
        out = f"{name}/output_0"
        self.nodes.append(helper.make_node(kind, inputs, [out, *more], name, domain=domain, **attributes))
        return out

    def linear(self, layer: nn.Linear, x: str, name: str) -> str:
        """A product with the weight [inputs, outputs]."""
        return self.node("MatMul", [x, self.weight(f"{name[1:].replace('/', '.')}.weight", layer.weight.T)], name)


def grouped(model: LanguageModel, path: Path) -> None:
    """As ONNX Runtime's model builder writes it: fused attention with its rotary inside, fused sums and norms."""
    sizes, graph = model.sizes, _Graph()
    cos, sin = rotary(torch.arange(POSITIONS), sizes)
    tables = [graph.weight(n, x[:, : sizes.head // 2]) for n, x in (("cos_cache", cos), ("sin_cache", sin))]
    lengths = _lengths(graph)
    x = graph.node("Gather", [graph.weight("model.embed_tokens.weight", model.model.embed_tokens.weight), "input_ids"],
                   "/model/embed_tokens/Gather")  # fmt: skip
    added: list[str] = []
    for i, layer in enumerate(model.model.layers):
        at = f"/model/layers.{i}"
        x, h = _normed(graph, layer.input_layernorm, x, added, f"{at}/input_layernorm")
        attention = layer.self_attn
        qkv = [graph.linear(getattr(attention, f"{k}_proj"), h, f"{at}/attn/{k}_proj/MatMul") for k in "qkv"]
        h = graph.node(
            "com.microsoft::GroupQueryAttention",
            [*qkv, f"past_key_values.{i}.key", f"past_key_values.{i}.value", *lengths, *tables],
            f"{at}/attn/GroupQueryAttention", [f"present.{i}.key", f"present.{i}.value"], do_rotary=1,
            num_heads=sizes.heads, kv_num_heads=sizes.kv_heads, rotary_interleaved=0, scale=sizes.head**-0.5,
        )  # fmt: skip
        added = [graph.linear(attention.o_proj, h, f"{at}/attn/o_proj/MatMul")]
        x, h = _normed(graph, layer.post_attention_layernorm, x, added, f"{at}/post_attention_layernorm")
        hidden = (f"{k}_proj" for k in ("gate", "up"))
        gate, up = (graph.linear(getattr(layer.mlp, k), h, f"{at}/mlp/{k}/MatMul") for k in hidden)
        act = graph.node("Sigmoid", [gate], f"{at}/mlp/act_fn/Sigmoid")
        act = graph.node("Mul", [gate, act], f"{at}/mlp/act_fn/Mul")
        h = graph.node("Mul", [act, up], f"{at}/mlp/Mul")
        added = [graph.linear(layer.mlp.down_proj, h, f"{at}/mlp/down_proj/MatMul")]
    _, h = _normed(graph, model.model.norm, x, added, f"/model/layers.{sizes.layers}/final_norm_layernorm")
    graph.linear(model.lm_head, h, "/lm_head/MatMul")
    graph.nodes[-1].output[0] = "logits"
    _save(graph, sizes, path)


def _lengths(graph: _Graph) -> list[str]:
    """Of each sequence less one, and of the longest, from the mask."""
    ones, one = graph.weight("/axes", np.array([1])), graph.weight("/one", np.array(1))
    at = "/model/attn_mask_reformat"
    total = graph.node("ReduceSum", ["attention_mask", ones], f"{at}/ReduceSum", keepdims=0)
    total = graph.node("Sub", [total, one], f"{at}/Sub")
    each = graph.node("Cast", [total], f"{at}/Cast", to=TensorProto.INT32)
    longest = graph.node("Shape", ["attention_mask"], f"{at}/Shape")
    longest = graph.node("Gather", [longest, one], f"{at}/Gather", axis=0)
    return [each, graph.node("Cast", [longest], f"{at}/Cast_1", to=TensorProto.INT32)]


def _normed(graph: _Graph, norm: nn.Module, x: str, added: Sequence[str], name: str) -> tuple[str, str]:
    """The stream with what is added to it, and its norm."""
    scale = graph.weight(f"{name[1:].replace('/', '.')}.weight", norm.weight)
    if not added:
        return x, graph.node("SimplifiedLayerNormalization", [x, scale], f"{name}/LayerNorm", axis=-1,
                             epsilon=norm.epsilon, stash_type=1)  # fmt: skip
    total = f"{name}/output_3"
    return total, graph.node("com.microsoft::SkipSimplifiedLayerNormalization", [x, *added, scale],
                             f"{name}/SkipLayerNorm", ["", "", total], epsilon=norm.epsilon)  # fmt: skip


def _save(graph: _Graph, sizes: Sizes, path: Path) -> None:
    def value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    integer, real, heads = TensorProto.INT64, TensorProto.FLOAT, sizes.kv_heads
    inputs = [
        value("input_ids", integer, ["batch_size", "sequence_length"]),
        value("attention_mask", integer, ["batch_size", "total_sequence_length"]),
        *(value(n, real, ["batch_size", heads, "past_sequence_length", sizes.head]) for n in pasts(sizes)),
    ]
    outputs = [
        value("logits", real, ["batch_size", "sequence_length", sizes.vocabulary]),
        *(value(n, real, ["batch_size", heads, "total_sequence_length", sizes.head]) for n in pasts(sizes, "present")),
    ]
    body = helper.make_graph(graph.nodes, "main_graph", inputs, outputs, graph.weights)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(body, opset_imports=opsets, ir_version=10, producer_name="tools/export_lm.py"), path)


def int4(floats: Path, path: Path) -> None:
    """`grouped`, whose products ONNX Runtime's own quantiser brings to 4 bits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(onnx.load(floats), block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantiser.process()
    quantiser.model.save_model_to_file(str(path))
