"""From options to a plan and a result: budgets, criteria, inputs, the judge, and what the user is told."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from graphs import array, graph, inputs, run
from onnx import ModelProto
from test_allocate import attention
from test_random_graphs import _assert_slices, _weights

from onnxprune import api
from onnxprune.cli import main
from onnxprune.data import sources
from onnxprune.errors import UsageError
from onnxprune.fit import sites
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import Costs, OutputError, criteria, curves, decision, parting, profile, select, trials
from onnxprune.planning.criteria.inputs import CriterionInputs
from onnxprune.planning.curves import CurveSet
from onnxprune.refit import judging
from onnxprune.report import to_json
from onnxprune.rewrite import rewrite
from onnxprune.trace import Groups, Mask

MODELS = Path(__file__).parent.parent / "models"
RESNET, ATTENTION = MODELS / "fashion_resnet.onnx", MODELS / "tiny_attention.onnx"
SAME = "pads=[1,1,1,1]"


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "LEAST_ROWS", 1500)


def net(normalised: bool = True) -> ModelProto:
    norm = "n = BatchNormalization(a, gain, beta, mean, var)" if normalised else "n = Identity(a)"
    body = f"""
        a = Conv<{SAME}>(x, wa, ba) {norm} r = Relu(n) c = Conv<{SAME}>(r, wc, bc) d = Add(c, r) e = Relu(d)
        k = Conv<{SAME}>(e, wk, bk) s = Relu(k) p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, wo, bo)
    """
    vectors = dict.fromkeys(("gain", "beta", "mean", "var"), (8,)) if normalised else {}
    return graph(
        "(float[N,3,8,8] x) => (float[N,5] y)", body, wa=(8, 3, 3, 3), ba=(8,), wc=(8, 8, 3, 3), bc=(8,), wk=(12, 8, 3, 3),
        bk=(12,), wo=(5, 12), bo=(5,), **vectors,
    )  # fmt: skip


CALIB = [inputs(net(), 24, 1)]


def grouped(model: Any, options: Options) -> Groups:
    return analysed(Model.load(model), options, Clock())


# -- budgets ------------------------------------------------------------------------------------------------------------


def share_left(groups: Groups, removed: Mask, of: str) -> float:
    """Of the model's MACs or parameters, by the file that is written."""
    kept = groups.kept_ids(removed)
    if of == "macs":
        return profile.macs(groups.trace, kept) / profile.macs(groups.trace)
    after, before = rewrite(groups.trace, kept).model, groups.trace.model
    return profile.cost(after, 0).parameters / profile.cost(before, 0).parameters


@pytest.fixture(scope="module")
def resnet() -> Groups:
    return grouped(RESNET, Options())


@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize("of", ["macs", "params"])
@pytest.mark.parametrize("scope", ["local", "global", "pq"])
def test_a_target_is_hit(resnet: Groups, scope: Any, of: Any, ratio: float) -> None:
    options = Options(fast=True, scope=scope, of=of, ratio=ratio).resolved()
    assert abs(share_left(resnet, decision.by_weights(resnet, options), of) - (1 - ratio)) < 0.03


@pytest.fixture(scope="module")
def curve_set(resnet: Groups) -> CurveSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sites, "LEAST_ROWS", 300)
        patch.setattr(sites, "ROWS_PER_COLUMN", 2)
        images = np.load(MODELS / "fashion_test.npz")["image"][:10]
        options = Options(calib=[{"image": images}], calib_samples=10, calib_batch=2, heads=False).resolved()
        inputs = parting.parted(parting.calibrated(resnet, options).feeds)
        found = curves.observe(resnet, CriterionInputs(resnet, options, inputs.fit), options)
        curves.measure(resnet, found, inputs, options)
    return found


@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize("of", ["macs", "params"])
@pytest.mark.parametrize("scope", ["sensitivity", "global"])
def test_a_target_is_hit_by_what_was_measured(
    resnet: Groups, curve_set: CurveSet, scope: Any, of: Any, ratio: float
) -> None:
    options = Options(scope=scope, of=of, ratio=ratio, blocks=False).resolved()
    found = curve_set.curves if scope == "sensitivity" else [replace(c, factor=None) for c in curve_set.curves]
    costs = Costs.of(resnet, of)
    shares = curves.shares(
        resnet, replace(curve_set, curves=found), options, decision.budget(resnet, options, costs), costs
    )
    removed = select(resnet, curve_set.scores, options, shares)
    assert abs(share_left(resnet, removed, of) - (1 - ratio)) < 0.03
    assert max(shares.values()) <= 0.9
    assert len({round(s, 2) for s in shares.values()}) > 2  # not the same for all


def test_inputs_that_are_trusted_less_are_nearer_to_the_same_share_for_all(resnet: Groups, curve_set: CurveSet) -> None:
    options, costs = Options(ratio=0.4, blocks=False).resolved(), Costs.of(resnet, "macs")
    wanted = decision.budget(resnet, options, costs)
    most = [max(curves.shares(resnet, curve_set, options, wanted, costs, trust).values()) for trust in (0, 0.5, 1)]
    assert most[0] < most[1] < most[2] <= 0.9
    assert most[0] < 0.5


def test_branches_go_on_inputs_that_say_little_only_where_that_is_asked_for(resnet: Groups, curve_set: CurveSet) -> None:
    """The losses of the fixture's branches are made nothing, so that whoever may take them does."""
    costs, free = Costs.of(resnet, "macs"), replace(curve_set, branches=dict.fromkeys(curve_set.branches, 0.0))
    assert free.branches
    for asked, trust, may in ((None, 0.5, False), (None, 1.0, True), (True, 0.5, True), (False, 1.0, False)):
        options = Options(ratio=0.4, blocks=asked).resolved()
        found = curves.shares(resnet, free, options, decision.budget(resnet, options, costs), costs, trust)
        assert bool([u for u in free.branches if found.get(u)]) is may


def test_every_factor_is_measured(curve_set: CurveSet) -> None:
    factors = [c.factor for c in curve_set.curves]
    assert all(f is not None and np.isfinite(f) and f > 0 for f in factors)
    assert len(set(factors)) == len(factors)


@pytest.mark.parametrize("bias", [", b", ""])
def test_a_layer_that_reads_and_writes_one_stream_is_tried_with_a_bias_that_is_not_its_own(
    monkeypatch: pytest.MonkeyPatch, bias: str
) -> None:
    """What is moved then lands in a copy, or in a new bias, which is cut with the stream."""
    measured: list[float | None] = []
    factor = curves.factor
    monkeypatch.setattr(curves, "factor", lambda *rest: measured.append(factor(*rest)) or measured[-1])
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y)
        {{ s = Conv(x, w1{bias}) r = Relu(s) c = Conv(r, w2{bias}) t = Add(s, c) u = Relu(t) y = Conv(u, w3) }}""")
    rng = np.random.default_rng(0)
    for name, shape in {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1), "w3": (8, 8, 1, 1), "b": (8,)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    api.prune(proto, ratio=0.5, calib_samples=32)
    assert measured
    assert all(f is not None and 0 < f < 100 for f in measured)


@pytest.mark.parametrize("criterion", ["", "wanda", "random", "fpgm"])
def test_every_set_is_allocated_and_measured_where_heads_go(monkeypatch: pytest.MonkeyPatch, criterion: str) -> None:
    """Whichever heads the criterion takes, the rest of their group is measured and loses what was allocated to it."""
    measured: list[float | None] = []
    factor = curves.factor
    monkeypatch.setattr(curves, "factor", lambda *rest: measured.append(factor(*rest)) or measured[-1])
    options = Options(
        ratio=0.5, of="params", criterion=criterion, calib_samples=32, reconstruct="none", seed=1
    ).resolved()
    groups = grouped(attention(), options)
    inputs = parting.parted(parting.calibrated(groups, options).feeds)
    curve_set = curves.observe(groups, CriterionInputs(groups, options, inputs.fit), options)
    curves.measure(groups, curve_set, inputs, options)
    assert len(measured) == len(curve_set.curves) > 2
    costs = Costs.of(groups, "params")
    shares = curves.shares(groups, curve_set, options, decision.budget(groups, options, costs), costs)
    removed = select(groups, curve_set.scores, options, shares)
    assert any(removed[list(units)].all() for units in groups.rows.values())
    assert abs(share_left(groups, removed, "params") - 0.5) < 0.06


# -- criteria -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*criteria.WEIGHTS, *criteria.UNITS}))
def test_every_criterion_scores(name: str) -> None:
    if name in ("taylor", "taylor-so", "lrp") and find_spec("onnx_ad") is None:
        pytest.skip("needs onnx-ad")
    options = Options(criterion=name, calib_samples=16).resolved()
    groups = grouped(net(), options)
    feeds = [inputs(net(), 8, seed) for seed in (1, 2)]
    scores = criteria.scores(name, CriterionInputs(groups, options, feeds))
    assert scores.shape == groups.prunable.shape
    assert np.isfinite(scores).all()
    live = scores[groups.prunable]
    assert (live >= 0).all() or name == "oracle"
    assert len(set(live.tolist())) > (8 if name == "bn-scale" else live.size // 2)


@pytest.mark.parametrize("name", ["activation", "wanda", "flap", "obs"])
def test_what_never_fires_scores_least(name: str) -> None:
    model = net(normalised=False)
    for weight, value in (("wk", 0.0), ("bk", -1.0)):
        new = array(model, weight)
        new[3] = value
        next(t for t in model.graph.initializer if t.name == weight).CopyFrom(onnx.numpy_helper.from_array(new, weight))
    options = Options(criterion=name).resolved()
    groups = grouped(model, options)
    scores = criteria.scores(name, CriterionInputs(groups, options, [inputs(model, 16, 1)]))
    units = next(groups.classes[ids] for s, axes, ids in groups.blocks if s.parameter == "wo" and axes == (1,))
    assert scores[units][3] == pytest.approx(scores[units].min())
    assert scores[units][3] < 0.5 * np.median(scores[units]) or name == "flap"


def test_bn_scale_without_a_normalisation_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(net(normalised=False), tmp_path / "in.onnx")
    arguments = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--criterion", "bn-scale"]
    for more in (["--calib-samples", "8"], ["--fast"]):
        assert main([*arguments, *more]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "bn-scale" in err
        assert "normalisation" in err
    assert not (tmp_path / "out.onnx").exists()


def test_bn_scale_knows_nothing_of_units_without_a_normalisation() -> None:
    options = Options(criterion="bn-scale", fast=True).resolved()
    groups = grouped(net(), options)
    scores = criteria.scores("bn-scale", CriterionInputs(groups, options))
    at = {s.parameter: groups.classes[ids] for s, axes, ids in groups.blocks if axes == (0,)}
    np.testing.assert_allclose(scores[at["gain"]], array(net(), "gain"), rtol=1e-6)
    np.testing.assert_allclose(scores[at["wk"]], array(net(), "gain").mean(), rtol=1e-6)


def test_bn_scale_takes_the_least_gamma() -> None:
    result = api.prune(net(), criterion="bn-scale", fast=True, ratio=0.5, residual="all")
    gamma = array(net(), "gain")
    np.testing.assert_array_equal(array(result.model.to_proto(), "gain"), gamma[np.sort(np.argsort(gamma)[4:])])


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(UsageError, match="no criterion 'l3'"):
        api.prune(net(), criterion="l3")


def test_obs_without_its_update_leaves_a_note() -> None:
    options: dict[str, Any] = {"ratio": 0.3, "calib": CALIB, "scope": "local"}
    noted = api.prune(net(), reconstruct="none", **options).report
    assert any("obs" in n and "l2" in n for n in noted.notes)
    assert noted.reconstruction is None
    assert not any("obs" in n for n in api.prune(net(), reconstruct="none", criterion="wanda", **options).report.notes)
    assert not any("obs" in n for n in api.prune(net(), **options).report.notes)


# -- inputs -------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes() -> None:
    made = [
        api.prune(net(), ratio=0.4, calib_samples=16, seed=s).model.to_proto().SerializeToString() for s in (3, 3, 4)
    ]
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_calibration_data_through_the_command_line(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", x=inputs(net(), 24)["x"] + 2, labels=np.arange(24) % 5)
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    arguments = [
        tmp_path / "in.onnx",
        out,
        "--ratio",
        "0.4",
        "--calib",
        tmp_path / "data.npz",
        "--report",
        report,
        "-q",
    ]
    assert main([str(a) for a in arguments]) == 0
    story = json.loads(report.read_text(), parse_constant=refuse)["reconstruction"]
    assert "data.npz" in story["inputs"]
    assert story["samples"] == 24
    onnx.checker.check_model(onnx.load(out), full_check=True)
    ours = api.prune(net(), ratio=0.4, calib=tmp_path / "data.npz").model.to_proto()
    np.testing.assert_array_equal(array(onnx.load(out), "wk"), array(ours, "wk"))
    assert not np.array_equal(array(ours, "wk"), array(api.prune(net(), ratio=0.4, calib=CALIB).model.to_proto(), "wk"))


@pytest.mark.parametrize("feeds", [
    [inputs(net(), 20, 1)], [inputs(net(), 2, k) for k in range(10)], [inputs(net(), 1, k) for k in range(20)], [inputs(net(), 15, 1), inputs(net(), 5, 2)],
], ids=["one feed", "feeds of two", "feeds of one", "uneven feeds"])  # fmt: skip
def test_few_inputs_are_fitted_to_and_judged_by(feeds: list[dict[str, Any]]) -> None:
    """However they are batched: some are held, and the layers behind the cut are refitted."""
    result = api.prune(net(), ratio=0.5, scope="local", calib=feeds)
    story = result.report.reconstruction
    assert story is not None
    assert story["samples"] == 20
    assert story["held_out_batches"] > 0
    assert sum(np.isfinite(r["ridge"]) for r in story["layers"]) >= 2
    assert story["output_error"]["refitted"] < story["output_error"]["sliced"]


def test_one_batch_of_fixed_size_is_fitted_to_and_judged_by() -> None:
    body = "a = Gemm(x, wa, ba) r = Relu(a) y = Gemm(r, wo, bo)"
    model = graph("(float[64,6] x) => (float[64,3] y)", body, wa=(6, 8), ba=(8,), wo=(8, 3), bo=(3,))
    story = api.prune(model, ratio=0.25, scope="local", calib=[inputs(model, 64, 1)]).report.reconstruction
    assert story is not None
    assert story["output_error"]["refitted"] < 0.9 * story["output_error"]["sliced"]


def test_nothing_is_said_to_be_held_out_of_one_sample(caplog: pytest.LogCaptureFixture) -> None:
    """Nor that it is enough."""
    result = api.prune(net(), ratio=0.5, scope="local", calib=[inputs(net(), 1, 1)])
    assert result.report.reconstruction is not None
    assert result.report.reconstruction["held_out_batches"] == 0
    assert "output error on what it was fitted to, for nothing could be held out," in result.summary()
    assert "only 1 sample is looked at" in caplog.text
    caplog.clear()
    result = api.prune(net(), ratio=0.5, scope="local", calib=[inputs(net(), 40, 1)])
    assert "output error on held-out inputs" in result.summary()
    assert "only" not in caplog.text


def test_answers_that_are_no_numbers_judge_nothing(caplog: pytest.LogCaptureFixture) -> None:
    feed = {name: np.full_like(x, 3e38) for name, x in inputs(net(), 40, 1).items()}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        api.prune(net(), ratio=0.5, scope="local", calib=[feed])
    assert "answers to calib: 40 samples are not finite: nothing can be judged" in caplog.text


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


def test_a_layer_that_kept_its_weights_is_valid_json() -> None:
    """A second, useless layer: no fit is better on the held inputs, and the report still is JSON for any reader."""
    result = api.prune(net(), ratio=0.2, calib_samples=4)
    json.loads(json.dumps(to_json(result.report)), parse_constant=refuse)


def test_labels_beside_an_input_that_counts_no_samples(tmp_path: Path) -> None:
    if find_spec("onnx_ad") is None:
        pytest.skip("needs onnx-ad")
    body = "a = Gemm(x, wa, ba) r = Relu(a) t = Mul(r, s) y = Gemm(t, wo, bo)"
    model = graph("(float s, float[N,6] x) => (float[N,3] y)", body, wa=(6, 8), ba=(8,), wo=(8, 3), bo=(3,))
    np.savez(tmp_path / "data.npz", x=inputs(model, 24)["x"], s=np.float32(2), labels=np.arange(24) % 3)
    result = api.prune(model, ratio=0.4, calib=tmp_path / "data.npz", criterion="taylor", scope="local")
    assert result.report.reconstruction is not None


@pytest.mark.parametrize("more", [
    {}, {"scope": "global"}, {"scope": "pq"}, {"of": "macs"}, {"of": "params", "scope": "pq"}, {"criterion": "lamp"},
    {"criterion": "fpgm", "scope": "global"}, {"criterion": "bn-scale"}, {"criterion": "random", "of": "macs"},
], ids=str)  # fmt: skip
def test_fast_runs_no_inputs(monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]) -> None:
    def never(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("calibration was run")

    for place, name in (
        (parting, "calibration"),
        (sources, "entire"),
        (sites, "collect"),
        (decision, "calibrated"),
    ):
        monkeypatch.setattr(place, name, never)
    result = api.prune(net(), fast=True, ratio=0.4, **more)
    assert result.report.reconstruction is None
    assert result.report.proof.error <= result.report.proof.tolerance
    _assert_slices(_weights(net()), _weights(result.model.to_proto()))
    with pytest.raises(AssertionError, match="calibration was run"):
        api.prune(net(), ratio=0.4)


def test_the_seed_decides_what_goes_at_random() -> None:
    model = net()
    plans = [api.plan(model, fast=True, criterion="random", ratio=0.5, seed=seed).groups for seed in (0, 0, 1, 2)]
    assert plans[0] == plans[1]
    assert len({str(p) for p in plans}) == 3
    sure = [api.plan(model, fast=True, ratio=0.5, seed=seed).groups for seed in (0, 1)]
    assert sure[0] == sure[1]


def test_lamp_is_a_share_of_what_is_no_smaller() -> None:
    """In every family (Lee et al. 2021, eq. 4): the least of all its weight, the largest of itself alone."""
    found = CriterionInputs(grouped(net(), Options()), Options())
    squares, scores = criteria.scores("l2", found), criteria.scores("lamp", found)
    assert {len(units) for units in found.families} == {8, 12}
    for units in found.families:
        for u in units:
            larger = sum(squares[v] for v in units if squares[v] >= squares[u])
            assert scores[u] == pytest.approx(squares[u] / larger)


# -- the judge ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_is_better_than_weights_alone(seed: int) -> None:
    """On inputs that neither has seen, at no more MACs."""
    model, calib = net(), [inputs(net(), 96, 11)]
    default = api.prune(model, ratio=0.5, calib=calib, seed=seed)
    fast = api.prune(model, ratio=0.5, fast=True)
    feeds = inputs(model, 64, 99)
    expected = run(model, feeds)[0]
    ours, theirs = (float(np.square(run(r.model.to_proto(), feeds)[0] - expected).sum()) for r in (default, fast))
    assert ours < 0.5 * theirs
    assert default.report.after.macs <= fast.report.after.macs
    story = default.report.reconstruction
    assert story is not None
    assert not story["fell_back"]
    assert story["output_error"]["refitted"] < story["output_error"]["fast"]
    assert story["output_error"]["refitted"] < story["output_error"]["sliced"]


def rows_of(feeds: Any) -> set[bytes]:
    return {row.tobytes() for feed in feeds for row in feed["x"]}


def seen_by(monkeypatch: pytest.MonkeyPatch, *spied: tuple[Any, str, int]) -> list[set[bytes]]:
    """The rows that each call of these classes is given, in this place."""
    seen: list[set[bytes]] = []

    def spy(real: Any, at: int) -> Any:
        def watched(*given: Any, **more: Any) -> Any:
            seen.append(rows_of(given[at] if len(given) > at else ()))
            return real(*given, **more)

        return watched

    for module, name, at in spied:
        monkeypatch.setattr(module, name, spy(getattr(module, name), at))
    return seen


def test_nothing_that_was_fitted_to_or_chosen_by_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    places = ((decision, "CriterionInputs", 2), (trials, "Reconstruction", 3), (trials, "OutputError", 1))
    fitted, solved = seen_by(monkeypatch, *places), seen_by(monkeypatch, (judging, "Reconstruction", 3))
    judges = seen_by(monkeypatch, (judging, "OutputError", 1))
    result = api.prune(net(), ratio=0.5, calib=[inputs(net(), 512, 3)])
    assert result.report.reconstruction is not None
    assert result.report.reconstruction["turns"] == 0
    assert len(fitted) > 4
    assert [len(rows) for rows in judges] == [64]
    assert not judges[0] & set.union(*fitted, *solved)
    every = rows_of([inputs(net(), 512, 3)])
    assert solved[-1] & every == every - judges[0]


def test_of_few_inputs_all_judge_what_was_fitted_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = seen_by(monkeypatch, (judging, "Reconstruction", 3))
    judges = seen_by(monkeypatch, (judging, "OutputError", 1))
    result = api.prune(net(), ratio=0.5, calib=CALIB)
    assert result.report.reconstruction is not None
    every = rows_of(CALIB)
    assert len(judges) == result.report.reconstruction["turns"] == parting.FOLDS
    assert set.union(*judges) == every <= fitted[-1]
    assert all(there | here >= every and not there & here for there, here in zip(judges, fitted, strict=False))


def judged(monkeypatch: pytest.MonkeyPatch, *errors: float) -> None:
    """Every judge finds these errors, one after the other: of the plan sliced, of it refitted, of weights alone."""
    left = cycle(errors)
    monkeypatch.setattr(OutputError, "error", lambda self, model: next(left))


@pytest.mark.parametrize("refitted", [0.9, np.nan, np.inf])
def test_a_refit_that_is_worse_gives_way(monkeypatch: pytest.MonkeyPatch, refitted: float) -> None:
    model = net()
    judged(monkeypatch, 1.0, refitted, 0.2)
    chosen: dict[str, Any] = {"calib_samples": 8} if refitted < 1 else {"calib": CALIB}  # made up, with other moments
    result = api.prune(model, ratio=0.5, scope="local", **chosen)
    story = result.report.reconstruction
    assert story is not None
    assert story["fell_back"] is True
    assert result.report.proof.error <= result.report.proof.tolerance
    after = result.model.to_proto()
    _assert_slices(_weights(model), _weights(after))
    fast = api.prune(model, ratio=0.5, fast=True)
    assert after.SerializeToString() == fast.model.to_proto().SerializeToString()
    assert result.plan.groups == fast.plan.groups
    assert result.report.after == fast.report.after
    replayed = api.prune(model, plan=result.plan, fast=True)
    assert replayed.model.to_proto().SerializeToString() == after.SerializeToString()


def test_a_refit_that_is_better_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, 1.0, 0.1, 0.2)
    result = api.prune(net(), ratio=0.5, scope="local", calib=CALIB)
    assert result.report.reconstruction is not None
    assert result.report.reconstruction["fell_back"] is False
    with pytest.raises(AssertionError):
        _assert_slices(_weights(net()), _weights(result.model.to_proto()))


def test_weights_alone_that_remove_nothing_are_no_rival() -> None:
    """Rounding leaves weights alone with nothing to remove: that is no better result, it is none."""
    model = net()
    options: dict[str, Any] = {"ratio": 0.3, "of": "params", "scope": "global", "calib": CALIB}
    result = api.prune(model, **options)
    nothing = np.zeros_like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxprune.refit.judging.rival", lambda weights, decision, options: nothing(weights.prunable))
        again = api.prune(model, **options)
    assert again.report.after.parameters < again.report.before.parameters
    assert again.plan.groups == result.plan.groups


def test_rows_and_columns_of_a_made_weight_go_where_there_is_nothing_else() -> None:
    model = graph(
        "(float[N, 16] x, float[1, 10] z) => (float[N, 5] y)",
        """
        flat = Gemm(z, w1, b1) made = Reshape(flat, shape) a = MatMul(x, w0) b = Relu(a)
        h = Gemm<transB = 1>(b, made) r = Relu(h) y = MatMul(r, w2)
        """,
        w0=(16, 16), w1=(10, 128), b1=(128,), shape=np.array([8, 16]), w2=(8, 5),
    )  # fmt: skip
    report = api.prune(model, ratio=0.5, calib_samples=16).report
    assert report.after.macs < 0.6 * report.before.macs


def test_a_bias_that_is_cut_in_a_copy_takes_up_what_a_trial_moves_there() -> None:
    """It is read whole besides. All is linear, so that offsets make up for the means of what went, and outputs keep
    theirs."""
    model = graph(
        "(float[N, 8] x) => (float[N, 5] y)",
        """
        s = MatMul(x, w0) g = Gemm<transB = 1>(s, w, b) o = Gemm(g, w2, c)
        e = Identity(b) f = Softmax<axis = 0>(e) t = ReduceMax<keepdims = 0>(f) y = Add(o, t)
        """, 17, w0=(8, 16), w=(12, 16), b=(12,), w2=(12, 5), c=(5,),
    )  # fmt: skip
    feeds = [{"x": 3 + np.random.default_rng(k).standard_normal((32, 8)).astype(np.float32)} for k in range(6)]
    groups = analysed(Model.load(model), Options(), Clock())
    removed = np.zeros(len(groups.prunable), bool)
    removed[np.flatnonzero(groups.prunable)[::3]] = True
    found = sites.collect(groups, feeds, ("cpu",), 0)
    made = trials.compensated(groups, found, removed)
    means = [np.mean([run(m, feed)[0] for feed in feeds], (0, 1)) for m in (model, made.to_proto())]
    assert made.weights["b"].shape == (12,)
    assert means[0] == pytest.approx(means[1], rel=1e-4)


def test_a_bias_that_is_cut_in_a_copy_does_not_end_trials_in_closed_form() -> None:
    """Two steps of a cell share a bias, which is read whole besides."""
    model = graph(
        "(float[N, 8] x) => (float[N, 5] y)",
        """
        s = MatMul(x, w0) g = Gemm<transB = 1>(s, w, b) h = Tanh(g) k = Gemm<transB = 1>(h, w, b) r = Tanh(k)
        e = Identity(b) f = Softmax<axis = 0>(e) t = ReduceMax<keepdims = 0>(f) o = MatMul(r, w2) y = Add(o, t)
        """, 17, w0=(8, 16), w=(16, 16), b=(16,), w2=(16, 5),
    )  # fmt: skip
    feeds = [{"x": np.random.default_rng(k).standard_normal((32, 8)).astype(np.float32)} for k in range(6)]
    assert api.prune(model, ratio=0.4, effort="low", calib=feeds).report.after.parameters < 300
