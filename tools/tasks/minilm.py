"""Sentence embeddings of MiniLM, with three layers and with six, on texts of vaderSentiment, beside the dense model's.

There is no label: the score is the cosine, cut at 0, between the embeddings of a model and of the dense one, so the
dense model has 1.
"""

from __future__ import annotations

import json
import unicodedata
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np

from .base import PARTS, Feeds, Task, batches, choose, generator, open_session

TOKENS = 48


@cache
def vocabulary(path: Path) -> dict[str, int]:
    words: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    return words


@cache
def sentences(folder: Path, part: str) -> list[str]:
    """The different texts of one part: every fourth is for calibration."""
    lines = [
        line.split("\t")[-1].strip()
        for path in sorted(folder.glob("*_GroundTruth.txt"))
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    every = sorted({line for line in lines if len(line.split()) >= 4})
    return [line for i, line in enumerate(every) if PARTS[i % 4 != 0] == part]


def words(text: str) -> list[str]:
    """Lower case without accents, every punctuation mark a word of its own."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return "".join(c if c.isalnum() or c.isspace() else f" {c} " for c in plain).split()


def pieces(word: str, vocab: dict[str, int]) -> list[int]:
    """The word as the longest pieces of the vocabulary from the left; one unknown piece if there are none."""
    out: list[int] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        found = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in vocab), None)
        if found is None:
            return [vocab["[UNK]"]]
        out.append(vocab[prefix + word[start:found]])
        start = found
    return out


def tokens(text: str, vocab: dict[str, int]) -> list[int]:
    body = [piece for word in words(text) for piece in pieces(word, vocab)]
    return [vocab["[CLS]"], *body[: TOKENS - 2], vocab["[SEP]"]]


def inputs(data: Path, part: str, n: int, seed: int) -> Feeds:
    """Token ids and their mask, [n, 48] each."""
    every, vocab = sentences(data / "sentences", part), vocabulary(data / "tokenizer.json")
    ids, mask = np.zeros((n, TOKENS), np.int64), np.zeros((n, TOKENS), np.int64)
    for row, k in enumerate(choose(len(every), n, generator("minilm_l3", part, seed))):
        line = tokens(every[k], vocab)
        ids[row, : len(line)], mask[row, : len(line)] = line, 1
    return {"input_ids": ids, "attention_mask": mask}


@lru_cache(8)
def reference(data: Path, model: Path, n: int, seed: int) -> np.ndarray:
    """The dense model's embeddings of the test sentences, [n, 384]."""
    session = open_session(model)
    feeds = inputs(data, "test", n, seed)
    return np.concatenate([session.run(None, piece)[-1] for piece in batches(task(data, model), feeds, 64)])


def labelled(data: Path, model: Path, n: int, seed: int) -> tuple[Feeds, np.ndarray]:
    return inputs(data, "test", n, seed), reference(data, model, n, seed)


def score(outputs: list[np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """The embedding is the last of the model's outputs, [n, 384]."""
    got = outputs[-1]
    scale = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
    return np.clip((got * wanted).sum(1) / np.maximum(scale, 1e-12), 0, 1).astype(np.float64)


def task(data: Path, model: Path) -> Task:
    return Task(
        name=model.stem,
        model=model,
        inputs=partial(inputs, data),
        labelled=partial(labelled, data, model),
        score=score,
        items=500,
        metric="cosine",
        kind="embedding transformer",
        data=(data / "sentences", data / "tokenizer.json"),
    )


def tasks(cache: Path) -> list[Task]:
    return [task(cache / "data", cache / "models" / f"{name}.onnx") for name in ("minilm_l3", "minilm_l6")]
