"""What the proof compares, and what it does not take for granted: slices, drawn weights, branches, rounding, nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
from graphs import graph, inputs, pruned, replace, shapes
from onnx import ModelProto

from onnxprune import api
from onnxprune.errors import CheckFailed, NothingToPrune, RuntimeFailure
from onnxprune.model import Model, Weight
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import select
from onnxprune.prove import pair
from onnxprune.prove import proofs as verify
from onnxprune.prove.branches import branch_choices, with_choices_forced
from onnxprune.prove.comparison import Comparison
from onnxprune.prove.difference import difference, incomparable
from onnxprune.prove.original import Original, _on_random_inputs
from onnxprune.prove.places import Places
from onnxprune.prove.redraw import redrawn
from onnxprune.prove.slices import Source, compared, kept_of
from onnxprune.rewrite import rewrite
from onnxprune.run import Session
from onnxprune.trace import Block, Mask

IMAGE = "(float[N, 3, 8, 8] x) => "
CONVOLUTIONS = """a = Conv<pads = [1, 1, 1, 1]>(x, wa, ba) r = Relu(a) b = Conv<pads = [1, 1, 1, 1]>(r, wb, bb) s = Relu(b)
p = GlobalAveragePool(s) f = Flatten(p) h = Gemm<transB = 1>(f, wc, bc) """
WEIGHTS = {"wa": (16, 3, 3, 3), "ba": (16,), "wb": (16, 16, 3, 3), "bb": (16,), "wc": (6, 16), "bc": (6,)}


def convolutions(end: str = "y = Identity(h)", out: str = "float[N, 6] y", **more: Any) -> ModelProto:
    return graph(f"{IMAGE}({out})", CONVOLUTIONS + end, **WEIGHTS, **more)


class Pruning:
    """A pruning by half, laid open."""

    def __init__(self, model: ModelProto) -> None:
        self.options = Options(ratio=0.5, residual="all", fast=True).resolved()
        self.groups = analysed(Model.load(model), self.options, Clock())
        scores = np.random.default_rng(0).random(len(self.groups.prunable))
        self.kept: Mask = self.groups.kept_ids(select(self.groups, scores, self.options))
        self.after = rewrite(self.groups.trace, self.kept)
        self.given = (self.groups.trace, self.kept)

    def with_weight(self, name: str, value: Any) -> Model:
        model = self.after.model.copy()
        model.weights[name] = Weight.of(value)
        return model

    def drawn(self, name: str) -> None:
        """The equivalence on drawn weights alone, of a parameter that is cut one position off."""
        account = compared(*self.given, self.after.model)
        source = account.sources[name]
        moved = tuple(Block(b.axes, np.roll(b.ids, 1), b.coarse) for b in source.blocks)
        sources = {**account.sources, name: Source(source.parameter, moved)}
        comparison = Comparison(Places(*self.given), sources, self.after.model, self.options)
        pair = comparison.in_real_numbers or comparison.as_it_rounds
        original = Original(*self.given, (), self.options, lambda model: model, self.groups.trace.shapes.dtype)
        comparison.on_drawn_weights(pair, next(original.runs([0]))[0])


def test_every_parameter_is_the_slice_that_it_has_to_be() -> None:
    made = Pruning(convolutions())
    account = compared(*made.given, made.after.model)
    assert (account.same, account.differing, account.added) == (6, (), ())
    for name, source in account.sources.items():
        own = made.groups.trace.model.weights[source.parameter].array()
        part = kept_of(own, source.blocks, made.kept)
        np.testing.assert_array_equal(part.reshape(made.after.model.weights[name].shape), made.after.model.weights[name].array())


@pytest.mark.parametrize("name", ["wa", "ba", "wb", "bb", "wc"])
def test_one_value_that_is_another_is_found(name: str) -> None:
    made = Pruning(convolutions())
    value = made.after.model.weights[name].array().copy()
    value.flat[-1] = np.nextafter(value.flat[-1], np.float32(np.inf))
    wrong = made.with_weight(name, value)
    assert compared(*made.given, wrong).differing == (name,)
    with pytest.raises(CheckFailed, match=f"its parameter '{name}' from what is kept of '{name}'"):
        verify.equivalence(*made.given, wrong, made.options)


def test_a_square_weight_that_is_turned_is_found() -> None:
    made = Pruning(convolutions())
    turned = np.swapaxes(made.after.model.weights["wb"].array(), 0, 1)
    assert compared(*made.given, made.with_weight("wb", turned)).differing == ("wb",)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda made: made.with_weight("wb", made.groups.trace.model.weights["wb"].array()), "has shape"),
        (lambda made: made.with_weight("wb", made.after.model.weights["wb"].array().astype(np.float64)), "has shape"),
        (lambda made: made.with_weight("stray", np.zeros(3, np.float32)), "its parameter 'stray' is none of it"),
    ],
    ids=["whole", "another type", "nobody's"],
)
def test_parameters_that_do_not_fit_are_named(wrong: Callable[[Pruning], Model], message: str) -> None:
    made = Pruning(convolutions())
    with pytest.raises(CheckFailed, match=message):
        compared(*made.given, wrong(made))


def test_one_parameter_for_uses_that_need_other_positions_is_found() -> None:
    """All zeros, so that no value says so."""
    silent = convolutions()
    for name in ("ba", "bb"):
        replace(silent, name, np.zeros(16, np.float32))
    made = Pruning(silent)
    model = made.after.model.copy()
    next(n for n in model.skeleton.graph.node if n.input[1:2] == ["wb"]).input[2] = "ba"
    with pytest.raises(CheckFailed, match="its parameter 'ba' is read where other positions are needed"):
        compared(*made.given, model)


def scaled() -> ModelProto:
    """A branch of a residual stream whose gains are nothing, or nearly so."""
    return graph(
        "(float[N, 6, 12] x) => (float[N, 6, 12] y)",
        "n = LayerNormalization<axis = -1>(x, gain, shift) a = MatMul(n, w1) r = Relu(a) b = MatMul(r, w2) "
        "c = Mul(b, gamma) y = Add(x, c)",
        gain=np.zeros(12, np.float32), shift=np.zeros(12, np.float32), w1=(12, 16), w2=(16, 12),
        gamma=np.full(12, 1e-6, np.float32),
    )  # fmt: skip


def test_drawn_weights_are_slices_of_drawn_weights_and_hide_nothing() -> None:
    made = Pruning(scaled())
    account = compared(*made.given, made.after.model)
    original, new = redrawn(*made.given, account.sources, made.after.model, 0)
    for name, source in account.sources.items():
        whole = original.weights[source.parameter].array()
        np.testing.assert_array_equal(
            kept_of(whole, source.blocks, made.kept).reshape(new.weights[name].shape), new.weights[name].array()
        )
    assert np.abs(original.weights["gamma"].array()).min() >= 0.5
    assert 0.5 < original.weights["w2"].array().std() * 4 < 2
    proof = verify.equivalence(*made.given, made.after.model, made.options)
    assert proof.redrawn is not None
    assert proof.redrawn < 1e-4
    for name in ("w1", "w2"):
        with pytest.raises(CheckFailed, match="differs from the masked original"):
            made.drawn(name)


ENDS = {
    "ArgMax": ("y = ArgMax<axis = 1>(h)", "int64[N, 1] y"), "Sign": ("y = Sign(h)", "float[N, 6] y"),
    "Softmax": ("g = Mul(h, much) y = Softmax<axis = 1>(g)", "float[N, 6] y"),
    "Greater": ("y = Greater(h, much)", "bool[N, 6] y"), "Log": ("q = Mul(h, h) g = Sub(q, much) y = Log(g)", "float[N, 6] y"),
    "louder": ("y = Identity(h) z = Mul(h, much)", "float[N, 6] y, float[N, 6] z"),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_no_end_of_the_graph_hides_a_mistake(end: str) -> None:
    made = Pruning(convolutions(*ENDS[end], much=np.float32(1e6)))
    for name in ("wb", "bb", "wc"):
        with pytest.raises(CheckFailed, match="differs from the masked original"):
            made.drawn(name)


def test_outputs_that_say_nothing_are_named() -> None:
    model = graph(
        f"{IMAGE}(float[N, 6] y, float[N, 3, 8, 8] same, float[N, 6] lost, float[none, 6] empty)",
        CONVOLUTIONS + "y = Identity(h) same = Relu(x) q = Mul(h, h) m = Neg(q) k = Sub(m, one) lost = Log(k) "
        "i = Slice(h, zero, zero) empty = Identity(i)",
        **WEIGHTS, one=np.float32(1), zero=np.array([0]),
    )  # fmt: skip
    told = dict(text.split(": ", 1) for text in pruned(model).report.proof.uncompared)
    assert told == {"same": "nothing that was removed reaches it", "lost": "not finite", "empty": "empty"}


def test_where_nothing_can_be_compared_nothing_is_proven() -> None:
    model = graph(
        "(float[N, 12] x) => (float[N, 5] y)", "n = Log(minus) a = Mul(x, n) b = MatMul(a, w1) y = MatMul(b, w2)",
        minus=np.float32(-1), w1=(12, 16), w2=(16, 5),
    )  # fmt: skip
    with pytest.raises(CheckFailed, match=r"could be compared .*y: not finite"):
        api.prune(model, fast=True, ratio=0.5)


def test_what_no_output_sees_is_nothing_to_prune() -> None:
    """The hidden layer is that of a state without steps, and only its size is asked for."""
    model = graph(
        "(float[N, 12] x) => (float[N, 5] y)",
        "s = Slice(x, none, none, rows) a = MatMul(s, w1) b = MatMul(a, w2) n = Shape<start=0, end=1>(b) t = Cast<to=1>(n) "
        "z = MatMul(x, w3) y = Add(z, t)",
        w1=(12, 16), w2=(16, 5), w3=(12, 5), none=np.array([0]), rows=np.array([0]),
    )  # fmt: skip
    with pytest.raises(NothingToPrune, match="reaches an output"):
        api.prune(model, fast=True, ratio=0.5)


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([1, np.nan], [1, np.nan], 0), ([1, np.nan], [1, np.inf], np.inf), ([1, np.inf], [1, -np.inf], np.inf),
        ([np.inf, 2], [np.inf, 1], 0.5), ([1, np.nan], [1, 1], np.inf), ([1, 1], [1, np.nan], np.inf),
        ([4, 2], [4, 1], 0.25), ([], [], 0), ([1], [1, 1], np.inf),
    ],
)  # fmt: skip
def test_how_far_apart(a: list[float], b: list[float], error: float) -> None:
    assert difference(np.array(a, np.float32), np.array(b, np.float32)) == error


def test_scores_by_label_are_compared_as_numbers() -> None:
    """A ZipMap gives a list of dictionaries."""
    a, b = [{"x": 0.5, "y": 4.0}], [{"x": 0.5, "y": 3.0}]
    assert difference(a, b) == 0.25
    assert difference(a, [{"x": 0.5, "z": 4.0}]) == np.inf


def test_every_channel_counts_by_its_own_scale() -> None:
    a = np.stack([np.full(20, 1e6), np.full(20, 1e4)], 1)
    b = a + np.array([0, 100])
    assert difference(a, b) == pytest.approx(1e-4)
    assert difference(a, b, axis=1) == pytest.approx(1e-3)


def test_what_says_nothing() -> None:
    assert [incomparable(np.array(x)) for x in ([], [np.nan, np.inf], [np.nan, 1.0], [True])] == ["empty", "not finite", "", ""]


NESTED = """h = MatMul(x, w0) r = Relu(h) y = If(use) <
    then_branch = yes () => (float[N, 5] t) { t = MatMul(r, w1) },
    else_branch = no () => (float[N, 5] e) { e = If(more) <
        then_branch = ay () => (float[N, 5] u) { u = MatMul(r, w2) },
        else_branch = nay () => (float[N, 5] v) { a = MatMul(r, w3) s = Tanh(a) v = MatMul(s, w4) }
    > }
>"""


def nested() -> ModelProto:
    return graph("(float[N, 12] x, bool use, bool more) => (float[N, 5] y)", NESTED, w0=(12, 16), w1=(16, 5),
                 w2=(16, 5), w3=(16, 14), w4=(14, 5))  # fmt: skip


@pytest.mark.parametrize(("use", "more"), [(True, True), (False, True), (False, False)])
def test_every_if_goes_the_way_that_it_is_told(use: bool, more: bool) -> None:
    model = Model.load(nested()).normalised()
    assert len(branch_choices(model)) == 4
    feeds = {"x": inputs(nested(), 2)["x"]}
    expected = Session(model, ["cpu"]).run(feeds | {"use": np.array(use), "more": np.array(more)})
    for other in (True, False):
        got = Session(with_choices_forced(model, (use, more)), ["cpu"]).run(feeds | {"use": np.array(other), "more": np.array(other)})
        np.testing.assert_array_equal(got[0], expected[0])


def test_an_if_that_sizes_decide_goes_no_other_way() -> None:
    """Of nine positions eight are taken: the target behind it is computed, and comes to eight whatever the batch is."""
    branches = """b = If(c) <
        then_branch = t () => (float[i, j, k] p) { p = Slice(h, nought, eights, ones) },
        else_branch = e () => (float[l, m, n] q) { q = Identity(h) }
    >"""
    model = graph(
        "(float[N, 9, 12] x) => (float[N, 8, 5] y)",
        f"h = MatMul(x, w1) s = Shape<start=1, end=2>(x) n = Squeeze(s) c = Greater(n, eight) {branches} "
        "m = Shape<start=1, end=2>(b) to = Concat<axis=0>(minus, m, two, half) r = Reshape(b, to) q = Relu(r) flat = Concat<axis=0>(minus, m, all) "
        "g = Reshape(q, flat) y = MatMul(g, w2)",
        w1=(12, 16), w2=(16, 5), eight=np.array(8), nought=np.array([0]), eights=np.array([8]), ones=np.array([1]), minus=np.array([-1]), two=np.array([2]), half=np.array([8]), all=np.array([16]),
    )  # fmt: skip
    assert shapes(pruned(model))["w1"] == (12, 8)


@pytest.mark.parametrize("name", ["w1", "w2", "w3", "w4"])
def test_a_mistake_in_a_branch_that_no_run_takes_is_found(name: str) -> None:
    made = Pruning(nested())
    verify.equivalence(*made.given, made.after.model, made.options)
    with pytest.raises(CheckFailed, match="differs from the masked original"):
        made.drawn(name)


def test_a_refitted_value_is_named_and_no_equivalence() -> None:
    made = Pruning(convolutions())
    refitted = made.with_weight("wc", made.after.model.weights["wc"].array() * np.float32(1.1))
    assert compared(*made.given, refitted).differing == ("wc",)
    with pytest.raises(CheckFailed, match="its parameter 'wc' from what is kept of 'wc'"):
        verify.equivalence(*made.given, refitted, made.options)


def test_a_channel_that_dies_for_one_input_is_found_and_its_node_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is silent there, and gives no number: the dense model does."""
    signs = np.tile([1, -0.01], 8).astype(np.float32)
    model = graph(
        "(float[N, 4] x) => (float[N, 3] y)",
        "a = MatMul(x, wa) r = Relu(a) s = ReduceSum<keepdims = 1>(r, last) d = Div(r, s) y = MatMul(d, wc)",
        wa=np.abs(np.random.default_rng(3).standard_normal((4, 16)).astype(np.float32)) * signs, last=np.array([1]),
        wc=np.ones((16, 3), np.float32) * np.abs(signs)[:, None],
    )  # fmt: skip
    monkeypatch.setattr(verify, "ordinary_inputs", lambda *given: [{"x": np.ones((2, 4), np.float32)}])
    assert api.prune(model, fast=True, ratio=0.5)
    monkeypatch.setattr(verify, "ordinary_inputs", lambda *given: [{"x": -np.ones((2, 4), np.float32)}])
    with pytest.raises(CheckFailed, match=r"no finite 'y' .*\(Div\) is the first"):
        api.prune(model, fast=True, ratio=0.5)


def test_weights_that_amplify_rounding_are_drawn_anew() -> None:
    """A sine of large numbers makes much of a last place: with random weights of full spread nothing can be said."""
    rng = np.random.default_rng(0)
    model = graph("(float[N, 64] x) => (float[N, 8] y)",
                  "a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) m = Mul(b, many) c = Sin(m) y = MatMul(c, w3)",
                  w1=(64, 2048), many=np.array(1e5, np.float32), w3=(32, 8),
                  w2=1e-6 * rng.standard_normal((2048, 32)).astype(np.float32))  # fmt: skip
    proof = pruned(model).report.proof
    assert proof.redrawn is not None
    assert proof.redrawn <= 1e-3


def chaotic(spread: float) -> ModelProto:
    """A recurrent layer that inputs of this `spread` hardly reach: what differs in the last place grows step by step."""
    random = np.random.default_rng(0)
    return graph(
        "(float[160, N, 8] x) => (float[1, N, 64] y)", "t, h = RNN<hidden_size = 64>(x, w, r) y = MatMul(h, o)", o=(64, 64),
        w=(spread * random.standard_normal((1, 64, 8))).astype(np.float32),
        r=(0.43 * random.standard_normal((1, 64, 64))).astype(np.float32),
    )  # fmt: skip


def test_inputs_on_which_rounding_decides_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Pruning(chaotic(0.2))
    proof = verify.equivalence(*made.given, made.after.model, made.options)
    assert proof.error < 1e-5
    monkeypatch.setattr(pair, "OTHER_GAINS", ())
    with pytest.raises(CheckFailed, match="differs from the masked original by"):
        verify.equivalence(*made.given, made.after.model, made.options)


@pytest.mark.parametrize("name", ["w", "r", "o"])
def test_what_is_wrong_is_found_on_other_inputs_too(name: str) -> None:
    made = Pruning(chaotic(0.2))
    value = made.after.model.weights[name].array()
    wrong = made.with_weight(name, np.roll(value, 1, axis=value.ndim - 1))
    comparison = Comparison(Places(*made.given), compared(*made.given, wrong).sources, wrong, made.options)
    with pytest.raises(CheckFailed, match="differs from the masked original by"):
        comparison.on_real_weights()


def test_the_line_for_a_model_that_does_not_run_names_a_few_of_many_inputs() -> None:
    names = [f"x{k}" for k in range(40)]
    body = f"a = Sum({', '.join(names)}) y = MatMul(a, w)"
    model = Model.load(graph(f"({', '.join(f'float[N,16] {n}' for n in names)}) => (float[N,4] y)", body, w=(9, 4)))

    class Failing:
        """A session that runs on nothing."""

        def run(self, *_: Any) -> list[Any]:
            raise ValueError("no")

    with pytest.raises(RuntimeFailure, match=r"'x2': \(2, 16\)\} and 37 more: no; give shapes"):
        _on_random_inputs(cast(Any, Failing()), model, dict.fromkeys(names, (2, 16)), 0, None)


@pytest.mark.parametrize(
    ("steady", "message"),
    [
        (True, r"they part at Conv '\w*b'"),
        (False, r"the original itself gives other numbers in every run, from Relu '\w*r' on"),
    ],
    ids=["ours", "the runtime's"],
)
def test_a_difference_is_traced_to_the_node_that_makes_it(
    steady: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewritten model with a wrong weight; and an original of which the second run is another."""
    model = convolutions()
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    made, values, runs = Pruning(model), pair.Pair._values, list[Any]()

    def unsteady(self: pair.Pair, model: Model, feeds: Any, names: Sequence[str]) -> dict[str, Any]:
        found = values(self, model, feeds, names)
        runs.extend(["r"] * ("r" in names))
        return {n: v + len(runs) if n == "r" else v for n, v in found.items()}

    if not steady:
        monkeypatch.setattr(pair.Pair, "_values", unsteady)
    wrong = made.with_weight("wb", made.after.model.weights["wb"].array() * np.float32(1.5))
    comparison = pair.Pair(
        made.groups.trace, Places(*made.given), wrong, (), made.options, 1e-5, lambda model: model,
        made.groups.trace.shapes.dtype,
    )  # fmt: skip
    with pytest.raises(CheckFailed, match=message):
        comparison.compared([0], deep=False)
