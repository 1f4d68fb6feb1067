"""Run the operators' rules over the graph, in order: label blocks of every tensor, couplings, reductions, edits.

This module knows the graph and its parameters but no operator: rules (in `rules/`) see one `Op` and speak of axes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.errors import RuleFailed
from onnxprune.model import Model, Scope, bodies, defined, every_node, needs, scopes, traits
from onnxprune.shapes import Shapes, misfit
from onnxprune.trace import resizing
from onnxprune.trace.births import Axes, Demands, born
from onnxprune.trace.caches import caches
from onnxprune.trace.cells import Cells
from onnxprune.trace.labels import Block, Ids, Labels, Mask, Reason
from onnxprune.trace.residual import Branch, caches_of

if TYPE_CHECKING:
    from onnxprune.trace.editor import Editor
    from onnxprune.trace.op import Op

Edit = Callable[["Editor"], None]
Use = tuple[int, int]
"""(node index, input index) of a parameter."""

LABELLED = {
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8,
    TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4, TensorProto.INT32, TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2FNUZ, TensorProto.INT16,
    TensorProto.UINT16,
}  # fmt: skip
"""Element types of the parameters whose positions get ids."""
MAX_BLOCK_IDS = 1 << 22
"""Positions that one block may have, be it along an axis that an operator makes up or along several axes together."""
ReductionKind = Literal["sum", "gather"]
Product = tuple[float, tuple[Ids, ...]]
"""Multiply-accumulates, and the ids that cut them: what is left is the product of the shares that are kept of each."""


@dataclass(frozen=True)
class Reduction:
    """A place where a labelled axis is summed away or feeds statistics: there, and only there, removed units vanish.

    sum: input `operand` is to be masked along `block`, with `fill` (a tensor's name) in place of zero.
    gather: the operator sees only kept positions: of inputs `ins`, and of outputs `outs` given back."""

    node: int
    kind: ReductionKind
    operand: int = 0
    block: Block | None = None
    fill: str = ""
    ins: tuple[tuple[int, Block], ...] = ()
    outs: tuple[tuple[int, Block], ...] = ()


@dataclass(frozen=True)
class Slice:
    """Where ids live in a parameter. `uses`: those that it stands for; () = all of them. cells: what `blocks` count,
    where that is not the elements of the parameter."""

    parameter: str
    key: Hashable
    blocks: tuple[Block, ...]
    uses: tuple[Use, ...]
    cells: Cells | None = None


@dataclass
class Trace:
    """Everything that tracing finds out about one graph.

    structures: axes of parameters that are born as one block, by key; `demands`: those that this trace asks for.
    aliases, retraced, original: of a rewritten graph, what its new parameters were called, that it is one, and the keys
    of the parameters before.
    blocks: of tensors, by name; slices: of parameters, by key; owned: of uses that know better than the parameter.
    edits: by node, what to change in it; macs: by node, its multiply-accumulates, a product of sizes each.
    passed: nodes that another one's rule has dealt with; fixed: tensors that depend on no input. repeats: how often
    the nodes of the graph that is being traced run, as far as that is known. branches: the residual branches that
    it can do without (see `enter_branches`). whole_blocks: whether what shares a scale goes together, though blocks
    could be made anew of what is left. kv_heads: whether whole heads of caches may go, and the caches of branches
    that go. cached: by input that is a cache of known sizes, the outputs that hold it, too; resized: inputs and
    outputs of which heads may go, the axes of their blocks, and the axis of heads."""

    model: Model
    shapes: Shapes
    labels: Labels
    structures: dict[Hashable, list[Axes]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    retraced: bool = False
    original: Container[Hashable] = ()
    excluded: Callable[[NodeProto], bool] = lambda node: False
    blocks: dict[str, tuple[Block, ...]] = field(default_factory=dict)
    slices: dict[Hashable, Slice] = field(default_factory=dict)
    reductions: list[Reduction] = field(default_factory=list)
    edits: list[tuple[int, Edit]] = field(default_factory=list)
    macs: dict[int, tuple[Product, ...]] = field(default_factory=dict)
    demands: Demands = field(default_factory=Demands)
    owned: dict[Use, tuple[Block, ...]] = field(default_factory=dict)
    _seen: dict[tuple[str, Use | None], tuple[Block, ...]] = field(default_factory=dict, repr=False)
    passed: set[int] = field(default_factory=set)
    rules: Mapping[str, Callable[[Op], None]] = field(default_factory=dict, repr=False)
    repeats: float = 1.0
    fixed: set[str] = field(default_factory=set)
    branches: tuple[Branch, ...] = ()
    kv_heads: bool = False
    whole_blocks: bool = False
    cached: dict[str, list[str]] = field(default_factory=dict)
    resized: dict[tuple[str, tuple[int, ...]], int] = field(default_factory=dict)

    def dropped(self, kept: Mask) -> list[Branch]:
        """The residual branches that go where only the ids of `kept` stay."""
        return [branch for branch in self.branches if not kept[branch.ids].all()]

    def caches_dropped(self, kept: Mask) -> set[str]:
        """The inputs and outputs of the graph that go with these branches."""
        return caches_of(self.dropped(kept))

    @cached_property
    def caches(self) -> dict[str, list[str]]:
        """Inputs that are caches, with the outputs that hold them."""
        return caches(self.scopes, self.nodes)

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Which nodes, by number, read a tensor (in their bodies, too); an output of a graph is read past the last."""
        out: dict[str, list[int]] = {}
        for scope in self.scopes:
            own = defined(scope.graph)
            for o in scope.graph.output:
                out.setdefault(o.name, []).append(len(self.nodes))
            for index in scope.numbers:
                for name in {n for n in self.reads[index] if scope.owner < 0 or n in own}:
                    out.setdefault(name, []).append(index)
        return out

    @cached_property
    def scopes(self) -> list[Scope]:
        """The main graph and the bodies in it, outer before inner."""
        return scopes(self.model.skeleton.graph)

    @cached_property
    def nodes(self) -> list[NodeProto]:
        """All nodes, those of bodies after those of the main graph: everything that counts nodes counts like this."""
        return every_node(self.model.skeleton.graph)

    @cached_property
    def reads(self) -> list[tuple[str, ...]]:
        """What each node reads, with what its bodies take from outside."""
        return [tuple(needs(node)) for node in self.nodes]

    def scope(self, owner: int, attribute: str) -> Scope | None:
        """A body of a node."""
        return next((s for s in self.scopes if s.owner == owner and s.attribute == attribute), None)

    def rank(self, name: str) -> int | None:
        """Axes of a tensor; None where that is not known."""
        return None if (dims := self.shapes.static(name)) is None else len(dims)

    def run(self, rules: Mapping[str, Callable[[Op], None]]) -> None:
        """Trace the whole graph; `rules`: by operator type. What the graph gives out keeps its shape."""
        self.rules = rules
        resizing.begin(self)
        self.enter(self.scopes[0])
        resizing.end(self)
        for out in self.model.skeleton.graph.output:
            for block in (b for b in self.of(out.name) if (out.name, b.axes) not in self.resized):
                self.labels.freeze(block.ids, Reason("output", out.name, "an output of the model keeps its shape"))

    def enter(self, scope: Scope, times: float = 1.0) -> None:
        """Trace the nodes of a graph, each once. `times`: how often they run whenever their owner does, as far as
        that is known."""
        around, self.repeats = self.repeats, self.repeats * times
        for index in scope.numbers:
            self._node(index)
        self.repeats = around

    def _node(self, index: int) -> None:
        from onnxprune.trace.group_norm import group_norm
        from onnxprune.trace.op import Op
        from onnxprune.trace.shuffle import shuffle

        node, normed = self.nodes[index], len(self.labels.normed)
        if traits.makes_nothing_up(node) and not any(map(self._may_change, node.input)):
            self._note_fixed(index)
            return
        op = Op(self, index, node)
        if index in self.passed or shuffle(op) or group_norm(op):
            return
        rule = self.rules.get(op.type)
        if rule is not None:
            self._apply(rule, op)
        elif bodies(node):
            op.freeze("its body sees the whole tensor")
        else:
            op.freeze("no rule for this operator")
        if self.excluded(node):
            op.freeze("excluded by the user", outputs=True)
        if self._note_fixed(index):
            del self.labels.normed[normed:]  # a weight that is standardised is no stream that is normalised

    def _may_change(self, name: str) -> bool:
        """Whether a tensor has blocks, or is a parameter that would get some."""
        weight = self.model.weights.get(name)
        return bool(self.blocks.get(name)) if weight is None else weight.onnx_type in LABELLED

    def _note_fixed(self, index: int) -> bool:
        """Whether a node depends on no input of the graph."""
        if found := all(i in self.fixed or i in self.model.weights for i in self.reads[index]):
            self.fixed.update(self.nodes[index].output)
        return found

    def _apply(self, rule: Callable[[Op], None], op: Op) -> None:
        """A node that its rule does not take is held with all that reaches it, and with what the rule made until then.

        A rule that fails otherwise took something for granted that this node lacks: it is told to whoever tests it, and
        whoever uses it loses no more than what meets the node."""
        from onnxprune.trace.op import Misfit

        edits, reductions, first = len(self.edits), len(self.reductions), self.labels.n
        try:
            if text := misfit(op.node, op.opset):
                raise Misfit(text)
            rule(op)
            op.overlooked()
            return
        except Misfit as error:
            text = str(error)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            warnings.warn(RuleFailed(f"{op.type} '{op.node.name}': {what}"), stacklevel=2)
            text = f"does not fit its operator ({what})"
        del self.edits[edits:], self.reductions[reductions:]
        op.freeze(text, outputs=True)
        self.labels.misfit(np.arange(first, self.labels.n), op.why(text))

    def of(self, name: str, use: Use | None = None) -> tuple[Block, ...]:
        """The blocks of a tensor; of a parameter, as seen by the use (node index, input index); of a sequence, those of
        all that it holds."""
        if use in self.owned:
            return self.owned[use]
        if name in self.blocks:
            return self.blocks[name]
        if name not in self.model.weights:
            return tuple(b for element in self.shapes.elements(name) or () for b in self.of(element))
        if (name, use) not in self._seen:
            self._seen[name, use] = self._of_parameter(name, use)
        return self._seen[name, use]

    def _of_parameter(self, name: str, use: Use | None) -> tuple[Block, ...]:
        """Exporters share equal vectors between unrelated layers, so that each use of a vector has ids of its own; a
        shared matrix is tied on purpose."""
        weight = self.model.weights[name]
        if weight.onnx_type not in LABELLED:
            return ()
        root = self.aliases.get(name, name)
        vector = sum(n > 1 for n in weight.shape) <= 1
        if vector and use is None:
            return ()  # as an output of the graph, or where only its size is asked for: nobody's own
        if self.retraced:  # by what the parameter was before it was sliced
            vector = (root,) not in self.original
        apart = use if vector else None
        key: Hashable = (root, self.nodes[apart[0]].name, apart[1]) if apart else (root,)
        if key not in self.slices:
            self.slices[key] = Slice(name, key, self._born(key, weight.shape), (apart,) if apart else ())
        return self.slices[key].blocks

    def _born(self, key: Hashable, dims: Sequence[int]) -> tuple[Block, ...]:
        return born(self.labels, key, dims, self.structures.get(key, ()), self.retraced)

    def born(self, key: Hashable, dims: Sequence[int | None]) -> tuple[Block, ...]:
        """Blocks of a tensor whose axes the operator makes up (zeros of a given shape): static ones may shrink, but not
        one that is longer than anything a layer has."""
        return self._born(key, [1 if n is None or n > MAX_BLOCK_IDS else n for n in dims])

    def born_outside(self, name: str, dims: Sequence[int | None]) -> tuple[Block, ...]:
        """Blocks of an input of the graph; none along axes that have no number here."""
        typed = self.shapes.dtype(name) in LABELLED
        return self._born((name,), [1 if n is None else n for n in dims]) if typed else ()

    def own(self, use: Use, blocks: tuple[Block, ...], cells: Cells | None = None) -> None:
        """Give one use of a parameter its blocks, where the operator knows better than one birth per axis."""
        name = (node := self.nodes[use[0]]).input[use[1]]
        key = (self.aliases.get(name, name), node.name, use[1], "own")
        self.slices[key] = Slice(name, key, blocks, (use,), cells)
        self.owned[use] = blocks if cells is None else ()

    def demand(self, parts: Sequence[tuple[Block, int | None]], merged: bool = False) -> None:
        """Ask that axes of one parameter be born as one joint block when the trace is run again; see `Demands.ask`."""
        if prod(block.ids.size if n is None else n for block, n in parts) <= MAX_BLOCK_IDS:
            self.demands.ask(self.labels, parts, merged)
