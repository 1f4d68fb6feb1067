"""Nodes that tie layers to one another which have nothing in common are taken out, and the same is computed.

A stack of recurrent layers is exported with one tensor of zeros, of which each layer takes its initial state, and with
one tensor of all last states, of which one is taken, or each by a layer of a decoder: so all layers would have to keep
the same units. Knows graphs and constants, no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from itertools import accumulate, zip_longest

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from onnxprune.model.graph import attribute, every_node, rearranged
from onnxprune.model.traits import GATES
from onnxprune.model.unneeded import unneeded
from onnxprune.model.weight import Weight

STATES = range(5, 7)
"""Of a recurrent layer, the inputs that are its initial states: zeros where they are left out."""
LAST = range(1, 3)
"""Of a recurrent layer, the outputs that are its last states, (directions, batch, hidden)."""
PASSING_ZEROS = frozenset({
    "Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
})  # fmt: skip
"""Of zeros as their first input they make nothing but zeros."""
Weights = MutableMapping[str, Weight]
Makers = Mapping[str, NodeProto]
Add = Callable[[str, Weight], None]


def untie(graph: GraphProto, weights: Weights, fresh: Callable[[str], str], add: Add) -> None:
    """Leave out initial states that are zeros, take the last states of a layer of itself, and drop what nobody reads
    then, in place. `graph` has distinct names; `weights` are the constants, those of bodies too."""
    nodes = every_node(graph)
    makers = {o: node for node in nodes for o in node.output if o}
    given = {i.name for i in graph.input}  # whose values a caller may replace
    constants = {name: weight for name, weight in weights.items() if name not in given}
    unread = list[str]()
    for node in nodes:
        if node.op_type in GATES and not node.domain:
            unread += _without_zeros(node, makers, constants)
        elif node.op_type == "Gather" and not node.domain:
            unread += _of_its_part(node, makers, constants, fresh, add)
        elif node.op_type == "Slice" and not node.domain:
            unread += _one_part(node, makers, constants)
    if unread:
        dead = unneeded(graph, weights, nodes, lost=unread)
        rearranged(graph, {}, {}, lambda node: id(node) in dead)


def _without_zeros(node: NodeProto, makers: Makers, constants: Mapping[str, Weight]) -> Iterator[str]:
    """Leave out the initial states of a recurrent layer that are zeros; gives their names."""
    for i in STATES:
        if i < len(node.input) and node.input[i] and _zeros(node.input[i], makers, constants):
            yield node.input[i]
            node.input[i] = ""
    while not node.input[-1]:
        del node.input[-1]


def _zeros(name: str, makers: Makers, constants: Mapping[str, Weight]) -> bool:
    """Whether a tensor holds nothing but zeros, whatever its sizes are."""
    while name in makers:
        node = makers[name]
        if node.op_type == "ConstantOfShape" and not node.domain:
            value = attribute(node, "value")
            return value is None or not numpy_helper.to_array(value).any()
        if node.op_type not in PASSING_ZEROS or node.domain:
            return False
        name = node.input[0]
    return name in constants and constants[name].dtype.kind == "f" and not np.any(constants[name].array())


def _of_its_part(
    node: NodeProto, makers: Makers, constants: Mapping[str, Weight], fresh: Callable[[str], str], add: Add
) -> Iterator[str]:  # fmt: skip
    """Let a Gather of one entry of a Concat take it of the tensor that it comes of; gives what it no longer reads."""
    whole, index = makers.get(node.input[0]), constants.get(node.input[1])
    if whole is None or whole.op_type != "Concat" or whole.domain or index is None or index.size != 1:
        return
    if attribute(node, "axis", 0) or attribute(whole, "axis"):
        return
    at = int(index.array().reshape(-1)[0])
    found = _part(whole.input if at >= 0 else whole.input[::-1], at if at >= 0 else -1 - at, makers)
    if found is None:
        return
    part, within = found
    moved = within if at >= 0 else -1 - within
    yield node.input[0]
    node.input[0] = part
    if moved != at:
        yield node.input[1]
        node.input[1] = fresh(node.input[1])
        add(node.input[1], Weight.of(np.full(index.shape, moved, index.dtype)))


def _one_part(node: NodeProto, makers: Makers, constants: Mapping[str, Weight]) -> Iterator[str]:
    """Let a Slice of a Concat that is one of the tensors put together, as a decoder takes the states that a layer of
    the encoder left, be that tensor; gives what it no longer reads."""
    whole, cut = makers.get(node.input[0]), _cut(node, constants)
    if whole is None or whole.op_type != "Concat" or whole.domain or attribute(whole, "axis") or cut is None:
        return
    lengths = [length for name in whole.input if (length := _length(name, makers))]
    if len(lengths) < len(whole.input):
        return
    first, last, _ = cut.indices(sum(lengths))
    for part, length, end in zip(whole.input, lengths, accumulate(lengths), strict=True):
        if (first, last) == (end - length, end):
            yield from [*node.input]
            node.CopyFrom(helper.make_node("Identity", [part], node.output, node.name))


def _cut(node: NodeProto, constants: Mapping[str, Weight]) -> slice | None:
    """What a Slice takes along axis 0; None where that is not known, or where it takes parts of other axes."""
    found = []
    for name, tensor in zip_longest(("starts", "ends", "axes", "steps"), node.input[1:], fillvalue=""):
        if tensor and tensor not in constants:
            return None
        found.append(constants[tensor].array().reshape(-1).tolist() if tensor else [*attribute(node, name, ())])
    starts, ends, axes, steps = found
    return slice(*starts, *ends) if len(starts) == 1 and axes in ([], [0]) and steps in ([], [1]) else None


def _part(parts: Sequence[str], at: int, makers: Makers) -> tuple[str, int] | None:
    """Which of the tensors that follow one another along axis 0 the entry `at` lies in, and where in it; None where
    the lengths are not known so far."""
    for name in parts:
        length = _length(name, makers)
        if length is None:
            return None
        if at < length:
            return name, at
        at -= length
    return None


def _length(name: str, makers: Makers) -> int | None:
    """Along axis 0, of the last state of a recurrent layer; None of anything else."""
    node = makers.get(name)
    if node is None or node.op_type not in GATES or node.domain or attribute(node, "layout", 0):
        return None
    if name not in node.output[LAST.start : LAST.stop]:
        return None
    return 2 if attribute(node, "direction", "forward") == "bidirectional" else 1
