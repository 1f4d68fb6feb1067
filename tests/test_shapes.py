"""Shapes: what is static, what is known, what must stay unknown; ONNX Runtime is the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser

from onnxprune import prune
from onnxprune.errors import UsageError
from onnxprune.model import Model
from onnxprune.shapes import Shapes, infer, plan_sizes
from onnxprune.shapes.symbols import evaluated

Feeds = Mapping[str, Any]


def text(body: str, **weights: Any) -> ModelProto:
    """A model in ONNX's text format; the keyword arguments are its initializers."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items())
    return model


def inferred(model: ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    return infer(Model.load(model).normalised(), input_shapes)


def run(model: ModelProto, feeds: Feeds) -> dict[str, Any]:
    """Every tensor of the model, as ONNX Runtime computes it."""
    whole = ModelProto()
    whole.CopyFrom(model)
    outputs = {o.name for o in model.graph.output}
    inner = [o for n in model.graph.node for o in n.output if o and o not in outputs]
    whole.graph.output.extend(onnx.ValueInfoProto(name=n) for n in inner)
    session = ort.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def random_feeds(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    random = np.random.default_rng(0)
    types = {i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
    return {n: random.integers(0, 2, s).astype(types[n]) for n, s in shapes.items()}


def agrees(shapes: Shapes, model: ModelProto, *others: Mapping[str, tuple[int, ...]]) -> None:
    """Both probes, and what is called static at other sizes too, against ONNX Runtime."""
    known = len(shapes.inputs)
    for i, sizes in enumerate((*shapes.inputs, *others)):
        for name, real in run(model, random_feeds(model, sizes)).items():
            claims = [shapes.static(name), shapes.probe[i].get(name) if i < known else None]
            general = shapes.sizes(name)
            if i < known and general is not None:
                claims.append(tuple(evaluated(d, shapes.at[i].sizes) for d in general))
            for claim in (c for c in claims if c is not None):
                assert len(claim) == real.ndim, name
                assert all(a in (None, b) for a, b in zip(claim, real.shape, strict=True)), (name, claim, real.shape)
            for value in (shapes.value(name), shapes.probe_value(i, name) if i < known else None):
                if value is not None:
                    np.testing.assert_allclose(value, real, rtol=1e-6, err_msg=name)
            if (part := shapes.partial(name)) is not None:
                np.testing.assert_array_equal(part[0][part[1]], real[part[1]], err_msg=name)


HEADS = """heads (float[{dims}] x) => (float[b2, s2, 32] y) {{
    h = MatMul(x, w)
    shape = Shape(h)
    b = Gather<axis = 0>(shape, zero)
    s = Gather<axis = 0>(shape, one)
    b1 = Unsqueeze(b, axis)
    s1 = Unsqueeze(s, axis)
    split = Concat<axis = 0>(b1, s1, four, eight)
    q = Reshape(h, split)
    t = Transpose<perm = [0, 2, 1, 3]>(q)
    back = Transpose<perm = [0, 2, 1, 3]>(t)
    merged = Concat<axis = 0>(b1, s1, minus)
    y = Reshape(back, merged)
}}"""


def heads(dims: str = "batch, seq, 16") -> ModelProto:
    constants = {"zero": 0, "one": 1, "axis": [0], "four": [4], "eight": [8], "minus": [-1]}
    return text(HEADS.format(dims=dims), w=np.ones((16, 32), np.float32), **constants)


def test_computed_reshape_target_with_two_symbolic_dims() -> None:
    model = heads()
    shapes = inferred(model)
    assert shapes.static("q") == (None, None, 4, 8)
    assert shapes.static("t") == (None, 4, None, 8)
    assert shapes.static("y") == (None, None, 32)
    part = shapes.partial("split")
    assert part is not None
    assert part[0].tolist() == [0, 0, 4, 8]
    assert part[1].tolist() == [False, False, True, True]
    assert shapes.value("split") is None
    assert shapes.dtype("split") == TensorProto.INT64
    assert shapes.dtype("y") == TensorProto.FLOAT
    first, *others = (i["x"][:2] for i in shapes.inputs)
    assert len(others) == 5  # of which some give each symbol another number, and each its own
    assert any(len({*o}) == 2 and all(a != b for a, b in zip(first, o, strict=True)) for o in others)
    agrees(shapes, model, {"x": (1, 7, 16)}, {"x": (5, 1, 16)})


def test_dynamic_batch() -> None:
    model = heads("N, 6, 16")
    shapes = inferred(model)
    assert shapes.static("q") == (None, 6, 4, 8)
    agrees(shapes, model, {"x": (1, 6, 16)})


def test_static_inputs_give_whole_values() -> None:
    model = heads("2, 6, 16")
    shapes = inferred(model)
    split = shapes.value("split")
    assert split is not None
    assert split.tolist() == [2, 6, 4, 8]
    assert shapes.partial("split") is None
    assert len(shapes.inputs) == 1
    agrees(shapes, model)


def test_given_sizes_are_static() -> None:
    shapes = inferred(heads(), {"x": (2, -1, 16)})
    assert shapes.static("q") == (2, None, 4, 8)
    assert len(shapes.inputs) > 5
    assert {i["x"][0] for i in shapes.inputs} == {2}


def test_given_sizes_are_declared_in_what_is_written() -> None:
    weights = {"w": np.eye(16, 8, dtype=np.float32), "v": np.eye(8, 4, dtype=np.float32)}
    model = text("g (float[N, S, 16] x) => (float[N, S, 4] y) { h = MatMul(x, w) y = MatMul(h, v) }", **weights)
    graph = prune(model, ratio=0.5, fast=True, input_shapes={"x": (2, 0, 16)}).model.to_proto().graph
    for info, last in ((graph.input[0], 16), (graph.output[0], 4)):
        assert [d.dim_value or d.dim_param for d in info.type.tensor_type.shape.dim] == [2, "S", last]


def test_a_wrong_size_says_what_the_model_accepts() -> None:
    with pytest.raises(UsageError, match=r"input 'x' is \[batch, seq, 16\]: its dimension 2 is 16, not 17"):
        inferred(heads(), {"x": (1, 2, 17)})


@pytest.mark.parametrize("wrong", [{"z": (1, 2, 16)}, {"x": (1, 2)}, {"x": (1, 2, 17)}])
def test_given_sizes_that_do_not_fit(wrong: dict[str, Sequence[int]]) -> None:
    with pytest.raises(UsageError):
        inferred(heads(), wrong)


@pytest.mark.parametrize("names", ["q t y", ""])
def test_value_info_is_neither_needed_nor_believed(names: str) -> None:
    model = heads()
    for name in names.split():
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [9, 9, 9]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3, 4] if names else None))
    shapes = inferred(model)
    assert shapes.static("t") == (None, 4, None, 8)
    assert shapes.static("y") == (None, None, 32)


def test_nonzero_stays_unknown_with_static_inputs() -> None:
    model = text(
        """detector (float[4, 6] x) => (float[k, c] y) {
            p = Greater(x, limit)
            where = NonZero(p)
            rows = Transpose<perm = [1, 0]>(where)
            picked = GatherND(x, rows)
            n = Shape(picked)
            target = Concat<axis = 0>(n, one)
            column = Reshape(picked, target)
            wide = MatMul(column, w)
            shape = Shape(wide)
            y = Expand(wide, shape)
        }""",
        limit=np.float32(0.5),
        one=np.array([1], np.int64),
        w=np.ones((1, 5), np.float32),
    )
    shapes = inferred(model)
    assert shapes.static("where") == (2, None)
    assert shapes.static("picked") == (None,)
    assert shapes.static("column") == (None, 1)
    assert shapes.static("wide") == (None, 5)
    assert shapes.static("y") == (None, 5)
    assert shapes.value("n") is None
    part = shapes.partial("shape")
    assert part is not None
    assert part[1].tolist() == [False, True]
    agrees(shapes, model)


def test_what_is_known_in_part_keeps_its_type() -> None:
    model = text(
        """g (float[4, 6] x) => (int64[k] y) {
            n = NonZero(x) shape = Shape(n) same = Equal(shape, two) small = Cast<to = 6>(shape) y = Where(same, two, shape)
        }""",
        two=np.array([2, 2], np.int64),
    )
    shapes = inferred(model)
    part = shapes.partial("small")
    assert part is not None
    assert part[1].tolist() == [True, False]
    assert [shapes.dtype(n) for n in ("same", "small")] == [TensorProto.BOOL, TensorProto.INT32]
    agrees(shapes, model)


def test_nonzero_of_a_constant_is_known() -> None:
    model = text("g (float[N, 3] x) => (int64[r, c] y) { y = NonZero(mask) }", mask=np.array([0, 1, 1, 0], np.int64))
    assert inferred(model).static("y") == (1, 2)


@pytest.mark.parametrize("known", [True, False])
def test_topk(known: bool) -> None:
    model = text(f"g (float[4, 6] x{'' if known else ', int64[1] k'}) => (float[a, b] v) {{ v, i = TopK(x, k) }}")
    if known:
        model.graph.initializer.append(numpy_helper.from_array(np.array([3], np.int64), "k"))
    assert inferred(model).static("v") == (4, 3 if known else None)


def test_loop_state_may_grow() -> None:
    model = text(
        """g (float[2, 3] x, int64 n) => (float[a, b] y) {
            y = Loop(n, yes, x) <body = b (int64 i, bool c, float[r, s] state) => (bool d, float[t, u] next) {
                d = Identity(c)
                next = Concat<axis = 0>(state, state)
            }>
        }""",
        yes=np.array(True),
    )
    shapes = inferred(model)
    assert shapes.static("y") in (None, (None, None), (None, 3))
    agrees(shapes, model)


BRANCHES = """g (float[N, 3] x, bool flag) => (float[a, b] y) {{
    rank = Size(x)
    big = Greater(rank, zero)
    y = If({condition}) <
        then_branch = t () => (float[c, d] p) {{ p = Transpose<perm = [1, 0]>(x) }},
        else_branch = e () => (float[f, g] q) {{ q = Concat<axis = 1>(x, x) }}
    >
}}"""


def test_branches_are_followed_only_where_the_condition_is_known() -> None:
    open_, decided = (text(BRANCHES.format(condition=c), zero=np.array(0, np.int64)) for c in ("flag", "big"))
    assert inferred(open_).static("y") in (None, (None, None))
    assert inferred(decided).static("y") == (3, None)


def test_other_domains_are_asked_of_the_runtime() -> None:
    nodes = [
        helper.make_node("SkipLayerNormalization", ["x", "x", "g"], ["h"], domain="com.microsoft"),
        helper.make_node("FusedMatMul", ["h", "w"], ["y"], domain="com.microsoft", transB=1),
        helper.make_node("NoSuchOperator", ["y"], ["z"], domain="com.example"),
    ]
    model = _model(nodes, {"x": ["N", 5, 8]}, ["y"], g=np.ones(8, np.float32), w=np.ones((12, 8), np.float32))
    model.graph.node.pop()  # ONNX Runtime cannot load it
    shapes = inferred(model)
    assert shapes.static("h") == (None, 5, 8)
    assert shapes.static("y") == (None, 5, 12)
    assert shapes.dtype("y") == TensorProto.FLOAT
    agrees(shapes, model, {"x": (1, 5, 8)})
    model.graph.node.append(nodes[-1])
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert inferred(model).static("z") is None


def test_runtime_does_not_measure_what_depends_on_data() -> None:
    node = helper.make_node("Unique", ["x"], ["u", "i", "c"], domain="com.microsoft")
    assert inferred(_model([node], {"x": [6]}, ["u"])).static("u") == (None,)


def test_sizes_that_a_model_can_run_at_are_found() -> None:
    """A table of eight positions; two batches that must agree; a mask as long as past and present together."""
    nodes = [
        helper.make_node("Shape", ["mask"], ["s"], start=1),
        helper.make_node("Squeeze", ["s"], ["n"]),
        helper.make_node("Range", ["zero", "n", "one"], ["positions"]),
        helper.make_node("Gather", ["table", "positions"], ["p"]),
        helper.make_node("Concat", ["past", "now"], ["all"], axis=1),
        helper.make_node("Add", ["all", "p"], ["y"]),
    ]
    inputs = {"past": ["a", "p", 4], "now": ["b", 1, 4], "mask": ["c", "m"]}
    table = {"table": np.ones((8, 4), np.float32), "zero": np.array(0, np.int64), "one": np.array(1, np.int64)}
    model = _model(nodes, inputs, ["y"], **table)
    model.graph.input[2].type.tensor_type.elem_type = TensorProto.INT64
    shapes = inferred(model)
    assert {p.failures for p in shapes.passes} == {0}
    assert shapes.static("y") == (None, None, 4)
    assert not shapes.pinned
    agrees(shapes, model)


@pytest.mark.parametrize("end", ["d = Div(l, f) t = Concat<axis=0>(b, d, f)", "t = Concat<axis=0>(b, m, f)"])
def test_a_length_that_must_be_a_multiple(end: str) -> None:
    """In frames of twelve, whether the number of them is divided out or left to the runtime."""
    model = text(
        "g (float[B, T] x) => (float[B, M, 12] y) {"
        f"b = Shape<start=0, end=1>(x) l = Shape<start=1, end=2>(x) {end} y = Reshape(x, t) }}",
        f=np.array([12]), m=np.array([-1]),
    )  # fmt: skip
    shapes = inferred(model)
    assert len(shapes.inputs) > 2
    assert len({sizes["x"][1] for sizes in shapes.inputs}) > 2
    assert all(sizes["x"][1] % 12 == 0 for sizes in shapes.inputs)
    assert shapes.static("y") == (None, None, 12)
    agrees(shapes, model)


def test_a_baked_size() -> None:
    """The graph says that the length is free, the constant position table says that it is 16, or one."""
    nodes = [helper.make_node("Add", ["x", "table"], ["y"])]
    shapes = inferred(_model(nodes, {"x": ["N", "len", 4]}, ["y"], table=np.ones((16, 4), np.float32)))
    assert {i["x"][1] for i in shapes.inputs} == {1, 16}
    assert shapes.static("y") == (None, 16, 4)
    assert shapes.static("x") == (None, None, 4)


def test_dimension_expressions() -> None:
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, d)
        for n, d in {"a": ["N", "past"], "b": ["N", "new"], "c": ["N", "past + new"], "d": ["N", "2*past - 1"]}.items()
    ]
    axes = plan_sizes(inputs, {})
    assert set(axes.roles) == {"N", "past", "new"}
    for sizes in axes.candidates(0):
        found = axes.shapes(sizes)
        assert found["c"][1] == sizes["past"] + sizes["new"]
        assert found["d"][1] == 2 * sizes["past"] - 1
    assert plan_sizes(inputs, {"a": (2, 5), "b": (2, 3)}).shapes({})["c"] == (2, 8)


@pytest.mark.parametrize("sides", [["H", "W"], ["D", "H", "W"], [8, "H", "W"]])
def test_a_volume_is_tried_at_sizes_of_as_many_elements_as_an_image(sides: list[str | int]) -> None:
    plan = plan_sizes([helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, *sides])], {})
    first, large = (next(iter(found)) for found in (plan.candidates(0), plan._large(next(plan.candidates(0)))))
    assert prod(plan.shapes(first)["x"][2:]) <= 64 * 96 * 8
    assert prod(plan.shapes(large)["x"][2:]) <= 2 * 128 * 194 * 8


def _model(nodes: list[NodeProto], inputs: Mapping[str, Any], outputs: list[str], **weights: Any) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(d)) for n, d in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("op", ["Squeeze", "Unsqueeze"])
def test_axes_that_are_an_input_leave_the_sizes_open(op: str) -> None:
    """Run on zeros they would be the first axis, and two runs would agree on it."""
    shapes = inferred(text(f"g (float[1, 3, 1, 5] x, int64[1] axes) => (float[a, b, c] y) {{ y = {op}(x, axes) }}"))
    assert shapes.static("y") in (None, (None,) * 3, (None,) * 5)
