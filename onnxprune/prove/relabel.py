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
    by re-trace."""

    def __init__(self, original: Labels, classes: Ids, kept: Mask, frozen: Mask | None = None) -> None:
        super().__init__()
        self.original, self.kept = original, kept
        self.faults: list[tuple[Reason, str]] = []
        self.n = original.n
        self._known: dict[bytes, int] = {}
        names = np.arange(int(classes.max()) + 1)  # of every class; a row unit is named by what is left in it
        if frozen is not None:  # nothing of it went, so that no two of its positions can have been confused
            plain = frozen.copy()
            plain[classes[[KEPT, *original.children]]] = False
            names[plain] = FROZEN
        changed = True
        while changed:
            changed = False
            self._known.clear()
            for derived, members in original.children.items():
                alive = np.unique(names[classes[members[kept[members]]]])
                own = int(names[classes[derived]])
                if FROZEN in alive and own not in (FROZEN, names[classes[KEPT]]):  # what is one with a row that stays
                    names[names == own] = FROZEN
                    changed = True
                elif alive.size and FROZEN not in alive:
                    name = int(alive[0]) if alive.size == 1 else self._known.setdefault(alive.tobytes(), own)
                    if name != own:  # two descriptions of one row
                        names[names == own] = name
                        changed = True
        self.canon = names[classes]
        self._row_of = np.full(names.size + 1, -1)  # the first id of every name; the last place is for FROZEN
        self._row_of[self.canon[::-1]] = np.arange(self.canon.size)[::-1]
        self.births = {}

    def fresh(self, key: Hashable, shape: Iterable[int]) -> Ids:
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
        return None

    def couple(self, a: Ids, b: Ids, why: Reason) -> None:
        self.couplings += a.size
        if a.size != b.size:
            self.faults.append((why, f"couples {a.shape} with {b.shape}"))
            return
        one, two = self._name(a.ravel()), self._name(b.ravel())
        bad = (one != two) & (one != self.canon[KEPT]) & (two != self.canon[KEPT])
        if bad.any():
            self.faults.append((why, f"{int(bad.sum())} of {bad.size} positions pair different channels"))

    def _name(self, ids: Ids) -> Ids:
        inside = ids < self.canon.size
        return np.where(inside, self.canon[np.where(inside, ids, 0)], -ids)

    def derive(self, ids: Ids) -> Ids:
        flat = ids.reshape(-1, ids.shape[-1])
        names = self._name(flat)
        stays = ((flat == KEPT) | (names == FROZEN)).any(axis=1)  # whatever else the row holds
        out: Ids = np.where(stays, KEPT, flat[:, 0])
        for i in np.flatnonzero(~stays & (names.min(axis=1) != names.max(axis=1))).tolist():
            key = np.unique(names[i]).tobytes()
            name = self._known.setdefault(key, -self.n - len(self._known))
            out[i] = -name if name < FROZEN else self._row_of[name]
        return out.reshape(ids.shape[:-1])

    def column_ids(self, ids: Ids, why: Reason) -> Ids:
        return self.derive(ids.T) if ids.ndim == 2 else self.couple_along(ids, 0, why)

    def freeze(self, ids: Ids, why: Reason) -> None:
        """What was frozen was kept; nothing to compare."""

    def remember(self, key: Hashable, answer: bool) -> bool:
        return self.original.remembered.get(key, answer)

    def misfit(self, ids: Ids, why: Reason) -> None:
        """What its rule takes in the original it has to take in a rewriting."""
        if why.node not in self.original.unfit:
            self.faults.append((why, why.text))

    def end_at(self, ids: Ids, why: Reason) -> None:
        """As `freeze`."""

    def ended_at(self, ids: Ids, node: str) -> bool:
        names = self._name(ids)  # of rows: with one column left they go by its name
        return any(
            (np.isin(ids, known) | ((names != FROZEN) & np.isin(names, self.canon[known]))).all()
            for known in self.original.ended.get(node, ())
        )

    def rectangle(self, ids: Ids) -> None:
        """A traced tensor is a rectangle by being one."""
