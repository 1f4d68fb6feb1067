"""Export the architectures of torchvision, timm and transformers at real sizes, with both exporters of torch.

    python tools/export_zoo.py OUT --prune --table tools/zoo_at_large.md

Needs torch, torchvision, timm and transformers; weights are random and nothing is downloaded. Every export is a
process of its own with bounds on time and memory, and a row of OUT/index.csv; what has a row is not made again.
`--prune` prunes each file as `run_zoo.py` does (`--fast`, default policy), adds the rows to OUT/rows.jsonl and deletes
the file where every row is ok, so that the disk does not fill. `--table` writes all rows as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import onnxruntime
from run_zoo import BAD, Row, Task, Worker

EXPORTERS = ("torchscript", "dynamo")
OPSET = 17
"""Of the TorchScript exporter; the other one chooses its own."""
WHY = 200
"""Characters of an error that are kept."""
LIBRARIES = ("torch", "torchvision", "timm", "transformers")
HEAD = """# Architectures at their real sizes

Random weights, exported by both exporters of torch and pruned by `tools/export_zoo.py` (`--fast`, default policy: heads
go, the residual width of transformers stays). Share of the parameters kept at a ratio of 0.3 and 0.5, and the seconds
of the second, with the proof, on one core. A large table of tokens is most of a small language model and stays whole.
"""


@dataclass
class Export:
    """A row of the index. `seconds` are those of the export, with building the module."""

    name: str
    source: str
    exporter: str
    opset: int = 0
    parameters: int = 0
    seconds: float = 0.0
    file: str = ""
    error: str = ""
    note: str = ""


# ---- in the child process


def child(key: str, exporter: str, path: str, connection: Connection) -> None:
    """Send {opset, parameters} or {error}."""
    try:
        connection.send(export(key, exporter, Path(path)))
    except Exception as error:
        if os.environ.get("EXPORT_ZOO_TRACE"):
            traceback.print_exc()
        connection.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:WHY]}"})


def export(key: str, exporter: str, path: Path) -> dict[str, Any]:
    import onnx
    import torch
    from bench_rivals import randomise
    from zoo_catalogue import catalogue

    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # has no ONNX form
    model, inputs = catalogue()[key].build()
    model.eval().requires_grad_(False)
    randomise(model)
    given, names = tuple(inputs.values()), list(inputs)
    if exporter == "dynamo":
        torch.onnx.export(model, given, str(path), dynamo=True, input_names=names, external_data=False, verbose=False)
    else:
        dynamic = {name: {0: "batch"} for name, value in inputs.items() if len(value) == 1}
        torch.onnx.export(
            model, given, str(path), dynamo=False, input_names=names, dynamic_axes=dynamic, opset_version=OPSET
        )
    written = onnx.load(path, load_external_data=False)
    opset = next(o.version for o in written.opset_import if o.domain in ("", "ai.onnx"))
    return {"opset": opset, "parameters": sum(math.prod(t.dims) for t in written.graph.initializer)}


# ---- in the parent process


def spawn(key: str, exporter: str, path: Path, timeout: float) -> dict[str, Any]:
    """The child is a fork of a process that has imported the libraries once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo_catalogue"])
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(key, exporter, str(path), theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv() if ours.poll(timeout) else {"error": f"no answer within {timeout:g} s"}
    except EOFError:
        process.join()
        found = {"error": f"the process died (exit code {process.exitcode})"}
    process.kill()
    process.join()
    return found


class Folder:
    """What is done so far: the index, and the rows of pruning."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.index, self.rows = path, path / "index.csv", path / "rows.jsonl"

    def exports(self) -> dict[tuple[str, str, str], Export]:
        """The last row of each export."""
        if not self.index.exists():
            return {}
        with self.index.open(newline="") as file:
            kinds = {"opset": int, "parameters": int, "seconds": float}
            rows = [Export(**{k: kinds.get(k, str)(v) for k, v in row.items()}) for row in csv.DictReader(file)]
        return {(r.source, r.name, r.exporter): r for r in rows}

    def pruned(self) -> dict[tuple[str, float], Row]:
        """By file and ratio, the last row of each."""
        lines = self.rows.read_text().splitlines() if self.rows.exists() else []
        rows = [Row(**json.loads(line)) for line in lines]
        return {(r.file, r.ratio): r for r in rows}

    def add(self, export: Export) -> None:
        first = not self.index.exists()
        with self.index.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(export)))
            if first:
                writer.writeheader()
            writer.writerow(asdict(export))

    def add_row(self, row: Row) -> None:
        with self.rows.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


class Pruner:
    """One worker of run_zoo; a new one after a model that hung or killed it."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self.worker = timeout, Worker()

    def run(self, path: Path, ratio: float) -> Row:
        task = Task(path, None, ratio, "local", "l2", residual=False)
        start = time.perf_counter()
        row = self.worker.run(task, self.timeout)
        if row is None:
            code = self.worker.process.exitcode
            self.worker.close()
            self.worker = Worker()
            why = f"no answer within {self.timeout:g} s" if code is None else f"the process died (exit code {code})"
            row = Row.of(task, "TRACEBACK", why, seconds=time.perf_counter() - start)
        return row


def file_name(export: Export) -> str:
    return f"{export.source}__{export.name}__{export.exporter}.onnx"


def work(folder: Folder, wanted: Iterator[Export], args: argparse.Namespace) -> None:
    pruner = Pruner(args.timeout) if args.prune else None
    done, rows = folder.exports(), folder.pruned()
    for item in wanted:
        path = folder.path / file_name(item)
        old = done.get((item.source, item.name, item.exporter))
        missing = [r for r in args.ratio if args.again or (path.name, r) not in rows] if pruner else []
        if old and (not args.retry if old.error else not missing):
            continue
        if not old or not path.exists():
            start = time.perf_counter()
            found = spawn(f"{item.source}/{item.name}", item.exporter, path, args.timeout)
            item.seconds = round(time.perf_counter() - start, 1)
            item.opset, item.parameters = found.get("opset", 0), found.get("parameters", 0)
            item.error = found.get("error", "")
            item.file = "" if item.error else path.name
            folder.add(item)
            size = item.error or f"{path.stat().st_size >> 20} MiB"
            say(item.source, item.name, item.exporter, f"{item.seconds:.1f} s", size)
            if item.error:
                path.unlink(missing_ok=True)
                continue
        good = True
        for ratio in missing if pruner else []:
            row = pruner.run(path, ratio)
            folder.add_row(row)
            good &= row.status == "ok"
            say(f"    {ratio:g}", row.status, f"kept {row.parameters or 0:.3f}", f"{row.seconds:.1f} s", row.detail)
        if pruner and good and not args.keep:
            path.unlink()
    if pruner:
        pruner.worker.close()


def say(*words: str) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


# ---- the table


def kept(row: Row | None) -> str:
    return "-" if row is None else f"{row.parameters:.3f}" if row.parameters is not None else row.status


def table(folder: Folder) -> str:
    exports, rows = folder.exports(), folder.pruned()
    names = list(dict.fromkeys((source, name) for source, name, _ in exports))
    columns = " | ".join(f"{e}: 0.3 | 0.5 | s" for e in EXPORTERS)
    lines = [
        f"| architecture | source | parameters, M | {columns} | remark |",
        "|---|---|" + "---:|" * 7 + "---|",
    ]
    used: list[Row] = []
    for source, name in names:
        cells, remarks, size, told = [], [], 0, dict[str, list[str]]()
        for exporter in EXPORTERS:
            export = exports.get((source, name, exporter))
            if export is None or export.error:
                cells += ["-"] * 3
                remarks += [f"not exported by {exporter}"] if export else []
                continue
            size, note = size or export.parameters, export.note
            remarks += [note] if note and note not in remarks else []
            both = [rows.get((export.file, ratio)) for ratio in (0.3, 0.5)]
            used += [row for row in both if row]
            cells += [*map(kept, both), "-" if both[1] is None else f"{both[1].seconds:.1f}"]
            for why in [r.detail for r in both if r and r.detail][-1:]:
                told.setdefault(why, []).append(exporter)
        remarks += [f"{' and '.join(by)}: {why}" for why, by in told.items()]
        if any(c != "-" for c in cells):
            text = "; ".join(remarks).replace("|", "/")
            lines.append(f"| {name} | {source} | {size / 1e6:.1f} | {' | '.join(cells)} | {text} |")
    versions = ", ".join(
        [*(f"{name} {version(name)}" for name in LIBRARIES), f"ONNX Runtime {onnxruntime.__version__}"]
    )
    items = [*summary(exports, used), f"Made with {versions}."]
    return "\n".join([HEAD, *(f"- {item}" for item in items), "", *lines, ""])


def summary(exports: dict[tuple[str, str, str], Export], rows: list[Row]) -> list[str]:
    good = {key for key, e in exports.items() if not e.error}
    both = sum({(s, n, e) for e in EXPORTERS} <= good for s, n in {k[:2] for k in good})
    out = [
        f"{len({k[:2] for k in good})} architectures, {len(good)} files ({both} architectures with both exporters; "
        f"{len(exports) - len(good)} times an exporter failed)."
    ]
    for ratio in sorted({r.ratio for r in rows}):
        part = [r for r in rows if r.ratio == ratio]
        count = Counter(r.status for r in part)
        shares = [r.parameters for r in part if r.parameters is not None]
        counts = ", ".join(f"{count[s]} {s.lower()}" for s in ("ok", "refused", *BAD))
        out.append(
            f"Ratio {ratio:g}: {counts}; median share of the parameters kept {statistics.median(shares):.3f}, "
            f"median time {statistics.median(r.seconds for r in part):.1f} s."
        )
    return out


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the index and the files; made where needed")
    parser.add_argument("--filter", nargs="+", default=["*"], metavar="GLOB", help="only these, as source/name")
    parser.add_argument("--exporter", nargs="+", choices=EXPORTERS, default=list(EXPORTERS))
    parser.add_argument("--prune", action="store_true", help="prune each file and delete it where that went well")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--keep", action="store_true", help="delete no file")
    parser.add_argument("--again", action="store_true", help="prune once more what was pruned already")
    parser.add_argument("--retry", action="store_true", help="export once more what could not be exported")
    parser.add_argument("--status", nargs="+", metavar="S", help="only files with such a row, such as UNPROVEN")
    parser.add_argument("--timeout", type=float, default=240, metavar="S", help="seconds of each step (240)")
    parser.add_argument("--memory", type=float, default=8, metavar="GIB", help="of each process (8)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write all rows as Markdown")
    parser.add_argument("--only-table", action="store_true", help="export and prune nothing")
    parser.add_argument("--tvstub", type=Path, metavar="FOLDER", help="imports FOLDER/tvstub.py before torchvision")
    return parser.parse_args()


def main() -> int:
    args = parse()
    here = str(Path(__file__).resolve().parent)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    if args.tvstub:
        os.environ["TVSTUB"] = str(args.tvstub.resolve())
    folder = Folder(args.out)
    if not args.only_table:
        bytes_ = int(args.memory * (1 << 30))
        resource.setrlimit(resource.RLIMIT_DATA, (bytes_, bytes_))  # the child processes inherit it
        work(folder, wanted(folder, args), args)
    text = table(folder)
    if args.table:
        args.table.write_text(text)
    print(text.split("\n\n")[2])
    return int(any(row.status in BAD for row in folder.pruned().values()))


def wanted(folder: Folder, args: argparse.Namespace) -> Iterator[Export]:
    from zoo_catalogue import catalogue

    marked = {file for (file, _), row in folder.pruned().items() if args.status and row.status in args.status}
    for key, entry in catalogue().items():
        if any(fnmatch.fnmatch(key, pattern) for pattern in args.filter):
            for exporter in args.exporter:
                export = Export(entry.name, entry.source, exporter, note=entry.note)
                if not args.status or file_name(export) in marked:
                    yield export


if __name__ == "__main__":
    sys.exit(main())
