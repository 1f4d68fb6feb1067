"""Mutants of real files, each pruned in a fork of its own: an answer in one line, or a model that is proven."""

from __future__ import annotations

import faulthandler
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import hostile
import numpy as np
import onnx
import sandbox
from google.protobuf.message import DecodeError, EncodeError
from mutate import GRAPH, NothingToDamage
from onnx import ModelProto, ValueInfoProto
from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import written_file

BAD = ("crash", "timeout", "memory", "traceback", "internal", "unproven", "invalid", "old OUT", "litter")
RUNS, ODD, NO = 0, 1, 2


@dataclass(frozen=True)
class Mutant:
    """One damaged file in a folder of its own, and what was done to it."""

    index: int
    source: Path
    damage: tuple[str, ...]
    path: Path


@dataclass(frozen=True)
class Verdict:
    category: str
    detail: str
    seconds: float = 0.0
    peak: int = 0

    @property
    def bad(self) -> bool:
        return self.category in BAD


def make(seed: int, index: int, sources: list[Path], folder: Path, only: str = "") -> Mutant:
    """The `index`-th mutant of a seed, in `folder`; `only` names one damage."""
    rng = Random(f"{seed} {index}")
    path = folder / "mutant.onnx"
    kinds = {name: group for group in (GRAPH, hostile.FILES, hostile.BYTES) for name in group}
    while True:
        source = rng.choice(sources)
        data = source.read_bytes()
        wanted = [only] if only else rng.choices(list(kinds), k=rng.choice((1, 1, 1, 2, 3)))
        model: ModelProto | None = None
        done: list[str] = []
        for child in folder.iterdir():
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        try:
            for name in sorted(wanted, key=lambda n: (n in hostile.BYTES, n in hostile.FILES)):
                if name in hostile.BYTES:
                    data = data if model is None else model.SerializeToString()
                    found = ModelProto.FromString(data) if model is None else model
                    data = hostile.BYTES[name](rng, data, _weights(data, found))
                    model = None
                    done.append(name)
                    break
                model = ModelProto.FromString(data) if model is None else model
                if name in GRAPH:
                    GRAPH[name](rng, model)
                else:
                    hostile.FILES[name](rng, model, folder)
                done.append(name)
            path.write_bytes(data if model is None else model.SerializeToString())
        except (NothingToDamage, OSError, ValueError, IndexError, DecodeError, EncodeError):
            continue
        return Mutant(index, source, tuple(done), path)


def _weights(data: bytes, model: ModelProto) -> list[tuple[int, int]]:
    """Where the values of weights lie in a file."""
    at, out = 0, []
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= 256:
            found = data.find(tensor.raw_data, at)
            if found >= 0:
                out.append((found, found + len(tensor.raw_data)))
                at = found + len(tensor.raw_data)
    return out


def arguments(mutant: Mutant, folder: Path, slow: bool) -> list[str]:
    args = [
        str(mutant.path),
        str(folder / "out.onnx"),
        "--ratio",
        "0.3",
        "--memory",
        "1G",
        "--report",
        str(folder / "report.json"),
        "-q",
    ]
    return [*args, "--calib-samples", "16"] if slow else [*args, "--fast"]


def attempt(mutant: Mutant, args: list[str], bounds: Namespace) -> Verdict:
    """Prune it in a fork, and look at what is left."""
    from onnxprune.cli import main
    from onnxprune.guard import supervised

    def job() -> int:
        faulthandler.disable()  # a crash of native code is one line of the command
        return supervised(lambda: main(args))

    out, report = Path(args[1]), Path(args[7])
    old = b"what was here before"
    out.write_bytes(old)
    before = set(out.parent.iterdir())
    memory = int(bounds.memory * 2**30)
    ended = sandbox.run(job, out.parent.parent, bounds.seconds, memory)
    lines = ended.err.strip().splitlines()
    last = lines[-1] if lines else ""

    def verdict(category: str, detail: str = "") -> Verdict:
        return Verdict(category, detail or last[:300], ended.seconds, ended.peak)

    if ended.how == "signal":
        return verdict("crash", f"signal {ended.code}; {' '.join(lines)[:300]}")
    if ended.how in ("timeout", "memory"):
        return verdict(ended.how, f"{ended.seconds:.1f} s, {ended.peak / 2**30:.2f} GB")
    left = set(out.parent.iterdir()) - before - {report, out.with_name("out.onnx.data")}
    if left:
        return verdict("litter", ", ".join(p.name for p in left))
    if ended.code == 0:
        return verdict(*_sound(mutant, out, report, bounds))
    if out.read_bytes() != old:
        return verdict("old OUT", f"changed by a run that ended with {ended.code}")
    if (
        ended.code not in (1, 2, 3, 4)
        or len(lines) != 1
        or "Traceback" in ended.err
        or not last.startswith("onnxprune: error: ")
    ):
        return verdict("traceback", f"exit {ended.code}: {' '.join(lines)[-300:]}")
    if last.endswith("--help)"):
        raise SystemExit(f"fuzz: error: the command does not take the flags of this tool: {last}")
    if "internal error" in last:
        return verdict("internal", f"[{('runs', 'odd', 'does not run')[_runs(mutant.path, bounds)]}] {last[:300]}")
    if ended.code == 1:
        return verdict(
            ("unproven", "unproven, but not finite", "unproven, but does not run")[_runs(mutant.path, bounds)]
        )
    return verdict({2: "refused", 3: "nothing to prune", 4: "runtime failure"}[ended.code])


def _sound(mutant: Mutant, out: Path, report: Path, bounds: Namespace) -> tuple[str, str]:
    """Whether what was written loads, runs and was proven."""
    proof = json.loads(report.read_text())["proof"]
    if proof["error"] is None or not proof["error"] <= proof["tolerance"]:  # None: not finite
        return "invalid", f"the proof says {proof}"

    def look() -> int:
        try:
            print(written_file.check(mutant.path, out, None))
        except written_file.Invalid as error:
            print(error)
            return 1
        return 0

    ended = sandbox.run(look, out.parent.parent, bounds.seconds, int(bounds.memory * 2**30))
    said = ended.out.strip()
    if said.endswith("is not finite") and _overflows(mutant, bounds):
        return "proven, but it overflows", said
    if ended.how != "exit" or ended.code:
        return "invalid", f"{ended.how} {ended.code}: {said[:300]} {ended.err[-200:]}"
    return ("proven, but not run again", said) if said else ("proven", "")


def _overflows(mutant: Mutant, bounds: Namespace) -> bool:
    """Whether the damage made something infinite inside the mutant, of which its outputs may show nothing: with other
    units left they may be other infinities, and the masked original's are, too."""
    return (_runs(mutant.path, bounds, True), _runs(mutant.source, bounds, True)) == (ODD, RUNS)


def _runs(path: Path, bounds: Namespace, inside: bool = False) -> int:
    """Whether ONNX Runtime itself runs a model, and gives finite numbers; `inside`: also in every tensor on the way."""

    def look() -> int:
        try:
            session = written_file.session(_all_told(path, scratch / "inside.onnx") if inside else path)
        except Exception:
            return NO
        for feed in written_file.feeds(session, None):
            try:
                found = session.run(None, feed)
            except Exception:
                continue
            numbers = [x for x in found if isinstance(x, np.ndarray) and x.dtype.kind == "f"]
            return RUNS if all(np.isfinite(x).all() for x in numbers) else ODD
        return NO

    with tempfile.TemporaryDirectory(prefix="fuzz-") as held:
        scratch = Path(held)
        ended = sandbox.run(look, scratch, bounds.seconds, int(bounds.memory * 2**30))
    return ended.code if ended.how == "exit" and ended.code in (RUNS, ODD, NO) else NO


def _all_told(path: Path, out: Path) -> Path:
    """The model with every tensor of its graph as an output."""
    model = onnx.load(path)
    known = {o.name for o in model.graph.output}
    names = dict.fromkeys(o for n in model.graph.node for o in n.output if o and o not in known)
    model.graph.output.extend(ValueInfoProto(name=name) for name in names)
    onnx.save(model, out)
    return out


def run(args: Namespace) -> int:
    sources = sorted(p for p in args.folder.glob("*.onnx") if p.stat().st_size <= args.largest * 1e6)
    if not sources:
        print(f"fuzz: error: no .onnx file of at most {args.largest:g} MB in {args.folder}", file=sys.stderr)
        return 2
    _import_everything()
    table: Counter[tuple[str, str]] = Counter()
    start, longest, peak = time.monotonic(), 0.0, 0
    args.out.mkdir(parents=True, exist_ok=True)
    log = (args.out / "files.jsonl").open("a")
    done = 0
    for index in range(args.first, args.first + args.count):
        if time.monotonic() - start > args.limit:
            break
        with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            mutant = make(args.seed, index, sources, folder, args.only)
            command = arguments(mutant, folder, slow=index % args.slow == 0 if args.slow else False)
            verdict = attempt(mutant, command, args)
            done += 1
            longest, peak = max(longest, verdict.seconds), max(peak, verdict.peak)
            table[verdict.category, mutant.damage[0] if len(mutant.damage) == 1 else "several"] += 1
            entry = {"seed": args.seed, "index": index, "source": mutant.source.name, "damage": mutant.damage,
                     "category": verdict.category, "detail": verdict.detail, "seconds": round(verdict.seconds, 2),
                     "peak": verdict.peak}  # fmt: skip
            print(json.dumps(entry), file=log, flush=True)
            if verdict.bad:
                _keep(args.out / f"{args.seed}_{index}", mutant, command, verdict)
                what = f"{mutant.source.stem}: {'+'.join(mutant.damage)}"
                print(f"{args.seed}_{index} {verdict.category}: {what}: {verdict.detail}", flush=True)
            elif done % 100 == 0:
                print(f"{done} mutants, {time.monotonic() - start:.0f} s", flush=True)
    show(table, done, time.monotonic() - start, longest, peak)
    return int(any(category in BAD for category, _ in table))


def _keep(folder: Path, mutant: Mutant, command: list[str], verdict: Verdict) -> None:
    """The mutant, what lies beside it, and the command that shows what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in mutant.path.parent.iterdir():
        if path.is_symlink() or path.is_fifo() or path.is_dir():
            continue
        if path.name not in ("out.onnx", "report.json"):
            shutil.copy2(path, folder / path.name)
    near = [str(folder / Path(a).name) if a.startswith(str(mutant.path.parent)) else a for a in command]
    note = f"# {mutant.source.name}: {' + '.join(mutant.damage)}\n# {verdict.category}: {verdict.detail}\n"
    (folder / "command.sh").write_text(f"{note}python -m onnxprune {shlex.join(near)} --verbose\n")


def _import_everything() -> None:
    """In the parent, so that a fork begins with the work. No session is made: its threads would not survive a fork."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import onnx_graphsurgeon  # noqa: F401
    import onnxruntime  # noqa: F401

    import onnxprune.api
    import onnxprune.cli.commands.prune
    import onnxprune.planning.curves
    import onnxprune.report  # noqa: F401


def show(table: Counter[tuple[str, str]], done: int, seconds: float, longest: float, peak: int) -> None:
    console = Console(width=150)
    found = Table(box=None, header_style="bold", pad_edge=False)
    for header in ("how it ended", "mutants"):
        found.add_column(header, justify="right" if header == "mutants" else "left")
    total = Counter[str]()
    for (category, _), count in table.items():
        total[category] += count
    for category, count in total.most_common():
        found.add_row(f"[bold red]{escape(category)}[/]" if category in BAD else escape(category), str(count))
    console.print(found)
    kinds = len({damage for _, damage in table if damage != "several"})
    console.print(f"{done} mutants by {kinds} kinds of damage (and several at once), {seconds:.0f} s; "
                  f"longest {longest:.1f} s, most memory {peak / 2**30:.2f} GB")  # fmt: skip
