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
from onnxprune.model import Model, Scope, bodies, defined, every_node, needs, scopes
from onnxprune.shapes import Shapes, misfit
from onnxprune.trace.labels import Block, Ids, Labels, Reason

if TYPE_CHECKING:
    from onnxprune.trace.editor import Editor
    from onnxprune.trace.op import Op

Edit = Callable[["Editor"], None]
Axes = tuple[tuple[int, int], ...]
"""(axis, number of ids along it), outermost first: how a parameter's axes are born as one block."""

LABELLED = {
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8,
    TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4, TensorProto.INT32, TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2FNUZ, TensorProto.INT16,
    TensorProto.UINT16,
}  # fmt: skip
LARGEST = 1 << 22
"""Positions that one block may have, be it along an axis that an operator makes up or along several axes together."""
Kind = Literal["sum", "gather"]


@dataclass(frozen=True)
class Reduction:
    """A place where a labelled axis is summed away or feeds statistics: there, and only there, removed units vanish.

    sum: input `operand` is to be masked along `block`, with `fill` (a tensor's name) in place of zero.
    gather: the operator sees only kept positions: of inputs `ins`, and of outputs `outs` given back."""

    node: int
    kind: Kind
    operand: int = 0
    block: Block | None = None
    fill: str = ""
    ins: tuple[tuple[int, Block], ...] = ()
    outs: tuple[tuple[int, Block], ...] = ()


@dataclass(frozen=True)
class Slice:
    """Where ids live in a parameter. `uses`: (node index, input index) of the uses it stands for; () = all of them."""

    parameter: str
    key: Hashable
    blocks: tuple[Block, ...]
    uses: tuple[tuple[int, int], ...]


@dataclass
class Trace:
    """Everything that tracing found out about one graph; see `trace()`."""

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
    macs: dict[int, tuple[float, tuple[Ids, ...]]] = field(default_factory=dict)
    demands: dict[Hashable, list[Axes]] = field(default_factory=dict)
    owned: dict[tuple[int, int], tuple[Block, ...]] = field(default_factory=dict)
    _seen: dict[tuple[str, tuple[int, int] | None], tuple[Block, ...]] = field(default_factory=dict, repr=False)
    passed: set[int] = field(default_factory=set)
    rules: Mapping[str, Callable[[Op], None]] = field(default_factory=dict, repr=False)
    times: float = 1.0
    fixed: set[str] = field(default_factory=set)

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Which nodes, by number, read a tensor (in their bodies, too); an output of a graph is read past the last."""
        out: dict[str, list[int]] = {}
        for scope in self.scopes:
            own = defined(scope.graph)
            for o in scope.graph.output:
                out.setdefault(o.name, []).append(len(self.nodes))
            for index, node in zip(scope.numbers, scope.graph.node, strict=True):
                for name in set(needs(node)):
                    if scope.owner < 0 or name in own:
                        out.setdefault(name, []).append(index)
        return out

    @cached_property
    def scopes(self) -> list[Scope]:
        return scopes(self.model.proto.graph)

    @cached_property
    def nodes(self) -> list[NodeProto]:
        """All nodes, those of bodies after those of the main graph: everything that counts nodes counts like this."""
        return every_node(self.model.proto.graph)

    def scope(self, owner: int, attribute: str) -> Scope | None:
        """A body of a node."""
        return next((s for s in self.scopes if s.owner == owner and s.attribute == attribute), None)

    def rank(self, name: str) -> int | None:
        """Axes of a tensor; None where that is not known."""
        dims = self.shapes.static(name)
        return None if dims is None else len(dims)

    def run(self, rules: Mapping[str, Callable[[Op], None]]) -> None:
        self.rules = rules
        self.enter(self.scopes[0])
        for out in self.model.proto.graph.output:
            for block in self.of(out.name):
                self.labels.freeze(block.ids, Reason("output", out.name, "an output of the model keeps its shape"))

    def enter(self, scope: Scope, times: float = 1.0) -> None:
        """Trace the nodes of a graph, each once. `times`: how often they run whenever their owner does, as far as
        that is known."""
        from onnxprune.trace.op import Op
        from onnxprune.trace.shuffle import shuffle

        around, self.times = self.times, self.times * times
        for index in scope.numbers:
            node = self.nodes[index]
            op = Op(self, index, node)
            if index in self.passed or shuffle(op):
                continue
            normed = len(self.labels.normed)
            rule = self.rules.get(op.type)
            if rule is not None:
                self._apply(rule, op)
            elif next(bodies(node), None) is not None:
                op.freeze("its body sees the whole tensor")
            else:
                op.freeze("no rule for this operator")
            if self.excluded(node):
                op.freeze("excluded by the user", outputs=True)
            if all(i in self.fixed or i in self.model.weights for i in needs(node)):
                self.fixed.update(node.output)
                del self.labels.normed[normed:]  # a weight that is standardised is no stream that is normalised
        self.times = around

    def _apply(self, rule: Callable[[Op], None], op: Op) -> None:
        """A node that its rule does not take is held with all that reaches it, and with what the rule made until then.

        A rule that fails otherwise took something for granted that this node lacks: it is told to whoever tests it, and
        whoever uses it loses no more than what meets the node."""
        from onnxprune.trace.op import Misfit

        edits, reductions, born = len(self.edits), len(self.reductions), self.labels.n
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
        self.labels.misfit(np.arange(born, self.labels.n), op.why(text))

    def of(self, name: str, use: tuple[int, int] | None = None) -> tuple[Block, ...]:
        """The blocks of a tensor; of a parameter, as seen by the use (node index, input index)."""
        if use in self.owned:
            return self.owned[use]
        if name in self.blocks:
            return self.blocks[name]
        if name not in self.model.weights:
            return ()
        if (name, use) not in self._seen:
            self._seen[name, use] = self._of_parameter(name, use)
        return self._seen[name, use]

    def _of_parameter(self, name: str, use: tuple[int, int] | None) -> tuple[Block, ...]:
        weight = self.model.weights[name]
        if weight.onnx_type not in LABELLED:
            return ()
        dims = weight.shape
        root = self.aliases.get(name, name)
        # Exporters share equal vectors between unrelated layers; a shared matrix is tied on purpose.
        vector = sum(n > 1 for n in dims) <= 1
        if vector and use is None:
            return ()  # as an output of the graph, or where only its size is asked for: nobody's own
        node = self.nodes[use[0]].name if use else ""
        if self.retraced:  # by what the parameter was before it was sliced
            vector = (root,) not in self.original
        key: Hashable = (root, node, use[1]) if vector and use else (root,)
        if key not in self.slices:
            self.slices[key] = Slice(name, key, self._born(key, dims), (use,) if vector and use else ())
        return self.slices[key].blocks

    def _born(self, key: Hashable, dims: Sequence[int]) -> tuple[Block, ...]:
        joint = self.structures.get(key, [])
        if () in joint:
            return ()
        covered = {axis for axes in joint for axis, n in axes if n == -1}
        specs = [*joint, *(((axis, -1),) for axis in range(len(dims)) if axis not in covered)]
        blocks = []
        for axes in specs:
            shape = [dims[axis] if n == -1 else n for axis, n in axes]
            if self.retraced and len(axes) > 1:
                shape = [dims[axis] if n == -1 else -1 for axis, n in axes]
            if prod(shape) == 1:
                continue
            ids = self.labels.fresh((key, axes), shape)
            self.labels.rectangle(ids)
            big = [k for k, n in enumerate(ids.shape) if n > 1]
            if big:
                coarse = axes[big[0]][1] != -1
                blocks.append(Block(tuple(axes[k][0] for k in big), ids.reshape([ids.shape[k] for k in big]), coarse))
        return tuple(blocks)

    def born(self, key: Hashable, dims: Sequence[int | None]) -> tuple[Block, ...]:
        """Blocks of a tensor whose axes the operator makes up (zeros of a given shape): static ones may shrink, but not
        one that is longer than anything a layer has."""
        return self._born(key, [1 if n is None or n > LARGEST else n for n in dims])

    def own(self, use: tuple[int, int], blocks: tuple[Block, ...]) -> None:
        """Give one use of a parameter its blocks, where the operator knows better than one birth per axis."""
        node = self.nodes[use[0]]
        name = node.input[use[1]]
        key = (self.aliases.get(name, name), node.name, use[1], "own")
        self.slices[key] = Slice(name, key, blocks, (use,))
        self.owned[use] = blocks

    def demand(self, parts: Sequence[tuple[Block, int | None]], merged: bool = False) -> None:
        """Ask that axes of one parameter be born as one joint block when the trace is run again.

        `parts`: 1-D blocks, outermost first, with the number of ids wanted along it (None = all)."""
        if prod(block.ids.size if n is None else n for block, n in parts) > LARGEST:
            return
        origins = [self.labels.origin(block.ids) for block, _ in parts]
        births = [o for o in origins if isinstance(o, tuple) and len(o) == 2 and isinstance(o[1], tuple)]
        keys = {born[0] for born in births}
        if len(keys) > 1 or len(births) < len(parts):
            for key in keys:
                if merged and isinstance(key, tuple) and key[0] is None:  # made up: better without labels
                    self.demands.setdefault(key, []).append(())
            if not merged and len(parts) == 2:
                self._nest(parts[0][0], parts[1][0], origins[1])
            return
        if not keys or any(len(born[1]) != 1 for born in births):
            return
        axes = tuple((born[1][0][0], -1 if n is None else n) for born, (_, n) in zip(births, parts, strict=True))
        if len({a for a, _ in axes}) == len(axes) > 1:
            wanted = self.demands.setdefault(keys.pop(), [])
            taken = {a for other in wanted for a, n in other if n == -1}
            if not taken & {a for a, n in axes if n == -1} and axes not in wanted:
                wanted.append(axes)

    def _nest(self, outer: Block, inner: Block, origin: Hashable) -> None:
        """Ask that an axis that an operator made up be born inside another one: it may differ from row to row."""
        if isinstance(origin, tuple) and isinstance(origin[0], tuple) and origin[0][0] is None:
            axes = ((outer.axes[0], -1), (inner.axes[0], -1))
            if origin[1] == axes[1:] and () not in (wanted := self.demands.setdefault(origin[0], [])):
                wanted.append(axes)
