"""Recurrent layers in statistics and in reconstruction: gates are refitted on what the pruned layer itself gives back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import array, graph, inputs, replace, run, silence
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.api import prune
from onnxprune.fit import Site, Walk, collect, layers
from onnxprune.fit.equations import Refits
from onnxprune.fit.reconstruction import Reconstruction
from onnxprune.fit.recurrent import Recurrent
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.rewrite import rewrite
from onnxprune.trace import Groups

Array = NDArray[Any]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, F, H = 7, 12, 10


def layer(
    kind: str = "LSTM", directions: int = 1, attributes: str = "", extra: str = "", bias: bool = True,
    last: bool = False, signature: str = "(float[7, N, 12] s) => (float[7, N, 3] y)", **weights: Any,
) -> ModelProto:  # fmt: skip
    """A matrix product, a recurrent layer and another matrix product, on Y or on the last state alone."""
    attributes = attributes or ('direction = "bidirectional"' if directions == 2 else 'direction = "forward"')
    outs = ", h" if last else "h"
    read = "z = Transpose<perm = [1, 0, 2]>(h)" if last else "z = Transpose<perm = [0, 2, 1, 3]>(h)"
    body = f"""
        x = MatMul(s, wi)
        {outs} = {kind}<hidden_size = {H}, {attributes}>(x, w, r, {"b" if bias else ""}{extra})
        {read}
        flat = Reshape(z, to)
        y = MatMul(flat, wo)
    """
    if last:
        signature = signature.replace("(float[7, N, 3] y)", "(float[N, 3] y)")
    g = GATES[kind]
    more = {"b": (directions, 2 * g * H)} if bias else {}
    return graph(
        signature, body, w=(directions, g * H, F), r=(directions, g * H, H), wi=(F, F), wo=(directions * H, 3),
        to=np.array([0, -1] if last else [0, 0, -1]), **more, **weights,
    )  # fmt: skip


def feeds(model: ModelProto, count: int = 6, batch: int = 40, seed: int = 1) -> list[dict[str, Array]]:
    """Inputs that vary in a few directions only, so that what is removed can be made up for."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(0).standard_normal((4, F)).astype(np.float32)
    found = []
    for k in range(count):
        feed = inputs(model, batch, seed + k)
        found.append(feed | {"s": random.standard_normal((T, batch, 4)).astype(np.float32) @ mix})
    return found


def traced(model: ModelProto) -> Groups:
    return analysed(Model.load(model), Options(), Clock())


def without(groups: Groups, name: str, share: float, seed: int = 0) -> Array:
    """Mask of classes: a share of the units on the last axis of a parameter, of every row the same number."""
    random = np.random.default_rng(seed)
    removed = np.zeros(len(groups.prunable), bool)
    for s in groups.trace.slices.values():
        for block in s.blocks:
            if s.parameter == name and block.axes[-1] == 2:
                for row in groups.classes[block.ids].reshape(-1, block.ids.shape[-1]):
                    removed[random.permutation(row)[: round(share * len(row))]] = True
    assert removed.any()
    return removed


def refitted(model: ModelProto, name: str, share: float, seed: int = 0, **kw: Any) -> tuple[list[float], Refits]:
    """Relative error of the outputs on unseen inputs, merely cut and then refitted, and what the fit says."""
    groups = traced(model)
    kept = groups.kept_ids(without(groups, name, share, seed))
    after = rewrite(groups.trace, kept)
    new = feeds(model, 1, 60, seed=99)[0]
    wanted = run(model, new)[0]
    cut = run(after.model.to_proto(), new)[0]
    refits = Reconstruction(groups.trace, kept, after, feeds(model, **kw), 2).run()
    got = run(after.model.to_proto(), new)[0]
    spread = np.square(wanted - wanted.mean()).sum()
    return [float(np.square(o - wanted).sum() / spread) for o in (cut, got)], refits


STATES = {
    "extra": ", , h0", "signature": "(float[7, N, 12] s, float[1, N, 10] h0) => (float[7, N, 3] y)",
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "lstm": {}, "lstm, both directions": {"directions": 2}, "lstm, reverse": {"attributes": 'direction = "reverse"'},
    "lstm, last state": {"last": True}, "lstm, both directions, last state": {"directions": 2, "last": True},
    "lstm, no bias": {"bias": False}, "rnn": {"kind": "RNN"}, "gru": {"kind": "GRU"},
    "lstm, peepholes": {"extra": ", , , , p", "p": (1, 3 * H)},
    "gru, both directions": {"kind": "GRU", "directions": 2},
    "gru, linear before reset": {"kind": "GRU", "attributes": "linear_before_reset = 1"},
}  # fmt: skip


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["w", "r"])
def test_random_units(options: dict[str, Any], name: str) -> None:
    """Input features lie in a subspace here, so that those that are left can stand for those that went."""
    (before, after), refits = refitted(layer(**options), name, 0.3)
    assert after < (0.1 if name == "w" else 0.8) * before
    gates = [r for r in refits.solved if not r.layer.startswith("MatMul")]
    assert gates
    assert all(r.after <= r.before for r in gates)
    assert name == "r" or sum(r.after for r in gates) < 0.1 * sum(r.before for r in gates)
    assert set(refits.skipped.values()) <= {"nothing that it reads or gives was cut"}


@pytest.mark.parametrize("options", [{}, {"kind": "RNN"}, {"kind": "GRU"}, {"directions": 2}, {"bias": False}], ids=str)
def test_twin_units(options: dict[str, Any]) -> None:
    """Of two hidden units that are always equal one goes: what it gave the next step comes from the other."""
    model = layer(**options)
    g, directions = GATES[options.get("kind", "LSTM")], options.get("directions", 1)
    for name, width in (("w", F), ("r", H), ("b", 2)):
        if name == "b" and not options.get("bias", True):
            continue
        value = array(model, name)
        own = (
            value.reshape(directions, 2, g, H).swapaxes(1, 3) if name == "b" else value.reshape(directions, g, H, width)
        )
        axis = 1 if name == "b" else 2
        np.moveaxis(own, axis, 0)[5:] = np.moveaxis(own, axis, 0)[:5]  # `own` is a view of `value`
        replace(model, name, value)
    groups = traced(model)
    removed = np.zeros(len(groups.prunable), bool)
    units = next(r for r in reductions(groups) if r.operand == 2).block.ids.reshape(directions, H)
    removed[groups.classes[units[:, 5:]]] = True
    new = feeds(model, 1, 60, seed=99)[0]
    wanted = run(model, new)[0]
    errors = []
    for fit in (False, True):
        kept = groups.kept_ids(removed)
        after = rewrite(groups.trace, kept)
        if fit:
            Reconstruction(groups.trace, kept, after, feeds(model), 2).run()
        got = run(after.model.to_proto(), new)[0]
        errors.append(float(np.square(got - wanted).sum() / np.square(wanted - wanted.mean()).sum()))
    assert errors[1] < 1e-3 < 1e-1 < errors[0]


def reductions(groups: Groups) -> list[Any]:
    nodes = groups.trace.model.skeleton.graph.node
    return [r for r in groups.trace.reductions if nodes[r.node].op_type in GATES]


def test_units_without_influence() -> None:
    """Nobody reads the units that go, and so nothing is changed."""
    model = silence(layer(), {"r": (2, range(4)), "wo": (0, range(4))})
    groups = traced(model)
    removed = np.zeros(len(groups.prunable), bool)
    removed[groups.classes[next(r for r in reductions(groups) if r.operand == 2).block.ids[:4]]] = True
    kept = groups.kept_ids(removed)
    after = rewrite(groups.trace, kept)
    before = array(after.model.to_proto(), "w")
    refits = Reconstruction(groups.trace, kept, after, feeds(model), 2).run()
    assert not refits.solved
    np.testing.assert_array_equal(array(after.model.to_proto(), "w"), before)
    new = feeds(model, 1)[0]
    np.testing.assert_allclose(run(after.model.to_proto(), new)[0], run(model, new)[0], atol=1e-5)


STATES = {"extra": ", , h0", "signature": "(float[7, N, 12] s, float[{}, N, 10] h0) => (float[7, N, 3] y)"}
WAYS = {"forward": 1, "reverse": 1, "bidirectional": 2}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "GRU, linear_before_reset = 1"])
@pytest.mark.parametrize("last", [False, True], ids=["y", "last"])
def test_gates_give_the_output(kind: str, way: str, last: bool) -> None:
    """The operator's own formula, from what the layers compute: steps, directions and initial states are in place."""
    kind, _, more = kind.partition(", ")
    attributes = f'direction = "{way}"{more and ", " + more}'
    states = {k: v.format(WAYS[way]) for k, v in STATES.items()}
    model = layer(kind, WAYS[way], attributes, last=last, **states)
    walk = Walk(Model.load(model), feeds(model, 2), lambda name: 1)
    found = {f.title.split(" ", 1)[-1]: f for f in layers(walk.model, lambda name: 3) if isinstance(f, Recurrent)}
    z = {k: [f._computed(x, walk) for x in f.inputs(walk)] for k, f in found.items()}
    for k in range(2):
        y = walk.value(walk.tap(next(iter(found.values())).index))[k].transpose(1, 0, 2, 3).reshape(WAYS[way], -1, H)
        if kind == "RNN":
            np.testing.assert_allclose(np.tanh(next(iter(z.values()))[k]), y, atol=1e-5)
            continue
        update, reset = (1 / (1 + np.exp(-a)) for a in np.split(z["zr"][k], 2, -1))
        new = np.tanh(z["h W"][k] + reset * z["h R"][k] if more else z["h"][k])
        before = found["zr"].inputs(walk)[k].h
        np.testing.assert_allclose((1 - update) * new + update * before, y, atol=1e-5)


def test_initial_states() -> None:
    states = {k: v.format(1) for k, v in STATES.items()}
    (before, after), _ = refitted(layer(**states), "w", 0.3)
    assert after < 0.1 * before


@pytest.mark.parametrize("options", [{}, {"directions": 2}, {"kind": "GRU"}], ids=str)
def test_sites(options: dict[str, Any]) -> None:
    """Input features and hidden units have columns, of the weights side by side; [groups, columns, outputs]."""
    model = layer(**options)
    groups = traced(model)
    sites: list[Site] = [
        s for s in collect(groups, feeds(model), ("cpu",), 0) if isinstance(s.members[0], Recurrent)
    ]  # fmt: skip
    d, g = options.get("directions", 1), GATES[options.get("kind", "LSTM")]
    assert sum(s.matrix.shape[2] for s in sites) == g * H
    joined = np.concatenate([array(model, "w"), array(model, "r")], 2).transpose(0, 2, 1)
    np.testing.assert_allclose(np.concatenate([s.matrix for s in sites], 2), joined, atol=1e-6)
    for s in sites:
        assert s.gram.shape == (d, F + H, F + H)
        assert len(np.unique(s.units)) == F + d * H
        assert s.movable
        energies = np.linalg.eigvalsh(s.gram[0])
        assert (energies > -1e-6 * energies.max()).all(), "to the rounding of float32"


SKIPPED = {
    "its sequences are of several lengths": {
        "extra": ", lens", "signature": "(float[7, N, 12] s, int32[N] lens) => (float[7, N, 3] y)",
    },
    "the batch comes before the steps": {"attributes": "layout = 1"},
}  # fmt: skip


@pytest.mark.parametrize("why", SKIPPED)
def test_skipped(why: str) -> None:
    skipped: dict[str, str] = {}
    found = layers(Model.load(layer(**SKIPPED[why])), lambda name: 3, skipped)  # type: ignore[arg-type]
    assert not [f for f in found if isinstance(f, Recurrent)]
    assert list(skipped.values()) == [why]


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_pruned_and_proven(options: dict[str, Any]) -> None:
    model = layer(**options)
    data = {"s": np.concatenate([f["s"] for f in feeds(model)], 1)}
    result = prune(model, ratio=0.3, calib=[data], calib_samples=240)
    story = result.report.reconstruction
    assert story is not None
    assert story["output_error"]["refitted"] <= story["output_error"]["sliced"]
    assert all(np.isfinite(r["after"]) for r in story["layers"])
    node = next(n for n in result.model.to_proto().graph.node if n.op_type in GATES)
    assert bool(node.output[0]) != bool(options.get("last"))  # what was only looked at is not in the file
