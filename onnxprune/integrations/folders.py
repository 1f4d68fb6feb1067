"""A folder of Hugging Face or ONNX Runtime GenAI pruned as one: every model in it, tokenizer and configurations carried
over.

Models that share weights lose the same units of these, and get the same values. Knows files and the API; what two
models share is the affair of `sharing`.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from onnxprune import api
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.files import check_new_folder, new_folder, same_file, write_texts
from onnxprune.integrations import genai
from onnxprune.integrations.configs import SHARED_HEADS, Cut, cache_key, updated
from onnxprune.integrations.decoders import Pruner, cuts, evenly
from onnxprune.integrations.family import pruned_together
from onnxprune.model import Model
from onnxprune.options import OptionKeywords, Options, given

CONFIG = "config.json"
INDENT = re.compile(r"\s*\{\n( +)")
"""Of an object of JSON: by how much its entries are indented."""
OTHER_WEIGHTS = (
    "*.safetensors", "*.h5", "*.msgpack", "*.gguf", "*.pt", "*.pth", "*.ckpt", "*.ot", "*.tflite", "pytorch_model*.bin",
    "*.safetensors.index.json", "pytorch_model*.index.json",
)  # fmt: skip
"""Files of the dense network in other formats, which would not fit the sizes any more."""


@dataclass(frozen=True)
class FolderResult:
    """What `prune_folder` makes; nothing is written before `save`.

    results: by the path of each model in the folder. unpruned: models that stay as they are, and why. carried: files
    that are copied. left_out: files that are not, since they hold weights of the dense network. texts: configurations
    that changed. notes: what to say of these."""

    folder: Path
    results: dict[str, api.Result]
    unpruned: Mapping[str, str]
    carried: tuple[str, ...]
    left_out: tuple[str, ...]
    texts: Mapping[str, str]
    notes: tuple[str, ...]

    def save(
        self, out: str | os.PathLike[str], external_data: bool | None = None, also: Mapping[Path, str] | None = None
    ) -> Path:
        """Write the folder, whole or not at all, where nothing is yet or an empty folder; weights beside a model are in
        MODEL_data, as Hugging Face has them. also: texts to write besides. UsageError or RuntimeFailure where it
        cannot be written."""
        target = Path(out)
        check_output(self.folder, target)
        with new_folder(target) as folder:
            for name in self.carried:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.folder / name, folder / name)
            for name, text in self.texts.items():
                (folder / name).write_text(text, "utf-8")
            for name, result in self.results.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                result.model.save(folder / name, external_data, data=self._data(name))
            write_texts(also or {})
        return target

    def _data(self, path: str) -> str:
        """The file beside a model that its weights go to, called as it was, and one that no unpruned model reads."""
        taken, name = {Path(other).name for other in self.carried}, Path(path).name
        had = [f.name for f in self.results[path].model.data_files if f.name in (f"{name}.data", f"{name}_data")]
        return next(n for n in (*had, f"{name}_data", f"{name}.pruned_data") if n not in taken)

    def summary(self) -> str:
        """What the command line prints of every model, and of the folder."""
        parts = [f"{name}\n{result.summary()}" for name, result in self.results.items()]
        return "\n".join((*parts, *self.lines()))

    def lines(self) -> Iterator[str]:
        """What there is to say beside the models."""
        yield from (f"{name} is as it was: {why}" for name, why in self.unpruned.items())
        yield from self.notes
        if self.left_out:
            yield f"left out, as they hold the dense weights: {', '.join(self.left_out)}"


def models_in(folder: Path) -> list[str]:
    """The paths of all models in a folder; UsageError where there are none."""
    found = [name for name in _files(folder) if name.endswith(".onnx")]
    if not found:
        raise UsageError(f"{folder} has no .onnx file; give a model, or a folder of an exported network")
    return found


def check_output(folder: Path, out: Path) -> None:
    """Refuses (UsageError) an output folder that cannot be made, or lies in the one that is read."""
    if same_file(folder, out) or out.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{out} lies in {folder}, which is read; give a folder elsewhere")
    check_new_folder(out)


def prune_folder(
    folder: str | os.PathLike[str], options: Options | None = None, *, prune: Pruner = api.prune,
    **keywords: Unpack[OptionKeywords],
) -> FolderResult:  # fmt: skip
    """Prune every model of a folder as Hugging Face's exporters write them.

    Keyword arguments are the fields of `Options`; `prune` does the work on one model. Raises what `prune` raises, with
    the path of the model; CheckFailed where models that share weights cannot be shown to lose the same;
    NothingToPrune where nothing can go of any."""
    root, options = Path(folder), given(options, keywords)
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; `onnxprune.prune` takes the path of a model")
    names = models_in(root)
    if options.kv_heads and _follow_caches(root):
        prune = evenly(prune)
    if len(names) == 1:
        results, unpruned = {names[0]: prune(root / names[0], options)}, dict[str, str]()
    else:
        results, unpruned = pruned_together(root, names, options, prune)
    if not results:
        raise NothingToPrune("; ".join(f"{name}: {why}" for name, why in unpruned.items()))
    texts, notes = _configurations(root, results)
    others = [name for name in _others(root, results, unpruned) if name not in texts]
    left_out = [n for n in others if any(fnmatch.fnmatch(Path(n).name, pattern) for pattern in OTHER_WEIGHTS)]
    carried = [n for n in others if n not in left_out]
    return FolderResult(root, results, unpruned, tuple(carried), tuple(left_out), texts, tuple(notes))


def _others(root: Path, results: Mapping[str, api.Result], unpruned: Iterable[str]) -> list[str]:
    """The files that are neither pruned models nor data that only these read."""
    replaced = {root / name for name in results}
    for result in results.values():
        replaced.update(result.model.data_files)
    for name in unpruned:
        replaced.difference_update(Model.load(root / name).data_files)
    return [name for name in _files(root) if replaced.isdisjoint((root / name, (root / name).resolve()))]


def _files(folder: Path) -> Iterator[str]:
    """The paths inside a folder of all files, but for those in hidden folders (.git, download caches)."""
    for where, inside, files in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield from sorted(Path(where, name).relative_to(folder).as_posix() for name in files)


def _follow_caches(root: Path) -> bool:
    """Whether the folder has a configuration, which has one number of heads for the caches of all layers. UsageError
    where none could say it."""
    files = [name for name in _files(root) if Path(name).name in (CONFIG, genai.CONFIG)]
    if not files or any(Path(name).name == genai.CONFIG for name in files):
        return bool(files)
    objects = [config for name in files if (config := _object(root / name)) is not None]
    if objects and not any(cache_key(config) for config in objects):
        raise UsageError(
            f"{root / files[0]} has no key for the heads of a cache alone ({' or '.join(SHARED_HEADS)}), so that "
            "readers would not know of those that go; leave out --kv-heads, or prune the file by itself"
        )
    return True


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it holds none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _configurations(root: Path, results: Mapping[str, api.Result]) -> tuple[dict[str, str], list[str]]:
    """The texts of configurations that change, by their paths, and what is said of them."""
    texts, notes = dict[str, str](), list[str]()
    for path, own in _homes(root, results).items():
        config = _object(root / path)
        if config is None:
            notes.append(f"{path.as_posix()} holds no JSON object, so no size in it was looked at")
            continue
        if path.name == genai.CONFIG:
            after, said = genai.updated(config, path.parent.as_posix(), own)
        else:
            after, said = _updated(root, config, own)
        notes += [f"{path.as_posix()}: {note}" for note in said]
        if after != config:
            indent = INDENT.match((root / path).read_text("utf-8"))
            width = len(indent[1]) if indent else 2
            texts[path.as_posix()] = json.dumps(after, indent=width, ensure_ascii=False) + "\n"
    return texts, notes


def _homes(root: Path, results: Mapping[str, api.Result]) -> dict[Path, dict[str, api.Result]]:
    """By configuration, the models that it is about: those of its folder, and of folders in it that have none."""
    found: dict[Path, dict[str, api.Result]] = {}
    for name, result in results.items():
        for kind in (CONFIG, genai.CONFIG):
            above = next((p / kind for p in Path(name).parents if (root / p / kind).is_file()), None)
            if above is not None:
                found.setdefault(above, {})[name] = result
    return found


def _updated(
    root: Path, config: Mapping[str, Any], results: Mapping[str, api.Result]
) -> tuple[dict[str, Any], list[str]]:
    """A config.json as its models are now, and what to say of it."""
    shared = {cut for result in results.values() for cut in cuts(result)}
    groups = [cut for name, result in results.items() for cut in _cuts(root, name, result)]
    return updated(config, groups, shared.pop() if len(shared) == 1 else None)


def _cuts(root: Path, name: str, result: api.Result) -> list[Cut]:
    """The groups of one pruned model."""
    weights = Model.load(root / name).normalised().weights
    shapes = {n: w.shape for n, w in weights.items()}
    return [Cut.of(name, group, result.plan, shapes) for group in result.report.groups]
