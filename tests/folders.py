"""Tiny folders as Hugging Face's exporters write them: a BERT, and an encoder with decoders that share weights."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from graphs import graph
from onnx import ModelProto
from onnx.compose import add_prefix_graph

WORDS, WIDTH, HEADS, SIZE, HIDDEN, LAYERS = 40, 12, 3, 4, 20, 2
INNER = HEADS * SIZE
SHAPES = {"heads": np.array([0, 0, HEADS, SIZE]), "flat": np.array([0, 0, INNER])}
BERT = {
    "model_type": "bert", "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "head_dim": SIZE, "vocab_size": WORDS,
}  # fmt: skip
BART = {
    "model_type": "bart", "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "vocab_size": WORDS,
}  # fmt: skip


def values(name: str, *shape: int) -> np.ndarray:
    """The trained weight of this name, the same in every file."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("gain"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    return (random.standard_normal(shape) / np.sqrt(max(shape[0], 1))).astype(np.float32)


class Network:
    """Collects the text of a graph and its weights."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.weights: dict[str, Any] = dict(SHAPES)

    def weight(self, name: str, *shape: int) -> str:
        self.weights[name] = values(name, *shape)
        return name

    def embedded(self, ids: str) -> str:
        self.text.append(f"x = Gather({self.weight('shared_words', WORDS, WIDTH)}, {ids})")
        return "x"

    def linear(self, p: str, x: str, columns: int, rows: int) -> str:
        w, b = self.weight(f"{p}_weight", columns, rows), self.weight(f"{p}_bias", rows)
        self.text.append(f"{p}_m = MatMul({x}, {w}) {p} = Add({p}_m, {b})")
        return p

    def norm(self, p: str, x: str, y: str) -> str:
        gain, bias = self.weight(f"{p}_gain", WIDTH), self.weight(f"{p}_shift", WIDTH)
        self.text.append(f"{p}_sum = Add({x}, {y}) {p} = LayerNormalization<axis = -1>({p}_sum, {gain}, {bias})")
        return p

    def heads(self, p: str, x: str, name: str) -> str:
        self.linear(p, x, WIDTH, INNER)
        self.text.append(f"{p}_split = Reshape({p}, heads) {name} = Transpose<perm = [0, 2, 1, 3]>({p}_split)")
        return name

    def attention(self, p: str, x: str, k: str, v: str) -> str:
        q = self.heads(f"{p}_q", x, f"{p}_qh")
        self.text.append(
            f"{p}_kt = Transpose<perm = [0, 1, 3, 2]>({k}) {p}_s = MatMul({q}, {p}_kt) {p}_a = Softmax({p}_s) "
            f"{p}_z = MatMul({p}_a, {v}) {p}_zt = Transpose<perm = [0, 2, 1, 3]>({p}_z) {p}_zf = Reshape({p}_zt, flat)"
        )
        return self.linear(f"{p}_out", f"{p}_zf", INNER, WIDTH)

    def feed_forward(self, p: str, x: str) -> str:
        self.linear(f"{p}_fc1", x, WIDTH, HIDDEN)
        self.text.append(f"{p}_act = Relu({p}_fc1)")
        return self.norm(f"{p}_norm2", x, self.linear(f"{p}_fc2", f"{p}_act", HIDDEN, WIDTH))

    def encoder(self, side: str, x: str) -> str:
        for k in range(LAYERS):
            p = f"{side}_layers_{k}"
            keys, held = self.heads(f"{p}_k", x, f"{p}_kh"), self.heads(f"{p}_v", x, f"{p}_vh")
            x = self.feed_forward(p, self.norm(f"{p}_norm1", x, self.attention(p, x, keys, held)))
        return x

    def model(self, inputs: str, outputs: str) -> ModelProto:
        return graph(f"({inputs}) => ({outputs})", " ".join(self.text), **self.weights)


def bert(hidden: str = "encoder") -> ModelProto:
    net = Network()
    net.text.append(f"y = Identity({net.encoder(hidden, net.embedded('input_ids'))})")
    return net.model("int64[N, T] input_ids", f"float[N, T, {WIDTH}] y")


def encoder() -> ModelProto:
    return bert()


def decoder(past: bool = False, head: bool = True) -> ModelProto:
    """With `past` keys and values of earlier tokens, and of the encoder, are inputs; without, they are outputs."""
    net, inputs, outputs = Network(), ["int64[N, T] input_ids"], []
    if not past:
        inputs.append(f"float[N, S, {WIDTH}] encoder_hidden_states")
    x = net.embedded("input_ids")
    for k in range(LAYERS):
        p = f"decoder_layers_{k}"
        for name in ("k", "v"):
            inputs += [f"float[N, {HEADS}, {n}, {SIZE}] past_{name}{at}{k}" for at, n in (("", "P"), ("_encoder", "S"))] if past else []
            outputs.append(f"float[N, {HEADS}, Q, {SIZE}] present_{name}{k}")
            net.heads(f"{p}_{name}", x, f"{p}_{name}h")
            source = f"Concat<axis = 2>(past_{name}{k}, {p}_{name}h)" if past else f"Identity({p}_{name}h)"
            net.text.append(f"present_{name}{k} = {source}")
            if not past:
                net.heads(f"{p}_cross_{name}", "encoder_hidden_states", f"present_{name}_encoder{k}")
                outputs.append(f"float[N, {HEADS}, S, {SIZE}] present_{name}_encoder{k}")
        x = net.norm(f"{p}_norm1", x, net.attention(p, x, f"present_k{k}", f"present_v{k}"))
        kind = "past" if past else "present"
        crossed = net.attention(f"{p}_cross", x, f"{kind}_k_encoder{k}", f"{kind}_v_encoder{k}")
        x = net.feed_forward(p, net.norm(f"{p}_norm3", x, crossed))
    net.text.append(f"logits = MatMul({x}, {net.weight('lm_head', WIDTH, WORDS)})")
    return net.model(", ".join(inputs), ", ".join([f"float[N, T, {WORDS}] logits", *outputs]))


def renamed(model: ModelProto) -> ModelProto:
    """With other names for everything inside, as another exporter has them."""
    model = ModelProto.FromString(model.SerializeToString())
    keep = [*model.graph.input, *model.graph.output]
    before = [value.name for value in keep]
    add_prefix_graph(model.graph, "onnx_", inplace=True)
    back = {f"onnx_{name}": name for name in before}
    for value in keep:
        value.name = back[value.name]
    for node in model.graph.node:
        node.input[:] = [back.get(n, n) for n in node.input]
        node.output[:] = [back.get(n, n) for n in node.output]
    return model


def written(folder: Path, models: Mapping[str, ModelProto], config: Mapping[str, Any], external: bool = False) -> Path:
    """A folder with these models, a tokenizer and a configuration."""
    for name, model in models.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path, save_as_external_data=external, location=f"{path.name}_data", size_threshold=0)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}\n')
    (folder / "vocab.txt").write_text("a\nb\n")
    return folder
