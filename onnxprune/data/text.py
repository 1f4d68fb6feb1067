"""Natural text as the ids of tokens, for models whose data nobody gave and whose tokenizer lies beside the file.

To a language model random ids are a text of no meaning, which drives it into states that no sentence does. So what it
gets are sentences of stories, speeches, science, computing and daily life, from `text/`; who wrote them and the
licences stand in `text/SOURCES.md`. Knows the inputs of a model, no units.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.batches import Feed
from onnxprune.data.inputs import Input
from onnxprune.errors import UsageError
from onnxprune.model import Array
from onnxprune.run import first_line
from onnxprune.shapes import Inputs

TOKENIZER = "tokenizer.json"
SEGMENTS = 16
"""A table of at most so many rows tells the parts of a text from each other, not its words."""
WORDS = 1000
"""In a table of at least so many rows there are words. A smaller one may be of letters or bytes, which need no
tokenizer; then none is missed."""
LEAST = 8
"""So few ids are no text."""
UNKNOWN = 0.5
"""A tokenizer that makes the same id of more than this share of the text does not know its words."""
SENTENCES = 4
"""A text that need not fill its row has at most so many. Such texts served an embedding model better than rows that
are full (cosine to the dense model .9894, full .9877)."""


class Unusable(Exception):
    """Why there is no text for a model."""


@cache
def sentences() -> tuple[str, ...]:
    """All of them, those of a passage one after the other."""
    folder = resources.files("onnxprune.data") / "text"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".txt")), key=lambda f: f.name)
    return tuple(line for f in files for line in f.read_text("utf-8").splitlines() if line)


class TextSource:
    """Draws texts for the inputs `specs` of a model, by the tokenizer in `file` if there is one, or says why it
    cannot."""

    def __init__(self, file: Path | None, specs: Sequence[Input]) -> None:
        self.file, self.specs = file, specs

    @cached_property
    def usable(self) -> Tokenizer | str:
        """The tokenizer, or the reason that there is none to be used."""
        try:
            tokenizer = Tokenizer(self.file)
            rows = min(s.bound for s in self.specs if may_be_words(s))
            if tokenizer.largest >= rows:
                raise Unusable(f"{TOKENIZER} makes ids up to {tokenizer.largest}, the model knows {rows}")
        except Unusable as reason:
            return str(reason)
        return tokenizer

    def check(self) -> None:
        """UsageError where the tokenizer, which the user named, makes no text for this model."""
        takes = any(map(may_be_words, self.specs))
        why = self.usable if takes else "the model takes no ids of tokens"
        if isinstance(why, str):
            raise UsageError(f"--tokenizer {self.file}: {why}")

    def drawn(self, rng: np.random.Generator, dims: Inputs) -> Feed:
        """What a batch of texts fills, at these sizes: ids, zeros for what tells parts of a text from each other, and
        the mask of texts that are padded. Nothing where there is no text to be had; `rng` then stays as it is."""
        words = self.words(dims)
        tokenizer = self.usable if words else ""
        if isinstance(tokenizer, str):
            return {}
        shape = dims[words[0].name]
        masks = [s for s in self.specs if s.kind == "mask" and dims[s.name] == shape]
        may_pad = len(words) == 1 and (len(masks) == 1 or tokenizer.padding in words[0].compared)
        made = {s.name: np.zeros(dims[s.name], s.dtype) for s in self.specs if tells_parts(s)}
        for spec in words:
            ids, lengths = tokenizer.rows(rng, dims[spec.name], may_pad)
            made[spec.name] = ids.astype(spec.dtype)
        if may_pad:
            made |= {s.name: (np.arange(shape[1]) < lengths[:, None]).astype(s.dtype) for s in masks}
        return made

    def words(self, dims: Inputs) -> list[Input]:
        """The inputs that take a text a row."""
        return [s for s in self.specs if may_be_words(s) and dims[s.name][1] >= LEAST]

    def text(self, dims: Inputs) -> str:
        """What the ids are, for the report; empty where no text could be meant."""
        words = self.words(dims)
        if not words or (min(s.bound for s in words) < WORDS and self.file is None):
            return ""
        if isinstance(self.usable, str):
            return f"random token ids ({self.usable})"
        return f"English sentences that come with onnxprune, by {TOKENIZER}"


def may_be_words(spec: Input) -> bool:
    """Whether an input takes the tokens of texts, one text a row."""
    return spec.kind == "tokens" and spec.batch == 0 and len(spec.axes) == 2 and spec.bound > SEGMENTS


def tells_parts(spec: Input) -> bool:
    """Whether an input tells the parts of a text from each other."""
    return spec.kind == "tokens" and spec.bound <= SEGMENTS


def tokenizer_of(path: Path | None, given: str | os.PathLike[str] | None = None) -> Path | None:
    """The file that is `given`; else the one in the folder of the model at `path` or in the folder above, as exporters
    lay them; None where there is none. UsageError for a file that is given and not there."""
    if given is not None:
        if not Path(given).is_file():
            raise UsageError(f"--tokenizer {given}: no such file; a tokenizer.json is wanted")
        return Path(given)
    folders = () if path is None else (path.absolute().parent, path.absolute().parent.parent)
    return next((folder / TOKENIZER for folder in folders if (folder / TOKENIZER).is_file()), None)


def opened(file: Path | None) -> Any:
    """What the package tokenizers makes of a `tokenizer.json`, which neither cuts nor pads; Unusable without the
    package or the file, or where it cannot be read."""
    try:
        import tokenizers
    except ImportError:
        there = "" if file else f"{TOKENIZER} beside the model and "
        raise Unusable(f"with {there}pip install 'onnxprune[text]' it would be natural text") from None
    if file is None:
        raise Unusable(f"with {TOKENIZER} beside the model it would be natural text")
    with readable(file):
        own = tokenizers.Tokenizer.from_file(str(file))
        own.no_truncation()
        own.no_padding()
    return own


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Unusable for whatever the package tokenizers raises."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # the library's own
            raise
        raise Unusable(f"{file.name} cannot be used: {first_line(error)}") from error


class Tokenizer:
    """What a `tokenizer.json` makes of the sentences. `largest` id; `padding`: the id that fills a row, or None."""

    def __init__(self, file: Path | None) -> None:
        """Unusable where there is no file, it cannot be read, or it does not know the words."""
        self.own = opened(file)
        assert file is not None
        with readable(file):
            # Alone and joined, as many tokenizers make another id of a word behind a space.
            texts = (*sentences(), " ".join(2 * sentences()))
            plain = [self.own.encode(text, add_special_tokens=False).ids for text in texts]
            special = self.own.encode("").ids
        ids = np.concatenate(plain)
        if (
            len(special) >= LEAST
            or min(map(len, plain)) == 0
            or np.unique(ids, return_counts=True)[1].max() > UNKNOWN * len(ids)
        ):
            raise Unusable(f"{TOKENIZER} does not know the words of English")
        self.padding = self._padding()
        self.largest = int(max(ids.max(), *special, self.padding or 0))

    def _padding(self) -> int | None:
        added = self.own.get_added_tokens_decoder().items()
        return next((k for k, token in added if token.special and token.content.strip("<|[]>").lower() == "pad"), None)

    def rows(self, rng: np.random.Generator, shape: Sequence[int], may_pad: bool) -> tuple[Array, Array]:
        """Ids (rows, length) of a text a row, and how many of each row are text (rows,): all, unless `may_pad` and the
        tokenizer has an id for it; then texts are a few sentences long."""
        count, length = shape
        self.own.enable_truncation(length)
        short = may_pad and self.padding is not None
        texts = [self._text(rng, length, short) for _ in range(count)]
        ids = np.full((count, length), self.padding or 0)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        return ids, np.array([len(text) for text in texts])

    def _text(self, rng: np.random.Generator, length: int, short: bool) -> list[int]:
        start, amount = int(rng.integers(len(sentences()))), int(rng.integers(1, SENTENCES, endpoint=True))
        while True:
            every = sentences()
            ids: list[int] = self.own.encode(" ".join(every[(start + k) % len(every)] for k in range(amount))).ids
            if short or len(ids) == length:
                return ids
            amount *= 2
