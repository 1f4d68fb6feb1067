"""Reading what a user may have: arrays, folders, ONNX test data, pictures, a script, a Python object.

Knows files and arrays; of the model only its inputs.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxprune.data.inputs import Input
from onnxprune.data.pixels import Pixels
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.files import function_of

Array = NDArray[Any]
Feed = dict[str, Array]
Decode = Callable[[str], tuple[Pixels, tuple[int, ...]]]

LABELS = "labels"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FORMS = "an .npz, a folder of .npy, .npz or pictures, ONNX test_data_set folders, or script.py:function"


@dataclass(frozen=True)
class Source:
    """Feeds as they were found, and the labels of each where there are any; `folders` are the numbers of the folders
    that pictures lie in; `name` is how messages call the whole, `note` says how it was read."""

    feeds: list[Feed]
    name: str
    labels: list[Array] | None = None
    folders: list[Array] | None = None
    note: str = ""


def read(data: Any, specs: Sequence[Input], limit: int, seed: int, decode: Decode) -> Source:
    """Reads any of the forms (see `_read`). An array named `labels` that is no input of the model holds labels."""
    source = _read(data, specs, limit, seed, decode)
    if source.labels is None and all(s.name != LABELS for s in specs):
        labels = [feed.pop(LABELS, None) for feed in source.feeds]
        given = [x for x in labels if x is not None]
        if given and len(given) < len(labels):
            raise UsageError(f"{source.name}: {len(labels) - len(given)} of {len(labels)} feeds have no 'labels'")
        source = replace(source, labels=given or None)
    if not any(source.feeds):
        raise UsageError(f"{source.name}: no arrays; keys are the names of the model's inputs")
    return source


def _read(data: Any, specs: Sequence[Input], limit: int, seed: int, decode: Decode) -> Source:
    """Reads any of the forms. Of pictures, a random choice of `limit` is read; a stream is read until it has given as
    many samples, since it may have no end."""
    if isinstance(data, (str, os.PathLike)):
        script = re.fullmatch(r"(.+\.py):([^\W\d]\w*)", str(data))
        if script:
            return Source(_stream(_call(*script.groups()), specs, limit, str(data)), str(data))
        return _path(Path(data), specs, limit, seed, decode)
    if callable(getattr(data, "get_next", None)):
        return Source(_stream(iter(data.get_next, None), specs, limit, "calib"), type(data).__name__)
    if isinstance(data, Mapping):
        data = [data]
    if not isinstance(data, Iterable):
        raise UsageError(f"calib takes a path, a reader with get_next() or feeds, not a {type(data).__name__}")
    return Source(_stream(data, specs, limit, "calib"), "calib")


def _stream(feeds: Iterable[Any], specs: Sequence[Input], limit: int, name: str) -> list[Feed]:
    found: list[Feed] = []
    samples = 0
    try:
        for feed in feeds:
            if not isinstance(feed, Mapping):
                raise UsageError(f"{name}: gave a {type(feed).__name__}, not a dict of one array for each input")
            found.append({str(key): np.asarray(value) for key, value in feed.items()})
            counted = next((found[-1][s.name] for s in specs if s.batch == 0 and s.name in found[-1]), None)
            spec = next((s for s in specs if s.batch == 0), None)
            whole = counted is not None and spec is not None and counted.ndim == len(spec.axes)
            samples += len(counted) if whole and counted is not None else 1
            if samples >= limit:
                break
    except OnnxPruneError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"{name}: {type(error).__name__}: {error}") from error
    if not found:
        raise UsageError(f"{name}: gave no feeds")
    return found


def _call(path: str, function: str) -> Any:
    """What the function of a script returns."""
    made = function_of(path, function, f"give {FORMS}")
    try:
        feeds = made()
    except Exception as error:
        raise UsageError(f"{path}:{function}: {type(error).__name__}: {error}") from error
    if isinstance(feeds, Mapping):
        return [feeds]
    if not isinstance(feeds, Iterable):
        raise UsageError(f"{path}:{function} must yield feeds (dicts of arrays), not a {type(feeds).__name__}")
    return feeds


def _path(path: Path, specs: Sequence[Input], limit: int, seed: int, decode: Decode) -> Source:
    if path.suffix == ".py":
        raise UsageError(f"{path}: say which of its functions gives the feeds, as in {path}:feeds")
    if path.is_file():
        arrays = _arrays(path)
        return Source([arrays], path.name)
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder; give {FORMS}")
    sets = sorted(p for p in path.glob("test_data_set_*") if p.is_dir()) or [path]
    tensors = [found for folder in sets if (found := sorted(folder.glob("input_*.pb"), key=_number))]
    if tensors:
        return Source([_tensors(found, specs) for found in tensors], path.name)
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    arrays_files = [p for p in files if p.suffix.lower() in (".npy", ".npz")]
    if arrays_files:
        return Source(_folder(arrays_files, specs), path.name)
    pictures = [p for p in files if p.suffix.lower() in PICTURES]
    if not pictures:
        raise UsageError(f"{path}: nothing to read in this folder; give {FORMS}")
    return _pictures(path, pictures, specs, limit, seed, decode)


def _arrays(path: Path) -> Feed:
    """The arrays of an .npz by name, or that of an .npy under the name of its file. Never runs pickled code."""
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {path.stem: loaded}
            return {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        raise UsageError(f"{path}: not plain arrays; write them with numpy.savez or numpy.save") from None


def _folder(files: Sequence[Path], specs: Sequence[Input]) -> list[Feed]:
    """One .npy for each input, by name; else every file is a feed (an .npy where the model has one input)."""
    named = {_plain(s.name): s.name for s in specs}
    lone = [p for p in files if p.suffix.lower() == ".npy"]
    if len(specs) > 1 and lone:
        if {_plain(p.stem) for p in lone} < named.keys() or len(lone) != len(specs):
            raise UsageError(f"{lone[0].parent}: name the .npy files after the inputs {', '.join(named.values())}")
        return [{named.get(_plain(p.stem), p.stem): _arrays(p)[p.stem] for p in lone}]
    return [_arrays(p) for p in files]


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _number(path: Path) -> int:
    return int(re.sub(r"\D", "", path.stem) or 0)


def _tensors(files: Sequence[Path], specs: Sequence[Input]) -> Feed:
    feed: Feed = {}
    for path in files:
        if _number(path) >= len(specs):
            raise UsageError(f"{path}: the model has {len(specs)} inputs only")
        try:
            tensor = TensorProto.FromString(path.read_bytes())
            if tensor.data_location == TensorProto.EXTERNAL:  # onnx would look for that file wherever we are
                raise ValueError("its values are in another file")
            feed[tensor.name if any(tensor.name == s.name for s in specs) else specs[_number(path)].name] = np.asarray(
                numpy_helper.to_array(tensor)
            )
        except Exception as error:  # protobuf's and onnx's errors share no base class
            raise UsageError(f"{path}: not an ONNX tensor ({type(error).__name__})") from None
    return feed


def _pictures(
    path: Path, files: Sequence[Path], specs: Sequence[Input], limit: int, seed: int, decode: Decode
) -> Source:
    """Pictures resized to what the model takes, in its range of values."""
    takes = [s for s in specs if s.kind == "image" and len(s.axes) == 4]
    if len(specs) != 1 or not takes:
        raise UsageError(f"{path}: pictures need a model with one input that is an image; give an .npz instead")
    spec = takes[0]
    scale, shape = decode(spec.name)
    rng = np.random.default_rng(seed)
    chosen = [files[k] for k in rng.permutation(len(files))[:limit]]
    stack = np.stack(list(_decoded(chosen, spec, shape)))
    have = f", of {len(files)}" if len(files) > len(chosen) else ""
    feed = {spec.name: scale.of_pixels(stack, spec.channel, spec.dtype)}
    return Source([feed], path.name, None, _folders(path, files, chosen), f"{have} ({scale.text})")


def _folders(path: Path, files: Sequence[Path], chosen: Sequence[Path]) -> list[Array] | None:
    """Where all pictures lie in two or more folders of one level, these are the classes, numbered in order of name."""
    inside = [p.relative_to(path).parts for p in files]
    names = sorted({parts[0] for parts in inside})
    if len(names) < 2 or any(len(parts) != 2 for parts in inside):
        return None
    return [np.array([names.index(p.relative_to(path).parts[0]) for p in chosen])]


def _decoded(files: Sequence[Path], spec: Input, shape: Sequence[int]) -> Iterator[Array]:
    """Each picture as float32 in 0..1, (C, H, W) or (H, W, C) as the model has it."""
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("reading pictures needs Pillow: pip install pillow, or give an .npz") from None
    channels = shape[spec.channel]
    height, width = shape[2:4] if spec.channel == 1 else shape[1:3]
    for path in files:
        try:
            with Image.open(path) as picture:
                small = picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]).resize(
                    (width, height), Image.Resampling.BILINEAR
                )
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise UsageError(f"{path}: not a picture that Pillow can read; remove it from the folder") from None
        values = np.asarray(small, np.float32).reshape(height, width, channels) / 255
        yield values.transpose(2, 0, 1) if spec.channel == 1 else values


def checked(feed: Feed, specs: Sequence[Input], source: str) -> Feed:
    """The arrays that the model takes, in its types; what does not fit is a UsageError."""
    if len(specs) == 1 and len(feed) == 1:
        feed = {specs[0].name: next(iter(feed.values()))}
    checked = {}
    for spec in specs:
        if spec.name not in feed:
            have = ", ".join(sorted(feed)) or "nothing"
            raise UsageError(f"{source}: no array for the input {spec.name!r} of the model (it has {have})")
        checked[spec.name] = _array(np.asarray(feed[spec.name]), spec, source)
    counts = {len(checked[s.name]) for s in specs if s.batch == 0}
    if len(counts) > 1:
        raise UsageError(f"{source}: the inputs have {sorted(counts)} samples; give every input the same number")
    if 0 in counts:
        raise UsageError(f"{source}: no samples")
    return checked


def _array(array: Array, spec: Input, source: str) -> Array:
    wanted = [d if d is not None and (k or spec.batch != 0) else "N" for k, d in enumerate(spec.axes)]

    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == len(wanted) and all(w in ("N", d) for w, d in zip(wanted, shape, strict=True))

    if spec.batch == 0 and not fits(array.shape) and fits((1, *array.shape)):
        array = array[None]  # one sample by itself
    if not fits(array.shape):
        raise UsageError(f"{source}: input {spec.name!r} has shape {wanted} but the data has {list(array.shape)}")
    kinds = {"O": "OUS", "b": "biu", "i": "biu", "u": "biu"}.get(spec.dtype.kind, "fiub")
    if array.dtype.kind not in kinds and array.dtype != spec.dtype:
        raise UsageError(f"{source}: input {spec.name!r} is {spec.dtype} but the data is {array.dtype}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise UsageError(f"{source}: the data of input {spec.name!r} has values that are not numbers (NaN)")
    cast = array.astype(spec.dtype, copy=False)
    if spec.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise UsageError(f"{source}: the data of input {spec.name!r} does not fit into {spec.dtype}")
    return cast


def batched(
    feeds: Sequence[Feed],
    labels: list[Array] | None,
    specs: Sequence[Input],
    want: int,
    batch: int,
    seed: int,
    source: str,
) -> tuple[list[Feed], list[Array] | None, int, int]:  # fmt: skip
    """(batches, their labels, samples, samples there were): a random choice in a random order, because data is often
    sorted by class. Feeds of one shape are joined and cut anew, unless an input counts samples on another axis."""
    rng = np.random.default_rng(seed)
    first = next((s.name for s in specs if s.batch == 0), None)
    counts = np.array([len(feed[first]) if first else 1 for feed in feeds])
    have = int(counts.sum())
    if not have:
        raise UsageError(f"{source}: no samples")
    if labels is not None and any(len(x) != n for x, n in zip(labels, counts, strict=True)):
        raise UsageError(f"{source}: 'labels' must be one per sample")
    limit = min(have, want)
    if first is None or any(s.batch != 0 and None in s.axes for s in specs):
        order = rng.permutation(len(feeds))
        order = order[: int(np.searchsorted(np.cumsum(counts[order]), limit)) + 1]
        given = None if labels is None else [labels[k] for k in order]
        return [feeds[k] for k in order], given, int(counts[order].sum()), have
    groups: dict[Any, list[int]] = defaultdict(list)
    for k, feed in enumerate(feeds):
        groups[tuple(feed[s.name].shape[1:] if s.batch == 0 else feed[s.name].tobytes() for s in specs)].append(k)
    chosen = np.zeros(have, bool)
    chosen[rng.permutation(have)[:limit]] = True
    starts = np.concatenate(([0], np.cumsum(counts)))
    fixed = next((s.axes[0] for s in specs if s.batch == 0 and s.axes[0]), None)
    batches: list[Feed] = []
    given = []
    for members in groups.values():
        rows = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in members])
        local = rng.permutation(np.flatnonzero(chosen[rows]))
        joined = {s.name: np.concatenate([feeds[k][s.name] for k in members]) if len(members) > 1 and s.batch == 0
                  else feeds[members[0]][s.name] for s in specs}  # fmt: skip
        batches += cut(joined, local, specs, fixed or batch, bool(fixed))
        if labels is not None:
            own = np.concatenate([labels[k] for k in members])[local]
            given += np.split(own, range(fixed or batch, len(own), fixed or batch))
    return batches, None if labels is None else given, limit, have


def cut(feed: Feed, rows: Array, specs: Sequence[Input], size: int, fixed: bool) -> list[Feed]:
    """Batches of these rows of `feed`; where the size is fixed the last one repeats its last sample."""
    batches = []
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        if fixed:
            some = np.concatenate([some, np.repeat(some[-1:], size - len(some))])
        batches.append({s.name: feed[s.name][some] if s.batch == 0 else feed[s.name] for s in specs})
    return batches
