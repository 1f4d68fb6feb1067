"""A pruned model learns from its dense one: nearer to it, the same graph, the same bytes twice, stopped and gone on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import array, graph, replace
from numpy.typing import NDArray
from onnx import ModelProto

import onnxprune
from onnxprune.cli import main
from onnxprune.cli.commands import prune
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.finetuning import parted, recipe
from onnxprune.finetuning.inputs import Bucket, buckets, calib_of, multiplied
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import tuning
from onnxprune.report import to_json
from onnxprune.shapes import infer

Floats = NDArray[np.float32]


def pictures(count: int, seed: int = 0) -> Floats:
    """Smooth ones: what a layer gives at neighbours is alike."""
    rng = np.random.default_rng(seed)
    small = rng.standard_normal((count, 3, 4, 4)).astype(np.float32)
    return np.kron(small, np.ones((1, 1, 2, 2), np.float32))


@pytest.fixture
def sharp(tiny: ModelProto) -> ModelProto:
    """The tiny classifier with scores that decide, and for one class or another."""
    replace(tiny, "head_weight", 100 * array(tiny, "head_weight"))
    replace(tiny, "head_bias", array(tiny, "head_bias") - answers(tiny, pictures(256, 3)).mean(0))
    return tiny


def answers(model: Any, x: Floats) -> Floats:
    proto = model.to_proto() if isinstance(model, Model) else model
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"image": x})[
        0
    ]  # type: ignore[no-any-return]


def error(dense: ModelProto, model: Any, x: Floats) -> float:
    a, b = answers(dense, x), answers(model, x)
    return float(np.square(a - b).sum() / np.square(a - a.mean()).sum())


def saved(model: Model, path: Path) -> bytes:
    model.save(path)
    return path.read_bytes()


# ---- without torch


def test_without_torch_one_line_names_the_extra(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    out = tmp_path / "out.onnx"
    for words in ([str(tiny_path), str(out), "--finetune"], ["finetune", str(tiny_path), str(tiny_path), str(out)]):
        assert main(words) == 2
        assert capsys.readouterr().err.endswith("--finetune needs torch: pip install 'onnxprune[finetune]'\n")
    assert not out.exists()


@pytest.mark.parametrize("wrong", ["0", "-3", "5x", "1.5", "m", 0, -1, 2.5])
def test_a_length_that_is_none_is_refused(tiny: ModelProto, wrong: Any) -> None:
    with pytest.raises(UsageError, match="a number of steps from 1 on, or a time such as 90s, 5m or 1h"):
        onnxprune.prune(tiny, finetune=wrong)


@pytest.mark.parametrize(
    ("asked", "steps", "seconds"),
    [(True, recipe.STEPS, 0), (7, 7, 0), ("7", 7, 0), ("90s", recipe.STEPS, 90), ("1.5m", recipe.STEPS, 90), ("1h", recipe.STEPS, 3600)],
)  # fmt: skip
def test_lengths(asked: Any, steps: int, seconds: float) -> None:
    assert recipe.Length.of(asked) == recipe.Length(steps, seconds)


@pytest.mark.parametrize(("said", "found"), [("true", True), ("200", "200"), ('"5m"', "5m")])
def test_a_file_of_flags_may_ask_for_it(said: str, found: Any, tmp_path: Path) -> None:
    (tmp_path / "flags.toml").write_text(f"finetune = {said}")
    (tmp_path / "in.onnx").touch()
    args = prune.parser().parse([str(tmp_path / "in.onnx"), "out.onnx", "--config", str(tmp_path / "flags.toml")])
    assert args.finetune == found


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [recipe.rate_at(k, 100, 1.0) for k in range(100)]
    assert rates.index(max(rates)) == 29
    assert max(rates) == 1.0
    assert rates[:30] == sorted(rates[:30])
    assert rates[29:] == sorted(rates[29:], reverse=True)
    assert rates[-1] < 1e-12


@pytest.mark.parametrize(
    ("samples", "judging"), [(127, 0), (128, 64), (200, 100), (512, 128), (1500, 225), (4000, 256)]
)
def test_inputs_are_parted_before_anything_else(tiny: ModelProto, samples: int, judging: int) -> None:
    """Every sample is in one part; the cut is calibrated on the one that learns."""
    model = Model.load(tiny).normalised()
    x = pictures(samples)
    x[:, 0, 0, 0] = np.arange(samples)
    parts = parted(model, infer(model), Options(calib=[{"image": x, "labels": np.arange(samples)}], calib_batch=1))
    fit, judge = ([int(v) for f in feeds for v in f["image"][:, 0, 0, 0]] for feeds in (parts.fit, parts.judge))
    assert sorted(fit + judge) == list(range(samples))
    assert len(judge) == judging
    assert parts.labels is not None
    assert parts.labels.tolist() == fit
    feeds = calib_of(parts)()
    assert [int(v) for f in feeds for v in f["labels"]] == fit


def test_copies_are_of_the_same_samples_and_range(tiny: ModelProto) -> None:
    from onnxprune.data import describe

    model = Model.load(tiny).normalised()
    specs = describe(model, infer(model))
    feeds = [{"image": pictures(6, k)} for k in range(2)]
    (bucket,) = buckets(feeds, specs, np.arange(12))
    for mixed in (False, True):
        more = multiplied(bucket, specs, mixed, 4, 0)
        assert len(more) == 48
        assert np.array_equal(more.arrays["image"][:12], bucket.arrays["image"])
        assert np.array_equal(more.labels, np.tile(np.arange(12), 4))
        assert more.arrays["image"].min() >= bucket.arrays["image"].min()
        assert more.arrays["image"].max() <= bucket.arrays["image"].max()
        assert not np.array_equal(more.arrays["image"][12:24], bucket.arrays["image"])
        again = multiplied(bucket, specs, mixed, 4, 0)
        assert np.array_equal(again.arrays["image"], more.arrays["image"])


def test_a_batch_of_fixed_size_is_never_short() -> None:
    bucket = Bucket({"x": np.arange(10)}, {}, 4)
    assert [feed["x"].tolist() for feed, _ in bucket.feeds(np.arange(10))] == [[0, 1, 2, 3], [4, 5, 6, 7]]


# ---- with torch


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def test_a_cut_learns_and_stays_the_proven_graph(torch: Any, sharp: ModelProto, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"ratio": 0.5, "calib": [{"image": pictures(384)}]}
    cut = onnxprune.prune(sharp, **asked)
    done = onnxprune.prune(sharp, **asked, finetune=60)
    told = done.report.finetune
    assert told is not None
    assert told["accepted"]
    assert told["steps"] == 60
    assert told["targets"] == {"logits": "classes"}
    assert told["output_error"]["after"] < told["output_error"]["before"]
    fresh = pictures(500, 9)
    assert error(sharp, done.model, fresh) < error(sharp, cut.model, fresh)
    found = onnxprune.verify(sharp, done.model, done.plan, calib=asked["calib"])
    assert found.refitted
    assert to_json(done.report)["finetune"]["samples"] == 256
    again = onnxprune.prune(sharp, **asked, finetune=60)
    assert saved(again.model, tmp_path / "a.onnx") == saved(done.model, tmp_path / "b.onnx")


def test_only_weights_alone_and_training(torch: Any, sharp: ModelProto) -> None:
    done = onnxprune.prune(sharp, ratio=0.5, fast=True, calib=[{"image": pictures(256)}], finetune=40)
    assert done.plan.reconstruct == "finetune"
    assert onnxprune.verify(sharp, done.model, done.plan, calib=[{"image": pictures(64)}]).refitted


def test_the_command_writes_the_graph_with_other_values(
    torch: Any, sharp: ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, cut, out, data = (tmp_path / n for n in ("dense.onnx", "cut.onnx", "out.onnx", "data.npz"))
    onnx.save(sharp, dense)
    onnxprune.prune(dense, ratio=0.5, fast=True).save(cut)
    x = pictures(256)
    np.savez(data, image=x, labels=answers(sharp, x).argmax(1))
    assert main(["finetune", str(dense), str(cut), str(out), "--data", str(data), "--steps", "40"]) == 0
    assert "fine-tuned in 40 steps" in capsys.readouterr().out
    before, after = onnx.load(cut), onnx.load(out)
    for model in (before, after):
        del model.graph.initializer[:]
    assert before == after
    assert error(sharp, onnx.load(out), pictures(200, 5)) < error(sharp, onnx.load(cut), pictures(200, 5))


def test_a_gate_decides_whether_out_is_written(
    torch: Any, sharp: ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, cut, out, data = (tmp_path / n for n in ("dense.onnx", "cut.onnx", "out.onnx", "data.npz"))
    onnx.save(sharp, dense)
    onnxprune.prune(dense, ratio=0.5, fast=True).save(cut)
    x = pictures(256)
    np.savez(data, image=x, labels=answers(sharp, x).argmax(1))
    command = ["finetune", str(dense), str(cut), str(out), "--steps", "5", "--validate", str(data)]
    for flags, code in ((["--max-drop", "0"], 1), (["--max-drop", "0.9", "--gate", "interval"], 0), (["--max-drop", "1"], 2)):
        assert main([*command, *flags]) == code
        captured = capsys.readouterr()
        assert out.exists() == (code == 0)
        assert ("top-1 of 256" in captured.out) == (code < 2)
        assert "--max-drop" in captured.err or not code
        out.unlink(missing_ok=True)
    assert main([*command, "--max-drop", "0", "--keep-on-fail", "-q"]) == 1
    assert (tmp_path / "out.failed.onnx").exists()
    done = onnxprune.finetune(sharp, cut, finetune=5, validate=data, gates=onnxprune.Gates(0.9))
    assert done.report["validation"]["failed"] == ()
    with pytest.raises(onnxprune.CheckFailed, match="more than max_drop=0"):
        onnxprune.finetune(sharp, cut, finetune=5, validate=data, gates=onnxprune.Gates(0.0))


def test_labels_that_are_no_classes(torch: Any, sharp: ModelProto) -> None:
    with pytest.raises(UsageError, match="the labels are not all from 0 to 4"):
        onnxprune.finetune(sharp, sharp, {"image": pictures(256), "labels": np.arange(256)})


def test_a_large_fixed_batch(torch: Any, sharp: ModelProto) -> None:
    """More than a step takes otherwise: as many as the model wants."""
    for info in (*sharp.graph.input, *sharp.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 100
    cut = onnxprune.prune(sharp, ratio=0.5, fast=True).model
    done = onnxprune.finetune(sharp, cut, {"image": pictures(500)}, finetune=20)
    assert done.report["samples"] + done.report["judged_on"] == 500
    assert done.report["accepted"]


def test_what_is_too_few_or_does_harm_changes_nothing(
    torch: Any, sharp: ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut = onnxprune.prune(sharp, ratio=0.5, fast=True).model
    few = onnxprune.finetune(sharp, cut, {"image": pictures(100)})
    assert "100 inputs are too few" in few.report["skipped"]
    assert few.model.weights == cut.weights
    monkeypatch.setattr(recipe, "RATE", 1e4)
    monkeypatch.setattr(recipe, "LOWER", 1.0)
    bad = onnxprune.finetune(sharp, cut, {"image": pictures(256)}, finetune=20)
    assert not bad.report["accepted"]
    assert saved(bad.model, tmp_path / "a.onnx") == saved(cut, tmp_path / "b.onnx")


def test_a_rate_that_is_too_high_is_lowered(torch: Any, sharp: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = onnxprune.prune(sharp, ratio=0.5, fast=True).model
    monkeypatch.setattr(recipe, "RATE", 3.0)
    monkeypatch.setattr(recipe, "LOWER", 1000.0)
    done = onnxprune.finetune(sharp, cut, {"image": pictures(256)}, finetune=40)
    assert done.report["rate"] == pytest.approx(0.003)
    assert done.report["accepted"]


def test_ctrl_c_keeps_what_was_found_and_a_checkpoint_goes_on(
    torch: Any, sharp: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxprune.finetuning import training

    cut, data, kept = onnxprune.prune(sharp, ratio=0.5, fast=True).model, {"image": pictures(256)}, tmp_path / "kept"
    whole = onnxprune.finetune(sharp, cut, data, finetune=40)
    step = training._step

    def stop(run: Any, optimiser: Any, at: int, rate: float) -> None:
        if at == 30:
            raise KeyboardInterrupt
        step(run, optimiser, at, rate)

    monkeypatch.setattr(training, "_step", stop)
    part = onnxprune.finetune(sharp, cut, data, finetune=40, checkpoint=kept)
    assert part.interrupted
    assert part.report["accepted"]
    assert kept.exists()
    onnx.save(sharp, tmp_path / "dense.onnx")
    cut.save(tmp_path / "cut.onnx")
    np.savez(tmp_path / "data.npz", **data)  # type: ignore[arg-type]
    names = [str(tmp_path / n) for n in ("dense.onnx", "cut.onnx", "out.onnx", "data.npz")]
    assert main(["finetune", *names[:3], "--data", names[3], "--steps", "40"]) == 130
    assert "fine-tuned interrupted after 30 steps" in " ".join(capsys.readouterr().out.split())
    assert Path(names[2]).exists()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="a checkpoint of other models, data or options"):
        onnxprune.finetune(sharp, cut, data, finetune=41, checkpoint=kept)
    rest = onnxprune.finetune(sharp, cut, data, finetune=40, checkpoint=kept)
    assert saved(rest.model, tmp_path / "a.onnx") == saved(whole.model, tmp_path / "b.onnx")
    assert not kept.exists()
    kept.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="not a checkpoint"):
        onnxprune.finetune(sharp, cut, data, finetune=40, checkpoint=kept)


def test_a_time_ends_it(torch: Any, sharp: ModelProto) -> None:
    cut = onnxprune.prune(sharp, ratio=0.5, fast=True).model
    done = onnxprune.finetune(sharp, cut, {"image": pictures(256)}, finetune="1s")
    assert 0 < done.report["steps"] < 100_000


def test_made_up_inputs_are_said_to_be_none_of_the_users(torch: Any, sharp: ModelProto, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    words = [str(tiny_path), str(tmp_path / "out.onnx"), "--ratio", "0.5", "--calib-samples", "192", "--finetune", "20"]
    assert main([*words, "--report", str(tmp_path / "report.json")]) == 0
    assert "none of yours" in " ".join(capsys.readouterr().out.split())
    told = json.loads((tmp_path / "report.json").read_text())["finetune"]
    assert told["made_up"]
    assert (told["samples"], told["judged_on"]) == (192, 128)


def test_a_gate_sees_the_trained_model(torch: Any, sharp: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def holds(result: onnxprune.Result) -> bool:
        seen.append(result.report.finetune)
        return True

    onnxprune.largest(sharp, holds, calib=[{"image": pictures(256)}], finetune=10)
    assert seen
    assert all(told and told["steps"] == 10 for told in seen)


TOKENS = """
h = Gather(table, ids) a = MatMul(h, w1) b = Gelu(a) c = MatMul(b, w2) s = Add(h, c)
l = LayerNormalization(s, gain, bias) k = Constant<value_ints = [1]>() y = ReduceMean<keepdims = 0>(l, k)
"""


def test_embeddings_of_a_fixed_batch_learn_by_values(torch: Any) -> None:
    """Tokens, two of a batch; no classes: squared error by variance."""
    model = graph("(int64[2, 6] ids) => (float[2, 16] y)", TOKENS, 20, table=(50, 16), w1=(16, 64), w2=(64, 16),
                  gain=(16,), bias=(16,))  # fmt: skip
    data = [{"ids": np.random.default_rng(k).integers(0, 50, (2, 6))} for k in range(128)]
    cut = onnxprune.prune(model, ratio=0.5, fast=True).model
    done = onnxprune.finetune(model, cut, data, finetune=40)
    assert done.report["targets"] == {"y": "values"}
    assert done.report["accepted"]


def test_before_a_softmax_and_with_codes(torch: Any) -> None:
    """What is learned are the scores, and integer weights stay codes of the same scales."""
    rng = np.random.default_rng(0)
    model = graph(
        "(float[N, 8] x) => (float[N, 5] y)",
        "r = DequantizeLinear<axis = 1>(w, s) h = MatMul(x, r) a = Relu(h) z = MatMul(a, v) y = Softmax(z)",
        w=rng.integers(-128, 128, (8, 32)).astype(np.int8), s=np.full(32, 0.01, np.float32), v=(32, 5),
    )  # fmt: skip
    cut = onnxprune.prune(model, ratio=0.5, fast=True).model
    done = onnxprune.finetune(model, cut, {"x": rng.standard_normal((256, 8)).astype(np.float32)}, finetune=60)
    assert done.report["targets"] == {"z": "classes"}
    assert done.report["accepted"]
    before, after = cut.weights["w"], done.model.weights["w"]
    assert after.onnx_type == before.onnx_type
    assert not np.array_equal(after.array(), before.array())
    assert np.array_equal(done.model.weights["s"].array(), cut.weights["s"].array())


def test_what_cannot_be_trained_is_refused_before_any_work(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(
        "(float[N, 3, 3] x) => (float[N] y)", "a = MatMul(x, v) h = MatMul(a, w) y = Det(h)", v=(3, 3), w=(3, 3)
    )
    monkeypatch.setattr(onnxprune.pipeline.pruner, "Planner", None)
    with pytest.raises(NothingToPrune, match="cannot be fine-tuned: Det "):
        onnxprune.prune(model, finetune=True, calib=[{"x": np.ones((256, 3, 3), np.float32)}])


def test_two_models_that_are_no_pair(torch: Any, sharp: ModelProto) -> None:
    other = graph("(float[N, 8] x) => (float[N, 5] y)", "y = MatMul(x, w)", w=(8, 5))
    with pytest.raises(UsageError, match="different inputs"):
        tuning.finetune(sharp, other, {"image": pictures(256)})
