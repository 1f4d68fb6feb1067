"""What a shell completes: a script for bash, zsh or fish, made of what the parsers of all commands say.

shtab and argcomplete take the first word for a sub-command; here it may be a file as well. Knows argparse and shells,
no model.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from onnxprune.cli import flags, running
from onnxprune.cli.commands import COMMANDS, job

SHELLS = ("bash", "zsh", "fish")
PATHS = {"FILE", "DATA", "TOML", "IN"}
"""How flags call values that are files or folders."""
SUGGESTED = {
    "criterion": f"obs, {flags.CRITERIA}", "criteria": f"obs, {flags.CRITERIA}", "metric": flags.METRICS,
    "providers": running.PROVIDERS, "round_to": "auto",
}  # fmt: skip
"""Words that a flag takes beside others, by where its value goes."""


@dataclass(frozen=True)
class Completed:
    """What follows a flag: a value or none, perhaps more of them, which are words, files or neither."""

    flags: tuple[str, ...]
    value: bool
    more: bool
    words: tuple[str, ...]
    is_file: bool
    help: str


def script(shell: str) -> str:
    """The script for one of SHELLS."""
    table = {name: [*_completed(name)] for name in COMMANDS}
    parts = _fish(table) if shell == "fish" else _bash(table)
    text = files("onnxprune.cli").joinpath("shells", "fish" if shell == "fish" else "bash").read_text("utf-8")
    parts |= {"COMMANDS": " ".join(COMMANDS), "TOPICS": " ".join(job("help").TOPICS)}
    for mark, value in parts.items():
        text = text.replace(f"@{mark}@", value)
    head = files("onnxprune.cli").joinpath("shells", "zsh").read_text("utf-8") if shell == "zsh" else ""
    return head + text


def _completed(name: str) -> Iterator[Completed]:
    """The flags of a command."""
    for action in job(name).parser()._actions:
        if action.option_strings:
            words = tuple(filter(None, SUGGESTED.get(action.dest, "").split(", ")))
            words = tuple(action.choices or words)
            told = (action.help or "").partition(" (")[0]
            value, more = action.nargs not in (0, "?"), action.nargs == "+"
            yield Completed(tuple(action.option_strings), value, more, words, str(action.metavar) in PATHS, told)


def _bash(table: dict[str, list[Completed]]) -> dict[str, str]:
    """The flags of each command, and what follows each flag; what is alike stands in one line."""
    follows: dict[str, list[str]] = {}
    for name, completed in table.items():
        for one in completed:
            if one.value:
                more, is_file = ("yes" if is_so else "" for is_so in (one.more, one.is_file))
                does = f"most=1 more={more} words={shlex.quote(' '.join(one.words))} files={is_file}"
                follows.setdefault(does, []).extend(f"'{name} {flag}'" for flag in one.flags)
    return {
        "FLAGS": "\n".join(
            f"            {name}) words='{' '.join(flag for one in completed for flag in one.flags)}' ;;"
            for name, completed in table.items()
        ),
        "FOLLOWS": "\n".join(f"        {'|'.join(places)}) {does} ;;" for does, places in follows.items()),
        "CASES": "|".join(COMMANDS),
    }


def _fish(table: dict[str, list[Completed]]) -> dict[str, str]:
    """A line for each flag and the commands that have it."""
    owners: dict[Completed, list[str]] = {}
    for name, completed in table.items():
        for one in completed:
            owners.setdefault(one, []).append(name)
    return {
        "ABOUT": "\n".join(
            f"complete -c onnxprune -n __fish_is_first_arg -a {name} -d {_quoted(job(name).ABOUT)}" for name in COMMANDS
        ),
        "FLAGS": "\n".join(line for one, names in owners.items() for line in _fish_lines(one, " ".join(names))),
    }


def _fish_lines(one: Completed, names: str) -> Iterator[str]:
    spelled = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in one.flags)
    words = f" -a {_quoted(' '.join(one.words))}" if one.words else ""
    takes = "" if not one.value else " -r -F" if one.is_file else f" -x{words}"
    yield f"complete -c onnxprune -n '__onnxprune_job {names}' {spelled}{takes} -d {_quoted(one.help)}"
    if one.more and words:  # fish knows flags of one value only
        yield f"complete -c onnxprune -n '__onnxprune_job {names}; and __onnxprune_after {one.flags[0]}'{words}"


def _quoted(text: str) -> str:
    """As fish reads it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
