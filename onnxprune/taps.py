"""Where two models are compared: at their outputs, and at what goes into an operator that ends the graph by levelling
differences, such as a sigmoid. Knows nodes and tensors, no tolerance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from onnx import helper

from onnxprune.labels import Mask
from onnxprune.masking import FLOATS
from onnxprune.model import Model
from onnxprune.trace import Trace, captured, nested

SATURATING = {"Sigmoid", "Softmax", "LogSoftmax", "Tanh", "HardSigmoid"}
MOVING = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Slice", "Gather", "Concat",
          "Split", "ReduceMean", "Constant", "Shape", "Equal", "If"}  # fmt: skip
"""What hands values on, averages them, or asks for no more than their sizes."""


def last(trace: Trace) -> dict[str, set[str]]:
    """What each saturating operator at the end of the graph gives, and the graph outputs that it gives it to, be it
    through operators that only move values."""
    users = defaultdict(list)
    for node in trace.model.proto.graph.node:
        bodies = [a.g for a in node.attribute if a.HasField("g")]
        for name in {*node.input, *(n for body in bodies for n in captured(body))}:
            users[name].append((node, all(n.op_type in MOVING for n in (node, *nested(node)))))
    outputs = {o.name for o in trace.model.proto.graph.output}
    found: dict[str, set[str]] = {}
    for node in trace.model.proto.graph.node:
        if node.op_type in SATURATING:
            reached, moving, todo = set(node.output), True, list(node.output)
            while todo and moving:
                name = todo.pop()
                moving = all(moves for _, moves in users[name])
                more = {o for n, _ in users[name] if n.op_type != "Shape" for o in n.output} - reached
                reached |= more
                todo += more
            if moving and outputs & reached:
                found[node.output[0]] = outputs & reached
    return found


def taps(trace: Trace, kept: Mask) -> list[str]:
    """What goes into a saturating operator that ends the graph: a sigmoid's 1e-7 says nothing about the rest."""
    outputs = {o.name for o in trace.model.proto.graph.output}
    given = last(trace)
    ends = [n for n in trace.model.proto.graph.node if n.output and n.output[0] in given]
    whole = (n.input[0] for n in ends if all(kept[b.ids].all() for b in trace.of(n.input[0])))
    return [x for x in dict.fromkeys(whole) if x not in outputs and trace.shapes.dtype(x) in FLOATS]


def with_outputs(trace: Trace, model: Model, names: Sequence[str]) -> Model:
    model = model.copy()
    have = {o.name for o in model.proto.graph.output}
    made = (helper.make_tensor_value_info(n, trace.shapes.dtype(n) or 1, None) for n in names if n not in have)
    model.proto.graph.output.extend(made)
    return model
