"""What follows from an operator's equation beside the labels: what it sums away, where statistics are taken, its MACs.

Knows one `Op` and the letters of its tensors, no rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import prod
from typing import TYPE_CHECKING

from onnxprune.trace.equation import Equation
from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.operands import Lettered

if TYPE_CHECKING:
    from onnxprune.trace.op import Op

Spellings = Mapping[int, Sequence[str]]
"""The letters of each axis of inputs or outputs, by their index."""


@dataclass(frozen=True)
class Statement:
    """An operator stated as an equation that is solved; `ins` and `outs` are those inputs and outputs that it has."""

    op: Op
    equation: Equation
    ins: Spellings
    outs: Spellings

    def note_sums(self, fills: Mapping[int, int], summed: Mapping[str, int]) -> None:
        """Of every letter that is summed away, one operand is to be masked: where one factor is zero, the other may be
        anything. `fills` and `summed` are those of `Op.eq`."""
        kept = self._kept()
        for main in self.equation.main:
            gone = {x for x in main.letters if x not in kept or x in summed}
            if not gone:
                continue
            # the activation, where there is one, spares a copy of the weight
            operands = [summed[x] for x in main.letters if x in summed] or sorted(self.ins, key=self.op.is_parameter)
            operand = next((i for i in operands if gone <= self._labelled_letters(i)), None)
            if operand is None:
                continue
            fill = fills.get(operand)
            zero = self.op.inputs[fill] if fill is not None and self.op.has(fill) else ""
            for block in self._on(self.ins[operand], self.op.blocks(operand), gone):
                self.op.note_sum(operand, block, zero)

    def note_gather(self) -> None:
        """Where statistics are taken, or a letter is reduced by anything but a sum: the operator is to see only what
        is kept, with all that is nested in it or around it."""
        main = self.equation.main
        seen = set(self.equation.stat) or {x for b in main for x in b.letters} - self._kept()
        nested = {x for b in main if seen & set(b.letters) for x in b.letters}
        ins = [(i, b) for i, spelled in self.ins.items() for b in self._on(spelled, self.op.blocks(i), nested)]
        outs = [(i, b) for i, spelled in self.outs.items() for b in self._on(spelled, self.op.out_blocks(i), nested)]
        if ins:
            self.op.note_gather(ins, outs)

    def note_macs(self, words: str) -> None:
        """MACs = of each word the product of its letters' sizes (dynamic ones as in the first probe, the batch as one
        sample), and the blocks that cut it; those that share letters (the groups of a convolution) as rows of these."""
        size = self._letter_sizes()
        self.op.note_macs((prod(float(size.get(x, 1)) for x in word), self._cut_by(word)) for word in words.split())

    def _kept(self) -> set[str]:
        """Letters that are not reduced: the first output has them, or the operator knows their positions."""
        first = next(iter(self.outs.values()), [])  # another may hand on what it sums
        return {x for axis in first for x in axis} | set(self.equation.pinned)

    def _labelled_letters(self, i: int) -> set[str]:
        return {x for b in self.op.blocks(i) for axis in b.axes for x in self.ins[i][axis]}

    @staticmethod
    def _on(spelled: Sequence[str], blocks: Sequence[Block], letters: set[str]) -> list[Block]:
        return [b for b in blocks if any(letters & set(spelled[axis]) for axis in b.axes)]

    def _letter_sizes(self) -> dict[str, int]:
        size = dict(self.equation.sizes)
        for names, spellings in ((self.op.inputs, self.ins), (self.op.outputs, self.outs)):
            for i, spelled in spellings.items():
                for letter, n in zip(spelled, self.op.trace.shapes.of_sample(names[i]) or (), strict=False):
                    if len(letter) == 1 and n is not None:
                        size[letter] = max(size.get(letter, 1), n)
        return size

    def _cut_by(self, letters: str) -> tuple[Ids, ...]:
        found = self._inside_of(letters)
        blocks = []
        for b in found:
            shared = [k for k, x in enumerate(b.letters) if any(x in o.letters for o in found if o is not b)]
            rest = [k for k in range(b.ids.ndim) if k not in shared]
            rows = prod(b.ids.shape[k] for k in shared)
            blocks.append(b.ids.transpose(*shared, *rest).reshape(rows, -1) if shared else b.ids.ravel())
        return tuple(blocks)

    def _inside_of(self, letters: str) -> list[Lettered]:
        """The blocks that have no other letters, and of those that do what is around these (heads weigh values,
        too)."""
        found = [b for b in self.equation.main if set(b.letters) <= set(letters)]
        for b in self.equation.main:
            rows = list(takewhile(letters.__contains__, b.letters))
            if rows and not any(set(rows) <= set(o.letters) for o in found):
                found.append(self.equation.project(b, rows))
        return found
