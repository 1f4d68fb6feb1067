"""Inputs and sizes at which a model runs, and the masked original run on them.

Knows models and what goes in and comes out; what it is compared with, `verify` knows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune import footprint
from onnxprune.chain import Chain, opened
from onnxprune.equation import Dims
from onnxprune.errors import RuntimeFailure
from onnxprune.labels import Mask
from onnxprune.masking import FLOATS, masked
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.runtime import Session, first_line
from onnxprune.shapes import infer
from onnxprune.sizes import symbol
from onnxprune.taps import with_outputs
from onnxprune.trace import Trace

TRIAL_LIMIT = 1 << 29
"""Bytes of activations at sizes that are only tried because the likely ones do not run."""

RANGES = ((0, 2), (0, 1), (1, 2))
"""Of the integers that are tried: random ones, zeros, and ones, as in a mask that hides nothing."""


def random_inputs(
    model: Model, shapes: Mapping[str, tuple[int, ...]], seed: int, high: int = 2, low: int = 0
) -> dict[str, NDArray[Any]]:
    """Normal floats, integers in [low, high), true booleans: one array for each real input."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, NDArray[Any]] = {}
    for info in model.proto.graph.input:
        if info.name in model.weights:
            continue
        kind = info.type.tensor_type.elem_type
        shape = shapes.get(info.name, ())
        if kind in FLOATS:
            dtype = ml_dtypes.bfloat16 if kind == TensorProto.BFLOAT16 else helper.tensor_dtype_to_np_dtype(kind)
            made = np.float32 if dtype == np.float32 else np.float64
            feeds[info.name] = rng.standard_normal(shape, made).astype(dtype, copy=False)
        elif kind == TensorProto.BOOL:
            feeds[info.name] = np.ones(shape, bool)
        elif kind == TensorProto.STRING:
            feeds[info.name] = np.full(shape, "a", dtype=object)
        else:
            feeds[info.name] = rng.integers(low, high, shape).astype(helper.tensor_dtype_to_np_dtype(kind))
    return feeds


@dataclass(frozen=True)
class Run:
    """One run of the masked original: what went in, what came out, and the sizes of all tensors."""

    feeds: dict[str, NDArray[Any]]
    outputs: list[Any]
    sizes: Mapping[str, Dims]
    blocks: int

    @property
    def batch(self) -> int:
        return next((int(x.shape[0]) for x in self.feeds.values() if x.ndim), 1)


def _session(
    trace: Trace, kept: Mask, taps: Sequence[str], sizes: Mapping[str, Dims], options: Options
) -> Session | Chain:
    return opened(with_outputs(trace, masked(trace, kept, sizes), taps), options, trace.shapes.dtype)


def run_masked(trace: Trace, kept: Mask, taps: Sequence[str], options: Options, k: int) -> Run | None:
    """At the k-th probe's sizes, or near them; None where not even the original runs at a second size."""
    shapes: Mapping[str, tuple[int, ...]] = trace.shapes.inputs[k]
    sizes: Mapping[str, Dims] = trace.shapes.probe[k]
    try:
        return _run(trace, kept, taps, sizes, shapes, options, k)
    except RuntimeFailure:
        found = _runnable(trace, shapes, options)
        if found is None and k:
            return None
        if found is None:
            raise
        sizes = infer(trace.model, found).probe[0]
        return _run(trace, kept, taps, sizes, found, options, k)


def _run(
    trace: Trace, kept: Mask, taps: Sequence[str], sizes: Mapping[str, Dims], shapes: Mapping[str, tuple[int, ...]],
    options: Options, k: int,
) -> Run:  # fmt: skip
    session = _session(trace, kept, taps, sizes, options)
    return Run(*_run_original(session, shapes, options, k), sizes, session.blocks)


def _run_original(
    session: Session | Chain, shapes: Mapping[str, tuple[int, ...]], options: Options, k: int
) -> tuple[dict[str, Any], list[Any]]:
    """Inputs on which a model runs, and its outputs."""
    last: Exception | None = None
    for low, high in RANGES:
        feeds = random_inputs(session.model, shapes, options.seed + k, high, low)
        try:
            return feeds, session.run(feeds)
        except Exception as e:
            last = e
    raise RuntimeFailure(
        f"ONNX Runtime cannot run the model on random inputs of shapes {dict(shapes)}: "
        f"{first_line(last or Exception())}; give shapes that fit with --overwrite-input-shape"
    )


def _runnable(
    trace: Trace, shapes: Mapping[str, tuple[int, ...]], options: Options
) -> dict[str, tuple[int, ...]] | None:
    """Input shapes near `shapes` at which the original runs: relations between symbols are known to the graph only."""
    model = trace.model
    symbols: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for info in model.proto.graph.input:
        if info.name in shapes:
            for axis, dim in enumerate(info.type.tensor_type.shape.dim):
                if not dim.dim_value:
                    symbols[symbol(dim) or f"{info.name}.{axis}"].append((info.name, axis))
    session = opened(model, options, trace.shapes.dtype)
    for factor, offset in ((1, 1), (1, -1), (2, 0), (4, 0), (16, 0), (64, 0), (0, 1), (0, 512), (0, 16000)):
        for places in symbols.values():
            trial = {name: list(shape) for name, shape in shapes.items()}
            for name, axis in places:
                trial[name][axis] = trial[name][axis] * factor + offset
            sizes = {name: tuple(shape) for name, shape in trial.items()}
            try:
                footprint.check(model, infer(model, sizes).passes[0], min(options.memory, TRIAL_LIMIT))
                _run_original(session, sizes, options, 0)
                return sizes
            except Exception:  # any error only says that these sizes do not fit
                continue
    return None
