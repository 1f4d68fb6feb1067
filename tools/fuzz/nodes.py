"""Every node test of the onnx wheel between two layers with weights: input -> MatMul or Conv -> the node -> MatMul or
Conv -> output. Each is pruned by half in a fork of its own, and what comes out is compared with an oracle that knows
nothing of how the package masks: the wrapped model whose own slices are zeroed by hand.

The slices are found in the written file: weights are random, so a column is where its values are.
"""

from __future__ import annotations

import json
import pkgutil
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import sandbox
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from wrapping import Wrapped, wrapped

sys.path.insert(0, str(Path(__file__).parents[1]))
import written_file

import onnxprune
from onnxprune import api, errors

SECONDS, MEMORY = 10.0, 4 << 30
BATCHES = (1, 5, 2)
DRAWN = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
BAD = ("traceback", "unproven", "runtime", "usage", "invalid", "oracle", "slow", "crash")


# ---- in the fork


def judge(one: Wrapped, folder: Path) -> dict[str, Any]:
    """What became of one, as JSON: how, detail, seconds."""
    before, after = folder / "in.onnx", folder / "out.onnx"
    onnx.save(one.model, before)
    if one.opened and any(dense(one, first=n) is None for n in BATCHES):
        return {"how": "sizes are fixed", "detail": "", "seconds": 0.0}
    start = time.perf_counter()

    def told(how: str, detail: object = "") -> dict[str, Any]:
        return {"how": how, "detail": str(detail)[:300], "seconds": time.perf_counter() - start}

    try:
        result = api.prune(str(before), ratio=0.5, fast=True, residual="all")
    except errors.NothingToPrune as error:
        return told("nothing", error)
    except errors.CheckFailed as error:
        return told("unproven", error)
    except (errors.RuntimeFailure, errors.UsageError) as error:
        fine = all(dense(one, random=k) is not None for k in range(3))
        how = "runtime" if isinstance(error, errors.RuntimeFailure) else "usage"
        return told(how if fine else "does not run", error)
    done = told("proven")
    result.model.save(after)
    try:
        written_file.check(before, after, None)
    except written_file.Invalid as error:
        return told("invalid", error)
    return done | oracle(one, onnx.load(after), api.trace(str(before), residual="all"))


def dense(one: Wrapped, model: ModelProto | None = None, random: int = 0, first: int = 0) -> list[Any] | None:
    """What ONNX Runtime makes of the inputs of the test, or of others for its floats; None where it takes none such.
    `model`: another one with the same inputs. `first`: the size of an open axis."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        text = (one.model if model is None else model).SerializeToString()
        session = onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(random)
        feeds = {i.name: one.feeds[i.name] for i in session.get_inputs()}
        if one.opened and first:
            feeds[one.opened] = np.resize(feeds[one.opened], (first, *feeds[one.opened].shape[1:]))
        for name in [n for n, x in feeds.items() if random and getattr(x, "dtype", np.dtype(bool)).kind == "f"]:
            feeds[name] = rng.standard_normal(feeds[name].shape).astype(feeds[name].dtype)
        return list(session.run(None, feeds))
    except Exception:
        return None


def oracle(one: Wrapped, after: ModelProto, trace: Any) -> dict[str, Any]:
    """The outputs of the written model against those of the wrapped one with its slices zeroed by hand."""
    held = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    zeroed = ModelProto()
    zeroed.CopyFrom(one.model)
    tensors = {t.name: t for t in zeroed.graph.initializer}
    where = dict(one.consumers) | {w: axis for w, _, axis in one.producers}
    gone = {name: _gone(numpy_helper.to_array(tensors[name]), held.get(name), axis) for name, axis in where.items()}
    if any(g is None for g in gone.values()):
        return {"how": "oracle", "detail": "a weight is no slice of the original"}
    if any(n.op_type in DRAWN or (n.op_type == "Dropout" and len(n.input) > 2) for n in one.model.graph.node):
        return {"oracle": "draws at random"}
    own = {name for n in [*one.model.graph.node] for name in n.output if n.name.endswith(("_made", "_end", "_sum"))}
    classes, reasons = trace.labels.solve()
    inner = []
    for r in trace.reductions:
        blocks = [r.block] if r.kind == "sum" else [b for _, b in r.ins]
        if trace.nodes[r.node].output[0] not in own and any(
            any(reasons[c] is None for c in classes[b.ids.ravel()]) for b in blocks
        ):
            inner.append(r)
    if any(r.kind != "sum" or trace.nodes[r.node].input[r.operand] not in one.direct for r in inner):
        return {"oracle": "statistics"}
    for name, axis in one.consumers:
        _zero(tensors[name], axis, gone[name])
    for weight, bias, axis in one.producers if inner else ():
        _zero(tensors[weight], axis, gone[weight])
        _zero(tensors[bias], 0, gone[weight])
    ends = [_compared(one, zeroed, after, n) for n in (BATCHES if one.opened else (0,))]
    return next((e for e in ends if "how" in e), ends[0])


def _compared(one: Wrapped, zeroed: ModelProto, after: ModelProto, first: int) -> dict[str, Any]:
    full, want, got = dense(one, None, 0, first), dense(one, zeroed, 0, first), dense(one, after, 0, first)
    if full is None or want is None:
        return {"oracle": "does not run on these inputs"}
    if got is None:
        return {"how": "oracle", "detail": "the pruned model does not run on the inputs of the test"}
    compared = 0
    for x, y, z in zip(want, got, full, strict=True):
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not np.isfinite(z).all():
            continue
        if not np.isfinite(x).all():
            return {"oracle": "zero times infinity"}
        near = 1e-4 * max(1.0, float(np.abs(x).max(initial=0)))
        if x.shape != y.shape or not np.allclose(x, y, rtol=1e-3, atol=near):
            error = float(np.abs(x - y).max()) if x.shape == y.shape else f"{x.shape} and {y.shape}"
            return {"how": "oracle", "detail": f"differs by {error}"}
        compared += 1
    return {"oracle": "agrees" if compared else "nothing finite to compare"}


def _gone(old: NDArray[Any], new: NDArray[Any] | None, axis: int) -> list[int] | None:
    """The positions of `axis` whose values are in the old array and not in the new one; None where it is no slice."""
    if new is None:
        return None
    a, b = np.moveaxis(old, axis, 0), np.moveaxis(new, axis, 0)
    if a.shape[1:] != b.shape[1:]:
        return None
    kept: list[int] = []
    for row in b:
        at = next((k for k in range(kept[-1] + 1 if kept else 0, len(a)) if np.array_equal(a[k], row)), None)
        if at is None:
            return None
        kept.append(at)
    return sorted(set(range(len(a))) - set(kept))


def _zero(tensor: TensorProto, axis: int, positions: Sequence[int] | None) -> None:
    value = np.moveaxis(numpy_helper.to_array(tensor).copy(), axis, 0)
    value[list(positions or ())] = 0
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.moveaxis(value, 0, axis)), tensor.name))


# ---- in the parent process


def run(args: Namespace) -> int:
    for found in pkgutil.walk_packages(onnxprune.__path__, "onnxprune."):
        if not found.name.endswith("__main__"):
            import_module(found.name)  # once, and not in every fork
    count: Counter[str] = Counter()
    oracle: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    longest, bad = (0.0, ""), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for k, one in enumerate(wrapped(args.only)):
            if k < args.first or (args.count and k >= args.first + args.count):
                continue
            end = _in_a_fork(one, folder)
            if sum(count.values()) % 500 == 499:
                print(f"{k + 1} models: {dict(count)}", file=sys.stderr, flush=True)
            if end["seconds"] > SECONDS:
                end |= {"how": "slow", "detail": f"{end['how']} after {end['seconds']:.0f} s"}
            count[end["how"]] += 1
            longest = max(longest, (end["seconds"], one.name))
            if end["how"] == "proven":
                oracle[end.get("oracle", "")] += 1
            if end["how"] == "nothing":
                reasons[end["detail"].partition("; see")[0].partition("(")[0]] += 1
            if end["how"] in BAD:
                bad.append(one.name)
                print(f"{one.name}: {end['how']}: {end['detail']}", flush=True)
                if args.out:
                    args.out.mkdir(parents=True, exist_ok=True)
                    onnx.save(one.model, args.out / f"{one.name}.onnx")
    for title, table in (("models", count), ("of the proven ones, the oracle", oracle), ("nothing to prune", reasons)):
        print(f"{title}: " + "; ".join(f"{n} {what}" for what, n in table.most_common(12)))
    print(f"longest {longest[0]:.1f} s ({longest[1]}); {len(bad)} failed")
    return int(bool(bad))


def _in_a_fork(one: Wrapped, folder: Path) -> dict[str, Any]:
    def job() -> int:
        print("\n" + json.dumps(judge(one, folder)))
        return 0

    end = sandbox.run(job, folder, 3 * SECONDS, MEMORY)
    try:
        found: dict[str, Any] = json.loads(end.out.splitlines()[-1])
        if end.how == "exit" and not end.code:
            return found
    except (IndexError, ValueError):
        pass
    if end.how == "signal" and sandbox.run(lambda: int(dense(one) is None), folder, SECONDS, MEMORY).how == "signal":
        return {"how": "does not run", "detail": "ONNX Runtime dies of it", "seconds": end.seconds}
    how = {"exit": "traceback", "timeout": "slow"}.get(end.how, "crash")
    return {"how": how, "detail": " ".join(end.err.splitlines()[-1:])[:300] or end.how, "seconds": end.seconds}
