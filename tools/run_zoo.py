"""Prune every model of a folder at given ratios, scopes and criteria, and check each written file independently.

    python tools/run_zoo.py FOLDER --ratio 0.3 0.5 --scope local global --jobs 2

Each model is pruned in a worker process, so that a crash or a hang is one row of the table and not the end. What
comes back is not taken on trust: the written file must pass onnx.checker and give outputs of the original's shapes in
ONNX Runtime. Inputs are random, or `INPUTS/<model>.npz` (keys = input names) where a model needs particular ones.
Exit code 1 if any model is invalid, unproven or ends in a traceback.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from written_file import Invalid, check, runs

BAD = ("UNPROVEN", "INVALID", "TRACEBACK")
SAMPLES = 32
"""Calibration samples of a run that refits: enough to exercise everything."""
REASONS = 8
"""Reasons why units stay that a row lists, those of the most units first."""
STYLE = {"ok": "green", "refused": "yellow"} | dict.fromkeys(BAD, "bold red")
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Task:
    path: Path
    inputs: Path | None
    ratio: float
    scope: str
    criterion: str
    residual: bool


@dataclass(frozen=True)
class Row:
    file: str
    ratio: float
    scope: str
    criterion: str
    status: str
    detail: str = ""
    parameters: float | None = None
    macs: float | None = None
    error: float | None = None
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    stays: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, status: str, detail: object = "", **rest: Any) -> Row:
        return cls(task.path.name, task.ratio, task.scope, task.criterion, status, str(detail), **rest)


# ---- in the worker process


def prune(task: Task) -> Row:
    start = time.perf_counter()
    try:
        return attempt(task)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Row.of(task, "TRACEBACK", " ".join(text.split())[:300], seconds=time.perf_counter() - start)


def attempt(task: Task) -> Row:
    import onnxprune
    from onnxprune import errors

    start = time.perf_counter()
    plain = {} if task.criterion == "obs" else {"fast": True}
    try:
        result = onnxprune.prune(
            task.path, ratio=task.ratio, scope=task.scope, criterion=task.criterion, heads=True,
            residual="all" if task.residual else "conv", calib_samples=SAMPLES, **plain,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / task.path.name
            result.model.save(out)
            note = check(task.path, out, task.inputs)
    except (errors.NothingToPrune, errors.UsageError) as error:
        return Row.of(task, "refused", error, seconds=time.perf_counter() - start)
    except errors.CheckFailed as error:
        return Row.of(task, "UNPROVEN", error, seconds=time.perf_counter() - start)
    except errors.RuntimeFailure as error:
        status = "INVALID" if runs(task.path) else "refused"
        return Row.of(task, status, error, seconds=time.perf_counter() - start)
    except Invalid as error:
        return Row.of(task, "INVALID", error, seconds=time.perf_counter() - start)
    report = result.report
    stays: Counter[str] = Counter()
    for axis in report.frozen:
        stays[f"{axis.op_type}: {axis.reason}"] += axis.units
    return Row.of(
        task, "ok", note, seconds=seconds, stages=dict(report.seconds), error=report.proof.error,
        stays=dict(stays.most_common(REASONS)),
        parameters=report.after.parameters / max(report.before.parameters, 1),
        macs=report.after.macs / max(report.before.macs, 1),
    )  # fmt: skip


def serve(connection: Connection) -> None:
    while task := connection.recv():
        connection.send(prune(task))


# ---- in the parent process


class Worker:
    """A process that prunes one model after another; it is replaced when it dies or hangs."""

    def __init__(self) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, task: Task, timeout: float) -> Row | None:
        """The result, or None when the process hung or died; `self.exitcode` is then None or the exit code."""
        self.connection.send(task)
        try:
            return self.connection.recv() if self.connection.poll(timeout) else None
        except (EOFError, ConnectionError):
            self.process.join()
            return None

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Pool:
    def __init__(self, jobs: int, timeout: float) -> None:
        self.timeout = timeout
        self.free: SimpleQueue[Worker | None] = SimpleQueue()
        for _ in range(jobs):
            self.free.put(None)

    def run(self, task: Task) -> Row:
        start = time.perf_counter()
        worker = self.free.get() or Worker()
        row = worker.run(task, self.timeout)
        if row is None:
            code = worker.process.exitcode
            why = f"no answer within {self.timeout:g} s" if code is None else f"the process died (exit code {code})"
            worker.close()
            row = Row.of(task, "TRACEBACK", why, seconds=time.perf_counter() - start)
            self.free.put(None)
        else:
            self.free.put(worker)
        return row

    def close(self) -> None:
        while not self.free.empty():
            if worker := self.free.get():
                worker.close()


def share(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def print_rows(console: Console, rows: list[Row], several: bool) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in ("file", "ratio", "scope", *(["criterion"] if several else []), "status"):
        table.add_column(header, overflow="fold")
    for header in ("params", "MACs", "error", "s"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        status = f"[{STYLE[row.status]}]{row.status}[/]" + (f": {escape(row.detail)}" if row.detail else "")
        error = "" if row.error is None else f"{row.error:.1e}"
        what = (row.file, f"{row.ratio:g}", row.scope, *([row.criterion] if several else []))
        table.add_row(*what, status, share(row.parameters), share(row.macs), error, f"{row.seconds:.2f}")
    console.print(table)


def print_summary(console: Console, rows: list[Row]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in ("ratio", "scope", "criterion", "ok", "refused", *BAD):
        table.add_column(header)
    for header in ("median params", "median MACs", "largest error", "median s"):
        table.add_column(header, justify="right")
    for key in sorted({(r.ratio, r.scope, r.criterion) for r in rows}, key=lambda k: (k[2], k[0], k[1] != "local")):
        part = [r for r in rows if (r.ratio, r.scope, r.criterion) == key]
        good = [r for r in part if r.status == "ok"]
        count = Counter(r.status for r in part)
        numbers = ("", "", "", "")
        if good:
            numbers = (
                share(statistics.median(r.parameters for r in good if r.parameters is not None)),
                share(statistics.median(r.macs for r in good if r.macs is not None)),
                f"{max(r.error for r in good if r.error is not None):.1e}",
                f"{statistics.median(r.seconds for r in good):.2f}",
            )
        counts = (str(count[status]) for status in ("ok", "refused", *BAD))
        table.add_row(f"{key[0]:g}", key[1], key[2], *counts, *numbers)
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.3])
    parser.add_argument("--scope", nargs="+", choices=("local", "global", "sensitivity"), default=["local"])
    parser.add_argument("--criterion", nargs="+", default=["l2"], help="obs: with refitting; others: weights only")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (2)")
    parser.add_argument("--filter", default="*", metavar="GLOB", help="only the files whose name matches")
    parser.add_argument("--inputs", type=Path, help="folder of <model>.npz (default: FOLDER/../inputs where it exists)")
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="seconds for one model (300)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as well")
    parser.add_argument("-q", "--quiet", action="store_true", help="no rows for models that end ok")
    policy = parser.add_mutually_exclusive_group()
    everything = "allow everything prunable, the residual width of transformers too (the default)"
    policy.add_argument("--everything", dest="residual", action="store_true", default=True, help=everything)
    policy.add_argument("--default-policy", dest="residual", action="store_false", help="what the command line allows")
    return parser.parse_args()


def main() -> int:
    args = parse()
    files = sorted(p for p in args.folder.glob(args.filter) if p.suffix == ".onnx")
    if not files:
        print(f"run_zoo: error: no .onnx file in {args.folder} matches {args.filter}", file=sys.stderr)
        return 2
    if importlib.util.find_spec("onnxprune") is None:
        print("run_zoo: error: onnxprune is not installed here; run `pip install -e .`", file=sys.stderr)
        return 2
    inputs = args.inputs or args.folder.resolve().parent / "inputs"
    tasks = []
    for path, criterion, ratio, scope in product(files, args.criterion, args.ratio, args.scope):
        feed = inputs / f"{path.stem}.npz"
        tasks.append(Task(path, feed if feed.is_file() else None, ratio, scope, criterion, args.residual))
    console, pool = Console(), Pool(args.jobs, args.timeout)
    console.width = max(console.width, 150)
    rows: list[Row] = []
    with ThreadPoolExecutor(args.jobs) as threads, Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("pruning", total=len(tasks))
        for row in threads.map(pool.run, tasks):
            rows.append(replace(row, detail=row.detail.replace("\n", " ")))
            progress.advance(bar)
    pool.close()
    print_rows(console, [r for r in rows if not args.quiet or r.status != "ok" or r.detail], len(args.criterion) > 1)
    print_summary(console, rows)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(any(row.status in BAD for row in rows))


if __name__ == "__main__":
    sys.exit(main())
