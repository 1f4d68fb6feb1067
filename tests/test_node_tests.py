"""`tools/fuzz nodes`: what it wraps is pruned and proven, and its oracle sees what is cut wrongly."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import array, replace

from onnxprune import api

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "fuzz"))
nodes = pytest.importorskip("nodes")
wrapping = pytest.importorskip("wrapping")

ENDS = [
    ("test_relu-conv", "proven", "agrees"),
    ("test_matmul_3d-matmul-all", "proven", "agrees"),
    ("test_reduce_sum_keepdims_random-matmul", "proven", "agrees"),
    ("test_softmax_axis_2_expanded-matmul", "proven", "statistics"),
    ("test_reduce_sum_keepdims_random-conv-fed", "nothing", ""),
]


def wrapped(name: str) -> wrapping.Wrapped:
    return next(one for one in wrapping.wrapped(name.partition("-")[0]) if one.name == name)


@pytest.mark.parametrize(("name", "how", "oracle"), ENDS, ids=[r[0] for r in ENDS])
def test_a_wrapped_node(name: str, how: str, oracle: str, tmp_path: Path) -> None:
    end = nodes.judge(wrapped(name), tmp_path)
    assert (end["how"], end.get("oracle", "")) == (how, oracle)


def test_rows_that_are_off_by_one_are_seen(tmp_path: Path) -> None:
    one = wrapped("test_relu-conv")
    onnx.save(one.model, tmp_path / "in.onnx")
    after = api.prune(str(tmp_path / "in.onnx"), ratio=0.5, fast=True, residual="all").model.to_proto()
    trace = api.trace(str(tmp_path / "in.onnx"), residual="all")
    weight, axis = one.consumers[0]
    assert nodes.oracle(one, after, trace)["oracle"] == "agrees"
    old, new = array(one.model, weight), array(after, weight)
    rows = [x.tobytes() for x in np.moveaxis(new, axis, 0)]
    kept = [k for k, x in enumerate(np.moveaxis(old, axis, 0)) if x.tobytes() in rows]
    assert 0 < len(kept) < old.shape[axis]
    replace(after, weight, np.take(old, [(k + 1) % old.shape[axis] for k in kept], axis))
    assert nodes.oracle(one, after, trace)["how"] == "oracle"
