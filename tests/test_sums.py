"""Whatever adds two computed tensors says so (`Op.note_added`), or `--residual none` would cut what it adds to: for every
operator of the registry, found by running each node of every row of the operators' tables by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import test_operator_rows
import test_rules
from graphs import inputs, run
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from test_rules import conv

from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed
from onnxprune.trace import Groups

Values = dict[str, NDArray[Any]]
TEXTS = {name: (text, opset) for name, (text, _, opset) in test_operator_rows.TABLE.items()}
TEXTS |= {f"rules {r[0]}": (r[1], 18) for r in test_rules.TABLE}
TEXTS |= {f"later {r[1]}": (r[2], r[0]) for r in test_rules.LATER}
TEXTS |= {
    "Sub of two": (conv("c = Conv<pads=[1,1,1,1]>(x, C:float[16,3,3,3] ) b = Sub(a, c)"), 18),
    "Gemm with a branch": (
        "agraph (float[6,4] x) => (float[6,3] y) { a = MatMul(x, A:float[4,16] ) c = MatMul(x, C:float[4,16] ) "
        "b = Gemm(a, B:float[16,16] , c) y = MatMul(b, G:float[16,3] ) }",
        18,
    ),
    "FusedConv with a branch": (
        conv('c = Conv<pads=[1,1,1,1]>(x, C:float[16,3,3,3] ) b = com.microsoft.FusedConv(a, B:float[16,16,1,1] , , c)'),
        18,
    ),
}  # fmt: skip
NEAR = 1e-4
"""Of what a change of one input makes of the output."""


def values_of(groups: Groups) -> Values:
    """What every tensor of the main graph is, on random inputs."""
    proto = groups.trace.model.to_proto()
    held = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    feeds = inputs(proto, 2)
    names = dict.fromkeys(o for n in proto.graph.node for o in n.output if o)
    exposed = ModelProto.FromString(proto.SerializeToString())
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return held | feeds | dict(zip(names, run(exposed, feeds), strict=True))


def alone(node: NodeProto, values: Values, opsets: Any) -> ModelProto:
    """A model of one node, all of whose inputs are its inputs."""
    read = [
        helper.make_tensor_value_info(i, helper.np_dtype_to_tensor_dtype(values[i].dtype), values[i].shape)
        for i in dict.fromkeys(filter(None, node.input))
    ]
    given = [onnx.ValueInfoProto(name=o) for o in node.output if o]
    return helper.make_model(helper.make_graph([node], "g", read, given), opset_imports=opsets, ir_version=10)


def sums(groups: Groups) -> Iterator[tuple[NodeProto, str]]:
    """(node, input): computed tensors that go position by position into a sum with what another one gives."""
    trace, values = groups.trace, values_of(groups)
    for node in trace.model.graph.node:
        computed = [i for i in dict.fromkeys(node.input) if i in values and i not in trace.model.weights]
        floats = [i for i in computed if values[i].dtype == np.float32 and values[i].size > 1]
        if len(floats) > 1 and all(i in values for i in node.input if i):
            single = alone(node, values, trace.model.skeleton.opset_import)
            branches = [i for i in floats if trace.of(i)]
            for name in branches:
                others = [o for o in branches if o != name]
                if along(groups, name, node.output[0]) and any(added(single, values, name, o) for o in others):
                    yield node, name


def along(groups: Groups, name: str, out: str) -> bool:
    """Whether both have the same units, some of which may go, on the same axes."""
    found = [{b.axes: groups.classes[b.ids].tolist() for b in groups.trace.of(n)
              if groups.prunable[groups.classes[b.ids]].any()} for n in (name, out)]  # fmt: skip
    return bool(found[0]) and found[0] == found[1]


def added(single: ModelProto, values: Mapping[str, Any], a: str, b: str) -> bool:
    """Whether the first output is a sum of what it makes of `a` and of `b`: a change of both does what both changes do."""
    random, feeds = np.random.default_rng(0), {i.name: values[i.name] for i in single.graph.input}
    moved = {n: (values[n] + random.uniform(0.2, 0.4, values[n].shape)).astype(np.float32) for n in (a, b)}
    base, with_a, with_b, with_both = (
        run(single, feeds | {n: moved[n] for n in names})[0].astype(float) for names in ((), (a,), (b,), (a, b))
    )
    both = (abs(with_a - base) > 0) & (abs(with_b - base) > 0)
    mixed = abs(with_both - with_a - with_b + base)
    size = max(float(abs(with_a - base).max()), 1e-9)
    return bool(both.any()) and bool((mixed <= NEAR * size).all())


def test_whatever_adds_says_so() -> None:
    seen = set()
    for name, (text, opset) in TEXTS.items():
        groups = analysed(Model.load(test_rules.build(text, opset)), Options(residual="all").resolved(), Clock())
        for node, tensor in sums(groups):
            seen.add(node.op_type)
            for block in groups.trace.of(tensor):
                units = groups.classes[block.ids]
                assert groups.streams[units[groups.prunable[units]]].all(), (name, node.op_type, tensor)
    assert {"Add", "Sum", "Sub", "Mean", "FusedConv", "Gemm"} <= seen
