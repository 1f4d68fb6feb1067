"""What every option may be, in the words that flags and keywords share: one row an option.

Knows names, numbers and words, no stage.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

from onnxprune.errors import UsageError
from onnxprune.options import OptionKeywords, Options

LENGTHS = "a number of steps from 1 on, or a time such as 90s, 5m or 1h"
SECONDS = {"s": 1, "m": 60, "h": 3600}


def training_length(asked: Any) -> tuple[int, float] | None:
    """(steps, seconds), 0 for what is not said: a whole number says steps, 90s, 5m or 1h a time; True, False and None
    say neither. None where it is none of these."""
    if asked is None or isinstance(asked, bool):
        return 0, 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])|(\d+)", str(asked))
    if found is None or not isinstance(asked, Integral | str) or float(found[1] or found[3]) <= 0:
        return None
    return (int(found[3]), 0.0) if found[3] else (0, float(found[1]) * SECONDS[found[2]])


Rule = tuple[str, Callable[[Any], bool], str]
RULES: tuple[Rule, ...] = (
    ("ratio", lambda x: 0 < x < 1, "is not between 0 and 1; it is the share of units to remove, such as 0.3"),
    ("calib_samples", lambda n: n >= 1, "is not at least 1"),
    ("calib_batch", lambda n: n >= 1, "is not at least 1"),
    ("memory", lambda n: n >= 1 << 20, "is not at least 1 MiB"),
    ("round_to", lambda n: n >= 0, "is not auto (0) or from 1 on"),
    ("min_channels", lambda n: n >= 1, "is not at least 1"),
    ("max_ratio", lambda x: 0 < x <= 1, "is not in (0, 1]; it is the share of its units that a group may lose"),
    ("threads", lambda n: n >= 0, "is not from 0 on (0: as many as the runtime likes)"),
    ("batch", lambda n: n >= 1, "is not at least 1"),
    ("finetune", lambda x: training_length(x) is not None, f"is not {LENGTHS}"),
)
"""(option, what holds of its value, words for where it does not)."""
CHOICES = {
    name: get_args(hint)
    for name, hint in get_type_hints(Options).items()
    if get_args(hint) and all(isinstance(c, str) for c in get_args(hint))
}
"""The words that an option may be, as its type says; an empty one leaves it to others."""
NUMBERS = {f.name: type(f.default) for f in fields(Options) if type(f.default) in (int, float)}
SWITCHES = {f.name for f in fields(Options) if type(f.default) is bool}
GATES = {"max_drop", "min_agreement", "min_cosine"}
"""Flags that are no options: in Python they are fields of `Gates`."""
NAMES = ("nodes_to_exclude", "op_types_to_exclude", "providers")


def flag(name: str) -> str:
    """How an option is called where it is typed: `--calib-samples`, which is `calib_samples` in Python."""
    return f"--{name.replace('_', '-')}"


def given(options: Options | None, keywords: Mapping[str, Any] | OptionKeywords) -> Options:
    """The options with what the keywords say, checked. TypeError for a keyword that is no option, with the nearest
    name; UsageError for a value that an option cannot have."""
    if not isinstance(options, Options | None):
        raise TypeError(f"options are given by name or as an Options, not as {options!r}: write ratio=0.3")
    known = {f.name for f in fields(Options)}
    for name in keywords:
        if name in GATES:
            raise TypeError(f"'{name}' is a gate: write validate=data, gates=Gates({name}=...)")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(f"there is no option '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    return validated(replace(options or Options(), **keywords))


def validated(options: Options) -> Options:
    """The same options, a single name as a list of one. UsageError where one of them cannot be what it is."""
    single: dict[str, Any] = {n: (x,) for n in NAMES if isinstance(x := getattr(options, n), str)}
    options = replace(options, **single)
    for name in (f.name for f in fields(options)):
        value = getattr(options, name)
        wrong = _wrong_kind(name, value) or next((w for n, holds, w in RULES if n == name and not holds(value)), "")
        if wrong:
            raise UsageError(f"{flag(name)} {value!r} {wrong}")
    for name in options.nodes_to_exclude:
        pattern(name)  # says which is none
    return options


def _wrong_kind(name: str, value: Any) -> str:
    """What an option has to be, where a value is something else."""
    truth = isinstance(value, bool)
    if name in NUMBERS:
        whole = NUMBERS[name] is int
        fits = isinstance(value, Integral if whole else Real) and not truth
        return "" if fits else f"is not a {'whole number' if whole else 'number'}"
    if name in SWITCHES:
        return "" if truth else "is not True or False"
    if name in CHOICES and value not in CHOICES[name]:
        return f"is not {' or '.join(filter(None, CHOICES[name]))}"
    return ""


def pattern(name: str) -> re.Pattern[str]:
    """A name, a glob, or `re:` and a regular expression that may match anywhere; UsageError where that is none."""
    if not name.startswith("re:"):
        return re.compile(rf"\A{fnmatch.translate(name)}")
    try:
        return re.compile(name[3:])
    except re.error as error:
        raise UsageError(f"--nodes-to-exclude {name}: not a regular expression: {error}") from None
