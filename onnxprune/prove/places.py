"""Where two models are compared beside their outputs: at what goes into operators that level differences or decide, and
at tensors inside the graph, so that every coupling is seen. Knows nodes and tensors, no tolerance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from onnx import helper

from onnxprune.model import FLOATS, Model, bodies, defined, needs, nested
from onnxprune.prove.rounding import decides_from
from onnxprune.trace import Dims, Mask, Trace

SATURATING = {"Sigmoid", "Softmax", "LogSoftmax", "Tanh", "HardSigmoid"}
MOVING = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Slice", "Gather", "Concat",
          "Split", "ReduceMean", "Constant", "Shape", "Equal", "If"}  # fmt: skip
"""What hands values on, averages them, or asks for no more than their sizes."""


def last(trace: Trace) -> dict[str, set[str]]:
    """What each saturating operator at the end of the graph gives, and the graph outputs that it gives it to, be it
    through operators that only move values."""
    users = defaultdict(list)
    for node in trace.model.proto.graph.node:
        for name in {*needs(node)}:
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


COUNT = 128
"""Tensors inside the graph that are compared at most."""
BYTES = 32 << 20
"""And what they may take together."""


@dataclass(frozen=True)
class Places:
    """Where what is kept of a traced model is looked at; each is worked out once."""

    trace: Trace
    kept: Mask

    @cached_property
    def ends(self) -> dict[str, set[str]]:
        return last(self.trace)

    @cached_property
    def taps(self) -> list[str]:
        """What goes into a saturating operator that ends the graph: a sigmoid's 1e-7 says nothing about the rest."""
        trace, kept, given = self.trace, self.kept, self.ends
        outputs = {o.name for o in trace.model.proto.graph.output}
        ends = [n for n in trace.model.proto.graph.node if n.output and n.output[0] in given]
        whole = (n.input[0] for n in ends if all(kept[b.ids].all() for b in trace.of(n.input[0])))
        return [x for x in dict.fromkeys(whole) if x not in outputs and trace.shapes.dtype(x) in FLOATS]

    @cached_property
    def reached(self) -> set[str]:
        """The tensors that depend on a parameter of which something goes."""
        trace, kept = self.trace, self.kept
        cuts = [s for s in trace.slices.values() if any(not kept[b.ids].all() for b in s.blocks)]
        cut, whole = {use for s in cuts for use in s.uses}, {s.parameter for s in cuts if not s.uses}
        found: set[str] = set()
        changed = True
        while changed:  # what a body makes reaches its owner, which comes before it in the count
            changed = False
            for index, node in enumerate(trace.nodes):
                if node.op_type == "Shape" or all(o in found for o in node.output if o):
                    continue
                inside = {n for _, body in bodies(node) for n in (*defined(body), *(o.name for o in body.output))}
                if (
                    any((index, i) in cut for i in range(len(node.input)))
                    or any(name in whole or name in found for name in needs(node))
                    or inside & found
                ):
                    found.update(o for o in node.output if o)
                    changed = True
        return found

    def interior(self, after: Model, sizes: Mapping[str, Dims], most: int = BYTES) -> list[str]:
        """Float tensors that both graphs make and that something that goes has reached: first what levels or decides
        reads, then one for every set of units, then others, spread over the graph; as many as fit in `most` bytes."""
        trace, affected = self.trace, self.reached
        made = {o for n in after.proto.graph.node for o in n.output}
        outputs = {o.name for o in trace.model.proto.graph.output}

        def good(name: str) -> bool:
            return name in made and name in affected and name not in outputs and trace.shapes.dtype(name) in FLOATS

        nodes = trace.model.proto.graph.node
        levelled = [n.input[0] for n in nodes if n.op_type in SATURATING]
        judged = [x for n in nodes for x in decides_from(trace.shapes.dtype, n)]
        first, seen = dict.fromkeys(x for x in (*levelled, *judged) if good(x)), set[tuple[bytes, ...]]()
        rest = [o for n in nodes for o in n.output if o and good(o) and o not in first]
        reduced = {o for r in trace.reductions if r.node < len(nodes) for o in nodes[r.node].output}
        for name in rest:
            blocks = [b for b in trace.blocks.get(name, ()) if not self.kept[b.ids].all()]
            key = tuple(b.ids.tobytes() for b in blocks)
            if blocks and key not in seen:
                seen.add(key)
                first[name] = None
        others = [n for n in rest if n not in first]
        others.sort(key=lambda n: n not in reduced)
        return _fitting(trace, [*first, *others], sizes, most)


def _fitting(trace: Trace, names: Sequence[str], sizes: Mapping[str, Dims], most: int) -> list[str]:
    """The first of the names that fit; where there are more than that, evenly spread ones."""
    if len(names) > COUNT:
        names = [names[k * len(names) // COUNT] for k in range(COUNT)]
    out = []
    for name in names:
        dims = sizes.get(name)
        size = 4 * prod(n or 1 for n in dims) if dims is not None else most // COUNT
        if size <= most:
            most -= size
            out.append(name)
    return out


def with_outputs(types: Callable[[str], int | None], model: Model, names: Sequence[str]) -> Model:
    """The model with more outputs; `types` gives the element type of a tensor, or None."""
    model = model.copy()
    have = {o.name for o in model.proto.graph.output}
    made = (helper.make_tensor_value_info(n, types(n) or 1, None) for n in names if n not in have)
    model.proto.graph.output.extend(made)
    return model
