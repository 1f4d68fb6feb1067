"""One operator as a rule sees it: its attributes, its tensors' dims, values and blocks, and nothing beyond.

Rules state most operators as an equation (`Op.eq`); movements set the blocks of their outputs (`Op.set`). Knows no
other node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from onnxprune.model import bodies, captured, opset
from onnxprune.shapes import Dim
from onnxprune.trace.equation import Dims, Equation, Operand
from onnxprune.trace.labels import Block, Ids, Reason
from onnxprune.trace.tracing import LARGEST, Edit, Kind, Reduction, Trace


class Unfit(Exception):
    """A node that does not fit its operator, such as an axis that its input has not: why all that meets it stays."""


@dataclass
class Op:
    """One operator as a rule sees it: its attributes, its tensors' dims, values and blocks, and nothing beyond."""

    trace: Trace
    index: int
    node: NodeProto

    def __post_init__(self) -> None:
        self.inputs, self.outputs = tuple(self.node.input), tuple(self.node.output)
        kind, domain = self.node.op_type, self.node.domain
        self.type = kind if domain in ("", "ai.onnx") else f"{domain}::{kind}"
        self.seen: set[int] = set()

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
        return i < len(self.inputs) and self.inputs[i] != ""

    def gives(self, i: int) -> bool:
        return i < len(self.outputs) and self.outputs[i] != ""

    def rank(self, i: int) -> int | None:
        return self._rank(self.inputs[i])

    def out_rank(self, i: int = 0) -> int | None:
        return self._rank(self.outputs[i])

    def _rank(self, name: str) -> int | None:
        dims = self.trace.shapes.static(name)
        return None if dims is None else len(dims)

    def dims(self, i: int) -> Dims:
        return (self.trace.shapes.static(self.inputs[i]) or ()) if self.has(i) else ()

    def out_dims(self, i: int = 0) -> Dims:
        return self.trace.shapes.static(self.outputs[i]) or ()

    def sizes(self, i: int) -> tuple[Dim, ...] | None:
        """The dims of an input, open ones as expressions; None where its rank is not known."""
        return self.trace.shapes.sizes(self.inputs[i])

    def out_sizes(self, i: int = 0) -> tuple[Dim, ...] | None:
        return self.trace.shapes.sizes(self.outputs[i])

    def value(self, i: int) -> np.ndarray | None:
        return self.trace.shapes.value(self.inputs[i]) if self.has(i) else None

    def table(self, i: int) -> np.ndarray | None:
        """The value of an input, be it a parameter of many elements."""
        value, weight = self.value(i), self.trace.model.weights.get(self.inputs[i])
        return weight.array() if value is None and weight is not None else value

    def partial(self, i: int) -> list[int | None] | None:
        """The entries of an integer vector, None where one is known at run time only."""
        value = self.value(i)
        if value is not None:
            return [int(v) for v in np.asarray(value).ravel()]
        known = self.trace.shapes.partial(self.inputs[i]) if self.has(i) else None
        return (
            None if known is None else [int(v) if k else None for v, k in zip(*(x.ravel() for x in known), strict=True)]
        )

    def across(self, blocks: Mapping[int, tuple[Block, ...]], letters: Sequence[str], axis: int) -> tuple[Block, ...]:
        """Couple the given blocks of several inputs that are joined along `axis`; the blocks of the result."""
        operands = [
            Operand(self.inputs[i], [
                "" if k == axis or n == 1 else s for k, (s, n) in enumerate(zip(letters, self.dims(i), strict=True))
            ], self.dims(i), own) for i, own in blocks.items()
        ]  # fmt: skip
        why = self.why("joined with an axis of fixed size")
        eq = Equation(self.trace.labels, why, operands, demand=self.trace.demand)
        nested = {a for i in blocks for b in self.blocks(i) if axis in b.axes for a in b.axes}
        eq.solve(free={letters[a] for a in nested})
        return eq.output(["" if k == axis else s for k, s in enumerate(letters)])

    def blocks(self, i: int) -> tuple[Block, ...]:
        self.seen.add(i)
        return self.trace.of(self.inputs[i], (self.index, i)) if self.has(i) else ()

    def readers(self, i: int) -> set[str]:
        """The types of the operators that read an output; "" where the model hands it out."""
        nodes = self.trace.nodes
        return {nodes[k].op_type if k < len(nodes) else "" for k in self.trace.readers.get(self.outputs[i], ())}

    def labelled(self) -> bool:
        return any(self.blocks(i) for i in range(len(self.inputs)))

    def block_on(self, i: int, axis: int) -> Block | None:
        return next((b for b in self.blocks(i) if axis in b.axes), None)

    def enter(self, name: str, blocks: Iterable[Block]) -> None:
        """Give an input of a body its blocks."""
        self._give(name, blocks)

    def set(self, i: int, blocks: Iterable[Block]) -> None:
        if self.gives(i):
            self._give(self.outputs[i], blocks)

    def _give(self, name: str, blocks: Iterable[Block]) -> None:
        good = tuple(b for b in blocks if b.ids.any() and not self._too_large(b))
        rank = self._rank(name)
        if rank is not None and any(axis >= rank for b in good for axis in b.axes):
            raise Unfit("its output has fewer axes than its inputs make")
        for block in good:
            self.trace.labels.rectangle(block.ids)
        self.trace.blocks[name] = good

    def _too_large(self, block: Block) -> bool:
        """Ids of a block that is no layer's any more stay: every step on would copy it."""
        if block.ids.size <= LARGEST:
            return False
        held = np.zeros(self.trace.labels.n, bool)
        held[block.ids] = True
        self.trace.labels.freeze(np.flatnonzero(held), self.why(f"over {LARGEST:,} positions are not followed"))
        return True

    def couple(self, a: Ids, b: Ids) -> None:
        self.trace.labels.couple(a, b, self.why("two sides of one operator"))

    def freeze(self, text: str, inputs: Iterable[int] | None = None, outputs: bool = False) -> None:
        for i in range(len(self.inputs)) if inputs is None else inputs:
            for block in self.blocks(i):
                self.trace.labels.freeze(block.ids, self.why(text))
        for name in self.outputs if outputs else ():
            for block in self.trace.of(name):
                self.trace.labels.freeze(block.ids, self.why(text))
        for _, body in bodies(self.node) if inputs is None else ():
            for name in sorted(captured(body)):
                for block in self.trace.of(name, (self.index, -1)):
                    self.trace.labels.freeze(block.ids, self.why(text))

    def freeze_axis(self, i: int, axis: int, text: str) -> None:
        for block in self.blocks(i):
            if axis in block.axes:
                self.trace.labels.freeze(block.ids, self.why(text))

    def overlooked(self) -> None:
        """What comes in labelled where the rule did not look stays: it says nothing of that input."""
        for i in range(len(self.inputs)):
            if i not in self.seen and self.has(i) and self.trace.blocks.get(self.inputs[i]):
                self.freeze("comes in where only fixed sizes do", inputs=(i,))

    def edit(self, change: Edit) -> None:
        """`change` runs on this node when the graph is rewritten."""
        self.trace.edits.append((self.index, change))

    def meet(
        self, i: int, spelled: Sequence[str], other: Sequence[str], blocks: Sequence[Block], text: str,
        letters: Mapping[str, int] | None = None, pinned: str = "",
    ) -> None:  # fmt: skip
        """Couple input `i` with given blocks (spelled `other`) letter by letter; nothing else follows from it."""
        sizes = {a: n for b in blocks for a, n in zip(b.axes, b.ids.shape, strict=True)}
        dims = tuple(sizes.get(k, 1) for k in range(len(other)))
        operands = [
            Operand("", ["" if k not in sizes else s for k, s in enumerate(other)], dims, tuple(blocks)),
            Operand(self.inputs[i], spelled, self.dims(i) or (None,) * len(spelled), self.blocks(i)),
        ]
        free = {x for s in other for x in s} ^ {x for s in spelled for x in s}
        Equation(self.trace.labels, self.why(text), operands, letters or {}, pinned, demand=self.trace.demand).solve(
            free
        )

    def eq(
        self, ins: Mapping[int, Sequence[str]], outs: Mapping[int, Sequence[str]], *,
        sizes: Mapping[str, int] | None = None, pinned: str = "", stat: str = "", kind: Kind = "sum",
        fills: Mapping[int, int] | None = None, text: str = "", macs: str = "", silent: str = "",
        summed: Mapping[str, int] | None = None,
    ) -> Equation:  # fmt: skip
        """State the operator as an equation (see `equation.Equation`), set the outputs' blocks, note reductions.

        ins, outs: the spelling of each input and output by its index. fills: input -> input that holds its zero point.
        macs: every combination of these letters is one multiply-accumulate. silent: pinned letters not to report.
        summed: letters that are summed although an output has them, too, and the input that is to have zeros there."""
        sizes = sizes or {}
        text = text or "meets an axis of fixed size here"
        operands = [
            Operand(self.inputs[i], spelled, self.dims(i) or (None,) * len(spelled), self.blocks(i))
            for i, spelled in ins.items()
            if self.has(i)
        ]
        for o in operands:
            if len(o.dims) != len(o.spelling):
                raise Unfit(f"it takes {len(o.spelling)} axes, not the {len(o.dims)} that it is given")
        used = [i for i in ins if self.has(i)]
        eq = Equation(self.trace.labels, self.why(text), operands, sizes, pinned, stat, self.trace.demand, silent)
        eq.solve()
        for i, spelled in outs.items():
            if self.gives(i):  # to ask for the blocks of an output ties what it has not
                self.set(i, eq.output(spelled))
        first = next((spelled for i, spelled in outs.items() if self.gives(i)), [])  # another may hand on what it sums
        kept = {x for axis in first for x in axis} | set(pinned)
        if stat or kind == "gather":
            seen = set(stat) or {x for b in eq.main for x in b.letters} - kept
            nested = {x for b in eq.main if seen & set(b.letters) for x in b.letters}
            self._note_gather(ins, outs, "".join(nested))
        else:
            self._note_sums(eq, used, ins, kept, kind, fills or {}, summed or {})
        if macs:
            self._count(eq, ins, outs, sizes, macs)
        return eq

    def _note_sums(
        self, eq: Equation, used: list[int], ins: Mapping[int, Sequence[str]], kept: Set[str], kind: Kind,
        fills: Mapping[int, int], summed: Mapping[str, int],
    ) -> None:  # fmt: skip
        for main in eq.main:
            gone = {x for x in main.letters if x not in kept or x in summed}
            named = [summed[x] for x in main.letters if x in summed]
            # one operand with zeros is enough: the activation, where there is one, spares a copy of the weight
            for i in named or sorted(used, key=lambda i: self.inputs[i] in self.trace.model.weights):
                holders = [b for b in self.blocks(i) if gone & {x for a in b.axes for x in ins[i][a]}]
                covered = {x for b in holders for a in b.axes for x in ins[i][a]}
                if gone and gone <= covered:
                    fill = self.inputs[fills[i]] if i in fills and self.has(fills[i]) else ""
                    for b in holders:
                        self.trace.reductions.append(Reduction(self.index, kind, i, b, fill))
                    break

    def _note_gather(self, ins: Mapping[int, Sequence[str]], outs: Mapping[int, Sequence[str]], letters: str) -> None:
        def on(spelled: Sequence[str], blocks: tuple[Block, ...]) -> list[Block]:
            return [b for b in blocks if any(set(spelled[a]) & set(letters) for a in b.axes)]

        inputs = tuple((i, b) for i, spelled in ins.items() if self.has(i) for b in on(spelled, self.blocks(i)))
        outputs = tuple(
            (i, b) for i, s in outs.items() if self.gives(i) for b in on(s, self.trace.blocks.get(self.outputs[i], ()))
        )
        if inputs:
            self.trace.reductions.append(Reduction(self.index, "gather", ins=inputs, outs=outputs))

    def _count(
        self, eq: Equation, ins: Mapping[int, Sequence[str]], outs: Mapping[int, Sequence[str]],
        sizes: Mapping[str, int], macs: str,
    ) -> None:  # fmt: skip
        """MACs = the product of the letters' sizes (dynamic ones as in the first probe, the batch as one sample), and
        the blocks that cut it; those that share letters (the groups of a convolution) as rows of these."""
        size = dict(sizes)
        for names, spellings in ((self.inputs, ins), (self.outputs, outs)):
            for i, spelled in spellings.items():
                dims = self.trace.shapes.of_sample(names[i]) if i < len(names) else None
                for s, n in zip(spelled, dims or (), strict=False):
                    if len(s) == 1 and n is not None:
                        size[s] = max(size.get(s, 1), n)
        found = [b for b in eq.main if set(b.letters) <= set(macs)]
        blocks = []
        for b in found:
            shared = [k for k, x in enumerate(b.letters) if any(x in o.letters for o in found if o is not b)]
            rest = [k for k in range(b.ids.ndim) if k not in shared]
            rows = prod(b.ids.shape[k] for k in shared)
            blocks.append(b.ids.transpose(*shared, *rest).reshape(rows, -1) if shared else b.ids.ravel())
        self.trace.macs[self.index] = (self.trace.times * prod(float(size.get(x, 1)) for x in macs), tuple(blocks))
