"""The ids of the original on a rewritten graph: what the proof by re-trace compares. numpy only, no ONNX.

Knows `labels` and which ids were kept; not how the graph was rewritten, so that no mistake there can hide here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np

from onnxprune.trace import KEPT, Ids, Labels, Mask, Reason, take_kept

FROZEN = -1
"""The name of all positions that could not be confused: nothing of their class went."""


class Kept(Labels):
    """The labels of a rewritten graph, written with the ids of the original: nothing is joined, everything compared.

    A coupling whose two sides are not the same original channels, position by position, is a fault: this is the proof
    by re-trace. classes: of every id of the original; frozen: the classes of which nothing went.
    canon: the name of every id. faults: what differs, and where."""

    def __init__(self, original: Labels, classes: Ids, kept: Mask, frozen: Mask | None = None) -> None:
        super().__init__()
        self.original, self.kept = original, kept
        self.faults: list[tuple[Reason, str]] = []
        self.n = original.n
        self._known: dict[bytes, int] = {}
        names = np.arange(int(classes.max()) + 1)
        if frozen is not None:  # nothing of it went, so that no two of its positions can have been confused
            plain = frozen.copy()
            plain[classes[[KEPT, *original.children]]] = False
            names[plain] = FROZEN
        while self._rename_rows(names, classes):
            pass
        self.canon = names[classes]
        self._row_of = np.full(names.size + 1, -1)  # the first id of every name; the last place is for FROZEN
        self._row_of[self.canon[::-1]] = np.arange(self.canon.size)[::-1]
        self.births = {}

    def _rename_rows(self, names: Ids, classes: Ids) -> bool:
        """Name every row unit, in place, by what is left in it. Whether a name changed: others may then, too."""
        changed = False
        self._known.clear()
        for derived, members in self.original.children.items():
            alive = np.unique(names[classes[members[self.kept[members]]]])
            own = name = int(names[classes[derived]])
            if FROZEN in alive:
                if own != names[classes[KEPT]]:
                    name = FROZEN  # one with a row that stays
            elif alive.size:  # two descriptions of one row have one name
                name = int(alive[0]) if alive.size == 1 else self._known.setdefault(alive.tobytes(), own)
            if name != own:
                names[names == own] = name
                changed = True
        return changed

    def fresh(self, key: Hashable, shape: Iterable[int]) -> Ids:
        """The ids of the original that were kept there; none, and a fault, where they are not of that shape (-1: any
        size). What the original knows no birth of stays."""
        shape = tuple(shape)
        born = self.original.births.get(key)
        if born is None:
            return np.zeros(shape, np.int64)
        alive = take_kept(born, self.kept)
        if alive.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, alive.shape, strict=True)):
            self.faults.append((Reason("", str(key), ""), f"has {shape} positions where {alive.shape} are kept"))
            return np.zeros([max(n, 1) for n in shape], np.int64)
        return alive

    def origin(self, ids: Ids) -> Hashable | None:
        """Nothing is asked to be born anew: it is as the original settled it."""
        return None

    def couple(self, a: Ids, b: Ids, why: Reason) -> None:
        """Compare the names of both sides; what always stays agrees with everything."""
        self.couplings += a.size
        if a.size != b.size:
            self.faults.append((why, f"couples {a.shape} with {b.shape}"))
            return
        one, two = self._name(a.ravel()), self._name(b.ravel())
        bad = (one != two) & (one != self.canon[KEPT]) & (two != self.canon[KEPT])
        if bad.any():
            self.faults.append((why, f"{int(bad.sum())} of {bad.size} positions pair different channels"))

    def _name(self, ids: Ids) -> Ids:
        """The names of ids; those of rows that the original never formed, which lie past its ids, name themselves."""
        inside = ids < self.canon.size
        return np.where(inside, self.canon[np.where(inside, ids, 0)], -ids)

    def derive(self, ids: Ids) -> Ids:
        """Row ids of a block [.., n]: the original's id of what is left in a row, or one past its ids where it has
        none."""
        flat = ids.reshape(-1, ids.shape[-1])
        names = self._name(flat)
        stays = ((flat == KEPT) | (names == FROZEN)).any(axis=1)  # whatever else the row holds
        out: Ids = np.where(stays, KEPT, flat[:, 0])
        for i in np.flatnonzero(~stays & (names.min(axis=1) != names.max(axis=1))).tolist():
            key = np.unique(names[i]).tobytes()
            name = self._known.setdefault(key, -self.n - len(self._known))
            out[i] = -name if name < FROZEN else self._row_of[name]
        return out.reshape(ids.shape[:-1])

    def column_ids(self, ids: Ids, why: Reason, loose: bool = False) -> Ids:
        """Column ids [columns] of [rows, columns]; whether whole columns went shows where they are compared."""
        return self.derive(ids.T)

    def freeze(self, ids: Ids, why: Reason) -> None:
        """What was frozen was kept; nothing to compare."""

    def remember(self, key: Hashable, answer: bool) -> bool:
        """What was made of these positions in the original."""
        return self.original.remembered.get(key, answer)

    def misfit(self, ids: Ids, why: Reason) -> None:
        """What its rule takes in the original it has to take in a rewriting."""
        if why.node not in self.original.unfit:
            self.faults.append((why, why.text))

    def end_at(self, ids: Ids, why: Reason) -> None:
        """As `freeze`."""

    def ended_at(self, ids: Ids, node: str) -> bool:
        """Whether the original carried these ids, or rows that go by the name of their only column, no further."""
        names = self._name(ids)
        return any(
            (np.isin(ids, known) | ((names != FROZEN) & np.isin(names, self.canon[known]))).all()
            for known in self.original.ended.get(node, ())
        )

    def rectangle(self, ids: Ids) -> None:
        """A traced tensor is a rectangle by being one."""
