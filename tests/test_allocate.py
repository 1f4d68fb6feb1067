"""Where the budget goes, against trying every allocation; what a mask costs, against the rewritten file."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from random_graph import models
from test_shifted import convolutions, perceptron

from onnxprune import api
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.planning import Costs, by_weights, profile
from onnxprune.planning.allocation import Choice, allocate
from onnxprune.planning.decision import budget
from onnxprune.planning.paying import Blocks
from onnxprune.rewrite import rewrite

Array = NDArray[Any]
NONE = np.zeros(12, bool)


def alone(widths: list[int], counts: list[float]) -> tuple[list[range], Costs]:
    """Sets of so many units, each the only one that its term of the cost depends on."""
    ends = np.cumsum([0, *widths])
    units = [range(a, b) for a, b in pairwise(ends)]
    return units, Costs(np.array(counts), [(np.array(u),) for u in units])


def chain(widths: list[int]) -> tuple[list[range], Costs]:
    """Layers in a row, each reading one set and making the next one."""
    units, _ = alone(widths, [1.0] * len(widths))
    ids = [np.array(u) for u in units]
    counts = [10.0, *(float(len(a) * len(b)) for a, b in pairwise(ids)), 7.0]
    return units, Costs(np.array(counts), [(ids[0],), *pairwise(ids), (ids[-1],)])


def spent(units: list[range], costs: Costs, taken: list[float], n: int) -> float:
    kept = np.ones(n, bool)
    for u, t in zip(units, taken, strict=True):
        kept[list(u)[: round(t * len(u))]] = False
    return costs.total(kept)


def loss(choices: list[Choice], taken: list[float]) -> float:
    return float(sum(c.losses[round(t * (len(c.losses) - 1))] for c, t in zip(choices, taken, strict=True)))


def convex(draw: Any, levels: int) -> Array:
    steps = sorted(draw(st.lists(st.integers(1, 1000), min_size=levels, max_size=levels)))
    return np.r_[0.0, np.cumsum(steps)] * draw(st.sampled_from([0.01, 1.0, 50.0]))


@st.composite
def problems(draw: Any, linked: bool) -> tuple[list[range], Costs, list[Choice], float]:
    widths = draw(st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=3))
    counts = [float(draw(st.integers(1, 50))) for _ in widths]
    units, costs = chain(widths) if linked else alone(widths, counts)
    choices = [Choice(u, convex(draw, len(u))) for u in units]
    for c in choices:
        c.losses[len(c.losses) - 1] = np.inf
    return units, costs, choices, draw(st.floats(0.05, 1.0)) * float(costs.count.sum())


def allowed(choices: list[Choice]) -> list[tuple[float, ...]]:
    levels = [[k / (len(c.losses) - 1) for k, x in enumerate(c.losses) if np.isfinite(x)] for c in choices]
    return list(product(*levels))


@given(problems(linked=False))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_no_allocation_of_the_same_cost_loses_less(made: tuple[list[range], Costs, list[Choice], float]) -> None:
    units, costs, choices, wanted = made
    taken = allocate(choices, costs, NONE, wanted)
    assert tuple(taken) in allowed(choices)
    cost = spent(units, costs, taken, 12)
    reachable = min(spent(units, costs, list(t), 12) for t in allowed(choices))
    assert cost <= max(wanted, reachable) + 1e-9
    as_cheap = [t for t in allowed(choices) if spent(units, costs, list(t), 12) <= cost + 1e-9]
    assert loss(choices, taken) <= min(loss(choices, list(t)) for t in as_cheap) * (1 + 1e-9)


@given(problems(linked=True))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_where_costs_multiply_the_budget_is_met_without_a_wasted_step(
    made: tuple[list[range], Costs, list[Choice], float],
) -> None:
    """The greedy order is no optimum there; but its last step is needed, and nothing cheaper in every set would do."""
    units, costs, choices, wanted = made
    taken = allocate(choices, costs, NONE, wanted)
    assert tuple(taken) in allowed(choices)
    cost = spent(units, costs, taken, 12)
    reachable = min(spent(units, costs, list(t), 12) for t in allowed(choices))
    assert cost <= max(wanted, reachable) + 1e-9
    if any(taken) and cost <= wanted:
        fewer = [
            [t - (k == j) / (len(c.losses) - 1) for k, (t, c) in enumerate(zip(taken, choices, strict=True))]
            for j in range(len(taken))
            if taken[j] > 0
        ]
        assert max(spent(units, costs, t, 12) for t in fewer) > wanted


def test_the_cheapest_loss_for_what_it_saves_goes_first() -> None:
    units, costs = alone([4, 4], [100.0, 10.0])
    flat = np.array([0, 1, 2, 3, 4.0])
    assert allocate([Choice(u, flat) for u in units], costs, NONE, 110 - 75) == [0.75, 0.0]
    assert allocate([Choice(units[0], flat * 20), Choice(units[1], flat)], costs, NONE, 110 - 5) == [0.0, 0.5]


def test_a_step_that_a_later_one_makes_needless_is_undone() -> None:
    """The first set is the cheaper one for what it saves, but it does not save enough; the other alone does."""
    units, costs = alone([4, 4], [10.0, 100.0])
    low, high = np.array([0, np.inf, np.inf, np.inf, 1.0]), np.array([0, np.inf, np.inf, np.inf, 20.0])
    assert allocate([Choice(units[0], low), Choice(units[1], high)], costs, NONE, 110 - 95) == [0.0, 1.0]
    assert allocate([Choice(units[0], low), Choice(units[1], high)], costs, NONE, 110 - 105) == [1.0, 1.0]


def test_a_hump_is_crossed_in_one_go() -> None:
    """A curve that is steep first and flat later: half of it is a bad place to stop, so the other set is left alone."""
    units, costs = alone([4, 4], [40.0, 40.0])
    hump, line = np.array([0, 9, 9.5, 10, np.inf]), np.array([0, 4, 8, 12, np.inf])
    assert allocate([Choice(units[0], hump), Choice(units[1], line)], costs, NONE, 50.0) == [0.75, 0.0]


def test_what_may_not_go_stays_however_small_the_budget() -> None:
    units, costs = alone([4, 4, 4], [10.0, 10.0, 10.0])
    losses = [
        np.array([0, 0, np.inf, np.inf, np.inf]),
        np.array([0, 1, 2, np.inf, np.inf]),
        np.array([0] + [np.inf] * 4),
    ]
    choices = [Choice(u, x) for u, x in zip(units, losses, strict=True)]
    assert allocate(choices, costs, NONE, 0.0) == [0.25, 0.5, 0.0]


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(("left", "wanted"), [(9.0, [0.25, 0, 0]), (4.1, [0, 1, 0]), (2.1, [0, 1, 0.5])])
def test_what_goes_with_a_branch_is_not_lost_twice(stepped: bool, left: float, wanted: list[float]) -> None:
    """The first set is inside the branch that the second one stands for: a cost of 10 in all, as the third one has 4.
    Best of all allocations, by brute force below: with the branch gone, no unit of the first set need go besides."""
    inner, branch, other = range(4), [4], range(5, 9)
    ids = [np.array(inner), np.array(branch), np.array(other)]
    costs = Costs(np.array([6.0, 4.0]), [(ids[0], ids[1]), (ids[2],)])
    if stepped:
        costs = replace(costs, stairs=[[np.linspace(0, 1, 5), None], [None]])
    curves = [np.array([0, 1, 2.5, 4.5, np.inf]), np.array([0, 5.0]), np.array([0, 1.2, 3, 6, np.inf])]
    choices = [Choice(inner, curves[0]), Choice(branch, curves[1], inside=(0,)), Choice(other, curves[2])]
    taken = allocate(choices, costs, NONE, left)
    assert taken == wanted

    def lost(t: tuple[float, ...]) -> float:
        each = [float(x[round(share * (len(x) - 1))]) for x, share in zip(curves, t, strict=True)]
        return each[1] + each[2] if t[1] else sum(each)

    fits = [t for t in allowed(choices) if spent([inner, range(4, 5), other], costs, list(t), 12) <= left + 1e-9]
    assert lost(tuple(taken)) == min(map(lost, fits))


def test_what_saves_nothing_is_not_taken() -> None:
    units, costs = alone([4, 4], [0.0, 10.0])
    assert allocate([Choice(u, np.array([0, 1, 2, 3, 4.0])) for u in units], costs, NONE, 5.0) == [0.0, 0.5]


def test_what_is_gone_already_counts() -> None:
    units, costs = chain([4, 4])
    gone = NONE.copy()
    gone[:2] = True
    choices = [Choice(units[1], np.array([0, 1, 2, 3, 4.0]))]
    kept = ~gone
    assert allocate(choices, costs, gone, costs.total(kept)) == [0.0]
    assert allocate(choices, costs, gone, costs.total(kept) - 1e-6) == [0.25]
    kept[[4, 5]] = False
    assert allocate(choices, costs, gone, costs.total(kept)) == [0.5]


# -- costs --------------------------------------------------------------------------------------------------------------

IMAGE = "(float[N,3,8,8] x) => (float[N,5] y)"
POOL = "p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, wo, bo)"
SAME = "pads=[1,1,1,1]"


def residual() -> ModelProto:
    """A stream, a grouped and a depthwise convolution, one vector for two biases, one weight used twice."""
    body = f"""
        a = Conv<{SAME}>(x, wa, b8) r = Relu(a)
        c = Conv<{SAME}>(r, wb, b8) d = Relu(c) e = Conv<{SAME}>(d, wb, b8) s1 = Add(r, e)
        g = Conv<{SAME}, group=4>(s1, wg, bg) h = Relu(g) k = Conv<{SAME}, group=12>(h, wd) l = Conv(k, wl)
        s = Add(s1, l) {POOL}
    """
    return graph(
        IMAGE, body, wa=(8, 3, 3, 3), b8=(8,), wb=(8, 8, 3, 3), wg=(12, 2, 3, 3), bg=(12,), wd=(12, 1, 3, 3),
        wl=(8, 12, 1, 1), wo=(5, 8), bo=(5,),
    )  # fmt: skip


def attention() -> ModelProto:
    body = """
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        sh = Constant<value_ints=[0,6,4,4]>()
        q4 = Reshape(q, sh) k4 = Reshape(k, sh) v4 = Reshape(v, sh)
        qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)
        m = MatMul(qt, kt) w = Softmax(m) o = MatMul(w, vt) ot = Transpose<perm=[0,2,1,3]>(o)
        s2 = Constant<value_ints=[0,6,16]>() of = Reshape(ot, s2) z = MatMul(of, wo) t = Add(z, x)
        u = MatMul(t, w1) u2 = Relu(u) y = MatMul(u2, w2)
    """
    side = dict.fromkeys(("wq", "wk", "wv", "w1"), (12, 16))
    return graph("(float[N,6,12] x) => (float[N,6,3] y)", body, wo=(16, 12), w2=(16, 3), **side)


NETS = {"residual": residual, "attention": attention, "convolutions": convolutions, "perceptron": perceptron}


def grouped(model: ModelProto, **options: Any) -> tuple[Any, Options]:
    chosen = Options(**{"ratio": 0.4, "residual": "all", "fast": True} | options).resolved()
    return analysed(Model.load(model), chosen, Clock()), chosen


def plans(model: ModelProto) -> Any:
    """(groups, units that go) of several seeds, ratios and scopes."""
    for seed, ratio, scope in product((0, 1), (0.25, 0.4, 0.5, 0.75), ("local", "global")):
        groups, options = grouped(model, seed=seed, ratio=ratio, scope=scope, criterion="random")
        yield groups, by_weights(groups, options)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_macs_of_a_mask(net: Any) -> None:
    seen = set()
    for groups, removed in plans(net()):
        expected = profile.macs(groups.trace, groups.kept_ids(removed))
        assert Costs.of(groups, "macs").total(groups.alive(groups.kept_ids(removed))) == pytest.approx(
            expected, rel=1e-9
        )
        seen.add(expected)
    assert len(seen) > 4


def convolutions_of(model: ModelProto) -> float:
    """Multiply-accumulates of one sample of the convolutions, Gemms and products with a weight, counted by hand."""
    inferred = onnx.shape_inference.infer_shapes(model)
    infos = (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input)
    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in infos}
    held = {t.name: tuple(t.dims) for t in model.graph.initializer}
    total = 0.0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") or (node.op_type == "MatMul" and node.input[1] in held):
            out = dims[node.output[0]]
            places = np.prod(out[2:]) if node.op_type == "Conv" else np.prod(out[1:-1])
            total += float(np.prod(held[node.input[1]]) * places)
    return total


def test_macs_of_a_rewritten_file() -> None:
    model = residual()
    for groups, removed in plans(model):
        costs = Costs.of(groups, "macs")
        after = rewrite(groups.trace, groups.kept_ids(removed)).model.to_proto()
        assert costs.total(groups.alive(groups.kept_ids(removed))) == pytest.approx(convolutions_of(after), rel=1e-9)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_macs_of_a_rewritten_recurrent_file(kind: str, gates: int) -> None:
    """Its states are read by as many units as they are: 5 steps, each of all elements of W and R."""
    model = graph(
        "(float[5,1,6] x) => (float[5,1,3] y)",
        f"""
        a = MatMul(x, wa) l, m = {kind}<hidden_size = 16>(a, w0, r0) s = Squeeze(l, one)
        k, n = {kind}<hidden_size = 10>(s, w1, r1) t = Squeeze(k, one) y = MatMul(t, wb)
        """,
        wa=(6, 12), w0=(1, 16 * gates, 12), r0=(1, 16 * gates, 16), one=np.array([1]), w1=(1, 10 * gates, 16),
        r1=(1, 10 * gates, 10), wb=(10, 3),
    )  # fmt: skip
    whole = grouped(model)[0]
    for groups, removed in [(whole, np.zeros_like(whole.prunable)), *plans(model)]:
        costs = Costs.of(groups, "macs")
        weights = rewrite(groups.trace, groups.kept_ids(removed)).model.weights
        expected = 5 * sum(weights[name].size for name in ("wa", "w0", "r0", "w1", "r1", "wb"))
        assert costs.total(groups.alive(groups.kept_ids(removed))) == pytest.approx(expected, rel=1e-9)


def test_macs_of_attention_in_one_operator() -> None:
    """Scores sum over the size of a key's head, and what they weigh over their number: two products, one after the
    other. 7 places, 4 heads of 5 (values of 3); the packed operator holds its projections, too."""
    model = graph(
        "(float[N,7,12] x) => (float[N,7,2] y)",
        """
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) a = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v)
        b = com.microsoft.Attention<num_heads = 4>(a, w, bias) y = MatMul(b, wo)
        """,
        wq=(12, 20), wk=(12, 20), wv=(12, 12), w=(12, 48), bias=(48,), wo=(16, 2),
    )  # fmt: skip
    whole = grouped(model)[0]
    for groups, removed in [(whole, np.zeros_like(whole.prunable)), *plans(model)]:
        kept = groups.kept_ids(removed)
        weights = rewrite(groups.trace, kept).model.weights
        products = 7 * sum(weights[name].size for name in ("wq", "wk", "wv", "w", "wo"))
        key, value, packed = weights["wk"].shape[1], weights["wv"].shape[1], weights["w"].shape[1] // 3
        expected = products + 7 * 7 * (key + value + 2 * packed)
        assert Costs.of(groups, "macs").total(groups.alive(kept)) == pytest.approx(expected, rel=1e-9)


def test_what_a_recurrent_group_holds() -> None:
    """All that its units are an axis of, once: 5 steps of what reads them, makes them and gives them back."""
    model = graph(
        "(float[5,1,2] x) => (float[5,1,3] y)",
        "l = GRU<hidden_size = 16>(x, w, r) s = Squeeze(l, one) y = MatMul(s, wo)",
        w=(1, 48, 2), r=(1, 48, 16), one=np.array([1]), wo=(16, 3),
    )  # fmt: skip
    assert [g.macs for g in api.inspect(model).groups] == [5 * (48 * 2 + 48 * 16 + 16 * 3)]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_share_of_the_macs_of_a_recurrent_layer(kind: str) -> None:
    """Taking 30 % of them leaves 84 % of the units where almost all is spent between states."""
    gates = {"LSTM": 4, "GRU": 3}[kind]
    model = graph(
        "(float[5,1,2] x) => (float[5,1,1] y)",
        f"l = {kind}<hidden_size = 100>(x, w, r) s = Squeeze(l, one) y = MatMul(s, wo)",
        w=(1, 100 * gates, 2), r=(1, 100 * gates, 100), one=np.array([1]), wo=(100, 1),
    )  # fmt: skip
    for scope in ("local", "global"):
        groups, options = grouped(model, ratio=0.3, of="macs", scope=scope)
        kept = groups.kept_ids(by_weights(groups, options))
        assert rewrite(groups.trace, kept).model.weights["r"].shape[2] in (83, 84)


def test_macs_are_of_one_sample() -> None:
    """Projections, scores, values, and the merged heads: whatever axis the batch is in."""
    groups, _ = grouped(attention())
    projections, mixed = 6 * 12 * 16, 6 * 6 * 16
    expected = 3 * projections + 2 * mixed + projections + 6 * 12 * 16 + 6 * 16 * 3
    assert profile.macs(groups.trace) == expected
    merged = graph(
        "(float[N,6,12] x) => (float[N,6,3] y)",
        "a = MatMul(x, wa) s = Constant<value_ints=[-1,4]>() b = Reshape(a, s) c = MatMul(b, wb) t = Constant<value_ints=[-1,6,8]>() d = Reshape(c, t) y = MatMul(d, wc)",
        wa=(12, 8), wb=(4, 4), wc=(8, 3),
    )  # fmt: skip
    assert profile.macs(grouped(merged)[0].trace) == 6 * 12 * 8 + 12 * 4 * 4 + 6 * 8 * 3
    fixed = graph("(float[4,12] x) => (float[4,3] y)", "a = Gemm(x, wa) y = Gemm(a, wb)", wa=(12, 8), wb=(8, 3))
    assert profile.macs(grouped(fixed)[0].trace) == 4 * 12 * 8 + 4 * 8 * 3


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_parameters_of_a_mask(net: Any) -> None:
    """Elements of what the file then holds; nothing else of these nets has parameters."""
    for groups, removed in plans(net()):
        after = rewrite(groups.trace, groups.kept_ids(removed)).model
        saved = profile.cost(groups.trace.model, 0).parameters - profile.cost(after, 0).parameters
        costs = Costs.of(groups, "params")
        every = np.ones(len(removed), bool)
        assert costs.total(every) == profile.cost(groups.trace.model, 0).parameters
        assert costs.total(every) - costs.total(groups.alive(groups.kept_ids(removed))) == pytest.approx(
            saved, rel=0.02
        )


@given(models(), st.integers(0, 3))
@settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)  # fmt: skip
def test_costs_of_a_mask_on_random_graphs(model: ModelProto, seed: int) -> None:
    groups, options = grouped(model, seed=seed, criterion="random")
    removed = by_weights(groups, options)
    alive = groups.alive(groups.kept_ids(removed))
    expected = profile.macs(groups.trace, groups.kept_ids(removed))
    assert Costs.of(groups, "macs").total(alive) == pytest.approx(expected, rel=1e-9)
    costs = Costs.of(groups, "params")
    assert costs.count.sum() == pytest.approx(profile.cost(groups.trace.model, 0).parameters)
    after = rewrite(groups.trace, groups.kept_ids(removed)).model
    if set(after.weights) == set(groups.trace.model.weights):  # else there are copies, which count for each use
        assert costs.total(alive) == pytest.approx(profile.cost(after, 0).parameters, rel=1e-9)


@pytest.mark.parametrize("of", ["macs", "params"])
def test_a_budget_is_a_share_of_the_model(of: str) -> None:
    groups, options = grouped(convolutions(), of=of, ratio=0.3)
    costs = Costs.of(groups, of)
    whole = profile.macs(groups.trace) if of == "macs" else profile.cost(groups.trace.model, 0).parameters
    assert budget(groups, options, costs) == pytest.approx(0.7 * whole)


@pytest.mark.parametrize("sets", [10, 1000])
def test_what_is_held_grows_with_the_sets_and_not_with_their_square(sets: int) -> None:
    """A chain of products, each of two sets: what a set has no share of takes neither memory nor time."""
    units = [list(range(8 * p, 8 * p + 8)) for p in range(sets)]
    costs = Costs(np.ones(sets - 1), [(np.array(a), np.array(b)) for a, b in pairwise(units)])
    gone = np.zeros(8 * sets, bool)
    blocks = Blocks.of(units, costs, gone)
    assert blocks.held.nnz == 2 * (sets - 1)
    assert len(blocks.near()[sets // 2]) == 3
    taken = allocate([Choice(u, np.arange(9.0)) for u in units], costs, gone, 0.7 * costs.whole)
    assert blocks.paid(np.array(taken)).total <= 0.7 * costs.whole
