"""Every flag that limits what goes does so, through the command line, in every scope; and the proof's tolerances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import array, graph, replace, shapes
from onnx import ModelProto, helper
from test_allocate import attention
from test_cli import fails

from onnxprune import api
from onnxprune.cli import main
from onnxprune.planning import limits

SAME = "pads=[1,1,1,1]"
SIZES = {"w0": 16, "w1": 20, "w2": 16, "w3": 12}
"""Of each layer's own channels; those of w0 and w2 are the two ends of a shortcut."""


def net() -> ModelProto:
    """A shortcut around two convolutions, a third one, a classifier; every node has a name."""
    model = graph(
        "(float[N,3,8,8] x) => (float[N,5] y)",
        f"""
        a = Conv<{SAME}>(x, w0) b = Relu(a) c = Conv<{SAME}>(b, w1) d = Relu(c) e = Conv<{SAME}>(d, w2) f = Add(e, b)
        g = Relu(f) h = Conv<{SAME}>(g, w3) i = Relu(h) p = GlobalAveragePool(i) q = Flatten(p)
        y = Gemm<transB=1>(q, w4)
        """,
        w0=(16, 3, 3, 3), w1=(20, 16, 3, 3), w2=(16, 20, 3, 3), w3=(12, 16, 3, 3), w4=(5, 12),
    )  # fmt: skip
    for node in model.graph.node:
        node.name = f"block.{node.output[0]}"
    return model


def widths(folder: Path, *flags: str) -> dict[str, int]:
    """Rows of every weight that the command with these flags leaves."""
    onnx.save(net(), folder / "in.onnx")
    assert main([str(folder / "in.onnx"), str(folder / "out.onnx"), "-q", *flags]) == 0
    return {name: shape[0] for name, shape in shapes(onnx.load(folder / "out.onnx")).items()}


FAST = ("--fast", "--ratio", "0.9")
SCOPES = (("--scope", "local"), ("--scope", "global"), ("--scope", "pq"), ("--of", "macs"))


@pytest.mark.parametrize("scope", SCOPES, ids=" ".join)
def test_the_most_and_the_least_of_a_group(scope: tuple[str, str], tmp_path: Path) -> None:
    free = widths(tmp_path, *FAST, *scope)
    assert sum(free[w] < 0.75 * n for w, n in SIZES.items()) >= 2, "so that the limits below have something to do"
    held = widths(tmp_path, *FAST, *scope, "--max-ratio", "0.25")
    assert all(0.75 * n <= held[w] <= n for w, n in SIZES.items()), held
    assert any(held[w] < n for w, n in SIZES.items())
    wide = widths(tmp_path, *FAST, *scope, "--min-channels", "11")
    assert all(11 <= wide[w] <= n for w, n in SIZES.items()), wide
    assert any(wide[w] < n for w, n in SIZES.items())


def test_one_ranking_of_all_leaves_a_tenth_of_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """One filter of twenty outweighs the rest, which are the least important units of the whole model."""
    model = net()
    for name, axis in (("w1", 0), ("w2", 1)):
        value = array(model, name)
        np.moveaxis(value, axis, 0)[1:] *= 1e-4
        replace(model, name, value)
    for floor, left in ((0.1, 2), (0.0, 1), (0.25, 5)):
        monkeypatch.setattr(limits, "FLOOR", floor)
        result = api.prune(model, ratio=0.5, scope="global", fast=True)
        assert shapes(result)["w1"][0] == left


@pytest.mark.parametrize("scope", SCOPES, ids=" ".join)
def test_what_is_kept_is_a_multiple_and_not_what_goes(scope: tuple[str, str], tmp_path: Path) -> None:
    held = widths(tmp_path, "--fast", "--ratio", "0.45", *scope, "--round-to", "8")
    assert all(held[w] % 8 == 0 for w in SIZES if held[w] < SIZES[w]), held
    assert held["w1"] < 20


def test_the_most_and_the_least_where_cuts_are_measured(tmp_path: Path) -> None:
    few = ("--ratio", "0.8", "--calib-samples", "16")
    held = widths(tmp_path, *few, "--max-ratio", "0.25")
    assert all(0.75 * n <= held[w] for w, n in SIZES.items()), held
    wide = widths(tmp_path, *few, "--min-channels", "11")
    assert all(wide[w] >= 11 for w in SIZES), wide


def test_at_most_so_many_heads() -> None:
    """Four heads of four channels: the limit holds for the heads, and for the channels of those that stay."""
    for most, left in ((1.0, 2 * 2), (0.25, 3 * 3)):
        after = shapes(api.prune(attention(), ratio=0.5, max_ratio=most, fast=True))
        assert [after[w] for w in ("wq", "wk", "wv")] == [(12, left)] * 3


@pytest.mark.parametrize(
    ("flags", "whole"),
    [
        ((), set()),
        (("--no-residual",), {"w0", "w2"}),
        (("--op-types-to-exclude", "Gemm"), {"w3"}),
        (("--op-types-to-exclude", "Gemm", "Add"), {"w0", "w2", "w3"}),
        (("--nodes-to-exclude", "block.c"), {"w0", "w1", "w2"}),
        (("--nodes-to-exclude", "*.y"), {"w3"}),
        (("--nodes-to-exclude", "re:^block\\.[fy]$"), {"w0", "w2", "w3"}),
        (("--nodes-to-exclude", "re:[cd]$"), {"w0", "w1", "w2"}),
        (("--nodes-to-exclude", "w1"), {"w0", "w1", "w2"}),
        (("--nodes-to-exclude", "w1[0]"), {"w0", "w1", "w2"}),
        (("--nodes-to-exclude", "w[1]"), {"w0", "w1", "w2"}),
        (("--nodes-to-exclude", "w4[1]"), {"w3"}),
    ],
    ids=str,
)
def test_what_stays_whole(flags: tuple[str, ...], whole: set[str], tmp_path: Path) -> None:
    left = widths(tmp_path, "--fast", "--ratio", "0.5", *flags)
    assert {w for w, n in SIZES.items() if left[w] == n} == whole


EXCLUDED = [
    ({"nodes_to_exclude": "block.c"}, {"w0", "w1", "w2"}),  # a name alone is one name, not its letters
    ({"nodes_to_exclude": {"w4[1]"}}, {"w3"}),
    ({"nodes_to_exclude": "lifted"}, {"w0", "w1", "w2"}),  # a Constant stands for its value
    ({"op_types_to_exclude": "Constant"}, {"w0", "w1", "w2"}), ({"op_types_to_exclude": "Gemm"}, {"w3"}),
    ({"op_types_to_exclude": ("Gemm", "Add")}, {"w0", "w2", "w3"}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "whole"), EXCLUDED, ids=str)
def test_what_stays_whole_in_python(options: dict[str, Any], whole: set[str]) -> None:
    model = net()
    value = next(t for t in model.graph.initializer if t.name == "w1")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], name="lifted", value=value))
    model.graph.initializer.remove(value)
    left = shapes(api.prune(model, fast=True, ratio=0.5, **options))
    assert {w for w, n in SIZES.items() if left[w][0] == n} == whole


def test_a_number_that_layers_share_excludes_none_of_them() -> None:
    """An exporter names it after the first layer that reads it."""
    body = "a = MatMul(x, w1) b = Mul(a, h) c = Relu(b) d = MatMul(c, w2) e = Mul(d, h) f = Relu(e) y = MatMul(f, w3)"
    model = graph("(float[N,16] x) => (float[N,3] y)", body, w1=(16, 12), w2=(12, 12), w3=(12, 3), h=np.float32(0.5))
    for node in model.graph.node:
        node.name = f"{'one' if node.output[0] in 'abc' else 'two'}/{node.output[0]}"
        node.input[:] = ["one/half" if name == "h" else name for name in node.input]
    model.graph.initializer[-1].name = "one/half"
    left = shapes(api.prune(model, fast=True, ratio=0.5, nodes_to_exclude="one/*"))
    assert (left["w1"], left["w2"]) == ((16, 12), (12, 6))


def test_what_a_group_holds_is_counted_from_the_shapes() -> None:
    """Parameters: all of the weights that its channels are an axis of. MACs: at 64 pixels, of one sample."""
    sizes = {name: int(np.prod(shape)) for name, shape in shapes(net()).items()}
    found = {g.name: g for g in api.inspect(net()).groups}
    for name, weights in {"w0": "w0 w1 w2 w3", "w1": "w1 w2", "w3": "w3 w4"}.items():
        group = found[f"{name}[0]"]
        assert group.parameters == sum(sizes[w] for w in weights.split())
        assert group.macs == sum(sizes[w] * (1 if w == "w4" else 64) for w in weights.split())
        assert set(group.layers) == set(weights.split())
        assert group.units == SIZES[name]


# -- tolerances of the proof ---------------------------------------------------------------------------------------------


def test_a_share_of_nothing_and_an_absolute_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Long sums differ in their last bit where the zeros among them are left out: no share of it is allowed."""
    model, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    body = "a = MatMul(x, w0) b = Tanh(a) y = MatMul(b, w1)"
    onnx.save(graph("(float[N,9] x) => (float[N,5] y)", body, w0=(9, 2000), w1=(2000, 5)), model)
    seen = fails(tmp_path, capsys, 1, model, out, "--fast", "--check-rtol", "0")
    assert "allowed 0e+00" in seen
    fails(tmp_path, capsys, 1, model, out, "--fast", "--check-rtol", "0", "--check-atol", "1e-12")
    assert main([str(model), str(out), "--fast", "-q", "--check-rtol", "0", "--check-atol", "1e-3"]) == 0
    report = tmp_path / "r.json"
    assert main([str(model), str(out), "--fast", "-q", "--check-rtol", "1e-3", "--report", str(report)]) == 0
    assert json.loads(report.read_text())["proof"]["tolerance"] == 1e-3
