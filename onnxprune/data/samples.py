"""Reading what a user may have: arrays, folders, ONNX test data, pictures, a script, a Python object.

Knows files and arrays; of the model only its inputs.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxprune.data.batches import Feed
from onnxprune.data.decoding import Decoder
from onnxprune.data.inputs import Input, real_inputs
from onnxprune.data.picture_files import PICTURES, class_names, read_pictures
from onnxprune.data.text_files import read_text
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.files import function_of, is_text
from onnxprune.model import Array, Model

LABELS = "labels"
FORMS = "an .npz, a .txt, a folder of .npy, .npz or pictures, ONNX test_data_set folders, or script.py:function"


@dataclass(frozen=True)
class Source:
    """Feeds as they were found, and the labels of each where there are any; `folders` are the numbers of the folders
    that pictures lie in, `classes` the names of these; `name` is how messages call the whole, `note` says how it was
    read, `warnings` what is there and nobody reads. is_text: whether it was a text."""

    feeds: list[Feed]
    name: str
    labels: list[Array] | None = None
    folders: list[Array] | None = None
    classes: tuple[str, ...] = ()
    note: str = ""
    warnings: tuple[str, ...] = ()
    is_text: bool = False


def read(data: Any, specs: Sequence[Input], limit: int, seed: int, decode: Decoder) -> Source:
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
    names = [s.name for s in specs]
    return replace(source, warnings=_unread(source.name, source.feeds, names, source.labels is not None))


def unread(data: Any, model: Model) -> tuple[str, ...]:
    """What `Source.warnings` would say of `data` (see `read`) for a model, as far as it can be told without reading
    values, and without using up what gives them once only. UsageError for a path where there is no data."""
    inputs = [i.name for i in real_inputs(model)]
    if isinstance(data, (str, os.PathLike)):
        path = Path(data)
        kind, files = ("script", []) if _script(path) else _kind(path)
        feeds = [_names(f) for f in files if f.suffix.lower() != ".npy"] if kind == "arrays" else []
        return _unread(path.name, feeds, inputs)
    held = [data] if isinstance(data, Mapping) else data if isinstance(data, list | tuple) else []
    return _unread("calib", [{str(key) for key in feed} for feed in held if isinstance(feed, Mapping)], inputs)


def _unread(
    source: str, feeds: Sequence[Iterable[str]], inputs: Sequence[str], labelled: bool = False
) -> tuple[str, ...]:
    """What to say of arrays that are no inputs of the model, by the names in each feed. A single array is the only
    input, whatever its name."""
    named = [set(names) for names in feeds]
    labelled |= LABELS not in inputs and any(LABELS in names for names in named)
    others = [names - {LABELS, *inputs} for names in named if len(inputs) > 1 or len(names - {LABELS}) > 1]
    spare = sorted(set[str]().union(*others))
    if not spare:
        return ()
    what = f"array '{spare[0]}'" if len(spare) == 1 else f"arrays {', '.join(map(repr, spare))}"
    return (f"{source}: nobody reads the {what}{'' if labelled else f' (labels are the array {LABELS!r})'}",)


def _read(data: Any, specs: Sequence[Input], limit: int, seed: int, decode: Decoder) -> Source:
    """Reads any of the forms. Of pictures, a random choice of `limit` is read; a stream is read until it has given as
    many samples, since it may have no end."""
    if isinstance(data, (str, os.PathLike)):
        if script := _script(data):
            return Source(_held(_call(*script), specs, limit, str(data)), str(data))
        return _path(Path(data), specs, limit, seed, decode)
    name = "calib"
    if _is_reader(data):
        name = type(data).__name__
    elif callable(data) and not isinstance(data, Iterable):
        name, data = getattr(data, "__name__", name), data()
    return Source(_held(data, specs, limit, "calib"), name)


def _is_reader(data: Any) -> bool:
    """Whether it is a CalibrationDataReader of ONNX Runtime, which takes for one whatever has a `get_next`."""
    return not isinstance(data, type) and callable(getattr(data, "get_next", None))


def _held(data: Any, specs: Sequence[Input], limit: int, name: str) -> list[Feed]:
    """The feeds of what is in memory: a reader, one feed, or any stream of them. A reader that can be rewound is read
    from its beginning and left there, as others read it too: a quantiser, or the next call."""
    if not _is_reader(data):
        if not isinstance(data, Mapping | Iterable):
            raise UsageError(f"{name}: feeds (dicts of arrays) or a reader with get_next() are wanted, not a "
                             f"{type(data).__name__}; or give {FORMS}")  # fmt: skip
        return _stream([data] if isinstance(data, Mapping) else data, specs, limit, name)
    rewind = getattr(data, "rewind", lambda: None)

    def feeds() -> Iterator[Any]:
        rewind()
        yield from iter(data.get_next, None)

    found = _stream(feeds(), specs, limit, name)
    rewind()
    return found


def _stream(feeds: Iterable[Any], specs: Sequence[Input], limit: int, name: str) -> list[Feed]:
    """The first feeds of a stream, until they have `limit` samples."""
    found: list[Feed] = []
    samples = 0
    try:
        for feed in feeds:
            if not isinstance(feed, Mapping):
                raise UsageError(f"{name}: gave a {type(feed).__name__}, not a dict of one array for each input")
            found.append({str(key): np.asarray(value) for key, value in feed.items()})
            samples += _samples(found[-1], specs)
            if samples >= limit:
                break
    except OnnxPruneError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"{name}: {type(error).__name__}: {error}") from error
    if not found:
        raise UsageError(f"{name}: gave no feeds; a reader or generator that was read to its end gives no more")
    return found


def _samples(feed: Feed, specs: Sequence[Input]) -> int:
    """How many samples a feed has; an array without the axis that counts them is one by itself."""
    counting = [s for s in specs if s.batch == 0]
    array = next((feed[s.name] for s in counting if s.name in feed), None)
    return 1 if array is None or array.ndim != len(counting[0].axes) else len(array)


def _call(path: str, function: str) -> Any:
    """What the function of a script returns."""
    made = function_of(path, function, f"give {FORMS}")
    try:
        return made()
    except Exception as error:
        raise UsageError(f"{path}:{function}: {type(error).__name__}: {error}") from error


def _script(data: str | os.PathLike[str]) -> tuple[str, ...]:
    """The path of the script and the name of the function in `script.py:function`; () of any other path."""
    found = re.fullmatch(r"(.+\.py):([^\W\d]\w*)", str(data))
    if found and not Path(found[1]).is_file():
        raise UsageError(f"{found[1]} does not exist; give {FORMS}")
    return found.groups() if found else ()


def _kind(path: Path) -> tuple[str, list[Any]]:
    """Whether a path holds "arrays", "tensors", "pictures" or a "text", and the files of it (of tensors those of each
    set); UsageError where it holds none of them."""
    if path.suffix == ".py":
        raise UsageError(f"{path}: say which of its functions gives the feeds, as in {path}:feeds")
    if path.is_file():
        return "text" if is_text(path) else "arrays", [path]
    if not path.is_dir():
        raise UsageError(f"{path} does not exist; give {FORMS}")
    if sets := _test_data(path):
        return "tensors", sets
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    if arrays := _ending(files, (".npy", ".npz")):
        return "arrays", arrays
    if pictures := _ending(files, PICTURES):
        return "pictures", pictures
    raise UsageError(f"{path}: nothing to read in this folder; give {FORMS}")


def _path(path: Path, specs: Sequence[Input], limit: int, seed: int, decode: Decoder) -> Source:
    kind, files = _kind(path)
    match kind:
        case "tensors":
            return Source([_tensors(found, specs) for found in files], path.name)
        case "pictures":
            return _pictures(path, files, specs, limit, seed, decode)
        case "text":
            feeds, note = read_text(path, specs, limit, seed, decode.texts)
            return Source(feeds, path.name, note=note, is_text=True)
    return Source([_arrays(path)] if path.is_file() else _folder(files, specs), path.name)


def _test_data(path: Path) -> list[list[Path]]:
    """The files of each set of inputs, as the tests of ONNX have them."""
    sets = sorted(p for p in path.glob("test_data_set_*") if p.is_dir()) or [path]
    return [found for folder in sets if (found := sorted(folder.glob("input_*.pb"), key=_number))]


def _ending(files: Sequence[Path], suffixes: Container[str]) -> list[Path]:
    return [p for p in files if p.suffix.lower() in suffixes]


def _pictures(
    path: Path, files: Sequence[Path], specs: Sequence[Input], limit: int, seed: int, decode: Decoder
) -> Source:
    """A random choice of the pictures in a folder."""
    rng = np.random.default_rng(seed)
    chosen = [files[k] for k in rng.permutation(len(files))[:limit]]
    feed, scaled = read_pictures(path, chosen, specs, decode.pictures)
    have = f", of {len(files)}" if len(files) > len(chosen) else ""
    names = class_names(path, files)
    numbers = np.array([names.index(p.relative_to(path).parts[0]) for p in chosen]) if names else None
    folders = None if numbers is None else [numbers]
    return Source([feed], path.name, folders=folders, classes=names, note=f"{have} ({scaled})")


def _arrays(path: Path) -> Feed:
    """The arrays of an .npz by name, or that of an .npy under the name of its file."""
    with _opened(path) as loaded:
        return {path.stem: loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}


def _names(path: Path) -> list[str]:
    """Of the arrays of an .npz."""
    with _opened(path) as loaded:
        return [path.stem] if isinstance(loaded, np.ndarray) else list(loaded.files)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """What numpy finds in a file, whose arrays are read when they are asked for; it never runs pickled code. UsageError
    where it is no file of arrays."""
    try:
        with open(path, "rb") as file:
            yield np.load(file, allow_pickle=False)
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
