"""Plans applied to a framework's own weights: by name, by value, through what exporters do to weights, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import array, filled, graph
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import UsageError
from onnxprune.planning import Plan, Removal

State = dict[str, NDArray[Any]]
CONVS = """
    a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, one.weight, one.bias)  b = Relu(a)
    c = Conv<kernel_shape = [1, 1]>(b, two.weight, two.bias)  d = Relu(c)
    e = GlobalAveragePool(d)  f = Flatten(e)  y = Gemm<transB = 1>(f, head.weight, head.bias)"""
SHAPES: dict[str, tuple[int, ...]] = {
    "one.weight": (8, 3, 3, 3), "one.bias": (8,), "two.weight": (8, 8, 1, 1), "two.bias": (8,), "head.weight": (5, 8),
    "head.bias": (5,),
}  # fmt: skip
SIGNATURE = "(float[N, 3, 6, 6] x) => (float[N, 5] y)"


def convolutions(body: str = CONVS, **changed: Any) -> ModelProto:
    """Dotted names are not for ONNX text, so that they are put in afterwards."""
    weights = {name.replace(".", "_"): given for name, given in {**SHAPES, **changed}.items() if given is not None}
    for name in {**SHAPES, **changed}:
        body = body.replace(name, name.replace(".", "_"))
    return named(graph(SIGNATURE, body, **weights), {**SHAPES, **changed})


def named(model: ModelProto, names: Any) -> ModelProto:
    back = {name.replace(".", "_"): name for name in names}
    for t in model.graph.initializer:
        t.name = back.get(t.name, t.name)
    for node in model.graph.node:
        node.input[:] = [back.get(i, i) for i in node.input]
    return model


def state_of(model: ModelProto) -> State:
    return {t.name: array(model, t.name) for t in model.graph.initializer}


def halved(model: ModelProto) -> tuple[Plan, State]:
    """A plan for half of everything, and the weights that the rewriting leaves."""
    plan = onnxprune.plan(model, ratio=0.5, fast=True, residual="all")
    return plan, state_of(onnxprune.apply(model, plan).to_proto())


def same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        np.testing.assert_array_equal(value, other[name])


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
def test_names_alone_give_what_the_rewriting_gives(prefix: str) -> None:
    model = convolutions()
    plan, expected = halved(model)
    state = {prefix + name: value for name, value in state_of(model).items()}
    assert expected["two.weight"].shape == (4, 4, 1, 1)
    same(onnxprune.apply_plan(plan, state), {prefix + name: value for name, value in expected.items()})


def test_a_plan_in_the_weights_names_fits_untrained_weights() -> None:
    model = convolutions()
    plan, expected = halved(model)
    trained = {f"net.{name}": value for name, value in state_of(model).items()}
    own = Plan.from_json(json.loads(json.dumps(onnxprune.renamed(plan, trained, model).to_json())))
    fresh = {name: np.arange(value.size, dtype=np.float32).reshape(value.shape) for name, value in trained.items()}
    small = onnxprune.sliced(own, fresh)
    assert {n.removeprefix("net."): v.shape for n, v in small.items()} == {n: v.shape for n, v in expected.items()}
    gone = {r.axes: r.remove for r in own.groups["net.two.weight"]}
    kept = [np.setdiff1d(np.arange(8), gone[axis,]) for axis in (0, 1)]
    np.testing.assert_array_equal(small["net.two.weight"], fresh["net.two.weight"][np.ix_(*kept)])


def test_renamed_and_transposed_weights_are_found_by_value() -> None:
    model = graph(
        "(float[N, 6] x) => (float[N, 5] y)",
        "a = MatMul(x, w1) b = Add(a, b1) c = Relu(b) d = MatMul(c, w2) e = Add(d, b2) f = Relu(e) y = MatMul(f, w3)",
        w1=(6, 8), b1=(8,), w2=(8, 8), b2=(8,), w3=(8, 5),
    )  # fmt: skip
    plan, expected = halved(model)
    turned = {"l1.weight": "w1", "l2.weight": "w2", "l3.weight": "w3"}
    names = {"l1.bias": "b1", "l2.bias": "b2"}
    state = {n: array(model, p).T.copy() for n, p in turned.items()} | {n: array(model, p) for n, p in names.items()}
    small = onnxprune.apply_plan(plan, state, model)
    same(small, {n: expected[p].T for n, p in turned.items()} | {n: expected[p] for n, p in names.items()})
    with pytest.raises(UsageError, match=r"\(model\)"):
        onnxprune.apply_plan(plan, state)


def test_a_square_weight_that_an_optimiser_transposed_under_its_name() -> None:
    model = graph(
        "(float[N, 8] x) => (float[N, 5] y)", "a = MatMul(x, one) b = Relu(a) y = MatMul(b, two)",
        one=(8, 8), two=(8, 5),
    )  # fmt: skip
    plan, expected = halved(model)
    state = {name: value.T.copy() for name, value in state_of(model).items()}
    same(onnxprune.apply_plan(plan, state, model), {name: value.T for name, value in expected.items()})


def test_fresh_weights_that_are_equal_are_named() -> None:
    """An exporter keeps equal biases once, and they lose different positions."""
    model = graph(
        "(float[N, 6] x) => (float[N, 5] y)",
        "a = MatMul(x, w1) c = Add(a, b) d = Relu(c) e = MatMul(d, w2) f = Add(e, b) g = Relu(f) y = MatMul(g, w3)",
        w1=(6, 8), w2=(8, 8), w3=(8, 5), b=np.zeros(8, np.float32),
    )  # fmt: skip
    plan, _ = halved(model)
    state = {name: array(model, name) for name in ("w1", "w2", "w3")} | {n: array(model, "b") for n in ("one", "two")}
    words = r"2 of them hold the same numbers as others \('one' and 'two'\).*train a step, or add a little noise"
    with pytest.raises(UsageError, match=words):
        onnxprune.apply_plan(plan, state, model)
    kept = onnxprune.apply_plan(plan, state, model, keep=["one", "two"])
    assert kept["w2"].shape == (4, 4)


def norm(random: np.random.Generator, n: int) -> dict[str, NDArray[Any]]:
    """Gains of both signs, as training leaves them."""
    values = {"weight": random.choice([-1, 1], n) * random.uniform(0.5, 1.5, n), "bias": random.standard_normal(n),
              "running_mean": random.standard_normal(n), "running_var": random.uniform(0.5, 1.5, n)}  # fmt: skip
    return {role: value.astype(np.float32) for role, value in values.items()}


@pytest.mark.parametrize("renamed", [True, False])
def test_a_folded_batch_norm_is_cut_with_its_convolution(renamed: bool) -> None:
    random = np.random.default_rng(0)
    raw = filled(random, "w", SHAPES["one.weight"])
    bn = norm(random, 8)
    scale = bn["weight"] / np.sqrt(bn["running_var"] + np.float32(1e-5))
    model = convolutions(**{
        "one.weight": raw * scale[:, None, None, None], "one.bias": bn["bias"] - bn["running_mean"] * scale,
    })  # fmt: skip
    plan, _ = halved(model)
    (gone,) = {r.remove for rs in plan.groups.values() for r in rs if r.parameter == "one.weight"}
    kept = np.setdiff1d(np.arange(8), gone)
    state = {n: v for n, v in state_of(model).items() if not n.startswith("one")}
    first = "zero" if renamed else "one"
    state |= {f"{first}.weight": raw} | {f"bn.{role}": v for role, v in bn.items()} | {"bn.num": np.array(7)}
    small = onnxprune.apply_plan(plan, state, model)
    np.testing.assert_array_equal(small[f"{first}.weight"], raw[kept])
    for role, value in bn.items():
        np.testing.assert_array_equal(small[f"bn.{role}"], value[kept])
    assert small["bn.num"] == 7
    state["bn.running_var"] = bn["running_var"] * 2  # no longer the norm that was folded
    with pytest.raises(UsageError, match="export with BatchNorm kept"):
        onnxprune.apply_plan(plan, state, model)


def test_a_shared_vector_goes_with_the_layer_beside_it() -> None:
    zero = np.zeros(8, np.float32)
    shared = CONVS.replace("two.bias", "one.bias")
    model = convolutions(shared, **{"one.bias": zero, "two.bias": None})
    plan, _ = halved(model)
    gone = {r.parameter: set(r.remove) for rs in plan.groups.values() for r in rs if r.axes == (0,) and r.shape == (8,)}
    assert gone["one.weight"] != gone["two.weight"], "or the test shows nothing"
    state = {**state_of(model), "two.bias": zero}
    trace = onnxprune.renamed(plan, state, model)
    for layer in ("one", "two"):
        (bias,) = trace.groups[f"{layer}.bias"]
        assert set(bias.remove) == gone[f"{layer}.weight"]
    with pytest.raises(UsageError, match=r"\(model\)"):
        onnxprune.apply_plan(plan, state)


@pytest.mark.parametrize(("kind", "order"), [("LSTM", (0, 2, 3, 1)), ("GRU", (1, 0, 2))])
def test_gates_in_another_order(kind: str, order: tuple[int, ...]) -> None:
    """ONNX has i o f c where torch has i f g o, ONNX z r h where torch has r z n; both biases are one tensor."""
    h, gates = 6, len(order)
    model = graph(
        "(float[7, N, 3] x) => (float[7, N, 5] y)",
        f"s, t = {kind}<hidden_size = {h}>(x, w, r, b) u = Squeeze(s, one) y = MatMul(u, head)",
        w=(1, gates * h, 3), r=(1, gates * h, h), b=(1, 2 * gates * h), head=(h, 5), one=np.array([1]),
    )  # fmt: skip

    def torch_like(rows: NDArray[Any]) -> NDArray[Any]:
        return rows.reshape(gates, h, -1)[list(order)].reshape(rows.shape)

    def parts(weights: State) -> State:
        n = weights["r"].shape[2]
        one = [v[0] for v in (weights["w"], weights["r"], *np.split(weights["b"], 2, 1))]
        turned = [v.reshape(gates, n, -1)[list(order)].reshape(v.shape) for v in one]
        named = dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), turned, strict=True))
        return {**named, "head": weights["head"]}

    plan, expected = halved(model)
    assert expected["r"].shape == (1, gates * h // 2, h // 2)
    same(onnxprune.apply_plan(plan, parts(state_of(model)), model), parts(expected))


def test_fused_weights_that_the_exporter_took_apart() -> None:
    model = graph(
        "(float[N, 4, 8] x) => (float[N, 4, 8] y)",
        """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) kt = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(q, kt) p = Softmax<axis = -1>(s) o = MatMul(p, v) y = MatMul(o, wo)""",
        wq=(8, 8), wk=(8, 8), wv=(8, 8), wo=(8, 8),
    )  # fmt: skip
    plan, expected = halved(model)

    def fused(weights: State) -> State:
        return {"in_proj": np.concatenate([weights[n].T for n in ("wq", "wk", "wv")]), "out": weights["wo"].T.copy()}

    same(onnxprune.apply_plan(plan, fused(state_of(model)), model), fused(expected))


def test_grouped_and_nested_positions() -> None:
    """Of each group other input channels go: a cut over two axes, the first counted in runs."""
    weight = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2)
    plan = Plan({"g": (Removal("w", (0, 1), (2, 3), (0, 5)),)})
    out = onnxprune.sliced(plan, {"w": weight})["w"]
    np.testing.assert_array_equal(out, np.stack([weight[0, 1:], weight[1, 1:], weight[2, :2], weight[3, :2]]))
    with pytest.raises(UsageError, match="rectangle"):
        onnxprune.sliced(Plan({"g": (Removal("w", (0, 1), (2, 3), (0,)),)}), {"w": weight})
    with pytest.raises(UsageError, match="another network"):
        onnxprune.sliced(Plan({"g": (Removal("w", (0,), (5,), (0,)),)}), {"w": weight})


def test_an_edited_plan_is_completed_by_the_model() -> None:
    model = convolutions()
    plan = Plan({"g": (Removal("one.weight", (0,), (8,), (1, 2)),)})
    small = onnxprune.apply_plan(plan, state_of(model), model)
    assert small["one.bias"].shape == (6,)
    assert small["two.weight"].shape == (8, 6, 1, 1)
    with pytest.raises(UsageError, match=r"'one.bias' would keep 8 of 8"):
        onnxprune.apply_plan(plan, state_of(model))


def test_what_is_not_certain_is_refused() -> None:
    model = convolutions()
    plan, _ = halved(model)
    state = state_of(model)
    extra = {**state, "aux.weight": np.ones((4, 4), np.float32)}
    with pytest.raises(UsageError, match=r"'aux.weight' \[4, 4\]"):
        onnxprune.apply_plan(plan, extra, model)
    assert onnxprune.apply_plan(plan, extra, model, keep=["aux.*"])["aux.weight"].shape == (4, 4)
    twice = {f"{copy}.{name}": value for copy in ("net", "ema") for name, value in state.items()}
    with pytest.raises(UsageError, match=r"several prefixes \(ema., net.\)"):
        onnxprune.apply_plan(plan, twice)
    twin = convolutions(**{"two.weight": (8, 8, 1, 1)})
    unlike = {("x" if n == "two.weight" else n): v for n, v in state_of(twin).items()}
    unlike["x"] = unlike["x"] + np.float32(1)
    with pytest.raises(UsageError, match=r"'x' \[8, 8, 1, 1\]"):
        onnxprune.apply_plan(plan, unlike, twin)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """model.onnx, plan.json and weights.safetensors."""
    model = convolutions()
    plan, _ = halved(model)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    save_file(state_of(model), tmp_path / "weights.safetensors", metadata={"format": "pt"})
    return tmp_path


def call(folder: Path, *arguments: str) -> int:
    return main(["apply-plan", *(str(folder / a) if "." in a and "*" not in a else a for a in arguments)])


def test_command(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(files, "plan.json", "weights.safetensors", "out.safetensors", "--save-plan", "own.json") == 0
    assert "tensors sliced" in capsys.readouterr().out
    _, expected = halved(convolutions())
    same(load_file(files / "out.safetensors"), expected)
    with safe_open(files / "out.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert call(files, "own.json", "weights.safetensors", "again.safetensors", "-q") == 0
    assert capsys.readouterr().out == ""
    assert (files / "again.safetensors").read_bytes() == (files / "out.safetensors").read_bytes()


def test_bfloat16_stays(files: Path) -> None:
    import ml_dtypes

    from onnxprune.frameworks import tensors

    half = {n: v.astype(ml_dtypes.bfloat16) for n, v in state_of(convolutions()).items()}
    tensors.write(files / "half.safetensors", tensors.Tensors(half))
    assert call(files, "plan.json", "half.safetensors", "out.safetensors") == 0
    _, expected = halved(convolutions())
    same(tensors.read(files / "out.safetensors").arrays, {n: v.astype(ml_dtypes.bfloat16) for n, v in expected.items()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan.json", "weights.bin", "out.safetensors"), "weights.bin: weights are read and written as"),
        (("plan.json", "missing.safetensors", "out.safetensors"), "does not exist"),
        (("plan.json", "weights.safetensors", "out.npz"), "out.npz: weights are read and written as"),
        (("plan.json", "weights.safetensors", "weights.safetensors"), "both read and written"),
        (("plan.json", "broken.safetensors", "out.safetensors"), "not a complete safetensors file"),
        (("model.onnx", "weights.safetensors", "out.safetensors"), "not a plan"),
        (("plan.json", "small.safetensors", "out.safetensors"), "pruned already"),
        (("plan.json", "other.safetensors", "out.safetensors"), "--model"),
    ],
)
def test_command_refuses_in_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (files / "out.safetensors").write_bytes(b"an older result")
    (files / "broken.safetensors").write_bytes((files / "weights.safetensors").read_bytes()[:-9])
    save_file(halved(convolutions())[1], files / "small.safetensors")
    save_file({"a": np.ones(3, np.float32)}, files / "other.safetensors")
    before = {p.name: p.read_bytes() for p in files.iterdir()}
    assert call(files, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {p.name: p.read_bytes() for p in files.iterdir()} == before


def test_a_vector_that_only_looks_like_a_channel_stays_where_the_model_says_so() -> None:
    """Four factors along the width, beside convolutions of four channels of which two go."""
    model = graph(
        "(float[N, 3, 6, 4] x) => (float[N, 3, 6, 4] y)", "a = Conv(x, w) r = Relu(a) s = Mul(r, scale) y = Conv(s, v)",
        w=(4, 3, 1, 1), v=(3, 4, 1, 1), scale=(4,),
    )  # fmt: skip
    plan = onnxprune.prune(model, ratio=0.5, fast=True).plan
    state = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    small = onnxprune.apply_plan(plan, state, model)
    assert {n: a.shape for n, a in small.items()} == {"w": (2, 3, 1, 1), "v": (3, 2, 1, 1), "scale": (4,)}
    with pytest.raises(UsageError, match="would keep 4 of 4"):
        onnxprune.apply_plan(plan, state)
