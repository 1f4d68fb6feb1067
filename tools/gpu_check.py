"""The whole job on an accelerator, against the processor: time before and after on both, plans, outputs, copies.

    python tools/gpu_check.py [MODEL...] [--providers cuda] [--ratio 0.3] [--samples 64] [--batches 1 32]

Without a MODEL it makes two with random weights: a residual convolutional net of the size of ResNet-50 and a
transformer encoder of the size of BERT-base. Each is pruned twice with the same options, on the accelerator and on the
processor; the plans should be nearly the same, and the pruned model should answer alike on both. The first table has
the latency of the dense and the pruned model on each; the second what the job took there: its seconds, the proof and
what it allows, and the tensors that Python read of sessions and gave them (on an accelerator each is a copy). Exit
code 0: they agree; 1: they do not; 4: there is no such accelerator here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from onnxprune import api
from onnxprune.errors import RuntimeFailure
from onnxprune.measure import latency
from onnxprune.model import Model
from onnxprune.planning import Plan
from onnxprune.prove.difference import difference
from onnxprune.run import Crossings, crossings, deployed
from onnxprune.shapes import infer

PLANS = 0.8
"""Of what either plan removes, the share that both remove, at the least: where scores tie, rounding decides."""
OUTPUTS = 5e-3
"""Largest difference of an output, as a share of its largest entry: tensor cores round products to 10 bits."""


@dataclass
class Net:
    """A graph in the making."""

    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def weight(self, *shape: int) -> str:
        fan = max(1, int(np.prod(shape[1:]))) if len(shape) > 2 else shape[0]
        return self.const(self.random.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(fan)))

    def const(self, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def made(self, inputs: str, kind: int, dims: Sequence[Any], output: str, width: int) -> ModelProto:
        given = helper.make_tensor_value_info(inputs, kind, ["N", *dims])
        last = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", width])
        graph = helper.make_graph(self.nodes, "net", [given], [last], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def conv(self, x: str, inside: int, out: int, kernel: int, stride: int = 1) -> str:
        pads, strides = [kernel // 2] * 4, [stride] * 2
        return self.add(
            "Conv", x, self.weight(out, inside, kernel, kernel), self.weight(out), pads=pads, strides=strides
        )

    def dense(self, x: str, inside: int, out: int) -> str:
        return self.add("Add", self.add("MatMul", x, self.weight(inside, out)), self.weight(out))

    def norm(self, x: str, width: int) -> str:
        return self.add("LayerNormalization", x, self.const(np.ones(width, np.float32)), self.weight(width))


def residual(width: int = 64, depths: Sequence[int] = (3, 4, 6, 3), side: int = 224) -> ModelProto:
    """Bottleneck blocks; with the defaults 25.5 million parameters and 4.1 thousand million MACs."""
    net = Net()
    x = net.add("Relu", net.conv("image", 3, width, 7, 2))
    x, inside = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), width
    for stage, depth in enumerate(depths):
        middle = width << stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            y = net.add("Relu", net.conv(x, inside, middle, 1))
            y = net.add("Relu", net.conv(y, middle, middle, 3, stride))
            y = net.conv(y, middle, 4 * middle, 1)
            x = x if block else net.conv(x, inside, 4 * middle, 1, stride)
            x, inside = net.add("Relu", net.add("Add", y, x)), 4 * middle
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    x = net.add("Gemm", x, net.weight(1000, inside), net.weight(1000), transB=1)
    return net.made("image", TensorProto.FLOAT, [3, side, side], x, 1000)


def encoder(layers: int = 12, width: int = 768, heads: int = 12, words: int = 30522, length: int = 128) -> ModelProto:
    """Pre-norm transformer blocks over a table of words; with the defaults the size of BERT-base."""
    net = Net()
    x = net.add("Gather", net.weight(words, width), "tokens")
    x = net.add("Add", x, net.weight(1, length, width))
    split, merged = net.const(np.array([0, 0, heads, width // heads])), net.const(np.array([0, 0, width]))
    scale = net.const(np.float32((width // heads) ** -0.5))
    for _ in range(layers):
        y = net.norm(x, width)
        q, k, v = (net.add("Reshape", net.dense(y, width, width), split) for _ in range(3))
        q, v = (net.add("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        scores = net.add("Mul", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 2, 3, 1])), scale)
        seen = net.add("Transpose", net.add("MatMul", net.add("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        x = net.add("Add", x, net.dense(net.add("Reshape", seen, merged), width, width))
        y = net.add("Relu", net.dense(net.norm(x, width), width, 4 * width))
        x = net.add("Add", x, net.dense(y, 4 * width, width))
    x = net.add("ReduceMean", net.norm(x, width), axes=[1], keepdims=0)
    x = net.dense(x, width, 64)
    return net.made("tokens", TensorProto.INT64, [length], x, 64)


def in_common(a: Plan, b: Plan) -> float:
    """Of what either plan removes, units and residual branches, the share that both remove."""
    first, second = (
        {(r.parameter, r.axes, r.use, u) for removals in plan.groups.values() for r in removals for u in r.remove}
        | {*plan.branches}
        for plan in (a, b)
    )
    return len(first & second) / max(1, len(first | second))


@dataclass
class Job:
    """One run of the whole job, what crossed between Python and sessions in it, and how long it took."""

    providers: Sequence[str]
    result: api.Result
    crossed: Crossings
    seconds: float

    @classmethod
    def of(cls, model: Any, providers: Sequence[str], args: argparse.Namespace) -> Job:
        start = time.perf_counter()
        with crossings() as crossed:
            result = api.prune(
                model, providers=providers, ratio=args.ratio, calib_samples=args.samples, calib_batch=8, fast=args.fast
            )
        return cls(providers, result, crossed, time.perf_counter() - start)

    @property
    def row(self) -> list[str]:
        """Where it ran, seconds, the proof, and what crossed."""
        proof, c = self.result.report.proof, self.crossed
        return [
            shown(proof.providers), f"{self.seconds:.1f}", f"{proof.error:.1e}", f"{proof.tolerance:.0e}",
            f"{c.read:,}", f"{c.read_bytes / 2**20:,.1f}", f"{c.given:,}", f"{c.given_bytes / 2**20:,.1f}",
        ]  # fmt: skip


def shown(providers: Sequence[str]) -> str:
    """The first provider of a session, which runs what it can."""
    return providers[0].removesuffix("ExecutionProvider")


def check(name: str, model: Any, args: argparse.Namespace, times: Table, jobs: Table) -> bool:
    """The rows of a model in both tables; whether the two agree."""
    there, here = (Job.of(model, providers, args) for providers in (args.providers, ["cpu"]))
    common = in_common(there.result.plan, here.result.plan)
    pruned = there.result.model
    working = pruned.normalised()
    sessions = [deployed(pruned, job.providers) for job in (there, here)]
    feed = latency.runnable(sessions[1], working, infer(working), 2, {})
    error = difference(*(session.run(None, feed) for session in sessions))
    macs = there.result.report.before.macs / max(1, there.result.report.after.macs)
    for batch in args.batches:
        for job in (there, here):
            found = latency.benchmark(Model.load(model), pruned, batch=batch, providers=job.providers)
            times.add_row(
                name, shown(found.providers), str(found.batch), f"{found.before.median:.3f}",
                f"{found.after.median:.3f}", f"{found.speedup:.2f}", f"{macs:.2f}",
            )  # fmt: skip
    for job in (there, here):
        jobs.add_row(name, *job.row, f"{common:.1%}", f"{error:.1e}")
    return common >= PLANS and error <= OUTPUTS


def nets(args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    if args.models:
        yield from ((path.stem, path) for path in args.models)
    else:
        yield from (("residual net", residual()), ("encoder", encoder()))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--providers", nargs="+", default=["cuda"])
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=64, help="made-up inputs for the statistics")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--fast", action="store_true", help="by weights only: no statistics on the accelerator")
    args = parser.parse_args(argv)
    tiny = Net()
    try:
        deployed(Model.load(tiny.made("x", TensorProto.FLOAT, [4], tiny.add("Relu", "x"), 4)), args.providers)
    except RuntimeFailure as error:
        print(f"gpu_check: {error.message}", file=sys.stderr)
        return error.exit_code
    times = columns("model", "on", "batch", "dense ms", "pruned ms", "faster", "MACs fewer")
    jobs = columns(
        "model", "on", "job s", "proof", "allowed", "read", "MiB", "given", "MiB", "plans in common", "outputs apart"
    )
    agree = [check(name, model, args, times, jobs) for name, model in nets(args)]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(times, "", jobs, "", sep="\n")
    print(f"allowed: {PLANS:.0%} of the plans in common at least, outputs {OUTPUTS:.0e} apart at most")
    print("the plans and the outputs agree" if all(agree) else "the plans or the outputs do not agree")
    return 0 if all(agree) else 1


def columns(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title in ("model", "on") else "right", no_wrap=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
