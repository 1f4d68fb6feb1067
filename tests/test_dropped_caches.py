"""The cache of an attention that goes whole: what it takes and what it gives go with it, where `--kv-heads` allows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graph, run
from onnx import ModelProto
from test_decoder_folders import GENAI, LLAMA, folder
from test_kv_heads import KINDS, WIDTH, feeds, network

from onnxprune import Gates, api, prune
from onnxprune.cli import main
from onnxprune.errors import CheckFailed
from onnxprune.integrations import prune_folder
from onnxprune.integrations.decoders import NO_BRANCH
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed, proven
from onnxprune.trace import Groups

GIVEN = {"input_shapes": {"x": [0, 3, 0]}}
"""Where the present is as long as the past, which is written into at fixed places."""


def residual(kind: str) -> ModelProto:
    """Attention beside its stream, and a head."""
    signature, body, opset = KINDS[kind]
    model = network(kind)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weights["wo"] = np.random.default_rng(5).standard_normal((len(weights["wo"]), WIDTH)).astype(np.float32) / 8
    for name, value in (("{h}", 4), ("{g}", 4), ("{d}", 8)):
        signature, body = signature.replace(name, str(value)), body.replace(name, str(value))
    return graph(signature.replace("[N, S, 5] y", "[N, S, 5] z"), f"{body} r = Add(x, y) z = MatMul(r, head)", opset,
                 **weights, head=(WIDTH, 5))  # fmt: skip


def groups_of(model: ModelProto, kind: str = "", **options: Any) -> Groups:
    given = GIVEN if "place" in kind else {}
    return analysed(Model.load(model), Options(fast=True, **given, **options).resolved(), Clock())


def without_branches(groups: Groups, kind: str = "") -> ModelProto:
    removed = np.zeros(len(groups.prunable), bool)
    removed[[*groups.branches]] = True
    given = GIVEN if "place" in kind else {}
    return proven(groups, removed, Options(fast=True, **given).resolved(), Clock())[0].model.to_proto()


@pytest.mark.parametrize("kind", KINDS)
def test_past_and_present_go_with_the_branch(kind: str) -> None:
    model = residual(kind)
    small = without_branches(groups_of(model, kind, kv_heads=True), kind)
    assert [o.name for o in small.graph.output] == ["z"]
    assert not {i.name for i in small.graph.input} & {"pk", "pv"}
    assert {n.op_type for n in small.graph.node} <= {"MatMul", "Add", "Identity"}
    assert {t.name for t in small.graph.initializer} - {"at"} == {"head"}  # `at` is read by one kind only
    given = feeds(kind, 4, 8)
    head = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "head")
    names = {i.name for i in small.graph.input}
    np.testing.assert_allclose(run(small, {n: x for n, x in given.items() if n in names})[0], given["x"] @ head, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_flag_they_stay(kind: str) -> None:
    model = residual(kind)
    small = without_branches(groups_of(model, kind), kind)
    assert [o.name for o in small.graph.output] == ["z", "K", "V"]
    assert [i.name for i in small.graph.input] == [i.name for i in model.graph.input]


SHARED = [
    ("the present of one is read by another", "c = ReduceMean<axes = [1, 2]>(K) u = Unsqueeze<axes = [1]>(c) w = MatMul(u, other) z = Add(w, e)"),
    ("the past is read by another", "c = ReduceMean<axes = [1, 2]>(pk) u = Unsqueeze<axes = [1]>(c) w = MatMul(u, other) z = Add(w, e)"),
    ("its length is read by another", "c = Shape(pk) u = Cast<to = 1>(c) w = ReduceMax<keepdims = 0>(u) z = Mul(w, e)"),
]  # fmt: skip


@pytest.mark.parametrize("more", [row[1] for row in SHARED], ids=[row[0] for row in SHARED])
def test_a_cache_that_is_read_elsewhere_stays(more: str) -> None:
    signature, body, opset = KINDS["decomposed"]
    for name, value in (("{h}", 4), ("{g}", 4), ("{d}", 8)):
        signature, body = signature.replace(name, str(value)), body.replace(name, str(value))
    weights: dict[str, Any] = {"wq": (12, 32), "wk": (12, 32), "wv": (12, 32), "wo": (32, 12), "head": (12, 5)}
    weights |= {"to_q": np.array([0, 0, 4, 8]), "to_k": np.array([0, 0, 4, 8]), "flat": np.array([0, 0, 32])}
    if "other" in more:
        weights["other"] = (8, 5) if "MatMul(u" in more else (5,)
    model = graph(signature.replace("5] y", "5] z"), f"{body} r = Add(x, y) e = MatMul(r, head) {more}", opset, **weights)
    (branch,) = groups_of(model, kv_heads=True).branches.values()
    assert branch.caches == {"pv", "V"}


def test_planned_measured_written_verified_and_replayed(tmp_path: Path) -> None:
    """By the command line, with real inputs: quality is judged on what both give."""
    model = residual("MultiHeadAttention")
    random = np.random.default_rng(1)
    given = {"x": random.standard_normal((48, 3, 12)), "pk": random.standard_normal((48, 4, 2, 8)), "pv": random.standard_normal((48, 4, 2, 8))}
    np.savez(tmp_path / "calib.npz", **{n: x.astype(np.float32) for n, x in given.items()})
    dense, out, plan = tmp_path / "dense.onnx", tmp_path / "out.onnx", tmp_path / "plan.json"
    onnx.save(model, dense)
    name = next(iter(groups_of(model).branches.values())).name
    first = prune(dense, ratio=0.3, fast=True, kv_heads=True).plan
    data = first.to_json() | {"branches": [name], "groups": {}}
    plan.write_text(json.dumps(data))
    args = [str(dense), str(out), "--plan", str(plan), "--validate", str(tmp_path / "calib.npz"), "--report", str(tmp_path / "r.json")]
    assert main(args) == 0
    assert [o.name for o in onnx.load(out).graph.output] == ["z"]
    caches = json.loads((tmp_path / "r.json").read_text())["caches"]
    assert [(c["name"], c["after"]) for c in caches] == [("pk", []), ("pv", []), ("K", []), ("V", [])]
    assert main(["verify", str(dense), str(out), str(plan), "--refitted"]) == 0
    wrong = onnx.load(out)
    wrong.graph.output.pop()
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert main(["verify", str(dense), str(tmp_path / "wrong.onnx"), str(plan), "--refitted"]) != 0


def test_chosen_with_real_inputs() -> None:
    """A branch that adds next to nothing goes with its cache, and what is left is judged by what both give."""
    model = residual("MultiHeadAttention")
    for tensor in model.graph.initializer:
        if tensor.name == "wo":
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1e-4).tobytes()
    random = np.random.default_rng(1)
    given = {"x": random.standard_normal((96, 3, 12)), "pk": random.standard_normal((96, 4, 2, 8)), "pv": random.standard_normal((96, 4, 2, 8))}
    data = [{n: x[k : k + 32].astype(np.float32) for n, x in given.items()} for k in range(0, 96, 32)]
    result = prune(model, ratio=0.9, of="macs", kv_heads=True, blocks=True, calib=data, validate=data, gates=Gates(min_cosine=0.9))
    assert result.plan.branches
    assert [c.after for c in result.report.caches] == [()] * 4
    assert [o.name for o in result.model.graph.output] == ["z"]


@pytest.mark.parametrize(("name", "config"), [("genai_config.json", GENAI), ("config.json", LLAMA)])
def test_a_folder_whose_configuration_counts_the_caches_keeps_them_all(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    dense = folder(tmp_path / "dense", name, config)
    (one,) = prune_folder(dense, prune=_losing_caches, ratio=0.5, kv_heads=True).results.values()
    assert all(c.after for c in one.report.caches)
    assert NO_BRANCH in one.report.notes
    with pytest.raises(CheckFailed, match="whole caches"):
        prune_folder(dense, prune=_losing_caches, ratio=0.5, kv_heads=True, blocks=True)


def _losing_caches(path: Path, options: Options) -> api.Result:
    """As a run that measures would do: all branches go that may, and their caches with them."""
    model = Model.load(path)
    names = [] if options.blocks is False else [b.name for b in groups_of(model.to_proto(), kv_heads=True).branches.values()][:1]
    plan = prune(path, ratio=0.3, fast=True, kv_heads=True).plan
    return prune(path, plan=replace(plan, branches=tuple(names), groups={} if names else plan.groups))


ATTENTION = """q{k} = MatMul(h{k}, wq{k}) k{k} = MatMul(h{k}, wk{k}) v{k} = MatMul(h{k}, wv{k}) K{k} = Concat<axis = 1>(pk{k}, k{k})
V{k} = Concat<axis = 1>(pv{k}, v{k}) t{k} = Transpose<perm = [0, 2, 1]>(K{k}) s{k} = MatMul(q{k}, t{k}) a{k} = Softmax(s{k})
c{k} = MatMul(a{k}, V{k}) o{k} = MatMul(c{k}, wo{k}) h{k}1 = Add(h{k}, o{k}) """
ASKED = {
    "a part of the shape": "size = Shape<start = 1, end = 2>({past})",
    "one of the sizes": "shape = Shape({past}) size = Gather(shape, one)",
}


def layers(asked: str, past: str, count: int = 2) -> ModelProto:
    """Attention with caches one after the other, whose output says how long the past of one of them is."""
    body = "h0 = Identity(x) " + "".join(ATTENTION.replace("{k}1", str(k + 1)).replace("{k}", str(k)) for k in range(count))
    body += f"{asked.replace('{past}', past)} number = Cast<to = 1>(size) y0 = Add(h{count}, number) y = MatMul(y0, head)"
    ins = ", ".join(f"float[N, P, 8] {name}{k}" for k in range(count) for name in ("pk", "pv"))
    outs = ", ".join(f"float[N, T, 8] {name}{k}" for k in range(count) for name in "KV")
    weights = {f"w{name}{k}": (8, 8) for k in range(count) for name in "qkvo"}
    return graph(f"(float[N, S, 8] x, {ins}) => (float[N, S, 3] y, {outs})", body, 17, **weights, head=(8, 3), one=np.array([1]))


def oracle(model: ModelProto, gone: list[int], given: dict[str, np.ndarray]) -> np.ndarray:
    """The output of the original in which these attentions give nothing."""
    silent = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in silent.graph.initializer:
        if tensor.name in {f"wo{k}" for k in gone}:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 8), np.float32), tensor.name))
    return run(silent, given)[0]


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(("past", "gone", "left"), [
    ("pk0", [0], {"pk1", "pv1"}),
    ("pk0", [1], {"pk0", "pv0"}),
    ("pv1", [1], {"pk0", "pv0"}),
    ("pk0", [0, 1], {"pk0"}),
])  # fmt: skip
def test_sizes_that_were_asked_of_a_cache_that_goes_are_asked_of_another(
    asked: str, past: str, gone: list[int], left: set[str]
) -> None:
    """Of the first layer's keys, as exporters do; where no cache is left one stays to be asked."""
    model = layers(asked, past)
    groups = groups_of(model, kv_heads=True)
    removed = np.zeros(len(groups.prunable), bool)
    removed[[unit for k, unit in enumerate(groups.branches) if k in gone]] = True
    small = proven(groups, removed, Options(fast=True).resolved(), Clock())[0].model.to_proto()
    assert {i.name for i in small.graph.input} == {"x", *left}
    assert {o.name for o in small.graph.output} == {"y", *(f"{n}{k}" for k in {0, 1} - {*gone} for n in "KV")}
    rng = np.random.default_rng(0)
    for n, p, s in ((1, 3, 2), (2, 5, 1), (3, 1, 4)):
        given = {i.name: rng.standard_normal((n, s if i.name == "x" else p, 8)).astype(np.float32) for i in model.graph.input}
        got = run(small, {i.name: given[i.name] for i in small.graph.input})[0]
        np.testing.assert_allclose(got, oracle(model, gone, given), atol=1e-5)


@pytest.mark.parametrize(("asked", "past"), [
    ("shape = Shape(pk0) size = ReduceMax<keepdims = 1>(shape)", "pk0"),
    ("size = Shape<start = 2>(pk0)", "pk0"),
    ("size = ReduceMax<axes = [0, 1, 2], keepdims = 0>(pk0)", "pk0"),
])  # fmt: skip
def test_what_else_is_read_of_a_cache_keeps_it(asked: str, past: str) -> None:
    branches = groups_of(layers(asked, past), kv_heads=True).trace.branches
    assert [past in branch.caches for branch in branches] == [False, False]
