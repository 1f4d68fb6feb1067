"""The sentences that come with the package, and what a tokenizer beside a model makes of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph

from onnxprune.data import Calibration, calibration, text
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.shapes import infer

FOLDER = Path(text.__file__).parent / "text"
ROWS = 3000
BODY = """e = Gather(words, ids) f = Gather(kinds, segments) g = Add(e, f) m = Cast<to = 1>(mask) n = Unsqueeze(m, axis)
          h = Mul(g, n) y = MatMul(h, w)"""
needs_tokenizers = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="needs tokenizers")


def saved(folder: Path, inputs: str = "int64[N, T] ids, int64[N, T] segments, int64[N, T] mask", body: str = BODY,
          rows: int = ROWS) -> Path:  # fmt: skip
    """A model that adds the embeddings of words and segments, where the mask is one."""
    model = graph(
        f"({inputs}) => (float[N, T, 6] y)", body, words=(rows, 8), kinds=(2, 8), w=(8, 6), axis=np.array([2])
    )
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def tokenizer(folder: Path, special: bool = True, words: int = ROWS - 3) -> Any:
    """Of the most frequent words, between a token that begins a text and one that ends it."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = ["[PAD]", "[CLS]", "[SEP]"] if special else []
    trainer = tokenizers.trainers.WordLevelTrainer(vocab_size=words, special_tokens=[*names, "[UNK]"])
    made.train_from_iterator(text.sentences(), trainer)
    if special:
        made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    made.enable_truncation(7)  # as of training: it is the model that says how long its inputs are
    made.enable_padding(length=7)
    made.save(str(folder / "tokenizer.json"))
    return made


def run(source: Any, **options: Any) -> Calibration:
    model = Model.load(source).normalised()
    return calibration(model, infer(model), Options(**({"calib_samples": 64} | options)).resolved())


def test_every_file_has_an_author_and_a_free_licence() -> None:
    lines = (FOLDER / "SOURCES.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if ".txt |" in line]
    assert [row[0] for row in rows] == sorted(p.name for p in FOLDER.glob("*.txt"))
    assert all(len(row) == 5 and all(row) for row in rows)
    assert all(row[3].startswith("public domain") or row[3] == "MIT" for row in rows)
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 150e3
    assert len(set(text.sentences())) > 900


@needs_tokenizers
@pytest.mark.parametrize("inner", ["", "onnx"])
def test_texts_by_the_tokenizer_beside_the_model_or_a_folder_above(tmp_path: Path, inner: str) -> None:
    tokenizer(tmp_path)
    (tmp_path / inner).mkdir(exist_ok=True)
    found = run(saved(tmp_path / inner))
    assert found.source == "English sentences that come with onnxprune, by tokenizer.json"
    assert (found.samples, found.synthetic) == (64, True)
    ids, mask = (np.concatenate([feed[name] for feed in found.feeds]) for name in ("ids", "mask"))
    assert ids.shape == mask.shape == (64, 64)
    assert {x.dtype.name for feed in found.feeds for x in feed.values()} == {"int64"}
    lengths = mask.sum(1)
    assert (mask == (np.arange(64) < lengths[:, None])).all()
    assert ((ids == 0) == (mask == 0)).all()
    assert (ids[:, 0] == 1).all()
    assert (ids[np.arange(64), lengths - 1] == 2).all()
    assert len(np.unique(lengths)) > 10
    assert all((feed["segments"] == 0).all() for feed in found.feeds)
    again = run(tmp_path / inner / "model.onnx")
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(found.feeds, again.feeds, strict=True) for k in a)
    assert any(not np.array_equal(a["ids"], b["ids"]) for a, b in
               zip(found.feeds, run(tmp_path / inner / "model.onnx", seed=1).feeds, strict=True))  # fmt: skip


@needs_tokenizers
def test_the_words_are_those_of_the_sentences(tmp_path: Path) -> None:
    made = tokenizer(tmp_path)
    made.no_padding()
    made.no_truncation()
    every = made.decode(made.encode(" ".join(2 * text.sentences())).ids)
    for row in run(saved(tmp_path)).feeds[0]["ids"]:
        assert made.decode(row.tolist()) in every


@needs_tokenizers
@pytest.mark.parametrize(("special", "inputs", "body"), [
    (False, "int64[N, T] ids, int64[N, T] segments, int64[N, T] mask", BODY),
    (True, "int64[N, T] ids", "e = Gather(words, ids) y = MatMul(e, w)"),
])  # fmt: skip
def test_without_padding_or_a_mask_every_row_is_full(tmp_path: Path, special: bool, inputs: str, body: str) -> None:
    tokenizer(tmp_path, special)
    found = run(saved(tmp_path, inputs, body), input_shapes={"ids": (0, 200)} if special else {})
    assert found.source.startswith("English")
    for feed in found.feeds:
        assert feed["ids"].shape[1] == (200 if special else 64)
        assert (feed["ids"][:, -1] == 2).all() or not special
        assert (feed.get("mask", np.ones(1)) == 1).all()
        assert not special or (feed["ids"] > 0).all()


@needs_tokenizers
def test_two_texts_are_not_padded(tmp_path: Path) -> None:
    """One mask cannot be told to be that of either."""
    tokenizer(tmp_path)
    inputs = "int64[N, T] ids, int64[N, T] others, int64[N, T] mask"
    found = run(saved(tmp_path, inputs, BODY.replace("kinds, segments", "words, others")))
    assert all((feed["mask"] == 1).all() and (feed["others"] > 0).all() for feed in found.feeds)
    assert any((feed["ids"] != feed["others"]).any() for feed in found.feeds)


@needs_tokenizers
@pytest.mark.parametrize(("why", "says"), [
    ("nothing", "with tokenizer.json beside the model it would be natural text"),
    ("small", "tokenizer.json makes ids up to 2996, the model knows 2000"),
    ("foreign", "tokenizer.json does not know the words of English"),
    ("broken", "tokenizer.json cannot be used: "),
    ("empty", "tokenizer.json cannot be used: "),
])  # fmt: skip
def test_random_ids_where_there_is_no_text(tmp_path: Path, why: str, says: str) -> None:
    rows = 2000 if why == "small" else ROWS
    if why in ("small", "foreign"):
        tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    if why == "foreign":
        data = json.loads(file.read_text("utf-8"))
        data["model"]["vocab"] = {name: k for name, k in data["model"]["vocab"].items() if k < 5}
        file.write_text(json.dumps(data), "utf-8")
    elif why in ("broken", "empty"):
        file.write_text('{"model": 3}' if why == "broken" else "", "utf-8")
    found = run(saved(tmp_path, rows=rows))
    assert found.source.startswith(f"random token ids ({says}")
    assert found.source.count("\n") == 0
    ids = np.concatenate([feed["ids"] for feed in found.feeds])
    assert ids.max() < rows
    assert len(np.unique(ids)) > 100


def test_the_package_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    path = saved(tmp_path)
    says = "pip install 'onnxprune[text]' it would be natural text)"
    assert run(path).source == f"random token ids (with tokenizer.json beside the model and {says}"
    (tmp_path / "tokenizer.json").write_text("{}", "utf-8")
    assert run(path).source == f"random token ids (with {says}"
    assert "natural text" in run(Model.load(path).to_proto()).source


@needs_tokenizers
def test_a_model_in_memory_and_small_tables_get_random_ids(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    path = saved(tmp_path)
    assert run(Model.load(path).to_proto()).source.startswith("random token ids (with tokenizer.json beside")
    (tmp_path / "tokenizer.json").unlink()
    assert run(saved(tmp_path, rows=300)).source == "synthetic tokens"
