"""Random graphs at random settings: pruning ends proven, or with nothing to prune, and never otherwise. An oracle of its
own agrees with the proof, at ten sizes of the inputs.

ONNXPRUNE_EXAMPLES sets how many graphs are tried (60 if unset)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import random_bodies  # noqa: F401  (it adds ways to grow)
import silenced
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from random_graph import models
from random_sizes import open_models

from onnxprune.api import Result, apply, prune
from onnxprune.errors import NothingToPrune, RuntimeFailure, UsageError
from onnxprune.frameworks.transfer import apply_plan
from onnxprune.options import Options
from onnxprune.planning import Plan

EXAMPLES = int(os.environ.get("ONNXPRUNE_EXAMPLES", "60"))
options = st.builds(
    Options, ratio=st.sampled_from([0.5, 0.2, 0.35, 0.7, 0.9]), scope=st.sampled_from(["local", "global"]),
    heads=st.booleans(), residual=st.sampled_from(["conv", "conv", "all", "none"]),
    round_to=st.sampled_from([1, 1, 2, 4]), fast=st.just(True),
)  # fmt: skip


often = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="ONNXPRUNE_EXAMPLES" not in os.environ, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)  # fmt: skip


@given(models(), options)
@often
def test_a_random_graph_is_pruned_and_proven(model: ModelProto, chosen: Options) -> None:
    check(model, chosen)


@given(open_models(), options)
@often
def test_a_random_graph_of_several_open_sizes_is_pruned_and_proven(model: ModelProto, chosen: Options) -> None:
    check(model, chosen)


def check(model: ModelProto, chosen: Options) -> str:
    """What must hold of any graph; `tools/fuzz` asks it of thousands. Returns what the oracle says, "nothing" where
    nothing may go."""
    note(onnx.printer.to_text(_without_weights(model)))
    try:
        result = prune(model, chosen)
    except NothingToPrune:
        return "nothing"
    except (RuntimeFailure, UsageError):
        if silenced.runs(model):
            raise
        return "never runs"
    pruned = result.model.to_proto()
    note(onnx.printer.to_text(_without_weights(pruned)))
    onnx.checker.check_model(pruned, full_check=True)
    assert result.report.proof.error <= result.report.proof.tolerance
    _assert_slices(_weights(model), _weights(pruned))
    _assert_replays(model, chosen, result)
    return silenced.check(model, pruned, result.plan).verdict


def _assert_replays(model: ModelProto, chosen: Options, result: Result) -> None:
    """The plan, read back from its JSON, leaves the same bytes, and of the weights by name what the file holds."""
    plan = Plan.from_json(json.loads(json.dumps(result.plan.to_json())))
    names = [g.name for g in result.report.groups]
    assert len(set(names)) == len(names)
    assert plan.groups.keys() <= set(names)
    pruned = result.model.to_proto()
    assert apply(model, plan, chosen).to_proto().SerializeToString() == pruned.SerializeToString()
    after = _weights(pruned)
    try:
        small = apply_plan(plan, _weights(model), model)
    except UsageError:
        assert any(r.use for removals in plan.groups.values() for r in removals)  # one name stands for several tensors
        return
    for name in small.keys() & after.keys():
        np.testing.assert_array_equal(small[name], after[name])


def test_what_is_no_slice_is_noticed() -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    _assert_slices({"w": whole}, {"w": whole[[0, 2]][:, [1, 3]], "w_pruned_2": np.stack([whole[0, :2], whole[1, 1:3]])})
    for wrong in (whole[[2, 0]], whole + 0.5, whole[[0, 0, 1]], whole.T):
        with pytest.raises(AssertionError):
            _assert_slices({"w": whole}, {"w": wrong})


def _without_weights(model: ModelProto) -> ModelProto:
    bare = ModelProto()
    bare.CopyFrom(model)
    for weight in bare.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            name, dims = weight.name, list(weight.dims)
            weight.Clear()
            weight.name, weight.data_type = f"{name}_{'x'.join(map(str, dims))}", onnx.TensorProto.FLOAT
    return bare


def _weights(model: ModelProto) -> dict[str, NDArray[np.float32]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}


def _assert_slices(before: dict[str, NDArray[np.float32]], after: dict[str, NDArray[np.float32]]) -> None:
    """Every pruned weight holds values of its original, in their order along every axis. Nearly all values of a test
    model are distinct, so that each tells where it stood; of those that are there twice nothing is said."""
    for name, array in after.items():
        origin = name if name in before else re.sub(r"_pruned(_\d+)?$", "", name)
        whole = before[origin]
        assert array.ndim == whole.ndim, name
        order = np.argsort(whole, axis=None)
        found = order[np.minimum(np.searchsorted(whole.ravel(), array, sorter=order), whole.size - 1)]
        assert (whole.ravel()[found] == array).all(), f"{name} holds values that {origin} does not"
        values, counts = np.unique(whole, return_counts=True)
        twice = np.isin(array, values[counts > 1])
        # numpy 2.4 gives wrong places for over 8,192 indices that come in several axes
        for axis, places in enumerate(np.unravel_index(found.ravel(), whole.shape) if whole.ndim else ()):
            steps = np.diff(np.where(twice, np.nan, places.reshape(array.shape)), axis=axis)
            assert (np.isnan(steps) | (steps > 0)).all(), f"{name} is out of order along axis {axis}"


COUNTEREXAMPLES = Path(__file__).parent / "counterexamples"


@pytest.mark.parametrize(("name", "chosen"), json.loads((COUNTEREXAMPLES / "options.json").read_text()).items())
def test_what_once_failed_is_proven(name: str, chosen: dict[str, object]) -> None:
    """Random graphs that an earlier version got wrong, with the options of that run."""
    result = prune(COUNTEREXAMPLES / f"{name}.onnx", fast=True, **chosen)
    assert result.report.proof.error <= result.report.proof.tolerance
