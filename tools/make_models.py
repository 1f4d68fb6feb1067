"""Write the two tiny networks that `models/` carries: random weights from a fixed seed, nothing trained.

    python tools/make_models.py models/

`tiny_conv.onnx` is a residual convolutional classifier with random BatchNorm statistics; `tiny_attention.onnx` is
one pre-norm transformer block with a fused query-key-value product. Both take any batch size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

CONV = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "onnxprune">
tiny_conv (float[N, 3, 16, 16] image) => (float[N, 10] logits) {
    conv1 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(image, conv1_weight)
    norm1 = BatchNormalization(conv1, norm1_scale, norm1_bias, norm1_mean, norm1_var)
    stem = Relu(norm1)
    conv2 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(stem, conv2_weight)
    norm2 = BatchNormalization(conv2, norm2_scale, norm2_bias, norm2_mean, norm2_var)
    inner = Relu(norm2)
    conv3 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(inner, conv3_weight)
    norm3 = BatchNormalization(conv3, norm3_scale, norm3_bias, norm3_mean, norm3_var)
    sum = Add(norm3, stem)
    block = Relu(sum)
    conv4 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(block, conv4_weight, conv4_bias)
    last = Relu(conv4)
    pooled = GlobalAveragePool(last)
    flat = Flatten(pooled)
    logits = Gemm<transB = 1>(flat, head_weight, head_bias)
}
"""
CONV_SHAPES = {
    "conv1_weight": (16, 3, 3, 3),
    **{f"norm{i}_{part}": (n,) for i, n in ((1, 16), (2, 24), (3, 16)) for part in ("scale", "bias", "mean", "var")},
    "conv2_weight": (24, 16, 3, 3),
    "conv3_weight": (16, 24, 3, 3),
    "conv4_weight": (32, 16, 3, 3),
    "conv4_bias": (32,),
    "head_weight": (10, 32),
    "head_bias": (10,),
}

ATTENTION = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "onnxprune">
tiny_attention (float[N, 12, 16] tokens) => (float[N, 8] logits)
<int64[4] heads_shape = {0, 0, 4, 8}, int64[3] merged_shape = {0, 0, 32}, float scale = {0.35355339},
 float root_two = {1.4142135}, float one = {1.0}, float half = {0.5}> {
    embedded = MatMul(tokens, embed_weight)
    stream0 = Add(embed_bias, embedded)
    normed1 = LayerNormalization<axis = -1>(stream0, norm1_scale, norm1_bias)
    projected = MatMul(normed1, qkv_weight)
    qkv = Add(qkv_bias, projected)
    query, key, value = Split<axis = -1>(qkv)
    query4 = Reshape(query, heads_shape)
    key4 = Reshape(key, heads_shape)
    value4 = Reshape(value, heads_shape)
    query_heads = Transpose<perm = [0, 2, 1, 3]>(query4)
    key_heads = Transpose<perm = [0, 2, 3, 1]>(key4)
    value_heads = Transpose<perm = [0, 2, 1, 3]>(value4)
    products = MatMul(query_heads, key_heads)
    scaled = Mul(products, scale)
    attention = Softmax<axis = -1>(scaled)
    context_heads = MatMul(attention, value_heads)
    context4 = Transpose<perm = [0, 2, 1, 3]>(context_heads)
    context = Reshape(context4, merged_shape)
    out = MatMul(context, out_weight)
    attended = Add(out_bias, out)
    stream1 = Add(stream0, attended)
    normed2 = LayerNormalization<axis = -1>(stream1, norm2_scale, norm2_bias)
    widened = MatMul(normed2, up_weight)
    hidden = Add(up_bias, widened)
    divided = Div(hidden, root_two)
    erf = Erf(divided)
    gate = Add(erf, one)
    product = Mul(hidden, gate)
    gelu = Mul(product, half)
    narrowed = MatMul(gelu, down_weight)
    mlp = Add(down_bias, narrowed)
    stream2 = Add(stream1, mlp)
    normed3 = LayerNormalization<axis = -1>(stream2, norm3_scale, norm3_bias)
    mean = ReduceMean<axes = [1], keepdims = 0>(normed3)
    logits = Gemm(mean, head_weight, head_bias)
}
"""
ATTENTION_SHAPES = {
    "embed_weight": (16, 32),
    "embed_bias": (32,),
    **{f"norm{i}_{part}": (32,) for i in (1, 2, 3) for part in ("scale", "bias")},
    "qkv_weight": (32, 96),
    "qkv_bias": (96,),
    "out_weight": (32, 32),
    "out_bias": (32,),
    "up_weight": (32, 64),
    "up_bias": (64,),
    "down_weight": (64, 32),
    "down_bias": (32,),
    "head_weight": (32, 8),
    "head_bias": (8,),
}


def weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values whose scale keeps the activations near one; divisors and gains stay positive."""
    if name.endswith(("_scale", "_var")):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        values = rng.normal(0, 0.2, shape)
    else:
        fan_in = np.prod(shape[1:]) if len(shape) == 4 else max(shape) if name == "head_weight" else shape[0]
        values = rng.normal(0, fan_in**-0.5, shape)
    return values.astype(np.float32)


def build(text: str, shapes: dict[str, tuple[int, ...]], seed: int) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    weights = (numpy_helper.from_array(weight(rng, name, shape), name) for name, shape in shapes.items())
    model.graph.initializer.extend(weights)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    onnx.save(build(CONV, CONV_SHAPES, seed=0), out / "tiny_conv.onnx")
    onnx.save(build(ATTENTION, ATTENTION_SHAPES, seed=1), out / "tiny_attention.onnx")


if __name__ == "__main__":
    main()
