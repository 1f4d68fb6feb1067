"""Measure the dense model of every task: `python -m tools.tasks CACHE [--only NAME...]`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import Task, run, tasks


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.tasks", description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    there = tasks(args.cache)
    if unknown := sorted(set(args.only or []) - set(there)):
        print(f"tasks: not there: {', '.join(unknown)}; there are {', '.join(there) or 'none'}", file=sys.stderr)
        return 1
    try:
        measure(there, args)
    except ImportError as error:
        print(f"tasks: {error}: pip install 'onnxprune[bench]'", file=sys.stderr)
        return 1
    return 0


def measure(there: dict[str, Task], args: argparse.Namespace) -> None:
    table = Table("task", "metric", box=None, header_style="bold", pad_edge=False)
    for header in ("base", "items", "seconds"):
        table.add_column(header, justify="right")
    for name in args.only or there:
        task, start = there[name], time.perf_counter()
        feeds, labels = task.labelled(task.items, args.seed)
        scores = task.score(run(task, task.model, feeds, args.batch), labels)
        seconds = time.perf_counter() - start
        table.add_row(name, task.metric, f"{scores.mean():.4f}", str(len(scores)), f"{seconds:.1f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
