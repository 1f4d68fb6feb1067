"""The one kernel of all arithmetic: an operator as an equation over lettered axes, as in einsum.

`Equation` maps the blocks of an operator's operands to blocks of its outputs and couples what shares a letter. It knows
letters and ids, no operator and no ONNX. An axis is spelled by a string: "" for an axis without a letter (size one,
broadcast), "c" for a letter, "gc" for an axis seen as (g, c) with g outermost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from onnxprune.trace.labels import KEPT, Block, Ids, Labels, Reason
from onnxprune.trace.operands import Demand, Lettered, Operand, split_axis
from onnxprune.trace.product import beside, common_front, product


@dataclass
class Equation:
    """Operands whose axes share letters. What shares a letter is coupled.

    `sizes`: of the letters of split axes. `pinned`: letters whose positions the operator knows (a spatial axis).
    `stat`: letters over which statistics are taken while the axis stays; `normalises`: what they are taken of is
    normalised by them. `demand`: told which axes of a parameter ought to have been born as one joint block (see
    `Trace.demand`). `silent`: pinned letters that no report need mention."""

    labels: Labels
    why: Reason
    operands: Sequence[Operand]
    sizes: Mapping[str, int] = field(default_factory=dict)
    pinned: str = ""
    stat: str = ""
    demand: Demand | None = None
    silent: str = ""
    normalises: bool = True

    def solve(self, free: Set[str] = frozenset()) -> None:
        """Couple the operands; `main` then holds the joint blocks and `parts` those of each operand. A `free` letter
        may be missing from an operand without freezing the others (what lies on it is settled elsewhere)."""
        self.parts: list[list[Lettered]] = [
            [b for block in o.blocks if (b := self._in_letters(block, i, o)) is not None]
            for i, o in enumerate(self.operands)
        ]
        blocks = [b for part in self.parts for b in part]
        if self.pinned:
            blocks = [b for b in map(self._without_pinned, blocks) if b.letters]
        self.main: list[Lettered] = []
        for block in sorted(blocks, key=lambda b: -len(b.letters)):
            self._join(block)
        self._freeze_fixed(free)
        if self.stat:
            self.main = [self._statistics(b) for b in self.main]

    def output(self, spelling: Sequence[str]) -> tuple[Block, ...]:
        """The blocks of an output whose axes are spelled so."""
        letters = {x for axis in spelling for x in axis}
        blocks: list[Lettered] = []
        for b in self.main:
            kept = self._reduced(b, tuple(x for x in b.letters if x in letters))
            if kept.letters and not any(set(kept.letters) <= set(o.letters) for o in blocks):
                blocks = [o for o in blocks if not set(o.letters) <= set(kept.letters)] + [kept]
        placed = (self._placed(x, spelling) for x in self._one_block_per_axis(blocks, spelling))
        return tuple(b for b in placed if b is not None)

    def _one_block_per_axis(self, blocks: list[Lettered], spelling: Sequence[str]) -> list[Lettered]:
        """Of two blocks that meet on a split axis one is made; where that cannot be, the smaller is reduced to what it
        shares."""
        if len(blocks) < 2:
            return blocks
        axis = {x: k for k, letters in enumerate(spelling) for x in letters}
        out: list[Lettered] = []
        place = {x: k for k, x in enumerate(x for letters in spelling for x in letters)}
        for b in sorted(blocks, key=lambda b: (-len(b.letters), -place[b.letters[-1]])):
            taken = {axis[x] for x in b.letters}
            larger = next((o for o in out if taken & {axis[x] for x in o.letters}), None)
            if larger is None:
                out.append(b)
            else:
                self._share_axis(b, larger, out, spelling)
        return out

    def _share_axis(self, block: Lettered, larger: Lettered, out: list[Lettered], spelling: Sequence[str]) -> None:
        """Put a block, as far as it can be, among those of `out`, of which a larger one lies on one of its axes."""
        axis = {x: k for k, letters in enumerate(spelling) for x in letters}
        place = {x: k for k, x in enumerate(x for letters in spelling for x in letters)}
        apart = not set(block.letters) & set(larger.letters)
        if apart:
            self._demand_joint([block, larger], spelling[axis[block.letters[0]]])
        if not apart and beside(block, {axis[x] for o in out for x in o.letters}, axis):
            out.append(Lettered(block.letters[1:], self.labels.column_ids(block.ids, self.why), block.operand))
        elif both := self._product(block, larger, place) or self._product(larger, block, place):
            out[out.index(larger)] = both
        else:
            self._reduce(block, larger, apart)

    def _reduce(self, block: Lettered, larger: Lettered, apart: bool) -> None:
        """What only `block` has is tied; where nothing couples the two, it stays."""
        if apart:
            self.labels.freeze(block.ids, self.why)
        for x in block.letters:
            if x not in larger.letters:  # what they share is coupled already
                self.labels.couple_along(block.ids, block.letters.index(x), self.why)

    def _product(self, outer: Lettered, inner: Lettered, place: Mapping[str, int]) -> Lettered | None:
        """Both blocks as one, where those letters of `inner` that `outer` has not lie inside those of `outer`."""
        shared = common_front(outer.letters, inner.letters)
        letters = outer.letters + inner.letters[shared:]
        if len(set(letters)) < len(letters) or [*letters] != sorted(letters, key=place.__getitem__):
            return None
        key = (None, self.why.node, "".join(letters))
        return Lettered(letters, product(self.labels, key, outer.ids, inner.ids, shared, self.why))

    def _demand_joint(self, blocks: Sequence[Lettered], axis: str) -> None:
        letters = tuple(x for x in axis if any(x in b.letters for b in blocks))
        for b in blocks:
            if b.operand >= 0:
                self._demand_birth(self.operands[b.operand], letters)

    def _demand_birth(self, operand: Operand, letters: Sequence[str]) -> None:
        """Ask that the operand's axes of these letters, each a block of its own so far, be born as one block."""
        if self.demand is None:
            return
        parts: list[tuple[Block, int | None]] = []
        for letter in letters:
            axis = next((k for k, s in enumerate(operand.spelling) if letter in s), None)
            block = next((b for b in operand.blocks if b.axes == (axis,)), None)
            if axis is None or block is None:
                return
            spelled = operand.spelling[axis]
            if len(spelled) > 1 and spelled[0] != letter:
                return
            parts.append((block, self.sizes[letter] if len(spelled) > 1 else None))
        self.demand(parts)

    def _reduced(self, block: Lettered, letters: tuple[str, ...]) -> Lettered:
        """A block reduced to some of its letters: that of the operand which has these and no others, if there is one
        (keys that several queries read), for it is coupled already."""
        if letters == block.letters:
            return block
        found = next((b for part in self.parts for b in part if b.letters == letters), None)
        return found or self.project(block, letters)

    def project(self, block: Lettered, letters: Sequence[str]) -> Lettered:
        """Reduce a block to some of its letters: an inner axis leaves derived ids, an outer one ties what is inside."""
        if all(x in letters for x in block.letters):
            return block
        ids, left = block.ids, list(block.letters)
        while left and left[-1] not in letters:
            ids = self.labels.derive(ids) if len(left) > 1 else ids
            left.pop()
        if not left:
            return Lettered((), ids, block.operand)
        for letter in [x for x in left if x not in letters]:
            ids = self.labels.couple_along(ids, left.index(letter), self.why)
            left.remove(letter)
        return Lettered(tuple(left), ids, block.operand)

    def _in_letters(self, block: Block, index: int, operand: Operand) -> Lettered | None:
        """A block with one axis per letter, those of size one left out; None where nothing of it has a letter."""
        axes = [
            split_axis(self.sizes, operand.spelling[axis], n, operand.dims[axis])
            for axis, n in zip(block.axes, block.ids.shape, strict=True)
        ]
        coarse = block.coarse and len(operand.spelling[block.axes[0]]) == 1
        if coarse or not all(axes):
            return self._inside_runs(block, index, operand)
        big = [(x, n) for axis in axes for x, n in axis if n > 1]
        if not big:
            return None
        ids = block.ids.reshape([n for _, n in big])
        if len(big) > 1:
            self.labels.rectangle(ids)
        return Lettered(tuple(x for x, _ in big), ids, index)

    def _inside_runs(self, block: Block, index: int, operand: Operand) -> Lettered | None:
        """Runs repeat what the full block of that axis says; what is inside is the same in every run."""
        if len(block.axes) != 2:
            return None
        inner = self.labels.couple_along(block.ids, 0, self.why)
        spelled = operand.spelling[block.axes[-1]]
        return Lettered((spelled,), inner, index) if len(spelled) == 1 else None

    def _without_pinned(self, block: Lettered) -> Lettered:
        """A pinned letter alone is frozen. Beside others it ties them: whole rows go, or the same column of every
        row."""
        pinned = [x for x in block.letters if x in self.pinned]
        if not pinned:
            return block
        ids, left = block.ids, list(block.letters)
        for letter in pinned:
            if len(left) == 1:
                self.labels.freeze(ids, replace(self.why, text="") if letter in self.silent else self.why)
            ids = self.labels.couple_along(ids, left.index(letter), self.why)
            left.remove(letter)
        return Lettered(tuple(left), ids, block.operand)

    def _join(self, block: Lettered) -> None:
        """Couple a block with those that it shares letters with; it is one of them where it has letters of its own."""
        own = set(block.letters)
        met = [main for main in self.main if not own.isdisjoint(main.letters)]
        for main in met:
            self._meet(main, block)
        if not any(own.issubset(main.letters) for main in met):
            self.main.append(block)

    def _meet(self, main: Lettered, block: Lettered) -> None:
        """Couple two blocks along the letters that they share."""
        shared = [x for x in main.letters if x in block.letters]
        if set(block.letters) < set(main.letters):
            operand = self.operands[block.operand]
            self._demand_birth(operand, [x for x in main.letters if any(x in axis for axis in operand.spelling)])
        if len(shared) > 1 and shared != [x for x in block.letters if x in shared]:
            self._tie_all(main)  # the two see outer and inner the other way round
            self._tie_all(block)
        ours, theirs = self._as_seen_by(main, shared), self._as_seen_by(block, shared)
        turned = theirs.ids.transpose([theirs.letters.index(x) for x in ours.letters])
        if ours.ids.shape != turned.shape:
            self.labels.freeze(ours.ids, self.why)
            self.labels.freeze(turned, self.why)
            return
        self.labels.couple(ours.ids, turned, self.why)
        if ours.letters == main.letters and (ours.ids == KEPT).any():  # what stays here is that of the other side
            self.main[self.main.index(main)] = replace(main, ids=np.where(ours.ids == KEPT, turned, ours.ids))

    def _as_seen_by(self, block: Lettered, letters: Sequence[str]) -> Lettered:
        """A block as another one sees it that has these letters only. Where it has one more around the innermost of
        them, it meets whole columns."""
        if len(block.letters) > 1 and (*block.letters[:-2], *block.letters[-1:]) == tuple(letters):
            *front, rows, columns = block.ids.shape
            tables = block.ids.reshape(-1, rows, columns)
            seen = np.stack([self.labels.column_ids(table, self.why, loose=bool(front)) for table in tables])
            return Lettered(tuple(letters), seen.reshape(*front, columns), block.operand)
        return self.project(block, letters)

    def _tie_all(self, block: Lettered) -> None:
        ids = block.ids
        while ids.ndim > 1:
            ids = self.labels.couple_along(ids, 0, self.why)

    def _freeze_fixed(self, free: Set[str]) -> None:
        """Where an operand has an axis of a letter but no block on it, that axis is of fixed size: so is the letter."""
        carried = {x for b in self.main for x in b.letters}.difference(self.pinned, free)
        for operand, parts in zip(self.operands, self.parts, strict=True):
            missing = carried.difference(*(b.letters for b in parts))
            for letter in operand.long(missing, self.sizes) if missing else ():
                for b in self.main:
                    if letter in b.letters:
                        self._freeze_letter(b, letter)

    def _freeze_letter(self, block: Lettered, letter: str) -> None:
        """Every position of `letter` stays: of an outer letter no row may go, of an inner one no row loses a part."""
        k = block.letters.index(letter)
        if k == 0:
            self.labels.freeze(self.project(block, [letter]).ids, self.why)
        else:
            self.labels.couple_along(block.ids, k, self.why)

    def _statistics(self, block: Lettered) -> Lettered:
        """Statistics over an outer letter alone tie what is inside; over inner letters any kept set will do."""
        taken = [x for x in block.letters if x in self.stat]
        if not taken:
            return block
        if self.normalises:
            self.labels.normalise(block.ids, [k for k, x in enumerate(block.letters) if x in taken])
        if block.letters[-1] not in taken:
            self.labels.freeze(self.project(block, taken).ids, self.why)
            self._tie_all(block)
        return block

    def _placed(self, block: Lettered, spelling: Sequence[str]) -> Block | None:
        """A lettered block on the axes of an output; None where nothing of it is labelled."""
        where = {x: k for k, axis in enumerate(spelling) for x in axis}
        axes = list(dict.fromkeys([where[x] for x in block.letters]))
        ids = self._spread(block, [x for k in axes for x in spelling[k]])
        dims, k = [], 0
        for axis in axes:
            n = len(spelling[axis])
            dims.append(prod(ids.shape[k : k + n]))
            k += n
        big = [k for k, n in enumerate(dims) if n > 1]
        if not big or not ids.any():
            return None
        return Block(tuple([axes[k] for k in big]), np.ascontiguousarray(ids).reshape([dims[k] for k in big]))

    def _spread(self, block: Lettered, wanted: list[str]) -> Ids:
        """The ids of a block with one axis per letter of `wanted`, in this order; letters that it lacks are broadcast.
        A block whose own letters stand in another order goes as a whole."""
        ids, letters = block.ids, list(block.letters)
        if letters == wanted:
            return ids
        for x in wanted:
            if x not in letters:
                ids, letters = np.broadcast_to(ids[..., None], (*ids.shape, self.sizes[x])), [*letters, x]
        if [x for x in wanted if x in block.letters] != list(block.letters):
            self._tie_all(block)
        return ids.transpose([letters.index(x) for x in wanted])
