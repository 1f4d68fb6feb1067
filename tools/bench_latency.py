"""What is left of accuracy at equal measured latency: networks x ways of spending the budget x bounds.

    python tools/get_models.py CACHE --only fashion cifar minilm_l3 minilm_l6
    python tools/train_lm.py LM --texts && python tools/export_lm.py LM/forms
    python tools/bench_latency.py CACHE --lm LM --json RESULTS [--nets NAME ...] [--bounds 0.75 0.55] [--predict]

A bound is a share of the dense model's time: ONNX Runtime, one thread, one sample (of a language model, one window of
the size at which models with open sizes are run). Ways: `macs`, where the budget counts multiply-adds, `latency`, where
it is measured time, both without residual branches (--no-blocks), and `latency+blocks` and `macs+blocks` with them.
Each searches the smallest cut that is fast enough, as --max-latency does, calibrated on unlabelled samples of the
training side. Files go into CACHE/latency; afterwards all of a network are timed beside the dense one in turns, of
which the lower quartile counts, by the time that the thread works, as other programs may run. Rows in RESULTS are not
made again.

`--predict` says instead how far the predicted times of some plain cuts are from the measured ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import onnxprune
from onnxprune.measure import bound, clock_of, runnable, turn
from onnxprune.model import Model
from onnxprune.pipeline import Clock, Pruner, Search, analysed
from onnxprune.planning import select
from onnxprune.planning.timings import costs
from onnxprune.rewrite import rewrite
from onnxprune.run import deployed
from onnxprune.shapes import infer
from tools.lm.measuring import BATCH, feed_of, perplexity, session_of, windows
from tools.tasks import batches, run, tasks

WAYS: dict[str, dict[str, Any]] = {
    "macs": {"of": "macs", "blocks": False},
    "macs+blocks": {"of": "macs", "blocks": True},
    "latency": {"of": "latency", "blocks": False},
    "latency+blocks": {"of": "latency", "blocks": True},
}
TASKS = ("fashion_folded", "cifar_resnet", "cifar_mobile", "minilm_l3", "minilm_l6")
SAMPLES = 256
TOKENS = 128
"""Of a sample of the language model."""
CLOCK = clock_of(("cpu",), 1)
TURNS, TURN = 30, 0.05
"""How often, and for how long at a time, every file runs."""
PLAIN = (0.2, 0.4, 0.6)
"""Shares of all units, to multiples of 4, without which --predict times a network; then half of its branches."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Net:
    """A model, the inputs that it is calibrated on, and its metric, of which more is better if `more`."""

    model: Path
    calib: Callable[[], Any]
    metric: Callable[[Path], float]
    name: str
    more: bool = True


def nets(cache: Path, lm: Path | None) -> dict[str, Net]:
    """Those whose files are there."""
    found = {}
    for name, task in tasks(cache).items():
        if name in TASKS:
            found[name] = Net(
                task.model, lambda task=task: list(batches(task, task.inputs("calib", SAMPLES, 0), 32)),
                lambda path, task=task: score(task, path), task.metric,
            )  # fmt: skip
    if lm and (lm / "forms" / "plain.onnx").exists():
        found["small_lm"] = Net(
            lm / "forms" / "plain.onnx", lambda: read(lm),
            lambda path: perplexity(path, windows(ids_of(lm, "held_out.txt"))), "perplexity", False,
        )  # fmt: skip
    return found


def score(task: Any, path: Path) -> float:
    feeds, labels = task.labelled(task.items, 0)
    return float(np.mean(task.score(run(task, path, feeds, 32), labels)))


def ids_of(lm: Path, text: str) -> np.ndarray:
    from tokenizers import Tokenizer

    words = (lm / text).read_text("utf-8")
    return np.array(Tokenizer.from_file(str(lm / "forms" / "tokenizer.json")).encode(words).ids, np.int64)


def read(lm: Path) -> list[dict[str, np.ndarray]]:
    """Windows of TOKENS from all over the text that the language model was trained on."""
    ids, session = ids_of(lm, "train.txt"), session_of(lm / "forms" / "plain.onnx")
    rows = np.stack([ids[k : k + TOKENS] for k in np.linspace(0, len(ids) - TOKENS, SAMPLES).astype(int)])
    return [feed_of(session, part) for part in np.split(rows, SAMPLES // BATCH)]


def made(net: Net, way: str, bounds: list[float], out: Path) -> list[Row]:
    """One row a bound, by one way; what does not depend on the bound is worked out once."""
    calib = net.calib()
    more = {"calib": calib, "calib_samples": SAMPLES, "threads": 1, "max_latency": 1.0}
    options = onnxprune.Options(**WAYS[way], **more).resolved()
    start, clock = time.process_time(), Clock()
    pruner, rows = Pruner(net.model, options, clock), []
    for share in bounds:
        search = Search(pruner, Model.load(net.model), 0.0)
        search.begin()
        search.bound = share * search.whole
        path = out / f"{way}_{share:g}.onnx"
        try:
            decision, chosen = search.run()
            result = pruner.carried_out(decision, chosen, clock)
        except onnxprune.OnnxPruneError as error:
            rows.append({"bound": share, "error": str(error)})
            continue
        result.model.save(path)
        report = result.report
        rows.append({
            "bound": share, "ratio": chosen.ratio, "macs": report.after.macs / report.before.macs,
            "branches": sum(branch.gone for branch in report.branches), "of": len(report.branches),
            "metric": net.metric(path), "cpu": time.process_time() - start,
        })  # fmt: skip
        start = time.process_time()
    return rows


def timed(dense: Path, files: list[Path]) -> list[float]:
    """Milliseconds of one run of the dense model and of each file, in turns, on the same inputs."""
    models = [Model.load(path) for path in (dense, *files)]
    sessions = [deployed(model, ("cpu",), 1) for model in models]
    working = models[0].normalised()
    feed = runnable(sessions[0], working, infer(working, {}), 1, {}, 0)
    runs = [bound(session, feed) for session in sessions]
    taken: list[list[float]] = [[] for _ in runs]
    for k in range(TURNS + 1):
        for one, own in zip(runs, taken, strict=True):
            own += turn(one, TURN, clock=CLOCK)[: None if k else 0]
    return [1e3 * float(np.percentile(own, 25)) for own in taken]


def predicted(net: Net) -> Iterator[tuple[str, float, float]]:
    """What was cut, its share of the dense model's time as predicted and as measured: plain cuts to multiples that
    kernels like, and half of the branches."""
    options = onnxprune.Options(of="latency", threads=1).resolved()
    groups = analysed(Model.load(net.model), options, Clock())
    start, begun = time.process_time(), time.monotonic()
    priced = costs(groups, options)
    print(f"timing took {time.monotonic() - begun:.1f} s, {time.process_time() - start:.1f} CPU s")
    none = np.zeros(len(groups.prunable))
    plain = onnxprune.Options(scope="local", round_to=4)
    cuts = {f"{r:g} of all units": select(groups, none, replace(plain, ratio=r)) for r in PLAIN}
    if groups.branches:
        cuts["every other branch"] = np.isin(np.arange(len(none)), [*groups.branches][::2])
    models = [rewrite(groups.trace, groups.kept_ids(cut)).model for cut in cuts.values()]
    sessions = [deployed(m, ("cpu",), 1) for m in (groups.trace.model, *models)]
    feed = runnable(sessions[0], groups.trace.model, groups.trace.shapes, 1, {}, 0)
    taken: list[list[float]] = [[] for _ in sessions]
    runs = [bound(session, feed) for session in sessions]
    for _ in range(TURNS):
        for one, own in zip(runs, taken, strict=True):
            own += turn(one, TURN, clock=CLOCK)
    dense, *each = (float(np.percentile(own, 25)) for own in taken)
    for (what, cut), seconds in zip(cuts.items(), each, strict=True):
        yield what, priced.total(groups.alive(groups.kept_ids(cut))) / priced.whole, seconds / dense


def told(rows: list[Row]) -> None:
    """The table."""
    print(f"{'network':14} {'way':15} bound  latency      ms   MACs  branches  metric")
    order = {way: k for k, way in enumerate(("dense", *WAYS))}
    for r in sorted(rows, key=lambda r: (r["net"], -r["bound"], order[r["way"]])):
        what = f"{r['net']:14} {r['way']:15} {r['bound']:5g}"
        if "error" in r:
            print(what, r["error"])
            continue
        gone = f"{r['branches']}/{r['of']}" if r["of"] else ""
        time = f"{r.get('latency', 0):7.3f} {r.get('ms', 0):8.3f}"
        print(f"{what} {time} {r['macs']:6.3f} {gone:>9}  {r['name']} {r['metric']:.4f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--lm", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--nets", nargs="+")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["macs", "latency", "latency+blocks"])
    parser.add_argument("--bounds", nargs="+", type=float, default=[0.75, 0.55])
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    there = nets(args.cache, args.lm)
    if args.child:
        name, way = args.child
        folder = args.cache / "latency" / name
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(made(there[name], way, args.bounds, folder)))
        return 0
    rows: list[Row] = json.loads(args.json.read_text()) if args.json.exists() else []
    for name in args.nets or there:
        net, folder = there[name], args.cache / "latency" / name
        if args.predict:
            for what, expected, measured in predicted(net):
                off = f"{expected / measured - 1:+.1%}"
                print(f"{name:14} {what:20} predicted {expected:.3f} measured {measured:.3f} {off}", flush=True)
            continue
        for way in args.ways:
            new = [b for b in args.bounds if not any((r["net"], r["way"], r["bound"]) == (name, way, b) for r in rows)]
            if new:
                words = [sys.executable, __file__, str(args.cache), "--json", str(args.json), "--child", name, way]
                words += ["--bounds", *map(str, new), *(["--lm", str(args.lm)] if args.lm else [])]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
                    continue
                of = {"net": name, "way": way, "name": net.name}
                rows += [of | row for row in json.loads(done.stdout.strip().splitlines()[-1])]
                print(*map(json.dumps, rows[-len(new) :]), sep="\n", file=sys.stderr, flush=True)
        own = [r for r in rows if r["net"] == name and r["way"] != "dense" and "error" not in r]
        ms = timed(net.model, [folder / f"{r['way']}_{r['bound']:g}.onnx" for r in own])
        for r, taken in zip(own, ms[1:], strict=True):
            r |= {"ms": taken, "latency": taken / ms[0]}
        dense = next((r["metric"] for r in rows if r["net"] == name and r["way"] == "dense"), None)
        rows = [r for r in rows if (r["net"], r["way"]) != (name, "dense")]
        rows.append({
            "net": name, "way": "dense", "name": net.name, "bound": 1.0, "macs": 1.0, "branches": 0, "of": 0,
            "metric": net.metric(net.model) if dense is None else dense, "ms": ms[0], "latency": 1.0,
        })  # fmt: skip
        args.json.write_text(json.dumps(rows, indent=1))
    if not args.predict:
        told([r for r in rows if r["net"] in (args.nets or there)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
