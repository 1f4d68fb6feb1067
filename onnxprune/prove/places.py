"""Where two models are compared beside their outputs: at what goes into operators that level differences or decide, and
at tensors inside the graph, so that every coupling is seen. Knows nodes and tensors, no tolerance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from onnx import NodeProto

from onnxprune.model import FLOATS, Model, bodies, defined, needs, nested, traits
from onnxprune.prove.outputs import Types
from onnxprune.prove.rounding import decides_from
from onnxprune.trace import Dims, Mask, Trace

MAX_TENSORS = 128
"""Tensors inside the graph that are compared at most."""
MAX_BYTES = 32 << 20
"""And what they may take together."""


def saturating_ends(trace: Trace) -> dict[str, set[str]]:
    """What each saturating operator at the end of the graph gives, and the graph outputs that it gives it to, be it
    through operators that only move values."""
    users = defaultdict(list)
    for node in trace.model.skeleton.graph.node:
        for name in {*needs(node)}:
            users[name].append((node, all(n.op_type in traits.AFTER_SATURATING for n in (node, *nested(node)))))
    outputs = {o.name for o in trace.model.skeleton.graph.output}
    found: dict[str, set[str]] = {}
    for node in trace.model.skeleton.graph.node:
        if node.op_type in traits.SATURATING:
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


@dataclass(frozen=True)
class Places:
    """Where what is kept of a traced model is looked at; each is worked out once."""

    trace: Trace
    kept: Mask

    @cached_property
    def ends(self) -> dict[str, set[str]]:
        """As `saturating_ends`."""
        return saturating_ends(self.trace)

    @cached_property
    def taps(self) -> list[str]:
        """What goes into a saturating operator that ends the graph: a sigmoid's 1e-7 says nothing about the rest."""
        trace, kept, given = self.trace, self.kept, self.ends
        outputs = {o.name for o in trace.model.skeleton.graph.output}
        ends = [n for n in trace.model.skeleton.graph.node if n.output and n.output[0] in given]
        whole = (n.input[0] for n in ends if all(kept[b.ids].all() for b in trace.of(n.input[0])))
        return [x for x in dict.fromkeys(whole) if x not in outputs and trace.shapes.dtype(x) in FLOATS]

    @cached_property
    def reached(self) -> set[str]:
        """The tensors that depend on a parameter of which something goes."""
        readers = self._readers_of_what_is_cut
        flows = [
            (index in readers, {*needs(node), *_made_inside(node)}, [o for o in node.output if o])
            for index, node in enumerate(self.trace.nodes) if node.op_type != "Shape"
        ]  # fmt: skip
        found: set[str] = set()
        before = -1
        while len(found) > before:  # again: what a body makes reaches its owner, which comes before it in the count
            before = len(found)
            for cut, reads, outputs in flows:
                if cut or not found.isdisjoint(reads):
                    found.update(outputs)
        return found

    @cached_property
    def _readers_of_what_is_cut(self) -> set[int]:
        """The nodes that read a parameter of which something goes, or a branch that goes, by number."""
        trace, kept = self.trace, self.kept
        cuts = [s for s in trace.slices.values() if any(not kept[b.ids].all() for b in s.blocks)]
        uses, everywhere = {use for s in cuts for use in s.uses}, {s.parameter for s in cuts if not s.uses}
        by_use = {index for index, i in uses if i < len(trace.nodes[index].input)}
        by_use |= {branch.node for branch in trace.dropped(kept)}
        return by_use | {k for k, node in enumerate(trace.nodes) if not everywhere.isdisjoint(needs(node))}

    def interior(
        self, after: Model, sizes: Mapping[str, Dims], types: Types | None = None, most: int = MAX_BYTES
    ) -> list[str]:
        """Float tensors that both graphs make and that something that goes has reached: first what levels or decides
        reads, then one for every set of units, then others, spread over the graph; as many as fit in `most` bytes.
        types: of the tensors as they are compared, where they are not those of the trace."""
        nodes, comparable = (
            self.trace.model.skeleton.graph.node,
            self._comparable(after, types or self.trace.shapes.dtype),
        )
        telling = dict.fromkeys(name for name in self._levelled_or_decided_from() if name in comparable)
        rest = [o for n in nodes for o in n.output if o in comparable and o not in telling]
        of_units = self._one_for_every_set_of_units(rest)
        reduced = {o for r in self.trace.reductions if r.node < len(nodes) for o in nodes[r.node].output}
        others = sorted((name for name in rest if name not in of_units), key=lambda name: name not in reduced)
        return _fitting([*telling, *of_units, *others], sizes, most)

    def _levelled_or_decided_from(self) -> list[str]:
        nodes = self.trace.model.skeleton.graph.node
        levelled = [n.input[0] for n in nodes if n.op_type in traits.SATURATING]
        return [*levelled, *(x for n in nodes for x in decides_from(self.trace.shapes.dtype, n))]

    def _comparable(self, after: Model, types: Types) -> set[str]:
        """The float tensors inside both graphs that something that goes has reached."""
        made = {o for n in after.skeleton.graph.node for o in n.output}
        inside = (made & self.reached) - {o.name for o in self.trace.model.skeleton.graph.output}
        return {name for name in inside if types(name) in FLOATS}

    def _one_for_every_set_of_units(self, names: Sequence[str]) -> dict[str, None]:
        """The first of the names with each set of units of which some go, in order."""
        found: dict[tuple[bytes, ...], str] = {}
        for name in names:
            blocks = [b for b in self.trace.blocks.get(name, ()) if not self.kept[b.ids].all()]
            if blocks:
                found.setdefault(tuple(b.ids.tobytes() for b in blocks), name)
        return dict.fromkeys(found.values())


def _made_inside(node: NodeProto) -> set[str]:
    """Names of the tensors in the bodies of a node, and of what these give."""
    return {name for _, body in bodies(node) for name in (*defined(body), *(o.name for o in body.output))}


def _fitting(names: Sequence[str], sizes: Mapping[str, Dims], most: int) -> list[str]:
    """The first of the names that fit; where there are more than that, evenly spread ones."""
    if len(names) > MAX_TENSORS:
        names = [names[k * len(names) // MAX_TENSORS] for k in range(MAX_TENSORS)]
    out = []
    for name in names:
        dims = sizes.get(name)
        size = 4 * prod(n or 1 for n in dims) if dims is not None else most // MAX_TENSORS
        if size <= most:
            most -= size
            out.append(name)
    return out
