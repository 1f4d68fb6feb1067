"""Quality on labelled data: the top-1 accuracy of a classifier in ONNX Runtime.

A data file is an .npz whose keys are the model's input names, plus `labels`; the first axis of every array counts
the samples. It says how good a model is; whether the pruned graph is *right* is what `verify` proves.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .errors import RuntimeFailure, UsageError
from .runtime import first_line, open_session

if TYPE_CHECKING:
    from .model import Model

Array = npt.NDArray[Any]
BATCH = 64
LABELS = "labels"
TYPES: dict[str, npt.DTypeLike] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "bool": np.bool_,
} | {name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}


@dataclass(frozen=True)
class Data:
    """Labelled samples: `inputs` by the model's input names, `labels` of shape (samples,)."""

    inputs: Mapping[str, Array]
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Score:
    """`top1` in 0..1, over `samples`, on the `providers` that ONNX Runtime really used."""

    top1: float
    samples: int
    providers: tuple[str, ...]


def load_data(path: str | Path) -> Data:
    """Reads an .npz file; what is wrong with it is a UsageError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Array] = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; --validate takes an .npz") from None
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        raise UsageError(f"{path}: not an .npz of plain arrays; write it with numpy.savez") from None
    labels = arrays.pop(LABELS, None)
    if labels is None:
        raise UsageError(f"{path}: no array named 'labels'; keys are the model's input names plus 'labels'")
    if labels.dtype.kind not in "iu" or labels.ndim == 0 or labels.size != len(labels) or not len(labels):
        raise UsageError(f"{path}: 'labels' must be integers, one per sample, not {labels.dtype}{list(labels.shape)}")
    for key, array in arrays.items():
        if array.shape[:1] != labels.shape[:1]:
            raise UsageError(f"{path}: {key!r} has shape {list(array.shape)} but there are {len(labels)} labels")
    return Data(arrays, labels.reshape(-1))


def top1(model: Model, data: Data, providers: Sequence[str] = ("cpu",)) -> Score:
    """The share of samples whose largest output (or predicted label, where the first output is that) is the label."""
    session = open_session(model, providers)
    inputs, batch = _inputs(session, data)
    output = session.get_outputs()[0].name
    hits = 0
    for feed, labels in _batches(inputs, data.labels, batch):
        try:
            scores = np.asarray(session.run([output], feed)[0])
        except Exception as error:
            raise RuntimeFailure(f"ONNX Runtime failed on the validation data: {first_line(error)}") from error
        hits += int(np.sum(_predicted(scores, output, len(next(iter(feed.values()))))[: len(labels)] == labels))
    return Score(hits / len(data), len(data), tuple(session.get_providers()))


def _inputs(session: Any, data: Data) -> tuple[dict[str, Array], int]:
    """The arrays in the types that the model takes, and how many samples go into one run."""
    wanted = {spec.name: spec for spec in session.get_inputs()}
    if set(wanted) != set(data.inputs):
        have = ", ".join(sorted(data.inputs)) or "nothing"
        raise UsageError(f"the validation data has {have} but the model's inputs are {', '.join(sorted(wanted))}")
    arrays: dict[str, Array] = {}
    sizes: set[int] = set()
    for name, spec in wanted.items():
        array, shape = data.inputs[name], spec.shape
        dtype = np.dtype(TYPES.get(spec.type.removeprefix("tensor(").removesuffix(")"), object))
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise UsageError(f"input {name!r} is {spec.type} but the validation data has {array.dtype}")
        if len(shape) != array.ndim or any(
            isinstance(want, int) and want != have for want, have in zip(shape[1:], array.shape[1:], strict=True)
        ):
            raise UsageError(f"input {name!r} has shape {shape} but the validation data has {list(array.shape)}")
        arrays[name] = array.astype(dtype, copy=False)
        sizes |= {shape[0]} if isinstance(shape[0], int) else set()
    if len(sizes) > 1:
        raise UsageError(f"the inputs' first axes differ ({sorted(sizes)}): they do not count samples")
    return arrays, sizes.pop() if sizes else min(BATCH, len(data))


def _batches(inputs: Mapping[str, Array], labels: Array, size: int) -> Iterator[tuple[dict[str, Array], Array]]:
    """Full batches; the last one repeats its last sample, because the model's batch size may be fixed."""
    for start in range(0, len(labels), size):
        rows = np.minimum(np.arange(start, start + size), len(labels) - 1)
        yield {name: array[rows] for name, array in inputs.items()}, labels[start : start + size]


def _predicted(scores: Array, output: str, batch: int) -> Array:
    if scores.ndim == 0 or len(scores) != batch or not scores.size:
        raise UsageError(f"output {output!r} has shape {list(scores.shape)} for {batch} samples: not a classifier")
    if scores.size == batch and scores.dtype.kind in "iu":
        return scores.reshape(-1)
    return np.asarray(scores.reshape(batch, -1).argmax(1))
