"""What every option may be, in the words that flags and keywords share: one row an option.

Knows names, numbers and words, no stage.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from numbers import Integral, Real
from os import PathLike
from typing import Any, get_args, get_type_hints

from onnxprune.errors import UsageError
from onnxprune.options.options import Gates, OptionKeywords, Options


def all_of(fits: Callable[[float], bool]) -> Callable[[Any], bool]:
    """What holds of numbers, one or more, of which each `fits`."""

    def holds(values: Any) -> bool:
        numbers = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
        return bool(numbers) and all(isinstance(x, Real) and fits(float(x)) for x in numbers)

    return holds


def shares(values: Any) -> bool:
    """Whether these are names and shares: 0 keeps what it names whole, all of it cannot go."""
    return isinstance(values, Mapping) and all(
        isinstance(name, str) and name and isinstance(x, Real) and not isinstance(x, bool) and 0 <= float(x) < 1
        for name, x in values.items()
    )


def names(values: Any) -> bool:
    """Whether these are several names; a single one is made a list of one before."""
    several = isinstance(values, Collection) and not isinstance(values, str | bytes | Mapping)
    return several and all(isinstance(name, str) for name in values)


def sizes(values: Any) -> bool:
    """Whether these are names and whole numbers for each."""
    return isinstance(values, Mapping) and all(
        isinstance(name, str) and isinstance(dims, Collection) and all(isinstance(n, Integral) for n in dims)
        for name, dims in values.items()
    )


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


MILLISECONDS = {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3, "m": 6e4}


def milliseconds(asked: Any) -> float | None:
    """Of a time such as 5ms, 0.8ms or 2s, or of a number of them; None where it is none above 0."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(?:e-?\d+)?\s*(ms|us|s|m|)", str(asked).strip())
    if found is None or isinstance(asked, bool) or not isinstance(asked, Real | str):
        return None
    value = float(str(asked).strip().removesuffix(found[2])) * MILLISECONDS[found[2]]
    return value if 0 < value < math.inf else None


def bytes_of(text: str) -> int:
    """Bytes, with K, M or G (also KB, KiB, ...) for powers of 1024. ValueError for what is none."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    short = text.upper().removesuffix("B").removesuffix("I")
    return int(short[:-1]) * units[short[-1]] if short[-1:] in units else int(text)


NAMES = ("nodes_to_exclude", "op_types_to_exclude", "providers")
Rule = tuple[str, Callable[[Any], bool], str]
RULES: tuple[Rule, ...] = (
    ("ratio", lambda x: 0 < x < 1, "is not between 0 and 1; it is the share of units to remove, such as 0.3"),
    ("calib_samples", lambda n: n >= 1, "is not at least 1"),
    ("calib_batch", lambda n: n >= 1, "is not at least 1"),
    ("mean", all_of(math.isfinite), "is not numbers, such as 0.485,0.456,0.406"),
    ("std", all_of(lambda x: 0 < x < math.inf), "is not numbers above 0, such as 0.229,0.224,0.225"),
    ("scale", lambda x: 0 < x < math.inf, "is not a number above 0; 1/255 brings pixels into 0..1"),
    ("tokenizer", lambda x: isinstance(x, str | PathLike), "is not a path; it is the tokenizer.json of the model"),
    ("text_length", lambda n: n >= 2, "is not at least 2; it is the number of tokens in a window of a text"),
    ("memory", lambda n: n == 0 or n >= 1 << 20, "is not at least 1 MiB (1M); 4G is usual"),
    ("round_to", lambda n: n >= 0, "is not auto (0) or from 1 on"),
    ("min_channels", lambda n: n >= 1, "is not at least 1"),
    ("max_ratio", lambda x: 0 < x <= 1, "is not in (0, 1]; it is the share of its units that a group may lose"),
    ("seed", lambda n: n >= 0, "is not from 0 on"),
    ("threads", lambda n: n >= 0, "is not from 0 on (0: as many as the runtime likes)"),
    ("batch", lambda n: n >= 1, "is not at least 1"),
    ("check_rtol", lambda x: 0 <= x < math.inf, "is not from 0 on"),
    ("check_atol", lambda x: 0 <= x < math.inf, "is not from 0 on"),
    ("blocks", lambda x: isinstance(x, bool), "is not True, False or None"),
    ("max_latency", lambda x: milliseconds(x) is not None, "is not a time above 0; write 5ms, 0.8ms or 2s"),
    ("finetune", lambda x: training_length(x) is not None, f"is not {LENGTHS}"),
    *((name, names, "is not a name or a list of names") for name in NAMES),
    ("input_shapes", sizes, "is not names of inputs with their sizes, such as {'image': [1, 3, 224, 224]}"),
    ("ratio_of", shares, "is not a name and the share of its units to remove, 0 to below 1, as in 'encoder.*=0.5'"),
    ("max_drop", lambda x: 0 <= x < math.inf, "is not from 0 on"),
    ("min_agreement", lambda x: 0 < x <= 1, "is not above 0 and at most 1"),
    ("min_cosine", lambda x: 0 < x <= 1, "is not above 0 and at most 1"),
)
"""(option, what holds of its value where there is one, words for where it does not)."""
WORDS = {name: words for name, _, words in RULES}
HINTS = get_type_hints(Options) | get_type_hints(Gates)
CHOICES = {
    name: get_args(hint)
    for name, hint in HINTS.items()
    if get_args(hint) and all(isinstance(c, str) for c in get_args(hint))
}
"""The words that an option may be, as its type says; an empty one leaves it to others."""
NUMBERS: dict[str, type[int] | type[float]] = {
    name: kind for name, hint in HINTS.items() for kind in (int, float) if hint in (kind, kind | None)
}
SWITCHES = {f.name for f in fields(Options) if type(f.default) is bool}
OPTIONAL = {f.name for f in (*fields(Options), *fields(Gates)) if f.default is None}
GATES = tuple(f.name for f in fields(Gates))
"""Flags that are no options: in Python they are fields of `Gates`."""
SHARES = {"ratio", "max_ratio", "min_agreement", "min_cosine"}
"""What is told from 0 to 1 and thought of in per cent."""
AUTO: Any = "auto"
"""Of `round_to`: to be found out, which is 0 from here on."""


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
            raise TypeError(f"there is no option '{name}'{near(name, known)}")
    return validated(replace(options or Options(), **keywords))


def validated(options: Options) -> Options:
    """The same options, a single name as a list of one, "auto" and "4G" as the numbers that they mean. UsageError where
    one of them cannot be what it is; whoever comes by the command line has been told before, as the flags are read."""
    plain: dict[str, Any] = {n: (x,) for n in NAMES if isinstance(x := getattr(options, n), str)}
    plain |= {"round_to": 0} if options.round_to == AUTO else {}
    plain |= {"max_latency": ms} if (ms := milliseconds(options.max_latency)) is not None else {}
    if isinstance(options.memory, str):
        with suppress(ValueError):
            plain["memory"] = bytes_of(options.memory)
    options = replace(options, **plain)
    for name in (f.name for f in fields(options)):
        value = getattr(options, name)
        if wrong := objection(name, value):
            raise UsageError(f"{name}={value!r} {wrong}")
    if options.kv_heads and not options.heads:
        raise UsageError("--kv-heads lets whole heads go, and --no-heads keeps them; leave one of them out")
    for name in options.nodes_to_exclude:
        pattern(name)  # says which is none
    for name, share in options.ratio_of.items():
        pattern(name, "ratio_of")
        if share > options.max_ratio:
            raise UsageError(f"--ratio-of {name}={share:g} is more than --max-ratio {options.max_ratio:g} lets go")
    return options


def objection(name: str, value: Any) -> str:
    """Why an option cannot have this value, as the end of a sentence that begins with the value; "" where it can."""
    if value is None and name in OPTIONAL:
        return ""
    if wrong := _wrong_kind(name, value):
        wrong = "; ".join([wrong, *WORDS.get(name, "").split("; ")[1:]])
    else:
        wrong = next((w for n, holds, w in RULES if n == name and not holds(value)), "")
    return f"{wrong}{share_meant(value)}" if wrong and name in SHARES else wrong


def check_gates(gates: Gates | None) -> None:
    """UsageError where one of them cannot be what it is; TypeError where they are no Gates."""
    if not isinstance(gates, Gates | None):
        raise TypeError(f"gates are given as Gates(max_drop=0.01), not as {gates!r}")
    for name in () if gates is None else GATES:
        if wrong := objection(name, value := getattr(gates, name)):
            raise UsageError(f"{name}={value!r} {wrong}")


def share_meant(value: Any) -> str:
    """The end of a message about what is no share of 1: the share that 30, "30%" or "0,3" may have been meant as."""
    text = str(value).replace(",", ".").strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return ""
    if text.endswith("%") or number >= 1:
        number /= 100
    return f"; did you mean {number:g}?" if 0 < number < 1 else ""


def listed(words: Iterable[str], joint: str = "or") -> str:
    """a, b or c; an empty word is none."""
    *most, last = filter(None, words)
    return f"{', '.join(most)} {joint} {last}" if most else last


def near(word: str, words: Iterable[str]) -> str:
    """The end of a message about a word that is none of these: which one may have been meant."""
    found = difflib.get_close_matches(word, sorted(filter(None, words)), 1, cutoff=0.7)  # at 0.6 gpu means cpu
    return f"; did you mean '{found[0]}'?" if found else ""


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
        return f"is not {listed(CHOICES[name])}{near(str(value), CHOICES[name])}"
    return ""


def pattern(name: str, option: str = "nodes_to_exclude") -> re.Pattern[str]:
    """A name, a glob, or `re:` and a regular expression that may match anywhere; UsageError where that is none."""
    if not name.startswith("re:"):
        return re.compile(rf"\A{fnmatch.translate(name)}")
    try:
        return re.compile(name[3:])
    except re.error as error:
        raise UsageError(f"{flag(option)} {name}: not a regular expression: {error}") from None
