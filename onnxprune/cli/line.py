"""Which words of a command line are flags, which are values of theirs, and which are files.

argparse hands every word that follows a flag of several values to that flag, so that in `--providers cpu IN OUT` no
file is left. So the words are sorted before it sees them. Knows argparse, no model.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnxprune.errors import UsageError

NUMBER = re.compile(r"-\.?\d")
"""How a word begins that is a negative number and no flag."""
DASHES = tuple("-\u2013\u2014\u2212")
"""How a flag begins, also where an editor made one long dash of two."""
Word = tuple[int, str]
"""Where a word stands in the line, and the word."""


@dataclass
class Said:
    """One flag as it was typed, and its values. joined: the one value was typed as `--flag=value`."""

    flag: str
    action: argparse.Action
    values: list[Word] = field(default_factory=list)
    joined: bool = False

    def takes_more(self) -> bool:
        """Whether the next word may be a value of this flag."""
        if self.joined or self.action.nargs == 0:
            return False
        return self.action.nargs == "+" or not self.values

    def spare(self) -> int:
        """How many values the flag can do without."""
        return len(self.values) - (self.action.nargs != "?")

    def value(self) -> str:
        """What follows the flag, as one text."""
        return " ".join(value for _, value in self.values)

    def words(self) -> Iterator[str]:
        """As argparse reads it without doubt: a single value stays with its flag, whatever it begins with."""
        values = [value for _, value in self.values]
        if len(values) == 1 and (self.joined or self.action.nargs != "+") and self.flag.startswith("--"):
            yield f"{self.flag}={values[0]}"
        else:
            yield from (self.flag, *values)


class Unknown(Exception):
    """A word that looks like a flag and is none."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word.partition("=")[0]


@dataclass
class Line:
    """The words of a command line, sorted: flags with their values in their order, and files."""

    said: list[Said]
    files: list[Word]

    def give_back(self, missing: int) -> None:
        """Where files are missing and the last words after a flag of several values are these files, they are: the
        first of them has to be a model by its name, or a file."""
        for one in reversed(self.said):
            if 0 < missing <= one.spare() and is_model(one.values[-missing][1]):
                self.files = sorted(self.files + one.values[-missing:])
                del one.values[-missing:]
                return

    def greedy(self) -> str:
        """The last flag that may have taken words that were meant as files; "" where there is none."""
        return next((one.flag for one in reversed(self.said) if not one.joined and one.spare() > 0), "")

    def before(self, place: int) -> Said | None:
        """The flag whose values end where the word at `place` stands."""
        return next((one for one in self.said if one.values and one.values[-1][0] == place - 1), None)

    def check_once(self) -> None:
        """UsageError for a flag that is given twice, with different values: only the last would be read."""
        seen: dict[str, Said] = {}
        for one in self.said:
            first = seen.setdefault(one.action.dest, one)
            if isinstance(one.action, argparse._ExtendAction) or [*first.words()] == [*one.words()]:
                continue
            if first.flag == one.flag:
                raise UsageError(f"{one.flag} is given twice, as {first.value()} and as {one.value()}; leave one out")
            raise UsageError(f"{first.flag} and {one.flag} decide the same thing; leave one out")


def is_model(word: str) -> bool:
    """Whether a word is likely meant as the file of a model."""
    return word.endswith(".onnx") or os.path.isfile(word)


def _check_filled(argv: Sequence[str], actions: Mapping[str, argparse.Action]) -> None:
    """UsageError for an empty word, which as a path would be the folder that one is in."""
    for at, word in enumerate(argv):
        name, joined, value = word.partition("=")
        if not word or (name in actions and joined and not value):
            before = name or (argv[at - 1] if at else "")
            where = f"behind {before}" if before else "in the first place"
            raise UsageError(f"the word {where} is empty; is a variable of your script not set?")


def sort(argv: Sequence[str], actions: Mapping[str, argparse.Action]) -> Line:
    """The words by what they are. Unknown for what looks like a flag and is none; UsageError for an empty word."""
    _check_filled(argv, actions)
    line = Line([], [])
    for at, word in enumerate(argv):
        name, _, value = word.partition("=")
        if word == "--":
            line.files += [(at + 1 + k, w) for k, w in enumerate(argv[at + 1 :])]
            break
        if word in actions:
            line.said.append(Said(word, actions[word]))
        elif name in actions:
            line.said.append(Said(name, actions[name], [(at, value)], joined=True))
        elif word[0:1] in DASHES and len(word) > 1 and not NUMBER.match(word):
            raise Unknown(word)
        elif line.said and line.said[-1].takes_more():
            line.said[-1].values.append((at, word))
        else:
            line.files.append((at, word))
    return line
