"""Folders as Hugging Face's exporters write them: every model pruned, what they share alike, the rest carried over."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from folders import BART, BERT, HIDDEN, bert, decoder, encoder, renamed, written
from graphs import graph, run
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import CheckFailed, NothingToPrune, OnnxPruneError, UsageError
from onnxprune.files import new_folder
from onnxprune.integrations import FolderResult, prune_folder
from onnxprune.integrations.configs import Cut, updated

FC1, FC2 = "decoder_layers_{}_fc1_weight", "decoder_layers_{}_fc2_weight"


def weights(path: Path, prefix: str = "") -> dict[str, np.ndarray]:
    return {t.name.removeprefix(prefix): numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return written(tmp_path / "bert", {"model.onnx": bert()}, BERT)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """As optimum writes them; the decoder that takes a cache has other names inside."""
    models = {
        "encoder_model.onnx": encoder(),
        "decoder_model.onnx": decoder(),
        "decoder_with_past_model.onnx": renamed(decoder(past=True)),
    }
    return written(tmp_path / "bart", models, BART)


def test_a_model_with_its_tokenizer_and_configuration(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, out, report = contents(one), tmp_path / "out", tmp_path / "report.json"
    (one / ".git").mkdir()
    (one / ".git" / "HEAD").write_text("x")
    (one / "model.safetensors").write_bytes(b"dense")
    assert main([str(one), str(out), "--fast", "--ratio", "0.5", "--report", str(report), "--no-heads", "--nodes-to-exclude", "*_k_weight", "*_q_weight", "*_v_weight"]) == 0
    found = contents(out)
    assert found.keys() == before.keys()
    assert found["vocab.txt"] == before["vocab.txt"]
    assert json.loads(found["config.json"]) == BERT | {"intermediate_size": HIDDEN // 2}
    assert json.loads((tmp_path / "report.model.json").read_text())["kind"] == "report"
    said = capsys.readouterr().out
    assert "config.json: intermediate_size 20 -> 10" in said
    assert "left out, as they hold the dense weights: model.safetensors" in said
    assert {k: v for k, v in contents(one).items() if k in before} == before
    feeds = {"input_ids": np.arange(12).reshape(2, 6)}
    assert run(onnx.load(out / "model.onnx"), feeds)[0].shape == run(bert(), feeds)[0].shape


def test_what_files_share_loses_the_same(three: Path, tmp_path: Path) -> None:
    out = prune_folder(three, ratio=0.5, fast=True).save(tmp_path / "out")
    first, cached = weights(out / "decoder_model.onnx"), weights(out / "decoder_with_past_model.onnx", "onnx_")
    for k in range(2):
        assert first[FC1.format(k)].shape[1] == HIDDEN // 2
        assert np.array_equal(first[FC1.format(k)], cached[FC1.format(k)])
        assert np.array_equal(first[FC2.format(k)], cached[FC2.format(k)])
    assert weights(out / "encoder_model.onnx")["encoder_layers_0_fc1_weight"].shape[1] == HIDDEN // 2
    config = json.loads((out / "config.json").read_text())
    assert (config["encoder_ffn_dim"], config["decoder_ffn_dim"], config["encoder_attention_heads"]) == (10, 10, 3)
    assert [*config["onnxprune"]] == ["encoder_model.onnx"]


def test_refitted_values_are_the_same_in_every_file(three: Path, tmp_path: Path) -> None:
    result = prune_folder(three, ratio=0.4, calib_samples=32, effort="low")
    assert result.results["decoder_model.onnx"].plan.refits
    notes = result.results["decoder_with_past_model.onnx"].report.notes
    assert "weights that it shares with decoder_model.onnx have the units and values chosen there" in notes
    out = result.save(tmp_path / "out")
    dense, first = weights(three / "decoder_model.onnx"), weights(out / "decoder_model.onnx")
    cached = weights(out / "decoder_with_past_model.onnx", "onnx_")
    assert all(np.array_equal(first[name], cached[name]) for name in first.keys() & cached.keys())
    assert any(dense[n].shape == w.shape and not np.array_equal(dense[n], w) for n, w in cached.items())
    plan = result.results["decoder_with_past_model.onnx"].plan
    onnxprune.verify(three / "decoder_with_past_model.onnx", out / "decoder_with_past_model.onnx", plan)


def test_a_group_that_one_file_holds_stays_in_all(tmp_path: Path) -> None:
    """The width of the decoder may go with --residual; that of the encoder, with which it shares words, is an output."""
    alone = written(tmp_path / "alone", {"decoder_with_past_model.onnx": decoder(past=True)}, BART)
    both = written(tmp_path / "both", {"decoder_with_past_model.onnx": decoder(past=True), "encoder_model.onnx": encoder()}, BART)
    options: dict[str, Any] = {"ratio": 0.5, "fast": True, "residual": "all"}
    shape = weights(prune_folder(alone, **options).save(tmp_path / "a") / "decoder_with_past_model.onnx")["shared_words"].shape
    assert shape == (40, 6)
    for name in ("encoder_model.onnx", "decoder_with_past_model.onnx"):
        out = tmp_path / "b" if (tmp_path / "b").exists() else prune_folder(both, **options).save(tmp_path / "b")
        assert weights(out / name)["shared_words"].shape == (40, 12)
    assert weights(tmp_path / "b" / "decoder_with_past_model.onnx")[FC1.format(0)].shape[1] == HIDDEN // 2


def merged() -> ModelProto:
    """Both decoders of one layer in the branches of an If, with weights outside, as optimum merges them."""
    branch = "h = MatMul(x, w1) i = Add(h, b1) r = Relu(i) {} = MatMul(r, w2)"
    text = f"y = If(cached) <then_branch = a () => (float[N, 6] t) {{ {branch.format('t')} }}, else_branch = b () => (float[N, 6] e) {{ {branch.format('e')} }}>"
    return graph("(bool cached, float[N, 6] x) => (float[N, 6] y)", text, w1=(6, 10), b1=(10,), w2=(10, 6))


def plain(**weights: Any) -> ModelProto:
    return graph("(float[N, 6] x) => (float[N, 6] y)", "h = MatMul(x, w1) i = Add(h, b1) r = Relu(i) y = MatMul(r, w2)", **weights)


def test_a_merged_decoder(tmp_path: Path) -> None:
    given = {t.name: numpy_helper.to_array(t) for t in merged().graph.initializer}
    root = written(tmp_path / "in", {"onnx/decoder_model_merged.onnx": merged(), "onnx/decoder_model.onnx": plain(**given)}, {})
    out = prune_folder(root, ratio=0.5, calib_samples=64).save(tmp_path / "out")
    first, other = weights(out / "onnx/decoder_model.onnx"), weights(out / "onnx/decoder_model_merged.onnx")
    assert first["w1"].shape == (6, 5)
    assert np.array_equal(first["w1"], other["w1"])
    assert np.array_equal(first["w2"], other["w2"])
    assert np.array_equal(first["b1"], other["b1"])
    assert not np.isin(first["w2"], given["w2"]).all()  # it was refitted


def test_external_data_has_the_name_that_hugging_face_gives_it(tmp_path: Path) -> None:
    root = written(tmp_path / "in", {"onnx/model.onnx": bert()}, BERT, external=True)
    assert (root / "onnx" / "model.onnx_data").exists()
    before = contents(root)
    out = prune_folder(root, ratio=0.5, fast=True).save(tmp_path / "out", external_data=True)
    assert contents(out).keys() == before.keys()
    assert contents(root) == before
    assert (out / "onnx" / "model.onnx_data").stat().st_size < (root / "onnx" / "model.onnx_data").stat().st_size
    onnx.checker.check_model(out / "onnx" / "model.onnx")
    onnxprune.inspect(out / "onnx" / "model.onnx")


def test_links_of_a_download_cache_are_followed(one: Path, tmp_path: Path) -> None:
    cache = tmp_path / "snapshot"
    cache.mkdir()
    for path in one.iterdir():
        os.symlink(path, cache / path.name)
    out = prune_folder(cache, ratio=0.5, fast=True).save(tmp_path / "out")
    assert not any(p.is_symlink() for p in out.iterdir())
    assert contents(out).keys() == contents(one).keys()


def test_a_model_of_which_nothing_goes_is_copied(one: Path, tmp_path: Path) -> None:
    words = graph("(int64[N, T] ids) => (float[N, T, 12] y)", "y = Gather(words, ids)", words=(40, 12))
    onnx.save(words, one / "embed_tokens.onnx")
    result = prune_folder(one, ratio=0.5, fast=True)
    out = result.save(tmp_path / "out")
    assert [*result.unpruned] == ["embed_tokens.onnx"]
    assert "embed_tokens.onnx is as it was: " in result.summary()
    assert (out / "embed_tokens.onnx").read_bytes() == (one / "embed_tokens.onnx").read_bytes()
    (one / "model.onnx").unlink()
    with pytest.raises(NothingToPrune):
        prune_folder(one, fast=True)


@pytest.mark.parametrize(
    "named", [{"nodes_to_exclude": ["decoder_layers_0_fc1_weight"]}, {"ratio_of": {"decoder_layers_0_fc1_weight[1]": 0.0}}], ids=min
)
def test_names_that_only_one_model_has(named: dict[str, Any], three: Path, tmp_path: Path) -> None:
    kept = prune_folder(three, ratio=0.5, fast=True, **named)
    for name in ("decoder_model.onnx", "decoder_with_past_model.onnx"):
        found = {g.name.removeprefix("onnx_"): g.kept for g in kept.results[name].report.groups}
        assert found.get("decoder_layers_0_fc1_weight[1]", HIDDEN) == HIDDEN
        assert found["decoder_layers_1_fc1_weight[1]"] == HIDDEN // 2
    for wrong in ({"nodes_to_exclude": ["nothing"]}, {"op_types_to_exclude": ["Nothing"]}, {"input_shapes": {"nothing": (1,)}}, {"ratio_of": {"nothing": 0.1}}):
        with pytest.raises(UsageError, match=r"[Nn]othing"):
            prune_folder(three, fast=True, **wrong)  # type: ignore[arg-type]


def layers(names: tuple[str, ...], values: list[np.ndarray]) -> ModelProto:
    text = "h = MatMul(x, {0}) r = Relu(h) z = MatMul(r, {1}) i = MatMul(z, {2}) s = Relu(i) y = MatMul(s, {3})"
    return graph("(float[N, 6] x) => (float[N, 6] y)", text.format(*names), **dict(zip(names, values, strict=True)))


def test_equal_weights_that_nothing_tells_apart(tmp_path: Path) -> None:
    """Two layers of the same numbers, under other names in each file. One file keeps one of them whole, and it cannot be
    told which one that is in the other."""
    w1, w2 = np.random.default_rng(0).standard_normal((2, 6, 6)).astype(np.float32)
    models = {f"{x}.onnx": layers(tuple(f"{x}{k}" for k in range(4)), [w1, w2, w1, w2]) for x in ("one", "two")}
    root = written(tmp_path / "in", models, {})
    alike = prune_folder(root, ratio=0.5, fast=True).save(tmp_path / "out")
    assert {w.shape for w in weights(alike / "one.onnx").values()} == {(6, 3), (3, 3), (3, 6)}
    with pytest.raises(CheckFailed, match=r"share 'one\d' and cannot be shown to lose the same"):
        prune_folder(root, ratio=0.5, fast=True, nodes_to_exclude=["one0"])


@pytest.mark.parametrize("between", ["", "Identity"])
def test_zeros_of_several_layers(between: str, tmp_path: Path) -> None:
    """Which of them gets the new bias is told by the matrix beside it, or not guessed."""
    given = {n: np.random.default_rng(k).standard_normal((6, 6)).astype(np.float32) for k, n in enumerate("ab")}
    given |= {n: np.zeros(6, np.float32) for n in "pq"}
    text = f"h = MatMul(x, a) i = Add(h, p) r = Relu(i) j = MatMul(r, b) {f's = {between}(j)' if between else ''} k = Add({'s' if between else 'j'}, q) y = Identity(k)"
    model = graph("(float[N, 6] x) => (float[N, 6] y)", text, **given)
    root = written(tmp_path / "in", {"one.onnx": model, "two.onnx": renamed(model)}, {})
    if between:
        with pytest.raises(CheckFailed, match=r"two.onnx: it has weights that are equal to 'q' of one.onnx, .* \(fast=True\)"):
            prune_folder(root, ratio=0.5, calib_samples=64)
        assert prune_folder(root, ratio=0.5, fast=True).results
        return
    out = prune_folder(root, ratio=0.5, calib_samples=64).save(tmp_path / "out")
    one, two = weights(out / "one.onnx"), weights(out / "two.onnx", "onnx_")
    assert one["q"].any()
    assert not one["p"].any()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_bias_where_there_was_none(tmp_path: Path) -> None:
    given = {n: np.random.default_rng(k).standard_normal((6, 6)).astype(np.float32) for k, n in enumerate("ab")}
    model = graph("(float[N, 6] x) => (float[N, 6] y)", "h = MatMul(x, a) r = Sigmoid(h) k = Gemm(r, b) y = Identity(k)", **given)
    root = written(tmp_path / "in", {"one.onnx": model, "two.onnx": renamed(model)}, {})
    out = prune_folder(root, ratio=0.5, calib_samples=64).save(tmp_path / "out")
    (one,), (two,) = ([n for n in onnx.load(out / f"{x}.onnx").graph.node if n.op_type == "Gemm"] for x in ("one", "two"))
    assert len(one.input) == len(two.input) == 3
    assert np.array_equal(weights(out / "one.onnx")[one.input[2]], weights(out / "two.onnx")[two.input[2]])


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--plan", "p.json"], 2, "--plan is about one model, and {three} has 3"),
        (["--validate", "v.npz"], 2, "--validate is about one model"),
        (["--keep-on-fail", "--max-drop", "0.1", "--validate", "v.npz"], 2, "--keep-on-fail keeps a file"),
        (["--report", "missing/r.json"], 2, "does not exist"),
        (["--nodes-to-exclude", "*"], 3, "everything is excluded"),
        (["--calib", "data.npz"], 2, "does not exist"),
    ],
)  # fmt: skip
def test_what_is_refused(
    flags: list[str], code: int, says: str, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(three), "out", *flags, *([] if "--calib" in flags else ["--fast"])]) == code
    assert says.format(three=three) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == [three.name]


def test_where_it_cannot_be_written(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "none").mkdir()
    for source, out, says in [
        (one, tmp_path / "file", "is a file"), (one, tmp_path / "full", "not empty"), (one, one / "out", "lies in"),
        (one, one, "lies in"), (one, tmp_path / "no" / "out", "does not exist"), (tmp_path / "none", tmp_path / "out", "has no .onnx file"),
    ]:  # fmt: skip
        assert main([str(source), str(out), "--fast"]) == 2
        assert says in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "x").read_text() == "x"
    with pytest.raises(UsageError, match="not a folder"):
        prune_folder(one / "model.onnx")


def test_a_broken_model_ends_it(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one / "broken.onnx").write_bytes(b"\x08\x07broken")
    assert main([str(one), str(tmp_path / "out"), "--fast"]) == 2
    assert "broken.onnx" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_gate_of_a_folder_with_one_model(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "v.npz", input_ids=np.random.default_rng(0).integers(0, 40, (64, 6)))
    flags = ["--fast", "--ratio", "0.5", "--validate", str(tmp_path / "v.npz"), "-q"]
    assert main([str(one), str(tmp_path / "out"), *flags, "--min-cosine", "1"]) == 1
    assert "cosine with the dense model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([str(one), str(tmp_path / "out"), *flags, "--min-cosine", "0.1", "--report", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.model.json").read_text())["validation"]["samples"] == 64


def test_a_folder_takes_its_place_whole(tmp_path: Path) -> None:
    left = tmp_path / ".out.0123456789ab.tmp"
    left.mkdir()
    (left / ".lock").write_text("")
    (left / "x").write_text("of a run that was killed")
    with suppress(KeyError), new_folder(tmp_path / "out") as folder:
        (folder / "model").write_text("x")
        assert not left.exists()
        raise KeyError
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "out").mkdir()  # an empty one may be there
    with new_folder(tmp_path / "out") as folder:
        (folder / "model").write_text("x")
        with new_folder(tmp_path / "out") as other:  # another run that is alive is left alone
            assert folder.exists()
            assert other != folder
            (other / "model").write_text("y")
            with pytest.raises(OnnxPruneError), new_folder(tmp_path / "gone" / "out"):
                pass
        (tmp_path / "out" / "model").unlink()
    assert (tmp_path / "out" / "model").read_text() == "x"


def test_summary_and_result(one: Path) -> None:
    result = prune_folder(one, ratio=0.5, fast=True)
    assert isinstance(result, FolderResult)
    assert result.summary().startswith("model.onnx\n")
    assert "proof:" in result.summary()


# Configurations


def cut(model: str = "model.onnx", side: str = "", units: tuple[int, int] = (20, 10), heads: Any = (0, 0), name: str = "a", shape: Any = (12, 20)) -> Cut:
    return Cut(model, name, side, units, heads, frozenset({shape}))


@pytest.mark.parametrize(
    ("config", "cuts", "wanted"),
    [
        ({}, [cut(), cut()], {"intermediate_size": 10}),
        ({}, [cut(), cut(units=(20, 11))], None),
        ({}, [cut()], None),  # one layer says nothing of the other
        ({}, [cut(), cut(), cut(name="c", units=(7, 3), shape=(3, 7))], {"intermediate_size": 10, "record": "c"}),
        ({}, [cut(shape=(3, 20)), cut(shape=(3, 20))], None),  # as wide, but of another layer
        ({"num_hidden_layers": None}, [cut(), cut()], None),
        ({}, [cut(units=(20, 20)), cut(units=(20, 20))], {}),
        ({}, [cut(heads=(3, 2)), cut(heads=(3, 2))], {"num_attention_heads": 2}),
        ({}, [cut(heads=(3, None)), cut(heads=(3, None))], None),
        ({"head_dim": None}, [cut(heads=(3, 2)), cut(heads=(3, 2))], None),  # readers would divide the width by it
        ({"num_key_value_heads": 1}, [cut(heads=(3, 2)), cut(heads=(3, 2))], None),
        ({"decoder_ffn_dim": 20, "decoder_layers": 2}, [cut(side="decoder"), cut(side="decoder")], {"decoder_ffn_dim": 10, "intermediate_size": 10}),
    ],
)  # fmt: skip
def test_a_key_changes_where_it_is_certain(config: dict[str, Any], cuts: list[Cut], wanted: dict[str, Any] | None) -> None:
    before = BERT | config
    after, notes = updated(before, cuts)
    recorded = after.pop("onnxprune", {})
    if wanted is None:
        assert after == before
        assert recorded
        assert "no key says" in notes[-1]
    else:
        extra = wanted.pop("record", "")
        assert after == before | wanted
        assert after["head_dim"] == BERT["head_dim"]
        assert bool(recorded) == bool(extra)
        assert len(notes) == len(wanted) + bool(extra)


def test_heads_that_go_whole(tmp_path: Path) -> None:
    """Where the file removes whole heads, their number is known, and their size stays."""
    root = written(tmp_path / "in", {"model.onnx": bert()}, BERT)
    plan = {}
    for k in range(2):
        names = [(f"encoder_layers_{k}_{n}_weight", (1,)) for n in ("q", "k", "v")]
        gone = tuple(range(4, 8))
        plan[f"encoder_layers_{k}_k_weight[1]"] = tuple(onnxprune.planning.Removal(n, axes, (12,), gone) for n, axes in names)
    made = prune_folder(root, prune=lambda path, options: onnxprune.prune(path, fast=True, plan=onnxprune.Plan(plan)))
    config = json.loads(made.texts["config.json"])
    assert config == BERT | {"num_attention_heads": 2}


@pytest.mark.parametrize("text", ["no json", "[]", "[" * 10000])
def test_a_configuration_that_is_none_is_copied(text: str, one: Path, tmp_path: Path) -> None:
    (one / "config.json").write_text(text)
    result = prune_folder(one, ratio=0.5, fast=True)
    assert (result.save(tmp_path / "out") / "config.json").read_text() == text
    assert "config.json holds no JSON object" in result.summary()
