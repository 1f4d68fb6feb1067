"""What pruning costs in accuracy: trained models x methods x cuts, each on its own labelled data.

    python tools/get_models.py CACHE
    python tools/bench_accuracy.py CACHE --json RESULTS [--only TASK...] [--methods ...] [--cuts 0.3 0.5] [--seeds 0 1]

A cut is the share of the MACs that goes. Methods: `random` and `l2` (weights only, the same share everywhere, nothing
refitted: the baselines), `merge` (l2, merged in weight space), `data-free` (the default of the command line),
`calibrated` (the default with 512 unlabelled samples of the training side). Results are kept after every run, and what
is in RESULTS already is not run again. The table shows the drop in points of the task's metric.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.tasks import Task, batches, run, tasks

METHODS: dict[str, dict[str, Any]] = {
    "random": {"fast": True, "criterion": "random"},
    "l2": {"fast": True},
    "merge": {"fast": True, "reconstruct": "merge"},
    "data-free": {},
    "calibrated": {"calib": True},
    "uniform": {"calib": True, "scope": "local"},
}
KEEP = {"silero_vad": ["/model/stft/Conv"]}
"""Fixed transforms that `onnxprune inspect` points out: the user keeps them."""


def main() -> int:
    args = parse()
    there = tasks(args.cache)
    chosen = args.only or list(there)
    if unknown := sorted(set(chosen) - set(there)):
        print(f"bench_accuracy: not there: {', '.join(unknown)}; run tools/get_models.py", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = json.loads(args.json.read_text()) if args.json.exists() else []
    done = {key(row) for row in rows}
    for name, seed in product(chosen, args.seeds):
        for row in measured(there[name], seed, args, done):
            rows.append(row)
            args.json.write_text(json.dumps(rows, indent=1))
            print(json.dumps({k: v for k, v in row.items() if k != "report"}), file=sys.stderr, flush=True)
    show([r for r in rows if r["task"] in chosen])
    return 0


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["method"], row["cut"], row["seed"]


def measured(task: Task, seed: int, args: argparse.Namespace, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """A row for every run that is still to be made."""
    wanted = [("dense", 0.0), *product(args.methods, args.cuts)]
    if all((task.name, method, cut, seed) in done for method, cut in wanted):
        return
    feeds, labels = task.labelled(args.items or task.items, seed)
    for method, cut in wanted:
        if (task.name, method, cut, seed) not in done:
            row = {"task": task.name, "method": method, "cut": cut, "seed": seed, "metric": task.metric}
            with tempfile.TemporaryDirectory() as folder:
                yield row | one(task, method, cut, seed, feeds, labels, Path(folder) / "pruned.onnx")


def one(task: Task, method: str, cut: float, seed: int, feeds: Any, labels: Any, out: Path) -> dict[str, Any]:
    """Prune, save, score."""
    import onnxprune
    from onnxprune.errors import OnnxPruneError

    found: dict[str, Any] = {}
    model = task.model
    if method != "dense":
        options = {"ratio": cut, "of": "macs", "seed": seed, "nodes_to_exclude": KEEP.get(task.name, ())}
        options |= METHODS[method]
        if options.pop("calib", False):
            options["calib"] = list(batches(task, task.inputs("calib", 512, seed), 32))
        start, cpu = time.perf_counter(), time.process_time()
        try:
            result = onnxprune.prune(model, **options)
        except OnnxPruneError as error:
            return {"error": str(error)}
        report = result.report
        found = {
            "seconds": round(time.perf_counter() - start, 1), "cpu": round(time.process_time() - cpu, 1),
            "macs": report.after.macs / report.before.macs,
            "parameters": report.after.parameters / report.before.parameters, "report": report.reconstruction,
        }  # fmt: skip
        result.model.save(out)
        model = out
    scores = task.score(run(task, model, feeds, 32), labels)
    return {"score": float(np.mean(scores)), "items": len(scores)} | found


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("task", "metric", "items", "seed", "dense", "method", "cut", "MACs", "params", "score", "drop", "s"):
        table.add_column(column)
    dense = {(r["task"], r["seed"]): r["score"] for r in rows if r["method"] == "dense"}
    for r in rows:
        if r["method"] == "dense":
            continue
        base = dense[r["task"], r["seed"]]
        numbers = ["", "", r["error"], "", ""] if "error" in r else [
            f"{r['macs']:.3f}", f"{r['parameters']:.3f}", f"{100 * r['score']:.2f}", f"{100 * (base - r['score']):.2f}",
            f"{r['seconds']:.0f}",
        ]  # fmt: skip
        table.add_row(r["task"], r["metric"], str(r.get("items", "")), str(r["seed"]), f"{100 * base:.2f}", r["method"],
                      f"{r['cut']:g}", *numbers)  # fmt: skip
    console = Console()
    console.width = max(console.width, 140)
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="+", metavar="TASK")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["random", "l2", "data-free", "calibrated"])
    parser.add_argument("--cuts", nargs="+", type=float, default=[0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--items", type=int, help="test items (default: the task's own number)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
