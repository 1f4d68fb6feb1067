"""How time and memory of `onnxprune --fast` grow with parameters and with nodes.

    python tools/bench_scale.py FOLDER --most-parameters 1e9 --most-nodes 20000

Chains of matrix products, of residual convolutions and of decoder layers are written into FOLDER (removed afterwards)
and pruned with the proof, each in a process of its own. `slope` is that of a line through the upper half of the sizes,
both axes logarithmic: 1 is linear; imports and the like make the lower half flatter.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from make_large import Builder, Decoder
from onnx import TensorProto, helper

PARAMETERS = (1e6, 4e6, 1.6e7, 6.4e7, 2.56e8, 1e9)
NODES = (100, 300, 1000, 3000, 10000, 20000)
WIDTH = 16
"""Of the chains that grow in nodes."""


def mlp(b: Builder, layers: int, width: int) -> None:
    """Three nodes a layer, with a residual sum around every other one."""
    _ends(b, [width])
    x = "x"
    for k in range(layers):
        y = b.node("Gemm", x, b.weight(f"w{k}", width, width), b.weight(f"b{k}", width), name=f"gemm{k}")
        y = b.node("Relu", y, name=f"relu{k}")
        x = b.node("Add", x, y, name=f"add{k}") if k % 2 else b.node("Neg", y, name=f"neg{k}")
    b.node("Identity", x, name="last")
    b.graph.node[-1].output[0] = "y"


def conv(b: Builder, layers: int, width: int) -> None:
    """Four nodes a layer: convolution, normalisation, activation, and a residual sum or another activation."""
    _ends(b, [width, 4, 4])
    x = "x"
    for k in range(layers):
        w = b.weight(f"w{k}", width, width, 3, 3, scale=(9 * width) ** -0.5)
        y = b.node("Conv", x, w, name=f"conv{k}", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        one, zero = b.const("gain", np.ones(width), np.float32), b.const("shift", np.zeros(width), np.float32)
        y = b.node("BatchNormalization", y, one, zero, zero, one, name=f"norm{k}")
        y = b.node("Relu", y, name=f"relu{k}")
        x = b.node("Add", x, y, name=f"add{k}") if k % 2 else b.node("Sigmoid", y, name=f"sigmoid{k}")
    b.node("Identity", x, name="last")
    b.graph.node[-1].output[0] = "y"


def decoder(b: Builder, layers: int, width: int) -> None:
    Decoder(b, layers, width, 2 * width, max(1, width // 64) if width >= 128 else 2, 64 if width < 128 else 8000)


KINDS = {"mlp": (mlp, 1, 3), "conv": (conv, 9, 4), "decoder": (decoder, 10, 61)}
"""The chain, parameters of a layer by the square of the width, nodes of a layer."""

KEYS = ("parameters", "nodes", "seconds", "cpu", "mib")


def _ends(b: Builder, dims: list[int]) -> None:
    b.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *dims]))
    b.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *dims]))


def write(kind: str, path: Path, layers: int, width: int) -> tuple[int, int]:
    """Parameters and nodes of what was written."""
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        builder = Builder(file, data.name)
        KINDS[kind][0](builder, layers, width)
    builder.save(path)
    return builder.parameters, len(builder.graph.node)


def prune(path: Path, ratio: float) -> tuple[float, float, float]:
    """Seconds, seconds of the processor, and MiB at most of a process of its own."""
    out = path.with_name("pruned.onnx")
    command = [sys.executable, "-m", "onnxprune", path, out, "--ratio", str(ratio), "--fast", "--quiet"]
    begin = time.perf_counter()
    child = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - begin
    for file in (out, out.with_name(f"{out.name}.data")):
        file.unlink(missing_ok=True)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"onnxprune failed on {path}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def slope(sizes: list[float], values: list[float]) -> float:
    upper = slice(len(sizes) // 2, None)
    return float(np.polyfit(np.log(sizes[upper]), np.log(values[upper]), 1)[0]) if len(sizes) > 2 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most-parameters", type=float, default=1e9)
    parser.add_argument("--most-nodes", type=int, default=20000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the quickest counts")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path, found = args.folder / "chain.onnx", []
    print(f"{'grows in':12} {'chain':8} {'parameters':>14} {'nodes':>7} {'s':>8} {'CPU s':>8} {'MiB':>7}")
    for grows, sizes, most in (("parameters", PARAMETERS, args.most_parameters), ("nodes", NODES, args.most_nodes)):
        for kind in args.kinds:
            _, square, nodes = KINDS[kind]
            rows = []
            for size in (s for s in sizes if s <= most):
                layers = max(2, round(4 * (size / 1e6) ** (1 / 3)) if grows == "parameters" else round(size / nodes))
                width = int((size / square / layers) ** 0.5) // 64 * 64 if grows == "parameters" else WIDTH
                shape = write(kind, path, layers, max(width, WIDTH))
                seconds, cpu, memory = min(prune(path, args.ratio) for _ in range(args.repeat))
                rows.append(dict(zip(KEYS, (*shape, seconds, cpu, memory), strict=True)))
                figures = f"{shape[0]:14,} {shape[1]:7,} {seconds:8.2f} {cpu:8.2f} {memory:7.0f}"
                print(f"{grows:12} {kind:8} {figures}", flush=True)
            slopes = {key: slope([r[grows] for r in rows], [r[key] for r in rows]) for key in ("cpu", "mib")}
            print(f"{grows:12} {kind:8} slope of CPU seconds {slopes['cpu']:.2f}, of memory {slopes['mib']:.2f}")
            found.append({"grows": grows, "kind": kind, "rows": rows, "slopes": slopes})
    for file in (path, path.with_name(f"{path.name}.data")):
        file.unlink(missing_ok=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
