"""The shares that a user gives to parts of a model by name (--ratio-of): from names to units.

Knows names, units and what must lose alike; no scores and no budget.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.options import SHOWN, Options, listed, matching, nearest
from onnxprune.planning.buckets import linked_buckets
from onnxprune.planning.limits import movable
from onnxprune.trace import Groups, Ids, Layers, Mask

Asked = Mapping[int, float]
"""By unit (its class), the share, 0 to below 1, of its set of linked buckets that goes."""
NOTHING: Asked = {}


def asked(groups: Groups, options: Options) -> Asked:
    """The share of every unit that --ratio-of names, and of those that must lose as many. A full name goes before
    patterns, and of patterns the last one counts. UsageError for a name of nothing that may go, for two full names with
    different shares of the same units, and for a pattern that says nothing because of later ones."""
    if not options.ratio_of:
        return NOTHING
    may = movable(groups, options)
    home = _together(groups, may)
    share, full = options.ratio_of, {text: _is_full(groups, text) for text in options.ratio_of}
    said: dict[int, str] = {}
    for text in sorted(share, key=full.__getitem__):
        overruled: dict[str, None] = {}
        for place in np.unique(home[_named(groups, text, may, options)]).tolist():
            if (before := said.get(place, text)) != text and share[before] != share[text]:
                overruled[before] = None
            said[place] = text
        for before in overruled:
            if full[before]:
                raise UsageError(
                    f"--ratio-of {_said(options, before)} and {_said(options, text)} name units that go together; give "
                    "them one share"
                )
            if not full[text] and before not in said.values():
                raise UsageError(
                    f"--ratio-of {_said(options, before)} says nothing, as {_said(options, text)} comes later and of "
                    "patterns the last one counts; put it last, or leave it out"
                )
    return {u: share[said[p]] for u, p in enumerate(home.tolist()) if p in said and may[u]}


def _is_full(groups: Groups, text: str) -> bool:
    """Whether this is a name as it stands in the model, and no pattern."""
    return text in groups.layers.axes or text in groups.layers.made


def _together(groups: Groups, may: Mask) -> Ids:
    """[classes]: the same number for units that lose the same share, which those of a row alone do not."""
    home = np.arange(len(may))
    none = np.zeros(len(may), bool)
    for part in linked_buckets(groups, none.astype(float), may & ~groups.grid_units, none):
        home[part.members] = part.name
    return home


def _named(groups: Groups, text: str, may: Mask, options: Options) -> Ids:
    """The units that a name or pattern stands for; UsageError where none of them may go."""
    layers = groups.layers
    names: set[str] = set()
    if text in layers.axes:
        units = layers.axes[text]
    elif names := matching(text, layers.made.keys()):
        units = layers.units(names)
    elif fitting := matching(text, layers.axes.keys()):
        units = np.unique(np.concatenate([layers.axes[name] for name in fitting]))
    else:
        near = nearest(text, (*(n for n, made in layers.made.items() if made.carried.size), *_free(layers)))
        raise UsageError(f"--ratio-of {_said(options, text)}: no node, parameter or group has such a name{near}")
    if not units.size:
        read = layers.groups_of(np.unique(np.concatenate([layers.made[n].read for n in names]))) if names else []
        mend = f"; name what it reads, {listed(read[:SHOWN])}" if read else nearest(text, _free(layers))
        raise UsageError(f"--ratio-of {_said(options, text)}: nothing that it makes may go{mend}")
    if not may[units].any():
        mend = "leave out --no-residual" if not groups.normed[units].all() else "--residual lets them go"
        raise UsageError(f"--ratio-of {_said(options, text)}: residual channels stay; {mend}")
    return units[may[units]]


def _free(layers: Layers) -> list[str]:
    """The groups of which units may go."""
    return [name for name in layers.groups if layers.axes[name].size]


def _said(options: Options, text: str) -> str:
    """What was typed."""
    return f"{text}={options.ratio_of[text]:g}"
