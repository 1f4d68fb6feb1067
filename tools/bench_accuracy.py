"""What pruning costs in accuracy: trained models x methods x cuts x seeds, each on its own labelled data.

    python tools/get_models.py CACHE
    python tools/train_small.py CACHE
    python tools/bench_accuracy.py CACHE --json RESULTS [--only TASK...] [--methods ...] [--cuts 0.3 0.5]

A cut is the share of the MACs that goes. Methods: `random` and `l2` (weights only, the same share everywhere, nothing
refitted: the baselines), `merge` and `fold` (l2, in weight space), `data-free` (the default of the command line),
`calibrated` (the default with 512 unlabelled samples of the training side). Where chance decides (`random`,
`data-free`) every seed is run, elsewhere the first: a seed is also which test and calibration samples are taken.

Every row is made by a process of its own, and pruned by another one, which is given the model's path and the samples
and says how much CPU time and memory that took.
Rows are kept one by one, and those that are in RESULTS are not made again: go on by giving the same command. The table
shows the drop in points of the task's metric, as mean and half the range over seeds.

Half of the tasks are set aside: they are run, and shown, only with `--aside`, when everything is done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.tasks import Task, batches, run, tasks

Row = dict[str, Any]
METHODS: dict[str, dict[str, Any]] = {
    "random": {"fast": True, "criterion": "random"},
    "l2": {"fast": True},
    "merge": {"fast": True, "reconstruct": "merge"},
    "fold": {"fast": True, "reconstruct": "fold"},
    "data-free": {},
    "calibrated": {"calib": True},
    "uniform": {"calib": True, "scope": "local"},
}
BY_CHANCE = {"random", "data-free"}
"""Methods whose result depends on the seed much more than on which samples are taken."""
KEEP = {"silero_vad": ["/model/stft/Conv"]}
"""Fixed transforms that `onnxprune inspect` points out: the user keeps them."""


def main() -> int:
    args = parse()
    there = {name: task for name, task in tasks(args.cache).items() if task.aside == args.aside}
    chosen = args.only or list(there)
    if unknown := sorted(set(chosen) - set(there)):
        print(f"bench_accuracy: not there: {', '.join(unknown)}; run tools/get_models.py and tools/train_small.py, and "
              "give --aside for those that are set aside", file=sys.stderr)  # fmt: skip
        return 2
    rows: list[Row] = json.loads(args.json.read_text()) if args.json.exists() else []
    done = {key(row) for row in rows}
    for wanted in asked(chosen, args):
        if key(wanted) not in done:
            rows.append(alone(made, args.cache, wanted, args.items))
            part = args.json.with_suffix(".part")
            part.write_text(json.dumps(rows, indent=1))
            part.replace(args.json)
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "report"}), file=sys.stderr, flush=True)
    show([r for r in rows if r["task"] in chosen and r["method"] in ("dense", *args.methods)], there)
    return 0


def key(row: Row) -> tuple[Any, ...]:
    return row["task"], row["method"], row["cut"], row["seed"]


def asked(chosen: Sequence[str], args: argparse.Namespace) -> Iterator[Row]:
    """The rows that are to be there, those that say most of all tasks first."""
    for method, cut in [("dense", 0.0), *product(args.methods, args.cuts)]:
        for name, seed in product(chosen, args.seeds):
            if method in BY_CHANCE or seed == args.seeds[0] or method == "dense":
                yield {"task": name, "method": method, "cut": cut, "seed": seed}


def alone(function: Callable[..., Row], *given: Any) -> Row:
    """What a function gives, called in a process that ends with it, so that peaks of memory are its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def made(cache: Path, wanted: Row, items: int | None) -> Row:
    """Prune, save, score."""
    task = tasks(cache)[wanted["task"]]
    row = {**wanted, "metric": task.metric, "kind": task.kind}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pruned.onnx"
        found = {} if wanted["method"] == "dense" else pruned(task, wanted, out)
        if "error" in found:
            return row | found
        feeds, labels = task.labelled(items or task.items, wanted["seed"])
        scores = task.score(run(task, task.model if wanted["method"] == "dense" else out, feeds, 32), labels)
    return {**row, "score": float(np.mean(scores)), "items": len(scores), **found}


def pruned(task: Task, wanted: Row, out: Path) -> Row:
    """What the run took and left; the file is in `out`."""
    seed = wanted["seed"]
    options = {"ratio": wanted["cut"], "of": "macs", "seed": seed, "nodes_to_exclude": KEEP.get(task.name, ())}
    options |= METHODS[wanted["method"]]
    if options.pop("calib", False):
        options["calib"] = list(batches(task, task.inputs("calib", 512, seed), 32))
    return alone(written, task.model, options, out)


def written(model: Path, options: dict[str, Any], out: Path) -> Row:
    """Prune and save; memory is the peak of this process, which has loaded nothing else."""
    import onnxprune
    from onnxprune.errors import OnnxPruneError

    start, cpu = time.perf_counter(), time.process_time()
    try:
        result = onnxprune.prune(model, **options)
    except OnnxPruneError as error:
        return {"error": str(error)}
    report = result.report
    result.model.save(out)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    return {
        "seconds": round(time.perf_counter() - start, 1), "cpu": round(time.process_time() - cpu, 1),
        "peak_mb": peak >> 10,
        "macs": report.after.macs / report.before.macs,
        "parameters": report.after.parameters / report.before.parameters, "report": report.reconstruction,
    }  # fmt: skip


def show(rows: list[Row], there: dict[str, Task]) -> None:
    """Two tables: every task by method and cut, and the methods over all tasks."""
    dense = {(r["task"], r["seed"]): r["score"] for r in rows if r["method"] == "dense"}
    table = Table("task", "kind", "metric", "dense", "method", "cut", box=None, pad_edge=False)
    for column in ("MACs", "drop", "+-", "seeds", "CPU s", "MB", "below l2"):
        table.add_column(column, justify="right")
    together: dict[tuple[str, float], list[float]] = {}
    scores = {key(r): r["score"] for r in rows if "score" in r}

    def place(r: Row) -> tuple[Any, ...]:
        return list(there).index(r["task"]), r["cut"], list(METHODS).index(r["method"])

    for _, group in groupby(sorted((r for r in rows if r["method"] != "dense"), key=place), key=place):
        runs = list(group)
        r, good = runs[0], [x for x in runs if "score" in x]
        head = (r["task"], there[r["task"]].kind, r["metric"])
        if not good:
            table.add_row(*head, "", r["method"], f"{r['cut']:g}", "", runs[0]["error"][:40])
            continue
        drops = [100 * (dense[x["task"], x["seed"]] - x["score"]) for x in good]
        together.setdefault((r["method"], r["cut"]), []).append(float(np.mean(drops)))
        l2 = [scores.get((r["task"], "l2", r["cut"], x["seed"])) for x in good]
        below = sum(b is not None and x["score"] < b for x, b in zip(good, l2, strict=True))
        table.add_row(
            *head, f"{100 * dense[r['task'], good[0]['seed']]:.1f}", r["method"], f"{r['cut']:g}",
            f"{mean(good, 'macs'):.3f}", f"{np.mean(drops):.2f}", f"{np.ptp(drops) / 2:.2f}" if len(good) > 1 else "",
            str(len(good)), f"{mean(good, 'cpu'):.0f}", f"{mean(good, 'peak_mb'):.0f}", str(below) if below else "",
        )  # fmt: skip
    whole = Table("method", "cut", "tasks", "median drop", "mean", "worst", box=None, pad_edge=False)
    for (method, cut), drops in sorted(together.items(), key=lambda x: (x[0][1], list(METHODS).index(x[0][0]))):
        whole.add_row(method, f"{cut:g}", str(len(drops)), *(f"{f(drops):.2f}" for f in (np.median, np.mean, np.max)))
    console = Console()
    console.width = max(console.width, 150)
    console.print(table, "", whole)


def mean(rows: list[Row], what: str) -> float:
    return float(np.mean([r[what] for r in rows]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="+", metavar="TASK")
    parser.add_argument("--aside", action="store_true", help="those that are set aside, and no others")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["random", "l2", "data-free", "calibrated"])
    parser.add_argument("--cuts", nargs="+", type=float, default=[0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--items", type=int, help="test items (default: the task's own number)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
