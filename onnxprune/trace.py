"""Run the operators' rules over the graph, in order: label blocks of every tensor, couplings, reductions, edits.

This module knows the graph and its parameters but no operator: rules (in `rules/`) see one `Op` and speak of axes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from onnxprune.equation import Dims, Equation, Lettered, Operand
from onnxprune.labels import Block, Ids, Labels, Reason
from onnxprune.model import Model
from onnxprune.shapes import Shapes

if TYPE_CHECKING:
    from onnxprune.rewrite import Editor

Edit = Callable[["Editor"], None]
Axes = tuple[tuple[int, int], ...]
"""(axis, number of ids along it), outermost first: how a parameter's axes are born as one block."""

LABELLED = {
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8,
    TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4, TensorProto.INT32, TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2FNUZ, TensorProto.INT16, TensorProto.UINT16,
}  # fmt: skip
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
    excluded: Callable[[NodeProto], bool] = lambda node: False
    blocks: dict[str, tuple[Block, ...]] = field(default_factory=dict)
    slices: dict[Hashable, Slice] = field(default_factory=dict)
    reductions: list[Reduction] = field(default_factory=list)
    edits: list[tuple[int, Edit]] = field(default_factory=list)
    macs: dict[int, tuple[float, tuple[Ids, ...]]] = field(default_factory=dict)
    demands: dict[Hashable, list[Axes]] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    owned: dict[tuple[int, int], tuple[Block, ...]] = field(default_factory=dict)

    def run(self, rules: Mapping[str, Callable[[Op], None]]) -> None:
        graph = self.model.proto.graph
        for index, node in enumerate(graph.node):
            op = Op(self, index, node)
            rule = rules.get(op.type)
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
                op.freeze("its body sees the whole tensor")
            elif rule is None:
                self.unknown[op.type] = self.unknown.get(op.type, 0) + 1
                op.freeze("no rule for this operator")
            else:
                rule(op)
            if self.excluded(node):
                op.freeze("excluded by the user", outputs=True)
        for out in graph.output:
            for block in self.of(out.name):
                self.labels.freeze(block.ids, Reason("output", out.name, "an output of the model keeps its shape"))

    def of(self, name: str, use: tuple[int, int] | None = None) -> tuple[Block, ...]:
        """The blocks of a tensor; of a parameter, as seen by the use (node index, input index)."""
        weight = self.model.weights.get(name)
        if use in self.owned:
            return self.owned[use]
        if weight is None:
            return self.blocks.get(name, ())
        if weight.onnx_type not in LABELLED or name in self.blocks:
            return self.blocks.get(name, ())
        dims = tuple(weight.shape)
        root = self.aliases.get(name, name)
        # Exporters share equal vectors between unrelated layers; a shared matrix is tied on purpose.
        vector = sum(n > 1 for n in dims) <= 1
        node = self.model.proto.graph.node[use[0]].name if use else ""
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
            if int(np.prod(shape)) == 1:
                continue
            ids = self.labels.fresh((key, axes), shape)
            self.labels.rectangle(ids)
            big = [k for k, n in enumerate(ids.shape) if n > 1]
            if big:
                blocks.append(Block(tuple(axes[k][0] for k in big), ids.reshape([ids.shape[k] for k in big])))
        return tuple(blocks)

    def born(self, key: Hashable, dims: Sequence[int | None]) -> tuple[Block, ...]:
        """Blocks of a tensor whose axes the operator makes up (zeros of a given shape): every static axis may shrink."""
        return self._born(key, [1 if n is None else n for n in dims])

    def own(self, use: tuple[int, int], blocks: tuple[Block, ...]) -> None:
        """Give one use of a parameter its blocks, where the operator knows better than one birth per axis."""
        node = self.model.proto.graph.node[use[0]]
        name = node.input[use[1]]
        key = (self.aliases.get(name, name), node.name, use[1], "own")
        self.slices[key] = Slice(name, key, blocks, (use,))
        self.owned[use] = blocks

    def demand(self, parts: Sequence[tuple[Block, int | None]]) -> None:
        """Ask that axes of one parameter be born as one joint block when the trace is run again.

        `parts`: 1-D blocks, outermost first, with the number of ids wanted along it (None = all)."""
        axes: list[tuple[int, int]] = []
        keys = set()
        for block, n in parts:
            born = self.labels.origin(block.ids)
            if isinstance(born, tuple) and isinstance(born[0], tuple) and born[0][0] is None:
                self.demands.setdefault(born[0], []).append(())  # made up by an operator: better without labels
                return
            if not isinstance(born, tuple) or len(born) != 2 or not isinstance(born[1], tuple) or len(born[1]) != 1:
                return
            keys.add(born[0])
            axes.append((born[1][0][0], -1 if n is None else n))
        if len(keys) == 1 and len({a for a, _ in axes}) == len(axes) > 1:
            wanted = self.demands.setdefault(keys.pop(), [])
            taken = {a for other in wanted for a, n in other if n == -1}
            if not taken & {a for a, n in axes if n == -1} and tuple(axes) not in wanted:
                wanted.append(tuple(axes))


@dataclass
class Op:
    """One operator as a rule sees it: its attributes, its tensors' dims, values and blocks, and nothing beyond."""

    trace: Trace
    index: int
    node: NodeProto

    @property
    def type(self) -> str:
        domain = self.node.domain
        return self.node.op_type if domain in ("", "ai.onnx") else f"{domain}::{self.node.op_type}"

    def why(self, text: str = "") -> Reason:
        return Reason(self.type, self.node.name, text)

    def attr(self, name: str, default: Any = None) -> Any:
        for a in self.node.attribute:
            if a.name == name:
                value = onnx.helper.get_attribute_value(a)
                return value.decode() if isinstance(value, bytes) else value
        return default

    @property
    def opset(self) -> int:
        return opset(self.trace.model, self.node.domain)

    def has(self, i: int) -> bool:
        return i < len(self.node.input) and self.node.input[i] != ""

    def gives(self, i: int) -> bool:
        return i < len(self.node.output) and self.node.output[i] != ""

    def rank(self, i: int) -> int | None:
        return self._rank(self.node.input[i])

    def out_rank(self, i: int = 0) -> int | None:
        return self._rank(self.node.output[i])

    def _rank(self, name: str) -> int | None:
        dims = self.trace.shapes.static(name)
        return None if dims is None else len(dims)

    def dims(self, i: int) -> Dims:
        return self.trace.shapes.static(self.node.input[i]) or ()

    def out_dims(self, i: int = 0) -> Dims:
        return self.trace.shapes.static(self.node.output[i]) or ()

    def value(self, i: int) -> np.ndarray | None:
        return self.trace.shapes.value(self.node.input[i]) if self.has(i) else None

    def partial(self, i: int) -> list[int | None] | None:
        """The entries of an integer vector, None where one is known at run time only."""
        value = self.value(i)
        if value is not None:
            return [int(v) for v in np.asarray(value).ravel()]
        known = self.trace.shapes.partial(self.node.input[i]) if self.has(i) else None
        return None if known is None else [int(v) if k else None for v, k in zip(*(x.ravel() for x in known), strict=True)]

    def across(self, blocks: Mapping[int, tuple[Block, ...]], letters: Sequence[str], axis: int) -> tuple[Block, ...]:
        """Couple the given blocks of several inputs that are joined along `axis`; the blocks of the result."""
        operands = [
            Operand(self.node.input[i], ["" if k == axis or n == 1 else s for k, (s, n) in enumerate(zip(letters, self.dims(i), strict=True))],
                    self.dims(i), own)
            for i, own in blocks.items()
        ]  # fmt: skip
        eq = Equation(self.trace.labels, self.why("joined with an axis of fixed size"), operands,
                      demand=lambda o, x, _: self._demand(o, x, {}))  # fmt: skip
        nested = {a for i in blocks for b in self.blocks(i) if axis in b.axes for a in b.axes}
        eq.solve(free={letters[a] for a in nested})
        return eq.output(["" if k == axis else s for k, s in enumerate(letters)])

    def blocks(self, i: int) -> tuple[Block, ...]:
        return self.trace.of(self.node.input[i], (self.index, i)) if self.has(i) else ()

    def labelled(self) -> bool:
        return any(self.blocks(i) for i in range(len(self.node.input)))

    def block_on(self, i: int, axis: int) -> Block | None:
        return next((b for b in self.blocks(i) if axis in b.axes), None)

    def set(self, i: int, blocks: Iterable[Block]) -> None:
        if self.gives(i):
            good = tuple(b for b in blocks if b.ids.any())
            for block in good:
                self.trace.labels.rectangle(block.ids)
            self.trace.blocks[self.node.output[i]] = good

    def couple(self, a: Ids, b: Ids) -> None:
        self.trace.labels.couple(a, b, self.why("two sides of one operator"))

    def freeze(self, text: str, inputs: Iterable[int] | None = None, outputs: bool = False) -> None:
        for i in range(len(self.node.input)) if inputs is None else inputs:
            for block in self.blocks(i):
                self.trace.labels.freeze(block.ids, self.why(text))
        for name in self.node.output if outputs else ():
            for block in self.trace.of(name):
                self.trace.labels.freeze(block.ids, self.why(text))
        for a in self.node.attribute if inputs is None else ():
            for body in ([a.g] if a.HasField("g") else list(a.graphs)):
                for name in captured(body):
                    for block in self.trace.of(name, (self.index, -1)):
                        self.trace.labels.freeze(block.ids, self.why(text))

    def freeze_axis(self, i: int, axis: int, text: str) -> None:
        for block in self.blocks(i):
            if axis in block.axes:
                self.trace.labels.freeze(block.ids, self.why(text))

    def edit(self, change: Edit) -> None:
        """`change` runs on this node when the graph is rewritten."""
        self.trace.edits.append((self.index, change))

    def meet(
        self, i: int, spelled: Sequence[str], other: Sequence[str], blocks: Sequence[Block], text: str,
        letters: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Couple input `i` with given blocks (spelled `other`) letter by letter; nothing else follows from it."""
        sizes = {a: n for b in blocks for a, n in zip(b.axes, b.ids.shape, strict=True)}
        dims = tuple(sizes.get(k, 1) for k in range(len(other)))
        operands = [
            Operand("", ["" if k not in sizes else s for k, s in enumerate(other)], dims, tuple(blocks)),
            Operand(self.node.input[i], spelled, self.dims(i) or (None,) * len(spelled), self.blocks(i)),
        ]
        free = {x for s in other for x in s} ^ {x for s in spelled for x in s}
        demand: Callable[..., None] = lambda o, x, _: self._demand(o, x, {})  # noqa: E731
        Equation(self.trace.labels, self.why(text), operands, letters or {}, demand=demand).solve(free)

    def eq(
        self, ins: Mapping[int, Sequence[str]], outs: Mapping[int, Sequence[str]], *, sizes: Mapping[str, int] | None = None,
        pinned: str = "", stat: str = "", kind: Kind = "sum", fills: Mapping[int, int] | None = None, text: str = "",
        macs: str = "", silent: str = "",
    ) -> Equation:  # fmt: skip
        """State the operator as an equation (see `equation.Equation`), set the outputs' blocks, note reductions.

        ins, outs: the spelling of each input and output by its index. fills: input -> input that holds its zero point.
        macs: every combination of these letters is one multiply-accumulate. silent: pinned letters not worth a report."""
        sizes = sizes or {}
        text = text or "meets an axis of fixed size here"
        operands = [
            Operand(self.node.input[i], spelled, self.dims(i) or (None,) * len(spelled), self.blocks(i))
            for i, spelled in ins.items()
            if self.has(i)
        ]
        used = [i for i in ins if self.has(i)]
        demand: Callable[[Operand, tuple[str, ...], list[Lettered]], None] = lambda o, letters, parts: self._demand(  # noqa: E731
            o, letters, sizes
        )
        eq = Equation(self.trace.labels, self.why(text), operands, sizes, pinned, stat, demand, silent)
        eq.solve()
        for i, spelled in outs.items():
            self.set(i, eq.output(spelled))
        kept = {x for spelled in outs.values() for axis in spelled for x in axis} | set(pinned)
        if stat:
            self._note_gather(ins, outs, stat)
        elif kind == "gather":
            self._note_gather(ins, outs, "".join({x for b in eq.main for x in b.letters} - kept))
        else:
            self._note_sums(eq, used, ins, kept, kind, fills or {})
        if macs:
            self._count(eq, ins, outs, sizes, macs)
        return eq

    def _demand(self, operand: Operand, letters: tuple[str, ...], sizes: Mapping[str, int]) -> None:
        parts: list[tuple[Block, int | None]] = []
        for letter in letters:
            axis = next((k for k, s in enumerate(operand.spelling) if letter in s), None)
            block = next((b for b in operand.blocks if b.axes == (axis,)), None)
            if axis is None or block is None:
                return
            spelled = operand.spelling[axis]
            if len(spelled) > 1 and spelled[0] != letter:
                return
            parts.append((block, sizes[letter] if len(spelled) > 1 else None))
        self.trace.demand(parts)

    def _note_sums(
        self, eq: Equation, used: list[int], ins: Mapping[int, Sequence[str]], kept: set[str], kind: Kind, fills: Mapping[int, int]
    ) -> None:  # fmt: skip
        for main in eq.main:
            gone = {x for x in main.letters if x not in kept}
            # one operand with zeros is enough; the last is the weight where there is one
            for i in reversed(used):
                holders = [b for b in self.blocks(i) if gone & {x for a in b.axes for x in ins[i][a]}]
                covered = {x for b in holders for a in b.axes for x in ins[i][a]}
                if gone and gone <= covered:
                    fill = self.node.input[fills[i]] if i in fills and self.has(fills[i]) else ""
                    for b in holders:
                        self.trace.reductions.append(Reduction(self.index, kind, i, b, fill))
                    break

    def _note_gather(self, ins: Mapping[int, Sequence[str]], outs: Mapping[int, Sequence[str]], letters: str) -> None:
        def on(spelled: Sequence[str], blocks: tuple[Block, ...]) -> list[Block]:
            return [b for b in blocks if any(set(spelled[a]) & set(letters) for a in b.axes)]

        inputs = tuple((i, b) for i, spelled in ins.items() if self.has(i) for b in on(spelled, self.blocks(i)))
        outputs = tuple(
            (i, b) for i, s in outs.items() if self.gives(i) for b in on(s, self.trace.blocks.get(self.node.output[i], ()))
        )
        if inputs:
            self.trace.reductions.append(Reduction(self.index, "gather", ins=inputs, outs=outputs))

    def _count(
        self, eq: Equation, ins: Mapping[int, Sequence[str]], outs: Mapping[int, Sequence[str]], sizes: Mapping[str, int], macs: str
    ) -> None:  # fmt: skip
        """MACs = the product of the letters' sizes (dynamic ones at the first probe's size), with the blocks that shrink it."""
        size = dict(sizes)
        probe = self.trace.shapes.probe[0]
        for names, spellings in ((self.node.input, ins), (self.node.output, outs)):
            for i, spelled in spellings.items():
                dims = probe.get(names[i]) if i < len(names) else None
                for s, n in zip(spelled, dims or (), strict=False):
                    if len(s) == 1 and n is not None:
                        size[s] = max(size.get(s, 1), n)
        blocks = tuple(b.ids for b in eq.main if set(b.letters) <= set(macs))
        self.trace.macs[self.index] = (float(np.prod([float(size.get(x, 1)) for x in macs])), blocks)


def opset(model: Model, domain: str = "") -> int:
    return next((o.version for o in model.proto.opset_import if o.domain in (domain, domain or "ai.onnx")), 1)


def captured(body: onnx.GraphProto) -> set[str]:
    """Names of outer tensors that a subgraph (or one nested in it) reads."""
    own = {x.name for x in body.input} | {x.name for x in body.initializer} | {o for n in body.node for o in n.output}
    names = {i for n in body.node for i in n.input} | {o.name for o in body.output}
    for n in body.node:
        for a in n.attribute:
            for g in ([a.g] if a.HasField("g") else list(a.graphs)):
                names |= captured(g)
    return {x for x in names if x and x not in own}
