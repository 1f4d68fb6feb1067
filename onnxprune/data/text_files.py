"""A text of the user's as windows of tokens, full from end to end, as language models are measured on it.

Knows files and arrays; of the model only its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune.data.batches import Feed
from onnxprune.data.beside import beside
from onnxprune.data.calibration_sizes import TOKENS
from onnxprune.data.inputs import Input
from onnxprune.data.text import TOKENIZER, Unusable, may_be_words, opened, readable, tells_parts
from onnxprune.errors import UsageError
from onnxprune.files import is_text
from onnxprune.model import Array, Model
from onnxprune.options import Options
from onnxprune.shapes import Inputs

BLOCK = 1 << 20
"""Characters that are tokenised at once."""


@dataclass(frozen=True)
class Reading:
    """How texts become what `model` takes: by the tokenizer in `file`, in batches of at most `rows`; `dims` gives the
    sizes of all inputs for so many."""

    model: Model
    file: Path | None
    rows: int
    dims: Callable[[int], Inputs]

    @property
    def name(self) -> str:
        """Of the tokenizer."""
        return self.file.name if self.file else TOKENIZER


def read_text(path: Path, specs: Sequence[Input], limit: int, seed: int, reading: Reading) -> tuple[list[Feed], str]:
    """Windows of the text at `path`, a random choice of `limit`, in batches, and how it was cut. UsageError where the
    text, the tokenizer or the model is not fit for it."""
    words = _words(path, specs)
    rows, length = reading.dims(reading.rows)[words.name]
    windows = _windows(path, reading.file, length)
    if windows.max() >= words.bound:
        raise UsageError(
            f"{path}: {reading.name} makes ids up to {windows.max()}, but {words.name!r} of the model knows "
            f"{words.bound}: it belongs to another model"
        )
    chosen = windows[np.sort(np.random.default_rng(seed).permutation(len(windows))[:limit])]
    parts = np.split(chosen, range(rows, len(chosen), rows))
    have = f", of {len(windows):,}" if len(chosen) < len(windows) else ""
    note = f"{have} (windows of {length} tokens, by {reading.name})"
    return [_feed(path, specs, words.name, reading, part) for part in parts], note


def text_length(options: Options) -> int:
    """How many tokens of a text are looked at together, where the model leaves it open: fewer of made-up texts."""
    return options.text_length if is_text(options.calib) else TOKENS


def tokens_of(specs: Sequence[Input], feeds: Sequence[Feed]) -> list[Array] | None:
    """The texts [samples, length] in each of the `feeds`, -1 where a mask of the same shape hides a token; None where
    not just one input takes texts."""
    words = [s.name for s in specs if may_be_words(s)]
    if len(words) != 1:
        return None
    masks = [s.name for s in specs if s.kind == "mask"]
    found = []
    for feed in feeds:
        hidden = [feed[m] == 0 for m in masks if feed[m].shape == feed[words[0]].shape]
        found.append(np.where(np.logical_or.reduce(hidden, initial=False) if hidden else False, -1, feed[words[0]]))
    return found


def _words(path: Path, specs: Sequence[Input]) -> Input:
    """The input that takes the text; UsageError where there is none, or several do."""
    words = [s for s in specs if may_be_words(s)]
    if len(words) != 1:
        takes = "several" if words else "no"
        raise UsageError(
            f"{path}: a text needs a model with one input of token ids, and this one has {takes}; give an .npz instead"
        )
    return words[0]


def _windows(path: Path, file: Path | None, length: int) -> Array:
    """[windows, length] of ids, in the order of the text; what is left at the end of a block is dropped."""
    try:
        own = opened(file)
        assert file is not None
        own.enable_truncation(length)
        found: list[list[int]] = []
        for block in _blocks(path):
            with readable(file):
                first = own.encode(block)
            found += [w.ids for w in (first, *first.overflowing) if len(w.ids) == length]
    except Unusable as reason:
        raise UsageError(f"{path}: a text needs a tokenizer: {reason}; or name the file with --tokenizer") from None
    if not found:
        raise UsageError(f"{path}: fewer than {length} tokens; give more text, or --text-length")
    return np.array(found)


def _blocks(path: Path) -> Iterator[str]:
    """The text in pieces of whole lines, so that a long one does not have to be held as tokens with their places."""
    try:
        with open(path, encoding="utf-8-sig") as text:
            while lines := text.readlines(BLOCK):
                yield "".join(lines)
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path}: not a text in UTF-8") from None


def _feed(path: Path, specs: Sequence[Input], words: str, reading: Reading, windows: Array) -> Feed:
    """Of one batch, which may have fewer rows than the model asks for."""
    dims = reading.dims(len(windows))
    parts = {s.name: np.zeros(dims[s.name]) for s in specs if tells_parts(s)}
    made = parts | beside(reading.model, specs, dims) | {words: windows}
    if others := [s.name for s in specs if s.name not in made]:
        raise UsageError(f"{path}: a text does not say what the input {others[0]!r} gets; give an .npz instead")
    return {s.name: made[s.name][: len(windows)] if s.batch == 0 else made[s.name] for s in specs}
