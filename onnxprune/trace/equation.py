"""The one kernel of all arithmetic: an operator as an equation over lettered axes, as in einsum.

`Equation` maps the blocks of an operator's operands to blocks of its outputs and couples what shares a letter. It knows
letters and ids, no operator and no ONNX. An axis is spelled by a string: "" for an axis without a letter (size one,
broadcast), "c" for a letter, "gc" for an axis seen as (g, c) with g outermost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from onnxprune.trace.labels import KEPT, Block, Ids, Labels, Reason

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class Operand:
    """One tensor of an equation: its axes spelled in letters, its static dims (None = unknown), its blocks."""

    name: str
    spelling: Sequence[str]
    dims: Dims
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, eq=False)
class Lettered:
    """A block spelled in letters: `ids` has one axis per letter, outermost first."""

    letters: tuple[str, ...]
    ids: Ids
    operand: int = -1


@dataclass
class Equation:
    """`sizes`: of the letters of split axes. `pinned`: letters whose positions the operator knows (a spatial axis).
    `stat`: letters over which statistics are taken while the axis stays. `demand(operand, letters)` is told of a
    parameter that ought to have been born as one joint block. `silent`: pinned letters that no report need mention."""

    labels: Labels
    why: Reason
    operands: Sequence[Operand]
    sizes: Mapping[str, int] = field(default_factory=dict)
    pinned: str = ""
    stat: str = ""
    demand: Callable[[Operand, tuple[str, ...], list[Lettered]], None] | None = None
    silent: str = ""

    def solve(self, free: Set[str] = frozenset()) -> None:
        """Couple the operands; `main` then holds the joint blocks and `parts` those of each operand. A `free` letter
        may be missing from an operand without freezing the others (what lies on it is settled elsewhere)."""
        self.parts: list[list[Lettered]] = [self._lettered(i, o) for i, o in enumerate(self.operands)]
        blocks = [b for part in self.parts for b in part]
        blocks = [self._without_pinned(b) for b in blocks]
        self.main: list[Lettered] = []
        for block in sorted((b for b in blocks if b.letters), key=lambda b: -len(b.letters)):
            self._join(block)
        self._freeze_fixed(free)
        self.main = [self._statistics(b) for b in self.main]

    def output(self, spelling: Sequence[str]) -> tuple[Block, ...]:
        """The blocks of an output whose axes are spelled so."""
        letters = {x for axis in spelling for x in axis}
        blocks: list[Lettered] = []
        for b in self.main:
            kept = self.project(b, [x for x in b.letters if x in letters])
            if kept.letters and not any(set(kept.letters) <= set(o.letters) for o in blocks):
                blocks = [o for o in blocks if not set(o.letters) <= set(kept.letters)] + [kept]
        blocks = self._apart(blocks, spelling)
        placed = (self._place(x, spelling) for x in blocks)
        return tuple(b for b in placed if b is not None)

    def _apart(self, blocks: list[Lettered], spelling: Sequence[str]) -> list[Lettered]:
        """One block an axis: of two that meet on a split axis, the smaller is reduced to what it shares."""
        axis = {x: k for k, letters in enumerate(spelling) for x in letters}
        out: list[Lettered] = []
        place = {x: k for k, x in enumerate(x for letters in spelling for x in letters)}
        for b in sorted(blocks, key=lambda b: (-len(b.letters), -place[b.letters[-1]])):
            for o in out:
                if {axis[x] for x in b.letters} & {axis[x] for x in o.letters}:
                    if not set(b.letters) & set(o.letters):
                        self._demand_joint([b, o], spelling[axis[b.letters[0]]])
                        self.labels.freeze(b.ids, self.why)
                    for x in b.letters:
                        if x not in o.letters:  # what they share is coupled already
                            self.labels.couple_along(b.ids, b.letters.index(x), self.why)
                    break
            else:
                out.append(b)
        return out

    def _demand_joint(self, blocks: Sequence[Lettered], axis: str) -> None:
        letters = tuple(x for x in axis if any(x in b.letters for b in blocks))
        for b in blocks:
            if self.demand and b.operand >= 0:
                self.demand(self.operands[b.operand], letters, self.parts[b.operand])

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

    def _lettered(self, index: int, operand: Operand) -> list[Lettered]:
        out = []
        for block in operand.blocks:
            letters: list[str] = []
            dims: list[int] = []
            coarse = block.coarse and len(operand.spelling[block.axes[0]]) == 1
            for axis, n in zip(block.axes, block.ids.shape, strict=True):
                spelled = operand.spelling[axis]
                full = [self.sizes[x] for x in spelled] if len(spelled) > 1 else [n]
                if prod(full) != n:
                    full, spelled = [n], spelled[:1]
                    coarse |= self.sizes.get(spelled) != n
                elif len(spelled) == 1 and operand.dims[axis] not in (None, n):
                    coarse = True  # runs of positions under a letter that stands for single ones
                letters += spelled
                dims += full
            if coarse or len(letters) != len(dims):
                # its runs repeat what the full block of that axis says; what is inside is the same in every run
                inner = self.labels.couple_along(block.ids, 0, self.why) if len(block.axes) == 2 else None
                spelled = operand.spelling[block.axes[-1]]
                if inner is not None and len(spelled) == 1:
                    out.append(Lettered((spelled,), inner, index))
                continue
            ids = block.ids.reshape(dims)
            big = [k for k, n in enumerate(dims) if n > 1]
            if big:
                ids = ids.reshape([dims[k] for k in big])
                if len(big) > 1:
                    self.labels.rectangle(ids)
                out.append(Lettered(tuple(letters[k] for k in big), ids, index))
        return out

    def _without_pinned(self, block: Lettered) -> Lettered:
        """A pinned letter alone is frozen; beside others it ties them: rows go whole, or the same inside every row."""
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
        covered = False
        for main in list(self.main):
            shared = [x for x in main.letters if x in block.letters]
            if not shared:
                continue
            if self.demand and set(block.letters) < set(main.letters):
                self.demand(self.operands[block.operand], main.letters, self.parts[block.operand])
            covered |= set(block.letters) <= set(main.letters)
            if len(shared) > 1 and shared != [x for x in block.letters if x in shared]:
                self._tie_all(main)  # the two see outer and inner the other way round
                self._tie_all(block)
            a, b = self._met(main, shared), self._met(block, shared)
            order = [b.letters.index(x) for x in a.letters]
            turned = b.ids.transpose(order)
            if a.ids.shape != turned.shape:
                self.labels.freeze(a.ids, self.why)
                self.labels.freeze(turned, self.why)
            else:
                self.labels.couple(a.ids, turned, self.why)
                if a.letters == main.letters and (a.ids == KEPT).any():  # what stays here is that of the other side
                    k = self.main.index(main)
                    self.main[k] = replace(main, ids=np.where(a.ids == KEPT, turned, a.ids))
        if not covered:
            self.main.append(block)

    def _met(self, block: Lettered, letters: Sequence[str]) -> Lettered:
        """A block as another one sees it that has these letters only. Along an inner letter it meets whole columns."""
        if block.letters[1:] == tuple(letters):
            return Lettered(tuple(letters), self.labels.column_ids(block.ids, self.why), block.operand)
        return self.project(block, letters)

    def _tie_all(self, block: Lettered) -> None:
        ids = block.ids
        while ids.ndim > 1:
            ids = self.labels.couple_along(ids, 0, self.why)

    def _freeze_fixed(self, free: Set[str]) -> None:
        carried = {x for b in self.main for x in b.letters}.difference(self.pinned, free)
        for operand, parts in zip(self.operands, self.parts, strict=True):
            missing = carried.difference(*(b.letters for b in parts))
            for axis, dim in zip(operand.spelling, operand.dims, strict=True) if missing else ():
                sizes = {x: self.sizes[x] for x in axis} if len(axis) > 1 else dict.fromkeys(axis, dim)
                for letter in (x for x, n in sizes.items() if x in missing and n != 1):
                    for b in self.main:
                        if letter in b.letters:
                            self._hold(b, letter)

    def _hold(self, block: Lettered, letter: str) -> None:
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
        self.labels.normed.append(block.ids)
        if block.letters[-1] not in taken:
            self.labels.freeze(self.project(block, taken).ids, self.why)
            self._tie_all(block)
        return block

    def _place(self, block: Lettered, spelling: Sequence[str]) -> Block | None:
        """Spell a lettered block in the axes of an output; letters of one axis that it lacks are broadcast."""
        where = {x: k for k, axis in enumerate(spelling) for x in axis}
        axes = list(dict.fromkeys(where[x] for x in block.letters))
        wanted = [x for k in axes for x in spelling[k]]
        ids, letters = block.ids, list(block.letters)
        if wanted != letters:
            for x in wanted:
                if x not in letters:
                    n = self.sizes[x]
                    ids, letters = np.broadcast_to(ids[..., None], (*ids.shape, n)), [*letters, x]
            if [x for x in wanted if x in block.letters] != list(block.letters):
                self._tie_all(block)
            ids = ids.transpose([letters.index(x) for x in wanted])
        dims, k = [], 0
        for axis in axes:
            n = len(spelling[axis])
            dims.append(prod(ids.shape[k : k + n]))
            k += n
        ids = np.ascontiguousarray(ids).reshape(dims)
        big = [k for k, n in enumerate(dims) if n > 1]
        if not big or not ids.any():
            return None
        return Block(tuple(axes[k] for k in big), ids.reshape([dims[k] for k in big]))
