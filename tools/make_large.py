"""Write a decoder-only transformer with random weights as external data: a model to see how onnxprune scales.

    python tools/make_large.py big.onnx                                        # 2.4 GB, 32 layers
    python tools/make_large.py bigger.onnx --width 2048 --ffn 5632             # 7.0 GB
    python tools/make_large.py small.onnx --layers 2 --width 256 --ffn 512 --vocabulary 1000
    python tools/make_large.py served.onnx --kv-heads 8 --width 2048 --ffn 5632           # with a cache
    python tools/make_large.py four.onnx --kv-heads 8 --width 2048 --ffn 5632 --bits 4    # and weights of 4 bits

RMSNorm, rotary positions, causal attention with heads made by Reshape and Transpose, gated feed-forward layers, batch
and sequence of any size, as exporters write them. With --kv-heads it is what is deployed: GroupQueryAttention, which
turns the positions itself, and keys and values of the past as inputs and outputs; with --bits 4 MatMulNBits in blocks
of 32 (the table of the embeddings stays float). Weights are streamed to OUT.data: memory stays small.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

POOL = (1 << 20) + 4093
"""Random values, of which every stretch of a weight is another part."""
QUANTUM = 32
"""Weights of a block that has a scale of its own."""
LONGEST = 4096
"""Positions that the rotary tables of GroupQueryAttention hold."""


class Builder:
    """A graph whose large weights are streamed to `data` as they are named."""

    def __init__(self, data: BinaryIO, location: str, seed: int = 0, bits: int = 0) -> None:
        self.data, self.location, self.bits = data, location, bits
        self.rng = np.random.default_rng(seed)
        self.pool = self.rng.standard_normal(2 * POOL, np.float32)
        self.graph = onnx.GraphProto(name="main")
        self.parameters = 0
        self.constants: set[str] = set()

    def weight(self, name: str, *shape: int, scale: float | None = None) -> str:
        """Normal values with a standard deviation of `scale`, by default one over the root of the rows."""
        pool = self.pool * np.float32(shape[0] ** -0.5 if scale is None else scale)
        self.parameters += int(np.prod(shape))
        return self._streamed(name, shape, TensorProto.FLOAT, pool)

    def _streamed(self, name: str, shape: tuple[int, ...], kind: int, pool: Any) -> str:
        """A tensor of stretches of `pool`, in the file beside."""
        offset = self.data.tell()
        self.data.write(bytes(-offset % 4096))
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        size = int(np.prod(shape))
        length = pool.itemsize * size
        for key, value in (("location", self.location), ("offset", self.data.tell()), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        for start in range(0, size, POOL):
            at = int(self.rng.integers(POOL))
            self.data.write(pool[at : at + min(POOL, size - start)].data)
        self.graph.initializer.append(tensor)
        return name

    def const(self, name: str, value: Any, dtype: type = np.int64) -> str:
        """A small tensor inside the model file; the same name twice is the same tensor."""
        if name not in self.constants:
            self.constants.add(name)
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        """A node with one output; returns that output's name."""
        self.graph.node.append(helper.make_node(op, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def linear(self, x: str, name: str, rows: int, columns: int) -> str:
        if self.bits:
            return self.quantised(x, name, rows, columns)
        return self.node("MatMul", x, self.weight(f"{name}.weight", rows, columns), name=f"/{name}/MatMul")

    def quantised(self, x: str, name: str, rows: int, columns: int) -> str:
        """Random codes, as symmetric quantisers make them, with scales that give about what `weight` gives."""
        blocks = -(-rows // QUANTUM)
        codes = self._streamed(
            f"{name}.qweight", (columns, blocks, QUANTUM * self.bits // 8), TensorProto.UINT8, self.pool.view(np.uint8)
        )
        spread = (4**self.bits / 12) ** 0.5
        scale = np.abs(self.pool) * np.float32(0.1) + np.float32(0.9)
        scales = self._streamed(
            f"{name}.scales", (columns, blocks), TensorProto.FLOAT, scale * np.float32(rows**-0.5 / spread)
        )
        self.parameters += rows * columns
        sizes = {"K": rows, "N": columns, "bits": self.bits, "block_size": QUANTUM}
        return self.node("MatMulNBits", x, codes, scales, name=f"/{name}/MatMul", domain="com.microsoft", **sizes)

    def save(self, path: Path) -> None:
        model = helper.make_model(
            self.graph, producer_name="make_large", ir_version=8,
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        )  # fmt: skip
        path.write_bytes(model.SerializeToString())


class Decoder:
    """Adds a decoder to a builder."""

    def __init__(self, builder: Builder, layers: int, width: int, ffn: int, heads: int, vocabulary: int) -> None:
        self.b, self.width, self.ffn, self.heads, self.vocabulary = builder, width, ffn, heads, vocabulary
        self.dim = width // heads
        graph, b = builder.graph, builder
        graph.input.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]))
        dims = ["batch", "sequence", vocabulary]
        graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, dims))
        table = b.weight("model.embed_tokens.weight", vocabulary, width, scale=1.0)
        x = b.node("Gather", table, "input_ids", name="/model/embed_tokens/Gather")
        self.positions()
        for k in range(layers):
            x = self.layer(x, f"model.layers.{k}")
        x = self.norm(x, "model.norm")
        logits = b.linear(x, "lm_head", width, vocabulary)
        graph.node[-1].output[0] = "logits"
        assert logits != "logits"

    def positions(self) -> None:
        """What all layers share: sizes, the angles of the rotary embedding, the causal mask."""
        b = self.b
        shape = b.node("Shape", "input_ids", name="/model/Shape")
        for axis, size in enumerate(("batch", "sequence")):
            b.node("Gather", shape, b.const(f"axis{axis}", axis), name=f"/model/{size}")
            b.node("Unsqueeze", f"/model/{size}_output", b.const("zero_axis", [0]), name=f"/model/{size}/Unsqueeze")
        zero, one = b.const("zero", 0), b.const("one", 1)
        at = b.node("Range", zero, "/model/sequence_output", one, name="/model/Range")
        rows = b.node("Unsqueeze", at, b.const("last_axis", [1]), name="/model/Range/rows")
        columns = b.node("Unsqueeze", at, "zero_axis", name="/model/Range/columns")
        seen = b.node("LessOrEqual", columns, rows, name="/model/LessOrEqual")
        nothing, least = b.const("nothing", 0.0, np.float32), b.const("least", -1e9, np.float32)
        b.node("Where", seen, nothing, least, name="/model/mask")
        rates = 10000.0 ** (-np.arange(0, self.dim, 2) / self.dim)
        angles = b.node("Cast", rows, name="/model/rotary/Cast", to=TensorProto.FLOAT)
        angles = b.node("Mul", angles, b.const("inv_freq", rates[None], np.float32), name="/model/rotary/Mul")
        angles = b.node("Concat", angles, angles, name="/model/rotary/Concat", axis=-1)
        b.node("Cos", angles, name="/model/rotary/Cos")
        b.node("Sin", angles, name="/model/rotary/Sin")

    def norm(self, x: str, name: str) -> str:
        b = self.b
        square = b.node("Pow", x, b.const("two", 2.0, np.float32), name=f"/{name}/Pow")
        mean = b.node("ReduceMean", square, name=f"/{name}/ReduceMean", axes=[-1])
        safe = b.node("Add", mean, b.const("epsilon", 1e-6, np.float32), name=f"/{name}/Add")
        scaled = b.node("Div", x, b.node("Sqrt", safe, name=f"/{name}/Sqrt"), name=f"/{name}/Div")
        return b.node("Mul", b.weight(f"{name}.weight", self.width, scale=1.0), scaled, name=f"/{name}/Mul")

    def split(self, x: str, name: str) -> str:
        """[batch, sequence, width] -> [batch, heads, sequence, dim]"""
        b = self.b
        heads, dim = b.const("heads", [self.heads]), b.const("dim", [self.dim])
        sizes = ("/model/batch/Unsqueeze_output", "/model/sequence/Unsqueeze_output", heads, dim)
        target = b.node("Concat", *sizes, name=f"/{name}/Concat", axis=0)
        x = b.node("Reshape", x, target, name=f"/{name}/Reshape")
        return b.node("Transpose", x, name=f"/{name}/Transpose", perm=[0, 2, 1, 3])

    def rotated(self, x: str, name: str) -> str:
        b = self.b
        half, end, axis = b.const("half", [self.dim // 2]), b.const("end", [1 << 62]), b.const("dim_axis", [3])
        low = b.node("Slice", x, "zero_axis", half, axis, name=f"/{name}/Slice")
        high = b.node("Slice", x, half, end, axis, name=f"/{name}/Slice_1")
        turned = b.node("Neg", high, name=f"/{name}/Neg")
        turned = b.node("Concat", turned, low, name=f"/{name}/Concat_1", axis=-1)
        one = b.node("Mul", x, "/model/rotary/Cos_output", name=f"/{name}/Mul")
        two = b.node("Mul", turned, "/model/rotary/Sin_output", name=f"/{name}/Mul_1")
        return b.node("Add", one, two, name=f"/{name}/Add")

    def layer(self, x: str, name: str) -> str:
        b, own = self.b, f"{name}.self_attn"
        normed = self.norm(x, f"{name}.input_layernorm")
        mixed = self.attention(normed, own)
        x = b.node("Add", x, b.linear(mixed, f"{own}.o_proj", self.width, self.width), name=f"/{name}/Add")
        normed = self.norm(x, f"{name}.post_attention_layernorm")
        gate = b.linear(normed, f"{name}.mlp.gate_proj", self.width, self.ffn)
        gate = b.node("Mul", gate, b.node("Sigmoid", gate, name=f"/{name}/mlp/Sigmoid"), name=f"/{name}/mlp/Mul")
        up = b.linear(normed, f"{name}.mlp.up_proj", self.width, self.ffn)
        both = b.node("Mul", gate, up, name=f"/{name}/mlp/Mul_1")
        down = b.linear(both, f"{name}.mlp.down_proj", self.ffn, self.width)
        return b.node("Add", x, down, name=f"/{name}/Add_1")

    def attention(self, normed: str, own: str) -> str:
        """[batch, sequence, width]: the heads side by side."""
        b = self.b
        q, k, v = (
            self.split(b.linear(normed, f"{own}.{part}_proj", self.width, self.width), f"{own}.{part}")
            for part in "qkv"
        )
        q, k = self.rotated(q, f"{own}.q"), self.rotated(k, f"{own}.k")
        k = b.node("Transpose", k, name=f"/{own}/Transpose", perm=[0, 1, 3, 2])
        scores = b.node("MatMul", q, k, name=f"/{own}/MatMul")
        scores = b.node("Mul", scores, b.const("scale", self.dim**-0.5, np.float32), name=f"/{own}/Mul")
        scores = b.node("Add", scores, "/model/mask_output", name=f"/{own}/Add")
        weights = b.node("Softmax", scores, name=f"/{own}/Softmax", axis=-1)
        mixed = b.node("MatMul", weights, v, name=f"/{own}/MatMul_1")
        mixed = b.node("Transpose", mixed, name=f"/{own}/Transpose_1", perm=[0, 2, 1, 3])
        merged = b.const("merged", [0, 0, self.width])
        return b.node("Reshape", mixed, merged, name=f"/{own}/Reshape")


class Served(Decoder):
    """One that keeps what it has seen: GroupQueryAttention, with keys and values of the past in and out."""

    def __init__(
        self, builder: Builder, layers: int, width: int, ffn: int, heads: int, vocabulary: int, kv_heads: int
    ) -> None:
        self.kv_heads = kv_heads
        super().__init__(builder, layers, width, ffn, heads, vocabulary)

    def positions(self) -> None:
        """What all layers share: how long the sequences are by now, and the rotary tables."""
        b, mask = self.b, "attention_mask"
        b.graph.input.append(helper.make_tensor_value_info(mask, TensorProto.INT64, ["batch", "total"]))
        count = b.node("ReduceSum", mask, b.const("last_axis", [1]), name="/model/mask/ReduceSum", keepdims=0)
        last = b.node("Sub", count, b.const("one", 1), name="/model/mask/Sub")
        b.node("Cast", last, name="/model/lengths", to=TensorProto.INT32)
        shape = b.node("Shape", mask, name="/model/mask/Shape")
        total = b.node("Gather", shape, b.const("one", 1), name="/model/mask/Gather")
        b.node("Cast", total, name="/model/total", to=TensorProto.INT32)
        rates = 10000.0 ** (-np.arange(0, self.dim, 2) / self.dim)
        angles = np.arange(LONGEST)[:, None] * rates
        b.const("cos_cache", np.cos(angles), np.float32)
        b.const("sin_cache", np.sin(angles), np.float32)

    def attention(self, normed: str, own: str) -> str:
        b, narrow = self.b, self.kv_heads * self.dim
        q = b.linear(normed, f"{own}.q_proj", self.width, self.width)
        k, v = (b.linear(normed, f"{own}.{part}_proj", self.width, narrow) for part in "kv")
        layer = own.split(".")[2]
        past, present = [], []
        for part in ("key", "value"):
            dims = ["batch", self.kv_heads, "past", self.dim]
            past.append(f"past_key_values.{layer}.{part}")
            b.graph.input.append(helper.make_tensor_value_info(past[-1], TensorProto.FLOAT, dims))
            present.append(f"present.{layer}.{part}")
            dims = ["batch", self.kv_heads, "total", self.dim]
            b.graph.output.append(helper.make_tensor_value_info(present[-1], TensorProto.FLOAT, dims))
        mixed = b.node(
            "GroupQueryAttention", q, k, v, *past, "/model/lengths_output", "/model/total_output", "cos_cache",
            "sin_cache", name=f"/{own}/GroupQueryAttention", domain="com.microsoft", num_heads=self.heads,
            kv_num_heads=self.kv_heads, scale=self.dim**-0.5, do_rotary=1,
        )  # fmt: skip
        b.graph.node[-1].output.extend(present)
        return mixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=1280, help="of the residual stream")
    parser.add_argument("--ffn", type=int, default=2560, help="width of the feed-forward layers")
    parser.add_argument("--head", type=int, default=64, help="width of an attention head")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--kv-heads", type=int, default=0, help="with a cache for so many heads of keys and values")
    parser.add_argument("--bits", type=int, default=0, help="of the weights of all layers (default: float32)")
    args = parser.parse_args()
    data = args.out.with_name(f"{args.out.name}.data")
    with data.open("wb") as file:
        builder = Builder(file, data.name, bits=args.bits)
        sizes = (args.layers, args.width, args.ffn, args.width // args.head, args.vocabulary)
        if args.kv_heads:
            Served(builder, *sizes, args.kv_heads)
        else:
            Decoder(builder, *sizes)
    builder.save(args.out)
    print(f"{args.out}: {builder.parameters:,} parameters, {data.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
