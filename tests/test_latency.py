"""Time: benchmarks, segments, costs in seconds, the multiple that a runtime likes, and the flags that ask for them."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph, pruned
from onnx import ModelProto

from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import CheckFailed, NothingToPrune, RuntimeFailure, UsageError
from onnxprune.measure import latency
from onnxprune.model import Model
from onnxprune.options import Gates, Options
from onnxprune.options.validation import milliseconds
from onnxprune.pipeline import Clock, analysed, searching
from onnxprune.planning import Costs, by_weights, settled, timer, timings
from onnxprune.planning.allocation import Choice, allocate, on_stairs, uniform
from onnxprune.planning.kernels import Point, Stair, fitted, targets
from onnxprune.planning.segments import FRONT, Segments, signature
from onnxprune.planning.selection import parts, reachable
from onnxprune.rewrite import rewrite
from onnxprune.shapes import infer
from onnxprune.trace import Groups

MODELS = Path(__file__).parents[1] / "models"
sys.path.insert(0, str(MODELS.parent))
from tools import gpu_check  # noqa: E402


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and short measurements."""
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    for module, name, value in ((timer, "PIECE", 0.0), (timer, "TURN", 0.0), (latency, "SECONDS", 0.0)):
        monkeypatch.setattr(module, name, value)


def grouped(model: Any) -> Groups:
    return analysed(Model.load(model), Options(), Clock())


def wide(width: int = 64) -> ModelProto:
    """Two convolutions and a residual sum over one stream, and a classifier."""
    return graph(
        "(float[N, 3, 12, 12] image) => (float[N, 5] logits)",
        """a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(image, w1, b1)
        b = Relu(a)
        c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(b, w2, b2)
        d = Relu(c)
        e = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(d, w3, b3)
        f = Add(e, b)
        g = Relu(f)
        h = GlobalAveragePool(g)
        i = Flatten(h)
        logits = Gemm<transB = 1>(i, w4, b4)""",
        w1=(width, 3, 3, 3), b1=(width,), w2=(width, width, 3, 3), b2=(width,), w3=(width, width, 3, 3), b3=(width,),
        w4=(5, width), b4=(5,),
    )  # fmt: skip


# -- benchmarks ---------------------------------------------------------------------------------------------------------


def test_benchmark_of_two_models_says_what_was_run(tiny: ModelProto) -> None:
    model = Model.load(tiny)
    found = latency.benchmark(model, model, batch=3, threads=1)
    assert found.inputs == {"image": (3, 3, 8, 8)}
    assert (found.batch, found.threads, found.providers) == (3, 1, ("CPUExecutionProvider",))
    assert min(found.runs) >= latency.TURNS
    for timing in (found.before, found.after):
        assert 0 < timing.low <= timing.median <= timing.high
    assert found.speedup == found.before.median / found.after.median


@pytest.mark.parametrize(
    ("providers", "count", "asked", "clock"),
    [(["cpu"], 1, "", time.thread_time), (["CPUExecutionProvider"], 1, "", time.thread_time),
     (["cpu"], 0, "1", time.thread_time), (["cpu"], 2, "1", time.perf_counter), (["cpu"], 0, "", time.perf_counter),
     (["cuda", "cpu"], 1, "", time.perf_counter), (["openvino"], 1, "1", time.perf_counter)],
)  # fmt: skip
def test_a_single_thread_is_timed_by_what_it_works(
    providers: list[str], count: int, asked: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert latency.clock_of(providers, count) is clock


def test_a_model_of_a_tenth_of_the_work_is_faster() -> None:
    found = latency.benchmark(Model.load(wide(192)), Model.load(wide(32)), threads=1)
    assert found.speedup > 3


def test_a_provider_that_is_not_there_is_an_error(tiny: ModelProto) -> None:
    with pytest.raises(RuntimeFailure, match="MIGraphXExecutionProvider is not in the installed ONNX Runtime"):
        latency.benchmark(Model.load(tiny), Model.load(tiny), providers=["MIGraphXExecutionProvider"])


# -- segments -----------------------------------------------------------------------------------------------------------


def made(groups: Groups) -> Segments:
    return Segments(groups, infer(groups.trace.model, {"image": (1, 3, 12, 12)}))


def test_every_node_is_in_one_segment_and_a_sum_is_in_that_of_a_convolution() -> None:
    found = made(grouped(wide())).found
    assert [s.nodes for s in found] == [[0, 1], [2, 3], [4, 5, 6, 7, 8], [9]]
    assert [len(s.blocks) for s in found] == [2, 2, 2, 2]


@pytest.mark.parametrize("name", ["tiny_conv", "tiny_attention"])
def test_segments_of_carried_models_are_all_timed(name: str) -> None:
    groups = grouped(MODELS / f"{name}.onnx")
    times = timer.Timer(groups, Options(threads=1))
    nodes = [n for s in times.segments.found for n in s.nodes]
    assert len(nodes) == len(set(nodes))
    cut = [times.alone(s, {}) for s in times.segments.found]
    assert all(taken is not None for taken in times.seconds([piece for _, piece in filter(None, cut)]))
    assert None not in cut


def test_a_cut_segment_has_the_sizes_of_the_rewritten_model() -> None:
    groups = grouped(wide())
    segments = made(groups)
    segment = segments.found[1]
    removed = np.zeros(len(groups.prunable), bool)
    removed[segment.blocks[0][48:]] = True
    kept = groups.kept_ids(removed)
    model, sizes = segments.cut(segment, kept)
    whole = rewrite(groups.trace, kept).model
    front, *own = sorted(model.weights, key=lambda name: not name.startswith(FRONT))
    assert {n: model.weights[n].shape for n in own} == {n: whole.weights[n].shape for n in ("w2", "b2")}
    assert model.weights[front].shape[0] == model.weights["w2"].shape[1]
    assert next(iter(sizes.values()))[1] == 1
    assert 48 in model.weights["w2"].shape[:2]
    assert (timer.measured([(model, sizes)], Options(threads=1), 0.0)[0] or 0) > 0


def test_a_convolution_is_timed_behind_another_where_it_stands_behind_one() -> None:
    """The runtime then makes a plain layout for one of few channels, as it does in the whole model."""
    segments = made(grouped(wide()))
    whole = np.ones(segments.trace.labels.n, bool)
    ops = [[(n.op_type, n.name.startswith(FRONT)) for n in segments.cut(s, whole)[0].graph.node] for s in segments.found]
    assert [sum(front for _, front in nodes) for nodes in ops] == [0, 2, 4, 0]
    assert ops[2][:4] == [("Conv", True), ("Relu", True)] * 2  # what it reads, and the shortcut that is added


@pytest.mark.parametrize(
    ("kernels", "seconds", "count"),
    [
        ([("x_nchwc", "Conv", 9)], 9e-6, 1),
        ([("r", "ReorderInput", 5), ("x_nchwc", "Conv", 9), ("s", "ReorderOutput", 4)], 9e-6, 1),
        ([(f"{FRONT}a_nchwc", "Conv", 7), ("r", "ReorderOutput", 5), ("x", "Conv", 9), ("s", "ReorderOutput", 4)], 14e-6, 2),
        ([(f"{FRONT}a_nchwc", "Conv", 7), ("x", "Conv", 9), ("y", "Add", 2)], 11e-6, 2),
    ],
)  # fmt: skip
def test_a_layout_counts_where_the_model_needs_it_too(kernels: Any, seconds: float, count: int, tmp_path: Path) -> None:
    events = [{"cat": "Node", "name": f"{n}_kernel_time", "args": {"op_name": op}, "dur": t} for n, op, t in kernels]
    (tmp_path / "p.json").write_text(json.dumps([*events, {"name": "model_run"}] * 2), "utf-8")
    session = type("Profiled", (), {"end_profiling": lambda self: tmp_path / "p.json"})()
    assert timer._kernels(session) == pytest.approx(np.array([[seconds, count]] * 2))


def test_what_is_put_before_a_segment_is_not_timed_with_it() -> None:
    """Fused, its kernels have other names than its nodes."""
    segments = made(grouped(wide()))
    whole = np.ones(segments.trace.labels.n, bool)
    pieces = [segments.cut(segment, whole) for segment in segments.found[1:3]]
    assert [len(model.graph.node) for model, _ in pieces] == [4, 9]
    second, third = timer._in_turns(pieces, Options(threads=1), profile=True)
    assert second is not None
    assert third is not None
    assert (second[:, 1] == 1).all()  # a convolution with its Relu
    assert (third[:, 1] <= 4).all()


def test_the_time_of_the_profiler_is_not_that_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing takes 3 microseconds, forty small convolutions 43, and by the profiler 100."""
    seconds = {(False, 1): 3e-6, (False, timer.SMALLS): 43e-6, (True, timer.SMALLS): 100e-6, (True, 2): 9e-6}

    def run(pieces: Any, options: Options, profile: bool = False) -> list[Any]:
        counts = [len(model.graph.node) for model, _ in pieces]
        return [np.array([[seconds[profile, n], n if profile else 0]] * 4) for n in counts]

    monkeypatch.setattr(timer, "_in_turns", run)
    times = timer.Timer(grouped(wide()), Options(threads=1))
    assert times.of_profiler == pytest.approx(60e-6 / timer.SMALLS)
    two = graph("(float[1] x) => (float[1] y)", "a = Relu(x) y = Relu(a)")
    assert times.seconds([(Model.load(two), {"x": (1,)})]) == pytest.approx([9e-6 - 2 * times.of_profiler])
    times.save()
    monkeypatch.delattr(timer, "_of_profiler")  # known from the file
    assert timer.Timer(times.groups, Options(threads=1)).of_profiler == times.of_profiler


def test_equal_layers_are_cut_once(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "".join(f"c{k} = MatMul({a}, w{k}) r{k} = Relu(c{k}) " for k, a in enumerate(["x", *(f"r{k}" for k in range(5))]))
    weights = {f"w{k}": (48, 48) for k in range(6)}
    model = graph("(float[N, 48] x) => (float[N, 48] y)", body + "y = Identity(r5)", **weights)
    groups, cut = grouped(model), timer.Timer.alone
    pieces: list[int] = []

    def counted(self: Any, segment: Any, lost: Any) -> Any:
        pieces.append(segment.nodes[0])
        return cut(self, segment, lost)

    monkeypatch.setattr(timer.Timer, "alone", counted)
    costs = timings.costs(groups, Options(threads=1))
    each = [pieces.count(segment.nodes[0]) for segment in timer.Timer(groups, Options(threads=1)).segments.found]
    assert each[1] == max(each)
    assert max(each[2:5]) < each[1] / 2
    assert len({seconds for seconds, blocks in zip(costs.count, costs.blocks, strict=True) if len(blocks) == 2}) <= 3


def test_the_signature_tells_shapes_and_attributes_apart_but_no_names() -> None:
    segments = made(grouped(wide()))
    whole = np.ones(segments.trace.labels.n, bool)
    second, third = (signature(*segments.cut(s, whole)) for s in segments.found[1:3])
    renamed = wide()
    for node in renamed.graph.node:
        node.name = f"other {node.name}"
    again = made(grouped(renamed))
    assert signature(*again.cut(again.found[1], whole)) == second != third
    wider = made(grouped(wide(80)))
    assert signature(*wider.cut(wider.found[1], np.ones(wider.trace.labels.n, bool))) != second


# -- costs --------------------------------------------------------------------------------------------------------------


def test_a_cost_is_a_sum_of_what_stays_and_products() -> None:
    two, four = np.array([0, 1]), np.array([2, 3, 4, 5])
    costs = Costs(np.array([8.0, 2.0, 4.0]), [(two, four), (two,), (four,)], 10.0)
    kept = np.array([True, False, True, True, True, False])
    assert costs.whole == 24
    assert costs.total(np.ones(6, bool)) == 24
    assert costs.total(kept) == 10 + 0.5 * 2 + 0.75 * 4 + 8 * 0.375


def test_the_budget_is_met_by_what_can_go() -> None:
    units = np.arange(4)
    costs = Costs(np.array([8.0]), [(units,)], 10.0)
    choice, none = Choice(units.tolist(), np.arange(5.0)), np.zeros(4, bool)
    assert allocate([choice], costs, none, 14.0) == [0.5]
    assert allocate([choice], costs, none, 1.0) == [1.0]
    assert uniform([choice], costs, none, 14.0) == pytest.approx(0.5, abs=1e-4)


def test_a_coarse_last_step_gives_back_what_it_makes_needless() -> None:
    costs = Costs(np.array([10.0, 100.0]), [(np.arange(4),), (np.arange(4, 8),)])
    choices = [
        Choice(range(4), np.array([0, 0.1, 0.2, 0.3, 0.4])),
        Choice(range(4, 8), np.array([0, np.inf, 50, np.inf, np.inf])),
    ]
    assert allocate(choices, costs, np.zeros(8, bool), 60.0) == [0.0, 0.5]


def test_fitted_finds_the_sum_that_times_were_made_of() -> None:
    grid = [(x, y) for x in (64, 48, 16) for y in (96, 48, 32)]
    points = [Point((x, y), 5 + 2 * x / 64 + 3 * y / 96 + 7 * x * y / 64 / 96) for x, y in grid]
    found = fitted(points)
    np.testing.assert_allclose([found.always, *found.lines, found.product], [5, 2, 3, 7], rtol=1e-6)
    assert found.stairs == (Stair(), Stair())


@pytest.mark.parametrize(
    ("stair", "size", "at"),
    [
        *((s, 128, (33, 66, 100, 112, 124, 127)) for s in (Stair(16), Stair(8), Stair(1, 4, 2.5), Stair(16, 4, 1.5))),
        (Stair(1, 1, 3.0, 16), 24, (6, 11, 15, 16, 20)),
        (Stair(1, 1, 3.0, 16), 16, (6, 11, 15)),
    ],
)
def test_fitted_finds_stairs_and_slow_widths(stair: Stair, size: int, at: tuple[int, ...]) -> None:
    whole = float(stair.counts(np.array(size)))
    rng = np.random.default_rng(0)
    points = [Point((w,), 2 + 20 * float(stair.counts(np.array(w))) / whole * rng.uniform(0.99, 1.01)) for w in targets(size)]
    found = fitted(points)
    for width in at:
        wanted = 2 + 20 * float(stair.counts(np.array(width))) / whole
        got = found.always + found.product * float(found.stairs[0].table(size)[width])
        assert got == pytest.approx(wanted, rel=0.08)


def test_stairs_count_for_what_their_last_width_does() -> None:
    table = Stair(16, 4, 2.0).table(40)  # 40 are as dear as 48
    assert table[[0, 16, 32, 36, 40]].tolist() == [0, 1 / 3, 2 / 3, 1, 1]
    assert table[[33, 17, 15]].tolist() == pytest.approx([2.0, 4 / 3, 2 / 3])


def test_steps_end_where_stairs_do() -> None:
    units = np.arange(40)
    costs = Costs(np.array([30.0]), [(units,)], 1.0, [[Stair(16).table(40)]])
    choice = Choice(units.tolist(), np.linspace(0, 1, 9) ** 2)
    (moved,) = on_stairs([choice], [40], costs, np.zeros(40, bool))
    assert {int(k) for k in np.rint(40 * moved.shares)} >= {0, 8, 24}
    assert allocate([moved], costs, np.zeros(40, bool), 22.0) == pytest.approx([0.2])  # 32 are left, the last that cost two thirds
    assert allocate([moved], costs, np.zeros(40, bool), 12.0) == pytest.approx([0.6])


def test_what_saves_nothing_is_passed_over() -> None:
    cheap, dear = np.arange(32), np.arange(32, 64)
    costs = Costs(np.array([10.0, 10.0]), [(cheap,), (dear,)], 0.0, [[Stair(16).table(32)], [None]])
    choices = [Choice(cheap.tolist(), np.linspace(0, 1, 33)), Choice(dear.tolist(), np.linspace(0, 8, 33))]
    assert allocate(choices, costs, np.zeros(64, bool), 15.0) == [0.5, 0.0]


def test_a_whole_takes_what_was_measured_of_such_sums() -> None:
    units = np.arange(4)
    costs = Costs(np.array([8.0]), [(units,)], 2.0, (), ((0.0, 0.0), (6.0, 9.0), (10.0, 25.0)))
    assert costs.whole == 25
    assert costs.total(np.array([True, True, False, False])) == 9
    assert costs.sum_of(17.0) == 8.0


def all_by_columns(pieces: Sequence[Any], options: Options, of_profiler: float) -> list[float]:
    return [by_columns(*piece, options) for piece in pieces]


def by_columns(model: Model, sizes: Any, options: Options) -> float:
    """A runtime that works in blocks of 16 columns: nanoseconds of each weight, its axes rounded up."""
    steps = [np.prod([-(-n // 16) * 16 for n in w.shape]) for w in model.weights.values() if len(w.shape) > 1]
    return float(1e-9 * sum(steps)) + 1e-7


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments take what `by_columns` says, and so does the whole."""
    monkeypatch.setattr(timer, "measured", all_by_columns)
    monkeypatch.setattr(timer, "_of_profiler", lambda options: 0.0)

    def wholes(self: timer.Timer, removed: Sequence[Any]) -> list[float]:
        models = [rewrite(self.groups.trace, self.groups.kept_ids(mask)).model for mask in removed]
        return [1e-5 + by_columns(m, {}, self.options) for m in models]

    monkeypatch.setattr(timer.Timer, "wholes", wholes)


def test_the_multiple_is_that_of_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert timings.multiple(grouped(wide(128)), Options()) == 16
    monkeypatch.setattr(
        timer, "measured", lambda pieces, *_: [1e-9 * sum(w.size for w in m.weights.values()) for m, _ in pieces]
    )
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(Path(timer.cache_file()).parent / "other"))
    assert timings.multiple(grouped(wide(128)), Options()) == 1


def test_predicted_time_is_that_of_the_pruned_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    groups = grouped(wide(128))
    options = settled(groups, Options(fast=True, of="latency", residual="all"))
    assert options.round_to == 16
    costs = timings.costs(groups, options)
    removed = by_weights(groups, options, costs)
    after = 1e-5 + by_columns(rewrite(groups.trace, groups.kept_ids(removed)).model, {}, options)
    left = costs.total(groups.alive(groups.kept_ids(removed)))
    assert left == pytest.approx(after, rel=0.02)
    assert left == pytest.approx(0.7 * costs.whole, rel=0.12)


@pytest.mark.parametrize("options", [{"fast": True}, {"calib_samples": 16}])
def test_latency_is_a_target_of_either_way_of_deciding(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    result = pruned(wide(96), of="latency", ratio=0.3, **{"fast": False} | options)
    predicted = (result.report.latency or {})["predicted"]
    assert predicted["after"] <= 0.76 * predicted["before"]
    assert all(group.kept % 16 == 0 for group in result.report.groups)
    assert result.report.options.round_to == (16 if options.get("fast") else 1)


def test_times_are_kept_and_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(pieces: Sequence[Any], options: Options, of_profiler: float) -> list[float]:
        calls.extend(1 for _ in pieces)
        return all_by_columns(pieces, options, of_profiler)

    pretend(monkeypatch)
    monkeypatch.setattr(timer, "measured", counted)
    groups = grouped(wide())
    first = timings.costs(groups, Options())
    done = len(calls)
    assert done
    assert len(json.loads((tmp_path / "cache" / "timings.json").read_text())) == done + 1  # and what the profiler takes
    assert timings.costs(groups, Options()).whole == first.whole
    assert len(calls) == done
    timings.costs(groups, Options(threads=1))
    assert len(calls) == 2 * done


def test_a_cache_that_cannot_be_read_or_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "file"))
    assert timings.costs(grouped(wide()), Options()).whole > 0
    (tmp_path / "timings.json").write_text("[broken")
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    assert timings.costs(grouped(wide()), Options()).whole > 0


# -- rounding -----------------------------------------------------------------------------------------------------------


def test_only_levels_that_rounding_leaves_are_reachable() -> None:
    groups = grouped(wide(64))
    _, linked = parts(groups, np.zeros(len(groups.prunable)), Options())
    found = reachable(linked[0], 65, Options(round_to=16))
    assert np.flatnonzero(found).tolist() == [0, 16, 32, 48]
    assert reachable(linked[0], 65, Options()).all()


# -- a bound --------------------------------------------------------------------------------------------------------------


def in_proportion(monkeypatch: pytest.MonkeyPatch, fixed: float = 0.0) -> None:
    """Time is a number of parameters: a millisecond for each thousand, beside what is `fixed`."""

    def timed(before: Model, after: Model, options: Options, seconds: float | None = None) -> latency.Benchmark:
        taken = [fixed + 1e-3 * sum(w.size for w in m.normalised().weights.values()) for m in (before, after)]
        first, second = (latency.Timing(t, t, t) for t in taken)
        return latency.Benchmark(first, second, (1, 1), {}, 1, options.threads, 1, ("CPUExecutionProvider",))

    monkeypatch.setattr(searching, "timed", timed)


@pytest.mark.parametrize("of", ["macs", "units"])
def test_the_smallest_cut_within_a_bound(of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_proportion(monkeypatch)
    pretend(monkeypatch)
    model = wide(64)
    dense = 1e-3 * sum(w.size for w in Model.load(model).normalised().weights.values())
    bound = 0.6 * dense
    result = api.prune(model, fast=True, of=of, residual="all", max_latency=f"{bound}ms")
    search, report = result.report.search or {}, result.report
    assert report.options.of == ("macs" if of == "macs" else "latency")
    assert search["max_latency"] == bound
    measured = (report.latency or {})["measured"]
    assert 0.5 * bound < measured["after"]["median"] <= bound < measured["before"]["median"]
    slower = [one for one in search["tried"] if not one["holds"]]
    assert all(one["latency"] > bound and one["ratio"] < search["ratio"] for one in slower)
    again = api.plan(model, fast=True, of=of, residual="all", max_latency=bound)
    assert again.groups == result.plan.groups


def test_a_bound_that_nothing_holds_says_what_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    in_proportion(monkeypatch, fixed=5.0)
    with pytest.raises(CheckFailed, match=r"max_latency=4 ms: the least that was reached is 5\.\d+ ms, at ratio=0\."):
        api.prune(wide(64), fast=True, of="macs", max_latency=4)


def test_a_bound_that_holds_already(monkeypatch: pytest.MonkeyPatch) -> None:
    in_proportion(monkeypatch)
    with pytest.raises(NothingToPrune, match=r"the model takes .* as it is, within max_latency=2 s"):
        api.prune(wide(64), fast=True, max_latency="2s")


def test_a_gate_has_to_hold_beside_the_bound(tiny: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    in_proportion(monkeypatch)
    data = {"image": np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)}
    dense = 1e-3 * sum(w.size for w in Model.load(tiny).normalised().weights.values())
    with pytest.raises(CheckFailed, match="agreement with the dense model"):
        api.prune(tiny, fast=True, of="macs", max_latency=0.3 * dense, validate=[data], gates=Gates(min_agreement=1.0))


@pytest.mark.parametrize(
    ("asked", "wanted"), [("5ms", 5.0), ("5", 5.0), (5, 5.0), ("0.8ms", 0.8), ("2s", 2e3), ("300 us", 0.3), (True, None),
                          (0, None), ("0ms", None), ("-1ms", None), ("5min", None), ("soon", None), (None, None)]
)  # fmt: skip
def test_what_a_time_is(asked: Any, wanted: float | None) -> None:
    assert milliseconds(asked) == (wanted if wanted is None else pytest.approx(wanted))


def test_the_command_that_makes_it_again_has_no_bound(tiny_path: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    in_proportion(monkeypatch)
    report, out = tmp_path / "report.json", tmp_path / "out.onnx"
    flags = ["--fast", "--of", "macs", "--max-latency=0.9ms", "--report", str(report)]
    dense = 1e-3 * sum(w.size for w in Model.load(tiny_path).normalised().weights.values())
    flags[3] = f"--max-latency={0.7 * dense}"
    assert main([str(tiny_path), str(out), *flags]) == 0
    search = json.loads(report.read_text())["search"]
    assert "max-latency" not in search["command"]
    assert f"--ratio {search['ratio']}" in search["command"]
    assert "is the smallest of" in capsys.readouterr().out


# -- the command line and the tool --------------------------------------------------------------------------------------


def test_benchmark_flag_reports_both(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    flags = ["--fast", "--ratio", "0.5", "--benchmark", "--threads", "1", "--batch", "2", "--report", str(report)]
    assert main([str(tiny_path), str(tmp_path / "out.onnx"), *flags]) == 0
    measured = json.loads(report.read_text())["latency"]["measured"]
    assert (measured["batch"], measured["threads"], measured["providers"]) == (2, 1, ["CPUExecutionProvider"])
    assert measured["before"]["median"] > 0
    text = capsys.readouterr().out
    assert f"latency: {measured['speedup']:.2f} times faster" in text
    assert "MACs" in text.split("times faster", 1)[1]


def test_flags_for_time(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)  # a network of a few microseconds may take as long with half of its channels
    report = tmp_path / "report.json"
    flags = ["--fast", "--of", "latency", "--round-to", "2", "--report", str(report)]
    assert main([str(tiny_path), str(tmp_path / "out.onnx"), *flags]) == 0
    found = json.loads(report.read_text())
    assert found["options"]["round_to"] == 2
    assert 0 < found["latency"]["predicted"]["after"] < found["latency"]["predicted"]["before"]
    assert (
        main([str(tiny_path), str(tmp_path / "out.onnx"), "--fast", "--round-to", "auto", "--report", str(report)]) == 0
    )
    assert json.loads(report.read_text())["options"]["round_to"] in timings.MULTIPLES
    assert main([str(tiny_path), str(tmp_path / "out.onnx"), "--round-to", "some"]) == UsageError.exit_code


def test_gpu_check_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--providers", "MIGraphXExecutionProvider"]) == 4
    assert capsys.readouterr().err.count("\n") == 1


def test_gpu_check_compares_a_provider_with_the_processor(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--providers", "cpu", "--samples", "8", "--batches", "1", "2"]
    assert gpu_check.main([str(MODELS / "tiny_conv.onnx"), *flags]) == 0
    text = capsys.readouterr().out
    times, jobs, allowed, verdict = (block.strip().splitlines() for block in re.split(r"\n\s*\n|(?<=most)\n", text))
    assert [row.split()[:3] for row in times[1:]] == [["tiny_conv", "CPU", batch] for batch in "1122"]
    found = [row.split() for row in jobs[1:]]
    assert [row[-2] for row in found] == ["100.0%"] * 2
    assert found[0][5:9] == found[1][5:9], "what crosses does not hang on where the job runs"
    assert int(found[0][5].replace(",", "")) > 0
    assert "80%" in allowed[0]
    assert verdict == ["the plans and the outputs agree"]


def test_the_nets_of_gpu_check_are_of_the_sizes_it_says() -> None:
    small = [gpu_check.residual(8, (1, 1), 32), gpu_check.encoder(1, 32, 4, 50, 8)]
    for model in small:
        assert api.prune(model, fast=True).report.after.parameters > 0


@pytest.mark.gpu
def test_the_whole_job_on_a_gpu() -> None:
    assert gpu_check.main(["--samples", "16", "--batches", "1"]) == 0
