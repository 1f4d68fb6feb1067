"""One operator as a rule sees it: its attributes, its tensors' dims, values and blocks, and nothing beyond.

Rules state most operators as an equation (`Op.eq`); movements set the blocks of their outputs (`Op.set`). Knows no
other node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np

from onnxprune.model import Scope, bodies, captured
from onnxprune.trace.births import Axes
from onnxprune.trace.cells import Cells
from onnxprune.trace.equation import Equation
from onnxprune.trace.facts import NodeFacts
from onnxprune.trace.labels import Block, Ids, Labels, Reason
from onnxprune.trace.operands import Dims, Operand
from onnxprune.trace.statement import Spellings, Statement
from onnxprune.trace.tracing import MAX_BLOCK_IDS, Edit, Product, Reduction, ReductionKind


class Misfit(Exception):
    """A node that does not fit its operator, such as an axis that its input has not: why all that meets it stays."""


class Op(NodeFacts):
    """One operator as a rule sees it: what is known of it, the blocks that come in, and what the rule says of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: set[int] = set()

    @property
    def labels(self) -> Labels:
        """Ids and what is known about them, those of the whole graph."""
        return self.trace.labels

    def why(self, text: str = "") -> Reason:
        """Why ids stay, or go together: this operator says so."""
        return Reason(self.type, self.node.name, text)

    # What comes in.

    def blocks(self, i: int) -> tuple[Block, ...]:
        """The blocks of input `i`; of a parameter, as this use sees it."""
        self.seen.add(i)
        return self.trace.of(self.inputs[i], (self.index, i)) if self.has(i) else ()

    def out_blocks(self, i: int) -> tuple[Block, ...]:
        """The blocks that output `i` has been given so far."""
        return self.trace.blocks.get(self.outputs[i], ())

    def labelled(self) -> bool:
        """Whether any input has blocks."""
        return any(self.blocks(i) for i in range(len(self.inputs)))

    def block_on(self, i: int, axis: int) -> Block | None:
        """The block of input `i` that lies on `axis`, alone or with other axes."""
        return next((b for b in self.blocks(i) if axis in b.axes), None)

    # What goes out.

    def set(self, i: int, blocks: Iterable[Block]) -> None:
        """Give output `i` its blocks. Misfit where one lies on an axis that the output has not."""
        if self.has_output(i):
            self._give(self.outputs[i], blocks)

    def _give(self, name: str, blocks: Iterable[Block]) -> None:
        good = tuple(b for b in blocks if b.ids.any() and not self._too_large(b))
        rank = self.trace.rank(name)
        if rank is None:
            return self.freeze_blocks(good, "the rank of a tensor is not known")
        if any(axis >= rank for b in good for axis in b.axes):
            raise Misfit("its output has fewer axes than its inputs make")
        for block in good:
            self.labels.rectangle(block.ids)
        self.trace.blocks[name] = good

    def _too_large(self, block: Block) -> bool:
        """Ids of a block that is no layer's any more stay: every step on would copy it."""
        if block.ids.size <= MAX_BLOCK_IDS:
            return False
        held = np.zeros(self.labels.n, bool)
        held[block.ids] = True
        self.freeze_ids(np.flatnonzero(held), f"over {MAX_BLOCK_IDS:,} positions are not followed")
        return True

    def edit(self, change: Edit) -> None:
        """`change` runs on this node when the graph is rewritten."""
        self.trace.edits.append((self.index, change))

    # What stays, and what goes together.

    def couple(self, a: Ids, b: Ids) -> None:
        """The ids at the same positions go together, or not at all."""
        self.labels.couple(a, b, self.why("two sides of one operator"))

    def freeze_ids(self, ids: Ids, text: str) -> None:
        """These ids stay, for the reason `text`."""
        self.labels.freeze(ids, self.why(text))

    def freeze(self, text: str, inputs: Iterable[int] | None = None, outputs: bool = False) -> None:
        """Everything on the given inputs stays (None: on all of them, and what the node's bodies read), and what has
        been said of the outputs, too, where asked for."""
        for i in range(len(self.inputs)) if inputs is None else inputs:
            self.freeze_blocks(self.blocks(i), text)
        for name in self.outputs if outputs else ():
            self.freeze_blocks(self.trace.of(name), text)
        for _, body in bodies(self.node) if inputs is None else ():
            for name in sorted(captured(body)):
                self.freeze_blocks(self.trace.of(name, (self.index, -1)), text)

    def freeze_blocks(self, blocks: Iterable[Block], text: str) -> None:
        """The ids of these blocks stay, for the reason `text`."""
        for block in blocks:
            self.freeze_ids(block.ids, text)

    def freeze_axis(self, i: int, axis: int, text: str) -> None:
        """Everything on an axis of input `i` stays."""
        self.freeze_blocks((b for b in self.blocks(i) if axis in b.axes), text)

    def overlooked(self) -> None:
        """What comes in labelled where the rule did not look stays: it says nothing of that input."""
        for i in range(len(self.inputs)):
            if i not in self.seen and self.has(i) and self.trace.blocks.get(self.inputs[i]):
                self.freeze("comes in where only fixed sizes do", inputs=(i,))

    def demand_one_birth(self, blocks: Sequence[Block]) -> None:
        """Ask that these blocks, outermost first, which the operator merges, be born as one when traced again."""
        self.trace.demand([(b, None) for b in blocks], merged=True)

    # What the operator makes up or knows of its own parameters.

    def fresh(self, what: str, shape: tuple[int, ...]) -> Ids:
        """New ids that the operator makes up; `what` tells them from others of the same node."""
        return self.labels.fresh((None, self.node.name, what), shape)

    def born(self, what: str, dims: Sequence[int | None]) -> tuple[Block, ...]:
        """Blocks of a tensor of these dims that the operator makes up, each axis of which may be made smaller."""
        return self.trace.born((None, self.node.name, what), dims)

    def demanded(self, what: str) -> Sequence[Axes]:
        """Which axes of what the operator makes up are to be born as one block, as others have asked."""
        return self.trace.structures.get((None, self.node.name, what), ())

    def own(self, i: int, *blocks: Block, cells: Cells | None = None) -> None:
        """Parameter `i` has these blocks, and not one birth an axis. cells: what they count, where that is not its
        elements."""
        self.trace.own((self.index, i), blocks, cells)

    # What the masked comparison and the count of MACs have to know.

    def note_sum(self, i: int, block: Block, fill: str = "") -> None:
        """Input `i` is summed along `block`; `fill` names the tensor that holds its zero point, "" for zero."""
        self.trace.reductions.append(Reduction(self.index, "sum", i, block, fill))

    def note_gather(self, ins: Sequence[tuple[int, Block]], outs: Sequence[tuple[int, Block]]) -> None:
        """The operator is to see only kept positions of these blocks (input or output index, block)."""
        self.trace.reductions.append(Reduction(self.index, "gather", ins=tuple(ins), outs=tuple(outs)))

    def note_normalised(self, ids: Ids, over: Sequence[int]) -> None:
        """Statistics over these axes of `ids` rescale what they are taken of."""
        self.labels.normalise(ids, over)

    def note_added(self, ids: Ids) -> None:
        """These ids are those of one side of a sum of two computed tensors, such as a residual stream."""
        self.labels.sums.append(ids)

    def note_maps(self, ids: Ids) -> None:
        """Every row [heads, ..] of `ids` has an attention map, which the operator keeps to itself."""
        self.labels.maps.append(self.labels.derive(ids))

    def note_least(self, ids: Ids, count: int) -> None:
        """Of these ids so many stay at least."""
        self.labels.least.append((ids, count))

    def note_macs(self, products: Iterable[Product]) -> None:
        """How many multiply-accumulates the operator takes a run: of each product `count`, in proportion to what is
        left of all that cuts it, and of ids that stand there twice to the square of that."""
        self.trace.macs[self.index] = tuple((self.trace.repeats * count, cut_by) for count, cut_by in products)

    # Bodies (of If, Loop, Scan), whose tensors go by name.

    def body(self, attribute: str) -> Scope | None:
        """The body that an attribute of the node holds; None where it has none of that name."""
        return self.trace.scope(self.index, attribute)

    def trace_body(self, body: Scope, times: float = 1.0) -> None:
        """Trace the nodes of a body, which runs `times` whenever the node does."""
        self.trace.enter(body, times)

    def blocks_of(self, name: str) -> tuple[Block, ...]:
        """The blocks of a tensor of a body."""
        return self.trace.of(name)

    def dims_of(self, name: str) -> Dims | None:
        """The static dims of a tensor of a body; None where its rank is not known."""
        return self.trace.shapes.static(name)

    def enter(self, name: str, blocks: Iterable[Block]) -> None:
        """Give an input of a body its blocks."""
        self._give(name, blocks)

    # Equations.

    def eq(
        self, ins: Spellings, outs: Spellings, *, sizes: Mapping[str, int] | None = None, pinned: str = "",
        silent: str = "", stat: str = "", normalises: bool = True, kind: ReductionKind = "sum",
        fills: Mapping[int, int] | None = None, summed: Mapping[str, int] | None = None, macs: str = "",
        text: str = "meets an axis of fixed size here",
    ) -> None:  # fmt: skip
        """State the operator as an equation, set the outputs' blocks, note what is reduced and how much is multiplied.

        ins, outs: the spelling of each input and output by its index; "ab|cd" is an axis of two parts. sizes,
        pinned, silent, stat, normalises: see `equation.Equation`. kind: how letters that the first output has not are
        reduced. fills: input -> input that holds its zero point. summed: letters that are summed although an output has
        them, too, and the input that is to have zeros there. macs: every combination of these letters is one
        multiply-accumulate, and so is every one of further words. text: why an axis that
        is labelled on one side only stays. Misfit where an input has another number of axes than its spelling."""
        ins = {i: spelled for i, spelled in ins.items() if self.has(i)}
        # to ask for the blocks of an output ties what it has not: only for those that there are
        outs = {i: spelled for i, spelled in outs.items() if self.has_output(i)}
        equation = Equation(
            self.labels, self.why(text), self._operands(ins, sizes or {}), sizes or {}, pinned, stat, self.trace.demand,
            silent, normalises,
        )  # fmt: skip
        equation.solve()
        for i, spelled in outs.items():
            self.set(i, equation.output(spelled))
        statement = Statement(self, equation, ins, outs)
        if stat or kind == "gather":
            statement.note_gather()
        else:
            statement.note_sums(fills or {}, summed or {})
        if macs:
            statement.note_macs(macs)

    def _operands(self, ins: Spellings, sizes: Mapping[str, int]) -> list[Operand]:
        operands = [o for i, spelled in ins.items() for o in self._side_by_side(self._operand(i, spelled), sizes)]
        for o in operands:
            if len(o.dims) != len(o.spelling):
                raise Misfit(f"it takes {len(o.spelling)} axes, not the {len(o.dims)} that it is given")
        return operands

    def _operand(self, i: int, spelled: Sequence[str]) -> Operand:
        return Operand(self.inputs[i], spelled, self.dims(i) or (None,) * len(spelled), self.blocks(i))

    @staticmethod
    def _side_by_side(whole: Operand, sizes: Mapping[str, int]) -> list[Operand]:
        """The operands that lie side by side along an axis which is spelled as words with "|" between them."""
        axis = next((k for k, s in enumerate(whole.spelling) if "|" in s), None)
        if axis is None:
            return [whole]
        if any(axis in b.axes and len(b.axes) > 1 for b in whole.blocks):
            raise Misfit("what lies side by side is nested in another axis")
        parts, start = [], 0
        for word in whole.spelling[axis].split("|"):
            end = start + prod(sizes[x] for x in word)
            blocks = [Block(b.axes, b.ids[start:end]) if axis in b.axes else b for b in whole.blocks]
            spelled = [word if k == axis else s for k, s in enumerate(whole.spelling)]
            dims = tuple(end - start if k == axis else n for k, n in enumerate(whole.dims))
            parts.append(Operand(whole.name, spelled, dims, tuple(blocks)))
            start = end
        return parts

    def meet(
        self, i: int, spelled: Sequence[str], other: Sequence[str], blocks: Sequence[Block], text: str,
        sizes: Mapping[str, int] | None = None, pinned: str = "", silent: str = "",
    ) -> None:  # fmt: skip
        """Couple input `i` with given blocks (spelled `other`) letter by letter; nothing else follows from it."""
        lengths = {a: n for b in blocks for a, n in zip(b.axes, b.ids.shape, strict=True)}
        dims = tuple(lengths.get(k, 1) for k in range(len(other)))
        given = Operand("", [s if k in lengths else "" for k, s in enumerate(other)], dims, tuple(blocks))
        free = {x for s in other for x in s} ^ {x for s in spelled for x in s}
        operands = [given, self._operand(i, spelled)]
        equation = Equation(
            self.labels, self.why(text), operands, sizes or {}, pinned, demand=self.trace.demand, silent=silent
        )
        equation.solve(free)

    def across(self, blocks: Mapping[int, tuple[Block, ...]], letters: Sequence[str], axis: int) -> tuple[Block, ...]:
        """Couple the given blocks of several inputs that are joined along `axis`; the blocks of the result."""
        operands = [
            Operand(self.inputs[i], [
                "" if k == axis or n == 1 else s for k, (s, n) in enumerate(zip(letters, self.dims(i), strict=True))
            ], self.dims(i), own) for i, own in blocks.items()
        ]  # fmt: skip
        why = self.why("joined with an axis of fixed size")
        equation = Equation(self.labels, why, operands, demand=self.trace.demand)
        nested = {a for i in blocks for b in self.blocks(i) if axis in b.axes for a in b.axes}
        equation.solve(free={letters[a] for a in nested})
        return equation.output(["" if k == axis else s for k, s in enumerate(letters)])
