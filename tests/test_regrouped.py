"""Single inputs of a MatMulNBits go: blocks are made anew of those that are left, and the proof knows what was kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper
from test_packed_weights import FORMS, LAYERS, gated, packed, places, run
from test_requantised import inputs
from test_shifted import Pruning

from onnxprune import api
from onnxprune.errors import CheckFailed
from onnxprune.fit.few_bits import numbers
from onnxprune.model import Model, Weight
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import Plan, profile, select
from onnxprune.planning.criteria import l2
from onnxprune.rewrite import rewrite
from onnxprune.trace import Cells

Array = NDArray[Any]


class Single(Pruning):
    """Of which single inputs go, as in a run that refits."""

    def __init__(self, model: Any) -> None:
        self.options = Options(ratio=0.4, residual="none", fast=True).resolved()
        self.groups = analysed(Model.load(model), self.options, Clock(), plan=Plan())
        scores = profile.importance(self.groups, l2, 0)
        self.kept = self.groups.kept_ids(select(self.groups, scores, self.options))
        self.after = rewrite(self.groups.trace, self.kept)


def read(model: Model, name: str) -> Array:
    """The numbers [outputs, inputs] of a MatMulNBits."""
    found = numbers(next(n for n in model.skeleton.graph.node if n.name == name), 1, model, True)
    assert found is not None
    return found[:].astype(np.float64)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_left_is_near_to_what_it_was(form: str) -> None:
    how = {"width": 64, "hidden": 96} | FORMS[form]
    g, kind = gated(**how), how.get("kind", np.float32)
    done = Single(g.model(helper.np_dtype_to_tensor_dtype(np.dtype(kind))))
    done.retrace()
    done.equivalence()
    hidden = places(done.after.model.weights["u_B"].array(), g.weights["u_B"])
    assert 0 < len(hidden) < how["hidden"]
    assert any(0 < sum(k // how["block"] == b for k in hidden) < how["block"] for b in range(-(-how["hidden"] // how["block"])))
    before, after = g.real["d"].T[:, hidden], read(done.after.model, "d")
    assert 0 < np.linalg.norm(after - before) < 1.6 / (1 << how["bits"]) * np.linalg.norm(before)
    x = np.random.default_rng(1).standard_normal((2, 3, 12)).astype(kind)
    bias = {n: g.weights[f"{n}_b"].astype(np.float64) if how.get("bias") else 0.0 for n in LAYERS}
    a = x.astype(np.float64) @ g.weights["w0"].astype(np.float64)
    u, gate = (a @ g.real[n] + bias[n] for n in ("u", "g"))
    d = (u / (1 + np.exp(-gate)))[..., hidden] @ after.T + bias["d"]
    wanted = np.maximum(a + d, 0) @ g.weights["wl"].astype(np.float64)
    near = 1e-5 if kind == np.float32 else 1e-2
    assert np.abs(run(done.after.model.to_proto(), x) - wanted).max() <= near * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["u_B", "u_s", "u_z", "d_B", "d_s", "d_z"])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_taken_from_other_places_is_found(name: str, axis: int) -> None:
    """Of the layer that reads single inputs, codes are others anyway: those of other rows or columns are far off."""
    done = Single(gated(64, 96, bits=4, block=16, zeros="packed", flat=False).model())
    done.equivalence()
    model = done.after.model.copy()
    value = model.weights[name].array()
    if name == "d_B" and axis:
        cells = Cells((64, value.shape[1] * 16), 4, each=16)
        wrong = cells.stored(np.roll(cells.of(value), 3, 1))
    else:
        wrong = np.roll(value, 1, axis)
    if name in ("d_s", "d_z"):  # scales and zero points are near to each other, so that only far ones tell
        wrong = (np.float32(9) * value).astype(value.dtype) if name == "d_s" else value ^ np.uint8(0xFF)
    model.weights[name] = Weight.of(wrong)
    with pytest.raises(CheckFailed, match=name[:1]):
        done.equivalence(model)


def test_sizes_that_do_not_fit_are_found() -> None:
    done = Single(gated(64, 96, bits=4, block=16, zeros="packed").model())
    model = done.after.model.copy()
    next(a for n in model.skeleton.graph.node if n.name == "d" for a in n.attribute if a.name == "K").i -= 1
    with pytest.raises(CheckFailed):
        done.equivalence(model)
    model = done.after.model.copy()
    model.weights["d_B"] = Weight.of(model.weights["d_B"].array()[:, :-1])
    with pytest.raises(CheckFailed, match="d_B"):
        done.equivalence(model)


def test_a_plan_of_single_inputs_is_followed_and_verified() -> None:
    """By whoever refits and whoever only slices, and its file is what the plan says."""
    model = gated(64, 160, bits=4, block=32, zeros="packed").model()
    result = api.prune(model, ratio=0.3, calib=inputs())
    assert any("new blocks" in note for note in result.report.proof.notes)
    assert result.model.weights["d_B"].shape[1] * 32 - 32 < result.model.weights["u_B"].shape[0]
    proof = api.verify(model, result.model.to_proto(), result.plan, calib=inputs())
    assert "d_B" in proof.refitted
    sliced = api.prune(model, plan=result.plan, fast=True)
    assert sliced.model.weights["u_B"].shape == result.model.weights["u_B"].shape
    assert not api.verify(model, sliced.model.to_proto(), sliced.plan).refitted
    other = replace(sliced.model.copy())
    other.weights["d_B"] = Weight.of(other.weights["d_B"].array() ^ np.uint8(1))
    with pytest.raises(CheckFailed, match="no slice"):
        api.verify(model, other.to_proto(), sliced.plan)


def test_blocks_that_stay_whole_keep_their_codes() -> None:
    g = gated(64, 96, bits=4, block=16, zeros="packed")
    after = api.prune(g.model(), ratio=0.5, residual="none", fast=True).model
    hidden = places(after.weights["u_B"].array(), g.weights["u_B"])
    assert np.array_equal(read(after, "d"), g.real["d"].T[:, hidden].astype(np.float32))
    assert len(hidden) % 16 == 0


@pytest.mark.parametrize("each", [2, 16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_cells_of_blocks(bits: int, each: int) -> None:
    each *= 8 // bits if each == 2 else 1
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (3, 2 * each + 1)).astype(np.uint8)
    cells = Cells(codes.shape, bits, each=each)
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each)))
    stored = packed(padded, bits).reshape(3, 3, -1)
    assert np.array_equal(cells.stored(codes), stored)
    assert np.array_equal(cells.of(stored), codes)
    assert cells.stored_shape(codes.shape) == stored.shape
    scale = rng.standard_normal((3, 3))
    shared = Cells(codes.shape, run=each, flat=True)
    assert np.array_equal(shared.of(scale.ravel()), scale.repeat(each, 1)[:, : codes.shape[1]])
    assert np.array_equal(shared.stored(shared.of(scale.ravel())), scale.ravel())
    assert shared.parted(np.arange(codes.shape[1]) % 2 == 0)
    assert not shared.parted(np.arange(codes.shape[1]) < each)
