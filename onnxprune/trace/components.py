"""Which blocks of parameters hang together: the groups. Knows ids, slices and couplings, no operator and no ONNX."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from onnxprune.trace.classes import joined, side_by_side
from onnxprune.trace.labels import KEPT, Ids, Labels


def components(labels: Labels, classes: Ids, blocks: Sequence[Ids]) -> list[list[int]]:
    """The groups: the indices of the `blocks` of each, by the first of them. Two hang together that have units in
    common, or of which an operator couples ids. classes: of every id."""
    units, starts = side_by_side([classes[ids.ravel()] for ids in blocks])
    owner = np.repeat(np.arange(len(blocks)), np.diff(starts, append=units.size))
    moves = units != classes[KEPT]  # what always stays couples nothing
    first = np.full(int(classes.max()) + 1, len(blocks))
    np.minimum.at(first, units[moves], owner[moves])
    later = moves & (first[units] != owner)
    shared = np.stack([first[units[later]], owner[later]], 1)
    links = np.concatenate([shared, np.array(_coupled(labels, blocks), np.int64).reshape(-1, 2)])
    found: dict[int, list[int]] = {}
    for block, component in enumerate(joined(len(blocks), *links.T).tolist()):
        found.setdefault(component, []).append(block)
    return [*found.values()]


def _coupled(labels: Labels, blocks: Sequence[Ids]) -> list[tuple[int, int]]:
    """Blocks that an operator couples, be it only in what always stays."""
    home: dict[Hashable, int] = {}
    for k, ids in enumerate(blocks):
        for key in {labels.born_in(int(i)) for i in (ids.flat[0], ids.flat[-1])}:
            home.setdefault(key, k)
    births = dict.fromkeys((labels.born_in(int(a[0])), labels.born_in(int(b[0]))) for a, b, _ in labels.pairs)
    _find_homes(births, home)
    return [(home[one], home[two]) for one, two in births if one in home and two in home]


def _find_homes(births: dict[tuple[Hashable, Hashable], None], home: dict[Hashable, int]) -> None:
    """Births that no parameter holds (what an operator makes of two blocks) get the home of one that they are coupled
    with, so that what meets in them hangs together."""
    count = -1
    while count != len(home):
        count = len(home)
        for one, two in births:
            for homeless, other in ((one, two), (two, one)):
                if homeless not in home and other in home:
                    home[homeless] = home[other]
