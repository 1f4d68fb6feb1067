"""What pruning costs a small language model, in the four forms that it is exported in: perplexity, tokens a second.

    python tools/train_lm.py CACHE --texts  # the model is in models/ already
    python tools/export_lm.py CACHE/forms
    python tools/bench_lm.py CACHE --json RESULTS [--forms plain ...] [--methods l2 ...] [--cuts 0.2 0.3] [--speed]

A cut is the share of the MACs that goes. Methods: `l2` (onnxprune --fast), `data-free` (its default: sentences that
come with it), `calibrated` (512 windows of the text that the model was trained on), and onnxsim's structured and head
pruning by magnitude (`onnxsim`) and by activations on the same windows (`onnxsim-wanda`), at the sparsity whose file
comes nearest to the cut, by bisection; structured alone where it does not run with heads pruned. Perplexity is that of
held-out chapters, by ONNX Runtime alone (`tools/lm/measuring.py`). Rows that are in RESULTS are not made again; each is
made by a process of its own, whose CPU seconds and memory are told. `--speed` times every file that there is beside its
dense one, in turns, with one thread: nothing else should run then.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.lm.measuring import feed_of, perplexity, session_of, speeds, windows

FORMS = ("plain", "cached", "grouped", "int4")
OPTIONS: dict[str, dict[str, Any]] = {"l2": {"fast": True}, "data-free": {}, "calibrated": {"calib": True}}
SAMPLES, STEPS = 512, 7
FAR = 0.05
"""A file that keeps so much more of the MACs than it should is another cut."""
Row = dict[str, Any]


def ids_of(cache: Path, name: str) -> np.ndarray:
    """Of a text, by the tokenizer of the model."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(cache / "forms" / "tokenizer.json"))
    return np.array(tokenizer.encode((cache / f"{name}.txt").read_text("utf-8")).ids, np.int64)


def macs(path: Path) -> float:
    """As onnxprune counts them."""
    import onnxprune

    return float(onnxprune.inspect(path).cost.macs)


def by_onnxprune(source: Path, out: Path, cut: float, method: str, cache: Path) -> Row:
    """One cut, saved to `out`."""
    import onnxprune

    options = dict(OPTIONS[method])
    if options.pop("calib", False):
        options |= {"calib": cache / "train.txt", "calib_samples": SAMPLES}
    result = onnxprune.prune(source, ratio=cut, of="macs", **options)
    result.model.save(out)
    told = result.report.reconstruction or {}
    return {"kept": result.report.after.macs / result.report.before.macs, "fell_back": told.get("fell_back", False)}


def by_onnxsim(source: Path, out: Path, cut: float, method: str, cache: Path) -> Row:
    """The cut nearest to the one asked for that the tool makes, saved to `out`."""
    import onnxsim

    model, dense = onnx.load(source), macs(source)
    data: Any = None
    if method == "onnxsim-wanda":
        rows = windows(ids_of(cache, "train"))
        some = rows[np.random.default_rng(0).permutation(len(rows))[:SAMPLES]]
        session = session_of(source)
        data = [feed_of(session, part) for part in np.split(some, SAMPLES // 32)]

    def pruned(sparsity: float, heads: bool) -> float:
        more = {} if data is None else {"calibration_data": data}
        kind = "" if data is None else "_wanda"
        made = getattr(onnxsim, f"apply_structured{kind}_pruning_cpp")(model, sparsity=sparsity, **more)
        if heads:
            made = getattr(onnxsim, f"apply_attention_head{kind}_pruning_cpp")(made, sparsity=sparsity, **more)
        onnx.save(made, out)
        return macs(out) / dense

    def nearest(heads: bool) -> tuple[float, float]:
        low, high, found = 0.0, 1.0, dict[float, float]()
        for _ in range(STEPS):
            at = (low + high) / 2
            found[at] = pruned(at, heads)
            low, high = (at, high) if found[at] > 1 - cut else (low, at)
        best = min(found, key=lambda at: abs(found[at] - (1 - cut)))
        return best, pruned(best, heads)

    why = ""
    for heads in (True, False):
        best, kept = nearest(heads)
        try:
            session = session_of(out)
            session.run(["logits"], feed_of(session, np.zeros((1, 16), np.int64)))
        except Exception as error:
            why += f"with heads {' '.join(str(error).split())[-120:]}; "
            continue
        if kept <= 1 - cut + FAR:
            return {"kept": kept, "sparsity": best, "heads": heads}
        why += f"{'with' if heads else 'without'} heads {kept:.3f} is kept at least; "
    raise RuntimeError(why)


METHODS: dict[str, Callable[[Path, Path, float, str, Path], Row]] = {
    **dict.fromkeys(OPTIONS, by_onnxprune), "onnxsim": by_onnxsim, "onnxsim-wanda": by_onnxsim,
}  # fmt: skip


def one(cache: Path, form: str, method: str, cut: float) -> Row:
    """A row, in this process."""
    source, out = cache / "forms" / f"{form}.onnx", cache / "pruned" / f"{form}_{method}_{cut:g}.onnx"
    out.parent.mkdir(exist_ok=True)
    began, start = time.monotonic(), time.process_time()
    try:
        row = METHODS[method](source, out, cut, method, cache)
        cpu, wall = time.process_time() - start, time.monotonic() - began
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row |= {"cpu": cpu, "wall": wall, "rss": rss, "bytes": out.stat().st_size}
        row["perplexity"] = perplexity(out, windows(ids_of(cache, "held_out")))
    except Exception as error:
        row = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return row


def timed(cache: Path, rows: list[Row]) -> None:
    """Adds to each row what it reads and makes in a second, and what its dense file does in the same turns."""
    text = ids_of(cache, "held_out")
    for row in rows:
        if "perplexity" in row and row["cut"]:
            dense = cache / "forms" / f"{row['form']}.onnx"
            out = cache / "pruned" / f"{row['form']}_{row['method']}_{row['cut']:g}.onnx"
            row["speeds"] = speeds([dense, out], text)


def told(rows: list[Row]) -> None:
    """The table."""
    dense = {r["form"]: r["perplexity"] for r in rows if not r["cut"] and "perplexity" in r}
    print(f"{'form':8} {'method':14}  cut   kept perplexity {'':>7}  CPU s    MiB  tokens/s")
    for r in sorted(rows, key=lambda r: (FORMS.index(r["form"]), r["cut"], r["method"])):
        if "failed" in r:
            print(f"{r['form']:8} {r['method']:14} {r['cut']:4g} {r['failed']}")
            continue
        more = f"{r['perplexity'] / dense[r['form']] - 1:+7.1%}" if r["form"] in dense else ""
        cost = f"{r['cpu']:6.0f} {r['rss']:6.0f}" if r["cut"] else f"{'':13}"
        speed = ""
        if "speeds" in r:
            (read, made), (read_now, made_now) = r["speeds"]
            speed = f"  read {read:.0f} -> {read_now:.0f}, made {made:.0f} -> {made_now:.0f}"
        what = f"{r['form']:8} {r['method']:14} {r['cut']:4g} {r['kept']:6.3f}"
        print(f"{what} {r['perplexity']:10.3f} {more} {cost}{speed}")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--cuts", nargs="+", type=float, default=(0.2, 0.3, 0.5))
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        form, method, cut = args.child
        print(json.dumps(one(args.cache, form, method, float(cut))))
        return 0
    rows: list[Row] = json.loads(args.json.read_text()) if args.json.exists() else []
    there = {(r["form"], r["method"], r["cut"]) for r in rows}
    for form, cut, method in product(args.forms, (0.0, *args.cuts), args.methods):
        method = method if cut else "dense"
        if (form, method, cut) in there:
            continue
        there.add((form, method, cut))
        if not cut:
            held = windows(ids_of(args.cache, "held_out"))
            value = perplexity(args.cache / "forms" / f"{form}.onnx", held)
            row: Row = {"kept": 1.0, "perplexity": value, "windows": len(held)}
        else:
            order = [sys.executable, __file__, str(args.cache), "--json", str(args.json), "--child", form, method]
            done = subprocess.run([*order, f"{cut}"], capture_output=True, text=True, check=False)
            last = (done.stdout.strip() or done.stderr.strip() or "no answer").splitlines()[-1]
            row = {"failed": f"exit code {done.returncode}: {last[:200]}"} if done.returncode else json.loads(last)
        rows.append({"form": form, "method": method, "cut": cut} | row)
        args.json.write_text(json.dumps(rows, indent=1))
        print(json.dumps(rows[-1]), flush=True)
    if args.speed:
        timed(args.cache, rows)
        args.json.write_text(json.dumps(rows, indent=1))
    told(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
