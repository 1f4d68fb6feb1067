"""Check a written file against the file it was made from, without asking the program that made it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime


class Invalid(Exception):
    """The written file is wrong although the pruner called it proven."""


def check(before: Path, after: Path, inputs: Path | None) -> str:
    """Raise Invalid where the file is not what the original was; returns a remark on what could not be checked."""
    for full in (False, True):  # shape inference may only be demanded where the original itself passes it
        try:
            onnx.checker.check_model(str(before), full_check=full)
        except Exception:
            break
        try:
            onnx.checker.check_model(str(after), full_check=full)
        except Exception as error:
            raise Invalid(f"onnx.checker: {' '.join(str(error).split())[:200]}") from error
    try:
        old = session(before)
    except Exception:
        return "not run: ONNX Runtime cannot load the original"
    try:
        new = session(after)
    except Exception as error:
        raise Invalid(f"does not load: {' '.join(str(error).split())[:200]}") from error
    if [(i.name, i.type, i.shape) for i in old.get_inputs()] != [(i.name, i.type, i.shape) for i in new.get_inputs()]:
        raise Invalid("the inputs have changed")
    names = [o.name for o in old.get_outputs()]
    if names != [o.name for o in new.get_outputs()]:
        raise Invalid("the outputs have changed")
    for feed in feeds(old, inputs):
        try:
            wanted = old.run(names, feed)
        except Exception:
            continue
        try:
            given = new.run(names, feed)
        except Exception as error:
            raise Invalid(f"does not run: {' '.join(str(error).split())[:200]}") from error
        moving = [False] * len(names)
        if [np.shape(a) for a in wanted] != [np.shape(b) for b in given]:
            moving = moved(old, names, feed, wanted)
        for name, a, b, moves in zip(names, wanted, given, moving, strict=True):
            compare(name, a, b, moves)
        return ""
    return "not run: the original rejects random inputs"


def moved(model: Any, names: list[str], feed: dict[str, np.ndarray], outputs: list[Any]) -> list[bool]:
    """Which outputs have sizes that depend on values: for reversed, no, and larger ones they are others, or no size of
    an input is open and one of theirs is."""
    closed = all(isinstance(d, int) for i in model.get_inputs() for d in i.shape)
    out = [closed and any(not isinstance(d, int) for d in o.shape) for o in model.get_outputs()]
    for change in (lambda x: x[::-1] if x.ndim else x, np.zeros_like, lambda x: 4 * x if x.dtype.kind == "f" else x):
        try:
            other = model.run(names, {n: x if x.dtype.kind == "O" else change(x) for n, x in feed.items()})
        except Exception:
            continue
        out = [o or np.shape(a) != np.shape(b) for o, a, b in zip(out, outputs, other, strict=True)]
    return out


def runs(path: Path) -> bool:
    try:
        session(path)
    except Exception:
        return False
    return True


def session(path: Path) -> Any:
    """Unoptimised: the blocked convolutions of the optimiser do not compare the channels of weight and input."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare(name: str, old: Any, new: Any, moving: bool) -> None:
    """`moving`: the size of this output depends on the values of the inputs, so only its rank can be compared."""
    if not isinstance(old, np.ndarray):  # a sequence or a map
        if type(old) is not type(new):
            raise Invalid(f"output {name}: {type(new).__name__} instead of {type(old).__name__}")
        return
    shapes = (old.ndim, new.ndim) if moving else (old.shape, new.shape)
    if shapes[0] != shapes[1] or old.dtype != new.dtype:
        raise Invalid(f"output {name}: {new.dtype}{list(new.shape)} instead of {old.dtype}{list(old.shape)}")
    if old.dtype.kind == "f" and np.isfinite(old).all() and not np.isfinite(new).all():
        raise Invalid(f"output {name} is not finite")


def feeds(model: Any, inputs: Path | None) -> Iterator[dict[str, np.ndarray]]:
    """The given inputs, else random ones at several sizes of the symbolic dimensions: some models take only a few."""
    if inputs is not None:
        with np.load(inputs) as arrays:
            yield dict(arrays)
    for low, batch, size in product((0, 1), (2, 1), (16, 32, 64, 128, 256, 512, 48, 224)):
        rng = np.random.default_rng(0)
        yield {i.name: random_input(rng, i.type, i.shape, batch, size, low) for i in model.get_inputs()}


def random_input(rng: np.random.Generator, kind: str, shape: list[Any], batch: int, size: int, low: int) -> np.ndarray:
    sizes = [d if isinstance(d, int) and d > 0 else size if axis else batch for axis, d in enumerate(shape)]
    name = kind.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64", "string": "object"}.get(name, name))
    if dtype.kind in "iub":  # small enough for an index, or a mask; `low` 1: one that hides nothing
        return rng.integers(low, 2, sizes).astype(dtype)
    return rng.standard_normal(sizes).astype(dtype) if dtype.kind == "f" else np.full(sizes, "text", dtype)
