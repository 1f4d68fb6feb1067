"""Channel ids and what is known about them: couplings, derived ids, frozen ids, rectangles. Knows arrays only.

An *id* names one removable slice of an axis. `KEPT` (id 0) is the slice that always stays. A *derived* id names a whole
row of a block (an attention head, a convolution group): it is removed exactly when all of its children are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.trace.classes import joined, side_by_side

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
KEPT = 0


@dataclass(frozen=True, eq=False)
class Block:
    """`ids[i, j, ..]` names the channel at position i of `axes[0]`, j of `axes[1]`, ..; outermost axis first.

    A first axis may be coarse: with fewer ids than the tensor has positions, each id stands for a run of equal length
    (the groups of a grouped convolution's weight). An axis of run-time size may be periodic (batch x heads): its ids
    are repeated as often as they fit. With `runs` (channels x image) each of them is repeated before the next comes."""

    axes: tuple[int, ...]
    ids: Ids
    coarse: bool = False
    runs: bool = False

    def at(self, dims: Sequence[int | None]) -> Block:
        """The block with axes of run-time size written out to the sizes `dims` of a run."""
        repeats = [
            ((dims[a] if a < len(dims) else n) or n) // n for a, n in zip(self.axes, self.ids.shape, strict=True)
        ]
        if max(repeats) == 1:
            return self
        if not self.runs:
            return Block(self.axes, np.tile(self.ids, repeats))
        ids = self.ids
        for k, n in enumerate(repeats):
            ids = np.repeat(ids, n, axis=k)
        return Block(self.axes, ids)

    def spread(self, dims: Sequence[int | None]) -> Ids:
        """The ids, broadcastable to a tensor of size `dims`; a coarse axis written out."""
        ids = self.ids
        for k, axis in enumerate(self.axes):
            n = dims[axis]
            if n is not None and n != ids.shape[k]:
                ids = np.repeat(ids, n // ids.shape[k], axis=k)
        shape = [1] * len(dims)
        for k, axis in enumerate(self.axes):
            shape[axis] = ids.shape[k]
        return ids.transpose(np.argsort(self.axes)).reshape(shape)


@dataclass(frozen=True)
class Reason:
    """Why ids stay: said once, at the operator that decided it."""

    op_type: str
    node: str
    text: str


class Labels:
    """Collects what tracing finds out about ids. Couplings are kept as arrays; `solve` joins them all at once.

    n: ids there are. births: ids by where they are born. pairs: couplings. children: of derived ids. frozen: ids that
    stay. rectangles: blocks, by shape and ids, that stay full. tables: blocks [rows, columns] of which only whole rows
    and columns may go, with the ids of both; loose: those whose rows are better tied where columns may go. normed: ids
    of which each row along the last axis shares the statistics of a normalisation.
    sums: ids of streams that are added to others. maps: ids of heads, each with an attention map of its own.
    least: ids of which a number has to stay.
    ended: by node, ids that are carried no further. unfit: nodes that their rule does not take.
    remembered: answers of rules that a rewriting has to repeat. couplings: positions compared."""

    def __init__(self) -> None:
        self.n = 1
        self.births: dict[Hashable, Ids] = {}
        self._starts: list[int] = [0]
        self._keys: list[Hashable] = [None]
        self.pairs: list[tuple[Ids, Ids, Reason]] = []
        self.children: dict[int, Ids] = {}
        self._rows: dict[bytes, int] = {}
        self.frozen: list[tuple[Ids, Reason]] = [(np.zeros(1, np.int64), Reason("", "", "fixed size"))]
        self.rectangles: dict[tuple[tuple[int, ...], bytes], Ids] = {}
        self.tables: dict[tuple[tuple[int, ...], bytes], tuple[Ids, Ids, Ids, Reason]] = {}
        self.loose: set[tuple[tuple[int, ...], bytes]] = set()
        self.normed: list[Ids] = []
        self.sums: list[Ids] = []
        self.maps: list[Ids] = []
        self.least: list[tuple[Ids, int]] = []
        self.ended: dict[str, list[Ids]] = {}
        self.unfit: set[str] = set()
        self.remembered: dict[Hashable, bool] = {}
        self.couplings = 0

    def fresh(self, key: Hashable, shape: Iterable[int]) -> Ids:
        """New ids of the given shape; `key` is where they are born (a parameter's axes)."""
        if key not in self.births:
            shape = tuple(shape)
            size = prod(shape)
            self.births[key] = np.arange(self.n, self.n + size, dtype=np.int64).reshape(shape)
            self._starts.append(self.n)
            self._keys.append(key)
            self.n += size
        return self.births[key]

    def born_in(self, i: int) -> Hashable | None:
        """The key of the birth of one id; of a derived id, that of its first child."""
        return self._keys[bisect_right(self._starts, self.leaf(i)) - 1]

    def leaf(self, i: int) -> int:
        """The id itself; of a derived id, the first of those that it holds in the end."""
        while i in self.children:
            i = int(self.children[i][0])
        return i

    def birth_numbers(self, ids: Ids) -> Ids:
        """The same number for ids that were born together; each derived id has one of its own."""
        return np.searchsorted(self._starts, ids, side="right")

    def origin(self, ids: Ids) -> Hashable | None:
        """The key of the birth that `ids` are, whole and in order; None for anything else."""
        if not ids.size:
            return None
        key = self._keys[bisect_right(self._starts, int(ids.flat[0])) - 1]
        born = self.births.get(key)
        return key if born is not None and born.size == ids.size and np.array_equal(born.ravel(), ids.ravel()) else None

    def couple(self, a: Ids, b: Ids, why: Reason) -> None:
        """The ids at the same positions are removed together or not at all."""
        a, b = a.ravel(), b.ravel()
        self.couplings += a.size
        differ = a != b
        if not differ.any():
            return
        a, b = a[differ], b[differ]
        if not (a.all() and b.all()):  # KEPT is zero
            loose = (a != KEPT) & (b != KEPT)
            self.freeze(np.where(a == KEPT, b, a)[~loose], why)
            a, b = a[loose], b[loose]
        if a.size:
            self.pairs.append((a, b, why))

    def freeze(self, ids: Ids, why: Reason) -> None:
        """The ids stay."""
        ids = ids[ids != KEPT]
        if ids.size:
            self.frozen.append((ids, why))

    def misfit(self, ids: Ids, why: Reason) -> None:
        """A node was not taken by its rule; the ids that the rule had made stay."""
        self.unfit.add(why.node)
        self.freeze(ids, why)

    def end_at(self, ids: Ids, why: Reason) -> None:
        """The ids are carried no further than to this node, and stay."""
        self.ended.setdefault(why.node, []).append(ids)
        self.freeze(ids, why)

    def ended_at(self, ids: Ids, node: str) -> bool:
        """Whether the graph that this is a rewriting of carried these ids no further than to this node."""
        return False

    def remember(self, key: Hashable, answer: bool) -> bool:
        """What a rule makes of positions. In a rewriting, where fewer may look like something else, it is as it was."""
        self.remembered[key] = answer
        return answer

    def derive(self, ids: Ids) -> Ids:
        """Row ids of a block whose innermost axis disappears: [.., n] -> [..]."""
        flat = ids.reshape(-1, ids.shape[-1])
        out: Ids = flat.min(axis=1)  # where something always stays, the row does; where all is one, it is that
        in_order: Mask = np.asarray((flat[:, 1:] > flat[:, :-1]).all(axis=1))  # each once: mostly so
        for i in np.flatnonzero((out != KEPT) & (out != flat.max(axis=1))).tolist():
            members = flat[i] if in_order[i] else np.unique(flat[i])
            key = members.tobytes()
            if key not in self._rows:
                self._rows[key] = self._derived(members)
            out[i] = self._rows[key]
        return out.reshape(ids.shape[:-1])

    def _derived(self, members: Ids) -> int:
        self.children[self.n] = members
        self._starts.append(self.n)
        self._keys.append(None)
        self.n += 1
        return self.n - 1

    def couple_along(self, ids: Ids, axis: int, why: Reason) -> Ids:
        """Positions along `axis` are removed together; returns the ids without that axis."""
        front: tuple[Any, ...] = (slice(None),) * axis
        rest = ids[(*front, slice(1, None))]
        if rest.size:
            self.couple(np.broadcast_to(ids[(*front, slice(1))], rest.shape), rest, why)
        return np.asarray(ids[(*front, 0)])

    def rectangle(self, ids: Ids) -> None:
        """After pruning, `ids` is a full rectangle again: every kept row keeps the same number, and one at least."""
        if ids.size and (key := (ids.shape, ids.tobytes())) not in self.rectangles:
            self.rectangles[key] = np.ascontiguousarray(ids)

    def normalise(self, ids: Ids, over: Sequence[int]) -> None:
        """Statistics over these axes of `ids` rescale what they are taken of."""
        rows = np.moveaxis(ids, over, range(-len(over), 0))
        self.normed.append(rows.reshape(*rows.shape[: ids.ndim - len(over)], -1))

    def column_ids(self, ids: Ids, why: Reason, loose: bool = False) -> Ids:
        """Column ids of [rows, columns], where something lies along the columns that all rows share (the sines of a
        rotary embedding, the gain of a norm inside heads): from now on only whole rows and whole columns may go.

        loose: of rows that hold copies of one thing (queries of one key) none goes alone where columns may."""
        key = (ids.shape, np.ascontiguousarray(ids).tobytes())
        if key not in self.tables:
            self.tables[key] = ids, self.derive(ids), self.derive(ids.T), why
            self.loose.add(key)
        if not loose:
            self.loose.discard(key)
        return self.tables[key][2]

    def solve(self) -> tuple[Ids, NDArray[np.object_]]:
        """(class of every id, reason of every class or None). Derived ids with the same children are one.

        Tables of which some row must stay, or all go together, are tied to one row: there columns are all there is."""
        while True:
            classes = self.joined()
            stays = np.zeros(int(classes.max()) + 1, bool)
            for ids, _ in self.frozen:
                stays[classes[ids]] = True
            for key in [k for k, (ids, *_) in self.tables.items() if (classes[ids] == classes[ids[:, :1]]).all()]:
                del self.tables[key]  # of which whole rows go as it is
                self.loose.discard(key)
            stuck = [
                key for key, (ids, rows, _, _) in self.tables.items()
                if stays[classes[rows]].any() or stays[classes[ids]].any() or np.ptp(classes[rows]) == 0
            ]  # fmt: skip
            if not (stuck := stuck or self._needless(classes, stays)):
                break
            self.flatten(stuck)
        reasons: NDArray[np.object_] = np.full(int(classes.max()) + 1, None, dtype=object)
        for ids, why in reversed(self.frozen):  # the first one said it
            reasons[classes[ids]] = why
        return classes, reasons

    def flatten(self, tables: Iterable[tuple[tuple[int, ...], bytes]]) -> None:
        """Tie the rows of tables: whole columns may go, and no row."""
        for key in tables:
            ids, _, _, why = self.tables.pop(key)
            self.loose.discard(key)
            self.couple_along(ids, 0, why)

    def _needless(self, classes: Ids, stays: Mask) -> list[tuple[tuple[int, ...], bytes]]:
        """Loose tables of which columns may go, and of no other one that has rows with them in common less is left."""
        apart = {key: set(classes[self.tables[key][1]].tolist()) for key in self.loose}
        held: set[int] = set()
        while more := [k for k, rows in apart.items() if stays[classes[self.tables[k][2]]].any() or rows & held]:
            held = held.union(*(apart.pop(k) for k in more))
        return [*apart]

    def joined(self) -> Ids:
        """The class of every id, as far as it is known by now."""
        one, two = side_by_side([a for a, _, _ in self.pairs]), side_by_side([b for _, b, _ in self.pairs])
        classes = joined(self.n, one[0], two[0])
        while (more := self._equal_rows(classes)).size:
            classes = joined(int(classes.max()) + 1, *classes[more.T])[classes]
        return classes

    def rows(self) -> tuple[Ids, Ids, Ids]:
        """The derived ids, the children of all of them side by side, and where those of each begin."""
        return np.array([*self.children], np.int64), *side_by_side([*self.children.values()])

    def _equal_rows(self, classes: Ids) -> Ids:
        seen: dict[bytes, int] = {}
        found = []
        for derived, members in self.children.items():
            kinds = np.unique(classes[members])
            other = int(members[0]) if kinds.size == 1 else seen.setdefault(kinds.tobytes(), derived)
            if classes[other] != classes[derived]:
                found.append((derived, other))
        return np.array(found, np.int64).reshape(-1, 2)
