"""What was asked for and nobody would read: one row for each kind, and a line that says so before any work is done.

Knows options and what a run does with them, no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.options.options import Options
from onnxprune.options.validation import flag


@dataclass(frozen=True)
class Run:
    """What a run does, as far as it decides who reads what. inputs: activations are looked at, on inputs that are given
    or made up. data: quality is measured on data of the user's. times: time is measured. plan: a plan says what goes.
    gates: something must hold of the quality. fast: weights alone decide. measured: shares follow from what cuts do to
    the outputs. texts: a text file is read. made_up: inputs are. bounded: the
    ratio follows from a bound of the time."""

    inputs: bool = False
    data: bool = False
    times: bool = False
    plan: bool = False
    gates: bool = False
    fast: bool = False
    measured: bool = False
    texts: bool = False
    made_up: bool = False
    bounded: bool = False


DECIDING = (
    "ratio",
    "max_latency",
    "ratio_of",
    "of",
    "scope",
    "criterion",
    "min_channels",
    "round_to",
    "max_ratio",
    "residual",
    "blocks",
    "kv_heads",
)
INPUTS = ("calib", "calib_samples")
READING = ("calib_batch", "mean", "std", "scale", "tokenizer", "text_length")
QUALITY = ("metric", "validate_samples", "max_drop", "min_agreement", "min_cosine")
GATED = ("keep_on_fail", "gate")
SEARCHED = ("ratio",)
ROWS: tuple[tuple[tuple[str, ...], Callable[[Run], bool], str], ...] = (
    (DECIDING, lambda run: not run.plan, "--plan already says what goes; leave out {flag}"),
    (SEARCHED, lambda run: not run.bounded, "--max-latency finds the ratio; leave out {flag}, or --max-latency"),
    (("force_plan",), lambda run: run.plan, "{flag} is about a plan; give one with --plan"),
    (INPUTS, lambda run: run.inputs or not run.fast, "{flag} is not used with --fast; leave one of them out"),
    (INPUTS, lambda run: run.inputs, "{flag} is not used: nothing here looks at inputs"),
    (
        ("blocks",), lambda run: run.measured,
        "{flag} and --no-blocks are not used: whole branches go only where what the outputs lose is measured; leave "
        "them out, or --fast and --scope",
    ),
    (("effort",), lambda run: run.inputs, "{flag} is not used: nothing here looks at inputs"),
    (READING, lambda run: run.inputs or run.data, "{flag} is not used: nothing here reads inputs, pictures or texts"),
    (("text_length",), lambda run: run.texts, "{flag} is about texts, and none is read; give one, such as words.txt"),
    (
        ("tokenizer",), lambda run: run.texts or run.made_up,
        "{flag} is about texts, and none is read or made up; give one, such as words.txt",
    ),
    (
        ("threads", "batch"), lambda run: run.times,
        "{flag} says how time is measured, and none is; add --benchmark, --max-latency, --of latency or "
        "--round-to auto",
    ),
    (QUALITY, lambda run: run.data, "{flag} needs data; give it with --validate"),
    (GATED, lambda run: run.gates, "{flag} needs a gate; give --max-drop, --min-agreement or --min-cosine"),
)  # fmt: skip
"""(what may be asked for, where it is read, what is said where it is not)."""
DIALS = {"calib_samples", "calib_batch", "threads", "batch"}
"""How much and how fast: in a program the same numbers may go with many calls, and where one turns nothing no harm is
done. Whoever types one means it."""


def check(asked: Iterable[str], run: Run) -> None:
    """UsageError for the first of what was `asked` for, by the names of options and flags, that this run reads not."""
    asked = set(asked)
    for names, is_read, said in ROWS:
        for name in names:
            if name in asked and not is_read(run):
                raise UsageError(said.format(flag=flag(name)))


def differing(keywords: Mapping[str, Any]) -> set[str]:
    """The keywords of a call that ask for something: not the defaults, and no dials."""
    defaults = {f.name: getattr(Options(), f.name) for f in fields(Options)}
    return {name for name, value in keywords.items() if name not in DIALS and value is not defaults.get(name)}
