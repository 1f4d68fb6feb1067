"""Plans: every group under a name of its own, of one graph, replayed to the byte; what is none is refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import array, graph, replace
from onnx import ModelProto, helper

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import UsageError
from onnxprune.model import Model
from onnxprune.planning import Plan, Removal
from onnxprune.planning.fingerprint import fingerprint

Captured = pytest.CaptureFixture[str]
IMAGES = "(float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)"


def prelus() -> ModelProto:
    """One vector of slopes for three layers, as exporters share equal tensors."""
    body = """a = Conv(x, w1) b = PRelu(a, slopes) c = Conv(b, w2) d = PRelu(c, slopes) e = Conv(d, w3)
        f = PRelu(e, slopes) y = Conv(f, w4)"""
    slopes = np.full((8, 1, 1), 0.25, np.float32)
    return graph(IMAGES, body, slopes=slopes, w1=(8, 3, 1, 1), w2=(8, 8, 1, 1), w3=(8, 8, 1, 1), w4=(4, 8, 1, 1))


def shared_vectors() -> ModelProto:
    """Two groups that live in nothing but vectors that the other reads, too: only their uses tell them apart."""
    body = """a = Mul(one, two) s = ReduceSum<keepdims = 0>(a) b = Mul(one, two) t = ReduceSum<keepdims = 0>(b)
        c = Mul(x, s) y = Add(c, t)"""
    return graph("(float[N, 3] x) => (float[N, 3] y)", body, one=(8,), two=(8,))


def queries() -> ModelProto:
    """Two axes of one parameter begin two groups."""
    body = """q = MatMul(latents, wq) k = MatMul(x, wk) t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, t)
        p = Softmax(s) v = MatMul(x, wv) o = MatMul(p, v) r = Relu(o) u = Transpose<perm = [0, 2, 1]>(r)
        y = MatMul(u, w2)"""
    return graph("(float[N, 5, 6] x) => (float[N, 10, 4] y)", body, latents=(8, 16), wq=(16, 12), wk=(6, 12), wv=(6, 10),
                 w2=(8, 4))  # fmt: skip


def heads() -> ModelProto:
    body = """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        q4 = Reshape(q, split) k4 = Reshape(k, split) v4 = Reshape(v, split)
        qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 3, 1]>(k4)
        vt = Transpose<perm = [0, 2, 1, 3]>(v4) s = MatMul(qt, kt) p = Softmax(s) o = MatMul(p, vt)
        ot = Transpose<perm = [0, 2, 1, 3]>(o) m = Reshape(ot, merge) y = MatMul(m, wo)"""
    return graph("(float[N, 5, 8] x) => (float[N, 5, 8] y)", body, split=np.array([0, 0, 4, 4]), merge=np.array([0, 0, 16]),
                 wq=(8, 16), wk=(8, 16), wv=(8, 16), wo=(16, 8))  # fmt: skip


def bodies() -> ModelProto:
    body = """a = MatMul(x, w1) b = Relu(a) s = ReduceSum<keepdims = 0>(x) z = Constant<value_float = 0.0>() g = Greater(s, z)
        y = If(g) <then_branch = t () => (float[N, 4] p) { p = MatMul(b, w2) },
                   else_branch = e () => (float[N, 4] q) { c = Neg(b) q = MatMul(c, w3) }>"""
    return graph("(float[N, 3] x) => (float[N, 4] y)", body, w1=(3, 8), w2=(8, 4), w3=(8, 4))


NETWORKS: list[Callable[[], ModelProto]] = [prelus, shared_vectors, queries, heads, bodies]
GROUPS = {
    prelus: {"w1[0]", "w2[0]", "w3[0]"},
    queries: {"latents[0]", "latents[1]", "wq[1]"},
    shared_vectors: {"one[0] of Mul_0:0", "one[0] of Mul_2:0"},
}


def weights(model: ModelProto) -> dict[str, Any]:
    return {t.name: array(model, t.name) for t in model.graph.initializer}


def through_json(plan: Plan) -> Plan:
    return Plan.from_json(json.loads(json.dumps(plan.to_json())))


@pytest.mark.parametrize("build", NETWORKS, ids=lambda b: b.__name__)
def test_a_plan_holds_every_group_and_gives_the_same_bytes(build: Callable[[], ModelProto]) -> None:
    model = build()
    result = onnxprune.prune(model, ratio=0.5, fast=True, residual="all")
    names = [g.name for g in result.report.groups]
    assert len(set(names)) == len(names)
    assert result.plan.groups.keys() == {g.name for g in result.report.groups if g.kept < g.prunable}
    assert set(names) == GROUPS.get(build, set(names))
    assert names == [g.name for g in onnxprune.inspect(model, residual="all").groups]
    again = onnxprune.prune(model, plan=through_json(result.plan), fast=True)
    assert again.model.to_proto().SerializeToString() == result.model.to_proto().SerializeToString()
    assert [(g.name, g.kept) for g in again.report.groups] == [(g.name, g.kept) for g in result.report.groups]


@pytest.mark.parametrize("build", [prelus, queries, heads, bodies], ids=lambda b: b.__name__)
def test_the_default_keeps_the_same_units_when_it_is_replayed(build: Callable[[], ModelProto]) -> None:
    model = build()
    first = onnxprune.prune(model, ratio=0.4, calib_samples=32)
    second = onnxprune.prune(model, plan=through_json(first.plan), calib_samples=32)
    assert {c.group for c in first.report.curves} <= {g.name for g in first.report.groups}
    assert second.report.groups == first.report.groups
    assert (
        onnxprune.plan(model, ratio=0.4, calib_samples=32).groups == first.plan.groups
        or (first.report.reconstruction or {})["fell_back"]
    )


def test_a_replay_that_refits_badly_keeps_its_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a refit is worse than slices the slices are taken, but never another choice of units."""
    from onnxprune.fit import reconstruction

    model = prelus()
    plan = Plan({"g": (Removal("w2", (0,), (8,), (0, 1)),)})

    def spoiled(self: reconstruction.Reconstruction, progress: object = None) -> reconstruction.Refits:
        weight = self.after.model.weights["w4"]
        self.after.model.weights["w4"] = type(weight).of(weight.array() + 9)
        return reconstruction.Refits()

    monkeypatch.setattr(reconstruction.Reconstruction, "run", spoiled)
    result = onnxprune.prune(model, plan=plan, calib_samples=16)
    assert (result.report.reconstruction or {})["fell_back"]
    sliced = onnxprune.prune(model, plan=plan, fast=True).model.to_proto()
    assert weights(result.model.to_proto()).keys() == weights(sliced).keys()
    for name, value in weights(sliced).items():
        np.testing.assert_array_equal(value, array(result.model.to_proto(), name))


@pytest.mark.parametrize("build", [queries, heads, bodies], ids=lambda b: b.__name__)
def test_a_plan_cuts_weights_to_what_the_file_holds(build: Callable[[], ModelProto]) -> None:
    model = build()
    result = onnxprune.prune(model, ratio=0.5, fast=True, residual="all")
    floats = {n: w for n, w in weights(model).items() if w.dtype == np.float32}
    for small in (onnxprune.apply_plan(result.plan, floats), onnxprune.apply_plan(result.plan, floats, model)):
        for name, value in small.items():
            np.testing.assert_array_equal(value, array(result.model.to_proto(), name))


def test_one_name_for_several_tensors_is_not_cut_by_name_alone() -> None:
    for model in (prelus(), shared_vectors()):
        plan = onnxprune.plan(model, ratio=0.5, fast=True)
        with pytest.raises(UsageError, match=r"several equal tensors.*model"):
            onnxprune.apply_plan(plan, weights(model))


@pytest.mark.parametrize("path", ["/{}/PRelu", "/net/net.{}/PRelu"])
def test_the_names_of_nodes_tell_which_of_equal_tensors_is_which(path: str) -> None:
    """One reader sees the shared slopes through an Identity, as the TorchScript exporter writes it."""
    model = prelus()
    acts = [n for n in model.graph.node if n.op_type == "PRelu"]
    for node, module in zip(acts, "pqr", strict=True):
        node.name = path.format(module)
    acts[1].input[1] = "same"
    model.graph.node.insert(0, helper.make_node("Identity", ["slopes"], ["same"]))
    result = onnxprune.prune(model, ratio=0.5, fast=True)
    inner = path.split("/")[-2]
    slopes = {f"{inner.format(m)}.weight": np.full(8, 0.25, np.float32) for m in "pqr"}
    state = {n: w for n, w in weights(model).items() if n != "slopes"} | slopes
    own = onnxprune.renamed(result.plan, state, model)
    for module, layer in zip("pqr", ("w1", "w2", "w3"), strict=True):
        (gone,) = (r.remove for r in own.groups[layer] if r.axes == (0,))
        assert own.groups[f"{inner.format(module)}.weight"] == (
            Removal(f"{inner.format(module)}.weight", (0,), (8,), gone),
        )
    del model.graph.node[0]
    acts = [n for n in model.graph.node if n.op_type == "PRelu"]
    for node in acts:
        node.name, node.input[1] = "", "slopes"
    plan = onnxprune.plan(model, ratio=0.5, fast=True)
    with pytest.raises(UsageError, match="not found in the model for certain"):
        onnxprune.renamed(plan, state, model)


# The graph a plan is of


def renamed_node(model: ModelProto) -> None:
    model.graph.node[0].name = "other"


def another_attribute(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("strides", [2, 2]))


def another_shape(model: ModelProto) -> None:
    replace(model, "w2", np.ones((9, 8, 1, 1), np.float32))


def another_type(model: ModelProto) -> None:
    replace(model, "w2", array(model, "w2").astype(np.float16))


def renamed_weight(model: ModelProto) -> None:
    model.graph.initializer[1].name += "_"


def one_node_more(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"], name="more"))


def another_operator(model: ModelProto) -> None:
    model.graph.node[-1].op_type = "ConvTranspose"


def trained_further(model: ModelProto) -> None:
    for t in list(model.graph.initializer):
        replace(model, t.name, array(model, t.name) + np.float32(1))


def explained(model: ModelProto) -> None:
    model.graph.doc_string = model.graph.node[0].doc_string = "a network"
    model.producer_name = "somebody"


def of_another_size(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 12


@pytest.mark.parametrize(
    ("edit", "same"),
    [
        (renamed_node, False), (another_attribute, False), (another_shape, False), (another_type, False),
        (renamed_weight, False), (one_node_more, False), (another_operator, False), (trained_further, True),
        (explained, True), (of_another_size, True),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)  # fmt: skip
def test_a_fingerprint_is_of_the_structure(edit: Callable[[ModelProto], None], same: bool) -> None:
    model, other = prelus(), prelus()
    edit(other)
    one, two = (fingerprint(Model.load(m).normalised()) for m in (model, other))
    assert (one == two) == same


def test_a_body_counts() -> None:
    model, other = bodies(), bodies()
    other.graph.node[-1].attribute[0].g.node[0].op_type = "Gemm"
    one, two = (fingerprint(Model.load(m).normalised()) for m in (model, other))
    assert one != two


def test_the_plan_of_another_graph_is_refused_unless_forced(tmp_path: Path, capsys: Captured) -> None:
    onnx.save(prelus(), tmp_path / "a.onnx")
    other = prelus()
    renamed_node(other)
    onnx.save(other, tmp_path / "b.onnx")
    assert call(tmp_path, "a.onnx", "out.onnx", "--fast", "--save-plan", "plan.json", "-q") == 0
    assert call(tmp_path, "b.onnx", "other.onnx", "--fast", "--plan", "plan.json") == 2
    error = capsys.readouterr().err
    assert "another graph" in error
    assert "--force-plan" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "other.onnx").exists()
    assert call(tmp_path, "b.onnx", "other.onnx", "--fast", "--plan", "plan.json", "--force-plan", "-q") == 0
    shapes = [{n: w.shape for n, w in weights(onnx.load(tmp_path / f)).items()} for f in ("out.onnx", "other.onnx")]
    assert shapes[0] == shapes[1]


def test_what_does_not_fit_is_refused_though_forced() -> None:
    plan = onnxprune.plan(queries(), ratio=0.5, fast=True)
    with pytest.raises(UsageError, match="not in this model"):
        onnxprune.prune(prelus(), plan=plan, force_plan=True)


def call(folder: Path, *arguments: str) -> int:
    return main([str(folder / a) if a.endswith((".onnx", ".json")) else a for a in arguments])


REMOVAL = {"parameter": "w2", "axes": [0], "shape": [8], "remove": [1]}


def saved(**changed: Any) -> str:
    plan = {"version": 2, "fingerprint": "", "scope": "local", "ratio": 0.5, "criterion": "l2", "reconstruct": "none",
            "groups": {"g": [REMOVAL]}}  # fmt: skip
    return json.dumps({k: v for k, v in (plan | changed).items() if v is not None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "not a plan"),
        ("null", "not a plan"),
        ("{}", "it has no 'version'"),
        (saved(version="2"), "its 'version' is '2'"),
        (saved(version=1), "version 1.*make it anew"),
        (saved(fingerprint=None), "it has no 'fingerprint'"),
        (saved(groups=[]), r"its 'groups' is \[\]"),
        (saved(groups={"g": [{}]}), "it has no 'axes'"),
        (saved(groups={"g": [REMOVAL | {"remove": [-1]}]}), "numbers from 0 on"),
        (saved(groups={"g": [REMOVAL | {"remove": [1.5]}]}), "numbers from 0 on"),
        (saved(groups={"g": [REMOVAL | {"remove": [True]}]}), "numbers from 0 on"),
        (saved(groups={"g": [REMOVAL | {"remove": [8]}]}), "do not fit"),
        (saved(groups={"g": [REMOVAL | {"axes": [0, 1]}]}), "do not fit"),
        (saved(groups={"g": [REMOVAL | {"axes": "0"}]}), "its 'axes' is '0'"),
        (saved(branch=["y"]), "nobody reads its 'branch'; did you mean 'branches'"),
        (saved(groups={"g": [REMOVAL | {"removed": [1]}]}), "nobody reads its 'removed'; did you mean 'remove'"),
        (saved(groups={"g": [REMOVAL], "h": []}).replace('"h"', '"g"'), "'g' stands twice"),
        (saved().replace('"remove"', '"shape": [9], "remove"'), "'shape' stands twice"),
        (saved(groups={"g": [REMOVAL | {"parameter": "w9"}]}), "not in this model"),
        (saved(groups={"g": [REMOVAL | {"remove": list(range(8))}]}), "must stay"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(text: str, message: str, tmp_path: Path, capsys: Captured) -> None:
    onnx.save(prelus(), tmp_path / "in.onnx")
    (tmp_path / "plan.json").write_text(text)
    assert call(tmp_path, "in.onnx", "out.onnx", "--fast", "--plan", "plan.json") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert pytest.raises(UsageError, match=message).matches(UsageError(error))
    assert not (tmp_path / "out.onnx").exists()


def test_a_plan_by_hand_is_carried_out(tmp_path: Path) -> None:
    onnx.save(prelus(), tmp_path / "in.onnx")
    (tmp_path / "plan.json").write_text(saved())
    assert call(tmp_path, "in.onnx", "out.onnx", "--fast", "--plan", "plan.json", "-q") == 0
    assert array(onnx.load(tmp_path / "out.onnx"), "w2").shape == (7, 8, 1, 1)


# The same plan and the same file, wherever and however often it is made

PLAN = """
import hashlib, json, sys, onnxprune
for options in json.loads(sys.argv[2]):
    result = onnxprune.prune(sys.argv[1], **options)
    print(hashlib.sha256(result.model.to_proto().SerializeToString()).hexdigest(), json.dumps(result.plan.to_json()))
"""


def planned(path: Path, ways: Sequence[dict[str, Any]], seed: str, threads: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", PLAN, str(path), json.dumps([w | {"threads": int(threads)} for w in ways])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["tiny_conv.onnx", "tiny_attention.onnx"])
def test_neither_hashes_nor_threads_change_a_file(name: str) -> None:
    path = Path(__file__).parents[1] / "models" / name
    ways = [{"fast": True, "ratio": 0.5}, {"ratio": 0.4, "calib_samples": 64}, {"fast": True, "scope": "global"}]
    first = planned(path, ways, "1", "1")
    assert first.count("\n") == len(ways)
    assert planned(path, ways, "2", "2") == first


def test_statistics_have_the_same_bits_with_any_number_of_threads() -> None:
    """A BLAS adds up in another order with another number of threads; which units go must not hang on that."""
    code = """if True:
        import hashlib
        import numpy as np
        from onnxprune.fit import Problem, factors, inverse, solve
        from onnxprune.fit.normal import BLOCK, CHUNK, Moments
        from onnxprune.steady import steady
        rng = np.random.default_rng(0)
        x = rng.standard_normal((2 * CHUNK + 1, BLOCK + 90)).astype(np.float32)
        t = (x[:, :40] + rng.standard_normal((len(x), 40))).astype(np.float32)
        with steady():
            moments = Moments.of(x, t)
            p = Problem(x, t, np.ones(40), np.zeros(40), low=0.0)
            found = solve(p, np.zeros((x.shape[1], 40)), np.zeros(40), 900)
            large = rng.standard_normal((factors.BLOCK + 80, factors.BLOCK + 80))
            solved = factors.Factor.of(large @ large.T + np.eye(len(large))).solve(x[: len(large), :200])
            made = moments.gram, moments.cross, inverse(moments.gram), found.matrix, found.bias, solved
            print(hashlib.sha256(b"".join(a.tobytes() for a in made)).hexdigest())
    """
    found = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": threads}, check=True,
                       capture_output=True, text=True).stdout
        for threads in ("1", "2", "4")
    }  # fmt: skip
    assert len(found) == 1


def test_threads_are_given_back() -> None:
    steady = import_module("onnxprune.steady")

    def counts() -> list[int]:
        return [get() for get, _ in steady._libraries()]

    @steady.steady()
    def failing() -> None:
        assert set(counts()) <= {1}
        raise KeyError

    before = counts()
    with pytest.raises(KeyError):
        failing()
    assert counts() == before


def test_each_keeps_the_order() -> None:
    from onnxprune.steady import each

    assert each(lambda k: k * k, range(100)) == [k * k for k in range(100)]


@pytest.mark.parametrize("count", ["1", "2"])
def test_work_alongside_is_done_in_order(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.steady import alongside

    monkeypatch.setenv("OMP_NUM_THREADS", count)
    done: list[int] = []

    def work(k: int) -> bool:
        done.append(k)
        return threading.current_thread() is threading.main_thread()

    with alongside() as begun:
        results = [begun(partial(work, k)) for k in range(9)]
        assert [result() for result in results] == [count == "1"] * 9
    assert done == list(range(9))


def test_what_comes_in_turn_is_not_all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.steady import in_turn

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    begun: list[int] = []
    for k, found in enumerate(in_turn(lambda k: begun.append(k) or k, range(40))):
        assert found == k
        assert len(begun) <= k + 4


def test_each_takes_what_it_is_given_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the items runs here, one after the other, and not far ahead of those that work on them; within one of
    these everything goes on one by one."""
    from onnxprune import steady

    monkeypatch.setattr(steady, "threads", lambda: 1 if steady._BUSY.get() else 3)
    given, done = list[int](), list[int]()

    def items() -> Iterator[int]:
        for k in range(40):
            assert threading.current_thread() is threading.main_thread()
            assert k - len(done) <= 3 + 1 + 3
            given.append(k)
            yield k

    def work(k: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        inside = steady.each(lambda _: threading.current_thread(), range(3))
        assert inside == [threading.current_thread()] * 3
        done.append(k)
        return -k

    assert steady.each(work, items()) == [-k for k in range(40)]
    assert given == list(range(40))
    with pytest.raises(ZeroDivisionError):
        steady.each(lambda k: 1 // (k - 5), range(9))


def test_the_integer_program_has_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chained shuffles whose buckets have no common divisor: what the solver is told holds no limit in seconds."""
    import scipy

    from onnxprune.planning.buckets import LinkedBuckets

    told: list[dict[str, Any]] = []
    solver = scipy.optimize.milp

    def milp(*given: Any, options: dict[str, Any], **more: Any) -> Any:
        told.append(options)
        return solver(*given, options=options, **more)

    monkeypatch.setattr(scipy.optimize, "milp", milp)
    rows = np.arange(30).reshape(3, 10)
    part = LinkedBuckets([list(range(30))], 1, 0.0, [rows, rows.T.reshape(3, 10)], np.arange(30.0))
    assert len(part.solve_milp(12, 9)) in range(9, 13)
    assert told
    assert not any("time" in key for options in told for key in options)
