"""The layers that the picture of a report draws: which operators, what flows between, widths and shapes that are so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph
from onnx import ModelProto

import onnxprune
from onnxprune.results import PicturedLayer

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.onnx"))
INT = np.int64


def pruned(model: ModelProto | Path, **options: Any) -> onnxprune.Result:
    return onnxprune.prune(model, fast=True, **{"ratio": 0.5, **options})


def told(layers: tuple[PicturedLayer, ...]) -> list[tuple[str, list[str], tuple[int, int] | None]]:
    """Operator, what it reads, width; an input and an output by their names."""
    names = [layer.node if layer.op_type in ("input", "output") else layer.op_type for layer in layers]
    return [(name, [names[k] for k in layer.sources], layer.width) for name, layer in zip(names, layers, strict=True)]


PICTURES = {
    "residual": (
        graph("(float[N, 3, 8, 8] x) => (float[N, 5] y)", """a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) b = Relu(a)
              c = Conv(b, w2) d = Add(c, a) e = GlobalAveragePool(d) f = Flatten(e) y = Gemm<transB = 1>(f, w3)""",
              w1=(4, 3, 3, 3), b1=(4,), w2=(4, 4, 1, 1), w3=(5, 4)),
        [("x", [], None), ("Conv", ["x"], (4, 2)), ("Conv", ["Conv"], (4, 2)), ("Add", ["Conv", "Conv"], (4, 2)),
         ("Gemm", ["Add"], (5, 5)), ("y", ["Gemm"], (5, 5))],
    ),
    "tokens, positions and a mask": (
        graph("(int64[N, 6] x, bool[N, 6, 1] keep) => (float[N, 6, 3] y)", """a = Gather(table, x) b = Add(a, positions)
              c = MatMul(b, w1) d = Where(keep, c, zero) e = Relu(d) y = MatMul(e, w2)""",
              table=(9, 4), positions=(1, 6, 4), w1=(4, 8), w2=(8, 3), zero=np.zeros((), np.float32)),
        [("Gather", [], (4, 2)), ("Add", ["Gather"], (4, 2)), ("MatMul", ["Add"], (8, 4)), ("MatMul", ["MatMul"], (3, 3)),
         ("y", ["MatMul"], (3, 3))],
    ),
    "sizes are nothing that flows, weights may be prepared": (
        graph("(float[N, 4] x) => (float[N, 3] y)", """v1 = Transpose(w1) a = MatMul(x, v1) b = Relu(a) s = Shape(x)
              n = Gather(s, zero) m = Concat<axis = 0>(n, minus) c = Reshape(b, m)
              y = MatMul(c, w2)""",
              w1=(8, 4), w2=(8, 3), zero=np.zeros(1, INT), minus=np.array([-1], INT)),
        [("x", [], None), ("MatMul", ["x"], (8, 4)), ("MatMul", ["MatMul"], (3, 3)), ("y", ["MatMul"], (3, 3))],
    ),
    "an output in the middle": (
        graph("(float[N, 4] x, float[N, 8] z) => (float[N, 8] h, float[N, 3] y)",
              "a = MatMul(x, w1) h = Relu(a) c = Mul(h, z) d = MatMul(c, w2) e = Relu(d) y = MatMul(e, w3)",
              w1=(4, 8), w2=(8, 6), w3=(6, 3)),
        [("x", [], None), ("MatMul", ["x"], (8, 8)), ("h", ["MatMul"], (8, 8)), ("z", [], None), ("Mul", ["MatMul", "z"], (8, 8)),
         ("MatMul", ["Mul"], (6, 3)), ("MatMul", ["MatMul"], (3, 3)), ("y", ["MatMul"], (3, 3))],
    ),
    "a branch of an If": (
        graph("(float[N, 4] x, bool c) => (float[N, 3] y)", """a = MatMul(x, w1)
              d = If(c) <then_branch = t () => (float[N, 6] p) { p = MatMul(a, w2) },
                         else_branch = e () => (float[N, 6] q) { q = MatMul(a, w3) }> y = MatMul(d, w4)""",
              w1=(4, 8), w2=(8, 6), w3=(8, 6), w4=(6, 3)),
        [("x", [], None), ("MatMul", ["x"], (8, 4)), ("MatMul", ["MatMul"], (6, 3)), ("MatMul", ["MatMul"], (6, 3)),
         ("If", ["MatMul", "MatMul"], (6, 3)), ("MatMul", ["If"], (3, 3)), ("y", ["MatMul"], (3, 3))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_drawn(name: str) -> None:
    model, wanted = PICTURES[name]
    assert told(pruned(model, residual="all").report.layers) == wanted


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_layers_are_those_of_the_files(path: Path) -> None:
    """MACs add up to the whole, weights have the shapes that they have in the file that is written, groups have names
    that the tables know, and a layer reads only what stands before it."""
    result = pruned(path, residual="all")
    report, layers = result.report, result.report.layers
    for k, cost in enumerate((report.before, report.after)):
        assert abs(sum(layer.macs[k] for layer in layers) - cost.macs) <= len(layers)
    dense = onnxprune.model.Model.load(path).normalised()
    names = {group.name for group in report.groups}
    for i, layer in enumerate(layers):
        assert all(source < i for source in layer.sources)
        assert layer.group in names | {""}
        for name, (before, after) in layer.shapes.items():
            assert before == dense.weights[name].shape
            assert after == result.model.weights[name].shape
    assert any(before != after for layer in layers for before, after in layer.shapes.values())
    assert layers[-1].op_type == "output"
    assert layers[-1].width[0] == layers[-1].width[1]  # which keeps its shape
