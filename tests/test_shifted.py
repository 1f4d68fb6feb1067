"""A check is worth what it catches: shift one slice, one index or one bound of a proven pruning, and the proofs fail."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from graphs import array, graph, pruned, shapes
from onnx import ModelProto, NodeProto
from test_learned import FUSED, HALVES, INTERLEAVED, ZEROS, rotary, scaled_attention, stacked
from test_learned_channels import HEAD, IMAGE, SAME, shuffles

from onnxprune import api
from onnxprune.errors import CheckFailed
from onnxprune.model import Model, Weight
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import profile, select
from onnxprune.planning.criteria import l2
from onnxprune.prove import proofs as verify
from onnxprune.prove.relabel import Kept
from onnxprune.rewrite import Rewritten, rewrite, take
from onnxprune.shapes import infer
from onnxprune.trace import Block, Groups, Ids, Mask, Slice


class Pruning:
    """The stages of one pruning, laid open so that one of them can be disturbed."""

    def __init__(self, model: ModelProto, **options: Any) -> None:
        self.options = Options(ratio=0.5, residual="all", fast=True, **options).resolved()
        self.groups: Groups = analysed(Model.load(model), self.options, Clock())
        scores = profile.importance(self.groups, l2, 0)
        self.kept: Mask = self.groups.kept_ids(select(self.groups, scores, self.options))
        self.after = rewrite(self.groups.trace, self.kept)

    def retrace(self, after: Model | None = None) -> int:
        model = after or self.after.model
        shapes = infer(model, self.options.input_shapes)
        return verify.retrace(self.groups.trace, self.groups, self.kept, Rewritten(model, self.after.aliases), shapes)

    def equivalence(self, after: Model | None = None) -> float:
        return verify.equivalence(self.groups.trace, self.kept, after or self.after.model, self.options).error

    def shifts(self) -> Iterator[tuple[Slice, Block, Mask]]:
        """Every slice of a parameter whose kept positions, shifted by one, are other ones: (slice, block, mask)."""
        for s in self.groups.trace.slices.values():
            for block in s.blocks:
                others = [np.zeros(0, np.int64), *(b.ids.ravel() for b in s.blocks if b is not block)]
                if np.unique(block.ids).size < block.ids.size or np.isin(block.ids, np.concatenate(others)).any():
                    continue  # what is shifted here would be shifted elsewhere too
                mask = self.kept[block.ids]
                rows = min(b.ids.shape[0] for b in s.blocks if b.axes[0] == block.axes[0])  # groups lose equally many
                inside = mask.reshape(rows, -1) if mask.ndim == 1 and rows < mask.size else mask
                shifted = np.roll(inside, 1, -1).reshape(mask.shape)
                if not (mask == shifted).all():
                    yield s, block, shifted

    def sliced_wrongly(self, s: Slice, block: Block, shifted: Mask) -> Model:
        """The pruned model with one parameter taken from the shifted positions of one of its axes."""
        kept = self.kept.copy()
        kept[block.ids] = shifted
        model = self.after.model.copy()
        name = s.parameter
        for node, i in s.uses:
            original = self.groups.trace.model.skeleton.graph.node[node]
            name = next(n for n in model.skeleton.graph.node if n.name == original.name).input[i]
        wrong = take(self.groups.trace.model.weights[s.parameter], s.blocks, kept)
        assert wrong.shape == model.weights[name].shape
        model.weights[name] = wrong
        return model


def labelled_wrongly(key: Hashable, shifted: Mask, born: Ids) -> type[Kept]:
    """Labels that know what was really taken of one parameter's axis."""

    class Shifted(Kept):
        def fresh(self, at: Hashable, shape: Iterable[int]) -> Ids:
            ids = super().fresh(at, shape)
            return born[shifted].reshape(ids.shape) if at == key else ids

    return Shifted


def convolutions() -> ModelProto:
    body = f"""
        a = Conv<{SAME}>(x, wa, ba)
        n = BatchNormalization(a, gain, shift, mean, var)
        r = LeakyRelu(n)
        d = Conv<{SAME}, group = 8>(r, wd, bd)
        b = Conv<{SAME}>(d, wb, bb)
        g = Conv<{SAME}, group = 2>(d, wg, bg)
        j = Concat<axis = 1>(b, g)
        c = Conv<{SAME}>(j, wc, bc)
        s = Add(c, r)
        m = Mul(s, scale)
        {HEAD.format("m")}
    """
    return graph(
        IMAGE, body, wa=(8, 3, 3, 3), ba=(8,), gain=(8,), shift=(8,), mean=(8,), var=(8,), wd=(8, 1, 3, 3), bd=(8,),
        wb=(6, 8, 3, 3), bb=(6,), wg=(8, 4, 3, 3), bg=(8,), wc=(8, 14, 3, 3), bc=(8,), scale=(8, 1, 1), wo=(5, 8), bo=(5,),
    )  # fmt: skip


def perceptron() -> ModelProto:
    body = """
        a = Gemm(x, wa, ba)
        n = LayerNormalization(a, gain, shift)
        e = Erf(n)
        b = MatMul(e, wb)
        c = Add(bb, b)
        d = Einsum<equation = "nc,dc->nd">(c, wd)
        y = Gemm<transB = 1>(d, wo, bo)
    """
    return graph(
        "(float[N, 10] x) => (float[N, 5] y)", body, wa=(10, 8), ba=(8,), gain=(8,), shift=(8,), wb=(8, 12), bb=(12,), wd=(9, 12),
        wo=(5, 9), bo=(5,),
    )  # fmt: skip


def fused() -> ModelProto:
    return graph(
        "(float[N, 6, 16] x) => (float[N, 6, 16] y)", FUSED, w=(16, 96), b=(96,), wo=(32, 16), c=np.float32(0.35),
        to=np.array([0, 6, 3, 4, 8]), zero=np.array(0), one=np.array(1), two=np.array(2), **{"from": np.array([0, 6, 32])},
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], ModelProto], dict[str, Any], int]] = {
    "convolutions": (convolutions, {}, 16),
    "perceptron": (perceptron, {}, 10),
    "shuffles": (lambda: shuffles(3), {}, 8),
    "attention": (scaled_attention, {}, 4),
    "fused, heads": (fused, {}, 3),
    "fused, head dimensions": (fused, {"heads": False}, 3),
    "rotary, halves": (lambda: rotary(HALVES), {}, 4),
    "rotary, interleaved": (lambda: rotary(INTERLEAVED), {}, 6),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def pruning(request: pytest.FixtureRequest) -> tuple[Pruning, int]:
    build, options, least = request.param
    made = Pruning(build(), **options)
    assert made.retrace() > 0
    assert made.equivalence() <= 1e-5
    return made, least


def test_one_shifted_slice_fails_the_equivalence(pruning: tuple[Pruning, int]) -> None:
    made, least = pruning
    passed, tried = [], 0
    for s, block, shifted in made.shifts():
        tried += 1
        try:
            made.equivalence(made.sliced_wrongly(s, block, shifted))
            passed.append((s.parameter, block.axes))
        except CheckFailed:
            pass
    assert not passed
    assert tried >= least


def test_one_shifted_slice_fails_the_retrace(pruning: tuple[Pruning, int], monkeypatch: pytest.MonkeyPatch) -> None:
    made, least = pruning
    labels = made.groups.trace.labels
    passed, tried = [], 0
    for s, block, shifted in made.shifts():
        key = labels.origin(block.ids)
        assert key is not None
        tried += 1
        born = labels.births[key]
        with monkeypatch.context() as patch:
            patch.setattr(verify, "Kept", labelled_wrongly(key, shifted.reshape(born.shape), born))
            try:
                made.retrace()
                passed.append((s.parameter, block.axes))
            except CheckFailed:
                pass
    assert not passed
    assert tried >= least


def picking() -> ModelProto:
    """Channels picked by a Slice, a strided one, a Gather and a Split, each added to channels that are not."""
    body = f"""
        a = Conv<{SAME}>(x, wa, ba)
        s = Slice(a, four, end, one, one)
        b = Conv<{SAME}>(x, wb, bb)
        t = Add(s, b)
        g = Gather<axis = 1>(a, index)
        c = Conv<{SAME}>(x, wc, bc)
        h = Add(g, c)
        l, m = Split<axis = 1>(a, halves)
        u = Relu(l)
        v = Sigmoid(m)
        w = Concat<axis = 1>(u, v)
        j = Concat<axis = 1>(t, h, w)
        {HEAD.format("j")}
    """
    return graph(
        IMAGE, body, wa=(16, 3, 3, 3), ba=(16,), wb=(12, 3, 3, 3), bb=(12,), wc=(6, 3, 3, 3), bc=(6,), wo=(5, 34), bo=(5,),
        four=np.array([4]), end=np.array([1 << 62]), one=np.array([1]), index=np.array([9, 2, 15, 0, 7, 4]), halves=np.array([8, 8]),
    )  # fmt: skip


def node_of(model: Model, op_type: str) -> NodeProto:
    return next(n for n in model.skeleton.graph.node if n.op_type == op_type)


def changed(model: Model, op_type: str, changes: dict[int, Callable[[Ids], Ids]]) -> Model:
    """`model` with constant inputs of the first node of a type changed, for this node alone."""
    model = model.copy()
    node = node_of(model, op_type)
    for i, change in changes.items():
        value = model.weights[node.input[i]].array()
        model.weights[f"changed{i}"] = Weight.of(np.asarray(change(value), value.dtype))
        node.input[i] = f"changed{i}"
    return model


def plus(n: int) -> Callable[[Ids], Ids]:
    return lambda value: value + n


def test_picking_is_proven() -> None:
    found = shapes(pruned(picking()))
    assert found["wa"][0] < 16
    assert found["wo"][1] < 34


def test_a_shifted_bound_of_a_slice_fails_both() -> None:
    made = Pruning(picking())
    end = made.after.model.weights[node_of(made.after.model, "Slice").input[2]].array()
    width = made.after.model.weights["wa"].shape[0]
    stop = int(min(end[0], width)) - 1
    wrong = changed(made.after.model, "Slice", {1: plus(-1), 2: lambda value: np.array([stop])})
    with pytest.raises(CheckFailed, match="re-trace"):
        made.retrace(wrong)
    with pytest.raises(CheckFailed, match="differs"):
        made.equivalence(wrong)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_one_shifted_index_of_a_gather_fails_both(k: int) -> None:
    made = Pruning(picking())
    width = made.after.model.weights["wa"].shape[0]

    def shifted(index: Ids) -> Ids:
        return np.where(np.arange(index.size) == k, (index + 1) % width, index)

    wrong = changed(made.after.model, "Gather", {1: shifted})
    with pytest.raises(CheckFailed, match="re-trace"):
        made.retrace(wrong)
    with pytest.raises(CheckFailed, match="differs"):
        made.equivalence(wrong)


def test_shifted_sizes_of_a_split_fail_the_equivalence() -> None:
    """The parts are joined again, so that the re-trace meets the same channels: what is done to them differs."""
    made = Pruning(picking())
    wrong = changed(made.after.model, "Split", {1: lambda sizes: sizes + np.array([1, -1])})
    with pytest.raises(CheckFailed, match="differs"):
        made.equivalence(wrong)


def test_a_swapped_scalar_index_fails_both() -> None:
    """Keys for values: their heads are the same ones, their dimensions are not."""
    made = Pruning(fused(), heads=False)
    wrong = made.after.model.copy()
    gathers = [n for n in wrong.skeleton.graph.node if n.op_type == "Gather"]
    gathers[1].input[1] = gathers[2].input[1]
    with pytest.raises(CheckFailed, match="re-trace"):
        made.retrace(wrong)
    with pytest.raises(CheckFailed, match="differs"):
        made.equivalence(wrong)


def test_a_batch_that_is_baked_in_fails() -> None:
    """Right at the first size, wrong at the second."""
    result = pruned(fused())
    after = result.model.to_proto()
    node = next(n for n in after.graph.node if n.output[0] == "r")
    target = array(after, node.input[1])
    target[0] = result.report.proof.batches[0]
    wrong = changed(result.model, "Reshape", {1: lambda value: target})
    with pytest.raises(CheckFailed):
        api.verify(fused(), wrong, result.plan, residual="all", ratio=0.5)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (convolutions, ("wa", "var", "bd", "wc", "wo")),
        (lambda: stacked(ZEROS["expanded"]), ("w1", "r1", "b1", "r2", "wo")),
    ],
    ids=["convolutions", "recurrent"],
)
def test_a_shifted_parameter_fails_the_public_verify(build: Callable[[], ModelProto], names: tuple[str, ...]) -> None:
    """What `verify` is given as a file need not come from this package."""
    model = build()
    result = pruned(model)
    assert api.verify(model, result.model.to_proto(), result.plan, residual="all").couplings > 0
    for name in names:
        wrong = result.model.copy()
        value = wrong.weights[name].array()
        wrong.weights[name] = Weight.of(np.roll(value, 1, 1 if value.shape[0] == 1 else 0))
        with pytest.raises(CheckFailed, match="another order"):
            api.verify(model, wrong.to_proto(), result.plan, residual="all")
