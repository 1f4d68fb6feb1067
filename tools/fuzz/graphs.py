"""The random graphs of the property tests, as many as asked for; what fails is made small and kept. Every other batch
is of graphs with several open sizes. What the oracle of the tests says of the proven ones is counted."""

from __future__ import annotations

import json
import sys
import time
import traceback
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from hypothesis import HealthCheck, Phase, given, seed, settings
from onnx import ModelProto

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
BATCH = 250
"""Graphs of one seed: a run that was ended goes on at the next one."""
DEFAULTS = {"ratio", "scope", "heads", "residual", "round_to"}


def run(args: Namespace) -> int:
    import test_random_graphs as property_test

    from onnxprune.options import Options

    args.out.mkdir(parents=True, exist_ok=True)
    book = args.out / "graphs.json"
    told = json.loads(book.read_text()) if book.is_file() else {"next": args.seed, "graphs": 0, "failed": []}
    said = Counter[str](told.get("oracle", {}))
    kinds = {"open": property_test.open_models, "closed": property_test.models}
    start, first = time.monotonic(), told["graphs"]
    failing: dict[str, Any] = {}
    while told["graphs"] < args.count and time.monotonic() - start < args.limit:
        failing.clear()
        tried = 0

        @seed(told["next"])
        @settings(
            max_examples=min(BATCH, args.count - told["graphs"]), deadline=None, database=None,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
        )  # fmt: skip
        @given(kinds[args.only or ("closed", "open")[told["next"] % 2]](), property_test.options)
        def batch(model: ModelProto, chosen: Options) -> None:
            nonlocal tried
            tried += not failing  # what comes after a failure are tries to make it smaller
            try:
                verdict = property_test.check(model, chosen)
                said[verdict] += not failing
            except Exception as error:
                failing.update(model=model, options=chosen, error=error)  # the last one is the smallest
                raise

        try:
            batch()
        except Exception:
            name = f"{told['next']}_0"
            _keep(args.out, name, failing)
            told["failed"].append(name)
            print(f"seed {told['next']}: {' '.join(str(failing['error']).split())[:300]}", flush=True)
        told["graphs"] += min(tried, BATCH)
        told["next"] += 1
        told["oracle"] = dict(said)
        book.write_text(json.dumps(told))
        rate = (told["graphs"] - first) / (time.monotonic() - start)
        print(f"{told['graphs']} graphs, {len(told['failed'])} failed, {rate:.1f} a second", flush=True)
        print(f"oracle: {_counted(said)}", flush=True)
    return int(bool(told["failed"]))


def _counted(said: Counter[str]) -> str:
    """What became of the graphs. With statistics over what was cut, zeros are no removal: shapes alone are compared."""
    return (
        f"{said['agrees']} agree, {said['statistics']} with statistics, {said['never runs']} that never run, "
        f"{said['nothing']} with nothing to prune"
    )


def _keep(folder: Path, name: str, failing: dict[str, Any]) -> None:
    """The graph as a file, and its options where tests/test_random_graphs.py takes them from."""
    onnx.save(failing["model"], folder / f"{name}.onnx")
    listed = folder / "options.json"
    known = json.loads(listed.read_text()) if listed.is_file() else {}
    known[name] = {k: getattr(failing["options"], k) for k in sorted(DEFAULTS)}
    listed.write_text(json.dumps(known, indent=1))
    (folder / f"{name}.txt").write_text("".join(traceback.format_exception(failing["error"])))
