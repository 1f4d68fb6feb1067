"""End the command while it writes: kill -9 and Ctrl-C at random moments, a full disk. What was there stays whole."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

WAYS = {"one file": [], "external data": ["--save-as-external-data"]}
WRITER = """
import sys, time
from onnxprune.model import Model
old, new = (Model.load(sys.argv[k]) for k in (1, 2))
print("ready", flush=True)
for k in range(10**6):
    (new, old)[k % 2].save(sys.argv[3], external=sys.argv[4] == "external data")
"""


def model(seed: int, width: int = 256) -> ModelProto:
    """A perceptron of about a megabyte."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (64, width), "b1": (width,), "w2": (width, width), "b2": (width,), "w3": (width, 10)}
    nodes = [("MatMul", "x w1", "a"), ("Add", "a b1", "b"), ("Relu", "b", "c"), ("MatMul", "c w2", "d"),
             ("Add", "d b2", "e"), ("Relu", "e", "f"), ("MatMul", "f w3", "y")]  # fmt: skip
    info = [helper.make_tensor_value_info(n, 1, ["n", k]) for n, k in (("x", 64), ("y", 10))]
    held = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    graph = helper.make_graph([helper.make_node(o, i.split(), [y]) for o, i, y in nodes], "g", info[:1], info[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def weights(path: Path) -> bytes | None:
    """What a model holds, its external data with it; None where there is no file."""
    if not path.exists():
        return None
    proto = onnx.load(path)
    return b"".join(numpy_helper.to_array(t).tobytes() for t in proto.graph.initializer)


def leftovers(folder: Path, known: set[str]) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in known)


def writer(folder: Path, way: str, rng: random.Random) -> str:
    """A process that saves two models in turns over one OUT, killed: OUT is one of the two, whole, and the next save
    leaves nothing behind."""
    old, new, out = folder / "old.onnx", folder / "new.onnx", folder / "out.onnx"
    for seed, path in enumerate((old, new)):
        onnx.save(model(seed), path)
    both = [weights(old), weights(new)]
    command = [sys.executable, "-c", WRITER, str(old), str(new), str(out), way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + rng.random() * 0.05)
        process.kill()
    left = leftovers(folder, {"old.onnx", "new.onnx", "out.onnx", "out.onnx.data"})
    found = weights(out)
    if found not in both:
        return "BAD: OUT is neither the old model nor the new one"
    from onnxprune.model import Model

    removed = Model.load(new).save(out, external=way == "external data")
    if sorted(p.name for p in removed) != left:
        return f"BAD: {left} were left, {removed} were named"
    again = leftovers(folder, {"old.onnx", "new.onnx", "out.onnx", "out.onnx.data"})
    if again or weights(out) != both[1]:
        return f"BAD: left behind by the next run: {again}"
    return f"{'old' if found == both[0] else 'new'} model, {'leftovers swept' if left else 'nothing left'}"


def command(folder: Path, way: str, rng: random.Random, end: signal.Signals) -> str:
    """The command itself with a report and a plan, ended at any moment."""
    source, out = folder / "in.onnx", folder / "out.onnx"
    onnx.save(model(0), source)
    args = [sys.executable, "-m", "onnxprune", str(source), str(out), "--ratio", "0.3", "--fast", "-q", *WAYS[way],
            "--save-plan", str(folder / "plan.json"), "--report", str(folder / "report.json")]  # fmt: skip
    start = time.monotonic()
    subprocess.run(args, check=True)
    whole = time.monotonic() - start
    done = {p.name: p.read_bytes() for p in folder.iterdir()}
    new, before = weights(out), source.read_bytes()
    from onnxprune.model import Model

    Model.load(model(1)).save(out, external=way == "external data")
    old = weights(out)
    with subprocess.Popen(args, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(rng.uniform(0.6, 1.05) * whole)
        process.send_signal(end)
        _, said = process.communicate()
    if source.read_bytes() != before:
        return "BAD: IN has changed"
    found = weights(out)
    if found not in (old, new):
        return "BAD: OUT is neither the old model nor the new one"
    for name in ("plan.json", "report.json"):
        if not (folder / name).read_bytes().rstrip().endswith(b"}"):
            return f"BAD: {name} is half a file"
    left = leftovers(folder, {*done})
    if end == signal.SIGINT:  # a shell shows 130 for -2, too: python takes that way out where it was importing
        told = process.returncode in (130, -2) and said == "onnxprune: error: interrupted\n" and not left
        over = process.returncode in (0, -2) and not said and found == new and not left
        if not told and not over:
            return f"BAD: Ctrl-C gave {process.returncode}: {left}, {said[-200:]!r}"
    subprocess.run(args, check=True)
    if leftovers(folder, {*done}):
        return "BAD: left behind by the next run"
    return f"{'old' if found == old else 'new'} model, {'leftovers swept' if left else 'nothing left'}"


def full_disk(folder: Path, way: str, rng: random.Random, tmpfs: bool) -> str:
    """No room: by a limit on the size of a file, or on a disk of a megabyte."""
    source, out = folder / "in.onnx", folder / "out.onnx"
    onnx.save(model(0), source)
    home = folder / "disk" if tmpfs else folder
    if tmpfs:
        home.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(home)], capture_output=True).returncode:
            return "skipped: no tmpfs can be mounted here"
        out = home / "out.onnx"
    try:
        from onnxprune.model import Model

        Model.load(model(1, 128 if tmpfs else 256)).save(out, external=way == "external data")
        before = {p.name: p.read_bytes() for p in home.iterdir() if p.is_file()}
        if tmpfs:
            (home / "fill").write_bytes(bytes(max(shutil.disk_usage(home).free - rng.randrange(4096, 150_000), 0)))
            before["fill"] = (home / "fill").read_bytes()
        limit = rng.choice((0, 100, 4096, 100_000, 150_000))

        def bound() -> None:
            if not tmpfs:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        args = [sys.executable, "-m", "onnxprune", str(source), str(out), "--ratio", "0.3", "--fast", "-q", *WAYS[way],
                "--report", str(home / "report.json")]  # fmt: skip
        done = subprocess.run(args, capture_output=True, text=True, preexec_fn=bound)
        after = {p.name: p.read_bytes() for p in home.iterdir() if p.is_file()}
        if done.returncode != 4 or done.stderr.count("\n") != 1 or "Traceback" in done.stderr:
            return f"BAD: exit {done.returncode}: {done.stderr[-300:]!r}"
        return "refused in one line, all as it was" if after == before else f"BAD: changed: {sorted(after)}"
    finally:
        if tmpfs:
            subprocess.run(["umount", str(home)], capture_output=True)


def run(args: Namespace) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng, table, start = random.Random(args.seed), Counter[str](), time.monotonic()
    for index in range(args.count):
        way = list(WAYS)[index % 2]
        jobs = {
            "kill -9 while saving": lambda f, w=way: writer(f, w, rng),
            "kill -9 of the command": lambda f, w=way: command(f, w, rng, signal.SIGKILL),
            "Ctrl-C": lambda f, w=way: command(f, w, rng, signal.SIGINT),
            "size limit": lambda f, w=way: full_disk(f, w, rng, False),
            "full tmpfs": lambda f, w=way: full_disk(f, w, rng, True),
        }
        for name, job in jobs.items():
            if args.only and args.only not in name:
                continue
            if name != "kill -9 while saving" and index % 4 > 1:  # these start python three times
                continue
            folder = Path(tempfile.mkdtemp(prefix="fuzz-kill-"))
            found = job(folder)
            table[f"{name}, {way}: {found}"] += 1
            if found.startswith("BAD"):
                print(f"{name}, {way}: {found}; see {folder}", flush=True)
            else:
                with suppress(OSError):
                    shutil.rmtree(folder)
    for line, count in sorted(table.items()):
        print(f"{count:5} {line}")
    print(f"{sum(table.values())} runs, {time.monotonic() - start:.0f} s")
    return int(any("BAD" in line for line in table))
