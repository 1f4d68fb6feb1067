"""What becomes calibration inputs: every form of data, wrong data, and synthetic inputs by the kind of input."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune import prune
from onnxprune.data import Calibration, calibration, checked, describe
from onnxprune.data.amounts import POOL
from onnxprune.data.images import ImageSource
from onnxprune.data.sources import SHOWN
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.model import Model, Weight
from onnxprune.options import Options
from onnxprune.run import open_session
from onnxprune.shapes import infer
from tests.graphs import graph

MODELS = Path(__file__).parents[1] / "models"
LINEAR = "(float[{n}, 6] x) => (float[{n}, 4] y) {{ y = MatMul(x, w) }}"


def run(source: ModelProto | str | Path, **given: Any) -> Calibration:
    """Calibrates, then proves that every feed runs."""
    model = Model.load(onnx.parser.parse_model(source) if isinstance(source, str) else source).normalised()
    fields = {name: getattr(Options(), name) for name in Options.__dataclass_fields__}
    options: Any = SimpleNamespace(**{**fields, "calib_samples": 64, **given})
    found = calibration(model, infer(model, options.input_shapes), options)
    session = open_session(model)
    for feed in found.feeds:
        session.run(None, feed)
    return found


def parsed(text: str, opset: int = 17, **weights: np.ndarray) -> ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def linear(n: int | str = "N") -> ModelProto:
    return parsed(LINEAR.format(n=n), w=np.random.default_rng(0).standard_normal((6, 4), np.float32))


def rows(found: Calibration, name: str = "x") -> np.ndarray:
    return np.concatenate([feed[name] for feed in found.feeds])


DATA = np.random.default_rng(1).standard_normal((70, 6)).astype(np.float32)


def test_npz_with_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=DATA.astype(np.float64), labels=np.arange(70))
    found = run(linear(), calib=str(tmp_path / "c.npz"), calib_batch=16)
    assert (found.samples, found.synthetic, [len(f["x"]) for f in found.feeds]) == (64, False, [16] * 4)
    assert found.source == "c.npz: 64 of 70 samples"
    assert found.labels is not None
    assert np.array_equal(rows(found), DATA[found.labels])
    assert rows(found).dtype == np.float32
    assert found.diversity is not None
    assert 0 < found.diversity <= 1


def test_values_that_are_infinite_or_become_so_are_refused() -> None:
    """But for minus infinity, which masks hold."""
    for spoilt in (np.inf, 1e300):
        data = DATA.astype(np.float64)
        data[3, 0] = spoilt
        with pytest.raises(UsageError, match="infinite values, or too large ones for float32"):
            run(linear(), calib={"x": data})
    model = Model.load(linear())
    (spec,) = describe(model, infer(model))
    assert checked({"x": np.full((2, 6), -np.inf)}, [spec], "calib")["x"].dtype == np.float32


def test_all_samples_where_there_are_few_and_any_key_for_one_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", whatever=DATA)
    found = run(linear(), calib=tmp_path / "c.npz", calib_samples=512)
    assert found.samples == 70
    assert found.labels is None
    assert np.array_equal(np.sort(rows(found), 0), np.sort(DATA, 0))


@pytest.mark.parametrize("batch", [1, 9])
def test_a_fixed_batch_size_rules_and_the_last_batch_repeats(tmp_path: Path, batch: int) -> None:
    np.savez(tmp_path / "c.npz", x=DATA[:20])
    found = run(linear(batch), calib=tmp_path / "c.npz")
    assert found.samples == 20
    assert all(len(f["x"]) == batch for f in found.feeds)
    assert len(found.feeds) == -(-20 // batch)
    assert np.array_equal(found.feeds[-1]["x"][-1], rows(found)[19])


def test_the_choice_follows_the_seed(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=DATA)
    first, again, other = (rows(run(linear(), calib=tmp_path / "c.npz", seed=s)) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_folders_of_arrays(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / "npy").mkdir(exist_ok=True)
        np.save(tmp_path / "npy" / f"{k}.npy", DATA[k] if k else DATA[:5])  # single samples and batches
        (tmp_path / "npz").mkdir(exist_ok=True)
        np.savez(tmp_path / "npz" / f"{k}.npz", x=DATA[:5])
    assert run(linear(), calib=tmp_path / "npy").samples == 7
    assert run(linear(), calib=tmp_path / "npz").samples == 15


def test_one_npy_for_each_input(tmp_path: Path) -> None:
    two = parsed("(float[N, 6] x, float[N, 6] z) => (float[N, 6] y) { y = Add(x, z) }")
    np.save(tmp_path / "x.npy", DATA)
    np.save(tmp_path / "z.npy", 2 * DATA)
    found = run(two, calib=tmp_path)
    assert np.array_equal(2 * rows(found), rows(found, "z"))


@pytest.mark.parametrize("inner", [True, False])
def test_onnx_test_data(tmp_path: Path, inner: bool) -> None:
    for k in range(3 if inner else 1):
        folder = tmp_path / f"test_data_set_{k}"
        folder.mkdir()
        (folder / "input_0.pb").write_bytes(numpy_helper.from_array(DATA[k : k + 2]).SerializeToString())
    assert run(linear(), calib=tmp_path if inner else tmp_path / "test_data_set_0").samples == (6 if inner else 2)


def test_script(tmp_path: Path) -> None:
    (tmp_path / "feeds.py").write_text(
        "import numpy as np\ndef endless():\n    while True:\n        yield {'x': np.ones((8, 6), np.float32)}\n"
    )
    assert run(linear(), calib=f"{tmp_path / 'feeds.py'}:endless").samples == 64


def test_reader_and_iterable() -> None:
    class Reader:
        left = 5

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left -= 1
            return {"x": DATA[self.left : self.left + 1]} if self.left >= 0 else None

    assert run(linear(), calib=Reader()).source == "Reader: 5 samples"
    found = run(linear(), calib=({"x": DATA[k]} for k in range(40)))
    assert [len(f["x"]) for f in found.feeds] == [32, 8]
    assert run(linear(), calib={"x": DATA}).samples == 64


def test_feeds_of_different_lengths() -> None:
    model = parsed("(float[N, T] x) => (float[N, T] y) { y = Relu(x) }")
    found = run(model, calib=[{"x": np.zeros((3, 300 + k % 2), np.float32)} for k in range(4)])
    assert sorted(f["x"].shape for f in found.feeds) == [(6, 300), (6, 301)]


def pictures(folder: Path, count: int = 5) -> None:
    image = pytest.importorskip("PIL.Image")
    for k in range(count):
        image.fromarray(np.full((20, 30, 3), (255, 51 * k, 0), np.uint8)).save(folder / f"{k}.png")


def test_pictures(tmp_path: Path, tiny: ModelProto) -> None:
    pictures(tmp_path)
    found = run(tiny, calib=tmp_path, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    made = rows(found, "image")
    assert made.shape == (5, 3, 8, 8)
    assert np.allclose(made[:, 0], 1)
    assert np.allclose(made[:, 2], -1)
    assert np.allclose(np.sort(made[:, 1, 0, 0]), np.linspace(-1, 0.6, 5), atol=0.01)
    assert found.source == f"{tmp_path.name}: 5 samples (scaled by --mean, --std and --scale)"
    bgr = rows(run(tiny, calib=tmp_path, mean=(100.0,), calib_samples=2), "image")
    assert bgr.shape[0] == 2
    assert np.allclose(bgr[:, 0], 155)


@pytest.mark.parametrize("scale", [2 / 255, 1.0, 0.5, None])
def test_pixels_are_scaled_less_the_mean_by_the_deviation_of_their_channel(
    scale: float | None, tmp_path: Path, tiny: ModelProto
) -> None:
    """Pictures are red at 255, blue at 0, and green between, each of one shade."""
    pictures(tmp_path)
    mean, std = np.array((0.1, 0.2, 0.4)), np.array((0.5, 1, 2))
    made = rows(run(tiny, calib=tmp_path, mean=tuple(mean), std=tuple(std), scale=scale), "image")[..., 0, 0]
    factor = 1 / 255 if scale is None else scale
    np.testing.assert_allclose(made[:, 0], (255 * factor - 0.1) / 0.5, rtol=1e-5)
    np.testing.assert_allclose(made[:, 2], -0.2, rtol=1e-5)
    green = made[:, 1] + mean[1]
    assert np.abs(green / factor - np.rint(green / factor)).max() < 1e-2  # whole steps of grey
    assert green.max() / factor == pytest.approx(0.8 * 255, abs=1)


def test_pictures_for_channels_last_and_bytes(tmp_path: Path) -> None:
    pictures(tmp_path)
    model = parsed("(uint8[N, 6, 4, 3] x) => (float[N, 6, 4, 3] y) { y = Cast<to = 1>(x) }")
    made = rows(run(model, calib=tmp_path))
    assert made.dtype == np.uint8
    assert made.shape == (5, 6, 4, 3)
    assert (made[..., 0] == 255).all()
    assert (made[..., 2] == 0).all()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": DATA, "b": DATA}, "no array for the input 'x'"),
        ({"x": DATA[:, :5]}, "has shape"),
        ({"x": DATA[:, :, None]}, "has shape"),
        ({"x": DATA.astype(complex)}, "but the data is complex128"),
        ({"x": DATA[:0]}, "no samples"),
        ({"x": np.where(DATA > 0, np.nan, DATA)}, "NaN"),
        ({"x": DATA, "labels": np.arange(69)}, "'labels' must be"),
        ({"labels": np.arange(69)}, "no arrays"),
        ({"x": np.array([None] * 6)}, "not plain arrays"),
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(UsageError, match=says) as caught:
        run(linear(), calib=tmp_path / "c.npz")
    assert "\n" not in caught.value.message


def test_wrong_sources(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "s.py").write_text("x = 1\ndef bad():\n    raise ValueError('no')\ndef number():\n    return 3\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.png").write_text("hello")
    (tmp_path / "pb").mkdir()
    (tmp_path / "pb" / "input_0.pb").write_text("hello")
    for data, says in [
        (tmp_path / "none.npz", "does not exist"),
        (tmp_path / "text.npz", "not plain arrays"),
        (tmp_path / "empty", "nothing to read"),
        (tmp_path / "junk", "pictures need a model"),
        (tmp_path / "pb", "not an ONNX tensor"),
        (f"{tmp_path}/none.py:f", "does not exist"),
        (f"{tmp_path}/s.py:x", "no function 'x'"),
        (f"{tmp_path}/s.py:bad", "ValueError: no"),
        (f"{tmp_path}/s.py:number", "not a int"),
        (3, "not a int"),
        ([3], "gave a int"),
        ([], "gave no feeds"),
        ([{"x": np.zeros((2, 6), np.float32), "y": 3}, {}], "no array for the input 'x'"),
    ]:
        with pytest.raises(UsageError, match=says):
            run(linear(), calib=data)


def test_a_picture_that_is_none(tmp_path: Path, tiny: ModelProto) -> None:
    pytest.importorskip("PIL.Image")
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UsageError, match="not a picture"):
        run(tiny, calib=tmp_path)


# Without data


def test_images_balanced_and_deterministic(tiny: ModelProto) -> None:
    found, again = run(tiny), run(tiny)
    assert found.synthetic
    assert found.samples == 64
    assert "(normalised, by " in found.source
    assert found.source.endswith("class-balanced")
    assert np.array_equal(rows(found, "image"), rows(again, "image"))
    assert found.diversity is not None


def test_the_carried_classifiers_get_spread_predictions() -> None:
    for name in ("fashion_resnet.onnx", "fashion_resnet_bn.onnx"):
        found = run(MODELS / name, calib_samples=128)
        assert "normalised" in found.source
        assert found.diversity is not None
        assert found.diversity > 0.7


@pytest.mark.parametrize(
    ("name", "source"), [("cifar_mobile", "photographs that come with onnxprune"), ("fashion_resnet", "made-up images")]
)
def test_what_spreads_the_answers_of_a_classifier_is_shown_to_it(name: str, source: str) -> None:
    """Ten classes of things in photographs, and of clothes on a black ground."""
    assert run(MODELS / f"{name}.onnx", calib_samples=256).source.startswith(source)


def test_images_that_were_shown_to_decide_are_among_those_that_are_chosen_from(
    tiny: ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image of the kind that won is made or classified twice, and none is there twice."""
    drawn: list[np.ndarray] = []
    draw = ImageSource.drawn

    def counted(*given: Any) -> Any:
        drawn.append(draw(*given))
        return drawn[-1]

    monkeypatch.setattr(ImageSource, "drawn", counted)
    found = rows(run(tiny, calib_samples=16, calib_batch=4), "image")
    others = min(16, POOL * 16 // SHOWN)  # that were shown for nothing
    assert sum(map(len, drawn)) == POOL * 16 + others + 4 + 4  # a batch tells the sizes, one whether there are classes
    assert len(np.unique(found.reshape(len(found), -1), axis=0)) == len(found) == 16


@pytest.mark.parametrize("batch", ["1", "5"])
def test_fixed_batches_of_images(tiny: ModelProto, batch: str) -> None:
    tiny.graph.input[0].type.tensor_type.shape.dim[0].dim_value = int(batch)
    found = run(tiny, calib_samples=13)
    assert (found.samples, len(found.feeds)) == (13, -(-13 // int(batch)))


def test_open_heights_and_widths_take_what_the_user_says(tiny: ModelProto) -> None:
    for axis, name in ((2, "H"), (3, "W")):
        tiny.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    assert rows(run(tiny, calib_samples=2), "image").shape == (2, 3, 32, 32)
    assert rows(run(tiny, calib_samples=2, input_shapes={"image": (0, 3, 24, 40)}), "image").shape == (2, 3, 24, 40)


FRONT = {
    "pixels 0..255, as the first operators show": "a = Sub(x, c) b = Div(a, c)",
    "pixels 0..1, as the first operators show": "a = Sub(x, h) b = Div(a, h)",
    "scaled by the statistics of the BatchNormalization": "a = BatchNormalization(x, one, h3, c3, c3) b = Relu(a)",
}


@pytest.mark.parametrize("text", FRONT)
def test_the_range_by_the_first_operators(text: str) -> None:
    conv = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    c, h = np.float32(127.5), np.float32(0.5)
    model = parsed(
        f"(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {{ {FRONT[text]} y = Conv(b, w) }}",
        w=conv, c=np.array(c), h=np.array(h), one=np.ones(3, np.float32), h3=np.full(3, h), c3=np.full(3, c),
    )  # fmt: skip
    found = run(model)
    assert text in found.source
    low, high = {"255": (0, 255), "0..1": (0, 1)}.get(text[10:13] if "255" in text else text[7:11], (-1e3, 1e3))
    assert low <= rows(found).min()
    assert rows(found).max() <= high
    assert rows(found).std() > (high - low) / 10 or "statistics" in text
    if "statistics" in text:
        assert abs(rows(found).mean() - 127.5) < 5
        assert 5 < rows(found).std() < 15


@pytest.mark.parametrize(("mean", "std", "says"), [(0.0, 1.0, "normalised"), (114.0, 57.0, "pixels 0..255")])
def test_the_range_by_stored_statistics(mean: float, std: float, says: str) -> None:
    """The running statistics of a BatchNormalization behind the first convolution, for inputs of this mean and std."""
    w = np.random.default_rng(0).random((16, 3, 1, 1)).astype(np.float32)
    ones, sums = np.ones(16, np.float32), w.sum((1, 2, 3))
    model = parsed(
        "(float[N, 3, 16, 16] x) => (float[N, 16, 16, 16] y) { a = Conv(x, w) b = BatchNormalization(a, o, o, m, v)"
        " y = Relu(b) }", w=w, o=ones, m=sums * mean, v=(sums * std) ** 2,
    )  # fmt: skip
    assert f"({says}, by the" in run(model, calib_samples=4).source


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        (0.0, 1.0, "normalised"),
        (0.449, 0.226, "pixels 0..1"),
        (114.5, 57.6, "pixels 0..255"),
        (-0.102, 0.452, "pixels -1..1"),
    ],
)
@pytest.mark.parametrize("name", ["fashion_resnet", "fashion_resnet_bn"])
def test_the_range_of_a_trained_model_with_the_normalisation_in_its_first_layer(
    name: str, mean: float, std: float, says: str
) -> None:
    """The carried classifiers take images of mean 0; the same network for pixels has it in the first weights. For one of
    them normalised and -1..1 score alike, within what other photographs change: there the right one may be named next."""
    model = Model.load(MODELS / f"{name}.onnx").normalised()
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    weight = model.weights[conv.input[1]].array() / np.float32(std)
    model.weights[conv.input[1]] = Weight.of(weight)
    norm = next((n for n in model.graph.node if n.op_type == "BatchNormalization"), None)
    shifted, sign = (norm.input[3], 1) if norm else (conv.input[2], -1)
    shift = sign * np.float32(mean) * weight.sum((1, 2, 3))
    model.weights[shifted] = Weight.of(model.weights[shifted].array() + shift)
    source = run(model.to_proto(), calib_samples=4).source
    if (name, says) == ("fashion_resnet", "pixels -1..1") and "(normalised, by the" in source:
        assert "(next: pixels -1..1)" in source
    else:
        assert f"({says}, by the" in source


@pytest.mark.parametrize("scale", [1, 255])
def test_the_range_under_which_answers_depend_on_the_image(scale: int) -> None:
    """Where weights are for pixels up to 255, the biases alone speak under the other ranges: every class is as likely as
    any, for each image. Spread as that is, it is the answer to no image."""
    rng = np.random.default_rng(3)
    w = (rng.standard_normal((24, 1, 3, 3)) / scale).astype(np.float32)
    model = parsed(
        "(float[N, 1, 12, 12] x) => (float[N, 4] y) { a = Conv(x, w, b) r = Relu(a) f = Flatten(r) y = MatMul(f, head) }",
        w=w, b=np.full(24, 0.01, np.float32), head=rng.standard_normal((2400, 4)).astype(np.float32) / 4,
    )  # fmt: skip
    source = run(model, calib_samples=4).source
    assert ("(pixels 0..255, by the spread" in source) == (scale == 255)


def test_tokens_stay_inside_their_tables() -> None:
    model = parsed(
        "(int64[B, T] ids, int64[B, T] mask, int64[B, T] kinds) => (float[B, T, 2] y) {"
        " k = Cast<to = 7>(kinds) a = Gather(words, ids) b = Gather(types, k) m = Cast<to = 1>(mask)"
        " e = Unsqueeze(m, last) c = Add(a, b) y = Mul(c, e) }",
        words=np.ones((50, 2), np.float32), types=np.ones((3, 2), np.float32), last=np.array([-1]),
    )  # fmt: skip
    found = run(model)
    assert rows(found, "ids").shape == (64, 64)
    assert set(rows(found, "ids").ravel()) == set(range(50))
    assert set(rows(found, "kinds").ravel()) == {0, 1, 2}
    assert (rows(found, "mask") == 1).all()
    assert found.source == "synthetic tokens"


def test_a_position_table_that_is_short_and_a_padding_token() -> None:
    model = parsed(
        "(int64[B, T] ids) => (float[B, T, 2] y, bool[B, T] p) { a = Gather(words, ids) s = Shape(ids)"
        " t = Gather<axis = 0>(s, i) r = Range(z, t, i) b = Gather(places, r) y = Add(a, b) p = Equal(ids, pad) }",
        words=np.ones((9, 2), np.float32), places=np.ones((20, 2), np.float32), i=np.array(1), z=np.array(0),
        pad=np.array(4),
    )  # fmt: skip
    made = rows(run(model), "ids")
    assert 1 < made.shape[1] <= 20
    assert set(made.ravel()) == {0, 1, 2, 3, 5, 6, 7, 8}


def test_sound_with_a_state_and_a_rate() -> None:
    model = parsed(
        "(float[N, T] x, float[1, N, 4] state, int64 sr) => (float[N] y, float[1, N, 4] next, bool b) {"
        " y = ReduceMean<axes = [1], keepdims = 0>(x) next = Relu(state) b = Equal(sr, rate) }",
        rate=np.array(16000),
    )
    found = run(model, calib_batch=8)
    feed = found.feeds[0]
    assert (feed["x"].shape, feed["state"].shape, int(feed["sr"])) == ((8, 4096), (1, 8, 4), 16000)
    assert (feed["state"] == 0).all()
    assert len(found.feeds) == 8
    assert found.source == "synthetic sound and integers"


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_features_in_the_models_own_type(kind: str) -> None:
    model = parsed(f"({kind}[N, 12] x) => ({kind}[N, 12] y) {{ y = Softmax(x) }}")
    found = run(model)
    assert rows(found).dtype == {"float16": np.float16, "double": np.float64}[kind]
    assert found.source == "synthetic features, class-balanced"
    assert found.diversity is not None


def test_a_scalar_and_a_volume() -> None:
    model = parsed("(float[N, 3, 4, 8, 8] x, float s) => (float[N, 3, 4, 8, 8] y) { y = Mul(x, s) }")
    assert rows(run(model)).shape == (64, 3, 4, 8, 8)


def test_plain_random_inputs_where_nothing_else_runs() -> None:
    """Indices that a computed table allows only while they are 0 or 1."""
    model = parsed(
        "(int64[N, 1] t) => (float[N, 1] y) { u = Identity(t) f = Cast<to = 1>(u) g = Cast<to = 7>(f)"
        " y = Gather(table, g) }", table=np.ones(2, np.float32),
    )  # fmt: skip
    found = run(model)
    assert found.synthetic
    assert found.samples == 64


def test_a_model_that_runs_on_nothing() -> None:
    model = parsed("(float[N, 4] x) => (float y) { s = Size(x) y = Gather(table, s) }", table=np.ones(2, np.float32))
    with pytest.raises(RuntimeFailure, match="give data with calib"):
        run(model)


READER = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, OPEN] x) => (float[N, 8, H, W] y)
<float[8, 3, 3, 3] w1, float[8, 8, 3, 3] w2>
{ a = Conv<strides = [4, 2], pads = [1, 1, 1, 1]>(x, w1) b = Relu(a) y = Conv<strides = STRIDES, pads = [1, 1, 1, 1]>(b, w2) }"""


@pytest.mark.parametrize(
    ("dims", "strides", "wanted"),
    [
        ('"?", "?"', "[4, 1]", (48, 192)),
        ("H0, W0", "[4, 1]", (48, 192)),
        ("H0, W0", "[1, 2]", None),
        ("48, W0", "[4, 1]", (48, 192)),
    ],
)
def test_what_shrinks_in_height_reads_lines(dims: str, strides: str, wanted: tuple[int, int] | None) -> None:
    names = ["q0", "q1"] if "?" in dims else []
    text = (
        READER.replace("OPEN", ", ".join(names) or dims)
        .replace("STRIDES", strides)
        .replace("<float[8, 3, 3, 3] w1, float[8, 8, 3, 3] w2>\n", "")
    )
    proto = onnx.parser.parse_model(text)
    for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:] if names else ():
        dim.dim_param = "?"
    for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 3, 3))):
        proto.graph.initializer.append(
            numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name)
        )
    model = Model.load(proto).normalised()
    found = calibration(model, infer(model), Options(calib_samples=2)).feeds[0]["x"].shape[2:]
    assert found == wanted if wanted else found[0] == found[1]


@pytest.mark.parametrize("count", [4, 50, 131])
def test_of_samples_that_a_reshape_counts_whole_clips_are_taken(count: int) -> None:
    body = "a = MatMul(x, A) r = Relu(a) c = Reshape(r, clips) m = ReduceMax<axes=[1], keepdims=0>(c) y = MatMul(m, B)"
    model = graph("(float[N, 6] x) => (float[M, 3] y)", body, A=(6, 16), B=(16, 3), clips=[-1, 4, 16])
    frames = np.random.default_rng(0).standard_normal((count, 6)).astype(np.float32)
    report = prune(model, ratio=0.5, calib=[{"x": frames}]).report
    assert report.after.macs < report.before.macs
