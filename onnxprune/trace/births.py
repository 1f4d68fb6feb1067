"""How ids are born: an axis of a tensor at a time, or several axes together as one nested block.

Which axes of a parameter belong together (heads and their features, the groups of a convolution) only those who read
it know. So they ask, and the graph is traced again with what was asked for. Knows labels and axes, no graph.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod
from typing import NamedTuple

from onnxprune.trace.labels import Block, Labels

WHOLE = -1
"""In place of a number of ids: as many as the axis has positions."""
ANY = -1
"""In place of a number of positions of a rewritten tensor: as many as were kept."""
Axes = tuple[tuple[int, int], ...]
"""(axis, number of ids along it), outermost first: how axes of a tensor are born as one block."""
UNLABELLED: Axes = ()
"""What is made up is born without ids."""


class Birth(NamedTuple):
    """Where ids come from: axes of a parameter, or of a tensor that an operator makes up."""

    key: Hashable
    axes: Axes

    def __str__(self) -> str:
        return str(tuple(self))

    @property
    def made_up(self) -> bool:
        """Whether an operator makes up the tensor: its key begins with None in place of a parameter's name."""
        return isinstance(self.key, tuple) and self.key[0] is None


def born(
    labels: Labels, key: Hashable, dims: Sequence[int], joint: Sequence[Axes], retraced: bool
) -> tuple[Block, ...]:
    """The blocks of a tensor of size `dims`: one for each of the `joint` axes, one for every axis that is in none."""
    if UNLABELLED in joint:
        return ()
    covered = {axis for axes in joint for axis, count in axes if count == WHOLE}
    alone: list[Axes] = [((axis, WHOLE),) for axis, n in enumerate(dims) if n != 1 and axis not in covered]
    blocks = (_born(labels, Birth(key, axes), dims, retraced) for axes in (*joint, *alone))
    return tuple(b for b in blocks if b is not None)


def _born(labels: Labels, birth: Birth, dims: Sequence[int], retraced: bool) -> Block | None:
    """A block without its axes of length one; None where no other is left. Its first axis is coarse where fewer ids
    than positions were asked for. Of a rewritten tensor nobody knows how many rows the original's ids make."""
    unknown = retraced and len(birth.axes) > 1
    shape = [dims[axis] if n == WHOLE else ANY if unknown else n for axis, n in birth.axes]
    if prod(shape) == 1:
        return None
    ids = labels.fresh(birth, shape)
    labels.rectangle(ids)
    long = [k for k, n in enumerate(ids.shape) if n > 1]
    if not long:
        return None
    axes = [birth.axes[k] for k in long]
    return Block(tuple(axis for axis, _ in axes), ids.reshape([ids.shape[k] for k in long]), axes[0][1] != WHOLE)


class Demands(dict[Hashable, list[Axes]]):
    """By parameter, or by what an operator makes up: the axes that are to be born as one block in the next round."""

    def ask(self, labels: Labels, parts: Sequence[tuple[Block, int | None]], merged: bool) -> None:
        """Ask that axes be born together. `parts`: 1-D blocks, outermost first, with the number of ids that is wanted
        along each (None: all). `merged`: the axes are about to become one, so that what is made up and can be born
        neither with the others nor inside them is better without ids."""
        origins = [labels.origin(block.ids) for block, _ in parts]
        births = [o for o in origins if isinstance(o, Birth)]
        keys = {birth.key for birth in births}
        if len(keys) == 1 and len(births) == len(parts):
            self._as_one(births, [WHOLE if n is None else n for _, n in parts])
        elif merged:
            self._inside_the_first([block for block, _ in parts], origins)
        elif len(parts) == 2:
            self._inside(parts[0][0], parts[1][0], origins[1])

    def _inside_the_first(self, blocks: Sequence[Block], origins: Sequence[Hashable]) -> None:
        """What is made up is born inside the outermost block, and is without ids where it is that."""
        first = origins[0]
        if isinstance(first, Birth) and first.made_up and len(first.axes) == 1:
            self.setdefault(first.key, []).append(UNLABELLED)
        for block, origin in zip(blocks[1:], origins[1:], strict=True):
            self._inside(blocks[0], block, origin)

    def _as_one(self, births: Sequence[Birth], counts: Sequence[int]) -> None:
        """Different axes of one tensor, none of them in another joint block yet."""
        if any(len(birth.axes) != 1 for birth in births):
            return
        axes = tuple((birth.axes[0][0], n) for birth, n in zip(births, counts, strict=True))
        if len({axis for axis, _ in axes}) == len(axes) > 1:
            wanted = self.setdefault(births[0].key, [])
            if not _whole(axes) & set().union(*map(_whole, wanted)) and axes not in wanted:
                wanted.append(axes)

    def _inside(self, outer: Block, inner: Block, origin: Hashable) -> None:
        """An axis that an operator made up is born inside another one: it may differ from row to row."""
        if not isinstance(origin, Birth) or not origin.made_up:
            return
        axes = ((outer.axes[0], WHOLE), (inner.axes[0], WHOLE))
        if origin.axes == axes[1:] and UNLABELLED not in (wanted := self.setdefault(origin.key, [])):
            wanted.append(axes)


def _whole(axes: Axes) -> set[int]:
    """The axes that a joint block covers position by position."""
    return {axis for axis, count in axes if count == WHOLE}
