"""Prune, then quantise with ONNX Runtime, then compare: what the two cost together and apart.

    python tools/get_models.py CACHE
    python tools/quantise_example.py CACHE WORK --only fashion_folded ppocrv4_rec --ratio 0.3

Every network is pruned by `--ratio` of its MACs, calibrated on 512 unlabelled samples; the dense and the pruned file
are quantised to 8 bits (`quantize_static`, QDQ, layers with weights, one scale for each output channel) on the same
samples, which `onnxprune.integrations.CalibrationReader` hands on. The table has the metric of the task on other
samples, the size of the file, and the time of one run of one sample, measured in turns with the dense file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onnxruntime.quantization import quantize_static
from rich.console import Console
from rich.table import Table

import onnxprune
from onnxprune.integrations import CalibrationReader
from onnxprune.measure import benchmark
from onnxprune.model import Model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.tasks import Task, batches, run, tasks

SAMPLES = 512
LAYERS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
"""What is quantised. Of InstanceNormalization ONNX Runtime's quantiser makes what the runtime does not run (1.31)."""


def quantised(path: Path, out: Path, task: Task, seed: int) -> Path:
    """The 8-bit file of a model."""
    feeds = list(batches(task, task.inputs("calib", SAMPLES, seed), 32))
    reader = CalibrationReader(path, feeds, calib_samples=SAMPLES)
    quantize_static(path, out, reader, per_channel=True, op_types_to_quantize=LAYERS)
    return out


def files(task: Task, args: argparse.Namespace) -> dict[str, Path]:
    """The dense model and what was made of it."""
    pruned = args.work / f"{task.name}.pruned.onnx"
    calib = list(batches(task, task.inputs("calib", SAMPLES, args.seed), 32))
    result = onnxprune.prune(task.model, ratio=args.ratio, of="macs", calib=calib, seed=args.seed)
    result.save(pruned)
    return {
        "dense": task.model,
        "pruned": pruned,
        "dense, 8 bits": quantised(task.model, args.work / f"{task.name}.int8.onnx", task, args.seed),
        "pruned, 8 bits": quantised(pruned, args.work / f"{task.name}.pruned.int8.onnx", task, args.seed),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="+", metavar="TASK", default=["fashion_folded", "ppocrv4_rec"])
    parser.add_argument("--ratio", type=float, default=0.3, help="share of the MACs that goes")
    parser.add_argument("--items", type=int, help="test items (default: the task's own number)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    there = tasks(args.cache)
    if unknown := sorted(set(args.only) - set(there)):
        print(f"quantise_example: not there: {', '.join(unknown)}; run tools/get_models.py first", file=sys.stderr)
        return 2
    args.work.mkdir(parents=True, exist_ok=True)
    table = Table("network (metric, items)", "file", box=None, pad_edge=False)
    for column in ("metric", "kB", "ms", "times faster"):
        table.add_column(column, justify="right")
    for task in (there[name] for name in args.only):
        feeds, labels = task.labelled(args.items or task.items, args.seed)
        for name, path in files(task, args).items():
            scores = task.score(run(task, path, feeds, 32), labels)
            timed = benchmark(Model.load(task.model), Model.load(path), threads=1)
            head = f"{task.name} ({task.metric}, {len(scores)})" if name == "dense" else ""
            table.add_row(head, name, f"{100 * scores.mean():.2f}", f"{path.stat().st_size / 1e3:,.0f}",
                          f"{timed.after.median:.2f}", f"{timed.speedup:.2f}")  # fmt: skip
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
