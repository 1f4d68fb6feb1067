"""How --help looks: sections, the common flags first, and the default of every flag. Knows argparse and the defaults of
`Options`, no model."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from onnxprune.options import Options


class Answer(argparse.Action):
    """A flag that prints something and ends the command, whatever else is given. answer: the text, by the parser and
    the value of the flag."""

    def __init__(self, option_strings: Sequence[str], answer: Callable[[Any, Any], str], **how: Any) -> None:
        super().__init__(option_strings, **{"nargs": 0, **how})
        self.answer = answer

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Print it; SystemExit with code 0."""
        sys.stdout.write(self.answer(parser, values))
        parser.exit()


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Says the default of every flag, where its own words do not."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if "default" in text or not action.option_strings or isinstance(action, Answer):
            return text
        value = "off" if action.nargs == 0 else default(action)
        return text if value is None else f"{text} (default {value})"


def default(action: argparse.Action) -> str | None:
    """What holds where the flag is not given, as it would be typed; None where that takes words of its own."""
    value: Any = action.default
    if value is None or value == argparse.SUPPRESS:
        value = getattr(Options(), action.dest, None)
    if value is None or (isinstance(value, str | Sequence) and not value):
        return None
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, str | int) else " ".join(value)


def shown(parser: argparse.ArgumentParser, common: Sequence[str], *, everything: bool) -> str:
    """The help of a command: its files and common flags, then its other flags or, unless everything is wanted, what
    these are called."""
    formatter = parser._get_formatter()
    places = parser._get_positional_actions()
    names = " ".join(f"[{a.dest}]" if a.nargs == "?" else a.dest for a in places)
    formatter.add_usage(f"{parser.prog} {names} [flags]", [], [])
    formatter.add_text(parser.description)
    first = [parser._option_string_actions[flag] for flag in common]
    _, general, *groups = parser._action_groups
    sections = [("files", places), ("common flags", first)]
    rest = [(group.title or "", [a for a in group._group_actions if a not in first]) for group in (*groups, general)]
    for title, actions in [*sections, *(rest if everything else rest[-1:])]:
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()
    if not everything:
        formatter.add_text("\n".join([f"more flags, which {parser.prog} --help-all explains:", *_names(rest[:-1])]))
    formatter.add_text(parser.epilog)
    return formatter.format_help()


def _names(sections: Iterable[tuple[str, Sequence[argparse.Action]]]) -> Iterator[str]:
    """What the flags of each section are called."""
    for title, actions in sections:
        names = ", ".join(next(flag for flag in a.option_strings if flag.startswith("--")) for a in actions)
        if not names:
            continue
        text = f"{title.partition(' (')[0]}: {names}"
        yield textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
