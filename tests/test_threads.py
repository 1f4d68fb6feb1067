"""The default's plans and files are the same bytes with any number of threads, on nets wide enough to be shared out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from tests.graphs import graph
from tools import gpu_check

PRUNED = """
import hashlib, json, sys, onnxprune
path, calib, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
result = onnxprune.prune(path, calib=calib, **options)
print(hashlib.sha256(result.model.to_proto().SerializeToString()).hexdigest(), json.dumps(result.plan.to_json()))
print(json.dumps(result.report.reconstruction["output_error"]))
"""
SAMPLES = 96
Net = tuple[ModelProto, Callable[[np.random.Generator], dict[str, Any]], dict[str, Any]]


def convolutions() -> Net:
    """Residual bottlenecks, of which some go whole."""
    model = gpu_check.residual(16, (2, 2), 32)
    return model, lambda rng: {"image": rng.standard_normal((SAMPLES, 3, 32, 32)).astype(np.float32)}, {"blocks": True}


def heads() -> Net:
    """Attention and its feed-forward layers."""
    model = gpu_check.encoder(2, 64, 4, 200, 24)
    return model, lambda rng: {"tokens": rng.integers(0, 200, (SAMPLES, 24))}, {"heads": True}


def recurrent() -> Net:
    """A GRU between two matrices."""
    model = graph(
        "(float[N, 12, 16] x) => (float[N, 8] y)",
        """a = MatMul(x, u) b = Relu(a) t = Transpose<perm = [1, 0, 2]>(b) s, h = GRU<hidden_size = 48>(t, w, r)
        q = Squeeze(h, zero) y = MatMul(q, v)""",
        u=(16, 64), w=(1, 144, 64), r=(1, 144, 48), v=(48, 8), zero=np.array([0], np.int64),
    )  # fmt: skip
    return model, lambda rng: {"x": rng.standard_normal((SAMPLES, 12, 16)).astype(np.float32)}, {}


@pytest.mark.slow
@pytest.mark.parametrize("net", [convolutions, heads, recurrent])
def test_the_default_is_the_same_with_any_number_of_threads(net: Callable[[], Net], tmp_path: Path) -> None:
    """Calibrated: statistics, curves, trials, refits and the judge, and what they say of the result."""
    model, inputs, options = net()
    onnx.save(model, tmp_path / "in.onnx")
    np.savez(tmp_path / "calib.npz", **inputs(np.random.default_rng(0)))
    given = json.dumps({"ratio": 0.4, **options})
    found = {
        subprocess.run(
            [sys.executable, "-c", PRUNED, str(tmp_path / "in.onnx"), str(tmp_path / "calib.npz"), given],
            env={**os.environ, "OMP_NUM_THREADS": threads}, capture_output=True, text=True, check=True,
        ).stdout
        for threads in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1
    assert json.loads(found.pop().splitlines()[0].partition(" ")[2])["groups"]
