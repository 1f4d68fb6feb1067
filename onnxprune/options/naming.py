"""Names of nodes, parameters and groups that a user types: which they fit, and what may have been meant.

Knows words, no model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Set

from onnxprune.options.validation import listed, pattern

AXES = re.compile(r"\[(\d+(?:,\d+)*)\](?: of .+)?\Z")
"""What a table adds to a parameter's name: its axes, and the use where there are others."""
SHOWN = 3
"""Near names that a message gives."""
SIGNS = "*?^$\\[]()./:"
"""What a name neither begins nor ends with."""
PATH = re.compile(r"([./:]+[^./:]*|[^./:]+)\Z")
"""The last part of a path."""
SHORTEST = 3
"""Letters of a word that is looked for."""


def matching(text: str, names: Set[str]) -> set[str]:
    """The name itself where it is one; else all that the glob or regular expression fits."""
    if text in names:
        return {text}
    fits = pattern(text)
    return {name for name in names if fits.search(name)}


def without_axes(text: str, ranks: Mapping[str, int]) -> str:
    """The parameter whose axes these are, as a table writes them; any other text as it is. ranks: of parameters."""
    found = AXES.search(text)
    bare = text[: found.start()] if found else text
    axes = map(int, found[1].split(",")) if found else ()
    return bare if all(axis < ranks.get(bare, 0) for axis in axes) else text


def nearest(text: str, names: Iterable[str]) -> str:
    """The end of a message about a name of nothing: which of these may have been meant. Of a pattern its letters are
    looked at, and of a path shorter and shorter beginnings, as exporters write it with other signs and ends."""
    known = sorted(set(names))
    word = text.removeprefix("re:").strip(SIGNS)
    while len(word) >= SHORTEST:
        holding = [name for name in known if word.casefold() in name.casefold()]
        if found := sorted(holding, key=len)[:SHOWN] or difflib.get_close_matches(word, known, SHOWN):
            return f"; did you mean {listed(found)}?"
        word = PATH.sub("", word)
    return "; `onnxprune inspect` lists the names"
