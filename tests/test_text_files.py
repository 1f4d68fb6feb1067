"""Texts of the user's: windows of tokens with all that a language model takes beside them, and perplexity on them."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph
from onnx import ModelProto

from onnxprune import api
from onnxprune.cli import main
from onnxprune.data import Calibration, cache_outputs, calibration, describe, text
from onnxprune.errors import UsageError
from onnxprune.measure import Gates, compared
from onnxprune.measure.guessing import by_frequency
from onnxprune.measure.metrics import METRICS
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.planning import OutputError
from onnxprune.planning.memory import samples_that_fit
from onnxprune.shapes import infer

Captured = pytest.CaptureFixture[str]
WORDS, WIDTH = 400, 16
needs_tokenizers = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="needs tokenizers")
CACHES = "float[N,2,P,8] past_0_key, float[N,2,P,8] past_0_value"


def following(words: int = WORDS) -> Any:
    """How likely the words of the sentences follow each other, as log odds [words, words]: the tokenizer's ids."""
    ids = tokenizer_ids()
    counts = np.full((words, words), 0.05)
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    return np.log(counts / counts.sum(1, keepdims=True)).astype(np.float32)


def trained() -> Any:
    """Of the most frequent words of the sentences."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(vocab_size=WORDS, special_tokens=["[UNK]"])
    made.train_from_iterator(text.sentences(), trainer)
    return made


def tokenizer_ids() -> Any:
    return np.array(trained().encode(" ".join(text.sentences())).ids)


def bigrams(knows: bool = True) -> ModelProto:
    """A model that knows which word follows which, through a hidden layer of as many units; or one of noise."""
    table = following() if knows else np.random.default_rng(0).standard_normal((WORDS, WORDS), np.float32)
    body = "e = Gather(eye, input_ids) h = MatMul(e, inner) r = Relu(h) logits = MatMul(r, outer)"
    eye = np.eye(WORDS, dtype=np.float32)
    return graph(f"(int64[N,S] input_ids) => (float[N,S,{WORDS}] logits)", body, eye=eye, inner=eye, outer=table)


def decoder() -> ModelProto:
    """Two heads with a cache, a mask of past and present, and positions that a table of sines is looked up by."""
    return graph(
        f"(int64[N,S] input_ids, int64[N,T] attention_mask, int64[N,S] position_ids, {CACHES})"
        f" => (float[N,S,{WORDS}] logits, float[N,2,T,8] now_0_key, float[N,2,T,8] now_0_value)",
        """e = Gather(words, input_ids) p = Cast<to=1>(position_ids) last = Constant<value_ints=[2]>()
        pu = Unsqueeze(p, last) a = Mul(pu, steps) s = Sin(a) x = Add(e, s)
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) split = Constant<value_ints=[0,0,2,8]>()
        q4 = Reshape(q, split) k4 = Reshape(k, split) v4 = Reshape(v, split)
        qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,1,3]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)
        now_0_key = Concat<axis=2>(past_0_key, kt)
        now_0_value = Concat<axis=2>(past_0_value, vt)
        kx = Transpose<perm=[0,1,3,2]>(now_0_key) m = MatMul(qt, kx)
        one = Constant<value_int=1>() less = Sub(one, attention_mask) far = Cast<to=1>(less)
        heads = Constant<value_ints=[1,2]>() fu = Unsqueeze(far, heads) low = Mul(fu, minus) mm = Add(m, low)
        w = Softmax(mm) o = MatMul(w, now_0_value) ot = Transpose<perm=[0,2,1,3]>(o)
        flat = Constant<value_ints=[0,0,16]>() of = Reshape(ot, flat) z = MatMul(of, wo) t = Add(z, x)
        u = MatMul(t, w1) r = Relu(u) logits = MatMul(r, w2)""",
        words=(WORDS, WIDTH), wq=(WIDTH, WIDTH), wk=(WIDTH, WIDTH), wv=(WIDTH, WIDTH), wo=(WIDTH, WIDTH),
        w1=(WIDTH, 32), w2=(32, WORDS), steps=(WIDTH,), minus=np.full(1, -1e4, np.float32),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of what follows what, its tokenizer, and a text that it knows."""
    trained().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "words.txt").write_text("\n".join(text.sentences()), "utf-8")
    (tmp_path / "m.onnx").write_bytes(bigrams().SerializeToString())
    return tmp_path


def run(path: Any, data: Path | None, **options: Any) -> Calibration:
    model = Model.load(path).normalised()
    return calibration(model, infer(model), Options(**({"calib": data, "calib_samples": 24} | options)).resolved())


@pytest.mark.parametrize(
    ("logits", "tokens", "wanted"),
    [
        (np.zeros((2, 3, 7)), np.zeros((2, 3), int), 7.0),
        (9 * np.eye(4)[[[1, 2, 3]]], np.array([[0, 1, 2]]), 1 + 3 * np.exp(-9)),
        (9 * np.eye(4)[[[0, 1, 2]]], np.array([[0, 1, 2]]), np.exp(9) + 3),  # it must not be shown what it is to say
        (9 * np.eye(4)[[[1, 2, 3]]], np.array([[3, 1, -1]]), 1 + 3 * np.exp(-9)),
        (np.zeros((1, 2, 5), np.float16), np.array([[0, -100]]), 1.0),
    ],
)
def test_perplexity_is_of_every_next_token(logits: Any, tokens: Any, wanted: float) -> None:
    metric = METRICS["perplexity"]
    found = metric.statistics([logits], tokens)
    assert found.shape == (len(tokens), 2)
    assert metric.value(found.sum(0), np.asarray(float(len(found)))) == pytest.approx(wanted)
    assert not metric.higher_is_better


@pytest.mark.parametrize(("logits", "tokens"), [
    (np.zeros((2, 1, 7)), np.zeros((2, 3), int)), (np.zeros((2, 7)), np.zeros((2, 3), int)),
    (np.zeros((2, 3, 7)), np.full((2, 3), 7)), (np.zeros((2, 3, 7), int), np.zeros((2, 3), int)),
])  # fmt: skip
def test_what_is_no_perplexity(logits: Any, tokens: Any) -> None:
    with pytest.raises(UsageError, match="perplexity needs"):
        METRICS["perplexity"].statistics([logits], tokens)


def test_guessing_by_frequency() -> None:
    rng = np.random.default_rng(0)
    assert by_frequency(list(rng.integers(0, 8, (40, 500))), 8) == pytest.approx(8, rel=0.01)
    assert by_frequency([np.array([0] * 98 + [1, -1])] * 2, 4) < 1.3
    assert by_frequency([np.array([-1, -1])] * 2, 4) == np.inf


def test_inputs_of_a_decoder_are_told_by_names_and_by_who_reads_them() -> None:
    model = Model.load(decoder()).normalised()
    kinds = {s.name: s.kind for s in describe(model, infer(model))}
    assert list(kinds.values()) == ["tokens", "mask", "positions", "cache", "cache"]
    renamed = decoder().SerializeToString().replace(b"past_0_", b"both_0_")
    model = Model.load(ModelProto.FromString(renamed)).normalised()
    assert [s.kind for s in describe(model, infer(model))][3:] == ["cache", "cache"]
    fused = graph(
        "(int64[N,S] ids, float[N,2,P,8] a, float[N,2,P,8] b, int32[N] c, int32 d)"
        " => (float[N,S,9] y, float[N,2,T,8] e, float[N,2,T,8] f)",
        "x = Gather(t, ids) q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) y2, e, f = "
        "com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, a, b, c, d) y = MatMul(y2, wo)",
        t=(50, 16), wq=(16, 32), wk=(16, 16), wv=(16, 16), wo=(32, 9),
    )  # fmt: skip
    model = Model.load(fused).normalised()
    assert [s.kind for s in describe(model, infer(model))] == ["tokens", "cache", "cache", "integers", "integers"]
    feed = run(fused, None).feeds[0]
    assert (feed["a"].shape, feed["c"].tolist(), feed["d"].item()) == ((24, 2, 0, 8), [63] * 24, 64)


def test_a_decoder_is_judged_by_its_scores_and_not_by_its_caches() -> None:
    model = Model.load(decoder()).normalised()
    shapes = infer(model)
    assert cache_outputs(model, describe(model, shapes)) == {"now_0_key", "now_0_value"}
    groups = api.analysed(Model.load(decoder()), Options(), api.Clock(), runs=False)
    feeds = calibration(model, shapes, Options(calib_samples=2)).feeds
    assert OutputError(groups, feeds, ("cpu",)).names == ["logits"]
    memory = [samples_that_fit(groups, Options(calib=calib, text_length=512)) for calib in (None, "words.txt")]
    assert 4 * memory[1] < memory[0], "windows of eight times as many tokens take more memory"


@needs_tokenizers
def test_windows_of_a_text_and_what_stands_beside_them(folder: Path) -> None:
    path = folder / "decoder.onnx"
    path.write_bytes(decoder().SerializeToString())
    found = run(path, folder / "words.txt", text_length=40, calib_batch=8)
    assert found.source.startswith("words.txt: 24 samples, of ")
    assert found.source.endswith(" (windows of 40 tokens, by tokenizer.json)")
    ids = tokenizer_ids()
    windows = {tuple(w) for w in ids[: len(ids) // 40 * 40].reshape(-1, 40).tolist()}
    for feed in found.feeds:
        assert {tuple(row) for row in feed["input_ids"].tolist()} <= windows
        assert feed["position_ids"].tolist() == [list(range(40))] * 8
        assert feed["attention_mask"].tolist() == [[1] * 40] * 8
        assert feed["past_0_key"].shape == (8, 2, 0, 8)
    again = run(path, folder / "words.txt", text_length=40, calib_batch=8)
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(found.feeds, again.feeds, strict=True))


@needs_tokenizers
def test_a_cache_of_fixed_size_is_hidden_by_the_mask(folder: Path) -> None:
    shapes = {"past_0_key": (1, 2, 5, 8), "input_ids": (1, 30), "attention_mask": (1, 35), "position_ids": (1, 30),
              "past_0_value": (1, 2, 5, 8)}  # fmt: skip
    model = decoder()
    for spec in model.graph.input:
        for dim, size in zip(spec.type.tensor_type.shape.dim, shapes.get(spec.name, ()), strict=False):
            dim.dim_value = size
    path = folder / "fixed.onnx"
    path.write_bytes(model.SerializeToString())
    feed = run(path, folder / "words.txt").feeds[0]
    assert feed["attention_mask"].tolist() == [[0] * 5 + [1] * 30]
    assert feed["input_ids"].shape == (1, 30)


@needs_tokenizers
def test_a_text_is_measured_by_perplexity_and_gated_in_its_unit(folder: Path, capsys: Captured) -> None:
    path, data = folder / "m.onnx", str(folder / "words.txt")
    ids = tokenizer_ids()
    options = Options(text_length=32)
    found = compared(path, data, options)
    rows = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    table = following()
    wanted = np.exp(-np.mean([table[a, b] for row in rows for a, b in pairwise(row)]))
    quality = found.measure(Model.load(bigrams()).normalised())
    assert (quality.metric, quality.before, quality.drop) == ("perplexity", pytest.approx(wanted, rel=1e-4), 0)
    line = [str(path), str(folder / "o.onnx"), "--fast", "--ratio", "0.2", "--validate", data, "--text-length", "32"]
    assert main(line) == 0
    assert "perplexity of" in capsys.readouterr().out
    (folder / "o.onnx").unlink()
    assert main([*line, "--metric", "perplexity", "--max-drop", "0.5"]) == 1
    assert "perplexity rises by" in capsys.readouterr().err
    assert not (folder / "o.onnx").exists()


@needs_tokenizers
def test_tokens_as_arrays_and_a_mask_of_padding(folder: Path) -> None:
    rows = tokenizer_ids()[:320].reshape(10, 32)
    plain = compared(bigrams(), {"input_ids": rows}, Options(), "perplexity")
    labelled = compared(bigrams(), {"input_ids": rows, "labels": rows}, Options(), "perplexity")
    assert np.array_equal(plain.statistics, labelled.statistics)
    labels = np.where(np.arange(32) < 9, -100, rows)
    fewer = compared(bigrams(), {"input_ids": rows, "labels": labels}, Options(), "perplexity")
    assert (fewer.statistics[:, 1] == 23).all()
    with pytest.raises(UsageError, match="needs the tokens of texts"):
        compared(graph("(float[N,4] x) => (float[N,5] y)", "y = MatMul(x, w)", w=(4, 5)),
                 {"x": np.ones((3, 4), np.float32)}, Options(), "perplexity")  # fmt: skip


@needs_tokenizers
def test_a_model_that_does_not_know_the_text_is_doubted(folder: Path) -> None:
    found = compared(bigrams(False), folder / "words.txt", Options(tokenizer=folder / "tokenizer.json"))
    assert "no better than by the frequency of the tokens" in found.warnings[0]
    with pytest.raises(UsageError, match="max_drop could hold by mistake"):
        found.check(Gates(max_drop=1.0))
    assert compared(folder / "m.onnx", folder / "words.txt", Options()).warnings == ()


@needs_tokenizers
@pytest.mark.parametrize(("why", "says"), [
    ("alone", "a text needs a tokenizer: with tokenizer.json beside the model it would be natural text; or name"),
    ("broken", "a text needs a tokenizer: tokenizer.json cannot be used"),
    ("other", "tokenizer.json makes ids up to 399, but 'input_ids' of the model knows 20: it belongs to another model"),
    ("short", "fewer than 256 tokens; give more text, or text_length"),
    ("binary", "not a text in UTF-8"),
    ("pictures", "a text needs a model with one input of token ids, and this one has no; give an .npz instead"),
    ("more", "a text does not say what the input 'image' gets; give an .npz instead"),
    ("missing", "tokenizer none.json: no such file; a tokenizer.json is wanted"),
])  # fmt: skip
def test_texts_that_cannot_be_read(folder: Path, why: str, says: str) -> None:
    file, options, model = folder / "words.txt", dict[str, Any](), bigrams()
    if why == "alone":
        (folder / "tokenizer.json").unlink()
    elif why == "broken":
        (folder / "tokenizer.json").write_text("{}", "utf-8")
    elif why == "other":
        model = graph("(int64[N,S] input_ids) => (float[N,S,9] y)", "e = Gather(t, input_ids) y = MatMul(e, w)",
                      t=(20, 4), w=(4, 9))  # fmt: skip
    elif why == "short":
        file.write_text("few words", "utf-8")
    elif why == "binary":
        file.write_bytes(b"\xff\xfe\x00\xd8")
    elif why == "pictures":
        model = graph("(float[N,3,8,8] image) => (float[N,4,6,6] y)", "y = Conv(image, w)", w=(4, 3, 3, 3))
    elif why == "more":
        model = graph(
            "(int64[N,S] ids, float[N,3,8,8] image) => (float[N,S,9] y, float[N,4,6,6] z)",
            "e = Gather(t, ids) y = MatMul(e, w) z = Conv(image, v)", t=(WORDS, 4), w=(4, 9), v=(4, 3, 3, 3),
        )  # fmt: skip
    else:
        options["tokenizer"] = "none.json"
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError) as error:
        run(folder / "m.onnx", file, **options)
    assert says in str(error.value)


@needs_tokenizers
def test_a_tokenizer_that_is_named_serves_made_up_texts_too(folder: Path, tmp_path: Path) -> None:
    (folder / "elsewhere").mkdir()
    named = folder / "elsewhere" / "t.json"
    (folder / "tokenizer.json").rename(named)
    assert run(folder / "m.onnx", None).source.startswith("synthetic tokens")
    assert run(folder / "m.onnx", None, tokenizer=named).source.startswith("English sentences")
    with pytest.raises(UsageError, match="the model takes no ids of tokens"):
        run(graph("(float[N,4] x) => (float[N,5] y)", "y = MatMul(x, w)", w=(4, 5)), None, tokenizer=named)
    result = api.prune(bigrams(), ratio=0.2, calib=folder / "words.txt", tokenizer=named, calib_samples=16)
    assert result.report.reconstruction["inputs"].startswith("words.txt: 16 samples, of")
